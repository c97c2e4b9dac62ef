"""What a launch says of a run against what its recipe says: DeepSpeed's settings, precision, which engine.

DeepSpeed takes over batch sizes, clipping and precision: a number in its file that differs from the recipe's would win
without a word, or end the run after the model has been loaded.  "auto" leaves each to the recipe.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from smart_train.checks.bounds import Problems, at_least, component
from smart_train.config.schema import Recipe
from smart_train.config.training_arguments import CALLBACKS
from smart_train.config.typed_values import Problem
from smart_train.core.environment import world

FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"  # what `accelerate launch` says to its processes
LAUNCHED = "the launch file's deepspeed_config"
STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class Settings:
    """DeepSpeed's settings and where they are: a file, the recipe itself, or the file accelerate was launched with."""

    values: dict[str, Any]
    place: str | None = None  # None = in the recipe

    def problem(self, key: str, what: str, fix: str) -> Problem:
        return Problem(key if self.place else f"training.deepspeed.{key}", what, fix, self.place)

    def at(self, key: str) -> Any:
        """The value at a dotted key; None where there is none."""
        value: Any = self.values
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value


def check_launch(recipe: Recipe) -> Problems:
    """Against this process's environment: of a launch it has what the launch file says; otherwise nothing."""
    yield from _precision(recipe.training)
    own = recipe.training.get("deepspeed")
    launched = _on("ACCELERATE_USE_DEEPSPEED")
    if own and launched and os.environ.get(FILE) != own:
        what = f"is given, but accelerate was launched with {os.environ.get(FILE) or LAUNCHED}, which would be ignored"
        yield Problem("training.deepspeed", what, "keep one of the two")
    if own and _on("ACCELERATE_USE_FSDP"):
        what = "is given, but accelerate was launched with FSDP: one engine has the weights"
        yield Problem("training.deepspeed", what, "remove it, or launch with a file of launch/ for DeepSpeed")
    found = _settings(own) if own else _launched() if launched else None
    if isinstance(found, Problem):
        yield found
    elif found is not None:
        for one in CHECKS:
            yield from one(recipe, found)


def _on(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1")


def _precision(training: dict[str, Any]) -> Problems:
    """accelerate's mixed_precision wins where the recipe is silent, and loses without a word where it is not."""
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    ours = next((name for name in ("fp16", "bf16") if training.get(name)), "no")
    if launched not in ("no", ours):
        what = f"the launch file's mixed_precision is {launched}, but the recipe's is {ours}"
        fix = "remove mixed_precision from the launch file, and say here what is meant (training.bf16: true)"
        yield Problem("training.bf16", what, fix)


# Where the settings are ----------------------------------------------------------------------------------------------


def _settings(given: Any) -> Settings | None:
    """Those of training.deepspeed; None for a file that is missing or not JSON (recipe_training.py tells that)."""
    if isinstance(given, dict):
        return Settings(given)
    try:
        if str(given).startswith("{"):
            return Settings(json.loads(given))
        return Settings(json.loads(Path(given).read_text(encoding="utf8")), str(given))
    except (OSError, ValueError):
        return None


def _launched() -> Settings | Problem:
    """Those of `accelerate launch`: a file it names, or single values that became variables of the environment."""
    file = os.environ.get(FILE)
    if file is None:
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        values: dict[str, Any] = {"zero_optimization": {"stage": _number(stage)}}
        for key in ("gradient_clipping", "gradient_accumulation_steps"):
            values[key] = _number(os.environ.get(f"ACCELERATE_{key.upper()}", "auto"))
        return Settings(values, LAUNCHED)
    try:
        return Settings(json.loads(Path(file).read_text(encoding="utf8")), file)
    except OSError:
        fix = "run the command from the folder above launch/, or write the whole path there"
        return Problem("deepspeed_config_file", f"there is no file {file} in {Path.cwd()}", fix, "the launch file")
    except ValueError as error:
        return Problem("", f"this is not JSON ({error})", "correct that file", file)


def _number(text: str) -> Any:
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value.is_integer() else value


# What they say -------------------------------------------------------------------------------------------------------


def _stage(recipe: Recipe, settings: Settings) -> Problems:
    stage = settings.at("zero_optimization.stage")
    if stage not in STAGES:
        what = "is not given" if stage is None else f"is {stage!r}, which is no stage"
        yield settings.problem("zero_optimization.stage", what, "write 2 to share gradients and moments, 3 weights too")


def _sizes(recipe: Recipe, settings: Settings) -> Problems:
    """Batch, accumulation and clipping are the recipe's."""
    training = recipe.training
    per_device = training.get("per_device_train_batch_size", 8)
    share = recipe.objective.batch // world() if recipe.objective.batch else per_device
    steps = training.get("gradient_accumulation_steps", 1)
    limit = training.get("max_grad_norm", 1.0) or 0.0
    name = "objective.batch's share" if recipe.objective.batch else "training.per_device_train_batch_size"
    wanted = {
        "train_micro_batch_size_per_gpu": (share, name),
        "gradient_accumulation_steps": (steps, "training.gradient_accumulation_steps"),
        "train_batch_size": (share * steps * world(), "the recipe's batch x accumulation x processes"),
        "gradient_clipping": (limit, "training.max_grad_norm"),
    }
    absent = {"gradient_accumulation_steps": 1, "gradient_clipping": 0.0}  # what DeepSpeed does without the key
    for key, (ours, whose) in wanted.items():
        given = settings.at(key)
        theirs = absent.get(key, ours) if given is None else given
        if theirs == "auto" or (isinstance(theirs, int | float) and math.isclose(theirs, ours)):
            continue
        what = "is not given, which is no clipping" if key == "gradient_clipping" and given is None else f"is {theirs}"
        yield settings.problem(key, f"{what}, but {whose} is {ours:g}", 'write "auto": the recipe then decides')


def _halves(recipe: Recipe, settings: Settings) -> Problems:
    for name in ("bf16", "fp16"):
        given, ours = settings.at(f"{name}.enabled"), bool(recipe.training.get(name))
        if given not in (None, "auto", ours):
            what = f"is {json.dumps(given)}, but training.{name} is {json.dumps(ours)}"
            yield settings.problem(f"{name}.enabled", what, 'write "auto": the recipe then decides')


def _optimizer(recipe: Recipe, settings: Settings) -> Problems:
    for key, ours in (("optimizer", "optim, learning_rate, head_learning_rate"), ("scheduler", "lr_scheduler_type")):
        if settings.at(key) is not None:
            what = f"would replace what the recipe's training block says ({ours})"
            yield settings.problem(key, what, "remove it there")


CHECKS: list[Callable[[Recipe, Settings], Problems]] = [_stage, _sizes, _halves, _optimizer]


# Whether what is to be seen of a run can be: trackers that are installed, and a best checkpoint chosen by a figure

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


def check_callbacks(recipe: Recipe) -> Problems:
    """training.callbacks are importable, TrainerCallbacks, and accept their options."""
    for chosen in recipe.training.get("callbacks") or []:
        problems = list(component("training.callbacks", chosen, CALLBACKS))
        yield from problems
        if problems:
            continue
        from transformers import TrainerCallback

        found = CALLBACKS.resolve(chosen.type)
        if not (isinstance(found, type) and issubclass(found, TrainerCallback)):
            what = f"names {chosen.type}, which is no transformers.TrainerCallback class"
            yield Problem("training.callbacks", what, "derive it from transformers.TrainerCallback, or remove it")


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
