"""Regularizers against padded einsum in float64: ragged rows, blocks of any size, both shapes of the inner product."""

from __future__ import annotations

import pytest
import torch
from formula import draw
from objectives import joint_loss

from smart_train.config.schema import HybridBlock, ObjectiveBlock, TermBlock
from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.losses import regularizers
from smart_train.losses.labels import Labels
from smart_train.losses.regularizers import diversity, overlap

LENGTHS = [3, 1, 12, 7, 1, 5]


def by_einsum(rows: Embeddings) -> tuple[torch.Tensor, torch.Tensor]:
    parts = rows.tokens.values.split(rows.tokens.lengths.tolist())
    x = torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
    cosines = torch.einsum("rid,rjd->rij", x, x).square()
    apart = cosines.sum((1, 2)) - torch.einsum("rii->r", cosines)
    pairs = rows.tokens.lengths * (rows.tokens.lengths - 1)
    with_pooled = torch.einsum("rid,rd->ri", x, rows.pooled).square().sum(1) / rows.tokens.lengths
    return (apart / pairs.clamp(min=1)).mean(), with_pooled.mean()


@pytest.mark.parametrize("block", [1, 100, 1 << 22])
@pytest.mark.parametrize("width", [4, 16])
def test_both_are_their_formula_in_value_and_gradient_whatever_the_block(width, block, monkeypatch):
    """Width 4 is narrower than the longest rows, 16 wider than all of them."""
    monkeypatch.setattr(regularizers, "BLOCK", block)
    rows = draw(LENGTHS, 0, pooled=width, width=width, dtype=torch.float64)
    of = (rows.pooled, rows.tokens.values)
    for ours, theirs in zip((diversity(rows.tokens), overlap(rows)), by_einsum(rows), strict=True):
        assert ours.item() == pytest.approx(theirs.item(), abs=1e-14)
        found, expected = (
            torch.autograd.grad(total, of, retain_graph=True, allow_unused=True) for total in (ours, theirs)
        )
        for mine, other in zip(found, expected, strict=True):
            assert (mine is None) == (other is None)
            if mine is not None:
                torch.testing.assert_close(mine, other, atol=1e-14, rtol=0)


def test_gradcheck_of_both():
    rows = draw([3, 1, 5], 0, pooled=4, width=4, dtype=torch.float64)
    lengths = rows.tokens.lengths
    assert torch.autograd.gradcheck(lambda values: diversity(Tokens(values, lengths)), rows.tokens.values)
    both = (rows.pooled, rows.tokens.values)
    assert torch.autograd.gradcheck(lambda pooled, values: overlap(Embeddings(pooled, Tokens(values, lengths))), both)


def test_tokens_that_say_the_same_cost_one_and_orthogonal_ones_nothing():
    same = Tokens(torch.eye(4)[0].expand(6, 4).contiguous(), torch.tensor([4, 2]))
    assert diversity(same).item() == pytest.approx(1)
    assert diversity(Tokens(torch.eye(4), torch.tensor([3, 1]))).item() == 0
    assert overlap(Embeddings(torch.eye(4)[:2], same)).item() == pytest.approx(0.5)


def test_a_row_of_one_token_costs_nothing_and_moves_nothing():
    rows = draw([1, 1], 0)
    cost = diversity(rows.tokens)
    cost.backward()
    assert cost.item() == 0
    assert rows.tokens.values.grad.abs().max() == 0


def test_sums_are_wide_where_tokens_are_bfloat16_and_autocast_is_on():
    rows = draw(LENGTHS, 0, pooled=16, width=16, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = (diversity(rows.tokens), overlap(rows))
        sum(found).backward()
    for ours, expected in zip(found, by_einsum(rows.to(torch.float64)), strict=True):
        assert ours.dtype == torch.float32
        assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    assert rows.tokens.values.grad.dtype == torch.bfloat16


def test_nothing_of_a_row_by_row_product_outlives_the_forward():
    """What autograd keeps is the input alone: padding and [T, T] products are formed again."""
    kept = []
    rows = draw([200, 3], 0, pooled=8, width=8)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        (diversity(rows.tokens) + overlap(rows)).backward()
    assert max(kept) <= rows.tokens.values.numel()


def test_overlap_of_unequal_widths_is_refused_with_both_named():
    with pytest.raises(ValueError, match="overlap.*12 and 8 wide; write overlap: 0"):
        overlap(draw([2], 0, pooled=12, width=8))


def test_of_the_gathered_documents_only_the_own_rows_count():
    queries, documents = draw([3, 2], 0, 8, 8), draw([4, 2, 5, 3], 1, 8, 8)
    off = TermBlock(0.0)
    objective = ObjectiveBlock(TermBlock(1.0), off, off, diversity=1.0, overlap=1.0)
    labels = Labels(torch.eye(2, 4, dtype=torch.bool).roll(1, 1), torch.tensor([[0, 1], [1, 2]]), own=slice(1, 3))
    parts = joint_loss(queries, documents, labels, objective, HybridBlock()).parts
    own = documents.select([1, 2])
    assert parts["loss/diversity"].item() == pytest.approx(
        ((diversity(queries.tokens) + diversity(own.tokens)) / 2).item()
    )
    assert parts["loss/overlap"].item() == pytest.approx(((overlap(queries) + overlap(own)) / 2).item())
