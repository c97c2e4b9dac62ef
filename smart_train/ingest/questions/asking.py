"""What a model is asked about a page, what may come back, and what of that is a question."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from smart_train.core.errors import DataError
from smart_train.ingest.questions.wording import clean, words

KINDS = {
    "fact": "a specific detail that is stated there: a number, a name, a date, a setting, a step",
    "figure": "something that can only be read off a figure, a chart, a diagram or a table there",
    "concept": "how or why something works, as it is explained there",
}
PROMPT = """\
You are given one page out of a large library. People who have never seen it search the library for what it says.
Write up to {count} search queries that such people would type and that this page answers in full, of these kinds:
{kinds}
Leave a kind out where the page has nothing for it.
- A query must be clear to somebody who does not see the page: name the subject, the product, the place or the year.
- Never point at the page: no "this page", "this image", "this document", "the figure", "shown above", no page numbers.
- Use your own words as a person in a hurry would; do not copy a sentence. Write in the language of the page.
- Of a blank page, a cover, a table of contents or an index, give none.
Answer with JSON and nothing else:
{{"queries": [{{"kind": "{first}", "query": "...", "answer": "the answer in a few words"}}]}}
With none: {{"queries": []}}"""
CHECK = """\
You are given one page out of a large library, and search queries:
{queries}
Which of them does this page answer in full, so that no other page is needed, and are clear to somebody who does not
see the page? Answer with JSON and nothing else, with the numbers of the good ones: {{"good": [1]}}. With none: \
{{"good": []}}"""
TEXT = "\n\nThe page:\n<<<\n{text}\n>>>"

_THING = (
    r"(?:page|image|picture|photo(?:graph)?|document|figure|table|chart|diagram|graph|text|passage|excerpt|section|"
    r"slide|screenshot|scan|article|paragraph|illustration|author)s?\b"
)
POINTING = re.compile(
    rf"\b(?:this|these|that|those|given|provided|attached|shown|above|below|following|displayed|current)\s{_THING}|"
    rf"\b(?:in|on|by|from|of|per|to|does|do|is|are)\sthe\s(?:\w+\s)?{_THING}|\b(?:shown|mentioned|listed|described|"
    r"depicted|pictured|displayed|given|discussed)\s(?:here|above|below)\b|\b(?:figure|fig\.|table|page|section|"
    r"chapter|slide)\s\d|\bdiese[rsnm]?\s(?:seite|abbildung|grafik|tabelle|dokument|text|bild)|\bcette\s(?:page|image|"
    r"figure)|\bce\s(?:document|tableau|texte)|\best[ae]\s(?:página|imagen|documento|figura|tabla|texto)",
    re.IGNORECASE,
)
_ALIASES = {"table": "figure", "chart": "figure", "diagram": "figure", "visual": "figure", "detail": "fact"}


@dataclass(frozen=True)
class Request:
    """prompt: all of the text; image: a file to show, or None; attempt: 0, or which repetition this is."""

    prompt: str
    image: Path | None = None
    attempt: int = 0


@dataclass(frozen=True)
class Answer:
    """text: as the model wrote it; read, written: tokens of the prompt (image included) and of the answer."""

    text: str
    read: int = 0
    written: int = 0


@dataclass(frozen=True)
class Refusal:
    """One request that got no answer, however often it was asked; reason: a few words, detail: anything."""

    reason: str
    detail: str = ""


class Asker(Protocol):
    """name: what the answers depend on (model, settings), for the cache; at_once: requests that one call likes best"""

    @property
    def name(self) -> str: ...

    @property
    def at_once(self) -> int: ...

    def ask(self, requests: Sequence[Request]) -> list[Answer | Refusal]: ...


@dataclass(frozen=True)
class Asking:
    """kinds: some of KINDS; a_page: questions wanted of a page
    show: image, text or both; auto = the image where there is one, else the text
    characters: of a text that are shown; fewest, most: words of a question; least: words of a text worth asking about
    attempts: how often an answer that is no JSON is asked for; check: whether the model judges its own questions
    patience: pages in a row without an answer before the run stops
    prices: per million tokens read and written, in any currency; for what is told, no more
    """

    kinds: tuple[str, ...] = tuple(KINDS)
    a_page: int = 3
    show: str = "auto"
    characters: int = 12_000
    fewest: int = 3
    most: int = 40
    least: int = 20
    attempts: int = 3
    check: bool = True
    patience: int = 8
    prices: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise DataError(f"kinds are some of {', '.join(KINDS)}, not {', '.join(unknown) or 'none'}")
        if self.show not in ("auto", "image", "text", "both"):
            raise DataError(f"show is auto, image, text or both, not {self.show!r}")
        if min(self.a_page, self.attempts, self.patience, self.characters, self.fewest) < 1 or self.fewest > self.most:
            raise DataError(f"these numbers leave no question: {self}")


@dataclass
class Progress:
    """What has been done, and what it cost; ``str`` is one line for a terminal."""

    total: int | None = None  # pages
    pages: int = 0
    questions: int = 0
    asked: int = 0  # requests that went to the model
    cached: int = 0  # requests answered from the folder
    read: int = 0  # tokens of this run
    written: int = 0
    prices: tuple[float, float] = (0.0, 0.0)
    begun: float = field(default_factory=time.monotonic)

    @property
    def cost(self) -> float:
        return (self.read * self.prices[0] + self.written * self.prices[1]) / 1e6

    def __str__(self) -> str:
        seconds = max(time.monotonic() - self.begun, 1e-9)
        of = "" if self.total is None else f"/{self.total}"
        told = f"{self.pages}{of} pages, {self.pages / seconds:.2f} a second"
        if self.total and self.pages:
            told += f", {(self.total - self.pages) * seconds / self.pages:.0f} s left"
        told += f"; {self.questions} questions; {self.asked} requests and {self.cached} from the cache; "
        told += f"{self.read:,} + {self.written:,} tokens"
        return told + (f", {self.cost:.2f}" if any(self.prices) else "")


def kind_of(told: str, kinds: Sequence[str]) -> str | None:
    """The rule of a kind as a model writes it ("Figure or table" is "vlm: figure"); None for one not asked for."""
    first = next(iter(words(told.casefold())), "").rstrip("s")
    kind = _ALIASES.get(first, first)
    return f"vlm: {kind}" if kind in kinds else None


def fault(text: str, options: Asking) -> str | None:
    """Why a model's text is no question that can stand alone; None where it is one."""
    count = len(words(text))
    if count < options.fewest:
        return "too short"
    if count > options.most:
        return "too long"
    if POINTING.search(text):
        return "points at the page"
    return None


def parse_queries(text: str) -> list[tuple[str, str]] | None:
    """[(kind, query)] out of a model's answer; None where it is not the JSON that was asked for."""
    for found in _json(text):
        rows = found.get("queries") if isinstance(found, dict) else found
        if isinstance(rows, list) and all(isinstance(row, dict) and isinstance(row.get("query"), str) for row in rows):
            return [(str(row.get("kind") or ""), clean(row["query"])) for row in rows]
    return None


def parse_check(text: str) -> set[int] | None:
    """The numbers of the good ones; None where the answer is not the JSON that was asked for."""
    for found in _json(text):
        good = found.get("good") if isinstance(found, dict) else None
        if isinstance(good, list) and all(type(number) is int for number in good):
            return set(good)
    return None


def _json(text: str) -> Iterator[Any]:
    """Every JSON object or list in a text, from the first; what a model thinks aloud or puts around it is no matter."""
    text = re.sub(r"<think>.*?</think>", " ", text, flags=re.DOTALL)
    decoder, at = json.JSONDecoder(), 0
    while (start := min((p for p in (text.find("{", at), text.find("[", at)) if p >= 0), default=-1)) >= 0:
        try:
            found, at = decoder.raw_decode(text, start)
            yield found
        except (json.JSONDecodeError, RecursionError):
            at = start + 1
