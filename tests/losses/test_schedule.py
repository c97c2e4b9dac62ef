"""Schedules, what is on, what has to be gathered, and which settings exclude each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from formula import draw
from objectives import joint_loss

from smart_train.config.schema import HybridBlock, ObjectiveBlock, SelfDistillationBlock, TeacherBlock, TermBlock
from smart_train.losses import Joint, Labels
from smart_train.losses.recipe_terms import read_terms
from smart_train.losses.schedule import interpolate

OFF = TermBlock(0.0)
POOLED = ObjectiveBlock(TermBlock(1.0), OFF, OFF)
ALL_ON = ObjectiveBlock(
    hybrid=TermBlock(1.0),
    self_distillation=SelfDistillationBlock(1.0),
    teacher=TeacherBlock(1.0),
    diversity=1.0,
    overlap=1.0,
    hardness=1.0,
    margin=0.1,
)
POINTS = [[0.1, 0.0], [0.5, 2.0], [0.6, 1.0]]


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.2, 0.5, 0.55, 0.6, 0.9, 1.0])
def test_values_between_points_are_numpys_interpolation(progress):
    assert interpolate(POINTS, progress) == pytest.approx(np.interp(progress, *zip(*POINTS, strict=True)))


KEYS = read_terms(ObjectiveBlock()).schedulable


@pytest.mark.parametrize("key", KEYS)
def test_every_key_can_be_scheduled_and_nothing_else_moves(key):
    objective = replace(ALL_ON, schedule={key: [[0, 0.2], [1, 0.8]]})
    scheduled, plain = Joint.from_recipe(objective), Joint.from_recipe(ALL_ON)
    scheduled.at(0.5)
    name, _, leaf = key.partition(".")
    moved = [(one.name, leaf or "weight") for one in plain.terms if one.name == name] or [
        (one.name, key) for one in plain.terms if hasattr(one, key)
    ]
    assert moved
    for one, other in zip(scheduled.terms, plain.terms, strict=True):
        expected = vars(other) | {attribute: 0.5 for of, attribute in moved if of == other.name}
        assert vars(one) == expected


def test_what_can_be_scheduled_are_all_weights_temperatures_hardness_and_margin():
    names = ("pooled", "late", "hybrid", "self_distillation", "teacher")
    weights, temperatures = ([f"{name}.{attribute}" for name in names] for attribute in ("weight", "temperature"))
    taught = [f"{name}.teacher_temperature" for name in names[3:]]
    assert [*weights, "diversity", "overlap", "hardness", "margin"] == KEYS[:9]
    assert sorted([*temperatures, *taught]) == sorted(KEYS[9:])


def test_a_scheduled_term_is_on_while_its_weight_is_zero():
    """It is logged, and what it trains gets a gradient (of zeros), so that no rank waits for one."""
    queries, documents = draw([2, 3], 0), draw([3, 1], 1)
    labels = Labels(torch.eye(2, dtype=torch.bool), torch.tensor([[0, 0], [1, 1]]))
    objective = replace(POOLED, schedule={"late.weight": [[0, 0], [1, 1]]})
    start = joint_loss(queries, documents, labels, objective, HybridBlock())
    start.total.backward()
    assert start.parts["loss/late"] > 0
    assert queries.tokens.values.grad.abs().max() == 0
    plain = joint_loss(queries, documents, labels, POOLED, HybridBlock()).total
    assert start.total.item() == plain.item()
    later = joint_loss(queries, documents, labels, objective, HybridBlock(), progress=0.25)
    assert later.total.item() == pytest.approx(plain.item() + 0.25 * later.parts["loss/late"].item())


@pytest.mark.parametrize("key", ["hardness", "margin"])
def test_a_scheduled_strength_acts_with_its_value(key):
    queries, documents = draw([2, 3], 0), draw([3, 1], 1)
    labels = Labels(torch.eye(2, dtype=torch.bool), torch.tensor([[0, 0], [1, 1]]))
    scheduled = replace(POOLED, schedule={key: [[0, 0], [1, 0.4]]})
    fixed = replace(POOLED, **{key: 0.2})
    totals = [
        joint_loss(queries, documents, labels, objective, HybridBlock(), progress=0.5).total.item()
        for objective in (scheduled, fixed, POOLED)
    ]
    assert totals[0] == pytest.approx(totals[1], abs=1e-6)
    assert totals[0] != pytest.approx(totals[2], abs=1e-3)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (POOLED, (True, False)),
        (ObjectiveBlock(OFF, TermBlock(1.0), OFF), (False, True)),
        (ObjectiveBlock(OFF, OFF, TermBlock(1.0)), (True, True)),
        (replace(POOLED, self_distillation=SelfDistillationBlock(1.0)), (True, True)),
        (replace(POOLED, teacher=TeacherBlock(1.0, score="pooled")), (True, False)),
        (replace(POOLED, teacher=TeacherBlock(1.0, score="late")), (True, True)),
        (ObjectiveBlock(OFF, OFF, OFF, teacher=TeacherBlock(1.0, score="late")), (False, True)),
        (ObjectiveBlock(OFF, OFF, OFF, teacher=TeacherBlock(1.0, score="hybrid")), (True, True)),
        (replace(POOLED, diversity=0.1), (True, True)),
        (ObjectiveBlock(OFF, TermBlock(1.0), OFF, overlap=0.1), (True, True)),
        (replace(POOLED, schedule={"late.weight": [[0, 0], [1, 1]]}), (True, True)),
        (replace(POOLED, hardness=3.0, margin=0.1), (True, False)),
    ],
)
def test_what_is_gathered_is_what_some_term_reads(objective, expected):
    assert Joint.from_recipe(objective).views == {
        v for v, read in zip(("pooled", "tokens"), expected, strict=True) if read
    }
    queries, documents = draw([2, 3], 0, 8, 8), draw([3, 1], 1, 8, 8)
    labels = Labels(torch.eye(2, dtype=torch.bool), torch.tensor([[0, 0], [1, 1]]), teacher=torch.eye(2))
    for side, read in (("pooled", expected[0]), ("tokens", expected[1])):
        values = documents.pooled if side == "pooled" else documents.tokens.values
        held = values.detach().clone()
        before = joint_loss(queries, documents, labels, objective, HybridBlock(), progress=1.0).total
        with torch.no_grad():
            values.copy_(values.roll(1, 0))
        after = joint_loss(queries, documents, labels, objective, HybridBlock(), progress=1.0).total
        with torch.no_grad():
            values.copy_(held)
        assert (before != after) == read


def keys(objective: ObjectiveBlock) -> list[str]:
    return [problem.key for problem in read_terms(objective).problems]


def test_settings_that_exclude_each_other_are_named():
    sigmoid = ObjectiveBlock(loss="sigmoid")
    assert keys(sigmoid) == []
    assert keys(replace(sigmoid, margin=0.1, false_negatives=0.95)) == []
    assert keys(replace(sigmoid, symmetric=True)) == ["objective.symmetric"]
    assert keys(replace(sigmoid, hardness=1.0)) == ["objective.hardness"]
    assert keys(replace(sigmoid, graded=True)) == ["objective.graded"]
    assert keys(replace(sigmoid, schedule={"hardness": [[0, 0], [1, 5]]})) == ["objective.schedule.hardness"]
    assert keys(ObjectiveBlock(symmetric=True, hardness=1.0, margin=0.1, false_negatives=0.9, graded=True)) == []


def test_a_setting_of_terms_that_are_all_off_is_named():
    alone = ObjectiveBlock(OFF, OFF, OFF, self_distillation=SelfDistillationBlock(1.0))
    assert keys(alone) == []
    for key, value in {
        "loss": "sigmoid",
        "symmetric": True,
        "hardness": 1.0,
        "false_negatives": 0.9,
        "margin": 0.1,
        "graded": True,
    }.items():
        assert f"objective.{key}" in keys(replace(alone, **{key: value}))
        assert keys(replace(alone, **{key: value}, schedule={"pooled.weight": [[0, 0], [1, 1]]})) == []


@pytest.mark.parametrize(
    ("key", "points", "told"),
    [
        ("pooled.temperature", [[0, 0.1], [1, 0]], "must be above 0"),
        ("pooled.loss", [[0, 1]], "cannot be scheduled"),
        ("late", [[0, 1]], "cannot be scheduled"),
        ("margin", [], "not a list of points"),
        ("margin", 0.3, "not a list of points"),
        ("margin", [0, 1], "no pair of numbers"),
        ("margin", [[0, 1, 2]], "no pair of numbers"),
        ("margin", [["0", 1]], "no pair of numbers"),
        ("margin", [[0, True]], "no pair of numbers"),
        ("margin", [[0, float("nan")]], "no pair of numbers"),
        ("margin", [[0, 1], [10, 2]], "share 10, which is not from 0 to 1"),
        ("margin", [[0, -1]], "value -1, which is below 0"),
        ("margin", [[0.5, 1], [0.5, 2]], "do not rise"),
        ("margin", [[0.5, 1], [0.2, 2]], "do not rise"),
    ],
)
def test_a_wrong_schedule_is_named_with_its_key(key, points, told):
    (problem,) = read_terms(ObjectiveBlock(schedule={key: points})).problems
    assert problem.key == f"objective.schedule.{key}"
    assert told in problem.what
    assert problem.fix


def test_the_loss_refuses_every_conflict_at_once():
    queries, documents = draw([1, 1], 0), draw([1, 1], 1)
    labels = Labels(torch.eye(2, dtype=torch.bool), torch.tensor([[0, 0], [1, 1]]))
    wrong = ObjectiveBlock(loss="sigmoid", symmetric=True, schedule={"margin": [[2, 0]]})
    with pytest.raises(ValueError, match=r"(?s)objective.symmetric: .*objective.schedule.margin: "):
        joint_loss(queries, documents, labels, wrong, HybridBlock())


def test_regularizers_alone_are_no_loss():
    assert not read_terms(ObjectiveBlock(OFF, OFF, OFF, diversity=1.0, overlap=1.0)).learns
    assert read_terms(ObjectiveBlock(OFF, OFF, OFF, teacher=TeacherBlock(1.0))).learns
    assert read_terms(ObjectiveBlock(OFF, OFF, OFF, schedule={"late.weight": [[0, 0], [1, 1]]})).learns


def test_a_loss_that_begins_with_nothing_is_refused():
    (problem,) = read_terms(ObjectiveBlock(OFF, OFF, OFF, schedule={"late.weight": [[0, 0], [1, 1]]})).problems
    assert problem.key == "objective.schedule"
    assert "every weight of the loss is 0 when training begins" in problem.what
