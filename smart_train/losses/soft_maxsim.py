"""Late scores with another reduction than the maximum over a document's tokens, tile by tile.

    soft   s(q, x) = 1/|q| sum_i  tau log( 1/|x| sum_j exp(q_i . x_j / tau) )
    topk   s(q, x) = 1/|q| sum_i  mean of the k largest  q_i . x_j   (all of them where x has fewer)

Both give every query token a gradient to several document tokens, where the maximum gives one.  ``soft`` lies between
the mean (large tau) and the maximum (tau -> 0): the mean over j, in place of a sum, keeps scores below 1 and makes
documents of any length comparable.  Nothing of size [B, N, Q, T] is kept: the backward computes each tile again, so a
step costs about three products in place of MaxSim's one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from smart_train.core.embeddings import Tokens
from smart_train.core.errors import UsageError
from smart_train.losses.maxsim import checked_rows, in_one_dtype, no_scores, tile_dtype
from smart_train.losses.maxsim_torch import FEWEST_ROWS, TILE, Rows, sum_dtype

Reduction = Literal["soft", "topk"]


def soft_maxsim(queries: Tokens, documents: Tokens, temperature: float) -> Tensor:
    """Return the soft late scores: tau log-mean-exp over a document's tokens, the mean over a query's.

    queries: B rows, documents: N rows of tokens of one width; temperature: tau, in cosines, above 0 -> [B, N] float32
    Raises UsageError for a temperature of 0 or below, ValueError as ``maxsim`` does.

    >>> queries = Tokens(torch.eye(2), torch.tensor([2]))
    >>> documents = Tokens(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), torch.tensor([2, 1]))
    >>> soft_maxsim(queries, documents, temperature=1e-3)  # nearly the maximum; the mean of two costs tau log 2
    tensor([[0.9993, 0.7000]])
    """
    if not temperature > 0:
        raise UsageError(f"the temperature of soft late scores is {temperature}; give a number above 0, such as 0.05")
    return _scores(queries, documents, "soft", float(temperature))


def topk_maxsim(queries: Tokens, documents: Tokens, k: int) -> Tensor:
    """Return late scores with the mean of the k best document tokens of every query token.

    queries: B rows, documents: N rows of tokens of one width -> [B, N] float32; k = 1 is MaxSim
    Raises UsageError for a k below 1, ValueError as ``maxsim`` does.

    >>> queries = Tokens(torch.eye(2)[:1], torch.tensor([1]))
    >>> documents = Tokens(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), torch.tensor([3]))
    >>> topk_maxsim(queries, documents, k=2)
    tensor([[0.8000]])
    """
    if k < 1:
        raise UsageError(f"late scores of the {k} best tokens have no meaning; give k of 1 or more")
    return _scores(queries, documents, "topk", float(k))


def _scores(queries: Tokens, documents: Tokens, reduction: Reduction, value: float) -> Tensor:
    q, x = in_one_dtype(queries, documents)
    if len(queries) == 0 or len(documents) == 0:
        return no_scores(queries, documents)
    query_rows, rows = checked_rows(queries, documents)
    with torch.autocast(q.device.type, enabled=False):
        q, x = q.to(tile_dtype(q)).contiguous(), x.to(tile_dtype(x)).contiguous()
        scores: Tensor = _Reduced.apply(q, x, query_rows, rows, reduction, value)
        return scores


class _Reduced(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, queries: Tensor, documents: Tensor, query_rows: Rows, rows: Rows, reduction: Reduction, value: float
    ) -> Tensor:
        ctx.save_for_backward(queries, documents)
        ctx.rest = query_rows, rows, reduction, value
        scores = queries.new_empty(len(rows.sizes), len(query_rows.sizes), dtype=sum_dtype(queries.dtype))
        for number, begin, end in _documents(rows):
            best = scores.new_empty(1, len(queries))
            for part in _parts(len(queries), end - begin, queries):
                similar = (documents[begin:end] @ queries[part].t()).to(scores.dtype)  # [T, some query tokens]
                best[0, part] = _reduce(similar, reduction, value)
            scores[number] = query_rows.mean(best)[0]
        return scores.t().contiguous()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        queries, documents = ctx.saved_tensors
        query_rows, rows, reduction, value = ctx.rest
        each = (gradient / query_rows.lengths.unsqueeze(1)).index_select(0, query_rows.owner)  # [M, N]
        for_queries = queries.new_zeros(queries.shape, dtype=gradient.dtype) if ctx.needs_input_grad[0] else None
        for_documents = torch.empty_like(documents) if ctx.needs_input_grad[1] else None
        for number, begin, end in _documents(rows):
            own = documents[begin:end]
            total = own.new_zeros(own.shape, dtype=gradient.dtype)
            for part in _parts(len(queries), end - begin, queries):
                some = queries[part]
                shares = _shares((own @ some.t()).to(gradient.dtype), reduction, value) * each[part, number]
                shares = shares.to(own.dtype)
                if for_queries is not None:
                    for_queries[part] += (shares.t() @ own).to(gradient.dtype)
                if for_documents is not None:
                    total += (shares @ some).to(gradient.dtype)
            if for_documents is not None:
                for_documents[begin:end] = total.to(documents.dtype)
        return (None if for_queries is None else for_queries.to(queries.dtype)), for_documents, None, None, None, None


def _reduce(similar: Tensor, reduction: Reduction, value: float) -> Tensor:
    """Reduce a document's similarities over its tokens: [T, m] -> [m]."""
    if reduction == "soft":
        return value * ((similar / value).logsumexp(0) - math.log(len(similar)))
    return similar.topk(min(int(value), len(similar)), dim=0).values.mean(0)


def _shares(similar: Tensor, reduction: Reduction, value: float) -> Tensor:
    """Return the derivative of ``_reduce`` by every similarity: [T, m] -> [T, m], summing to 1 over the tokens."""
    if reduction == "soft":
        return (similar / value).softmax(0)
    k = min(int(value), len(similar))
    places = similar.topk(k, dim=0).indices
    return torch.zeros_like(similar).scatter_(0, places, 1 / k)


def _documents(rows: Rows) -> Iterator[tuple[int, int, int]]:
    """Yield each document's number, and where its tokens begin and end."""
    begin = 0
    for number, size in enumerate(rows.sizes):
        yield number, begin, begin + size
        begin += size


def _parts(total: int, size: int, like: Tensor) -> Iterator[slice]:
    """Slices of the query tokens whose similarities with ``size`` document tokens fill a tile."""
    tile = TILE["cpu" if like.device.type == "cpu" else "gpu"] // like.dtype.itemsize
    step = max(FEWEST_ROWS, tile // size)
    yield from (slice(begin, min(total, begin + step)) for begin in range(0, total, step))
