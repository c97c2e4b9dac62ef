"""Read PDF files: pages as images and text, outline and page labels, and why a file cannot be read.

Pdfium is not thread-safe, and a broken file can crash the process, so this runs in worker processes (worker_pool.py).
"""

from __future__ import annotations

import ctypes
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pypdfium2 as pdfium
import pypdfium2.raw as raw

from smart_train.core.pictures import MAX_ASPECT
from smart_train.ingest.pages import Outline, Unreadable

DPI = 200  # of a small page at most: there is nothing more to see
MAX_SIDE = 14400  # points, 200 inches: the largest side in the PDF reference
MAX_CHARACTERS = 1_000_000  # of one page; a full page of small print has ten thousand
MAX_ENTRIES = 100_000  # of an outline
MAX_DEPTH = 8  # forms within forms that are searched for images
LIGATURES = {0xFB00 + i: letters for i, letters in enumerate(("ff", "fi", "fl", "ffi", "ffl", "st", "st"))}
NOT_TEXT = {c: None for c in (*range(9), 11, 12, *range(14, 32), 127, 0xAD, 0xFFFE, 0xFFFF)}


class Pdf:
    """An open PDF.

    max_pages: a file with more is refused
    encrypted: whether to take files that are encrypted but open without a password
    Raises Unreadable, with the reason, where it cannot be opened.
    """

    def __init__(self, path: Path, max_pages: int, encrypted: bool = False) -> None:
        with path.open("rb") as stream:
            _check_ends(stream)
        opened = raw.FPDF_LoadDocument(os.fsencode(path) + b"\0", None)
        if not opened:
            raise _reason(raw.FPDF_GetLastError())
        self.document = pdfium.PdfDocument(opened)
        try:
            self.pages = len(self.document)
            if self.pages < 1:  # pypdfium2 would give the reason of the last file that failed
                raise Unreadable("no pages")
            if not encrypted and raw.FPDF_GetSecurityHandlerRevision(self.document) >= 0:
                raise Unreadable("encrypted", "it opens without a password; --encrypted reads it")
            if self.pages > max_pages:
                raise Unreadable("too many pages", f"{self.pages}, the limit is {max_pages}: --max-pages")
            self.document.init_forms()  # so that filled-in fields are drawn
        except BaseException:
            self.document.close()
            raise

    def __enter__(self) -> Pdf:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.document.close()

    def outline(self) -> dict[int, list[Outline]]:
        """Return page number (from 1) -> the bookmarks that point to it, in order; those without a page are dropped."""
        entries: dict[int, list[Outline]] = {}
        for count, entry in enumerate(self.document.get_toc()):
            if count >= MAX_ENTRIES:
                break
            title = " ".join(_read(entry.get_title).split())
            target = entry.get_dest()
            index = None if target is None else target.get_index()
            if title and index is not None and index < self.pages:
                entries.setdefault(index + 1, []).append(Outline(title, entry.level))
        return entries

    def label(self, page: int) -> str | None:
        """Return the document's own label ("iv", "A-3") of the page of this number (from 1), or None."""
        return _read(lambda: self.document.get_page_label(page - 1)).strip() or None

    def page(self, page: int, max_picture: int) -> PdfPage:
        """Open the page of this number (from 1). max_picture: most pixels of an image on it.

        Raises Unreadable where it is damaged, or would need a lot of memory to draw.
        """
        try:
            opened = self.document[page - 1]
        except pdfium.PdfiumError as error:
            raise Unreadable("damaged", "the page cannot be loaded") from error
        try:
            _check_size(*opened.get_size())
            largest = max(_picture_sizes(opened), default=0)
            if largest > max_picture:
                raise Unreadable(
                    "picture too large",
                    f"{largest / 1e6:.0f} megapixels, the limit is {max_picture / 1e6:.0f}: --max-picture",
                )
        except BaseException:
            opened.close()
            raise
        return PdfPage(opened)


class PdfPage:
    """One open page; close it before the next one is opened, or memory grows."""

    def __init__(self, opened: Any) -> None:
        self.opened = opened

    def text(self) -> str:
        """Return the text layer of the visible part of the page; "" where there is none."""
        try:
            layer = self.opened.get_textpage()
        except pdfium.PdfiumError as error:
            raise Unreadable("damaged", "its text cannot be loaded") from error
        try:
            if layer.count_chars() > MAX_CHARACTERS:
                raise Unreadable("too much text", f"{layer.count_chars()} characters on one page")
            return clean_text(layer.get_text_bounded()).strip()
        finally:
            layer.close()

    def image(self, pixels: int) -> Any:
        """Draw the page on white, as an RGB image of at most ``pixels`` pixels."""
        width, height = self.opened.get_size()
        scale = _scale(width, height, pixels)
        return self.opened.render(scale=scale, rev_byteorder=True).to_pil()

    def close(self) -> None:
        self.opened.close()


def clean_text(text: str) -> str:
    """Remove control characters, marks of divided words, ligatures and carriage returns.

    Pdfium writes U+0002 for a hyphen at the end of a line and joins the lines. A word that continues in small letters
    becomes one word; anything else keeps its hyphen.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub("\x02(?=[^\\W\\d_])", lambda m: "" if text[m.end()].islower() else "-", text).replace("\x02", "-")
    return text.translate(NOT_TEXT).translate(LIGATURES)


def _read(get: Callable[[], str]) -> str:
    """Return a title or a label; "" where its bytes are no text, which costs the entry and not the file."""
    try:
        return clean_text(get())
    except UnicodeDecodeError:
        return ""


def _check_ends(stream: Any) -> None:
    """Refuse what is no PDF by its first kilobyte, and a file without its end.

    A reader that repairs such a file would find some pages and leave others white.
    """
    head = stream.read(1024)
    if not head:
        raise Unreadable("empty file")
    if b"%PDF-" not in head:
        raise Unreadable("not a PDF", f"it begins with {head[:16]!r}")
    size = stream.seek(0, 2)
    tail = b""
    while size > 0 and not tail:  # some programs pad with zeros
        stream.seek(max(0, size - 4096))
        tail = stream.read(min(size, 4096)).rstrip(b"\0 \t\r\n")
        size -= 4096
    if b"startxref" not in tail and b"%%EOF" not in tail:
        raise Unreadable("truncated", "the end of the file is missing")


def _reason(code: int) -> Unreadable:
    if code == raw.FPDF_ERR_PASSWORD:
        return Unreadable("needs a password")
    if code == raw.FPDF_ERR_SECURITY:
        return Unreadable("encrypted", "in a way that is not supported")
    return Unreadable("damaged", "pdfium cannot open it")


def _check_size(width: float, height: float) -> None:
    """Refuse a page by its sides, in points."""
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise Unreadable(
            "page too large", f"{width / 72:.0f} x {height / 72:.0f} inches, the limit is {MAX_SIDE // 72}"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise Unreadable("page too narrow", f"{width:.0f} x {height:.0f} points")


def _scale(width: float, height: float, pixels: int) -> float:
    """Return the pixels per point at which the drawn page, whose sides are rounded up, is within the budget."""
    scale = min(math.sqrt(pixels / (width * height)), DPI / 72)
    while math.ceil(width * scale) * math.ceil(height * scale) > pixels:
        scale *= 0.999
    return scale


def _picture_sizes(page: Any) -> Iterator[int]:
    """Yield the pixels of each image on a page, from its header; nothing is decoded (0.1 microseconds an object)."""
    width, height = ctypes.c_uint(), ctypes.c_uint()

    def inside(count: Any, get: Any, parent: Any, depth: int) -> Iterator[int]:
        for i in range(count(parent)):
            part = get(parent, i)
            kind = raw.FPDFPageObj_GetType(part)
            if kind == raw.FPDF_PAGEOBJ_IMAGE and raw.FPDFImageObj_GetImagePixelSize(part, width, height):
                yield width.value * height.value
            elif kind == raw.FPDF_PAGEOBJ_FORM and depth < MAX_DEPTH:
                yield from inside(raw.FPDFFormObj_CountObjects, raw.FPDFFormObj_GetObject, part, depth + 1)

    yield from inside(raw.FPDFPage_CountObjects, raw.FPDFPage_GetObject, page, 0)
