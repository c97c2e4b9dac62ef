"""Distillation against sentence-transformers' losses, and who teaches whom."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from formula import draw
from objectives import joint_loss
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, MarginMSELoss

from smart_train.config.schema import HybridBlock, ObjectiveBlock, SelfDistillationBlock, TeacherBlock, TermBlock
from smart_train.core.embeddings import Embeddings
from smart_train.losses.contrastive import FLOOR
from smart_train.losses.distillation import SelfDistillation, compact_columns, divergence, soft_target
from smart_train.losses.labels import Labels
from smart_train.losses.similarity import late_scores, pooled_scores

OFF = TermBlock(0.0)
nan = float("nan")


def taught(kind: str, temperature: float, scale: float = 1.0) -> ObjectiveBlock:
    return ObjectiveBlock(OFF, OFF, OFF, teacher=TeacherBlock(1.0, temperature, kind, scale, "pooled"))


def scored(queries: int, ways: int) -> tuple[Embeddings, Embeddings, torch.Tensor, Labels]:
    """Query q has documents q, queries + q, 2 * queries + q ...: the first is its positive, the teacher scored each."""
    teacher = torch.randn(queries, ways, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    table = torch.full((queries, queries * ways), nan, dtype=torch.float64)
    for query in range(queries):
        table[query, query::queries] = teacher[query]
    relevance = torch.eye(queries, queries * ways, dtype=torch.bool)
    labels = Labels(relevance, torch.arange(queries).unsqueeze(1).repeat(1, 2), teacher=table)
    sides = (draw([1] * rows, seed, dtype=torch.float64) for seed, rows in enumerate((queries, queries * ways)))
    return (*sides, teacher, labels)


@pytest.mark.parametrize("ways", [2, 4])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_the_teachers_divergence_is_sentence_transformers_own_but_for_the_squared_temperature(temperature, ways):
    queries, documents, teacher, labels = scored(5, ways)
    ours = joint_loss(queries, documents, labels, taught("kl", temperature), HybridBlock()).total
    theirs = DistillKLDivLoss(SimpleNamespace(), temperature=temperature)
    expected = theirs.compute_loss_from_embeddings([queries.pooled, *documents.pooled.split(5)], teacher)
    torch.testing.assert_close(ours * temperature**2, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("ways", [2, 4])
def test_margin_mse_is_sentence_transformers_own_in_units_of_the_temperature(ways):
    queries, documents, teacher, labels = scored(5, ways)
    ours = joint_loss(queries, documents, labels, taught("margin_mse", 0.5, scale=0.1), HybridBlock()).total
    theirs = MarginMSELoss(SimpleNamespace())
    expected = theirs.compute_loss_from_embeddings([queries.pooled, *documents.pooled.split(5)], teacher * 0.1)
    torch.testing.assert_close(ours * 0.5**2, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["kl", "margin_mse"])
def test_a_teacher_without_a_score_costs_nothing_and_moves_nothing(kind):
    queries, documents, _, labels = scored(3, 2)
    labels.teacher.fill_(nan)
    labels.teacher[1, 1] = 2.0  # one score alone says nothing of an order
    loss = joint_loss(queries, documents, labels, taught(kind, 0.1), HybridBlock()).total
    loss.backward()
    assert loss.item() == 0
    assert queries.pooled.grad.abs().max() == 0
    assert documents.pooled.grad.abs().max() == 0


def test_only_scored_documents_learn_from_the_teacher():
    queries, documents, _, labels = scored(3, 3)
    labels.teacher[:, 4:] = nan
    joint_loss(queries, documents, labels, taught("kl", 0.1), HybridBlock()).total.backward()
    moved = documents.pooled.grad.abs().amax(1) > 0
    assert moved.tolist() == [True, False, False, True, False, False, False, False, False]  # query 0 has two scores


def test_the_late_score_teaches_and_does_not_learn():
    queries, documents = draw([3, 2, 4], 0), draw([2, 5, 1, 3], 1)
    labels = Labels(torch.eye(3, 4, dtype=torch.bool), torch.tensor([[0, 0], [1, 1], [2, 2]]))
    objective = ObjectiveBlock(OFF, OFF, OFF, self_distillation=SelfDistillationBlock(1.0, 0.1))
    loss = joint_loss(queries, documents, labels, objective, HybridBlock())
    loss.total.backward()
    assert loss.total.item() > 0
    assert queries.tokens.values.grad is None
    assert documents.tokens.values.grad is None
    assert queries.pooled.grad.abs().max() > 0


def test_self_distillation_is_zero_and_flat_where_both_views_agree():
    rows = draw([1] * 4, 0, pooled=8, width=8)
    queries = Embeddings(rows.tokens.values.detach().clone().requires_grad_(True), rows.tokens)
    labels = Labels(torch.eye(4, dtype=torch.bool), torch.arange(4).unsqueeze(1).repeat(1, 2))
    objective = ObjectiveBlock(OFF, OFF, OFF, self_distillation=SelfDistillationBlock(1.0, 0.1))
    loss = joint_loss(queries, queries, labels, objective, HybridBlock()).total
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert queries.pooled.grad.abs().max() < 1e-5


def divergence_by_hand(teacher: torch.Tensor, student: torch.Tensor, members: torch.Tensor) -> float:
    """KL of two rows of logits over their members, a plain sum in float64."""
    p, q = (torch.softmax(row.detach()[members].double(), 0) for row in (teacher, student))
    return sum(float(a) * (math.log(float(a)) - math.log(float(b))) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("students", [["pooled"], ["late"], ["pooled", "late"], ["hybrid"]])
@pytest.mark.parametrize(("weights", "tau_teacher"), [((1, 1, 0), 0.05), ((0.5, 2, 0), 0.2), ((1, 1, 0.3), 0.1)])
def test_each_view_learns_the_weighted_sum_of_all_scores(weights, tau_teacher, students):
    queries, documents = (draw(rows, seed, dtype=torch.float64) for seed, rows in enumerate(([3, 2, 4], [2, 5, 1, 3])))
    bm25 = torch.tensor([[1.0, nan, 0.5, 2.0], [nan, nan, nan, nan], [0.1, 0.2, 0.3, nan]], dtype=torch.float64)
    known = torch.eye(3, 4, dtype=torch.bool)
    known[0, 3] = True  # a second answer of query 0 is no member of the comparison
    labels = Labels(known, torch.tensor([[0, 0], [1, 1], [2, 2]]), teacher=bm25)
    options = dict(zip(("pooled", "late", "teacher"), map(float, weights), strict=True))
    block = SelfDistillationBlock(1.0, 0.1, teacher_temperature=tau_teacher, students=students, **options)
    loss = joint_loss(queries, documents, labels, ObjectiveBlock(OFF, OFF, OFF, self_distillation=block), HybridBlock())
    scores = {"pooled": pooled_scores(queries.pooled, documents.pooled)}
    scores["late"] = late_scores(queries.tokens, documents.tokens)
    scores["hybrid"] = scores["pooled"] + scores["late"]
    s = weights[0] * scores["pooled"] + weights[1] * scores["late"] + weights[2] * bm25.nan_to_num(0.0)
    members = ~known | torch.eye(3, 4, dtype=torch.bool)
    costs = [
        divergence_by_hand(s[q] / tau_teacher, scores[name][q] / 0.1, members[q]) for name in students for q in range(3)
    ]
    assert loss.total.item() == pytest.approx(sum(costs) / len(costs), abs=1e-9)
    loss.total.backward()
    learns = {"pooled": {"pooled", "hybrid"}, "tokens": {"late", "hybrid"}}
    for view, tensor in (("pooled", queries.pooled), ("tokens", queries.tokens.values)):
        assert (tensor.grad is not None and bool(tensor.grad.any())) == bool(learns[view] & set(students)), view


def test_the_preset_of_bge_m3_lets_the_sum_of_both_views_teach_both():
    term = SelfDistillation(preset="bge_m3")
    assert (term.teacher_weights, term.views) == ({"pooled": 1, "late": 1}, ("pooled", "late"))
    assert set(term.trains) == {"pooled", "tokens"}
    changed = SelfDistillation(preset="bge_m3", teacher=0.3, students=["pooled"])
    assert (changed.teacher_weights, changed.trains) == ({"pooled": 1, "late": 1, "teacher": 0.3}, ("pooled",))
    assert "labels.teacher" in changed.reads


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"students": []}, "students"),
        ({"students": ["late"]}, "students"),  # late alone would teach late
        ({"late": 0.0}, "late"),
        ({"pooled": -1.0}, "pooled"),
        ({"teacher_temperature": 0.0}, "teacher_temperature"),
        ({"preset": "bge"}, "preset"),
    ],
)
def test_a_self_distillation_that_can_teach_nothing_is_refused(options, option):
    assert option in [problem[0] for problem in SelfDistillation(**options).problems()]


@pytest.mark.parametrize("how", ["minmax", "zscore"])
def test_a_teacher_in_any_unit_teaches_the_same_after_normalising(how):
    queries, documents, _, labels = scored(4, 3)
    labels.teacher[1, 5] = nan
    options = dict(teacher_temperature=0.5, normalise=how)
    block = ObjectiveBlock(OFF, OFF, OFF, teacher=TeacherBlock(1.0, 0.1, score="pooled", **options))
    first = joint_loss(queries, documents, labels, block, HybridBlock()).total
    expected = []
    for query, row in zip(queries.pooled, labels.teacher, strict=True):
        members = row.isfinite()
        t = row[members]
        t = (t - t.min()) / (t.max() - t.min()) if how == "minmax" else (t - t.mean()) / t.std(correction=0)
        s = (documents.pooled[members] @ query) / 0.1
        everything = torch.ones(len(t), dtype=torch.bool)
        expected.append(divergence_by_hand(t / 0.5, s, everything))
    assert first.item() == pytest.approx(sum(expected) / len(expected), abs=1e-9)
    labels.teacher.mul_(7).add_(100)
    torch.testing.assert_close(joint_loss(queries, documents, labels, block, HybridBlock()).total, first)
    labels.teacher.copy_(
        labels.teacher.isfinite().double().masked_fill(labels.teacher.isnan(), nan)
    )  # all scores equal
    assert joint_loss(queries, documents, labels, block, HybridBlock()).total.isfinite()


def test_a_teacher_of_each_view_costs_the_mean_of_both():
    queries, documents, _, labels = scored(4, 3)
    cost = {}
    for score in ("pooled", "late", "each"):
        block = ObjectiveBlock(OFF, OFF, OFF, teacher=TeacherBlock(1.0, 0.1, score=score))
        cost[score] = joint_loss(queries, documents, labels, block, HybridBlock())
    both = (cost["pooled"].total + cost["late"].total) / 2
    torch.testing.assert_close(cost["each"].total, both)
    torch.testing.assert_close(cost["each"].parts["teacher/late"], cost["late"].total)


def test_a_divergence_of_no_member_or_one_is_zero_with_a_zero_gradient():
    student = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], requires_grad=True)
    out = torch.tensor([[True, True, True], [True, False, True]])
    costs = divergence(student.masked_fill(out, FLOOR), *soft_target(torch.zeros(2, 3).masked_fill(out, FLOOR)))
    costs.sum().backward()
    assert costs.tolist() == [0, 0]
    assert student.grad.abs().max() == 0


def test_compact_columns_put_the_true_places_of_a_row_side_by_side():
    there = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 0, 1]], dtype=torch.bool)
    columns, real = compact_columns(there)
    assert [row[mask].tolist() for row, mask in zip(columns, real, strict=True)] == [[1, 3], [], [0, 1, 3]]
    assert compact_columns(torch.zeros(2, 4, dtype=torch.bool))[0].shape == (2, 0)


def test_a_teacher_or_grades_that_are_not_there_are_asked_for():
    queries, documents = draw([1], 0), draw([1, 1], 1)
    labels = Labels(torch.tensor([[True, False]]), torch.tensor([[0, 0]]))
    with pytest.raises(ValueError, match="loss term teacher needs a teacher's scores .data.teacher"):
        joint_loss(queries, documents, labels, taught("kl", 0.1), HybridBlock())
    with pytest.raises(ValueError, match="loss term pooled needs the grades of the positives"):
        joint_loss(queries, documents, labels, ObjectiveBlock(graded=True), HybridBlock())
