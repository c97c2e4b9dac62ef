"""Evaluate BM25 on a collection's texts: the lexical baseline beside an encoder's metrics.

Lucene's BM25 (Robertson et al. 1994; Kamphuis et al. 2020 for the variant), k1 = 1.5, b = 0.75. Words are runs of at
least two letters or digits, in lower case, without Lucene's 33 English stop words and not stemmed: only the stop words
favour a language. A document that shares no word with a query is not in its ranking; equal scores are ordered by
the same hash as all ties.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from smart_train.evaluation.metrics import Interval, Ranking, interval, measure
from smart_train.evaluation.topk import TopK

K1, B = 1.5, 0.75
NOISE = 1e-5  # BM25 scores are sums of float32 of about 10
NAME = "bm25"
TEXTS = 10_000  # texts that are split into words at once: words are objects until they are numbered
SETTINGS: dict[str, Any] = {
    "k1": K1,
    "b": B,
    "variant": "lucene",
    "tokens": r"lower case, (?u)\b\w\w+\b",
    "stopwords": "Lucene's 33 English ones",
    "stemmer": None,
}


@dataclass
class BM25Result:
    """Metrics and rankings of BM25.

    absent: why there are none, else ""; without: documents that have no text, which BM25 cannot find
    """

    absent: str = ""
    metrics: dict[str, Interval] = field(default_factory=dict)  # "ndcg@10" -> {"value", "low", "high"}
    per_query: dict[str, dict[str, float]] = field(default_factory=dict)  # "ndcg@10" -> query id -> value
    rankings: dict[str, Ranking] = field(default_factory=dict)
    documents: int = 0
    without: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # index, scores
    how: dict[str, Any] = field(default_factory=lambda: dict(SETTINGS))

    def to_json(self) -> dict[str, Any]:
        """Return everything but the rankings, as JSON; of each query's metrics its nDCG."""
        found = asdict(self)
        del found["rankings"]
        found["per_query"] = {name: row for name, row in self.per_query.items() if name.startswith("ndcg@")}
        return found


def evaluate_bm25(
    texts: Mapping[str, str | None],
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
    *,
    k: Sequence[int],
    identical_ids: Collection[str] = (),
    bootstrap: int = 1000,
    seed: int = 0,
    top: int = 100,
) -> BM25Result:
    """Rank every document that has a text, and compute the metrics of ``evaluate``.

    texts: document id -> text, None or "" if it has none; queries: query id -> text, those with a relevant document
    identical_ids: queries whose ranking leaves out the document of the same id
    """
    ids = [id for id, text in texts.items() if text and text.strip()]
    if not ids:
        return BM25Result("no document has a text: these are images without a text layer", without=len(texts))
    begun = time.perf_counter()
    index = BM25Index([str(texts[id]) for id in ids])
    if not index.words:
        return BM25Result("no document has a word of two letters or more", without=len(texts))
    indexed = time.perf_counter()
    rankings = {
        query: _ranked(query, index.scores(words), ids, max(top, *k), identical_ids)
        for (query, words) in zip(queries, index.split(list(queries.values())), strict=True)
    }
    scored = time.perf_counter()
    per_query = measure({query: qrels[query] for query in queries}, rankings, k)
    return BM25Result(
        metrics={name: interval(values, bootstrap, seed) for name, values in per_query.items()},
        per_query=per_query,
        rankings=rankings,
        documents=len(ids),
        without=len(texts) - len(ids),
        seconds={"index": indexed - begun, "scores": scored - indexed},
    )


class _Words(Sequence[list[int]]):
    """The word numbers of many texts, 4 bytes each; bm25s goes through them text by text."""

    def __init__(self, numbers: NDArray[np.int32], lengths: NDArray[np.int64]) -> None:
        self.numbers, self.ends = numbers, np.cumsum(lengths)
        self.starts = self.ends - lengths

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, place: Any) -> Any:
        return self.numbers[self.starts[place] : self.ends[place]].tolist()


class BM25Index:
    """BM25 over a list of texts; without a word of two letters or more ``words`` is 0."""

    def __init__(self, texts: list[str]) -> None:
        import bm25s

        self._bm25s = bm25s
        vocabulary, words = self._numbered(texts)
        self.words = len(words.numbers)
        self.model = bm25s.BM25(k1=K1, b=B, method="lucene")
        if self.words:
            self.model.index(bm25s.tokenization.Tokenized(ids=words, vocab=vocabulary), show_progress=False)

    def _numbered(self, texts: list[str]) -> tuple[dict[str, int], _Words]:
        """Return word -> number, and the numbers of all texts, a block of texts at a time."""
        vocabulary: dict[str, int] = {}
        numbers, lengths = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
        for begin in range(0, len(texts), TEXTS):
            found = self._split(texts[begin : begin + TEXTS], return_ids=True)
            number = np.array([vocabulary.setdefault(word, len(vocabulary)) for word in found.vocab], np.int32)
            flat = np.fromiter((one for ids in found.ids for one in ids), np.int64)
            numbers.append(number[flat] if len(flat) else numbers[0])
            lengths.append(np.array([len(ids) for ids in found.ids], np.int64))
        return vocabulary, _Words(np.concatenate(numbers), np.concatenate(lengths))

    def split(self, texts: list[str]) -> list[list[str]]:
        found: list[list[str]] = self._split(texts, return_ids=False)
        return found

    def _split(self, texts: list[str], return_ids: bool) -> Any:
        return self._bm25s.tokenize(texts, stopwords="en", return_ids=return_ids, show_progress=False)

    def scores(self, words: list[str]) -> torch.Tensor:
        """Return scores [documents] float32, 0 where no word is shared."""
        known = [word for word in words if word in self.model.vocab_dict]
        if not known:
            return torch.zeros(int(self.model.scores["num_docs"]))
        return torch.from_numpy(self.model.get_scores(known))


def _ranked(query: str, scores: torch.Tensor, ids: Sequence[str], top: int, identical_ids: Collection[str]) -> Ranking:
    there = scores.nonzero().flatten()
    best = TopK(top, NOISE, identical_ids, [query], ids)
    if len(there):
        best.add_some(scores[there].unsqueeze(0), there.unsqueeze(0))
    return best.rankings([query], ids).get(query, [])
