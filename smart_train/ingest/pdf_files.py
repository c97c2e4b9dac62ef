"""PDF files: their pages as pictures and text, their outline and labels, and why one cannot be read.

Pdfium is not thread-safe, and a broken file can end the process: this room is for worker processes (workers.py).
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

from smart_train.ingest.pages import Outline, Unreadable

DPI = 200  # a small page is not enlarged beyond this: there is nothing more to see
SIDE = 14400  # points, 200 inches: the largest side that the PDF reference knows
NARROW = 200  # the longest side over the shortest; image processors refuse more
CHARACTERS = 1_000_000  # of one page; a full page of small print has ten thousand
ENTRIES = 100_000  # of an outline
DEPTH = 8  # forms within forms that are searched for pictures
LIGATURES = {0xFB00 + i: letters for i, letters in enumerate(("ff", "fi", "fl", "ffi", "ffl", "st", "st"))}
NO_TEXT = {c: None for c in (*range(9), 11, 12, *range(14, 32), 127, 0xAD, 0xFFFE, 0xFFFF)}


class Pdf:
    """An open PDF.  Raises Unreadable, with the reason, where it cannot be opened.

    most_pages: more are refused.  encrypted: take files that are encrypted but open without a password, too.
    """

    def __init__(self, path: Path, most_pages: int, encrypted: bool = False) -> None:
        with path.open("rb") as stream:
            _check_ends(stream)
        opened = raw.FPDF_LoadDocument(os.fsencode(path) + b"\0", None)
        if not opened:
            raise _reason(raw.FPDF_GetLastError())
        self.document = pdfium.PdfDocument(opened)
        try:
            self.pages = len(self.document)
            if self.pages < 1:  # pypdfium2 would tell the reason of the last file that failed
                raise Unreadable("no pages")
            if not encrypted and raw.FPDF_GetSecurityHandlerRevision(self.document) >= 0:
                raise Unreadable("encrypted", "it opens without a password; --encrypted reads it")
            if self.pages > most_pages:
                raise Unreadable("too many pages", f"{self.pages}, the limit is {most_pages}: --max-pages")
            self.document.init_forms()  # what was filled in is drawn
        except BaseException:
            self.document.close()
            raise

    def __enter__(self) -> Pdf:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.document.close()

    def outline(self) -> dict[int, list[Outline]]:
        """Number of a page, from 1 -> the bookmarks that point to it, in their order; pointless ones are left out."""
        found: dict[int, list[Outline]] = {}
        for count, entry in enumerate(self.document.get_toc()):
            if count >= ENTRIES:
                break
            title = " ".join(_read(entry.get_title).split())
            target = entry.get_dest()
            index = None if target is None else target.get_index()
            if title and index is not None and index < self.pages:
                found.setdefault(index + 1, []).append(Outline(title, entry.level))
        return found

    def label(self, page: int) -> str | None:
        """What the document calls the page of this number (from 1)."""
        return _read(lambda: self.document.get_page_label(page - 1)).strip() or None

    def page(self, page: int, most_picture: int) -> PdfPage:
        """The page of this number (from 1).  most_picture: the most pixels of a picture inside it.

        Raises Unreadable where it is damaged, or would need a great deal of memory to draw.
        """
        try:
            opened = self.document[page - 1]
        except pdfium.PdfiumError as error:
            raise Unreadable("damaged", "the page cannot be loaded") from error
        try:
            _check_size(*opened.get_size())
            largest = max(_picture_sizes(opened), default=0)
            if largest > most_picture:
                raise Unreadable(
                    "picture too large", f"{largest / 1e6:.0f} megapixels, the limit is {most_picture / 1e6:.0f}"
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
        """The text layer inside the visible part of the page; "" where there is none."""
        try:
            layer = self.opened.get_textpage()
        except pdfium.PdfiumError as error:
            raise Unreadable("damaged", "its text cannot be loaded") from error
        try:
            if layer.count_chars() > CHARACTERS:
                raise Unreadable("too much text", f"{layer.count_chars()} characters on one page")
            return clean(layer.get_text_bounded()).strip()
        finally:
            layer.close()

    def image(self, pixels: int) -> Any:
        """The page drawn on white as an RGB image of at most so many pixels."""
        width, height = self.opened.get_size()
        scale = _scale(width, height, pixels)
        return self.opened.render(scale=scale, rev_byteorder=True).to_pil()

    def close(self) -> None:
        self.opened.close()


def clean(text: str) -> str:
    """Text without what is no text: control characters, marks of a broken line, ligatures, carriage returns.

    Pdfium writes U+0002 for a hyphen at the end of a line and joins the lines; a word that goes on in small letters is
    one word again, anything else keeps its hyphen.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub("\x02(?=[^\\W\\d_])", lambda m: "" if text[m.end()].islower() else "-", text).replace("\x02", "-")
    return text.translate(NO_TEXT).translate(LIGATURES)


def _read(get: Callable[[], str]) -> str:
    """A title or a label; "" where its bytes are no text, which costs an entry and not the file."""
    try:
        return clean(get())
    except UnicodeDecodeError:
        return ""


def _check_ends(stream: Any) -> None:
    """A PDF says so in its first kilobyte and ends with the place of its table; where the end is missing, a reader
    that repairs would find some of the pages and leave others white."""
    head = stream.read(1024)
    if not head:
        raise Unreadable("empty file")
    if b"%PDF-" not in head:
        raise Unreadable("not a PDF", f"it begins with {head[:16]!r}")
    size = stream.seek(0, 2)
    tail = b""
    while size > 0 and not tail:  # some programs fill up with zeros
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
    """Sides in points."""
    if not (0 < width <= SIDE and 0 < height <= SIDE):
        raise Unreadable("page too large", f"{width / 72:.0f} x {height / 72:.0f} inches, the limit is {SIDE // 72}")
    if max(width, height) > NARROW * min(width, height):
        raise Unreadable("page too narrow", f"{width:.0f} x {height:.0f} points")


def _scale(width: float, height: float, pixels: int) -> float:
    """Pixels per point, so that the drawn page, whose sides are rounded up, is within the budget."""
    scale = min(math.sqrt(pixels / (width * height)), DPI / 72)
    while math.ceil(width * scale) * math.ceil(height * scale) > pixels:
        scale *= 0.999
    return scale


def _picture_sizes(page: Any) -> Iterator[int]:
    """Pixels of each picture on a page, from its header: nothing is decoded (about 0.1 microseconds an object)."""
    width, height = ctypes.c_uint(), ctypes.c_uint()

    def inside(count: Any, get: Any, parent: Any, depth: int) -> Iterator[int]:
        for i in range(count(parent)):
            part = get(parent, i)
            kind = raw.FPDFPageObj_GetType(part)
            if kind == raw.FPDF_PAGEOBJ_IMAGE and raw.FPDFImageObj_GetImagePixelSize(part, width, height):
                yield width.value * height.value
            elif kind == raw.FPDF_PAGEOBJ_FORM and depth < DEPTH:
                yield from inside(raw.FPDFFormObj_CountObjects, raw.FPDFFormObj_GetObject, part, depth + 1)

    yield from inside(raw.FPDFPage_CountObjects, raw.FPDFPage_GetObject, page, 0)
