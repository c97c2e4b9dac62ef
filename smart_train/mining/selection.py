"""Select the hard negatives of a query: documents that are excluded, and thresholds, ranks and sampling for the rest.

A document that ranks high and is not judged is either a hard negative or a positive that nobody labelled. Thresholds
relative to the positive's score (Moreira et al. 2024, NV-Retriever: TopK-PercPos, TopK-MarginPos) separate the two
better than ranks do; ranks (shifted top k, sampling in a range) are options as well.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from smart_train.core.errors import DataError
from smart_train.data import collection as records
from smart_train.data.collection import hash_id
from smart_train.data.identity import known_hash, plain, shown_hashes

MODES = ("pooled", "late", "hybrid")
EXCLUDED = ("answer", "itself", "duplicate", "window")
"""Why a document is excluded: it is relevant to the query (or to one of the same words); it is the query itself; it has
the content of a positive or of an earlier candidate; it is a page next to a positive."""
NOT_TAKEN = ("range", "max_relative", "margin", "skip_top", "more")
"""Why a candidate was not taken: its rank, its score (two thresholds), skip_top, or k others were taken."""


@dataclass(frozen=True)
class MiningOptions:
    """Options of how negatives are selected.

    k: most negatives a query gets; a query with fewer candidates gets fewer
    mode: the score that ranks: pooled, late or hybrid
    max_relative: a negative scores below this share of the best positive's score; None = no such limit
    margin: a negative scores below the best positive by more than this, in the score's unit; None = no such limit
    range: (first, end) of the ranks that are considered, 0 = best; positives and copies have no rank
    skip_top: leave out this many of the hardest that passed the thresholds
    window: exclude pages of a positive's file that are at most this far from it (0 = the page itself under another id;
        a large number = the whole file); None = exclude none
    sampling: top = the hardest; random = drawn among all that passed, by (seed, query id) alone
    Raises DataError for an impossible value.
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
            f"k is {self.k}; give 1 negative a query or more": self.k < 1,
            f"max_relative is {self.max_relative}; it is a share of the positive's score, above 0 and at most 1": (
                self.max_relative is not None and not 0 < self.max_relative <= 1
            ),
            f"margin is {self.margin}; below 0 it lets in documents that score above the positive; give 0 or more": (
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
        """Return the two scores that a negative must stay below, by ``max_relative`` and by ``margin``.

            relative = s - (1 - max_relative) |s|,    margin = s - margin        s: the positive's score

        For s > 0 the first is max_relative * s; for s <= 0, where a share of s would lie above s, the distance is kept.
        """
        share = 1.0 if self.max_relative is None else self.max_relative
        relative = float("inf") if self.max_relative is None else positive - (1 - share) * abs(positive)
        return relative, float("inf") if self.margin is None else positive - self.margin


@dataclass
class Selected:
    """documents: (id, score), hardest first; dropped: how many candidates were not taken, by reason (NOT_TAKEN)."""

    documents: list[tuple[str, float]]
    dropped: Counter[str] = field(default_factory=Counter)


def distinct_candidates(
    ranked: Iterable[tuple[str, float]],
    options: MiningOptions,
    content: Callable[[str], int] = lambda document: 0,
    positives: Collection[int] = (),
) -> tuple[list[tuple[str, float]], int]:
    """Return the candidates up to the last rank of the range, without copies, and how many copies were left out.

    ranked: (document id, score), best first; no more of it is read than the range needs
    content: the content hash of a document, 0 where it is not known; positives: those of the positives
    """
    seen = set(positives) - {0}
    found: list[tuple[str, float]] = []
    copies = 0
    for document, score in ranked:
        shown = content(document)
        if shown in seen:
            copies += 1
            continue
        if shown:
            seen.add(shown)
        found.append((document, score))
        if len(found) == options.range[1]:
            break
    return found, copies


def select_negatives(
    query: str,
    candidates: Sequence[tuple[str, float]],
    positive: float,
    options: MiningOptions,
    rescored: Mapping[str, float] | None = None,
) -> Selected:
    """Select the negatives of one query among its ranked candidates.

    candidates: (document id, score), best first, as ``distinct_candidates`` gives them
    positive: the score of the best positive
    rescored: document id -> a reranker's score, for every candidate within the range; ``positive`` is the reranker's,
        too. Ranks stay those of the candidates; the thresholds compare the reranker's scores, and these are returned.
    """
    first, last = options.range
    relative, margin = options.ceiling(positive)
    passed: list[tuple[str, float]] = []
    dropped = Counter[str](range=len(candidates[:first]))
    for document, score in candidates[first:last]:
        score = score if rescored is None else rescored[document]
        if score >= relative:
            dropped["max_relative"] += 1
        elif score >= margin:
            dropped["margin"] += 1
        else:
            passed.append((document, score))
    rest = passed[options.skip_top :]
    taken = _sample(query, rest, options)
    dropped.update(skip_top=len(passed) - len(rest), more=len(rest) - len(taken))
    return Selected(taken, +dropped)


def _sample(query: str, passed: list[tuple[str, float]], options: MiningOptions) -> list[tuple[str, float]]:
    if options.sampling == "top" or len(passed) <= options.k:
        return passed[: options.k]
    places = Random(hash_id(f"{options.seed}\n{query}")).sample(range(len(passed)), options.k)
    return [passed[place] for place in sorted(places)]


class ExcludedDocuments:
    """The documents that are never a negative of a query, as far as is known without decoding images."""

    def __init__(self, collection: records.Collection, window: int | None = None) -> None:
        self.collection, self.window = collection, window
        self._positives: dict[str, set[str]] = {}  # words of a query -> what is relevant to any query of these words
        for query, text in collection.queries.items():
            self._positives.setdefault(plain(text), set()).update(collection.relevant(query))
        self._copies = self._texts()
        self._pages: dict[str, list[tuple[int, str]]] = {}
        for document in collection.corpus.values() if window is not None else ():
            if document.file is not None and document.page is not None:
                self._pages.setdefault(document.file, []).append((document.page, document.id))
        for pages in self._pages.values():
            pages.sort()

    def positives(self, query: str) -> set[str]:
        """Return ids of the documents relevant to the query, or to one of the same words; the corpus may lack some."""
        return self._positives[plain(self.collection.queries[query])]

    def of(self, query: str) -> dict[str, str]:
        """Return {document id: reason} for documents of the corpus; the query itself is not among them."""
        corpus = self.collection.corpus
        positives = sorted(d for d in self.positives(query) if d in corpus)
        found = dict.fromkeys(positives, "answer")
        for document in positives:
            for copy in self._copies.get(self._hash(corpus[document]), ()):
                found.setdefault(copy, "duplicate")
        for document in positives:
            for near in self._near(corpus[document]):
                found.setdefault(near, "window")
        return found

    def _hash(self, document: records.Document) -> int:
        return known_hash(document, self.collection.near)

    def _texts(self) -> dict[int, list[str]]:
        """Return {content hash: ids} of what a positive shows and several documents of the corpus do, as far as that is
        known without decoding."""
        corpus = self.collection.corpus
        judged = {d for positives in self._positives.values() for d in positives if d in corpus}
        wanted = {self._hash(corpus[d]) for d in judged} - {0}
        found: dict[int, list[str]] = {}
        for document in corpus.values():
            shown = self._hash(document)
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


def held_out_documents(train: records.Collection, others: Sequence[records.Collection]) -> set[str]:
    """Return the documents that another split is measured on, so that they are no negatives of training queries:
    those judged there and not relevant here, copies of them, and every page of a file with positives there and none
    here."""
    corpus = train.corpus
    own = {d for query in train.queries for d in train.relevant(query)}
    judged = {d for other in others for row in other.qrels.values() for d in row if d in corpus} - own
    own_files = {corpus[d].file for d in own if d in corpus}
    files = {corpus[d].file for d in judged} - own_files - {None}
    others_judged = [
        other.corpus[d] for other in others for row in other.qrels.values() for d in row if d in other.corpus
    ]
    shown = shown_hashes([*corpus.values(), *others_judged], train.near)
    own_hashes = {hash for d, hash in zip(corpus, shown, strict=False) if d in own}
    held_out = {*shown[len(corpus) :]} - own_hashes - {0}
    copies = {d for d, hash in zip(corpus, shown, strict=False) if hash in held_out}
    return judged | copies | {d.id for d in corpus.values() if d.file in files}
