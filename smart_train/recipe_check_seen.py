"""Whether what is to be seen of a run can be: trackers that are installed, and a best checkpoint chosen by a figure
that is measured and can move.

Knows: recipe blocks, which trackers transformers has.  Does not know: models, how a dev split is ranked.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

from smart_train.blocks import Recipe
from smart_train.recipe_bounds import Problems, at_least
from smart_train.recipe_types import Problem

MODES = ("pooled", "late", "hybrid")
MEASURES = ("ndcg", "recall", "mrr", "success")
TRACKERS = {  # name in report_to -> (module, what is installed for it)
    "wandb": ("wandb", "wandb"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "trackio": ("trackio", "trackio"),
    "mlflow": ("mlflow", "mlflow"),
    "comet_ml": ("comet_ml", "comet-ml"),
    "clearml": ("clearml", "clearml"),
    "swanlab": ("swanlab", "swanlab"),
    "neptune": ("neptune", "neptune"),
    "dvclive": ("dvclive", "dvclive"),
    "dagshub": ("dagshub", "dagshub"),
    "codecarbon": ("codecarbon", "codecarbon"),
    "azure_ml": ("azureml", "azureml-mlflow"),
    "flyte": ("flytekit", "flytekit"),
}
KEY = "training.metric_for_best_model"


def check_trackers(recipe: Recipe) -> Problems:
    given: Any = recipe.training.get("report_to") or []
    names = [given] if isinstance(given, str) else given
    if set(names) & {"none", "all"} and len(names) > 1:
        what = f"has {' and '.join(sorted(set(names) & {'none', 'all'}))} beside other names"
        yield Problem("training.report_to", what, "name the trackers, or write all, or none")
        return
    for name in names:
        if name in ("none", "all", "kubeflow"):
            continue
        if name not in TRACKERS:
            near = get_close_matches(str(name), TRACKERS, 1)
            what = f"names {name}, which is no tracker" + (f", the nearest is {near[0]}" if near else "")
            yield Problem("training.report_to", what, f"write none, all, or some of {', '.join(TRACKERS)}")
        elif find_spec(TRACKERS[name][0]) is None:
            what = f"names {name}, whose package is not installed"
            yield Problem("training.report_to", what, f"pip install {TRACKERS[name][1]}, or leave it out", here=True)


def check_best(recipe: Recipe) -> Problems:
    """What chooses the best checkpoint, lowers the rate, or ends the training, is measured."""
    training, evaluation = recipe.training, recipe.evaluation
    yield from at_least("evaluation.patience", evaluation.patience, 1)
    ranked = training.get("eval_strategy", "no") != "no"
    for key, value in ((KEY, training.get("metric_for_best_model")), ("evaluation.patience", evaluation.patience)):
        if value is not None and not ranked:
            what = f"is {value}, but training.eval_strategy is no, so the dev split is never ranked"
            yield Problem(key, what, "write eval_strategy: steps and eval_steps, or remove it")
        elif value is not None and not evaluation.during:
            what = "evaluation.during is false, so nothing is measured to choose by"
            yield Problem(key, what, "write it true")
    metric = training.get("metric_for_best_model")
    choosing = training.get("load_best_model_at_end") or training.get("save_strategy") == "best"
    choosing = choosing or metric or training.get("lr_scheduler_type") == "reduce_lr_on_plateau"
    if choosing and ranked and evaluation.k:
        yield from _metric(recipe, metric)
        yield from _kept(recipe)


def _metric(recipe: Recipe, metric: str | None) -> Problems:
    """The figure is one of those measured, the larger the better, and can change."""
    cuts = recipe.evaluation.k
    measured = [f"{mode}/{name}@{cut}" for mode in reversed(MODES) for name in MEASURES for cut in cuts]
    usual = f"hybrid/ndcg@{10 if 10 in cuts else max(cuts)}"
    others = f"or another of {', '.join(MODES)} / {', '.join(MEASURES)} @ {', '.join(map(str, cuts))}"
    if not metric:
        yield Problem(KEY, "is not given, and the loss is not measured on dev", f"write {usual}, {others}")
        return
    name = metric.removeprefix("eval_").removeprefix("dev/")
    if metric.removeprefix("eval_") not in measured:
        near = (get_close_matches(name, measured, 1) or [usual])[0]
        yield Problem(KEY, f"is {metric}, which is not measured, the nearest is {near}", f"write it, {others}")
    elif name.startswith("pooled/") and recipe.adapter.kind == "frozen":
        what = f"is {metric}, but adapter.kind is frozen: the pooled vectors are the base's at every step"
        yield Problem(KEY, what, f"write {usual}, or late/...")
    if recipe.training.get("greater_is_better") is False:
        what = f"is false, but every figure of the dev split is the better the larger it is ({metric})"
        yield Problem("training.greater_is_better", what, "remove it")


def _kept(recipe: Recipe) -> Problems:
    """The best evaluation has a checkpoint.  (Strategies that differ, and steps that are no multiple, are refused by
    transformers.)"""
    training = recipe.training
    every, saved = training.get("eval_steps"), training.get("save_steps", 500)
    steps = training.get("save_strategy", "steps") == training.get("eval_strategy") == "steps"
    if training.get("load_best_model_at_end") and steps and every and saved > every and saved % every == 0:
        what = f"is {saved:g}, and training.eval_steps is {every:g}: the best evaluation may have no checkpoint to load"
        yield Problem("training.save_steps", what, f"write save_steps: {every:g}, or save_strategy: best")
