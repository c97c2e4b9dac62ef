"""What a worker process does: looks at files and reads their pages, one request after the other.

    python -m smart_train.ingest.worker_process

reads requests from standard input and writes answers to standard output, a JSON object a line.

The first line in is the settings.  ``{"do": "look"}`` is answered by one line, ``{"do": "read"}`` by one for each page
and one more; ``skip`` or ``lost`` in an answer name a reason.  Whatever a library prints goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from smart_train.core.atomic_io import replacing
from smart_train.ingest import image_files as stills
from smart_train.ingest import text_files as texts
from smart_train.ingest.folders import reason_of
from smart_train.ingest.options import Settings
from smart_train.ingest.pages import IMAGES, Kind, Outline, Page, Unreadable, file_id, page_hash, page_id
from smart_train.ingest.pdf_files import Pdf

REOPEN = 500  # pages after which a PDF is opened anew: pdfium keeps about 20 kB of each page that it has loaded
OCR_PIXELS = 4_000_000  # of the image that an OCR hook sees: A4 at about 200 dots per inch


class Reader:
    """Looks and reads; keeps the last PDF open, with its outline, as requests come in runs of its pages."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.images = Path(settings.out) / IMAGES
        self.ocr = _hook(settings.ocr) if settings.ocr else None
        self._stack = ExitStack()
        self._open: tuple[str, Pdf, dict[int, list[Outline]]] | None = None
        self._loaded = 0

    # -- one answer for one file

    def look(self, path: Path, kind: Kind) -> dict[str, Any]:
        """What a file is: id, number of pages, and a stamp that says later whether it is still the same."""
        there = path.stat()
        if there.st_size > self.settings.most_bytes:
            raise Unreadable("file too large", f"{there.st_size:,} bytes: --max-bytes")
        also = ""
        if kind == "pdf":
            with Pdf(path, self.settings.most_pages, self.settings.encrypted) as pdf:
                pages = pdf.pages
        elif kind == "image":
            pages = stills.count(path, self.settings.most_pages, self.settings.most_picture)
        else:
            pages = len(texts.read(path, self.settings.characters, self.settings.encoding))
            if pages > self.settings.most_pages:
                raise Unreadable("too many pages", f"{pages}, the limit is {self.settings.most_pages}: --max-pages")
            # what page 3 of a text is depends on where it is cut, and an id must not mean two things
            also = f"{path.suffix.lower()} {self.settings.characters} {self.settings.encoding}"
        return {"id": file_id(path, also), "pages": pages, "stamp": _stamp(there)}

    # -- one answer for each page

    def read(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Answers for pages ``first`` to ``last``: ``page``, ``blank`` (nothing is on it) or ``lost`` with the
        reason; ``note`` names what else is wrong with a page that is kept."""
        path, kind = Path(request["path"]), request["kind"]
        if _stamp(path.stat()) != request["stamp"]:
            raise Unreadable("changed while it was read", "run it again")
        pieces = texts.read(path, self.settings.characters, self.settings.encoding) if kind == "text" else []
        for number in range(request["first"], request["last"] + 1):
            try:
                if kind == "text":
                    piece = pieces[number - 1]
                    yield self._answer(request, number, None, piece.text, piece.outline, None)
                elif kind == "image":
                    yield self._picture(request, path, number)
                else:
                    yield self._pdf_page(request, path, number)
            except Unreadable as why:
                yield {"lost": number, "reason": why.reason, "detail": why.detail}

    def _picture(self, request: dict[str, Any], path: Path, number: int) -> dict[str, Any]:
        most = self.settings.most_picture
        image = stills.read(path, number, self.settings.pixels, most)
        if stills.blank(image):
            return {"blank": number}
        text, note = self._ask(lambda: stills.read(path, number, OCR_PIXELS, most))
        return self._answer(request, number, None, text, (), image, note)

    def _pdf_page(self, request: dict[str, Any], path: Path, number: int) -> dict[str, Any]:
        pdf, outline = self._pdf(path)
        page = pdf.page(number, self.settings.most_picture)
        try:
            text, note = page.text() if self.settings.text else "", None
            scanned = self.settings.text and not text
            image = page.image(self.settings.pixels) if self.settings.images or scanned else None
            if not text:
                if stills.blank(image):
                    return {"blank": number}
                text, note = self._ask(lambda: page.image(OCR_PIXELS))
        finally:
            page.close()
        entries = tuple(outline.get(number, ()))
        answer = self._answer(request, number, pdf.label(number), text, entries, image, note)
        return answer | {"scanned": scanned}

    def _pdf(self, path: Path) -> tuple[Pdf, dict[int, list[Outline]]]:
        if self._open is None or self._open[0] != str(path) or self._loaded >= REOPEN:
            known = self._open[2] if self._open and self._open[0] == str(path) else None
            self._stack.close()
            self._open, self._loaded = None, 0
            pdf = self._stack.enter_context(Pdf(path, self.settings.most_pages, self.settings.encrypted))
            # finding an entry's page takes pdfium half a millisecond in a long file
            self._open = str(path), pdf, pdf.outline() if known is None else known
        self._loaded += 1
        return self._open[1:]

    def _ask(self, image: Callable[[], Any]) -> tuple[str, str | None]:
        """What the OCR hook reads, and what went wrong there."""
        if self.ocr is None or not self.settings.text:
            return "", None
        try:
            text = self.ocr(image())
        except Exception as error:  # another program's: whatever it raises, the page is kept as an image
            return "", f"{type(error).__name__}: {error}"
        if not isinstance(text, str):
            return "", f"it returned {type(text).__name__}, not text"
        return text.encode("utf-8", "replace").decode().strip(), None

    def _answer(
        self,
        request: dict[str, Any],
        number: int,
        label: str | None,
        text: str,
        outline: tuple[Outline, ...],
        image: Any,
        note: str | None = None,
    ) -> dict[str, Any]:
        name, stored, kept = page_id(request["id"], number), None, None
        if image is not None and self.settings.images:
            stored = stills.encode(image)
            kept = f"{IMAGES}/{name}.jpg"
            _write(self.images / f"{name}.jpg", stored)
        if not text and kept is None:
            return {"unread": number}
        title = outline[0].title if outline else None
        page = Page(
            name, request["file"], number, request["pages"], label, text, title, outline, kept,
            page_hash(text, stored), request["kind"],
        )  # fmt: skip
        return {"page": asdict(page)} | ({"note": note} if note else {})


class Stop(Exception):
    """Nothing more can be read or written, whatever the file."""


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    try:
        with replacing(path) as part:
            part.write_bytes(data)
    except OSError as error:
        raise Stop(f"{path} cannot be written: {error.strerror}; free some space and run it again") from error


def _stamp(there: os.stat_result) -> list[int]:
    return [there.st_size, there.st_mtime_ns]


def _hook(name: str) -> Callable[[Any], Any]:
    module, _, function = name.partition(":")
    try:
        found = importlib.import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
        if not callable(found):
            raise TypeError("it cannot be called")
    except Exception as error:  # another program's import: whatever it raises
        raise Stop(f"the OCR hook {name!r} cannot be loaded: {type(error).__name__}: {error}") from error
    return found


# ---------------------------------------------------------------------------------------------- the process


def main() -> None:
    """Serves requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # a library that prints must not speak for us
    settings = Settings(**json.loads(sys.stdin.readline()))
    _bounded(settings)
    warnings.simplefilter("ignore")  # on odd but readable files; what is not readable is told by a reason
    logging.getLogger("pypdfium2").setLevel(logging.ERROR)

    def send(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        reader = Reader(settings)
        send({"ready": os.getpid()})
        for line in sys.stdin:
            _serve(reader, json.loads(line), send)
    except Stop as error:
        send({"fatal": str(error)})


def _serve(reader: Reader, request: dict[str, Any], send: Callable[[dict[str, Any]], None]) -> None:
    path = Path(request["path"])
    try:
        if request["do"] == "look":
            send({"done": True} | reader.look(path, request["kind"]))
            return
        for answer in reader.read(request):
            send(answer)
        send({"done": True})
        return
    except Unreadable as error:
        why = error
    except OSError as error:
        why = reason_of(error, path)
    except MemoryError:
        why = Unreadable("out of memory", f"the limit is {reader.settings.memory:,} bytes")
    except Stop:
        raise
    except Exception as error:  # no file may end the run, whatever a parser makes of it
        why = Unreadable("damaged", f"{type(error).__name__}: {error}")
    send({"done": True, "skip": why.reason, "detail": why.detail})


def _bounded(settings: Settings) -> None:
    """Ctrl-C is the parent's affair; memory has a limit; no worker outlives its parent to write beside the next run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if sys.platform != "win32" and not settings.ocr:  # models map more than they use
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = settings.memory if hard == resource.RLIM_INFINITY else min(settings.memory, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


if __name__ == "__main__":
    main()
