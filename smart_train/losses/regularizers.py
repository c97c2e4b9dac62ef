"""Regularizers of the token view (SMART, arXiv 2605.24938): tokens differ from each other and from the pooled vector.

Rows are ragged and their [T, T] cosines are needed: both functions go in blocks of bounded size, keep nothing of a
block, and compute it again in the backward. Sums are taken in float32 or wider.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.core.errors import LossError
from smart_train.losses.base import BatchEmbeddings, LossTerm, Scores, Value
from smart_train.losses.labels import Labels

BLOCK = 1 << 22  # numbers of a block: 16 MiB of float32


class Diversity(LossTerm):
    """Mean squared cosine between the tokens of a row, of queries and documents; see ``diversity``."""

    name, reads, trains, mean_over = "diversity", ("embeddings.tokens",), ("tokens",), ("queries", "documents")

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)

    def forward(self, scores: Scores, labels: Labels, embeddings: BatchEmbeddings) -> Value:
        return torch.stack([diversity(embeddings.queries.tokens), diversity(embeddings.own_documents.tokens)])


class Overlap(LossTerm):
    """Mean squared cosine between a row's pooled vector and its tokens, of queries and documents; see ``overlap``."""

    name, mean_over = "overlap", ("queries", "documents")
    reads, trains = ("embeddings.pooled", "embeddings.tokens"), ("pooled", "tokens")

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)

    def forward(self, scores: Scores, labels: Labels, embeddings: BatchEmbeddings) -> Value:
        return torch.stack([overlap(embeddings.queries), overlap(embeddings.own_documents)])

    def width_problem(self, pooled: int, tokens: int) -> tuple[str, str] | None:
        if pooled == tokens:
            return None
        return (
            f"compares pooled vectors ({pooled} wide) with tokens ({tokens} wide)",
            f"give both one width (late.dim: {pooled}), or turn overlap off",
        )


# The losses as functions of tensors -----------------------------------------------------------------------------------


def diversity(tokens: Tokens) -> Tensor:
    """Compute the mean squared cosine between different tokens of one row: high where all tokens are alike.

    tokens: rows of L2-normalised vectors
    returns a scalar, the mean over rows of  1 / (T (T - 1)) * sum over i != j of (t_i . t_j)^2;  a row of one token
    costs 0

    >>> diversity(Tokens(torch.eye(3), torch.tensor([3])))
    tensor(0.)
    """
    with torch.autocast(tokens.values.device.type, enabled=False):
        costs: Tensor = _OffDiagonal.apply(tokens.values, tokens.lengths)
    return costs.sum() / max(1, len(tokens))


def overlap(embeddings: Embeddings) -> Tensor:
    """Compute the mean squared cosine between a row's pooled vector and its tokens: high where they are alike.

    returns a scalar, the mean over rows of  1 / T * sum over i of (p . t_i)^2
    Raises LossError where pooled vectors and tokens differ in width.
    """
    width, pooled = embeddings.tokens.width, embeddings.pooled
    if pooled.shape[1] != width:
        raise LossError(
            f"objective.overlap compares pooled vectors with tokens, but these are {pooled.shape[1]} and {width} wide; "
            "write overlap: 0, or late.head: none without late.dim"
        )
    with torch.autocast(pooled.device.type, enabled=False):
        costs: Tensor = _WithPooled.apply(pooled, embeddings.tokens.values, embeddings.tokens.lengths)
    return costs.sum() / max(1, len(embeddings))


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _blocks(values: Tensor, lengths: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Rows of like length together: (rows [r], where [r, T] in ``values``, real [r, T] bool, padded [r, T, d])."""
    counts = lengths.tolist()
    starts = lengths.cumsum(0) - lengths
    order = sorted(range(len(counts)), key=lambda row: -counts[row])
    begin = 0
    while begin < len(order):
        longest = counts[order[begin]]
        rows = torch.tensor(order[begin : begin + max(1, BLOCK // (longest * values.shape[1]))], device=values.device)
        offset = torch.arange(longest, device=values.device)
        real = offset < lengths[rows].unsqueeze(1)
        where = (starts[rows].unsqueeze(1) + offset).masked_fill(~real, 0)
        # Zero vectors fill up: they have cosine 0 with everything, so that no sum needs a mask.
        yield rows, where, real, _wide(values[where]).masked_fill(~real.unsqueeze(2), 0.0)
        begin += len(rows)


class _OffDiagonal(torch.autograd.Function):
    """[sum T, d], [rows] -> [rows].  With X a row's tokens: (||X X'||^2 - sum |x_i|^4) / (T (T - 1)).

    ||X X'|| = ||X' X||, so the smaller of [T, T] and [d, d] is formed; the gradient is 4 (X X' X - |x_i|^2 x_i).
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        lengths = lengths.to(values.device)
        ctx.save_for_backward(values, lengths)
        costs = _wide(values.new_zeros(len(lengths)))
        for rows, _, _, x in _blocks(values, lengths):
            gram = x @ x.mT if x.shape[1] <= x.shape[2] else x.mT @ x
            costs[rows] = gram.square().sum((1, 2)) - x.square().sum(2).square().sum(1)
        return torch.where(lengths > 1, costs / _pairs(lengths), 0.0)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        values, lengths = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None
        scale = torch.where(lengths > 1, 4 * gradient / _pairs(lengths), 0.0)
        result = torch.zeros_like(values)
        for rows, where, real, x in _blocks(values, lengths):
            product = (x @ x.mT) @ x if x.shape[1] <= x.shape[2] else x @ (x.mT @ x)
            slope = (product - x.square().sum(2, keepdim=True) * x) * scale[rows, None, None]
            result[where[real]] = slope[real].to(result.dtype)
        return result, None


def _pairs(lengths: Tensor) -> Tensor:
    return (lengths * (lengths - 1)).clamp(min=1)


class _WithPooled(torch.autograd.Function):
    """[rows, d], [sum T, d], [rows] -> [rows].  With X a row's tokens and p its pooled vector: |X p|^2 / T.

    The gradients are 2 / T (X p) p' for the tokens and 2 / T X' X p for the pooled vector.
    """

    @staticmethod
    def forward(ctx: Any, pooled: Tensor, values: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        lengths = lengths.to(values.device)
        ctx.save_for_backward(pooled, values, lengths)
        costs = _wide(values.new_zeros(len(lengths)))
        for rows, _, _, x in _blocks(values, lengths):
            costs[rows] = (x @ pooled[rows].to(x.dtype).unsqueeze(2)).square().sum((1, 2))
        return costs / lengths

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        pooled, values, lengths = ctx.saved_tensors
        scale = 2 * gradient / lengths
        to_pooled, to_values = torch.zeros_like(pooled), torch.zeros_like(values)
        for rows, where, real, x in _blocks(values, lengths):
            p = pooled[rows].to(x.dtype).unsqueeze(2)
            cosines = (x @ p) * scale[rows, None, None]
            to_pooled[rows] = (x.mT @ cosines).squeeze(2).to(to_pooled.dtype)
            to_values[where[real]] = (cosines @ p.mT)[real].to(to_values.dtype)
        return to_pooled, to_values, None
