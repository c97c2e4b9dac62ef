"""Define the options and limits of ``smart-train ingest``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from smart_train.core.errors import DataError
from smart_train.core.pictures import MAX_PIXELS
from smart_train.core.registry import Registry
from smart_train.ingest.pages import Kind

OCR_HOOKS = Registry("OCR hook", "smart_train.ocr", {})
VERSION = 1  # of how pages are made; with a higher number stored pages are made again


@dataclass(frozen=True)
class WorkerSettings:
    """Settings of a worker process, from IngestOptions and Limits; sent as JSON."""

    out: str
    pixels: int
    images: bool
    text: bool
    characters: int
    encoding: str | None
    encrypted: bool
    ocr: str | None
    max_pages: int
    max_bytes: int
    max_picture: int
    memory: int


@dataclass(frozen=True)
class Limits:
    """Beyond these a file, or a page of it, is skipped and reported.

    pages: pages of one file
    file_bytes: size of one file
    picture: pixels of one image, in a PDF or a file of its own, as it is stored; decoding takes 3 or 4 bytes each
    seconds: without a finished page; ten times that with an OCR hook
    memory: bytes of a worker's address space (not on Windows, and not with an OCR hook)
    """

    pages: int = 5_000
    file_bytes: int = 4 * 2**30
    picture: int = MAX_PIXELS
    seconds: float = 120.0
    memory: int = 4 * 2**30


@dataclass(frozen=True)
class IngestOptions:
    """Options of how pages are made.

    pixels: most pixels of a page image. A small PDF page is drawn at 200 dots per inch at most; no image is enlarged.
    jobs: worker processes; None = one for each core
    images, text: whether page images, and text, are stored; without text, text files are not read
    characters: most characters of a page of a text file
    encoding: of text files that are not UTF-8 and declare none; None = they are skipped
    encrypted: whether to read PDFs that are encrypted but open without a password
    ocr: function that takes the RGB PIL image of a page without text and returns its text, as ``module:function``, by
        a name that an installed package registers (entry points ``smart_train.ocr``), or itself; it runs in the workers
    strict: stop at the first file or page that cannot be read
    allow_outside: also read what links lead to outside of the folder

    Raises DataError for values that leave nothing to store, or that are too small to work.
    """

    pixels: int = 2**20
    jobs: int | None = None
    images: bool = True
    text: bool = True
    characters: int = 2_000
    encoding: str | None = None
    encrypted: bool = False
    ocr: str | Callable[[Any], str] | None = None
    strict: bool = False
    allow_outside: bool = False
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if not self.images and not self.text:
            raise DataError("images and text are both off, so nothing would be stored; leave one on")
        for name, least in (("pixels", 4096), ("characters", 200), ("jobs", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise DataError(f"{name} is {value}; give {least} or more")

    def page_settings(self) -> dict[str, Any]:
        """Return what a stored page depends on, besides its file."""
        keys = ("pixels", "images", "text", "characters", "encoding", "encrypted")
        return {key: getattr(self, key) for key in keys} | {"ocr": hook_name(self.ocr), "version": VERSION}

    def worker_settings(self, out: str) -> WorkerSettings:
        """Return what a worker process needs. Raises DataError for an OCR hook that it could not import."""
        return WorkerSettings(
            out, self.pixels, self.images, self.text, self.characters, self.encoding, self.encrypted,
            hook_name(self.ocr), self.limits.pages, self.limits.file_bytes, self.limits.picture, self.limits.memory,
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """Return everything that decides what is stored, for the report."""
        return self.page_settings() | {"limits": asdict(self.limits)}

    def stores(self, kind: Kind) -> bool:
        """Return whether anything of a file of this kind would be stored."""
        return {"pdf": True, "text": self.text, "image": self.images or (self.ocr is not None and self.text)}[kind]


def hook_name(hook: str | Callable[[Any], str] | None) -> str | None:
    """Return the name under which every process can import an OCR hook: ``module:function``, or a registered one.

    Raises DataError for a function without such a name (of a script, or inside another function).
    """
    if hook is None or hook in OCR_HOOKS.names():
        return hook
    name = hook if isinstance(hook, str) else f"{hook.__module__}:{hook.__qualname__}"
    module, _, function = name.partition(":")
    if not module or not function or module == "__main__" or "<" in function:
        raise DataError(
            f"the OCR hook {name!r} cannot be imported by other processes; name a function of a module: module:function"
        )
    return name
