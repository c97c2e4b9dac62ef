"""A key that can change nothing beside the others is refused, or named in the log where a switch turns it off."""

from __future__ import annotations

import typing

import pytest

from smart_train.checks.unused import REFUSED, TOLD, check_unused, unused_keys
from smart_train.config.recipe import read
from smart_train.config.schema import Recipe
from smart_train.config.typed_values import is_block

ALWAYS = {  # keys that no other key of the recipe can make idle, or whose idle cases another check refuses
    "": "name output",
    "model": "base dtype quantisation pooling attention dropout trust_remote_code query_prompt document_prompt "
    "query_tokens document_tokens min_pixels max_pixels",
    "late": "layer norm head dim keep drop",
    "late.hybrid": "pooled late scaling",
    "adapter": "kind",
    "data": "path format split query document image id scores label negatives near_duplicates allow_outside streaming "
    "limit dev test "
    "query_tokens document_tokens length_groups length_window source source_temperature source_weights",
    "mining": "rounds start k mode max_relative margin first last skip_top window sampling miner reranker",
    "objective": "batch chunk_rows chunk_tokens neighbour_pages loss sigmoid_bias symmetric hardness false_negatives "
    "margin graded diversity overlap terms skip_nonfinite schedule",
    "objective.pooled": "weight",
    "objective.late": "weight",
    "objective.hybrid": "weight",
    "objective.self_distillation": "weight",
    "objective.teacher": "weight",
    "evaluation": "during patience before after calibrate",
    "publish": "repo",
    "training": "",  # see tests/config/test_training_fields.py
}


def keys(block: object, prefix: str = "") -> list[str]:
    found = []
    for name, hint in typing.get_type_hints(type(block)).items():
        if is_block(hint):
            found += keys(getattr(block, name), f"{prefix}{name}.")
        elif name != "training":
            found.append(f"{prefix}{name}")
    return found


def test_every_key_of_a_recipe_is_in_one_of_the_three_lists():
    """A new key fails here until somebody has thought of where it would change nothing."""
    always = [f"{block}.{name}".lstrip(".") for block, names in ALWAYS.items() for name in names.split()]
    ruled = [key for rule in (*REFUSED, *TOLD) for key in rule.written()]
    assert sorted([*always, *ruled]) == sorted(keys(Recipe()))


@pytest.fixture
def recipe(tmp_path):
    def make(*words: str) -> Recipe:
        (tmp_path / "recipe.yaml").write_text(f"model: {{base: {tmp_path}}}\ndata: {{path: {tmp_path}}}\n")
        return read(tmp_path / "recipe.yaml", list(words))

    return make


# key -> (value, what makes it idle, what gives it an effect)
OFF_POOLED = ["objective.pooled.weight=0"]
IDLE = {
    "model.revision": ("main", [], ["model.base=me/mine"]),
    "model.matryoshka": ("[8]", OFF_POOLED, []),
    "late.matryoshka": ("[8]", ["objective.late.weight=0"], []),
    "adapter.r": ("8", ["adapter.kind=full"], []),
    "adapter.alpha": ("8", ["adapter.kind=full"], []),
    "adapter.dropout": ("0.1", ["adapter.kind=full"], []),
    "adapter.targets": ("[query]", ["adapter.kind=full"], []),
    "adapter.layers": ("[1]", ["adapter.kind=full"], []),
    "adapter.vision": ("true", ["adapter.kind=full"], []),
    "data.revision": ("main", [], ["data.path=me/mine"]),
    "data.subset": ("mine", [], ["data.path=me/mine"]),
    "data.shuffle_buffer": ("100", [], ["data.streaming=true"]),
    "data.dev_documents": ("10", ["data.dev=0"], []),
    "objective.teacher.temperature": ("0.1", [], ["objective.teacher.weight=1"]),
    "objective.teacher.kind": ("margin_mse", [], ["objective.teacher.weight=1"]),
    "objective.teacher.scale": ("2.0", [], ["objective.schedule={teacher.weight: [[0, 0], [1, 1]]}"]),
    "objective.teacher.score": ("late", [], ["objective.teacher.weight=1"]),
    "objective.teacher.teacher_temperature": ("0.1", [], ["objective.teacher.weight=1"]),
    "objective.teacher.normalise": ("minmax", [], ["objective.teacher.weight=1"]),
    "objective.self_distillation.teacher_temperature": ("0.1", [], ["objective.self_distillation.weight=1"]),
    "objective.self_distillation.preset": ("bge_m3", [], ["objective.self_distillation.weight=1"]),
    "objective.self_distillation.pooled": ("1", [], ["objective.self_distillation.weight=1"]),
    "objective.self_distillation.late": ("2", [], ["objective.self_distillation.weight=1"]),
    "objective.self_distillation.teacher": ("1", [], ["objective.self_distillation.weight=1"]),
    "objective.self_distillation.students": ("[late]", [], ["objective.self_distillation.weight=1"]),
    "objective.reduction.kind": ("soft", ["objective.late.weight=0"], []),
    "objective.reduction.temperature": ("0.1", [], ["objective.reduction.kind=soft"]),
    "objective.reduction.k": ("3", [], ["objective.reduction.kind=topk"]),
    "objective.compression.factors": ("[1, 2]", ["objective.late.weight=0"], []),
    "objective.compression.bits": ("[8]", ["objective.late.weight=0"], []),
    "objective.compression.method": ("kmeans", [], ["objective.compression.factors=[2]"]),
    "objective.similarity": ("bfloat16", ["objective.late.weight=0"], []),
    "publish.private": ("false", [], ["publish.repo=me/mine"]),
    "publish.license": ("mit", [], ["publish.repo=me/mine"]),
}
NAMED = {
    "late.hybrid.pooled_mean": ("0.5", [], ["late.hybrid.scaling=standardised"]),
    "late.hybrid.pooled_std": ("0.5", [], ["late.hybrid.scaling=standardised"]),
    "late.hybrid.late_mean": ("0.5", [], ["late.hybrid.scaling=standardised"]),
    "late.hybrid.late_std": ("0.5", [], ["late.hybrid.scaling=standardised"]),
    "evaluation.calibration_queries": ("3", ["evaluation.calibrate=false"], []),
    "evaluation.calibration_documents": ("3", ["evaluation.calibrate=false"], []),
    "objective.pooled.temperature": ("0.1", OFF_POOLED, []),
    "objective.late.temperature": ("0.1", ["objective.late.weight=0"], []),
    "objective.hybrid.temperature": ("0.1", [], ["objective.hybrid.weight=1"]),
    "objective.self_distillation.temperature": ("0.1", [], ["objective.self_distillation.weight=1"]),
    "evaluation.k": ("[3]", ["evaluation.before=false", "evaluation.after=false"], []),
    "evaluation.batch_size": ("3", ["evaluation.before=false", "evaluation.after=false"], []),
    "evaluation.bootstrap": ("3", ["evaluation.before=false", "evaluation.after=false"], []),
    "evaluation.seed": ("3", ["evaluation.before=false", "evaluation.after=false"], ["evaluation.before=true"]),
    "data.test_documents": ("10", ["evaluation.before=false", "evaluation.after=false"], []),
    "objective.gather": ("false", [], None),
    "objective.gather_group": ("2", [], None),
}


@pytest.mark.parametrize("key", IDLE)
def test_a_key_that_contradicts_another_is_refused_by_name(recipe, key):
    value, idle, used = IDLE[key]
    (problem,) = check_unused(recipe(f"{key}={value}", *idle))
    assert problem.key == key and "so it changes nothing" in str(problem.what) and problem.fix
    assert not list(check_unused(recipe(f"{key}={value}", *used)))
    assert not list(check_unused(recipe(*idle)))


@pytest.mark.parametrize("key", NAMED)
def test_a_key_that_a_switch_turns_off_is_named(recipe, key, monkeypatch):
    value, idle, used = NAMED[key]
    named = dict(unused_keys(recipe(f"{key}={value}", *idle)))
    assert list(named) == [key] and named[key]
    if used is None:
        monkeypatch.setenv("WORLD_SIZE", "2")
    assert not list(unused_keys(recipe(f"{key}={value}", *(used or ()))))
    assert not list(check_unused(recipe(f"{key}={value}", *idle)))


def test_every_rule_is_shown():
    assert sorted(IDLE) == sorted(key for rule in REFUSED for key in rule.written())
    assert sorted(NAMED) == sorted(key for rule in TOLD for key in rule.written())


FROZEN = ["adapter.kind=frozen", "late.head=linear"]


def test_a_pooled_loss_over_a_frozen_backbone_is_refused_where_it_is_written_and_named_where_it_is_the_default(recipe):
    (problem,) = check_unused(recipe(*FROZEN, "objective.pooled.weight=1"))
    assert problem.key == "objective.pooled.weight"
    (problem,) = check_unused(recipe(*FROZEN, "objective.pooled.weight=0.5"))
    assert "the term is the base's own at every step" in str(problem.what)
    assert not list(check_unused(recipe(*FROZEN)))
    assert "objective.pooled.weight" in dict(unused_keys(recipe(*FROZEN)))
    assert "objective.pooled.weight" not in dict(unused_keys(recipe(*FROZEN, "objective.pooled.weight=0")))
    assert not list(check_unused(recipe("objective.pooled.weight=1")))


def test_matryoshka_of_a_frozen_pooled_vector_is_refused(recipe):
    (problem,) = check_unused(recipe(*FROZEN, "model.matryoshka=[8]"))
    assert problem.key == "model.matryoshka"


def test_a_dev_split_that_is_not_ranked_is_named(recipe):
    words = ["training.eval_strategy=steps", "training.eval_steps=2", "evaluation.during=false"]
    assert list(dict(unused_keys(recipe(*words)))) == ["training.eval_strategy"]
