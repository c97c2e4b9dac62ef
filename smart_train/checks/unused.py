"""Find keys of a recipe that can change nothing beside its other keys.

A run records every key as used.  So one that contradicts another (LoRA's rank beside ``kind: frozen``) is refused, and
one that a switch of the recipe turns off (the temperature of a term of weight 0, cut-offs where nothing is ranked) is
named in the log.  Keys that are in neither table always change something; tests/checks/test_unused.py lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smart_train.checks.bounds import Problems
from smart_train.checks.objective import terms_of
from smart_train.config.schema import Recipe
from smart_train.config.typed_values import Problem
from smart_train.core.environment import world
from smart_train.core.errors import SmartTrainError
from smart_train.core.hub import hub_id, resolve_base
from smart_train.losses.recipe_terms import RecipeTerm


@dataclass(frozen=True)
class Rule:
    """Keys of one block that change nothing where ``when`` holds.

    why: said after the value; fix: what to write, for keys that are refused; "" names them in the log instead
    """

    block: str
    names: tuple[str, ...]
    when: Callable[[Recipe], bool]
    why: str
    fix: str = ""

    def written(self) -> list[str]:
        return [f"{self.block}.{name}" for name in self.names]


def _is_folder(recipe: Recipe) -> bool:
    """Whether the base is in a folder, which has no revisions."""
    try:
        return bool(recipe.model.base) and hub_id(resolve_base(recipe.model.base)) is None
    except SmartTrainError:  # there is none: check_recipe says so
        return False


def _is_local_data(recipe: Recipe) -> bool:
    path = recipe.data.path
    return path == "pydocs" or (bool(path) and Path(path).expanduser().exists())


def _term(name: str) -> Callable[[Recipe], bool]:
    """Whether a built-in term is off, now and in the schedule."""

    def off(recipe: Recipe) -> bool:
        return not any(one.block == f"objective.{name}" for one in terms_of(recipe).active)

    return off


def _trained_narrow(view: str) -> Callable[[Recipe], bool]:
    """Whether no term trains one view alone, at more widths than the whole one."""
    score = {"pooled": "scores.pooled", "tokens": "scores.late"}[view]

    def none(recipe: Recipe) -> bool:
        frozen = view == "pooled" and recipe.adapter.kind == "frozen"
        both = {"scores.pooled", "scores.late"}
        alone = [one for one in terms_of(recipe).active if both & set(one.term.reads) == {score}]
        return frozen or not any(view in one.term.trains for one in alone)

    return none


def _reads_no_tokens(recipe: Recipe) -> bool:
    reads = {name for one in terms_of(recipe).active for name in one.term.reads}
    return bool(reads) and reads <= {"scores.pooled", "embeddings.pooled"} | {
        n for n in reads if n.startswith("labels")
    }


def _ranks_nothing(recipe: Recipe) -> bool:
    evaluation = recipe.evaluation
    during = evaluation.during and recipe.training.get("eval_strategy", "no") != "no"
    return not (evaluation.before or evaluation.after or during)


REFUSED: list[Rule] = [
    Rule("model", ("revision",), _is_folder, "model.base is a folder, which has no revisions", "remove it"),
    Rule(
        "model",
        ("matryoshka",),
        _trained_narrow("pooled"),
        "no term trains the pooled vector by its own score",
        "remove it, or give objective.pooled a weight (with adapter.kind lora or full)",
    ),
    Rule(
        "late",
        ("matryoshka",),
        _trained_narrow("tokens"),
        "no term trains the tokens by their own score",
        "remove it, or give objective.late a weight",
    ),
    Rule(
        "adapter",
        ("r", "alpha", "dropout", "targets", "layers", "vision"),
        lambda recipe: recipe.adapter.kind != "lora",
        "it is a setting of LoRA, and adapter.kind is another",
        "remove it, or write adapter.kind: lora",
    ),
    Rule(
        "data",
        ("revision", "subset"),
        _is_local_data,
        "data.path is no Hub dataset",
        "remove it, or name a Hub dataset",
    ),
    Rule(
        "data",
        ("shuffle_buffer",),
        lambda recipe: not recipe.data.streaming,
        "data.streaming is false, and all pairs are shuffled",
        "remove it, or write data.streaming: true",
    ),
    Rule(
        "data",
        ("dev_documents",),
        lambda recipe: recipe.data.dev == 0,
        "data.dev is 0, so there is no dev split",
        "remove it, or hold some out",
    ),
    Rule(
        "objective.self_distillation",
        ("teacher_temperature", "preset", "pooled", "late", "teacher", "students"),
        _term("self_distillation"),
        "objective.self_distillation.weight is 0",
        "remove it, or give the term a weight",
    ),
    Rule(
        "objective.reduction",
        ("kind",),
        _reads_no_tokens,
        "no term reads the tokens",
        "remove it, or give objective.late a weight",
    ),
    Rule(
        "objective.reduction",
        ("temperature",),
        lambda recipe: recipe.objective.reduction.kind != "soft",
        "objective.reduction.kind is not soft",
        "remove it, or write kind: soft",
    ),
    Rule(
        "objective.reduction",
        ("k",),
        lambda recipe: recipe.objective.reduction.kind != "topk",
        "objective.reduction.kind is not topk",
        "remove it, or write kind: topk",
    ),
    Rule(
        "objective.compression",
        ("factors", "bits"),
        _reads_no_tokens,
        "no term reads the tokens",
        "remove it, or give objective.late a weight",
    ),
    Rule(
        "objective.compression",
        ("method",),
        lambda recipe: not recipe.objective.compression.factors,
        "objective.compression.factors is [], so no tokens are pooled",
        "remove it, or write factors: [1, 2, 4]",
    ),
    Rule(
        "objective.teacher",
        ("temperature", "kind", "scale", "score", "teacher_temperature", "normalise"),
        _term("teacher"),
        "objective.teacher.weight is 0",
        "remove it, or give the term a weight",
    ),
    Rule(
        "objective",
        ("similarity",),
        _reads_no_tokens,
        "no term reads the tokens",
        "remove it, or give objective.late a weight",
    ),
    Rule(
        "publish",
        ("private", "license"),
        lambda recipe: recipe.publish.repo is None,
        "publish.repo is null, so nothing is published",
        "remove it, or name the repository",
    ),
]
TOLD: list[Rule] = [
    *(
        Rule(f"objective.{name}", ("temperature",), _term(name), f"objective.{name}.weight is 0")
        for name in ("pooled", "late", "hybrid", "self_distillation")
    ),
    Rule(  # named, not refused: probe writes a layer's constants whichever scaling it recommends
        "late.hybrid",
        ("pooled_mean", "pooled_std", "late_mean", "late_std"),
        lambda recipe: recipe.late.hybrid.scaling == "none",
        "late.hybrid.scaling is none",
    ),
    Rule(
        "evaluation",
        ("calibration_queries", "calibration_documents"),
        lambda recipe: not recipe.evaluation.calibrate,
        "evaluation.calibrate is false",
    ),
    Rule("evaluation", ("k", "batch_size", "bootstrap", "seed"), _ranks_nothing, "nothing is ranked"),
    Rule(
        "data",
        ("test_documents",),
        lambda recipe: not (recipe.evaluation.before or recipe.evaluation.after),
        "evaluation.before and evaluation.after are false, so the test split is not ranked",
    ),
    Rule("objective", ("gather", "gather_group"), lambda recipe: world() == 1, "one process trains alone"),
]


def check_unused(recipe: Recipe) -> Problems:
    """Yield a problem for every key that can change nothing beside the others."""
    for rule, key, value in _idle(recipe, REFUSED):
        yield Problem(key, f"is {value}, but {rule.why}, so it changes nothing", rule.fix)
    for one in _constant_terms(recipe):
        written = any(line in (one.block, one.key()) for line in recipe.where.lines)
        if written or one.term.weight != 1:
            what = f"is {one.term.weight:g}, but adapter.kind is frozen, so the term is the base's own at every step"
            yield Problem(one.key(), what, "write 0, or adapter.kind: lora")


def unused_keys(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield (key, why) of keys that a switch of the recipe turns off: a run logs them."""
    for rule, key, _ in _idle(recipe, TOLD):
        yield key, rule.why
    for one in _constant_terms(recipe):
        yield one.key(), "adapter.kind is frozen, so the term is the base's own at every step"
    if not recipe.evaluation.during and recipe.training.get("eval_strategy", "no") != "no":
        yield "training.eval_strategy", "evaluation.during is false, so the dev split is not ranked"


def _idle(recipe: Recipe, rules: list[Rule]) -> Iterator[tuple[Rule, str, Any]]:
    for rule in rules:
        block, usual = _at(recipe, rule.block), _at(Recipe(), rule.block)
        for name, key in zip(rule.names, rule.written(), strict=True):
            if getattr(block, name) != getattr(usual, name) and rule.when(recipe):
                yield rule, key, getattr(block, name)


def _at(recipe: Recipe, block: str) -> Any:
    value: Any = recipe
    for name in block.split("."):
        value = getattr(value, name)
    return value


def _constant_terms(recipe: Recipe) -> list[RecipeTerm]:
    """Terms of the pooled score over a frozen backbone, beside one that trains the head."""
    if recipe.adapter.kind != "frozen" or not terms_of(recipe).trains("tokens"):
        return []
    return [
        one for one in terms_of(recipe).active if one.term.trains == ("pooled",) and one.block == "objective.pooled"
    ]
