"""Markdown and HTML as headings and paragraphs, their markup taken away.

Knows: what of the markup is structure.  Does not know: pages, files, encodings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser

from smart_train.data.ingesting.parts import Block, flat

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
    """Headings (# or underlined) and paragraphs; fenced code stays as it is; front matter is left out."""
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
            if title := flat(plain(heading[2] or "")):
                yield Block("heading", title, len(heading[1]) - 1)
        elif held and (drawn := SETEXT.fullmatch(line)) and not _list_or_quote(held[-1]):
            title = flat(plain(" ".join(held)))
            held.clear()
            yield Block("heading", title, 0 if drawn[1][0] == "=" else 1)
        elif not line.strip() or RULE.fullmatch(line):
            yield from _paragraph(held)
        else:
            held.append(line)
    yield from _paragraph(held)


def plain(text: str) -> str:
    """Markdown without its inline marks: what a reader of the finished page would see."""
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
BLOCKS = {  # fmt: skip
    "address",
    "article",
    "aside",
    "blockquote",
    "body",
    "caption",
    "center",
    "dd",
    "details",
    "dialog",
    "div",
    "dl",
    "dt",
    "fieldset",
    "figcaption",
    "figure",
    "footer",
    "form",
    "header",
    "hr",
    "li",
    "main",
    "ol",
    "p",
    "section",
    "summary",
    "table",
    "tbody",
    "tfoot",
    "thead",
    "tr",
    "ul",
}
CELLS = {"td", "th"}


def html_blocks(text: str) -> list[Block]:
    """Headings and paragraphs of a page; scripts, styles and navigation are left out, ``title`` is its first heading
    where no heading says the same."""
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
        """What was read since the last block is one."""
        text = "".join(self._words)
        self._words = []
        if self._pre and self._heading is None:
            if text.strip():
                self.blocks.append(Block("code", text.strip("\n").rstrip()))
            return
        lines = [flat(line) for line in text.split("\v")]  # a vertical tab stands for <br>
        found = "\n".join(line for line in lines if line)
        if found == "-":
            return
        if found and self._heading is not None:
            self.blocks.append(Block("heading", flat(found), self._heading))
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
            self.title = flat(f"{self.title} {data}")
        elif not self._unseen:
            self._words.append(data)
