"""Every option of the objective: against the formula written out in float64, value and gradient, on one rank and on
two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from formula import draw, option_loss
from objectives import joint_loss
from torch import Tensor

from smart_train.config.schema import HybridBlock, ObjectiveBlock, SelfDistillationBlock, TeacherBlock, TermBlock
from smart_train.core.embeddings import Embeddings
from smart_train.losses.joint import Loss
from smart_train.losses.labels import Labels

TERMS = {"pooled": TermBlock(0.7, 0.2), "late": TermBlock(1.3, 0.1), "hybrid": TermBlock(0.4, 0.15)}
OFF = {name: TermBlock(0.0) for name in TERMS}
SELF = SelfDistillationBlock(0.6, 0.1)


def joint(**options) -> ObjectiveBlock:
    return ObjectiveBlock(**TERMS, **options)


def taught(kind: str, score: str, **more) -> ObjectiveBlock:
    return ObjectiveBlock(**{**TERMS, **more}, teacher=TeacherBlock(0.8, 0.3, kind, 0.5, score))


OPTIONS = {
    "plain": joint(),
    "symmetric": joint(symmetric=True),
    "hardness": joint(hardness=9.0),
    "positive-aware filter": joint(false_negatives=0.9),
    "margin": joint(margin=0.15),
    "graded": joint(graded=True),
    "sigmoid": joint(loss="sigmoid", sigmoid_bias=-2.0),
    "sigmoid, margin, filter": joint(loss="sigmoid", sigmoid_bias=-2.0, margin=0.1, false_negatives=0.9),
    "symmetric, hardness, margin, filter": joint(symmetric=True, hardness=5.0, margin=0.1, false_negatives=0.9),
    "graded, symmetric, hardness, margin, filter": joint(
        graded=True, symmetric=True, hardness=5.0, margin=0.1, false_negatives=0.9
    ),
    "self-distillation": joint(self_distillation=SELF),
    "self-distillation alone": ObjectiveBlock(**OFF, self_distillation=SELF),
    "graded, self-distillation": joint(graded=True, self_distillation=SELF),
    "teacher of the pooled score, KL": taught("kl", "pooled"),
    "teacher of the late score, KL": taught("kl", "late"),
    "teacher of the hybrid score, KL, alone": taught("kl", "hybrid", **OFF),
    "teacher of the pooled score, MarginMSE, alone": taught("margin_mse", "pooled", **OFF),
    "teacher of the late score, MarginMSE": taught("margin_mse", "late"),
    "teacher of the hybrid score, MarginMSE": taught("margin_mse", "hybrid"),
    "diversity": joint(diversity=0.9),
    "overlap": joint(overlap=1.1),
    "everything that goes together": joint(
        symmetric=True,
        hardness=2.0,
        margin=0.05,
        false_negatives=0.95,
        self_distillation=SELF,
        teacher=TeacherBlock(0.8, 0.3, "kl", 0.5, "hybrid"),
        diversity=0.9,
        overlap=1.1,
    ),
}
NAMES = ("pooled", "late", "hybrid", "self_distillation", "teacher", "diversity", "overlap")

# Six queries and eight documents.  Query 1 has two drawn pairs; queries 0, 3 and 5 know one more document each.
POSITIVES = [(0, 0), (1, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6)]
ALSO_KNOWN = [(0, 4), (3, 5), (5, 7)]
QUERY_LENGTHS, DOCUMENT_LENGTHS = [3, 1, 4, 2, 5, 2], [4, 1, 6, 2, 7, 3, 5, 2]
nan = float("nan")
TEACHER = [  # of documents 0 to 4 for the first four queries, of 5 to 7 for the others: those of the own rank below
    [3.0, 1.0, nan, nan, 0.5, nan, nan, nan],
    [nan, 2.0, 1.5, nan, nan, nan, nan, nan],
    [nan, nan, nan, nan, nan, nan, nan, nan],  # not scored at all
    [2.5, nan, 0.5, 2.0, nan, nan, nan, nan],
    [nan, nan, nan, nan, nan, 2.0, 1.0, nan],
    [nan, nan, nan, nan, nan, 1.0, nan, 0.5],  # the own document was not scored
]


def batch(dtype=torch.float64) -> tuple[Embeddings, Embeddings, Labels]:
    grades = torch.zeros(6, 8, dtype=torch.float64)
    for place, (query, document) in enumerate([*POSITIVES, *ALSO_KNOWN]):
        grades[query, document] = 1.0 + place % 3
    labels = Labels(grades > 0, torch.tensor(POSITIVES), grades, torch.tensor(TEACHER))
    queries = draw(QUERY_LENGTHS, 0, pooled=8, width=8, dtype=dtype)
    return queries, draw(DOCUMENT_LENGTHS, 1, pooled=8, width=8, dtype=dtype), labels


def for_objective(labels: Labels, objective: ObjectiveBlock) -> Labels:
    return labels if objective.graded else replace(labels, grades=None)


def weights(objective: ObjectiveBlock) -> dict[str, float]:
    found = {name: getattr(objective, name) for name in NAMES}
    return {name: block if isinstance(block, float) else block.weight for name, block in found.items()}


def leaves(*sides: Embeddings) -> list[Tensor]:
    return [leaf for side in sides for leaf in (side.pooled, side.tokens.values)]


def gradients(total: Tensor, of: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(total, of, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, of, strict=True)]


WIDTHS = {"whole width": ((), ()), "Matryoshka": ((4,), (2, 4))}


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_its_written_out_formula_in_value_and_gradient(option, widths):
    queries, documents, labels = batch()
    objective = OPTIONS[option]
    labels = for_objective(labels, objective)
    loss = joint_loss(queries, documents, labels, objective, HybridBlock(1.0, 0.5), *WIDTHS[widths])
    terms = option_loss(queries, documents, labels, objective, HybridBlock(1.0, 0.5), *WIDTHS[widths])
    expected = sum(weight * terms[name] for name, weight in weights(objective).items() if weight)
    assert loss.total.item() == pytest.approx(expected.item(), abs=1e-10)
    logged = {name.removeprefix("loss/"): v.item() for name, v in loss.parts.items() if name.startswith("loss/")}
    assert logged == pytest.approx({n: terms[n].item() for n, w in weights(objective).items() if w}, abs=1e-10)
    of = leaves(queries, documents)
    for ours, theirs in zip(gradients(loss.total, of), gradients(expected, of), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


@pytest.mark.parametrize("option", [name for name in OPTIONS if name != "plain"])
def test_an_option_changes_the_loss(option):
    """So that no comparison above or below holds because the option does nothing."""
    queries, documents, labels = batch()
    plain = joint_loss(queries, documents, labels, joint(), HybridBlock()).total
    assert abs(joint_loss(queries, documents, labels, OPTIONS[option], HybridBlock()).total - plain) > 1e-3


# -- two ranks


def split(labels: Labels, rank: int, order: list[int], own: slice, first: list[int]) -> Labels:
    """A rank's labels: queries 0 to 3 are rank 0's, the others rank 1's.

    order: the gathered columns as rows of the unique documents, a document of both ranks twice; own: the rank's
    columns; first: the column where a document stands first
    """
    rows = slice(0, 4) if rank == 0 else slice(4, 6)
    mine = [(q, x) for q, x in labels.positives.tolist() if rows.start <= q < rows.stop]
    columns = {document: own.start + place for place, document in enumerate(order[own])}
    teacher = torch.full((rows.stop - rows.start, len(order)), nan)
    teacher[:, own] = labels.teacher[rows][:, order[own]]
    return Labels(
        labels.relevance[rows][:, order],
        torch.tensor([(q - rows.start, columns[x]) for q, x in mine]),
        None if labels.grades is None else labels.grades[rows][:, order],
        teacher,
        torch.tensor([first[document] != column for column, document in enumerate(order)]),
        own,
        (
            2 * len(mine) / len(labels.positives),
            2 * (rows.stop - rows.start) / 6,
            2 * (own.stop - own.start) / len(order),
        ),
    )


def two_ranks(compute: Callable[[int, Callable[[Tensor], Tensor]], Loss]) -> list[Loss]:
    """Both ranks' losses in one process: a first pass notes what each would send, a second one hands out both."""
    sent: list[list[Tensor]] = [[], []]

    def note(rank: int) -> Callable[[Tensor], Tensor]:
        def columns(values: Tensor) -> Tensor:
            sent[rank].append(values)
            return values.unsqueeze(0)

        return columns

    def hand_out() -> Callable[[Tensor], Tensor]:
        both = iter(zip(*sent, strict=True))
        return lambda values: torch.stack(next(both))

    for rank in (0, 1):
        compute(rank, note(rank))
    return [compute(rank, hand_out()) for rank in (0, 1)]


# Without copies both ranks' documents differ; with copies document 5, the answer of rank 1's query 4, is in rank 0's
# batch as well, and so it stands twice among the gathered ones.
GATHERED = {"no copies": ([0, 1, 2, 3, 4, 5, 6, 7], 5), "a copy": ([0, 1, 2, 3, 4, 5, 5, 6, 7], 6)}


@pytest.mark.parametrize("gathered", GATHERED)
@pytest.mark.parametrize("option", OPTIONS)
def test_the_mean_of_two_ranks_is_the_loss_and_gradient_of_one_rank(option, gathered):
    order, cut = GATHERED[gathered]
    objective = OPTIONS[option]
    if gathered == "a copy":  # each rank regularises its own documents: one that is on both counts twice there
        objective = replace(objective, diversity=0.0, overlap=0.0)
    queries, documents, labels = batch()
    labels = for_objective(labels, objective)
    first = [order.index(document) for document in range(8)]
    own = (slice(0, cut), slice(cut, len(order)))
    mine = [queries.select([0, 1, 2, 3]), queries.select([4, 5])]

    def compute(rank: int, columns: Callable[[Tensor], Tensor]) -> Loss:
        there = replace(split(labels, rank, order, own[rank], first), all_ranks=columns)
        return joint_loss(mine[rank], documents.select(order), there, objective, HybridBlock(), (4,), (2, 4))

    ranks = two_ranks(compute)
    one = joint_loss(queries, documents, labels, objective, HybridBlock(), (4,), (2, 4))
    total = (ranks[0].total + ranks[1].total) / 2
    assert total.item() == pytest.approx(one.total.item(), abs=1e-12)
    of = leaves(queries, documents)
    for ours, theirs in zip(gradients(total, of), gradients(one.total, of), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=0)
    for name, value in one.parts.items():
        if name != "masked":  # a copy is one more document that is left out
            both = (ranks[0].parts[name] + ranks[1].parts[name]) / 2
            assert both.item() == pytest.approx(value.item(), abs=1e-6), name


def test_symmetric_without_the_exchange_is_another_loss_on_two_ranks():
    queries, documents, labels = batch()
    objective = OPTIONS["symmetric"]
    own = (slice(0, 5), slice(5, 8))
    alone = [
        joint_loss(
            rows, documents, split(labels, rank, list(range(8)), own[rank], list(range(8))), objective, HybridBlock()
        )
        for rank, rows in enumerate((queries.select([0, 1, 2, 3]), queries.select([4, 5])))
    ]
    one = joint_loss(queries, documents, labels, objective, HybridBlock()).total
    assert abs((alone[0].total + alone[1].total) / 2 - one) > 1e-2


# -- precision

POOLED_ONLY = {"teacher of the pooled score, MarginMSE, alone", "pooled with everything"}
OPTIONS_ROUNDED = OPTIONS | {
    "pooled with everything": ObjectiveBlock(
        TermBlock(1.0, 0.05), OFF["late"], OFF["hybrid"], symmetric=True, hardness=2.0, margin=0.05, graded=True
    )
}


@pytest.mark.parametrize("option", OPTIONS_ROUNDED)
def test_half_precision_embeddings_under_autocast_cost_what_float64_says_of_the_rounded_vectors(option):
    queries, documents, labels = batch(torch.bfloat16)
    objective = OPTIONS_ROUNDED[option]
    labels = for_objective(labels, objective)
    with torch.autocast("cpu", torch.bfloat16):
        loss = joint_loss(queries, documents, labels, objective, HybridBlock())
        loss.total.backward()
    terms = option_loss(queries.to(torch.float64), documents.to(torch.float64), labels, objective)
    expected = sum(weight * terms[name] for name, weight in weights(objective).items() if weight)
    assert loss.total.dtype == torch.float32
    # Similarities of tokens may be products in the tokens' own dtype (half a step: 2e-3); nothing else is rounded.
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-6 if option in POOLED_ONLY else 2e-3)
    assert all(leaf.grad.isfinite().all() for leaf in leaves(queries, documents) if leaf.grad is not None)


def test_a_rank_without_pairs_costs_nothing_and_gives_no_nan():
    queries, documents, labels = batch()
    none = Labels(labels.relevance, torch.zeros(0, 2, dtype=torch.int64), teacher=labels.teacher)
    objective = replace(OPTIONS["everything that goes together"], diversity=0.0, overlap=0.0)
    loss = joint_loss(queries, documents, none, objective, HybridBlock())
    assert loss.total.item() == 0
    assert all(g.abs().max() == 0 for g in gradients(loss.total, leaves(queries, documents)))
