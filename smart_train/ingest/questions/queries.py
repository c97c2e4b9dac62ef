"""Queries for pages: what one is, the two ways to get them, and the filter that a model has the last word in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from smart_train.core.errors import DataError

if TYPE_CHECKING:
    from smart_train.ingest.questions.asking import Asker, Asking
    from smart_train.ingest.questions.own_words import OwnWords

Ranker = Callable[[Sequence[str]], Sequence[Sequence[str]]]
"""B query texts -> for each the ids of pages, best first."""


class OutlineEntry(Protocol):
    @property
    def title(self) -> str: ...

    @property
    def level(self) -> int: ...


class PageLike(Protocol):
    """The fields of ``pages.Page`` that queries are made of."""

    @property
    def id(self) -> str: ...

    @property
    def file(self) -> str: ...

    @property
    def page(self) -> int: ...

    @property
    def text(self) -> str: ...

    @property
    def title(self) -> str | None: ...

    @property
    def outline(self) -> Sequence[OutlineEntry]: ...

    @property
    def image(self) -> str | None: ...

    @property
    def hash(self) -> str: ...

    @property
    def kind(self) -> str: ...


@dataclass(frozen=True)
class Question:
    """A query and where it comes from.

    text: what a user would type; document: the id of the page that answers it
    rule: how it was found: outline, title, heading, question, caption, definition; or vlm: fact, vlm: figure ...
    source: the words of the page it was taken from, as they stand there; "" for a model's question
    file, page: of that page, for people
    """

    text: str
    document: str
    rule: str
    source: str
    file: str
    page: int


@dataclass
class Written:
    """The questions of a corpus, in the order of its pages.

    masked: page id -> its text without the words that a question was taken from; pages that are not in it keep theirs
    counts: "RULE" -> questions kept, and "RULE: REASON" -> candidates dropped for that reason
    """

    questions: list[Question] = field(default_factory=list)
    masked: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def kept(self) -> dict[str, int]:
        """rule -> questions."""
        return dict(sorted(Counter(question.rule for question in self.questions).items()))

    def dropped(self) -> dict[str, int]:
        """reason -> candidates, over all rules; most first."""
        total: Counter[str] = Counter()
        for name, count in self.counts.items():
            _, told, reason = name.rpartition(": ")
            if told and name not in self.kept():
                total[reason] += count
        return dict(sorted(total.items(), key=lambda pair: (-pair[1], pair[0])))


def own_words(pages: Iterable[PageLike], options: OwnWords | None = None) -> Written:
    """Questions in the documents' own words, without a model; see own_words.py."""
    from smart_train.ingest.questions import own_words as way  # it builds on this module

    return way.own_words(pages, options)


def vlm(pages: Iterable[PageLike], asker: Asker, folder: Path, options: Asking | None = None) -> Written:
    """Questions that a vision-language model (or, for texts, any chat model) asks about each page; see vlm.py."""
    from smart_train.ingest.questions import vlm as way  # it builds on this module

    return way.vlm(pages, asker, folder, options)


def round_trip(written: Written, ranker: Ranker, k: int = 10, same: Callable[[str], str] | None = None) -> Written:
    """Keeps the questions whose page is among the first ``k`` that the ranker finds for them (Alberti et al. 2019
    call it roundtrip consistency; Dai et al. 2022 use a retriever for it).

    ranker: of the base model, over the pages' own content; it is called once, with all texts
    same: page id -> what two pages with the same content share (``Page.hash``), so that finding a copy counts

    What a ranker does not find is a question that several pages answer, that no page answers, or that is beyond the
    base model: the last is a loss, so ``k`` is best not 1.  Masked texts stay as they are.
    Raises DataError where the ranker does not answer each query.
    """
    if k < 1:
        raise DataError(f"k is the number of pages looked at, 1 or more, got {k}")
    same = same or (lambda page: page)
    found = ranker([question.text for question in written.questions]) if written.questions else []
    if len(found) != len(written.questions):
        raise DataError(f"the ranker gave {len(found)} rankings for {len(written.questions)} questions")
    kept: list[Question] = []
    counts = Counter({name: count for name, count in written.counts.items() if name not in written.kept()})
    for question, ranked in zip(written.questions, found, strict=True):
        if same(question.document) in map(same, ranked[:k]):
            kept.append(question)
            counts[question.rule] += 1
        else:
            counts[f"{question.rule}: not among the first {k}"] += 1
    return Written(kept, dict(written.masked), dict(sorted(counts.items())))
