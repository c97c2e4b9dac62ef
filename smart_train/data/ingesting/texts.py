"""Text, Markdown and HTML files as pages: headings become the outline, long texts are cut where they may be.

Knows: headings, paragraphs, encodings.  Does not know: ids, pictures, where pages go.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from smart_train.data.ingesting.markup import html_blocks, markdown_blocks
from smart_train.data.ingesting.parts import Block, flat
from smart_train.data.pages import Outline, Unreadable

MARKS = (  # a longer mark first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
DECLARED = re.compile(rb"""<(?:meta|\?xml)[^>]{0,200}?(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
UNDERLINE = re.compile(r"([=\-~^*#+_])\1{2,}\s*")
SMALL = 0.25  # a page holds at least this share of what it may hold before a heading begins the next one
ABOVE = 0.15  # share of a page that is kept for headings above a long paragraph; a longer heading is none


@dataclass(frozen=True)
class TextPage:
    """A piece of a text file; its headings are lines of ``text``, as they are in ``outline``."""

    text: str
    outline: tuple[Outline, ...]


def read(path: Path, characters: int, encoding: str | None = None) -> list[TextPage]:
    """The pages of a text file of at most so many characters each.

    encoding: of files that are neither UTF-8 nor say what they are; None = they are refused.
    Raises Unreadable, with the reason.
    """
    data = path.read_bytes()
    if not data:
        raise Unreadable("empty file")
    suffix = path.suffix.lower()
    is_html = suffix in (".html", ".htm", ".xhtml")
    text = decode(data, encoding, is_html)
    split: Callable[[str], Iterable[Block]] = (
        html_blocks if is_html else markdown_blocks if suffix in (".md", ".markdown") else text_blocks
    )
    pages = list(paginate(split(text), characters))
    if not pages:
        raise Unreadable("blank", "there is no text in it")
    return pages


def decode(data: bytes, encoding: str | None = None, is_html: bool = False) -> str:
    """Text of bytes: by their mark, as UTF-8, as HTML says it is, or as ``encoding``; line breaks are ``\\n``."""
    name = next((name for mark, name in MARKS if data.startswith(mark)), None)
    if name is None and b"\0" in data:
        raise Unreadable("not a text", "it has bytes of zero")
    declared = DECLARED.search(data[:4096]) if is_html else None
    tried = (
        [name] if name else ["utf-8", *([declared[1].decode()] if declared else []), *([encoding] if encoding else [])]
    )
    for candidate in tried:
        try:
            text = data.decode(candidate)
        except (UnicodeDecodeError, LookupError):
            continue
        return re.sub(r"\r\n?", "\n", text).translate({c: None for c in (*range(9), 11, *range(14, 32), 127)})
    raise Unreadable("unknown encoding", f"not {' nor '.join(tried)}; name it by --encoding, for example cp1252")


def text_blocks(text: str) -> Iterator[Block]:
    """Paragraphs of a plain text; a line with one of ``= - ~`` drawn under it is a heading, its level by the first
    use of its line, and a form feed ends a page."""
    levels: dict[str, int] = {}
    for part in re.split(r"(\f)", text):
        if part == "\f":
            yield Block("break")
            continue
        for paragraph in re.split(r"\n[ \t]*\n+", part):
            lines = paragraph.strip("\n").split("\n")
            while len(lines) > 1 and UNDERLINE.fullmatch(lines[0]):
                lines.pop(0)  # drawn above as well
            if len(lines) > 1 and (drawn := UNDERLINE.fullmatch(lines[1])) and _under(lines):
                yield Block("heading", flat(lines[0]), levels.setdefault(drawn[1], len(levels)))
                lines = lines[2:]
            if rest := "\n".join(lines).strip("\n").rstrip():
                yield Block("text", rest)


def _under(lines: list[str]) -> bool:
    """A heading has letters, and a line about as long as itself under it."""
    title, line = lines[0].strip(), lines[1].strip()
    return any(c.isalpha() for c in title) and 0.5 * len(title) <= len(line) <= 2 * len(title) + 4


# ---------------------------------------------------------------------------------------------- pages


def paginate(blocks: Iterable[Block], characters: int) -> Iterator[TextPage]:
    """Blocks as pages of at most so many characters, cut before a heading, else between paragraphs, else sentences.

    A heading begins a page unless the one before it is less than a quarter full, and goes where its text goes.
    """
    parts: list[Block] = []  # of the page that is being filled
    used = 0

    def page() -> TextPage:
        outline = tuple(Outline(b.text, b.level) for b in parts if b.kind == "heading")
        return TextPage("\n\n".join(b.text for b in parts), outline)

    for block in _pieces(blocks, characters):
        full = used > 0 and used + len(block.text) > characters
        ready = block.kind == "heading" and used >= SMALL * characters and parts[-1].kind != "heading"
        if parts and (full or ready or block.kind == "break"):
            moved: list[Block] = []
            while full and len(parts) > 1 and parts[-1].kind == "heading":
                moved.insert(0, parts.pop())
            if full and moved and sum(len(b.text) + 2 for b in moved) + len(block.text) > characters:
                parts, moved = parts + moved, []
            yield page()
            parts = moved
            used = sum(len(b.text) + 2 for b in parts)
        if block.kind != "break":
            parts.append(block)
            used += len(block.text) + 2
    if parts:
        yield page()


def _pieces(blocks: Iterable[Block], characters: int) -> Iterator[Block]:
    """The same blocks, none so long that a heading would not fit above it."""
    long, heading = int((1 - ABOVE) * characters), int(ABOVE * characters)
    for block in blocks:
        kind = "text" if block.kind == "heading" and len(block.text) > heading else block.kind
        if len(block.text) <= long:
            yield replace(block, kind=kind)
        else:
            yield from (Block(kind, part) for part in _cut(block.text, long))


def _cut(text: str, characters: int) -> Iterator[str]:
    """A long paragraph at the last line break, else end of a sentence, else space, else anywhere within the limit; a
    break in the first half is passed over."""
    while len(text) > characters:
        window = text[: characters + 1]
        ends = (
            max((m.end() for m in re.finditer(pattern, window)), default=0)
            for pattern in (r"\n", r"[.!?…。！？][\"'”’)\]]*(?:\s|(?<=[。！？]))", r"\s")
        )
        at = next((end for end in ends if characters / 2 <= end <= characters), characters)
        if head := text[:at].strip():
            yield head
        text = text[at:].lstrip("\n ")
    if text.strip():
        yield text.rstrip()
