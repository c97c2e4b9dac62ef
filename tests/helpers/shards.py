"""Rows of a tiny task that lie on up to four ranks: its loss over real ranks, and in one process that has everything.

Unequal numbers of queries, documents, tokens and pairs, and losses written out over all documents, free of the
package's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.distributed import gather as room
from smart_train.distributed.gather import Gather

IN, D, WIDTH, TAU = 5, 6, 4, 0.1
DOCUMENTS = (3, 5, 2, 4)  # rows, by rank
LENGTHS = ([2, 1, 4], [1, 3, 1, 6, 2], [5, 5], [1, 1, 2, 3])
PAIRS = ([(0, 0), (1, 2)], [(0, 1)], [(0, 0), (0, 1), (1, 1), (2, 0), (2, 1)], [(1, 3), (0, 0), (2, 2)])
QUERIES = (2, 1, 3, 3)


class Encoder(nn.Module):
    """Rows and tokens through a linear layer each; the same weights on every rank."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pooled, self.tokens = nn.Linear(IN, D), nn.Linear(IN, WIDTH)
        self.to(dtype)

    def forward(self, rows: Tensor, tokens: Tokens) -> Embeddings:
        values = F.normalize(self.tokens(tokens.values), dim=-1)
        return Embeddings(F.normalize(self.pooled(rows), dim=-1), Tokens(values, tokens.lengths))


@dataclass
class Shard:
    """What one rank has: inputs of its queries and documents, and its drawn pairs of them."""

    queries: tuple[Tensor, Tokens]
    documents: tuple[Tensor, Tokens]
    pairs: list[tuple[int, int]]


def shard(rank: int, dtype: torch.dtype) -> Shard:
    generator = torch.Generator().manual_seed(100 + rank)

    def rows(lengths: list[int]) -> tuple[Tensor, Tokens]:
        draw = torch.randn(len(lengths) + sum(lengths), IN, generator=generator, dtype=torch.float64).to(dtype)
        return draw[: len(lengths)], Tokens(draw[len(lengths) :], torch.tensor(lengths, dtype=torch.int64))

    return Shard(rows([1 + (rank + q) % 3 for q in range(QUERIES[rank])]), rows(LENGTHS[rank]), PAIRS[rank])


def joined(parts: list[tuple[Tensor, Tokens]]) -> tuple[Tensor, Tokens]:
    return torch.cat([rows for rows, _ in parts]), Tokens.cat(tokens for _, tokens in parts)


def scores(queries: Embeddings, documents: Embeddings) -> Tensor:
    """Pooled plus late, the late one pair by pair."""
    late = [
        torch.stack([torch.einsum("qd,td->qt", q, x).amax(1).mean() for x in documents.tokens.rows()])
        for q in queries.tokens.rows()
    ]
    return (torch.einsum("bd,nd->bn", queries.pooled, documents.pooled) + torch.stack(late)) / TAU


def softmax_loss(logits: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    return torch.stack([logits[q].exp().sum().log() - logits[q, x] for q, x in pairs]).mean()


def symmetric_loss(logits: Tensor, per_rank: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    """The other direction: the query among all ranks' queries; per_rank [W, N]: their sums, in logarithms."""
    return torch.stack([per_rank.logsumexp(0)[x] - logits[q, x] for q, x in pairs]).mean()


def gradients(encoder: Encoder) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in encoder.parameters()]


def averaged(encoder: Encoder, loss: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Mean over ranks of the loss and of the gradients, as DDP takes it."""
    loss.backward()
    found = [loss.detach().clone(), *gradients(encoder)]
    for tensor in found:
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return found[0], found[1:]


def on_ranks(gather: Gather, dtype: torch.dtype, symmetric: bool) -> tuple[Tensor, list[Tensor]]:
    mine, encoder = shard(dist.get_rank(), dtype), Encoder(dtype)
    documents, own = gather.documents(encoder(*mine.documents))
    logits = scores(encoder(*mine.queries), documents)
    pairs = [(q, own.start + x) for q, x in mine.pairs]
    loss = softmax_loss(logits, pairs)
    if symmetric:
        loss = loss + symmetric_loss(logits, gather.columns(logits.logsumexp(0)), pairs)
    (share,) = gather.shares(len(pairs))
    return averaged(encoder, share * loss)


def in_one_process(groups: list[list[int]], dtype: torch.dtype, symmetric: bool) -> tuple[Tensor, list[Tensor]]:
    """The mean over all pairs, a pair's negatives being the documents of its ranks' group."""
    encoder, total, count = Encoder(dtype), torch.zeros((), dtype=dtype), sum(len(PAIRS[r]) for g in groups for r in g)
    for group in groups:
        shards = [shard(rank, dtype) for rank in group]
        logits = scores(encoder(*joined([s.queries for s in shards])), encoder(*joined([s.documents for s in shards])))
        first = [(sum(QUERIES[r] for r in group[:i]), sum(DOCUMENTS[r] for r in group[:i])) for i in range(len(group))]
        pairs = [(a + q, b + x) for (a, b), s in zip(first, shards, strict=True) for q, x in s.pairs]
        loss = softmax_loss(logits, pairs)
        if symmetric:
            loss = loss + symmetric_loss(logits, logits.logsumexp(0, keepdim=True), pairs)
        total = total + loss * len(pairs) / count
    total.backward()
    return total.detach(), gradients(encoder)


def pages(which: list[int], seed: int) -> tuple[Tensor, Tokens]:
    """Inputs that depend on what is asked for alone: the same page is the same on every rank."""
    drawn = [torch.randn(3, IN, generator=torch.Generator().manual_seed(seed * 100 + w)).double() for w in which]
    return torch.stack([d[0] for d in drawn]), Tokens(torch.cat([d[1:] for d in drawn]), torch.full((len(which),), 2))


def close(found: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]], tolerance: float) -> None:
    """Raises AssertionError where a loss or a gradient is further off than ``tolerance`` times its largest entry."""
    for mine, reference in zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True):
        largest = reference.abs().max().item()
        assert largest > 1e-3  # nothing is equal because it is nothing
        torch.testing.assert_close(mine, reference.to(mine.dtype), rtol=0, atol=tolerance * largest)


@contextmanager
def slices(size: int) -> Iterator[list[int]]:
    """Collectives of so many bytes; what each of them brought so far (a 0 first)."""
    brought, collective = [0], room._all_gather

    def measured(into: Tensor, own: Tensor, group: object) -> None:
        brought.append(into.numel() * into.element_size())
        collective(into, own, group)

    with mock.patch.object(room, "SLICE", size), mock.patch.object(room, "_all_gather", measured):
        yield brought
