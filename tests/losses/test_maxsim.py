"""MaxSim on ragged tokens against the formula written out in float64 loops, forward and backward."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from late import draw, gradients, leaf, plain

from smart_train.core.embeddings import Tokens
from smart_train.losses.maxsim import maxsim

CASES = {
    "ragged": ([3, 1, 5], [4, 9, 1, 6, 2]),
    "one token a row": ([1, 1, 1], [1, 1, 1, 1]),
    "one query, one document": ([7], [11]),
    "one long document among short ones": ([2, 3], [1, 70, 2, 33, 32, 64]),
    "equal lengths": ([4, 4], [8, 8, 8]),
}


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_the_formula(case):
    queries, documents = draw(CASES[case][0], 8, 0), draw(CASES[case][1], 8, 1)
    found = maxsim(queries, documents)
    assert found.shape == (len(queries), len(documents)) and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), plain(queries, documents), atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_autograds_of_the_formula(case):
    queries, documents = draw(CASES[case][0], 8, 0, torch.float64), draw(CASES[case][1], 8, 1, torch.float64)
    weights = torch.randn(len(queries), len(documents), dtype=torch.float64)
    ours, theirs = gradients(maxsim, queries, documents, weights), gradients(plain, queries, documents, weights)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-12, rtol=0)


def test_of_equal_maxima_one_takes_the_whole_gradient():
    """The document says the same token three times: which of them is left open, the sum is not."""
    queries = leaf(draw([1], 4, 0, torch.float64))
    token = draw([1], 4, 1, torch.float64).values
    documents = leaf(Tokens(token.repeat(3, 1), torch.tensor([3])))
    maxsim(queries, documents).sum().backward()
    taken = documents.values.grad.abs().sum(1) > 0
    assert taken.sum() == 1
    torch.testing.assert_close(documents.values.grad.sum(0), queries.values[0].detach())
    torch.testing.assert_close(queries.values.grad[0], token[0])


def test_a_token_that_never_wins_gets_no_gradient():
    basis = torch.eye(3, dtype=torch.float64)
    queries = leaf(Tokens(basis[:1], torch.tensor([1])))
    documents = leaf(Tokens(torch.stack([basis[0], basis[1]]), torch.tensor([2])))
    maxsim(queries, documents).sum().backward()
    assert torch.equal(documents.values.grad, torch.stack([basis[0], torch.zeros(3, dtype=torch.float64)]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tokens_are_summed_in_float32(dtype):
    """64 query tokens of one document: a bfloat16 sum has steps of 1/4 at 64, the mean here must be exact to the
    rounding of each cosine alone."""
    queries, documents = draw([64, 40], 16, 0, dtype), draw([30, 50, 7], 16, 1, dtype)
    found = maxsim(queries, documents)
    assert found.dtype == torch.float32
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), plain(queries, documents), atol=step, rtol=0)
    assert len(found.unique()) == found.numel()


def test_sides_of_two_dtypes_are_scored_in_the_wider_one():
    queries, documents = draw([4, 2], 16, 0, torch.float32), draw([3, 5, 7], 16, 1, torch.float16)
    torch.testing.assert_close(maxsim(queries, documents).double(), plain(queries, documents), atol=1e-6, rtol=0)


def test_half_precision_gradients_point_where_float64_does():
    queries, documents = draw([5, 3], 16, 0, torch.bfloat16), draw([6, 9, 2], 16, 1, torch.bfloat16)
    weights = torch.rand(2, 3)
    ours = gradients(maxsim, queries, documents, weights)
    wide = [t.to(torch.float64) for t in (queries, documents)]
    for mine, reference in zip(ours, gradients(plain, *wide, weights.double()), strict=True):
        assert mine.dtype == torch.bfloat16
        cosine = F.cosine_similarity(mine.double().flatten(), reference.flatten(), dim=0)
        assert cosine > 0.999
        torch.testing.assert_close(mine.double(), reference, atol=0.02, rtol=0.02)


def test_autocast_does_not_round_the_scores():
    queries, documents = draw([4, 6], 32, 0), draw([9, 5, 3], 32, 1)
    with torch.autocast("cpu", torch.bfloat16):
        found = maxsim(queries, documents)
    torch.testing.assert_close(found, maxsim(queries, documents), atol=0, rtol=0)


def test_a_gradient_that_is_an_expanded_view_is_taken():
    """``scores.sum()`` hands backward a stride-0 tensor; ``embedding_bag`` wants real ones."""
    queries, documents = leaf(draw([2, 3], 6, 0)), leaf(draw([4, 1], 6, 1))
    maxsim(queries, documents).sum().backward()
    reference = gradients(plain, queries, documents, torch.ones(2, 2))
    torch.testing.assert_close(queries.values.grad, reference[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(documents.values.grad, reference[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("side", ["queries", "documents"])
def test_one_side_may_be_frozen(side):
    queries, documents = draw([2, 3], 6, 0), draw([4, 1], 6, 1)
    reference = gradients(plain, queries, documents, torch.ones(2, 2))
    if side == "queries":
        documents = leaf(documents)
        maxsim(queries, documents).sum().backward()
        torch.testing.assert_close(documents.values.grad, reference[1], atol=1e-6, rtol=0)
        assert queries.values.grad is None
    else:
        queries = leaf(queries)
        maxsim(queries, documents).sum().backward()
        torch.testing.assert_close(queries.values.grad, reference[0], atol=1e-6, rtol=0)
        assert documents.values.grad is None


def test_the_batch_never_changes_a_score():
    """Every score of a batch equals the score of its query and document alone, and of any other company."""
    queries, documents = draw([5, 1, 8, 2], 16, 0), draw([40, 3, 90, 1, 33, 64, 7], 16, 1)
    whole = maxsim(queries, documents)
    for q, x in itertools.product(range(len(queries)), range(len(documents))):
        alone = maxsim(queries.select([q]), documents.select([x]))
        torch.testing.assert_close(alone[0, 0], whole[q, x], atol=1e-6, rtol=0)
    order = torch.tensor([6, 2, 0, 4, 1])
    torch.testing.assert_close(maxsim(queries, documents.select(order)), whole[:, order], atol=1e-6, rtol=0)


def test_a_score_lies_between_minus_one_and_one_and_a_row_scores_one_with_itself():
    rows = draw([5, 1, 8, 2], 16, 0)
    found = maxsim(rows, rows)
    torch.testing.assert_close(found.diagonal(), torch.ones(4), atol=1e-6, rtol=0)
    assert found.abs().max() <= 1 + 1e-6


@pytest.mark.parametrize("rows", [([], [2]), ([2, 2], []), ([], [])])
def test_no_rows_give_an_empty_matrix_and_no_gradient(rows):
    """A rank whose share is empty still takes part in the backward."""
    queries, documents = leaf(draw(rows[0], 8, 0)), leaf(draw(rows[1], 8, 1))
    found = maxsim(queries, documents)
    assert found.shape == (len(rows[0]), len(rows[1])) and found.dtype == torch.float32
    found.sum().backward()
    assert not queries.values.grad.any() and not documents.values.grad.any()


def test_a_row_without_tokens_is_refused_by_number():
    with pytest.raises(ValueError, match="document 1 has no token"):
        maxsim(draw([2], 8, 0), Tokens(torch.ones(3, 8), torch.tensor([3, 0])))


def test_lengths_that_do_not_fit_the_values_are_refused():
    with pytest.raises(ValueError, match="query lengths add up to 3, but there are 2"):
        maxsim(Tokens(torch.ones(2, 8), torch.tensor([3])), draw([2], 8, 1))


def test_different_widths_are_refused_with_both_named():
    with pytest.raises(ValueError, match="8 wide.*16"):
        maxsim(draw([2], 8, 0), draw([2], 16, 1))
