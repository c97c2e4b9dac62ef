"""Define the shared data structures: ragged token vectors, embeddings and training batches.

Letters in every shape comment of this project: B queries, N documents, Q query tokens, T document tokens,
D pooled width, d token width, W ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from smart_train.core.errors import UsageError

Features = dict[str, Any]
"""Model inputs of some rows: ``input_ids``, ``attention_mask``, ``pixel_values`` ..., as ``SmartEncoder.preprocess``
makes them. Padding exists in here and nowhere else."""


@dataclass(repr=False)
class Tokens:
    """Ragged token vectors, rows one after another, without padding.

    values:  [sum of lengths, d], L2-normalised
    lengths: [rows], int64; every row has at least one token
    Raises ValueError where the tensors have other numbers of dimensions.

    >>> tokens = Tokens(torch.eye(3), torch.tensor([2, 1]))  # a row of two tokens and a row of one
    >>> len(tokens), tokens.width, [row.shape[0] for row in tokens.rows()]
    (2, 3, [2, 1])
    """

    values: Tensor
    lengths: Tensor

    def __post_init__(self) -> None:
        if self.values.dim() != 2 or self.lengths.dim() != 1:
            raise ValueError(
                f"Tokens takes values [sum of lengths, d] and lengths [rows], got {tuple(self.values.shape)} "
                f"and {tuple(self.lengths.shape)}"
            )

    def check(self) -> Tokens:
        """Return self; raise ValueError where lengths and values disagree or a row is empty. It synchronises a GPU,
        so call it where vectors enter, not in a step."""
        total, rows = int(self.lengths.sum()), self.values.shape[0]
        if total != rows:
            raise ValueError(f"the lengths add up to {total}, but there are {rows} token vectors")
        if len(self.lengths) and int(self.lengths.min()) < 1:
            raise ValueError(f"row {int(self.lengths.argmin())} has no token; every row needs at least one")
        return self

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        """Return sizes, not numbers.

        >>> Tokens(torch.eye(3), torch.tensor([2, 1]))
        Tokens(2 rows, 3 vectors of 3 dimensions, torch.float32, cpu)
        """
        return f"Tokens({len(self)} rows, {len(self.values)} vectors of {self.width} dimensions, {_kept(self.values)})"

    @property
    def width(self) -> int:
        return self.values.shape[1]

    def rows(self) -> Iterator[Tensor]:
        """Iterate over the rows, [length, d] views."""
        return iter(self.values.split(self.lengths.tolist()))

    def select(self, rows: Sequence[int] | Tensor) -> Tokens:
        """Return the given rows, in the given order (a copy)."""
        index = torch.as_tensor(rows, dtype=torch.int64, device=self.lengths.device)
        lengths = self.lengths[index]
        starts = (self.lengths.cumsum(0) - self.lengths)[index]
        before = lengths.cumsum(0) - lengths
        within = torch.arange(int(lengths.sum()), device=index.device) - before.repeat_interleave(lengths)
        where = starts.repeat_interleave(lengths) + within
        return Tokens(self.values[where.to(self.values.device)], lengths)

    def to(self, *args: Any, **kwargs: Any) -> Tokens:
        """Convert the values as ``Tensor.to``; the lengths keep int64 and follow to the device."""
        values = self.values.to(*args, **kwargs)
        return Tokens(values, self.lengths.to(values.device))

    def cut(self, width: int) -> Tokens:
        """Keep the first ``width`` dimensions, normalised again (Matryoshka, Kusupati et al. 2022, arXiv 2205.13147).
        Raises UsageError for more than there are."""
        _check_cut(width, self.width, "tokens")
        return Tokens(_normalised(self.values[:, :width]), self.lengths)

    @staticmethod
    def cat(parts: Iterable[Tokens]) -> Tokens:
        parts = list(parts)
        return Tokens(torch.cat([p.values for p in parts]), torch.cat([p.lengths for p in parts]))


@dataclass(repr=False)
class Embeddings:
    """Both views of some rows, from one forward pass.

    pooled: [rows, D], L2-normalised
    tokens: ragged, one row each
    """

    pooled: Tensor
    tokens: Tokens

    def __len__(self) -> int:
        return len(self.pooled)

    def __repr__(self) -> str:
        """Return sizes, not numbers.

        >>> print(Embeddings(torch.eye(2), Tokens(torch.eye(3), torch.tensor([2, 1]))))  # doctest: +ELLIPSIS
        Embeddings(2 rows, pooled of 2 dimensions, torch.float32, cpu, Tokens(2 rows, 3 vectors of 3 dimensions, ...))
        """
        pooled = f"pooled of {self.pooled.shape[1]} dimensions, {_kept(self.pooled)}"
        return f"{type(self).__name__}({len(self)} rows, {pooled}, {self.tokens!r})"

    def select(self, rows: Sequence[int] | Tensor) -> Embeddings:
        index = torch.as_tensor(rows, dtype=torch.int64, device=self.pooled.device)
        return Embeddings(self.pooled[index], self.tokens.select(index))

    def to(self, *args: Any, **kwargs: Any) -> Embeddings:
        return Embeddings(self.pooled.to(*args, **kwargs), self.tokens.to(*args, **kwargs))

    def cut(self, pooled: int | None = None, tokens: int | None = None) -> Embeddings:
        """Keep the first dimensions of either view, normalised again; None leaves a view as it is. Raises UsageError
        for more than there are."""
        _check_cut(pooled, self.pooled.shape[1], "pooled vectors")
        cut = self.pooled if pooled is None else _normalised(self.pooled[:, :pooled])
        return Embeddings(cut, self.tokens if tokens is None else self.tokens.cut(tokens))

    def split(self, rows: int) -> tuple[Embeddings, Embeddings]:
        """Return the first ``rows`` rows and the others (views)."""
        lengths = self.tokens.lengths
        at = int(lengths[:rows].sum())
        values = self.tokens.values
        return (
            Embeddings(self.pooled[:rows], Tokens(values[:at], lengths[:rows])),
            Embeddings(self.pooled[rows:], Tokens(values[at:], lengths[rows:])),
        )

    @staticmethod
    def cat(parts: Iterable[Embeddings]) -> Embeddings:
        parts = list(parts)
        return Embeddings(torch.cat([p.pooled for p in parts]), Tokens.cat(p.tokens for p in parts))


def _kept(values: Tensor) -> str:
    return f"{values.dtype}, {values.device}"


def _normalised(vectors: Tensor) -> Tensor:
    """Rows of length 1, in their dtype; a norm taken in a half precision would be off by half a per cent."""
    wide = torch.promote_types(vectors.dtype, torch.float32)
    return torch.nn.functional.normalize(vectors.to(wide), dim=-1).to(vectors.dtype)


def _check_cut(width: int | None, there: int, what: str) -> None:
    if width is not None and not 1 <= width <= there:
        raise UsageError(f"{what} are {there} wide and can't be cut to {width}; choose 1 to {there}")


KEYS = ("id", "content", "file", "page")
"""Columns of a document's keys, int64: hash of its id, hash of its content (0 = not known), hash of the file it is a
part of (0 = none), its page in that file (-1 = none). They are the same on every rank."""


@dataclass
class KnownPositives:
    """The known positives of some queries: all of the qrels, in the batch or not; ragged, one row a query.

    keys: [sum of lengths, 4] int64, see KEYS; grades: [sum of lengths] float32, above 0; lengths: [B] int64
    """

    keys: Tensor
    grades: Tensor
    lengths: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> KnownPositives:
        parts = (self.keys, self.grades, self.lengths)
        return KnownPositives(*(part.to(device, non_blocking=non_blocking) for part in parts))


@dataclass
class PairScores:
    """Scores of a few of the pairs of B queries and N documents: most pairs of a batch have none.

    rows, columns: [S] int64, query row and document row; values: [S] float32

    >>> PairScores(torch.tensor([0, 1]), torch.tensor([2, 0]), torch.tensor([0.5, 0.25])).dense(2, 3)
    tensor([[   nan,    nan, 0.5000],
            [0.2500,    nan,    nan]])
    """

    rows: Tensor
    columns: Tensor
    values: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PairScores:
        return PairScores(
            *(part.to(device, non_blocking=non_blocking) for part in (self.rows, self.columns, self.values))
        )

    def dense(self, rows: int, columns: int, first: int = 0) -> Tensor:
        """Return [rows, columns], NaN where there is no score; document row 0 is the column ``first``."""
        found = self.values.new_full((rows, columns), float("nan"))
        found[self.rows, self.columns + first] = self.values
        return found


@dataclass
class Batch:
    """One training step's rows on one rank.

    queries, documents: lists of Features; the rows of the chunks, one chunk after another, are the B queries and
        the N documents. A chunk is one forward pass; rows of like length share one, so that little padding is
        computed. Documents are unique by id.
    query_ids: [B], int64 hashes of the ids, the same on every rank
    document_keys: [N, 4] int64, see KEYS
    known: all known positives of the queries (from the qrels, not the drawn pairs only); false negatives of this
        batch and of the other ranks' batches are found with them (losses/false_negatives.py)
    positives: [P, 2] int64; the drawn (query row, document row) pairs that the loss is a mean over
    teacher: another model's scores of the pairs that it scored; None = no teacher
    notes: counts of what the batch was made of, for logs (see data/collate.py)
    rows: (query id, document id) of the drawn pairs, as the data names them, for messages
    """

    queries: list[Features]
    documents: list[Features]
    query_ids: Tensor
    document_keys: Tensor
    known: KnownPositives
    positives: Tensor
    teacher: PairScores | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    rows: list[tuple[str, str]] = field(default_factory=list)

    @property
    def document_ids(self) -> Tensor:
        return self.document_keys[:, 0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        def move(chunk: Features) -> Features:
            here = {k: v for k, v in chunk.items() if isinstance(v, Tensor)}
            return chunk | {k: v.to(device, non_blocking=non_blocking) for k, v in here.items()}

        return Batch(
            [move(c) for c in self.queries],
            [move(c) for c in self.documents],
            self.query_ids.to(device, non_blocking=non_blocking),
            self.document_keys.to(device, non_blocking=non_blocking),
            self.known.to(device, non_blocking),
            self.positives.to(device, non_blocking=non_blocking),
            None if self.teacher is None else self.teacher.to(device, non_blocking),
            self.notes,
            self.rows,
        )
