"""Gather documents from all ranks as negatives, differentiably and exactly.

Queries stay where they are; rank r scores its own B queries against the N documents of all ranks, [B, N].  With P_r
drawn pairs on rank r, P on all, and W ranks, the global loss is the mean over all pairs:

    L = 1/P sum_r sum_(pairs of r) l  =  1/W sum_r (W P_r / P) mean_(pairs of r) l

so a rank takes its own mean times ``shares`` = W P_r / P, and the mean over ranks, of losses and of the gradients that
DDP or ZeRO averages, is L and its gradient. That holds only if a document's gradient is the sum of what all ranks send
back, and the backward here takes that sum. So nothing is off by a factor of W, whatever number of pairs, documents and
tokens a rank has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.core.errors import RanksDiffer, SettingError

SLICE = 1 << 28  # bytes that one collective receives at most; a buffer of that size is held beside the rows
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Gather:
    """Exchange of embeddings and keys between ranks in one training step.

    group_size: so many consecutive ranks gather together; None = all ranks. Ranks 0 .. group_size-1 are the first
        group: choose the GPUs of one machine where the world is large. Raises SettingError where it does not divide the
        number of ranks.
    enabled: False = every rank has its own documents alone (``shares`` still weights the ranks' means).

    Without a process group, with one rank, or alone in its group, everything is returned unchanged. Create it after
    the process group, on every rank at the same point: it creates the groups. Every rank must call the same methods in
    the same order, and go backward through what it gathered.

    size, rank: how many ranks gather together, and this rank's place among them
    bytes: received by gathers and their backward since the last ``take_bytes()``: (size - 1) blocks each, a block
        being the largest rank's rows, for the backward in the dtype of its sums (see ``documents``)
    """

    def __init__(self, group_size: int | None = None, enabled: bool = True) -> None:
        self.world, place = _world()
        self.bytes = 0
        self._group: Any = None  # None = all ranks
        if group_size is not None and (group_size < 1 or self.world % group_size):
            what = f"is {group_size}, which does not divide the {self.world} ranks of this run"
            raise SettingError("objective.gather_group", what, "choose a divisor of it, or null for all ranks")
        self.size = (group_size or self.world) if enabled else 1
        self.rank = place % self.size
        if 1 < self.size < self.world:
            for first in range(0, self.world, self.size):  # collective: every rank makes every group
                group = dist.new_group(list(range(first, first + self.size)))
                self._group = group if first <= place < first + self.size else self._group

    def documents(self, own: Embeddings, pooled: bool = True, tokens: bool = True) -> tuple[Embeddings, slice]:
        """Return the documents of all ranks of the group, in rank order, and which of these rows are this rank's.

        own: n rows; any number on any rank. Returns N rows in the same dtypes. A view that is not requested is not
        sent: pooled is [N, 0] then, tokens are one token of width 0 a row.
        Differentiable, one node for both views. A row's gradient is the sum over ranks; half dtypes are summed in
        float32. A view whose own rows need no gradient sends none back.
        Raises RanksDiffer, on every rank, where ranks differ in width, dtype or need of a gradient.
        """
        self._check()
        if self.size == 1:
            return own, slice(0, len(own))
        values, lengths = own.tokens.values, own.tokens.lengths.to(own.pooled.device)
        rows, counts = self._agree(own.pooled if pooled else None, values if tokens else None, len(own))
        wanted = [(own.pooled, rows)] if pooled else []
        wanted += [(values, counts)] if tokens else []
        sent = list(_Exchange.apply(self, [c for _, c in wanted], *(view for view, _ in wanted))) if wanted else []
        every = sent.pop(0) if pooled else own.pooled.new_zeros(sum(rows), 0)
        if tokens:
            ragged = Tokens(sent.pop(0), self._collect(lengths.unsqueeze(1), rows).squeeze(1))
        else:
            ragged = Tokens(values.new_zeros(sum(rows), 0), lengths.new_ones(sum(rows)))
        start = sum(rows[: self.rank])
        return Embeddings(every, ragged), slice(start, start + len(own))

    def keys(self, keys: Tensor) -> Tensor:
        """Gather document keys [n, 4] int64 -> [N, 4], in the order of ``documents``."""
        self._check()
        if self.size == 1:
            return keys
        counts = self._header([len(keys)], keys.device).squeeze(1).tolist()
        return self._collect(keys, counts)

    def columns(self, values: Tensor) -> Tensor:
        """Gather one value for each of M gathered documents from every rank, for sums over all ranks' queries.

        [M] -> [size, M], differentiable; M is the same on every rank of the group
        """
        self._check()
        if self.size == 1:
            return values.unsqueeze(0)
        (every,) = _Exchange.apply(self, [[1] * self.size], values.unsqueeze(0))
        return every

    def repeats(self, ids: Tensor) -> Tensor:
        """Return which ids an earlier rank of the group also has: [n] int64 -> [n] bool."""
        self._check()
        if self.size == 1:
            return torch.zeros_like(ids, dtype=torch.bool)
        counts = self._header([len(ids)], ids.device).squeeze(1).tolist()
        every = self._collect(ids.unsqueeze(1), counts).squeeze(1)
        return torch.isin(ids, every[: sum(counts[: self.rank])])

    def shares(self, *counts: int) -> list[float]:
        """Return count * W / (sum of the counts over all W ranks of the world, not of the group), for each count.

        A rank's own mean over so many rows times this share has the mean over all rows as its mean over ranks. 0.0
        where no rank has any. A few numbers, not counted in ``bytes``.
        """
        self._check()
        if self.world == 1:
            return [1.0] * len(counts)
        totals = torch.tensor(counts, dtype=torch.int64, device=_device())
        dist.all_reduce(totals)
        return [c * self.world / total if total else 0.0 for c, total in zip(counts, totals.tolist(), strict=True)]

    def take_bytes(self) -> int:
        """Return ``bytes`` and reset it to 0."""
        received, self.bytes = self.bytes, 0
        return received

    def _check(self) -> None:
        world, _ = _world()
        if world != self.world:
            raise ValueError(
                f"this Gather was created for {self.world} rank(s), and now there are {world}; create it after the "
                "process group, and a new one for another process group"
            )

    def _agree(self, pooled: Tensor | None, values: Tensor | None, n: int) -> tuple[list[int], list[int]]:
        """Rows and tokens of every rank. Unequal widths or dtypes would abort the process inside the backend, and a
        backward on some ranks only would wait for ever, so both are compared first."""
        mine = [n, 0 if values is None else len(values), *_description(pooled), *_description(values)]
        device = next((view.device for view in (pooled, values) if view is not None), _device())
        table = self._header(mine, device).tolist()
        for rank, line in enumerate(table):
            if line[2:] != table[0][2:]:
                raise RanksDiffer(
                    f"documents can't be gathered: rank {rank} of its group has {_in_words(line)}, rank 0 has "
                    f"{_in_words(table[0])}; every rank must run the same model and recipe"
                )
        return [line[0] for line in table], [line[1] for line in table]

    def _header(self, numbers: list[int], device: torch.device) -> Tensor:
        """[k] of every rank -> [size, k] int64."""
        return self._collect(torch.tensor([numbers], dtype=torch.int64, device=device), [1] * self.size)

    def _collect(self, own: Tensor, counts: Sequence[int]) -> Tensor:
        """Rows of every rank -> [sum of counts, ...]. Backends want equal shapes: rows of padding are sent, and cut off
        here."""
        own, result = own.detach().contiguous(), None
        for begin, rows in self._slices(own, counts):
            block = own[begin : begin + rows]
            block = block if len(block) == rows else F.pad(block, (0, 0, 0, rows - len(block)))
            every = own.new_empty(self.size * rows, own.shape[1])
            _all_gather(every, block, self._group)
            if min(counts) == max(counts) == rows:  # all there is, without padding
                return every
            result = own.new_empty(sum(counts), own.shape[1]) if result is None else result
            for there, here in _places(counts, begin, rows):
                result[there] = every[here]
        return own if result is None else result

    def _send_back(self, gradient: Tensor, counts: Sequence[int]) -> Tensor:
        """Gradients of all ranks' rows [sum of counts, d] -> of the own rows [n, d], summed over ranks.

        A ring's reduce-scatter, which receives (size - 1) blocks of sums; gloo may take more."""
        dtype = torch.float32 if gradient.dtype.itemsize < 4 else gradient.dtype
        own = gradient.new_empty(counts[self.rank], gradient.shape[1])
        for begin, rows in self._slices(gradient.new_empty(0, gradient.shape[1], dtype=dtype), counts):
            blocks = gradient.new_zeros(self.size * rows, gradient.shape[1], dtype=dtype)
            for there, here in _places(counts, begin, rows):
                blocks[here] = gradient[there]
            sums = blocks.new_empty(rows, gradient.shape[1])
            _reduce_scatter(sums, blocks, self._group)
            part = own[begin : begin + rows]
            part.copy_(sums[: len(part)])
        return own

    def _slices(self, like: Tensor, counts: Sequence[int]) -> Iterator[tuple[int, int]]:
        """(first row, number of rows) of each collective, on every rank alike: all ranks' tokens are gigabytes, and a
        second copy of them, padded or in float32, would be what runs out of memory."""
        most, row = max(counts), like.shape[1] * like.element_size()
        step = max(1, SLICE // max(1, self.size * row))
        for begin in range(0, most, step):
            rows = min(step, most - begin)
            self.bytes += (self.size - 1) * rows * row
            yield begin, rows


def _places(counts: Sequence[int], begin: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """Places of the rows ``begin`` to ``begin + rows`` of every rank: among all ranks' rows, and in the slice."""
    for rank, (count, end) in enumerate(zip(counts, accumulate(counts), strict=True)):
        number = max(0, min(count - begin, rows))
        start = end - count + min(begin, count)
        yield slice(start, start + number), slice(rank * rows, rank * rows + number)


class _Exchange(torch.autograd.Function):
    """Views [n, d] of this rank -> [N, d] of all; backward: the sum of all ranks' gradients of the own rows.

    One node for several views, so that every rank's backward comes to its collectives in the same order."""

    @staticmethod
    def forward(ctx: Any, gather: Gather, counts: list[list[int]], *views: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        ctx.gather, ctx.counts = gather, counts
        every = tuple(gather._collect(view, count) for view, count in zip(views, counts, strict=True))
        needed = ctx.needs_input_grad[2:]
        ctx.mark_non_differentiable(*(view for view, need in zip(every, needed, strict=True) if not need))
        return every

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        # An unused view's gradient is zeros and is sent, too: ranks must not disagree on what they wait for.
        needed = zip(gradients, ctx.counts, ctx.needs_input_grad[2:], strict=True)
        return None, None, *(ctx.gather._send_back(g, counts) if need else None for g, counts, need in needed)


def _world() -> tuple[int, int]:
    """(world size, rank); (1, 0) without a process group."""
    initialized = dist.is_available() and dist.is_initialized()
    return (dist.get_world_size(), dist.get_rank()) if initialized else (1, 0)


def _device() -> torch.device:
    """The device that the backend takes tensors from."""
    if dist.get_backend() in ("gloo", "mpi") or not torch.accelerator.is_available():
        return torch.device("cpu")
    return torch.device(str(torch.accelerator.current_accelerator()), torch.accelerator.current_device_index())


# torch 2.13 calls them *_single, and warns of the names that torch 2.6 knows.
def _all_gather(into: Tensor, own: Tensor, group: Any) -> None:
    getattr(dist, "all_gather_single", dist.all_gather_into_tensor)(into, own, group=group)


def _reduce_scatter(into: Tensor, blocks: Tensor, group: Any) -> None:
    getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)(into, blocks, group=group)


def _description(view: Tensor | None) -> tuple[int, int, int]:
    """Width, dtype and need of a gradient; a view that is not requested is (-1, -1, 0)."""
    if view is None:
        return -1, -1, 0
    if view.dtype not in DTYPES:
        raise ValueError(f"embeddings are gathered as {', '.join(map(str, DTYPES))}; got {view.dtype}")
    return view.shape[1], DTYPES.index(view.dtype), int(view.requires_grad and torch.is_grad_enabled())


def _in_words(line: list[int]) -> str:
    views = (("pooled vectors", line[2:5]), ("tokens", line[5:8]))
    return " and ".join(
        f"{name} of width {width} in {str(DTYPES[dtype]).removeprefix('torch.')}"
        f"{' with' if gradient else ' without'} gradient"
        if dtype >= 0
        else f"no {name}"
        for name, (width, dtype, gradient) in views
    )
