"""MaxSim on ragged tokens: late interaction scores without a [B, N, Q, T] tensor.

    s(q, x) = 1/|q| * sum_i max_j  q_i . x_j          (ColBERT, Khattab & Zaharia 2020, with a mean for the sum)

Knows: Tokens.  Does not know: models, losses, processes.

Forward goes in tiles of documents; of each tile only the maxima and their int32 places are kept, so that memory is
O(B*Q*N) and not O(B*N*Q*T).  Backward touches the winning tokens alone: two weighted gathers (``embedding_bag``),
each about a tenth of the forward's cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from smart_train.embeddings import Tokens

TILE = 1 << 20  # similarities in a tile (4 MiB of float32): stays in a CPU core's cache, small next to any GPU
QUERY_ROWS = 1024  # query tokens of a tile
CHUNK = 32  # torch's max(dim) with places is slow on CPU; chunk maxima first and a look into the winning chunk is not


def maxsim(queries: Tokens, documents: Tokens) -> Tensor:
    """Late scores of every query with every document.

    queries: B rows of tokens, documents: N rows of tokens, one width d, any float dtypes
    returns: [B, N] float32 (float64 for float64 tokens); sums are never taken in a half-precision dtype

    A score depends on its own query and document alone: neither padding nor the batch's other rows reach it.
    Gradients go to both sides; of several equal maxima one takes the whole gradient (a valid subgradient).
    Raises ValueError where the widths differ.
    """
    if queries.width != documents.width:
        raise ValueError(f"query tokens are {queries.width} wide, document tokens {documents.width}; scores need one")
    if len(queries) == 0 or len(documents) == 0:
        return queries.values.new_zeros(len(queries), len(documents), dtype=_sum_dtype(queries.values.dtype))
    # Under autocast a float32 product would be taken in bfloat16: scores 1e-3 apart would collapse into one.
    dtype = torch.promote_types(queries.values.dtype, documents.values.dtype)  # one side may be kept in float16
    with torch.autocast(queries.values.device.type, enabled=False):
        scores: Tensor = _MaxSim.apply(
            queries.values.to(dtype), documents.values.to(dtype), queries.lengths, documents.lengths
        )
    return scores


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _tiles(lengths: list[int], query_rows: int) -> Iterator[tuple[list[int], int]]:
    """Documents of like length together: yields (document rows, padded length), each about TILE similarities."""
    order = sorted(range(len(lengths)), key=lambda n: -lengths[n])
    start = 0
    while start < len(order):
        longest = lengths[order[start]]
        count = max(1, TILE // (min(query_rows, QUERY_ROWS) * longest))
        yield order[start : start + count], longest
        start += count


def _best(similarity: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum and its place over the last dimension: [..., T] -> ([...], [...] int64)."""
    length = similarity.shape[-1]
    if similarity.is_cuda or length <= CHUNK or length % CHUNK:
        return similarity.max(-1)
    chunks = similarity.unflatten(-1, (length // CHUNK, CHUNK))
    best, chunk = chunks.amax(-1).max(-1)
    winner = chunks.gather(-2, chunk[..., None, None].expand(*chunk.shape, 1, CHUNK)).squeeze(-2)
    return best, winner.max(-1).indices + chunk * CHUNK


def _search(queries: Tensor, documents: Tensor, lengths: Tensor, keep: bool) -> tuple[Tensor, Tensor | None]:
    """Best document token of every query token in every document.

    queries [M, d], documents [sum T, d], lengths [N]
    returns maxima [N, M] in the sum dtype and, if ``keep``, their rows in ``documents`` [N, M] int32
    """
    rows, device = queries.shape[0], queries.device
    lengths_list = lengths.tolist()
    starts = lengths.cumsum(0) - lengths
    maxima = torch.empty(len(lengths_list), rows, dtype=_sum_dtype(queries.dtype), device=device)
    places = torch.empty(len(lengths_list), rows, dtype=torch.int32, device=device) if keep else None
    for members, longest in _tiles(lengths_list, rows):
        longest = -(-longest // CHUNK) * CHUNK if longest > CHUNK else longest
        index = torch.tensor(members, device=device)
        # A short document is filled up by its own last token: no mask is needed, and the winner stays a real token.
        offset = torch.minimum(torch.arange(longest, device=device).unsqueeze(0), lengths[index].unsqueeze(1) - 1)
        where = (starts[index].unsqueeze(1) + offset).reshape(-1)
        tile = documents.index_select(0, where)
        for begin in range(0, rows, QUERY_ROWS):
            part = slice(begin, min(rows, begin + QUERY_ROWS))
            similarity = (queries[part] @ tile.t()).view(-1, len(members), longest)
            if places is None:
                maxima[index, part] = similarity.amax(-1).t().to(maxima.dtype)
                continue
            best, at = _best(similarity)
            maxima[index, part] = best.t().to(maxima.dtype)
            at = at + torch.arange(len(members), device=device) * longest
            places[index, part] = where[at].t().to(torch.int32)
    return maxima, places


class _MaxSim(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, queries: Tensor, documents: Tensor, query_lengths: Tensor, document_lengths: Tensor
    ) -> Tensor:
        queries, documents = queries.contiguous(), documents.contiguous()
        query_lengths = query_lengths.to(queries.device)
        document_lengths = document_lengths.to(queries.device)
        keep = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        maxima, places = _search(queries, documents, document_lengths, keep)
        owner = torch.repeat_interleave(torch.arange(len(query_lengths), device=queries.device), query_lengths)
        scores = maxima.new_zeros(len(query_lengths), len(document_lengths)).index_add_(0, owner, maxima.t())
        scores /= query_lengths.unsqueeze(1)
        if keep:
            ctx.save_for_backward(queries, documents, places, owner, query_lengths)
        return scores

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        queries, documents, places, owner, query_lengths = ctx.saved_tensors
        weights = (gradient / query_lengths.unsqueeze(1)).to(queries.dtype).index_select(0, owner)  # [M, N]
        for_queries = for_documents = None
        if ctx.needs_input_grad[0]:
            # Each query token receives its winners, weighted: N rows of ``documents`` a bag.
            for_queries = F.embedding_bag(
                places.t().contiguous(), documents, mode="sum", per_sample_weights=weights.contiguous()
            )
        if ctx.needs_input_grad[1]:
            # The same the other way round: sort the places, and every document token is one bag of query tokens.
            places, order = torch.sort(places.reshape(-1))
            bounds = torch.searchsorted(places, torch.arange(len(documents), dtype=torch.int32, device=places.device))
            for_documents = F.embedding_bag(
                order.remainder(len(queries)),
                queries,
                bounds,
                mode="sum",
                per_sample_weights=weights.t().reshape(-1)[order],
            )
        return for_queries, for_documents, None, None
