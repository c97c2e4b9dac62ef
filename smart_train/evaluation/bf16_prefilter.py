"""Compute late scores for a top-k ranking faster on CPUs: exact for documents that may be in the top k.

A CPU with bfloat16 instructions multiplies bfloat16 tokens at twice the speed of float32 ones, so a block of documents
is scored in bfloat16 first. The error of such a score is bounded from the rounding of the tokens (Cauchy and Schwarz):

    |q . x - q' . x'|  <=  |q - q'| |x| + |q'| |x - x'|         q', x': rounded

and the error of a maximum over tokens, or of a mean of maxima, is no larger than that of its parts. Documents whose
upper bound is below the lower bounds of ``top`` others cannot be in the top, nor tie with its last place; their score
is a lower bound. All others are scored again in float32: rankings and their scores are those of float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.evaluation.scoring import View
from smart_train.evaluation.topk import TopK
from smart_train.losses.maxsim import maxsim, maxsim_sizes, maxsim_where

HALF = 1.01 * 2.0**-8  # what rounding to bfloat16 changes at most, of the size of what came out
SUMS = 2.0**-23  # the same of float32, twice
CHUNK = 4096  # tokens rounded at once
SEEN = 4  # times ``top`` documents must have been scored, or too few can be ruled out
DENSE = 0.6  # share of pairs left from which all are scored exactly: a product of all is faster per pair


def bf16_is_faster(device: torch.device) -> bool:
    """Return whether the device is a CPU that multiplies bfloat16 faster than float32."""
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class BFloat16Prefilter:
    """Compute the late scores of tiles, one after another, for rankings by ``views``.

    best: {(first, end) of a block of queries: {view: TopK}}, which the caller adds each tile's scores to before it
    requests the next one. Every view must have a slope.
    """

    def __init__(self, views: Mapping[str, View], best: Mapping[tuple[int, int], Mapping[str, TopK]]) -> None:
        self.views = {name: one for name, one in views.items() if one.slope}  # the others do not use late scores
        self.best = best
        self.seen = dict.fromkeys(best, 0)  # documents scored
        self.wait = dict.fromkeys(best, 0)  # documents to score before it is tried again
        self.part: Embeddings | None = None

    def __call__(self, rows: slice, queries: Embeddings, part: Embeddings, pooled: Tensor) -> Tensor:
        """Return late scores [B, N] of a tile: exact for pairs that a ranking may need, else not above the exact."""
        key = (rows.start, rows.stop)
        best = self.best[key]
        self.seen[key] += len(part)
        few = SEEN * max((best[name].top for name in self.views), default=0)
        exact = queries.tokens.values.dtype == part.tokens.values.dtype == torch.float32
        if not (exact and self.views) or self.seen[key] < max(few, self.wait[key]):
            return maxsim(queries.tokens, part.tokens)
        if part is not self.part:  # of several blocks of queries the first one rounds for all
            self.part, self.halves = part, Rounded.of(part.tokens)
        rounded, error = bounded(Rounded.of(queries.tokens), self.halves)
        wanted = torch.zeros_like(rounded, dtype=torch.bool)
        for name, one in self.views.items():
            wanted |= self._wanted(one, best[name], one.score(pooled, rounded), error)
        if wanted.float().mean() > DENSE:
            self.wait[key] = 2 * self.seen[key]
            return maxsim(queries.tokens, part.tokens)
        return maxsim_where(wanted, queries.tokens, part.tokens, rounded - error)

    @staticmethod
    def _wanted(view: View, best: TopK, scores: Tensor, error: Tensor) -> Tensor:
        """Return [B, N]: the pairs whose score may reach or tie with the last place."""
        off = (view.slope or 0.0) * error + view.noise  # and what float32 loses in weighing and adding
        there = scores - off if best.scores is None else torch.cat([best.scores, scores - off], 1)
        if there.shape[1] < best.top:
            return torch.ones_like(scores, dtype=torch.bool)
        last = there.topk(best.top, dim=1).values[:, -1:]
        return scores + off >= last - view.noise


@dataclass(frozen=True)
class Rounded:
    """Tokens in bfloat16; sizes: norms of the float32 tokens; off: norms of their rounding errors."""

    tokens: Tokens
    sizes: Tensor  # [sum of lengths]
    off: Tensor  # [sum of lengths]

    @staticmethod
    def of(tokens: Tokens) -> Rounded:
        halves = torch.empty_like(tokens.values, dtype=torch.bfloat16)
        sizes, off = (tokens.values.new_empty(len(tokens.values)) for _ in range(2))
        for begin in range(0, len(halves), CHUNK):
            part = slice(begin, begin + CHUNK)
            values = tokens.values[part]
            halves[part] = values
            torch.linalg.vector_norm(values, dim=1, out=sizes[part])
            torch.linalg.vector_norm(values - halves[part], dim=1, out=off[part])
        return Rounded(Tokens(halves, tokens.lengths), sizes, off)

    def over_rows(self, values: Tensor, how: str) -> Tensor:
        """Return the "max" or "mean" of each row: [sum of lengths] -> [rows]."""
        return torch.segment_reduce(values, how, lengths=self.tokens.lengths, unsafe=True)


def bounded(queries: Rounded, documents: Rounded) -> tuple[Tensor, Tensor]:
    """Return late scores of bfloat16 tokens and bounds of their errors to those of float32 tokens: [B, N], [B, N]."""
    scores, sizes = maxsim_sizes(queries.tokens, documents.tokens)
    longest, largest = (documents.over_rows(each, "max") for each in (documents.sizes, documents.off))
    size, off = (queries.over_rows(each, "mean") for each in (queries.sizes + queries.off, queries.off))
    # What rounding takes from tokens, and float32 from sums of d products and of Q maxima, here and in the exact score.
    added = queries.tokens.width + int(queries.tokens.lengths.max()) + 32
    error = torch.outer(off, longest) + torch.outer(size, largest + added * SUMS * longest)
    return scores, error.add_(sizes, alpha=HALF)  # and similarities come out rounded to bfloat16
