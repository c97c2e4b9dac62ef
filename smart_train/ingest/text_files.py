"""Read text, Markdown and HTML files as pages: headings become the outline, long texts are cut at a good place."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

from smart_train.ingest.pages import Outline, Unreadable

BYTE_ORDER_MARKS = (  # the longer one first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
DECLARED = re.compile(rb"""<(?:meta|\?xml)[^>]{0,200}?(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
UNDERLINE = re.compile(r"([=\-~^*#+_])\1{2,}\s*")
MIN_FILL = 0.25  # of a page that must be used before a heading begins the next page
HEADING_SHARE = 0.15  # of a page that is kept free for headings above a long paragraph; a longer heading is text


@dataclass(frozen=True)
class Block:
    """A heading (level 0 = outermost), a paragraph, code (whose spaces count), or a page break."""

    kind: Literal["heading", "text", "code", "break"]
    text: str = ""
    level: int = 0


def one_line(text: str) -> str:
    """Return a text on one line, with single spaces."""
    return " ".join(text.split())


@dataclass(frozen=True)
class TextPage:
    """One page of a text file; its headings are in ``outline``, and lines of ``text``."""

    text: str
    outline: tuple[Outline, ...]


def read_text_pages(path: Path, characters: int, encoding: str | None = None) -> list[TextPage]:
    """Return the pages of a text file, of at most ``characters`` characters each.

    encoding: of files that are not UTF-8 and declare none; None = they are refused
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
    """Decode by byte order mark, else as UTF-8, as HTML declares, or as ``encoding``; line breaks are ``\\n``.

    Raises Unreadable where none of them fits: an encoding is never guessed.
    """
    name = next((name for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), None)
    if name is None and b"\0" in data:
        raise Unreadable("not a text", "it holds zero bytes")
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


# ---------------------------------------------------------------------------------------------- plain text


def text_blocks(text: str) -> Iterator[Block]:
    """Yield the paragraphs of a plain text. An underlined line (``===``, ``---`` ...) is a heading, whose level is the
    order in which underlines are first used; a form feed is a page break."""
    levels: dict[str, int] = {}
    for part in re.split(r"(\f)", text):
        if part == "\f":
            yield Block("break")
            continue
        for paragraph in re.split(r"\n[ \t]*\n+", part):
            lines = paragraph.strip("\n").split("\n")
            while len(lines) > 1 and UNDERLINE.fullmatch(lines[0]):
                lines.pop(0)  # drawn above as well
            if len(lines) > 1 and (drawn := UNDERLINE.fullmatch(lines[1])) and _is_underlined(lines):
                yield Block("heading", one_line(lines[0]), levels.setdefault(drawn[1], len(levels)))
                lines = lines[2:]
            if rest := "\n".join(lines).strip("\n").rstrip():
                yield Block("text", rest)


def _is_underlined(lines: list[str]) -> bool:
    """Return whether the second line underlines the first, a heading: it has letters and is about as long."""
    title, line = lines[0].strip(), lines[1].strip()
    return any(c.isalpha() for c in title) and 0.5 * len(title) <= len(line) <= 2 * len(title) + 4


# ---------------------------------------------------------------------------------------------- Markdown

FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*")
SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*")
RULE = re.compile(r" {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}")
FRONT = re.compile(r"\A---[ \t]*\n(?=[ \t]*[\w\"'-]+[ \t]*:)(.*?\n)?(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
INLINE = (  # in this order; what KEPT finds is set aside before and put back after
    (re.compile(r"<!--.*?-->", re.DOTALL), ""),
    (re.compile(r"!?\[([^\[\]]*)\]\((?:[^()\s]|\([^()]*\))*(?:\s+\"[^\"]*\")?\)"), r"\1"),
    (re.compile(r"!?\[([^\[\]]+)\]\[[^\[\]]*\]"), r"\1"),
    (re.compile(r"<((?:https?://|mailto:)[^<>\s]+)>"), r"\1"),
    (re.compile(r"</?[a-zA-Z][^<>\n]*>"), ""),
    (re.compile(r"(\*\*|__|~~)(?=\S)(.+?)(?<=\S)\1", re.DOTALL), r"\2"),
    (re.compile(r"(?<![\w*])\*(?=\S)([^*\n]+?)(?<=\S)\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<![\w_])_(?=\S)([^_\n]+?)(?<=\S)_(?![\w_])"), r"\1"),
)
KEPT = re.compile(r"\\(?P<mark>[!-/:-@\[-`{-~])|(?P<ticks>`+)(?!`)(?P<code>.+?)(?<!`)(?P=ticks)(?!`)", re.DOTALL)


def markdown_blocks(text: str) -> Iterator[Block]:
    """Yield headings (# or underlined) and paragraphs of a Markdown text; fenced code is kept, front matter is not."""
    lines = FRONT.sub("", text, count=1).split("\n")
    held: list[str] = []  # lines of the paragraph that is being read
    i = 0
    while i < len(lines):
        line = lines[i]
        i += 1
        if fence := FENCE.match(line):
            yield from _paragraph(held)
            end = i
            closing = re.compile(rf" {{0,3}}{fence[1][0]}{{{len(fence[1])},}}[ \t]*")
            while end < len(lines) and not closing.fullmatch(lines[end]):
                end += 1
            if code := "\n".join(lines[i:end]).strip("\n").rstrip():
                yield Block("code", code)
            i = end + 1
        elif line.lstrip().startswith("<!--"):
            yield from _paragraph(held)
            while "-->" not in line and i < len(lines):
                line = lines[i]
                i += 1
        elif heading := ATX.fullmatch(line):
            yield from _paragraph(held)
            if title := one_line(plain(heading[2] or "")):
                yield Block("heading", title, len(heading[1]) - 1)
        elif held and (drawn := SETEXT.fullmatch(line)) and not _list_or_quote(held[-1]):
            title = one_line(plain(" ".join(held)))
            held.clear()
            yield Block("heading", title, 0 if drawn[1][0] == "=" else 1)
        elif not line.strip() or RULE.fullmatch(line):
            yield from _paragraph(held)
        else:
            held.append(line)
    yield from _paragraph(held)


def plain(text: str) -> str:
    """Return Markdown without its inline marks, as a reader of the rendered page sees it."""
    spans: list[str] = []

    def aside(found: re.Match[str]) -> str:
        spans.append(found["mark"] or found["code"].strip())
        return f"\0{len(spans) - 1}\0"

    text = KEPT.sub(aside, text.replace("\0", ""))
    for pattern, instead in INLINE:
        text = pattern.sub(instead, text)
    return re.sub("\0(\\d+)\0", lambda m: spans[int(m[1])], unescape(text))


def _paragraph(held: list[str]) -> Iterator[Block]:
    text = plain("\n".join(re.sub(r"^ {0,3}>[ \t]?", "", line) for line in held)).strip("\n").rstrip()
    held.clear()
    if text.strip():
        yield Block("text", text)


def _list_or_quote(line: str) -> bool:
    return re.match(r"\s*(?:[-*+>|]|\d+[.)])", line) is not None


# ---------------------------------------------------------------------------------------------- HTML

HEADINGS = {f"h{level}": level - 1 for level in range(1, 7)}
UNSEEN = {"script", "style", "template", "nav", "svg", "object", "iframe", "select", "textarea"}
BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "dialog", "div",
    "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "header", "hr", "li", "main", "ol", "p",
    "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul",
}  # fmt: skip
CELLS = {"td", "th"}


def html_blocks(text: str) -> list[Block]:
    """Return the headings and paragraphs of an HTML page, without scripts, styles and navigation.

    ``title`` is the first heading, where no other heading says the same.
    """
    reader = _Html()
    reader.feed(text)
    reader.close()
    reader.end()
    if reader.title and all(b.text != reader.title for b in reader.blocks if b.kind == "heading"):
        return [Block("heading", reader.title), *reader.blocks]
    return reader.blocks


class _Html(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[Block] = []
        self.title = ""
        self._words: list[str] = []
        self._heading: int | None = None
        self._unseen: list[str] = []  # open elements that are not shown, the outermost first
        self._pre = 0
        self._in_title = False

    def end(self) -> None:
        """Make a block of what was read since the last one."""
        text = "".join(self._words)
        self._words = []
        if self._pre and self._heading is None:
            if text.strip():
                self.blocks.append(Block("code", text.strip("\n").rstrip()))
            return
        lines = [one_line(line) for line in text.split("\v")]  # a vertical tab stands for <br>
        found = "\n".join(line for line in lines if line)
        if found == "-":
            return
        if found and self._heading is not None:
            self.blocks.append(Block("heading", one_line(found), self._heading))
        elif found:
            self.blocks.append(Block("text", found))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in UNSEEN:
            self._unseen.append(tag)
        elif self._unseen:
            return
        elif tag == "title":
            self._in_title = True
        elif tag in HEADINGS or tag == "pre" or tag in BLOCKS:
            if "".join(self._words).strip() != "-":  # a paragraph in a list item begins with the item's mark
                self.end()
            self._heading = HEADINGS.get(tag)
            self._pre += tag == "pre"
            if tag == "li":
                self._words.append("- ")
        elif tag == "br":
            self._words.append("\n" if self._pre else "\v")
        elif tag in CELLS and any(word.strip() for word in self._words):
            self._words.append(" | ")
        elif tag == "img":
            self._words.append(f" {dict(attrs).get('alt') or ''} ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in UNSEEN:  # <script/> opens nothing
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag in UNSEEN:
            if tag in self._unseen:
                del self._unseen[self._unseen.index(tag) :]
        elif self._unseen:
            return
        elif tag == "title":
            self._in_title = False
        elif tag in HEADINGS or tag == "pre" or tag in BLOCKS:
            self.end()
            self._heading = None
            self._pre = max(0, self._pre - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title = one_line(f"{self.title} {data}")
        elif not self._unseen:
            self._words.append(data)


# ---------------------------------------------------------------------------------------------- pages


def paginate(blocks: Iterable[Block], characters: int) -> Iterator[TextPage]:
    """Yield pages of at most ``characters`` characters, cut before a heading, else between paragraphs, else sentences.

    A heading begins a page unless the page before it is less than a quarter full, and stays with the text below it.
    """
    parts: list[Block] = []  # of the page that is being filled
    used = 0

    def page() -> TextPage:
        outline = tuple(Outline(b.text, b.level) for b in parts if b.kind == "heading")
        return TextPage("\n\n".join(b.text for b in parts), outline)

    for block in _pieces(blocks, characters):
        full = used > 0 and used + len(block.text) > characters
        ready = block.kind == "heading" and used >= MIN_FILL * characters and parts[-1].kind != "heading"
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
    """Yield the same blocks, cut so that a heading fits above each."""
    long, heading = int((1 - HEADING_SHARE) * characters), int(HEADING_SHARE * characters)
    for block in blocks:
        kind = "text" if block.kind == "heading" and len(block.text) > heading else block.kind
        if len(block.text) <= long:
            yield replace(block, kind=kind)
        else:
            yield from (Block(kind, part) for part in _cut(block.text, long))


def _cut(text: str, characters: int) -> Iterator[str]:
    """Cut a long paragraph at the last line break within the limit, else sentence end, else space, else anywhere.

    A break in the first half is passed over.
    """
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
