"""Compute the forward pass of MaxSim in torch, tile by tile; only maxima and their positions are kept.

A tile is one product of some documents' tokens with some query tokens, small enough for a core's cache; the maximum is
taken over each document's rows of it. On a CPU documents are taken without padding; on a GPU, where starting an
operation costs more than padding, documents of like lengths are padded to one.
In shapes M is the number of query tokens of the batch, sum Q.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = {"cpu": 1 << 21, "gpu": 1 << 27}  # bytes of similarities: a CPU core's share of cache; enough to fill a GPU
QUERY_ROWS = {"cpu": 384, "gpu": 4096}  # query tokens of a tile
CACHE_LINE = 64  # query tokens: whole cache lines in any dtype
BF16_STEP = 128  # document tokens of a bfloat16 tile: oneDNN compiles the product of each shape, 0.6 MB and 1 ms
FEWEST_ROWS = 64  # query tokens of a very long document's tile: a thinner product is far slower


@dataclass(frozen=True)
class Rows:
    """Lengths of ragged rows. lengths: [rows] int64 on the tokens' device; sizes: the same numbers as a list, so that a
    GPU synchronises once a call."""

    lengths: Tensor
    sizes: list[int]

    @property
    def starts(self) -> Tensor:
        """[rows]: each row's first token."""
        return self.lengths.cumsum(0).sub_(self.lengths)

    @cached_property
    def owner(self) -> Tensor:
        """[sum of lengths]: the row of every token."""
        rows = torch.arange(len(self.sizes), device=self.lengths.device)
        return rows.repeat_interleave(self.lengths, output_size=sum(self.sizes))

    @cached_property
    def equal(self) -> bool:
        return len(set(self.sizes)) == 1

    def mean(self, tokens: Tensor) -> Tensor:
        """Mean over each row's tokens: [n, sum of lengths] -> [n, rows]."""
        if self.equal:
            return tokens.view(len(tokens), -1, self.sizes[0]).mean(-1)
        return tokens.new_zeros(len(tokens), len(self.sizes)).index_add_(1, self.owner, tokens).div_(self.lengths)


@dataclass(frozen=True)
class Group:
    """Documents of one length, one after another in a slab. rows: which documents; last: [count, 1], their last places
    where the length includes padding."""

    rows: slice | Tensor
    count: int
    length: int
    last: Tensor | None = None


@dataclass(frozen=True)
class Slab:
    """Tokens [tokens, d] of some documents for one product, in groups of one length; tokens behind them don't count."""

    values: Tensor
    groups: list[Group]


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def tiled_maxsim(
    queries: Tensor, documents: Tensor, query_rows: Rows, rows: Rows, keep: bool, sizes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the mean of every query's maxima in every document, and the places of the maxima.

    queries: [M, d], documents: [sum T, d], contiguous, one dtype
    sizes: [N, B], is filled with the means of the maxima's absolute values; None = they are not computed
    returns: [B, N] in the sum dtype, and [N, M] the place of every query token's best token within the document, in the
        narrowest integers that hold it ([N, 0] without ``keep``)
    """
    kind = "cpu" if queries.device.type == "cpu" else "gpu"
    total, tile = len(queries), TILE[kind] // queries.dtype.itemsize
    most = _even(total, QUERY_ROWS[kind])
    slabs = (_slabs if kind == "cpu" else _padded_slabs)(documents, rows, max(1, tile // most))
    scores = torch.empty(len(rows.sizes), len(query_rows.sizes), dtype=sum_dtype(queries.dtype), device=queries.device)
    places = _places(rows.sizes, total if keep else 0, queries.device)
    buffer = queries.new_empty(0)
    for slab in slabs:
        tokens, count = len(slab.values), sum(group.count for group in slab.groups)
        step = _even(total, max(1, min(most, max(FEWEST_ROWS, tile // tokens))))
        buffer = buffer if buffer.numel() >= tokens * step else queries.new_empty(tokens * step)
        maxima = scores.new_empty(count, total)
        for begin in range(0, total, step):
            part = slice(begin, min(total, begin + step))
            some = queries[part]
            product = torch.mm(slab.values, some.t(), out=buffer[: tokens * len(some)].view(tokens, len(some)))
            _reduce(product, slab.groups, maxima[:, part], places[:, part] if keep else None)
        row = 0
        for group in slab.groups:
            scores[group.rows] = query_rows.mean(maxima[row : row + group.count])
            if sizes is not None:
                sizes[group.rows] = query_rows.mean(maxima[row : row + group.count].abs_())
            row += group.count
    return scores.t().contiguous(), places


def _even(total: int, most: int) -> int:
    """Query tokens of a tile: blocks of about one size, no thin one at the end, in whole cache lines. These make
    products up to a fifth faster (a row of 458 floats ends within a line, and the next begins there)."""
    size = -(-total // -(-total // most))
    return min(total, -(-size // CACHE_LINE) * CACHE_LINE)


def _reduce(product: Tensor, groups: list[Group], maxima: Tensor, places: Tensor | None) -> None:
    """Reduce a tile's similarities [tokens, rows] to the slab's maxima [n, rows] and the places [N, rows]."""
    token = row = 0
    for group in groups:
        size = group.count * group.length
        tile = product[token : token + size].view(group.count, group.length, -1)
        kept = slice(row, row + group.count)
        if places is None:
            maxima[kept] = tile.amax(1)
        else:
            maxima[kept], place = _max_and_place(tile)
            place = place if group.last is None else torch.minimum(place, group.last)
            places[group.rows] = place if isinstance(group.rows, slice) else place.to(places.dtype)
        token, row = token + size, row + group.count


def _max_and_place(tile: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over each document's tokens and its place: [n, T, rows] -> [n, rows], [n, rows] int64."""
    if tile.device.type != "cpu":
        best, place = tile.max(1)
        return best, place
    # torch's max(dim) is not vectorised on a CPU. Max pooling of images whose channels are the query tokens is the same
    # maximum with its place, and it is: ten times as fast, a twentieth of the cost of the product before it.
    images = tile.unsqueeze(2).permute(0, 3, 1, 2)  # [n, rows, T, 1], and by its strides channels last
    best, place = F.max_pool2d(images, (tile.shape[1], 1), return_indices=True)
    return best.flatten(1), place.flatten(1)


def _places(sizes: list[int], total: int, device: torch.device) -> Tensor:
    """An empty tensor for the places: one in a document of 256 tokens takes a byte, of 32,768 tokens two."""
    longest = max(sizes)
    dtype = torch.uint8 if longest <= 1 << 8 else torch.int16 if longest <= 1 << 15 else torch.int32
    return torch.empty(len(sizes), total, dtype=dtype, device=device)


def _slabs(documents: Tensor, rows: Rows, tokens: int) -> Iterator[Slab]:
    """Views of the documents in their order; or sorted by length, which costs a copy of each slab, where that makes far
    fewer groups (every group costs a call)."""
    sizes, ends = rows.sizes, list(accumulate(rows.sizes))
    order = list(range(len(sizes)))
    if 2 * len(set(sizes)) < sum(1 for _ in groupby(sizes)):
        order.sort(key=sizes.__getitem__)
    for portion in _portions(order, sizes, tokens):
        first, final = portion[0], portion[-1]
        adjacent = portion == list(range(first, final + 1))
        if adjacent:
            values = _padded_bf16(documents, ends[first] - sizes[first], ends[final])
        else:
            values = torch.cat([documents[ends[n] - sizes[n] : ends[n]] for n in portion])
            values = _padded_bf16(values, 0, len(values))
        groups = []
        for length, same in groupby(portion, key=sizes.__getitem__):
            members = list(same)
            which = slice(members[0], members[-1] + 1) if adjacent else torch.tensor(members)
            groups.append(Group(which, len(members), length))
        yield Slab(values, groups)


def _padded_bf16(tokens: Tensor, begin: int, end: int) -> Tensor:
    """Tokens from begin to end; of bfloat16 ones also what comes behind them, up to a multiple of BF16_STEP."""
    if tokens.dtype != torch.bfloat16 or (end - begin) % BF16_STEP == 0:
        return tokens[begin:end]
    more = BF16_STEP - (end - begin) % BF16_STEP
    if end + more <= len(tokens):
        return tokens[begin : end + more]
    return torch.cat([tokens[begin:end], tokens.new_zeros(more, tokens.shape[1])])


def _portions(order: list[int], sizes: list[int], tokens: int) -> Iterator[list[int]]:
    """The documents in portions of at most so many tokens; a longer document is a portion of its own."""
    portion: list[int] = []
    held = 0
    for n in order:
        if portion and held + sizes[n] > tokens:
            yield portion
            portion, held = [], 0
        portion.append(n)
        held += sizes[n]
    yield portion


def _padded_slabs(documents: Tensor, rows: Rows, tokens: int) -> Iterator[Slab]:
    """One group a slab. A document is padded with its own last token: no mask is needed, and a place beyond the last
    means the last."""
    order = sorted(range(len(rows.sizes)), key=lambda n: -rows.sizes[n])
    which = torch.tensor(order, device=documents.device)
    starts = rows.starts
    begin = 0
    while begin < len(order):
        longest = rows.sizes[order[begin]]
        members = which[begin : begin + max(1, tokens // longest)]
        last = rows.lengths[members].sub_(1).unsqueeze(1)
        place = torch.minimum(torch.arange(longest, device=documents.device), last) + starts[members].unsqueeze(1)
        yield Slab(documents.index_select(0, place.view(-1)), [Group(members, len(members), longest, last)])
        begin += len(members)
