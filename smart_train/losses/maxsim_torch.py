"""Forward of MaxSim in torch: tiles of similarities, of which only maxima and their places are kept.

A tile is one product of some documents' tokens with some query tokens, small enough for a core's cache; over each
document's rows of it the maximum is taken.  On a CPU documents are taken as they lie, so that padding is never
multiplied; on a GPU, where starting an operation costs more than padding, like lengths are filled up to one.
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
LINES = 64  # query tokens: whole lines of cache in any dtype
GRAIN = 128  # document tokens of a bfloat16 tile: its product is compiled for each shape, 0.6 MB and a millisecond
FEWEST_ROWS = 64  # of a very long document's tile: a thinner product runs far below the machine's speed


@dataclass(frozen=True)
class Rows:
    """Where the rows of a ragged bag lie.  lengths: [rows] int64 on the tokens' device; sizes: the same numbers here,
    so that a GPU is waited for once a call."""

    lengths: Tensor
    sizes: list[int]

    @property
    def starts(self) -> Tensor:
        """[rows]: each row's first token."""
        return self.lengths.cumsum(0).sub_(self.lengths)

    @cached_property
    def owner(self) -> Tensor:
        """[sum of lengths]: the row that a token is of."""
        rows = torch.arange(len(self.sizes), device=self.lengths.device)
        return rows.repeat_interleave(self.lengths, output_size=sum(self.sizes))

    @cached_property
    def equal(self) -> bool:
        return len(set(self.sizes)) == 1

    def mean(self, tokens: Tensor) -> Tensor:
        """Over each row's tokens: [n, sum of lengths] -> [n, rows]."""
        if self.equal:
            return tokens.view(len(tokens), -1, self.sizes[0]).mean(-1)
        return tokens.new_zeros(len(tokens), len(self.sizes)).index_add_(1, self.owner, tokens).div_(self.lengths)


@dataclass(frozen=True)
class Run:
    """Documents of one length, one after another in a slab.  rows: which they are; last: [count, 1], their last places
    where the length includes padding."""

    rows: slice | Tensor
    count: int
    length: int
    last: Tensor | None = None


@dataclass(frozen=True)
class Slab:
    """Some documents' tokens [tokens, d], what one product takes, as runs; behind the last run nothing counts."""

    values: Tensor
    runs: list[Run]


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def search(
    queries: Tensor, documents: Tensor, query_rows: Rows, rows: Rows, keep: bool, sizes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean of every query's maxima in every document, and where the maxima are.

    queries: [M, d], documents: [sum T, d], contiguous, one dtype
    sizes: [N, B], takes the means of the maxima's absolute values, where somebody asks for them
    returns: [B, N] in the sum dtype, and [N, M] the place of every query token's best token within the document, in the
        narrowest integers that hold it ([N, 0] without ``keep``)
    """
    kind = "cpu" if queries.device.type == "cpu" else "gpu"
    total, tile = len(queries), TILE[kind] // queries.dtype.itemsize
    wanted = _even(total, QUERY_ROWS[kind])
    slabs = (_slabs if kind == "cpu" else _padded_slabs)(documents, rows, max(1, tile // wanted))
    scores = torch.empty(len(rows.sizes), len(query_rows.sizes), dtype=sum_dtype(queries.dtype), device=queries.device)
    places = _places(rows.sizes, total if keep else 0, queries.device)
    buffer = queries.new_empty(0)
    for slab in slabs:
        tokens, count = len(slab.values), sum(run.count for run in slab.runs)
        step = _even(total, max(1, min(wanted, max(FEWEST_ROWS, tile // tokens))))
        buffer = buffer if buffer.numel() >= tokens * step else queries.new_empty(tokens * step)
        maxima = scores.new_empty(count, total)
        for begin in range(0, total, step):
            part = slice(begin, min(total, begin + step))
            few = queries[part]
            product = torch.mm(slab.values, few.t(), out=buffer[: tokens * len(few)].view(tokens, len(few)))
            _reduce(product, slab.runs, maxima[:, part], places[:, part] if keep else None)
        row = 0
        for run in slab.runs:
            scores[run.rows] = query_rows.mean(maxima[row : row + run.count])
            if sizes is not None:
                sizes[run.rows] = query_rows.mean(maxima[row : row + run.count].abs_())
            row += run.count
    return scores.t().contiguous(), places


def _even(total: int, most: int) -> int:
    """Query tokens of a tile: blocks of about one size, no thin one at the end, in whole lines of cache, which makes
    products up to a fifth faster (a row of 458 floats ends within a line, and the next begins there)."""
    size = -(-total // -(-total // most))
    return min(total, -(-size // LINES) * LINES)


def _reduce(product: Tensor, runs: list[Run], maxima: Tensor, places: Tensor | None) -> None:
    """A tile's similarities [tokens, rows] into the slab's maxima [n, rows] and the places [N, rows]."""
    token = row = 0
    for run in runs:
        size = run.count * run.length
        tile = product[token : token + size].view(run.count, run.length, -1)
        kept = slice(row, row + run.count)
        if places is None:
            maxima[kept] = tile.amax(1)
        else:
            maxima[kept], place = _best(tile)
            place = place if run.last is None else torch.minimum(place, run.last)
            places[run.rows] = place if isinstance(run.rows, slice) else place.to(places.dtype)
        token, row = token + size, row + run.count


def _best(tile: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over each document's tokens and its place: [n, T, rows] -> [n, rows], [n, rows] int64."""
    if tile.device.type != "cpu":
        best, place = tile.max(1)
        return best, place
    # torch's max(dim) goes number by number on a CPU.  Pooling images whose channels are the query tokens is the same
    # maximum with its place, vectorised: ten times as fast, a twentieth of the product before it.
    images = tile.unsqueeze(2).permute(0, 3, 1, 2)  # [n, rows, T, 1], and by its strides channels last
    best, place = F.max_pool2d(images, (tile.shape[1], 1), return_indices=True)
    return best.flatten(1), place.flatten(1)


def _places(sizes: list[int], total: int, device: torch.device) -> Tensor:
    """Room for the places: one in a document of 256 tokens takes a byte, of 32,768 two."""
    longest = max(sizes)
    dtype = torch.uint8 if longest <= 1 << 8 else torch.int16 if longest <= 1 << 15 else torch.int32
    return torch.empty(len(sizes), total, dtype=dtype, device=device)


def _slabs(documents: Tensor, rows: Rows, tokens: int) -> Iterator[Slab]:
    """Views of the documents as they lie; sorted by length, at the price of a copy a slab, where that makes far fewer
    runs of one length (every run costs a call)."""
    sizes, ends = rows.sizes, list(accumulate(rows.sizes))
    order = list(range(len(sizes)))
    if 2 * len(set(sizes)) < sum(1 for _ in groupby(sizes)):
        order.sort(key=sizes.__getitem__)
    for portion in _portions(order, sizes, tokens):
        first, final = portion[0], portion[-1]
        together = portion == list(range(first, final + 1))
        if together:
            values = _grained(documents, ends[first] - sizes[first], ends[final])
        else:
            values = torch.cat([documents[ends[n] - sizes[n] : ends[n]] for n in portion])
            values = _grained(values, 0, len(values))
        runs = []
        for length, group in groupby(portion, key=sizes.__getitem__):
            members = list(group)
            which = slice(members[0], members[-1] + 1) if together else torch.tensor(members)
            runs.append(Run(which, len(members), length))
        yield Slab(values, runs)


def _grained(tokens: Tensor, begin: int, end: int) -> Tensor:
    """Tokens from begin to end; of bfloat16 ones whatever comes behind them, too, up to a multiple of GRAIN."""
    if tokens.dtype != torch.bfloat16 or (end - begin) % GRAIN == 0:
        return tokens[begin:end]
    more = GRAIN - (end - begin) % GRAIN
    if end + more <= len(tokens):
        return tokens[begin : end + more]
    return torch.cat([tokens[begin:end], tokens.new_zeros(more, tokens.shape[1])])


def _portions(order: list[int], sizes: list[int], tokens: int) -> Iterator[list[int]]:
    """The documents in portions of at most so many tokens; a longer document stands alone."""
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
    """One run a slab.  A document is filled up by its own last token: no mask is needed, and a place beyond the last
    stands for it."""
    order = sorted(range(len(rows.sizes)), key=lambda n: -rows.sizes[n])
    which = torch.tensor(order, device=documents.device)
    starts = rows.starts
    begin = 0
    while begin < len(order):
        longest = rows.sizes[order[begin]]
        members = which[begin : begin + max(1, tokens // longest)]
        last = rows.lengths[members].sub_(1).unsqueeze(1)
        place = torch.minimum(torch.arange(longest, device=documents.device), last) + starts[members].unsqueeze(1)
        yield Slab(documents.index_select(0, place.view(-1)), [Run(members, len(members), longest, last)])
        begin += len(members)
