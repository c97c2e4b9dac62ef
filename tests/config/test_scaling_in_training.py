"""Standardised hybrid scores whose constants the run fits at its end are refused where training uses them before."""

from __future__ import annotations

import pytest

from smart_train.checks.objective import check_scaling
from smart_train.config.recipe import read
from smart_train.config.schema import Recipe

USED = {  # overrides -> the key that uses the hybrid score
    "hybrid term": (["objective.hybrid.weight=1"], "objective.hybrid.weight"),
    "teacher": (["objective.teacher.weight=1"], "objective.teacher.weight"),
    "schedule": (["objective.schedule={hybrid.weight: [[0, 0], [1, 1]]}"], "objective.hybrid.weight"),
    "best checkpoint": (["training.metric_for_best_model=hybrid/ndcg@10"], "training.metric_for_best_model"),
    "best checkpoint, long": (["training.metric_for_best_model=eval_hybrid/mrr@5"], "training.metric_for_best_model"),
    "the dev split": (["training.eval_strategy=steps", "training.eval_steps=2"], "evaluation.during"),
    "mining rounds": (["mining.rounds=2"], "mining.mode"),
}
UNUSED = {
    "after training alone": [],
    "a pooled metric": ["training.metric_for_best_model=pooled/ndcg@10"],
    "a dev split that is not ranked": ["training.eval_strategy=epoch", "evaluation.during=false"],
    "late mining": ["mining.rounds=2", "mining.mode=late"],
    "a late teacher": ["objective.teacher.weight=1", "objective.teacher.score=late"],
}
CONSTANTS = ["late.hybrid.pooled_mean=0.5", "late.hybrid.pooled_std=0.2"]
CONSTANTS += ["late.hybrid.late_mean=0.6", "late.hybrid.late_std=0.1"]


@pytest.fixture
def recipe(tmp_path):
    def make(*overrides: str) -> Recipe:
        file = tmp_path / "recipe.yaml"
        file.write_text("late:\n  hybrid: {scaling: standardised}\n")
        return read(file, overrides)

    return make


@pytest.mark.parametrize(("overrides", "key"), USED.values(), ids=USED)
def test_a_use_before_the_constants_are_fitted_is_refused(recipe, overrides, key):
    (problem,) = check_scaling(recipe(*overrides))
    assert problem.key == "late.hybrid.scaling"
    assert f"but {key} uses the hybrid score while its constants are not fitted yet" in str(problem.what)
    assert not list(check_scaling(recipe(*overrides, *CONSTANTS)))
    assert not list(check_scaling(recipe(*overrides, "late.hybrid.scaling=none")))


@pytest.mark.parametrize("overrides", UNUSED.values(), ids=UNUSED)
def test_a_use_after_training_is_fine(recipe, overrides):
    assert not list(check_scaling(recipe(*overrides)))
