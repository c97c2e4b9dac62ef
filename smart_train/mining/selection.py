"""Which documents become hard negatives of a query: what never may, and what is taken of the ranked rest.

A document that ranks high for a query and is judged by nobody is either a hard negative or an answer that was missed.
Score thresholds that follow the known answer's score (Moreira et al. 2024, NV-Retriever: TopK-PercPos, TopK-MarginPos)
tell them apart better than ranks do; ranks (TopK shifted by N, sampling in a range) are here as well.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from smart_train.core.errors import DataError
from smart_train.data import collection as records
from smart_train.data.collection import hash_id
from smart_train.data.identity import content_hash

MODES = ("pooled", "late", "hybrid")
NEVER = ("answer", "itself", "duplicate", "window")
"""Why a document never is a negative of a query: it is judged relevant to it (or to a query of the same words); it is
the query itself; it shows what an answer, or an earlier candidate, shows; it is a page next to an answer's."""
PASSED_OVER = ("range", "max_relative", "margin", "skip_top", "more")
"""Why a candidate was not taken: its rank; its score, twice; it was among the first that are skipped; k were enough."""


@dataclass(frozen=True)
class Options:
    """How negatives are chosen.

    k: most negatives a query gets; one that has fewer candidates gets fewer
    mode: the score that ranks: pooled, late or hybrid
    max_relative: below this share of the score of the best known answer; None = any
    margin: below that score by more than this, in the score's unit; None = any
    range: ranks that are looked at, from the first to before the last, 0 = best; answers and copies have no rank
    skip_top: so many of the hardest that passed the thresholds are left out
    window: pages of an answer's file this near to it are no candidates (0 = the page itself under another id; a large
        number = the whole file); None = they are
    sampling: top = the hardest; random = drawn among all that passed, by (seed, query id) alone
    Raises DataError for a value that means nothing.
    """

    k: int = 8
    mode: Literal["pooled", "late", "hybrid"] = "hybrid"
    max_relative: float | None = 0.95
    margin: float | None = None
    range: tuple[int, int] = (0, 100)
    skip_top: int = 0
    window: int | None = None
    sampling: Literal["top", "random"] = "top"
    seed: int = 0

    def __post_init__(self) -> None:
        first, last = self.range
        wrong = {
            f"mode is {self.mode!r}; choose {', '.join(MODES)}": self.mode not in MODES,
            f"sampling is {self.sampling!r}; choose top or random": self.sampling not in ("top", "random"),
            f"k is {self.k}; a query gets 1 negative or more": self.k < 1,
            f"max_relative is {self.max_relative}; it is a share of the answer's score, above 0 and at most 1": (
                self.max_relative is not None and not 0 < self.max_relative <= 1
            ),
            f"margin is {self.margin}; a negative one lets in what scores above the answer; give 0 or more": (
                self.margin is not None and not self.margin >= 0
            ),
            f"range is {first} {last}; give two ranks, the first 0 or more and below the last": not 0 <= first < last,
            f"skip_top is {self.skip_top}; give 0 or more": self.skip_top < 0,
            f"window is {self.window}; give 0 pages or more": self.window is not None and self.window < 0,
        }
        for what, is_so in wrong.items():
            if is_so:
                raise DataError(what)

    def ceiling(self, positive: float) -> tuple[float, float]:
        """What a negative scores below, by ``max_relative`` and by ``margin``.

        A share of a score at or below 0 would lie above it: there the same distance is kept, downwards.
        """
        share = 1.0 if self.max_relative is None else self.max_relative
        relative = float("inf") if self.max_relative is None else positive - (1 - share) * abs(positive)
        return relative, float("inf") if self.margin is None else positive - self.margin


@dataclass
class Selected:
    """documents: (id, score), hardest first; dropped: how many candidates were passed over, by reason."""

    documents: list[tuple[str, float]]
    dropped: Counter[str] = field(default_factory=Counter)


def select(
    query: str,
    ranked: Iterable[tuple[str, float]],
    positive: float,
    options: Options,
    content: Callable[[str], int] = lambda document: 0,
    answers: Collection[int] = (),
) -> Selected:
    """The negatives of one query.

    ranked: (document id, score), best first, without what ``Never`` names; no more of it is taken than the range needs
    positive: the score of the best known answer
    content: the content hash of a document, 0 where it is not known; answers: those of the known answers
    """
    first, last = options.range
    relative, margin = options.ceiling(positive)
    seen, dropped = set(answers) - {0}, Counter[str]()
    passed: list[tuple[str, float]] = []
    rank = 0
    for document, score in ranked:
        shown = content(document)
        if shown in seen:
            dropped["duplicate"] += 1
            continue
        if shown:
            seen.add(shown)
        if rank < first:
            dropped["range"] += 1
        elif score >= relative:
            dropped["max_relative"] += 1
        elif score >= margin:
            dropped["margin"] += 1
        else:
            passed.append((document, score))
        rank += 1
        if rank == last:
            break
    rest = passed[options.skip_top :]
    taken = _sample(query, rest, options)
    dropped.update(skip_top=len(passed) - len(rest), more=len(rest) - len(taken))
    return Selected(taken, +dropped)


def _sample(query: str, passed: list[tuple[str, float]], options: Options) -> list[tuple[str, float]]:
    if options.sampling == "top" or len(passed) <= options.k:
        return passed[: options.k]
    places = Random(hash_id(f"{options.seed}\n{query}")).sample(range(len(passed)), options.k)
    return [passed[place] for place in sorted(places)]


class Never:
    """Which documents of a collection are never a negative of a query, as far as it can be told without decoding."""

    def __init__(self, collection: records.Collection, window: int | None = None) -> None:
        self.collection, self.window = collection, window
        self._answers: dict[str, set[str]] = {}  # words of a query -> what is relevant to any query of these words
        for query, text in collection.queries.items():
            self._answers.setdefault(_words(text), set()).update(collection.relevant(query))
        self._copies = self._texts()
        self._pages: dict[str, list[tuple[int, str]]] = {}
        for document in collection.corpus.values() if window is not None else ():
            if document.file is not None and document.page is not None:
                self._pages.setdefault(document.file, []).append((document.page, document.id))
        for pages in self._pages.values():
            pages.sort()

    def answers(self, query: str) -> set[str]:
        """Ids of what is known to answer the query or one of the same words, whether the corpus has it or not."""
        return self._answers[_words(self.collection.queries[query])]

    def of(self, query: str) -> dict[str, str]:
        """Document id -> reason, of documents of the corpus; without the query itself, see encoding.standing."""
        corpus = self.collection.corpus
        answers = sorted(d for d in self.answers(query) if d in corpus)
        found = dict.fromkeys(answers, "answer")
        for document in answers:
            for copy in self._copies.get(text_hash(corpus[document]), ()):
                found.setdefault(copy, "duplicate")
        for document in answers:
            for near in self._near(corpus[document]):
                found.setdefault(near, "window")
        return found

    def _texts(self) -> dict[int, list[str]]:
        """Content hash -> ids, for the texts that are an answer and stand in the corpus twice."""
        corpus = self.collection.corpus
        judged = {d for answers in self._answers.values() for d in answers if d in corpus}
        wanted = {text_hash(corpus[d]) for d in judged} - {0}
        found: dict[int, list[str]] = {}
        for document in corpus.values():
            shown = text_hash(document)
            if shown in wanted:
                found.setdefault(shown, []).append(document.id)
        return {shown: ids for shown, ids in found.items() if len(ids) > 1}

    def _near(self, document: records.Document) -> Iterable[str]:
        if self.window is None or document.file is None or document.page is None:
            return ()
        pages = self._pages[document.file]
        begin = bisect_left(pages, document.page - self.window, key=_page)
        end = bisect_right(pages, document.page + self.window, key=_page)
        return (name for _, name in pages[begin:end])


def _page(entry: tuple[int, str]) -> int:
    return entry[0]


def _words(text: str) -> str:
    return " ".join(text.casefold().split())


def text_hash(document: records.Document) -> int:
    """The content hash of a document that is a text; 0 for every other one."""
    return content_hash(document.text) if document.image is None and document.text is not None else 0


def held_out(train: records.Collection, others: Sequence[records.Collection]) -> set[str]:
    """Documents that no training query may be taught with, because another split is measured on them: judged there
    and no answer here, with every page of a file that answers queries there and none here."""
    corpus = train.corpus
    own = {d for query in train.queries for d in train.relevant(query)}
    judged = {d for side in others for row in side.qrels.values() for d in row if d in corpus} - own
    own_files = {corpus[d].file for d in own if d in corpus}
    files = {corpus[d].file for d in judged} - own_files - {None}
    return judged | {d.id for d in corpus.values() if d.file in files}
