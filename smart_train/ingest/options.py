"""Options and limits of ``smart-train ingest``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from smart_train.core.errors import DataError
from smart_train.ingest.pages import Kind

VERSION = 1  # of how pages are made: a higher number has them made again


@dataclass(frozen=True)
class Settings:
    """What a reading process is told; see IngestOptions and Limits."""

    out: str
    pixels: int
    images: bool
    text: bool
    characters: int
    encoding: str | None
    encrypted: bool
    ocr: str | None
    most_pages: int
    most_bytes: int
    most_picture: int
    memory: int


@dataclass(frozen=True)
class Limits:
    """Beyond these a file, or a page of it, is skipped with its reason.

    pages: of one file
    file_bytes: size of one file
    picture: pixels of one picture, in a PDF or a file of its own, as it is stored: decoding takes 3 or 4 bytes each
    seconds: without a finished page; ten times that where an OCR hook is used
    memory: bytes of a reading process's address space (not on Windows, and not where an OCR hook is used)
    """

    pages: int = 5_000
    file_bytes: int = 4 * 2**30
    picture: int = 200_000_000
    seconds: float = 120.0
    memory: int = 4 * 2**30


@dataclass(frozen=True)
class IngestOptions:
    """How pages are made.

    pixels: the most of a page's image; a small page is drawn at 200 dots per inch at most, a picture never enlarged
    jobs: processes that read; None = one for each core
    images: store page images.  text: keep text layers, and read text files
    characters: the most of a page of a text file
    encoding: of text files that are neither UTF-8 nor say what they are; None = they are skipped
    encrypted: read PDFs that are encrypted but open without a password
    ocr: ``module:function`` that is given an RGB PIL image of a page without text and returns its text, or that
        function itself; it runs in the reading processes
    strict: stop at the first file that cannot be read
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
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if not self.images and not self.text:
            raise DataError("images and text are both off: nothing would be kept")
        for name, least in (("pixels", 4096), ("characters", 200), ("jobs", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise DataError(f"{name} is {value}; give {least} or more")

    def making(self) -> dict[str, Any]:
        """What a page depends on, besides its file."""
        keys = ("pixels", "images", "text", "characters", "encoding", "encrypted")
        return {key: getattr(self, key) for key in keys} | {"ocr": hook_name(self.ocr), "version": VERSION}

    def settings(self, out: str) -> Settings:
        """What a reading process is told.  Raises DataError for a hook that it could not import."""
        return Settings(
            out, self.pixels, self.images, self.text, self.characters, self.encoding, self.encrypted,
            hook_name(self.ocr), self.limits.pages, self.limits.file_bytes, self.limits.picture, self.limits.memory,
        )  # fmt: skip

    def told(self) -> dict[str, Any]:
        """For the report: all that decides what is kept."""
        return self.making() | {"limits": asdict(self.limits)}

    def reads(self, kind: Kind) -> bool:
        """Whether anything of a file of this kind would be kept."""
        return {"pdf": True, "text": self.text, "image": self.images or (self.ocr is not None and self.text)}[kind]


def hook_name(hook: str | Callable[[Any], str] | None) -> str | None:
    """``module:function`` of an OCR hook, by which every process can import it."""
    if hook is None:
        return None
    name = hook if isinstance(hook, str) else f"{hook.__module__}:{hook.__qualname__}"
    module, _, function = name.partition(":")
    if not module or not function or module == "__main__" or "<" in function:
        raise DataError(
            f"the OCR hook {name!r} cannot be imported by other processes; name a function of a module: module:function"
        )
    return name
