"""MaxSim on ragged tokens: late-interaction scores without a [B, N, Q, T] tensor.

    s(q, x) = 1/|q| * sum_i max_j  q_i . x_j          (ColBERT, Khattab & Zaharia 2020, with a mean for the sum)

The forward pass keeps only the place of every maximum, one or two bytes each where documents are short enough: memory
is O(B*Q*N), never O(B*N*Q*T). The backward pass reads only the tokens that were a maximum: two weighted gathers
(``embedding_bag``), together about a twentieth of the forward's cost. In shapes M is sum Q.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

import smart_train.losses.maxsim_fused as kernels
from smart_train.core.embeddings import Tokens
from smart_train.losses.maxsim_torch import FEWEST_ROWS, TILE, Rows, sum_dtype, tiled_maxsim

WHERE = 256  # documents whose maxima are held at once by maxsim_where
BLOCK = 1 << 19  # maxima that the backward sorts and weights at once, about 30 bytes each


def maxsim(queries: Tokens, documents: Tokens) -> Tensor:
    """Compute the late scores of every query with every document.

    queries: B rows of tokens, documents: N rows of tokens, one width d, any float dtypes
    returns: [B, N] float32 (float64 for float64 tokens); sums are never taken in a half-precision dtype

    A score depends on its own query and document alone, not on padding or on other rows: a NaN or an infinity among
    the tokens affects the scores of its own row and no other. bfloat16 tokens are multiplied in bfloat16 (float16 ones
    in float32 on a CPU), so similarities have its rounding; sums do not. Both sides get gradients; of several equal
    maxima one gets the whole gradient (a valid subgradient). On CUDA, half-precision tokens go to fused kernels where
    these are installed and fit, see maxsim_fused.py.
    Raises ValueError where the widths differ, lengths and values disagree or a row has no token.

    One query of two tokens, two documents of two and one tokens:

    >>> queries = Tokens(torch.eye(2), torch.tensor([2]))
    >>> documents = Tokens(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), torch.tensor([2, 1]))
    >>> maxsim(queries, documents)
    tensor([[1.0000, 0.7000]])
    """
    q, x = in_one_dtype(queries, documents)
    if len(queries) == 0 or len(documents) == 0:
        return no_scores(queries, documents)
    query_rows, rows = checked_rows(queries, documents)
    # Under autocast a float32 product would be taken in bfloat16: scores 1e-3 apart would collapse into one.
    with torch.autocast(q.device.type, enabled=False):
        if kernels.usable(q, x, query_rows, rows):
            return kernels.score(q, x, query_rows, rows)
        q, x = q.to(tile_dtype(q)), x.to(tile_dtype(x))
        if torch.is_grad_enabled() and (q.requires_grad or x.requires_grad):
            scores: Tensor = _MaxSim.apply(q, x, query_rows, rows)
            return scores
        with torch.no_grad():
            return tiled_maxsim(q.contiguous(), x.contiguous(), query_rows, rows, keep=False)[0]


def maxsim_where(wanted: Tensor, queries: Tokens, documents: Tokens, otherwise: Tensor) -> Tensor:
    """Compute the late scores of some pairs, as ``maxsim`` does, without gradients; copy the others from ``otherwise``.

    wanted: [B, N] bool; otherwise: [B, N] -> [B, N], a new tensor
    Documents are scored one by one, each against its wanted queries: faster where at most about two thirds are wanted.
    """
    query_rows, rows = checked_rows(queries, documents)
    dtype = torch.promote_types(queries.values.dtype, documents.values.dtype)
    q, tokens = queries.values.to(dtype), documents.values.to(dtype).split(rows.sizes)
    scores = otherwise.to(sum_dtype(dtype)).t().clone()
    columns = wanted.any(0).nonzero().flatten()
    for some in columns.split(WHERE) if len(columns) else ():
        pairs = wanted.t()[some]
        maxima = scores.new_zeros(len(some), len(q))  # of pairs that are not wanted they stay 0, and unused
        of_tokens = pairs.index_select(1, query_rows.owner)
        for at, (number, tokens_wanted) in enumerate(zip(some.tolist(), of_tokens, strict=True)):
            which = tokens_wanted.nonzero().flatten()
            step = max(FEWEST_ROWS, TILE["cpu"] // q.dtype.itemsize // rows.sizes[number])
            parts = [(tokens[number] @ part.t()).amax(0) for part in q.index_select(0, which).split(step)]
            maxima[at].index_copy_(0, which, torch.cat(parts).to(maxima.dtype))
        scores[some] = torch.where(pairs, query_rows.mean(maxima), scores[some])
    return scores.t().contiguous()


def maxsim_sizes(queries: Tokens, documents: Tokens) -> tuple[Tensor, Tensor]:
    """Compute late scores as ``maxsim`` does, without gradients, and the means of the maxima's absolute values, which
    bound the error of rounded maxima. Tokens of one dtype -> [B, N], [B, N]"""
    query_rows, rows = checked_rows(queries, documents)
    q, x = (side.values.to(tile_dtype(side.values)).contiguous() for side in (queries, documents))
    sizes = torch.empty(len(documents), len(queries), dtype=sum_dtype(q.dtype), device=q.device)
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        return tiled_maxsim(q, x, query_rows, rows, keep=False, sizes=sizes)[0], sizes.t()


def in_one_dtype(queries: Tokens, documents: Tokens) -> tuple[Tensor, Tensor]:
    """Return the vectors of both sides in the wider of their dtypes: one side may be kept in float16.

    Raises ValueError where their widths differ.
    """
    if queries.width != documents.width:
        raise ValueError(f"query tokens are {queries.width} wide, document tokens {documents.width}; scores need one")
    dtype = torch.promote_types(queries.values.dtype, documents.values.dtype)
    return queries.values.to(dtype), documents.values.to(dtype)


def no_scores(queries: Tokens, documents: Tokens) -> Tensor:
    """Return the scores where a side has no row: [B, N] without an element, and a part of the graph."""
    q, x = in_one_dtype(queries, documents)
    return q.new_zeros(len(queries), len(documents), dtype=sum_dtype(q.dtype)) + 0 * (q.sum() + x.sum())


def checked_rows(queries: Tokens, documents: Tokens) -> tuple[Rows, Rows]:
    """Lengths of queries and documents, checked; the one place that synchronises a GPU."""
    lengths = [tokens.lengths.to(queries.values.device) for tokens in (queries, documents)]
    sizes = torch.cat(lengths).tolist()
    both = Rows(lengths[0], sizes[: len(queries)]), Rows(lengths[1], sizes[len(queries) :])
    for rows, tokens, what in zip(both, (queries, documents), ("query", "document"), strict=True):
        if min(rows.sizes) < 1:
            empty = rows.sizes.index(min(rows.sizes))
            raise ValueError(f"{what} {empty} has no token; every row needs at least one")
        if sum(rows.sizes) != len(tokens.values):
            raise ValueError(
                f"the {what} lengths add up to {sum(rows.sizes)}, but there are {len(tokens.values)} token vectors"
            )
    return both


def tile_dtype(tokens: Tensor) -> torch.dtype:
    """float32 for half precisions that this CPU has no instructions for (ten times as fast), else their own dtype."""
    if tokens.device.type != "cpu" or tokens.dtype not in (torch.float16, torch.bfloat16):
        return tokens.dtype
    fast = tokens.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return tokens.dtype if fast else torch.float32


class _MaxSim(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, documents: Tensor, query_rows: Rows, rows: Rows) -> Tensor:  # type: ignore[override]
        queries, documents = queries.contiguous(), documents.contiguous()
        scores, places = tiled_maxsim(queries, documents, query_rows, rows, keep=True)
        ctx.save_for_backward(queries, documents, places, query_rows.owner, query_rows.lengths, rows.starts)
        ctx.sizes = rows.sizes
        return scores

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        queries, documents, places, owner, lengths, starts = ctx.saved_tensors
        weights = (gradient / lengths.unsqueeze(1)).to(queries.dtype)  # [B, N], of each of a query's tokens
        for_queries = for_documents = None
        if ctx.needs_input_grad[0]:
            for_queries = _for_queries(documents, places, weights, owner, starts)
        if ctx.needs_input_grad[1]:
            for_documents = _for_documents(queries, places, weights, owner, starts, ctx.sizes)
        return for_queries, for_documents, None, None


def _index_dtype(rows: int) -> torch.dtype:
    return torch.int32 if rows < 1 << 31 else torch.int64


def _for_queries(documents: Tensor, places: Tensor, weights: Tensor, owner: Tensor, starts: Tensor) -> Tensor:
    """Gradient of the query tokens: each gets the document tokens that were its maxima, weighted. -> [M, d]

    places [N, M] within the documents, weights [B, N], owner [M] the query of a token, starts [N]
    """
    count, total = places.shape
    starts = starts.to(_index_dtype(len(documents)))
    step = max(1, BLOCK // count)
    bags = []
    for begin in range(0, total, step):
        part = slice(begin, begin + step)
        index = starts.new_empty(places[:, part].shape[::-1])
        torch.add(places[:, part].t(), starts, out=index)
        weight = weights.index_select(0, owner[part])
        bags.append(F.embedding_bag(index, documents, mode="sum", per_sample_weights=weight))
    return bags[0] if len(bags) == 1 else torch.cat(bags)


def _for_documents(
    queries: Tensor, places: Tensor, weights: Tensor, owner: Tensor, starts: Tensor, sizes: list[int]
) -> Tensor:
    """Gradient of the document tokens, [sum T, d]: sorted by place, each gets the query tokens whose maximum it was.

    A place is in its own document, so documents are sorted in blocks, not all together.
    """
    count, total = places.shape
    ends = [0, *accumulate(sizes)]
    step = max(1, BLOCK // total)
    gradient = queries.new_empty(ends[-1] if step < count else 0, queries.shape[1])
    for begin in range(0, count, step):
        block = slice(begin, min(count, begin + step))
        first, final = ends[begin], ends[block.stop]
        begins = starts[block].sub(first).to(_index_dtype(final - first)).unsqueeze(1)
        place = (places[block] + begins).view(-1)
        won = torch.zeros(final - first, dtype=torch.int64, device=place.device)
        won.index_add_(0, place, won.new_ones(1).expand(len(place)))
        order = torch.sort(place, stable=True).indices
        weight = weights[:, block].t().index_select(1, owner).view(-1)[order]
        won = won.cumsum(0).sub_(won)  # where each token's bag begins
        bags = F.embedding_bag(order.remainder_(total), queries, won, mode="sum", per_sample_weights=weight)
        if step >= count:
            return bags
        gradient[first:final] = bags
    return gradient
