"""The joint loss of the plain terms against the formula written out in float64, and what it logs and refuses."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from formula import draw, formula_loss
from objectives import joint_loss

from smart_train.config.schema import HybridBlock, ObjectiveBlock, TermBlock
from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.losses.labels import Labels, negatives_mask
from smart_train.losses.similarity import hybrid_scores, hybrid_sum, late_scores, pooled_scores, scores

# (pooled, late, hybrid) weights and temperatures of the method's named settings; "convert" is two runs of this loss.
SETTINGS = {
    "pooled only": ((1, 0, 0), (0.05, 0.05, 0.05)),
    "late only": ((0, 1, 0), (0.05, 0.05, 0.05)),
    "adapter on a frozen backbone": ((0, 1, 0), (0.05, 0.03, 0.05)),
    "hybrid logits": ((0, 0, 1), (0.05, 0.05, 0.05)),
    "the usual next to the new": ((1, 1, 0), (0.05, 0.05, 0.05)),
    "all three, each with weight and temperature of its own": ((0.7, 1.3, 0.4), (0.02, 0.05, 0.1)),
}


def objective(weights, temperatures) -> ObjectiveBlock:
    return ObjectiveBlock(*(TermBlock(w, t) for w, t in zip(weights, temperatures, strict=True)))


def formula(queries, documents, relevance, positives, weights, temperatures, lambdas=(1.0, 1.0)) -> dict[str, float]:
    """The three terms of the joint loss in plain Python floats; known positives are not among a pair's negatives."""
    pooled = [[dot(q, x) for x in documents.pooled.tolist()] for q in queries.pooled.tolist()]
    late = [
        [math.fsum(max(dot(a, b) for b in x.tolist()) for a in q.tolist()) / len(q) for x in documents.tokens.rows()]
        for q in queries.tokens.rows()
    ]
    hybrid = [
        [lambdas[0] * p + lambdas[1] * s for p, s in zip(a, b, strict=True)] for a, b in zip(pooled, late, strict=True)
    ]
    terms = {}
    for name, matrix, weight, tau in zip(
        ("pooled", "late", "hybrid"), (pooled, late, hybrid), weights, temperatures, strict=True
    ):
        if not weight:
            continue
        losses = []
        for q, x in positives:
            members = [n for n in range(len(documents)) if n == x or not relevance[q][n]]
            denominator = math.fsum(math.exp((matrix[q][n] - matrix[q][x]) / tau) for n in members)
            losses.append(math.log(denominator))
        terms[name] = math.fsum(losses) / len(losses)
    terms["total"] = math.fsum(w * terms[n] for n, w in zip(("pooled", "late", "hybrid"), weights, strict=True) if w)
    return terms


def dot(a: list[float], b: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


BATCHES = {
    "in-batch negatives": ([3, 1, 5], [4, 9, 1], [(0, 0), (1, 1), (2, 2)], []),
    "hard negatives of unequal number": ([3, 1, 5], [4, 9, 1, 6, 2, 3], [(0, 0), (1, 1), (2, 2)], []),
    "several positives of one query, drawn together": ([3, 1], [4, 9, 1, 6], [(0, 0), (0, 2), (1, 1)], []),
    "known positives that were not drawn": ([3, 1, 5], [4, 9, 1, 6], [(0, 0), (1, 1), (2, 2)], [(0, 3), (1, 2)]),
    "two queries of one page": ([3, 2, 5], [4, 9], [(0, 0), (1, 0), (2, 1)], []),
    "rows in another order than queries": ([3, 1, 5], [4, 9, 1], [(0, 2), (2, 0), (1, 1)], []),
}


def batch(name: str, dtype=torch.float32):
    query_lengths, document_lengths, positives, more = BATCHES[name]
    relevance = torch.zeros(len(query_lengths), len(document_lengths), dtype=torch.bool)
    for q, x in [*positives, *more]:
        relevance[q, x] = True
    return (
        draw(query_lengths, 0, dtype=dtype),
        draw(document_lengths, 1, dtype=dtype),
        relevance,
        torch.tensor(positives),
    )


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", BATCHES)
def test_every_named_setting_is_a_point_of_the_loss(setting, name):
    queries, documents, relevance, positives = batch(name)
    weights, temperatures = SETTINGS[setting]
    loss = joint_loss(queries, documents, Labels(relevance, positives), objective(weights, temperatures), HybridBlock())
    expected = formula(queries, documents, relevance.tolist(), positives.tolist(), weights, temperatures)
    assert loss.total.item() == pytest.approx(expected["total"], abs=1e-5)
    logged = {n.removeprefix("loss/"): v.item() for n, v in loss.parts.items() if n.startswith("loss/")}
    assert logged == pytest.approx({n: v for n, v in expected.items() if n != "total"}, abs=1e-5)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_gradient_is_that_of_the_written_out_loss(setting):
    """Every tensor of both sides, against autograd of a float64 einsum over padded tokens."""
    queries, documents, relevance, positives = batch("known positives that were not drawn", torch.float64)
    weights, temperatures = SETTINGS[setting]
    leaves = [queries.pooled, documents.pooled, queries.tokens.values, documents.tokens.values]
    loss = joint_loss(queries, documents, Labels(relevance, positives), objective(weights, temperatures), HybridBlock())
    loss.total.backward()
    ours = [leaf.grad for leaf in leaves]

    for leaf in leaves:
        leaf.grad = None
    total = formula_loss(queries, documents, relevance, positives, objective(weights, temperatures))
    total.backward()
    assert loss.total.item() == pytest.approx(total.item(), abs=1e-12)
    for mine, leaf in zip(ours, leaves, strict=True):
        reference = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        torch.testing.assert_close(torch.zeros_like(leaf) if mine is None else mine, reference, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", [n for n in BATCHES if n != "in-batch negatives"])
def test_a_known_answer_is_never_a_negative(name):
    """Its vector may be anything: the other pairs of its query neither see nor move it."""
    queries, documents, relevance, positives = batch(name)
    where = objective((1, 1, 1), (0.05, 0.05, 0.05))
    before = joint_loss(queries, documents, Labels(relevance, positives), where, HybridBlock()).total
    for query, document in (relevance & ~drawn(relevance, positives)).nonzero().tolist():
        alone = positives[positives[:, 0] == query]
        loss = joint_loss(queries, documents, Labels(relevance, alone), where, HybridBlock()).total
        (gradient,) = torch.autograd.grad(loss, documents.pooled)
        assert gradient[document].abs().max() == 0
    unmasked = joint_loss(
        queries, documents, Labels(drawn(relevance, positives), positives), where, HybridBlock()
    ).total
    assert (before == unmasked) == bool((relevance == drawn(relevance, positives)).all())


def drawn(relevance: torch.Tensor, positives: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(relevance).index_put_(tuple(positives.T), torch.tensor(True))


def test_the_identity_mask_holds_the_own_document_and_every_unknown_one():
    relevance = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0]], dtype=torch.bool)
    mask = negatives_mask(relevance, torch.tensor([[0, 0], [0, 1], [1, 2]]))
    assert mask.int().tolist() == [[1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]]


def test_a_pair_alone_costs_nothing_and_has_a_finite_gradient():
    relevance, positives = torch.tensor([[True]]), torch.tensor([[0, 0]])
    queries, documents = draw([2], 0), draw([3], 1)
    loss = joint_loss(
        queries, documents, Labels(relevance, positives), objective((1, 1, 1), (0.05,) * 3), HybridBlock()
    )
    loss.total.backward()
    assert loss.total.item() == 0
    assert all(torch.isfinite(v.grad).all() for v in (queries.pooled, queries.tokens.values))


@pytest.mark.parametrize("lambdas", [(1.0, 1.0), (0.5, 4.0), (1.0, 0.0)])
def test_hybrid_weights_are_those_of_the_block(lambdas):
    queries, documents, relevance, positives = batch("hard negatives of unequal number")
    hybrid = HybridBlock(pooled=lambdas[0], late=lambdas[1])
    where = ((0, 0, 1), (0.05, 0.05, 0.07))
    ours = joint_loss(queries, documents, Labels(relevance, positives), objective(*where), hybrid)
    expected = formula(queries, documents, relevance.tolist(), positives.tolist(), *where, lambdas)
    assert ours.total.item() == pytest.approx(expected["total"], abs=1e-5)


def test_standardised_scores_are_shifted_and_scaled_before_they_are_weighted():
    pooled, late = torch.tensor([[0.9, 0.7]]), torch.tensor([[0.5, 0.2]])
    block = HybridBlock(2.0, 3.0, "standardised", pooled_mean=0.8, pooled_std=0.1, late_mean=0.3, late_std=0.2)
    expected = [[2 * (0.9 - 0.8) / 0.1 + 3 * (0.5 - 0.3) / 0.2, 2 * (0.7 - 0.8) / 0.1 + 3 * (0.2 - 0.3) / 0.2]]
    torch.testing.assert_close(hybrid_sum(pooled, late, block), torch.tensor(expected))
    torch.testing.assert_close(hybrid_scores(pooled, late, block), torch.tensor(expected) / 5)


@pytest.mark.parametrize("weights", [(1.0, 8.0), (1.0, 1.0), (0.0, 3.0), (2.5, 0.0), (1e-3, 1e3), (0.0, 0.0)])
def test_a_hybrid_score_is_a_mean_of_cosines_and_ranks_as_the_weighted_sum(weights):
    generator = torch.Generator().manual_seed(1)
    pooled, late = (torch.rand(5, 40, generator=generator) * 2 - 1 for _ in range(2))
    pooled[0, 0] = late[0, 0] = 1.0
    block = HybridBlock(*weights)
    found, plain = hybrid_scores(pooled, late, block), hybrid_sum(pooled, late, block)
    assert float(found.abs().max()) <= 1 + 1e-6 and float(found[0, 0]) == pytest.approx(1.0 if any(weights) else 0.0)
    torch.testing.assert_close(found * (sum(weights) or 1.0), plain)
    assert torch.equal(found.argsort(1), plain.argsort(1))


def test_accuracy_and_margin_are_counted_against_the_negatives_alone():
    """Query 0 beats its negatives by 0.1, query 1 loses by 0.2; query 0's second known positive does not count."""
    pooled_documents = torch.eye(4)
    pooled_queries = torch.tensor([[0.6, 0.9, 0.5, 0.0], [0.7, 0.1, 0.5, 0.0]])
    tokens = Tokens(torch.eye(4), torch.ones(4, dtype=torch.int64))
    queries = Embeddings(pooled_queries, tokens.select([0, 1]))
    documents = Embeddings(pooled_documents, tokens)
    relevance = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0]], dtype=torch.bool)
    positives = torch.tensor([[0, 0], [1, 2]])
    parts = joint_loss(
        queries, documents, Labels(relevance, positives), objective((1, 0, 0), (0.05,) * 3), HybridBlock()
    ).parts
    assert parts["accuracy/pooled"].item() == pytest.approx(0.5)
    assert parts["margin/pooled"].item() == pytest.approx((0.1 - 0.2) / 2, abs=1e-6)


def test_terms_that_are_off_are_neither_computed_nor_logged():
    queries, documents, relevance, positives = batch("in-batch negatives")
    loss = joint_loss(
        queries, documents, Labels(relevance, positives), objective((1, 0, 0), (0.05,) * 3), HybridBlock()
    )
    assert set(loss.parts) == {"loss/pooled", "accuracy/pooled", "margin/pooled", "masked", "negatives"}
    loss.total.backward()
    assert queries.tokens.values.grad is None


def test_no_term_at_all_is_refused():
    queries, documents, relevance, positives = batch("in-batch negatives")
    with pytest.raises(ValueError, match="every weight is 0"):
        joint_loss(queries, documents, Labels(relevance, positives), objective((0, 0, 0), (0.05,) * 3), HybridBlock())


def test_matryoshka_is_the_mean_of_the_term_over_the_cuts():
    """Each cut is normalised again, then costs as if it were the whole width."""
    queries, documents, relevance, positives = batch("hard negatives of unequal number")
    weights, taus = (1, 1, 0), (0.05, 0.04, 1)
    ours = joint_loss(
        queries,
        documents,
        Labels(relevance, positives),
        objective(weights, taus),
        HybridBlock(),
        pooled_widths=[4],
        token_widths=[2, 4],
    )

    def cut(e: Embeddings, pooled: int, token: int) -> Embeddings:
        values = F.normalize(e.tokens.values[:, :token], dim=-1)
        return Embeddings(F.normalize(e.pooled[:, :pooled], dim=-1), Tokens(values, e.tokens.lengths))

    def cost(pooled: int, token: int) -> dict[str, float]:
        q, x = cut(queries, pooled, token), cut(documents, pooled, token)
        return formula(q, x, relevance.tolist(), positives.tolist(), weights, taus)

    pooled = (cost(12, 8)["pooled"] + cost(4, 8)["pooled"]) / 2
    late = (cost(12, 8)["late"] + cost(12, 2)["late"] + cost(12, 4)["late"]) / 3
    assert ours.parts["loss/pooled"].item() == pytest.approx(pooled, abs=1e-5)
    assert ours.parts["loss/late"].item() == pytest.approx(late, abs=1e-5)
    assert ours.total.item() == pytest.approx(pooled + late, abs=1e-5)


def test_half_precision_embeddings_and_autocast_do_not_coarsen_the_loss():
    """The vectors are rounded once; sums, scores and softmax are not."""
    queries, documents, relevance, positives = batch("hard negatives of unequal number", torch.bfloat16)
    where = ((1, 1, 1), (0.02, 0.02, 0.02))
    wide = formula(queries, documents, relevance.tolist(), positives.tolist(), *where)
    with torch.autocast("cpu", torch.bfloat16):
        loss = joint_loss(queries, documents, Labels(relevance, positives), objective(*where), HybridBlock()).total
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(wide["total"], rel=0.03)
    pooled = pooled_scores(queries.pooled, documents.pooled)
    torch.testing.assert_close(
        pooled.double(), queries.pooled.double() @ documents.pooled.double().T, atol=1e-6, rtol=0
    )


def test_autocast_does_not_reach_a_score():
    queries, documents = draw([2, 3], 0), draw([3, 1, 4], 1)
    with torch.autocast("cpu", torch.bfloat16):
        found = pooled_scores(queries.pooled, documents.pooled), late_scores(queries.tokens, documents.tokens)
    expected = queries.pooled @ documents.pooled.T, late_scores(queries.tokens, documents.tokens)
    for ours, wide in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, wide, atol=1e-6, rtol=0)


def test_scores_by_mode_are_the_same_functions_and_other_words_are_refused():
    queries, documents = draw([2, 3], 0), draw([3, 1, 4], 1)
    block = HybridBlock(pooled=1.0, late=2.0)
    by = partial(scores, queries, documents, hybrid=block)
    pooled, late = pooled_scores(queries.pooled, documents.pooled), late_scores(queries.tokens, documents.tokens)
    torch.testing.assert_close(by(mode="pooled"), pooled)
    torch.testing.assert_close(by(mode="late"), late)
    torch.testing.assert_close(by(mode="hybrid"), (pooled + 2 * late) / 3)
    with pytest.raises(ValueError, match="dense"):
        by(mode="dense")
