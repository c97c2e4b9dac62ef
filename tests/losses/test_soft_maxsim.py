"""Soft and top-k late scores against plain loops in float64, their limits, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from smart_train.core.embeddings import Tokens
from smart_train.core.errors import UsageError
from smart_train.losses import maxsim_torch
from smart_train.losses.maxsim import maxsim
from smart_train.losses.soft_maxsim import soft_maxsim, topk_maxsim

QUERIES, DOCUMENTS = [1, 3, 2], [4, 1, 7, 2]


def rows(sizes: list[int], seed: int, dtype=torch.float64) -> Tokens:
    values = torch.randn(sum(sizes), 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Tokens(F.normalize(values, dim=1).to(dtype).requires_grad_(True), torch.tensor(sizes))


def plain(queries: Tokens, documents: Tokens, reduce) -> torch.Tensor:
    """Differentiable loops: reduce takes the similarities of one query token with a document's tokens."""
    table = []
    for query in queries.rows():
        row = []
        for document in documents.rows():
            row.append(torch.stack([reduce(document @ token) for token in query]).mean())
        table.append(torch.stack(row))
    return torch.stack(table)


def soft(tau):
    return lambda similar: tau * (torch.exp(similar / tau).mean()).log()


def top(k):
    return lambda similar: similar.sort(descending=True).values[:k].mean()


CASES = [(f"soft {tau}", lambda q, x, tau=tau: soft_maxsim(q, x, tau), soft(tau)) for tau in (0.05, 0.5)]
CASES += [(f"top {k}", lambda q, x, k=k: topk_maxsim(q, x, k), top(k)) for k in (1, 2, 5)]


@pytest.mark.parametrize("tile", [None, 64])  # 64 bytes: a few query tokens a tile
@pytest.mark.parametrize(("ours", "theirs"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_scores_and_gradients_are_those_of_plain_loops(ours, theirs, tile, monkeypatch):
    if tile:
        monkeypatch.setattr(maxsim_torch, "TILE", {"cpu": tile, "gpu": tile})
        monkeypatch.setattr("smart_train.losses.soft_maxsim.TILE", {"cpu": tile, "gpu": tile})
        monkeypatch.setattr("smart_train.losses.soft_maxsim.FEWEST_ROWS", 1)
    queries, documents = rows(QUERIES, 0), rows(DOCUMENTS, 1)
    weights = torch.randn(len(QUERIES), len(DOCUMENTS), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found, expected = ours(queries, documents), plain(queries, documents, theirs)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    leaves = [queries.values, documents.values]
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), leaves),
        torch.autograd.grad((expected * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_the_limits_are_maxsim_and_the_mean():
    queries, documents = rows(QUERIES, 0), rows(DOCUMENTS, 1)
    exact = maxsim(queries, documents)
    torch.testing.assert_close(topk_maxsim(queries, documents, 1), exact)
    torch.testing.assert_close(soft_maxsim(queries, documents, 1e-4), exact, atol=1e-3, rtol=0)
    mean = plain(queries, documents, torch.mean)
    torch.testing.assert_close(topk_maxsim(queries, documents, 100), mean)
    torch.testing.assert_close(soft_maxsim(queries, documents, 1e4), mean, atol=1e-3, rtol=0)


def test_a_document_twice_as_long_by_repetition_scores_the_same():
    queries, documents = rows(QUERIES, 0), rows([4], 1)
    twice = Tokens(documents.values.repeat(2, 1), torch.tensor([8]))
    for tau in (0.02, 0.3):
        torch.testing.assert_close(soft_maxsim(queries, twice, tau), soft_maxsim(queries, documents, tau))


def test_a_small_temperature_neither_overflows_nor_loses_the_gradient():
    queries, documents = rows(QUERIES, 0, torch.float32), rows(DOCUMENTS, 1, torch.float32)
    total = soft_maxsim(queries, documents, 1e-5).sum()
    total.backward()
    assert math.isfinite(total.item()) and documents.values.grad.isfinite().all() and documents.values.grad.any()


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan")])
def test_a_temperature_or_k_without_meaning_is_refused(wrong):
    with pytest.raises(UsageError, match="above 0"):
        soft_maxsim(rows([1], 0), rows([1], 1), wrong)
    with pytest.raises(UsageError, match="k of 1 or more"):
        topk_maxsim(rows([1], 0), rows([1], 1), 0)
    with pytest.raises(ValueError, match="no token"):
        soft_maxsim(rows([1], 0), Tokens(torch.zeros(1, 6), torch.tensor([1, 0])), 0.1)
