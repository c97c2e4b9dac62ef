"""Rows become a Batch: unique queries and documents, decoded and preprocessed in the data worker.

Knows: collections, and that something preprocesses contents.  Does not know: models, losses, processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch.utils.data import Dataset

from smart_train.data.records import Collection, DataError, hash_id
from smart_train.embeddings import Batch, Features

Row = tuple[str, str]  # query id, document id
Preprocess = Callable[[list[Any], Any], Features]  # contents and "query" or "document", as SmartEncoder.preprocess


class Pairs(Dataset[Row]):
    """The pairs of a collection as a torch dataset of (query id, document id); contents stay in the collection."""

    def __init__(self, collection: Collection) -> None:
        self.rows = collection.pairs()
        if not self.rows:
            raise DataError(f"{collection.name}: no pair of a query and a relevant document to train on")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]


def chunks(lengths: Sequence[int], kinds: Sequence[str], groups: int) -> list[list[int]]:
    """Row numbers in chunks: each of one kind, of like length, shorter ones first; at most ``groups`` per kind, whose
    sizes differ by at most one.  Ties keep their order."""
    if groups < 1:
        raise ValueError(f"length_groups is {groups}; it must be 1 or more")
    out: list[list[int]] = []
    for kind in sorted(set(kinds)):
        rows = sorted((r for r, k in enumerate(kinds) if k == kind), key=lengths.__getitem__)
        count = min(groups, len(rows))
        bounds = [len(rows) * i // count for i in range(count + 1)]
        out += [rows[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    return out


def kind(content: Any) -> str:
    """``text``, ``image`` or ``text+image``: a chunk holds one of them, since a backbone's forward does."""
    if isinstance(content, dict):
        return "text+image"
    return "text" if isinstance(content, str) else "image"


def length(content: Any) -> int:
    """What padding depends on: characters of a text, pixels of an image (of both, the pixels: they weigh more)."""
    if isinstance(content, str):
        return len(content)
    image = content["image"] if isinstance(content, dict) else content
    return image.width * image.height


@dataclass
class Shorter:
    """``preprocess`` with a cut of its own for either role: rows are trained on shorter than they are read later."""

    preprocess: Callable[..., Features]
    query_tokens: int | None = None
    document_tokens: int | None = None

    def __call__(self, contents: list[Any], role: Any) -> Features:
        return self.preprocess(contents, role, self.query_tokens if role == "query" else self.document_tokens)


@dataclass
class Collator:
    """Rows of (query id, document id) -> Batch; runs in a data worker and can be pickled.

    collection: texts, images, and all known qrels (the relevance comes from there, not from the rows drawn)
    preprocess: (contents, "query" | "document") -> Features of one chunk; every row keeps its place
    negatives: hard negatives per query, drawn among those the collection names; a query that has fewer gets those
    length_groups: chunks that the documents of a kind are divided into by length; a chunk is one backbone forward
    seed: of the drawing, which depends on (seed, query id, row position) alone: a resumed run draws the same

    The queries are one chunk, in the order of their first row.  Documents are unique by id: positives, then
    negatives, then sorted into chunks; ``positives`` and ``relevance`` point at that final order.
    ``Batch.notes`` counts queries, documents, negatives, negatives_missing (asked, but the collection has no more)
    and also_relevant (relevant pairs in the batch beyond those drawn: masked, or positives as well).
    """

    collection: Collection
    preprocess: Preprocess
    negatives: int = 0
    length_groups: int = 1
    seed: int = 0

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Raises DataError where a row names a query or document that is not there, or an image cannot be decoded."""
        if not rows:
            raise DataError("a batch needs at least one row")
        queries = list(dict.fromkeys(query for query, _ in rows))
        drawn, missing = self._draw(rows)
        unique = list(dict.fromkeys([*(document for _, document in rows), *drawn]))
        contents = [self._document(document) for document in unique]
        parts = chunks([length(c) for c in contents], [kind(c) for c in contents], self.length_groups)
        documents = [unique[row] for part in parts for row in part]
        relevance, positives = self._relevance(rows, queries, documents)
        notes = {
            "queries": len(queries),
            "documents": len(documents),
            "negatives": len(drawn),
            "negatives_missing": missing,
            "also_relevant": int(relevance.sum()) - len(positives),
        }
        return Batch(
            queries=[self.preprocess([self._query(q) for q in queries], "query")],
            documents=[self.preprocess([contents[row] for row in part], "document") for part in parts],
            query_ids=torch.tensor([hash_id(q) for q in queries], dtype=torch.int64),
            document_ids=torch.tensor([hash_id(d) for d in documents], dtype=torch.int64),
            relevance=relevance,
            positives=positives,
            notes=notes,
        )

    def _draw(self, rows: Sequence[Row]) -> tuple[list[str], int]:
        """(ids of the negatives of these rows, how many were asked for but are not there)."""
        drawn: list[str] = []
        missing = 0
        if self.negatives:
            for position, (query, _) in enumerate(rows):
                relevant = self.collection.relevant(query)
                named = dict.fromkeys(self.collection.negatives.get(query, ()))
                candidates = [d for d in named if d not in relevant and d in self.collection.corpus]
                count = min(self.negatives, len(candidates))
                missing += self.negatives - count
                drawn += Random(hash_id(f"{self.seed}\n{query}\n{position}")).sample(candidates, count)
        return drawn, missing

    def _relevance(self, rows: Iterable[Row], queries: list[str], documents: list[str]) -> tuple[Any, Any]:
        """(relevance [B, N] bool of all known qrels, positives [P, 2] of the distinct rows)."""
        query_row = {q: i for i, q in enumerate(queries)}
        document_row = {d: i for i, d in enumerate(documents)}
        relevance = torch.zeros(len(queries), len(documents), dtype=torch.bool)
        for query, i in query_row.items():
            for document in self.collection.relevant(query):
                if document in document_row:
                    relevance[i, document_row[document]] = True
        pairs = list(dict.fromkeys((query_row[q], document_row[d]) for q, d in rows))
        positives = torch.tensor(pairs, dtype=torch.int64)
        unknown = [(queries[i], documents[j]) for i, j in pairs if not relevance[i, j]]
        if unknown:
            raise DataError(f"{self.collection.name}: the pair {unknown[0]} is not relevant in the qrels")
        return relevance, positives

    def _query(self, query: str) -> str:
        if query not in self.collection.queries:
            raise DataError(f"{self.collection.name}: there is no query {query!r}")
        return self.collection.queries[query]

    def _document(self, document: str) -> Any:
        if document not in self.collection.corpus:
            raise DataError(f"{self.collection.name}: there is no document {document!r}")
        return self.collection.corpus[document].content()
