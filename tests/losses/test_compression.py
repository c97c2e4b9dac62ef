"""Token pooling and rounding against plain loops, and their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from formula import draw
from objectives import joint_loss
from scipy.cluster.hierarchy import fcluster, linkage

from smart_train.config.schema import CompressionBlock, HybridBlock, ObjectiveBlock, TermBlock
from smart_train.core.embeddings import Batch, Embeddings, KnownPositives, Tokens
from smart_train.core.errors import UsageError
from smart_train.losses.compression import drawn, pooled_tokens, rounded
from smart_train.losses.labels import Labels
from smart_train.training.loss_step import LossStep

SIZES = [1, 2, 7, 12, 5]


def rows(sizes=SIZES, seed: int = 0, width: int = 8, dtype=torch.float64) -> Tokens:
    values = torch.randn(sum(sizes), width, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return Tokens(F.normalize(values, dim=1), torch.tensor(sizes))


@pytest.mark.parametrize("factor", [2, 3, 5, 50])
def test_hierarchical_pooling_takes_the_means_of_wards_clusters(factor):
    found = pooled_tokens(rows(), factor)
    for one, row, size in zip(found.rows(), rows().rows(), SIZES, strict=True):
        wanted = -(-size // factor)
        names = fcluster(linkage(row.numpy(), "ward"), wanted, "maxclust") if size > 1 else np.array([1])
        seen = list(dict.fromkeys(names.tolist()))
        means = [row[torch.from_numpy(names == name)].mean(0) for name in seen]
        expected = torch.stack([mean / mean.norm() for mean in means])
        torch.testing.assert_close(one, expected)
        assert len(one) <= wanted


def kmeans_by_hand(row: torch.Tensor, factor: int) -> torch.Tensor:
    wanted = -(-len(row) // factor)
    centres = [row[k * len(row) // wanted].clone() for k in range(wanted)]
    for _ in range(8):
        nearest = [max(range(wanted), key=lambda k: float(token.float() @ centres[k].float())) for token in row]
        for k in range(wanted):
            members = [token for token, name in zip(row, nearest, strict=True) if name == k]
            if members:
                centres[k] = F.normalize(torch.stack(members).mean(0), dim=0)
    means = [
        torch.stack([t for t, n in zip(row, nearest, strict=True) if n == k]).mean(0) for k in dict.fromkeys(nearest)
    ]
    return F.normalize(torch.stack(means), dim=1)


@pytest.mark.parametrize("factor", [2, 3, 50])
def test_kmeans_of_all_rows_at_once_is_kmeans_of_each_row(factor):
    found = pooled_tokens(rows(), factor, "kmeans")
    for one, row in zip(found.rows(), rows().rows(), strict=True):
        torch.testing.assert_close(one, kmeans_by_hand(row, factor))


@pytest.mark.parametrize("method", ["hierarchical", "kmeans"])
def test_a_row_is_pooled_alone_as_it_is_beside_others(method):
    together = list(pooled_tokens(rows(), 2, method).rows())
    for number, row in enumerate(rows().rows()):
        alone = pooled_tokens(Tokens(row, torch.tensor([len(row)])), 2, method)
        torch.testing.assert_close(alone.values, together[number])


@pytest.mark.parametrize("method", ["hierarchical", "kmeans"])
def test_gradients_are_those_of_the_means_with_the_clusters_held(method):
    tokens = rows([5, 4])
    tokens.values.requires_grad_(True)
    pooled = pooled_tokens(tokens, 2, method)
    weights = torch.randn(pooled.values.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (pooled.values * weights).sum().backward()
    step = 1e-6
    for place in [(0, 0), (3, 5), (8, 7)]:
        moved = [tokens.values.detach().clone() for _ in range(2)]
        moved[0][place] += step
        moved[1][place] -= step
        values = [(pooled_tokens(Tokens(m, tokens.lengths), 2, method).values * weights).sum() for m in moved]
        assert tokens.values.grad[place].item() == pytest.approx(
            ((values[0] - values[1]) / (2 * step)).item(), abs=1e-6
        )


def test_equal_tokens_become_one_and_nothing_is_lost():
    row = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]), dim=1)
    for method in ("hierarchical", "kmeans"):
        found = pooled_tokens(Tokens(row, torch.tensor([4])), 2, method)
        assert sorted(found.values.tolist()) == [[0.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize(("bits", "steps"), [(8, 127), (4, 7)])
def test_rounding_keeps_each_number_within_half_a_step_and_lets_gradients_through(bits, steps):
    tokens = rows()
    tokens.values.requires_grad_(True)
    found = rounded(tokens, bits)
    scale = tokens.values.detach().abs().amax(1, keepdim=True) / steps
    assert ((found.values - tokens.values).abs() <= scale / 2 + 1e-7).all()
    whole = found.values.detach() / scale
    torch.testing.assert_close(whole, whole.round(), atol=1e-4, rtol=0)
    (found.values * 3).sum().backward()
    assert (tokens.values.grad == 3).all()
    assert rounded(tokens, 32) is tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vectors_keep_their_dtype_and_length(dtype):
    for method in ("hierarchical", "kmeans"):
        found = pooled_tokens(rows(dtype=torch.float32).to(dtype), 3, method).values
        assert found.dtype == dtype and (found.float().norm(dim=1) - 1).abs().max() < 1e-2


def test_draws_depend_on_the_share_of_training_alone_and_reach_every_choice():
    block = CompressionBlock([1, 2, 4], "kmeans", [32, 8])
    draws = [drawn(block, step / 40) for step in range(40)]
    assert draws == [drawn(CompressionBlock([1, 2, 4], "kmeans", [32, 8]), step / 40) for step in range(40)]
    assert {factor for factor, _ in draws} == {1, 2, 4} and {bits for _, bits in draws} == {32, 8}
    assert drawn(CompressionBlock([], "kmeans", []), 0.5) == (1, 32)


def test_the_loss_compares_compressed_documents_with_whole_queries():
    queries, documents = draw([3, 2], 0, dtype=torch.float64), draw([6, 5], 1, dtype=torch.float64)
    keys = torch.tensor([[101, 201, 0, -1], [102, 202, 0, -1]])
    known = KnownPositives(keys, torch.ones(2), torch.tensor([1, 1]))
    batch = Batch([], [], torch.tensor([1, 2]), keys, known, torch.tensor([[0, 0], [1, 1]]))
    step = LossStep(ObjectiveBlock(compression=CompressionBlock([2], "kmeans", [8])), HybridBlock())
    small = Embeddings(documents.pooled, rounded(pooled_tokens(documents.tokens, 2, "kmeans"), 8))
    labels = Labels(torch.eye(2, dtype=torch.bool), torch.tensor([[0, 0], [1, 1]]))
    expected = joint_loss(queries, small, labels, ObjectiveBlock(), HybridBlock()).total
    torch.testing.assert_close(step.loss(Embeddings.cat([queries, documents]), batch).total, expected)
    pooled_alone = ObjectiveBlock(late=TermBlock(0.0), compression=CompressionBlock([2], "kmeans"))
    both = Embeddings.cat([queries, documents])
    plain = LossStep(ObjectiveBlock(late=TermBlock(0.0)), HybridBlock()).loss(both, batch).total
    torch.testing.assert_close(LossStep(pooled_alone, HybridBlock()).loss(both, batch).total, plain)


@pytest.mark.parametrize(("factor", "method"), [(0, "kmeans"), (-2, "hierarchical"), (2, "other")])
def test_what_cannot_be_pooled_or_rounded_is_refused(factor, method):
    with pytest.raises(UsageError, match="cannot be pooled"):
        pooled_tokens(rows(), factor, method)
    with pytest.raises(UsageError, match="cannot be rounded to 3 bits"):
        rounded(rows(), 3)
