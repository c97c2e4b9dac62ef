"""Split the text layer of a page into words, lines and sentences with positions, and take spans out of it.

The text layer of a PDF marks a word that was divided at the end of a line by a control character (or keeps a soft
hyphen), joins letters to ligatures, and puts no blank line between paragraphs.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

DIVIDED = re.compile("[\x02\u00ad\ufffe\uffff][ \t]*(?:\r?\n)?")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff\u200b]")
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_CJK_ONE = re.compile(f"[{_CJK}]")
_WORD = re.compile(rf"[{_CJK}]{{1,2}}|[^\W\d_{_CJK}]+(?:['’\-._/:][^\W_{_CJK}]+)*")
_LINE = re.compile(r"[^\r\n]+")
# a label before a heading: 2.1, A.3.2, IV., Chapter 2:, Appendix B, §4, (a), •
LABEL = re.compile(
    r"^\s*(?:(?:chapter|appendix|section|part|unit|lesson|step|kapitel|abschnitt|anhang|teil|chapitre|annexe|partie|"
    r"cap[ií]tulo|secci[oó]n|anexo|§+)\s*(?:\d+(?:\.\d+)*|[A-Z]|[IVXLC]+)\b[.:)\s\-–—]*"
    r"|\(?(?:\d+|[A-Z])(?:[.\-]\d+)+\.?\)?(?=[\s:])[:\s]*|\(?\d+[.):]?(?=\s)\s*|[IVXLC]+\.\s+|[A-Z]\.\s+|\([a-z]\)\s+"
    r"|[•●▪■◦‣∙*–—-]\s+)+",
    re.IGNORECASE,
)
_THREE = re.compile(r"(?:\s*\.){3}")
_BLANK, _DIGITS = " \t\n\r\f\v\u00a0", "0123456789"
_NUMBER_BEHIND = re.compile(r"[\s.…]*\b(?:\d+|[ivxlc]+)\s*$")
_SENTENCE_END = re.compile(r"[.!?](?=[\"”’')\]]?(?:\s|$))")
_SHORT = frozenset("e.g i.e etc cf fig figs vs dr mr mrs st al eq sec z.b approx".split())  # noqa: SIM905


def clean(text: str) -> str:
    """Return a text on one line: ligatures split, divided words joined, white space single, quotes straight."""
    text = unicodedata.normalize("NFKC", DIVIDED.sub("", text))
    text = _CONTROL.sub(" ", text).replace("’", "'").replace("‘", "'").replace("“", '"').replace("”", '"')
    return " ".join(text.split())


def words(text: str) -> list[str]:
    """Return the words that have letters (``as.data.frame`` is one; in Chinese, Japanese, Korean two characters)."""
    return _WORD.findall(text)


def squeeze(text: str) -> str:
    """Return letters and digits alone, case folded: a key under which spaces, marks, accents and hyphens are equal."""
    return "".join(c for c in unicodedata.normalize("NFKD", text).casefold() if c.isalnum())


def leaders_at(text: str) -> int:
    """Return where the leaders behind a title begin ("Title . . . . . . 17"), or the length of a text without any.

    Only the end of the line is looked at, since a pattern over the whole of a dotted line takes cubic time.
    """
    end = len(text.rstrip(_BLANK + _DIGITS + "."))
    found = _THREE.search(text, end)
    if found:
        return found.start()
    body = text.rstrip(_BLANK + _DIGITS)
    return len(body.rstrip("…").rstrip(_BLANK)) if body.endswith("…") else len(text)


def has_leaders(text: str) -> bool:
    return leaders_at(text) < len(text)


def unlabelled(text: str) -> str:
    """Return a heading without the number before it, and without leaders and page number behind it."""
    title = LABEL.sub("", text, count=1)
    return title[: leaders_at(title)].strip(" \t:–—-·|")


@dataclass(frozen=True)
class Span:
    """A part of a text. text: ``raw[start:end]``, cleaned."""

    start: int
    end: int
    text: str


def lines(text: str) -> list[Span]:
    """Return the lines that are not blank; a word divided over two lines makes them one."""
    found = (Span(m.start(), m.end(), clean(m[0])) for m in _LINE.finditer(_joined(text)))
    return [line for line in found if line.text]


def _joined(text: str) -> str:
    """Return a text of the same length, with the line break in a divided word replaced."""
    return DIVIDED.sub(lambda m: m[0].replace("\r", "\x02").replace("\n", "\x02"), text)


def bare(line: str) -> str:
    """Return a key by which a line repeats a title: squeezed, without label, leaders and page number."""
    stripped = unlabelled(line)
    return squeeze(_NUMBER_BEHIND.sub("", stripped) or stripped)


def sentences(text: str) -> Iterator[Span]:
    """Yield sentences, which may run over lines; their ends are guessed from the marks, abbreviations aside."""
    begin = 0
    for end in _SENTENCE_END.finditer(text):
        before = text[begin : end.start()].rsplit(maxsplit=1)
        last = before[-1].casefold().lstrip("(") if before else ""
        ahead = text[end.end() :].lstrip()[:1]
        short = last in _SHORT or (len(last) == 1 and last.isalpha()) or (last == "no" and ahead.isdigit())
        if end[0] == "." and short and ahead:
            continue
        stop = end.end()
        first = begin + len(text[begin:stop]) - len(text[begin:stop].lstrip())
        if first < stop:
            yield Span(first, stop, clean(text[first:stop]))
        begin = stop


def find(text: str, wanted: Iterable[str]) -> list[tuple[int, int]]:
    """Return (start, end) of each place where one of ``wanted`` stands in a text as whole words, in order, merged.

    Case, spaces, line breaks and hyphens make no difference.
    """
    letters: list[str] = []
    places: list[int] = []
    for place, character in enumerate(text):
        if character.isascii():
            if character.isalnum():
                letters.append(character.lower())
                places.append(place)
            continue
        for part in squeeze(character):
            letters.append(part)
            places.append(place)
    squeezed = "".join(letters)
    found: list[tuple[int, int]] = []
    for key in {squeeze(one) for one in wanted} - {""}:
        at = squeezed.find(key)
        while at >= 0:
            first, last = places[at], places[at + len(key) - 1]
            if not _inside(text, first - 1, first) and not _inside(text, last, last + 1):
                found.append((first, last + 1))
            at = squeezed.find(key, at + 1)
    return _merged(found)


def _inside(text: str, left: int, right: int) -> bool:
    """Return whether the neighbouring characters at ``left`` and ``right`` belong to one word."""
    if left < 0 or right >= len(text) or _CJK_ONE.match(text[left]) or _CJK_ONE.match(text[right]):
        return False
    return text[left].isalnum() and text[right].isalnum()


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def without(text: str, taken: Iterable[str], titles: set[str]) -> str:
    """Return a text without ``taken``, and without lines that only repeat a title.

    taken: words to take out wherever they stand, as whole words
    titles: keys of ``bare``: such a line (in a running header, in a table of contents) is removed
    A line of which only a label or marks are left is removed, too; everything else keeps every character.
    """
    spans = find(text, taken)
    for line in lines(text):
        cut = [s for s in spans if s[0] < line.end and s[1] > line.start]
        rest, at = "", line.start
        for start, end in cut:
            rest += text[at : max(at, start)]
            at = max(at, min(end, line.end))
        rest += text[at : line.end]
        if (cut and not words(unlabelled(clean(rest) + " "))) or (titles and bare(line.text) in titles):
            spans.append((line.start, line.end))
    out, at = [], 0
    for start, end in _merged(spans):
        out.append(text[at:start])
        at = end
    out.append(text[at:])
    return re.sub(r"(?:[ \t]*\r?\n){3,}", "\n\n", "".join(out)).strip() if spans else text
