"""Collate pairs into a Batch: unique queries and documents, decoded and preprocessed in the data worker."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from smart_train.core.embeddings import Batch, Features, PairScores
from smart_train.core.errors import DataError
from smart_train.core.modality import content_size, modality
from smart_train.data.collection import Collection, hash_id
from smart_train.data.document_keys import DocumentKeys

Row = tuple[str, str]  # query id, document id
Preprocess = Callable[[list[Any], Any], Features]  # contents, and "query" or "document"; SmartEncoder.preprocess
Split = Callable[[Features], list[Features]]


class EpochRow(tuple[str, str]):
    """A row of (query id, document id), and the epoch that it is drawn in."""

    epoch: int

    def __new__(cls, row: Row, epoch: int) -> EpochRow:
        made = super().__new__(cls, row)
        made.epoch = epoch
        return made

    def __getnewargs__(self) -> tuple[Row, int]:  # type: ignore[override]
        return (self[0], self[1]), self.epoch


class Pairs(Dataset[Row]):
    """The pairs of a collection as a torch dataset of (query id, document id); contents stay in the collection.

    Each row knows the epoch, which ``set_epoch`` also tells to data workers that live on: it is in shared memory.
    """

    def __init__(self, collection: Collection) -> None:
        self.rows = collection.pairs()
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        if not self.rows:
            raise DataError(f"{collection.name}: no pair of a query and a relevant document to train on")

    def __len__(self) -> int:
        return len(self.rows)

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def __getitem__(self, index: int) -> Row:
        return EpochRow(self.rows[index], int(self.epoch))


def chunks(lengths: Sequence[int], kinds: Sequence[str], groups: int, rows: int | None = None) -> list[list[int]]:
    """Group rows by kind and length; return row numbers, the shorter rows first.

    There are at most ``groups`` chunks of a kind, or as many as it takes for none to have more than ``rows``; their
    sizes differ by at most one.  Ties keep their order.

    >>> chunks([9, 1, 5, 2], ["text"] * 4, groups=2)
    [[1, 3], [2, 0]]
    """
    if groups < 1:
        raise ValueError(f"length_groups is {groups}; it must be 1 or more")
    out: list[list[int]] = []
    for one in sorted(set(kinds)):
        of_kind = sorted((r for r, k in enumerate(kinds) if k == one), key=lengths.__getitem__)
        out += even_parts(of_kind, groups, rows)
    return out


def even_parts(items: list[int], groups: int, rows: int | None = None) -> list[list[int]]:
    """Divide items into ``groups`` parts, in order, whose sizes differ by at most one; fewer where there are fewer
    items, and more where a part would have more than ``rows``."""
    if rows is not None and rows < 1:
        raise ValueError(f"chunk_rows is {rows}; it must be 1 or more")
    count = max(min(groups, len(items)), -(-len(items) // (rows or len(items) or 1)))
    bounds = [len(items) * i // count for i in range(count + 1)] if count else []
    return [items[a:b] for a, b in pairwise(bounds)]


def lengths(features: Iterable[Features]) -> dict[str, int]:
    """Count tokens (which the backbone reads, without padding) and positions (which it computes, with padding).

    An image that is not read as tokens among the text's counts nothing.
    """
    masks = [chunk["attention_mask"] for chunk in features if "attention_mask" in chunk]
    return {"tokens": sum(int(mask.sum()) for mask in masks), "positions": sum(mask.numel() for mask in masks)}


@dataclass
class TruncatingPreprocess:
    """Preprocess with limits of its own, so that rows are shorter in training than they are encoded later.

    query_tokens, document_tokens: the longest query and document; None = the encoder's own limit
    """

    preprocess: Callable[..., Features]
    query_tokens: int | None = None
    document_tokens: int | None = None

    def __call__(self, contents: list[Any], role: Any) -> Features:
        return self.preprocess(contents, role, self.query_tokens if role == "query" else self.document_tokens)


@dataclass
class Collator:
    """Rows of (query id, document id) -> Batch; runs in a data worker and can be pickled.

    collection: texts, images, and all qrels (positives come from there, not from the rows drawn)
    preprocess: (contents, "query" | "document") -> Features of one chunk; every row keeps its place
    negatives: hard negatives per query, drawn from the collection's; a query that has fewer gets those
    length_groups: number of chunks of documents of one kind, by length; a chunk is one backbone forward
    seed: of the negatives drawn, which depend on the seed and on the epoch, query and document of the row alone: a
        resumed run draws the same, on any number of ranks. A pair meets all negatives of its query once before it meets
        one again
    chunk_rows: no chunk has more rows; None = no limit, and then the queries are one chunk
    split: divides a preprocessed chunk further, in order (by tokens, which only the model can count)

    Queries keep the order of their first row.  Documents are unique by id, so a page that answers three queries is
    encoded once: positives, then negatives, then sorted into chunks; ``positives`` and ``document_keys`` follow that
    final order.  A hard negative that shows the text of a positive is never drawn.
    ``Batch.notes`` counts queries, documents, negatives, negatives_missing (the collection has no more),
    negatives_copies (not drawn: a positive has the same text), also_relevant (relevant pairs in the batch beyond those
    drawn, by id: masked, or positives as well), tokens and positions (see ``lengths``).
    """

    collection: Collection
    preprocess: Preprocess
    negatives: int = 0
    length_groups: int = 1
    seed: int = 0
    chunk_rows: int | None = None
    split: Split | None = None
    keys: DocumentKeys = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.keys = DocumentKeys(self.collection)

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Raises DataError where a row names a query or document that is not there, or an image cannot be decoded."""
        if not rows:
            raise DataError("a batch needs at least one row")
        queries = list(dict.fromkeys(query for query, _ in rows))
        drawn, notes = self._draw(rows)
        unique = list(dict.fromkeys([*(document for _, document in rows), *drawn]))
        contents = [self._document(document) for document in unique]
        sizes, kinds = [content_size(c) for c in contents], [modality(c) for c in contents]
        parts = chunks(sizes, kinds, self.length_groups, self.chunk_rows)
        documents = [unique[row] for part in parts for row in part]
        positives, also = self._positives(rows, queries, documents)
        keys = self.keys.of_documents(documents, [contents[row] for part in parts for row in part])
        query_parts = even_parts([*range(len(queries))], 1, self.chunk_rows)
        query_features = self._features([[self._query(queries[q]) for q in part] for part in query_parts], "query")
        document_features = self._features([[contents[row] for row in part] for part in parts], "document")
        notes = {"queries": len(queries), "documents": len(documents), **notes, "also_relevant": also}
        return Batch(
            queries=query_features,
            documents=document_features,
            query_ids=torch.tensor([hash_id(q) for q in queries], dtype=torch.int64),
            document_keys=keys,
            known=self.keys.of_positives(queries),  # after the keys, so that decoded pages are known
            positives=positives,
            teacher=self._teacher(queries, documents),
            notes=notes | lengths([*query_features, *document_features]),
            rows=list(rows),
        )

    def _features(self, parts: Iterable[list[Any]], role: str) -> list[Features]:
        whole = (self.preprocess(part, role) for part in parts)
        return [piece for chunk in whole for piece in (self.split(chunk) if self.split else [chunk])]

    def _draw(self, rows: Sequence[Row]) -> tuple[list[str], dict[str, int]]:
        """(ids of the negatives drawn for these rows, counts for the notes)."""
        drawn: list[str] = []
        missing = copies = 0
        corpus = self.collection.corpus
        for row in rows if self.negatives else ():
            query = row[0]
            judged = self.collection.qrels.get(query, {})
            named = dict.fromkeys(self.collection.negatives.get(query, ()))
            negatives = [d for d in named if judged.get(d, 0) <= 0 and d in corpus]
            # Texts only: with images the draw would depend on what this worker has decoded before.
            same = self.keys.copies_of_positives(query, negatives)
            candidates = [d for d in negatives if d not in same]
            count = min(self.negatives, len(candidates))
            copies += len(negatives) - len(candidates)
            missing += self.negatives - count
            drawn += self._hand("\n".join(row), candidates, count, getattr(row, "epoch", 0))
        return drawn, {"negatives": len(drawn), "negatives_missing": missing, "negatives_copies": copies}

    def _hand(self, pair: str, candidates: list[str], count: int, epoch: int) -> list[str]:
        """Return the negatives of an epoch: the candidates are shuffled and dealt out, and then shuffled anew."""
        hand: list[str] = []
        place = epoch * count
        while len(hand) < count:
            deal, at = divmod(place, len(candidates))
            order = Random(hash_id(f"{self.seed}\n{pair}\n{deal}")).sample(candidates, len(candidates))
            # where a deal ends within an epoch, the next one begins with what the epoch does not have yet
            rest = [document for document in order if document not in hand] if hand else order[at:]
            hand += rest[: count - len(hand)]
            place = (deal + 1) * len(candidates)
        return hand

    def _positives(self, rows: Iterable[Row], queries: list[str], documents: list[str]) -> tuple[Tensor, int]:
        """(positives [P, 2] of the distinct rows, how many other pairs of the batch are relevant by id)."""
        query_row = {q: i for i, q in enumerate(queries)}
        document_row = {d: i for i, d in enumerate(documents)}
        relevant = 0
        for query in queries:
            judged = self.collection.qrels.get(query, {})
            # the smaller side is looked through: a query may have thousands of positives, or a batch of documents
            both = document_row.keys() & judged.keys()
            relevant += sum(judged[document] > 0 for document in both)
        pairs = list(dict.fromkeys(rows))
        for query, document in pairs:
            if self.collection.qrels.get(query, {}).get(document, 0) <= 0:
                raise DataError(f"{self.collection.name}: the pair {(query, document)} is not relevant in the qrels")
        places = [(query_row[q], document_row[d]) for q, d in pairs]
        return torch.tensor(places, dtype=torch.int64), relevant - len(pairs)

    def _teacher(self, queries: list[str], documents: list[str]) -> PairScores | None:
        if not self.collection.teacher:
            return None
        place = {document: column for column, document in enumerate(documents)}
        rows, columns, values = array("q"), array("q"), array("f")
        for row, query in enumerate(queries):
            for document, score in self.collection.teacher.get(query, {}).items():
                column = place.get(document)
                if column is not None:
                    rows.append(row)
                    columns.append(column)
                    values.append(score)
        return PairScores(
            torch.tensor(rows, dtype=torch.int64),
            torch.tensor(columns, dtype=torch.int64),
            torch.tensor(values, dtype=torch.float32),
        )

    def _query(self, query: str) -> str:
        if query not in self.collection.queries:
            raise DataError(f"{self.collection.name}: there is no query {query!r}")
        return self.collection.queries[query]

    def _document(self, document: str) -> Any:
        if document not in self.collection.corpus:
            raise DataError(f"{self.collection.name}: there is no document {document!r}")
        return self.collection.corpus[document].content()
