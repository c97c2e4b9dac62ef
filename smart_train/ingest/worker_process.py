"""Inspect files and read their pages in a separate process, which a broken file may crash.

    python -m smart_train.ingest.worker_process

reads requests from standard input and writes answers to standard output, one JSON object a line. The first line in is
the settings. ``{"do": "inspect"}`` is answered by one line, ``{"do": "read"}`` by one for each page and one more.
``skip`` (the file) or ``lost`` (a page) in an answer comes with a reason. Whatever a library prints goes to standard
error.
"""

from __future__ import annotations

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
from smart_train.core.errors import ExtensionError, SmartTrainError
from smart_train.ingest import image_files, text_files
from smart_train.ingest.ingest_options import OCR_HOOKS, WorkerSettings
from smart_train.ingest.pages import IMAGES, Kind, Outline, Page, Unreadable, file_id, page_hash, page_id
from smart_train.ingest.pdf_files import Pdf
from smart_train.ingest.source_files import os_error_reason

REOPEN = 500  # pages after which a PDF is opened again, as pdfium keeps about 20 kB of each page that it has loaded
OCR_PIXELS = 4_000_000  # of the image that an OCR hook gets: A4 at about 200 dots per inch


class Reader:
    """Inspect files and read pages; the last PDF stays open, as requests come in runs of its pages."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.images = Path(settings.out) / IMAGES
        self.ocr = _load_hook(settings.ocr) if settings.ocr else None
        self._stack = ExitStack()
        self._open: tuple[str, Pdf, dict[int, list[Outline]]] | None = None
        self._loaded = 0

    def inspect(self, path: Path, kind: Kind) -> dict[str, Any]:
        """Return a file's id, its number of pages, and a stamp that tells later whether it has changed."""
        status = path.stat()
        if status.st_size > self.settings.max_bytes:
            raise Unreadable("file too large", f"{status.st_size:,} bytes: --max-bytes")
        also = ""
        if kind == "pdf":
            with Pdf(path, self.settings.max_pages, self.settings.encrypted) as pdf:
                pages = pdf.pages
        elif kind == "image":
            pages = image_files.count_pages(path, self.settings.max_pages, self.settings.max_picture)
        else:
            pages = len(self._text_pages(path))
            if pages > self.settings.max_pages:
                raise Unreadable("too many pages", f"{pages}, the limit is {self.settings.max_pages}: --max-pages")
            # what page 3 of a text is depends on where it is cut, and an id must not stand for two things
            also = f"{path.suffix.lower()} {self.settings.characters} {self.settings.encoding}"
        return {"id": file_id(path, also), "pages": pages, "stamp": _stamp(status)}

    def read(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield an answer for each page from ``first`` to ``last``: ``page``, ``blank`` (nothing is on it), ``unread``
        (no text, and images are off) or ``lost`` with the reason. ``note`` says what is wrong with a page that is kept.
        """
        path, kind = Path(request["path"]), request["kind"]
        if _stamp(path.stat()) != request["stamp"]:
            raise Unreadable("changed while it was read", "run the command again")
        texts = self._text_pages(path) if kind == "text" else []
        for number in range(request["first"], request["last"] + 1):
            try:
                if kind == "text":
                    text = texts[number - 1]
                    yield self._answer(request, number, None, text.text, text.outline, None)
                elif kind == "image":
                    yield self._image_page(request, path, number)
                else:
                    yield self._pdf_page(request, path, number)
            except Unreadable as why:
                yield {"lost": number, "reason": why.reason, "detail": why.detail}

    def _text_pages(self, path: Path) -> list[text_files.TextPage]:
        return text_files.read_text_pages(path, self.settings.characters, self.settings.encoding)

    def _image_page(self, request: dict[str, Any], path: Path, number: int) -> dict[str, Any]:
        limit = self.settings.max_picture
        image = image_files.read_image(path, number, self.settings.pixels, limit)
        if image_files.is_blank(image):
            return {"blank": number}
        text, note = self._run_ocr(lambda: image_files.read_image(path, number, OCR_PIXELS, limit))
        return self._answer(request, number, None, text, (), image, note)

    def _pdf_page(self, request: dict[str, Any], path: Path, number: int) -> dict[str, Any]:
        pdf, outline = self._pdf(path)
        page = pdf.page(number, self.settings.max_picture)
        try:
            text, note = page.text() if self.settings.text else "", None
            scanned = self.settings.text and not text
            image = page.image(self.settings.pixels) if self.settings.images or scanned else None
            if not text:
                if image_files.is_blank(image):
                    return {"blank": number}
                text, note = self._run_ocr(lambda: page.image(OCR_PIXELS))
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
            pdf = self._stack.enter_context(Pdf(path, self.settings.max_pages, self.settings.encrypted))
            # finding an entry's page takes pdfium half a millisecond in a long file
            self._open = str(path), pdf, pdf.outline() if known is None else known
        self._loaded += 1
        return self._open[1:]

    def _run_ocr(self, image: Callable[[], Any]) -> tuple[str, str | None]:
        """Return the text that the OCR hook reads, and what went wrong."""
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
        name, stored, path = page_id(request["id"], number), None, None
        if image is not None and self.settings.images:
            stored = image_files.encode_jpeg(image)
            path = f"{IMAGES}/{name}.jpg"
            _write(self.images / f"{name}.jpg", stored)
        if not text and path is None:
            return {"unread": number}
        title = outline[0].title if outline else None
        page = Page(
            name, request["file"], number, request["pages"], label, text, title, outline, path,
            page_hash(text, stored), request["kind"],
        )  # fmt: skip
        return {"page": asdict(page)} | ({"note": note} if note else {})


class Stop(SmartTrainError):
    """No further file can be read or written; ends the process and the run."""


def _write(path: Path, data: bytes) -> None:
    try:
        with replacing(path) as part:
            part.write_bytes(data)
    except OSError as error:
        raise Stop(f"{path} cannot be written: {error.strerror}; free some space and run the command again") from error


def _stamp(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns]


def _load_hook(name: str) -> Callable[[Any], Any]:
    try:
        hook: Callable[[Any], Any] = OCR_HOOKS.resolve(name)
    except ExtensionError as error:
        raise Stop(str(error)) from error
    except Exception as error:  # raised by the hook's module while it is imported
        raise Stop(f"the OCR hook {name!r} cannot be imported ({type(error).__name__}: {error})") from error
    if not callable(hook):
        raise Stop(f"the OCR hook {name!r} is a {type(hook).__name__}, not a function")
    return hook


# ---------------------------------------------------------------------------------------------- the process


def main() -> None:
    """Serve requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints is no answer
    settings = WorkerSettings(**json.loads(sys.stdin.readline()))
    _limit_process(settings)
    warnings.simplefilter("ignore")  # about odd but readable files; what is not readable is reported with a reason
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
        if request["do"] == "inspect":
            send({"done": True} | reader.inspect(path, request["kind"]))
            return
        for answer in reader.read(request):
            send(answer)
        send({"done": True})
        return
    except Unreadable as error:
        why = error
    except OSError as error:
        why = os_error_reason(error, path)
    except MemoryError:
        why = Unreadable("out of memory", f"the limit is {reader.settings.memory:,} bytes")
    except Stop:
        raise
    except Exception as error:  # no file may end the run, whatever a parser makes of it
        why = Unreadable("damaged", f"{type(error).__name__}: {error}")
    send({"done": True, "skip": why.reason, "detail": why.detail})


def _limit_process(settings: WorkerSettings) -> None:
    """Leave Ctrl-C to the parent, end with the parent (so as not to write beside its next run), and limit memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if sys.platform != "win32" and not settings.ocr:  # models map more than they use
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = settings.memory if hard == resource.RLIM_INFINITY else min(settings.memory, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    main()
