"""Check the block ``training``: its values, trackers, callbacks, and the metric that chooses the best checkpoint.

Values are tried on a TrainingArguments that starts no process group, opens no DeepSpeed engine and makes no folder.
What an engine or a device refuses beyond that shows only when the run starts.
"""

from __future__ import annotations

import copy
import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from smart_train.checks.bounds import Problems, at_least, component
from smart_train.config.schema import Recipe
from smart_train.config.training_arguments import CALLBACKS, OWN
from smart_train.config.typed_values import Problem
from smart_train.core.bounded_json import load_json
from smart_train.core.environment import rank
from smart_train.core.extras import how_to_install, installed

AT_LEAST: dict[str, tuple[float, bool]] = {  # name -> (limit, whether the limit itself is allowed)
    "learning_rate": (0, False),
    "head_learning_rate": (0, False),
    "per_device_train_batch_size": (1, True),
    "gradient_accumulation_steps": (1, True),
    "num_train_epochs": (0, False),
    "weight_decay": (0, True),
    "max_grad_norm": (0, True),
    "dataloader_num_workers": (0, True),
    "save_total_limit": (1, True),
    "eval_steps": (0, False),
    "save_steps": (0, False),
    "logging_steps": (0, False),
    "warmup_steps": (0, True),
}
MODES = ("pooled", "late", "hybrid")
MEASURES = ("ndcg", "recall", "mrr", "success")
TRACKERS = {  # name in report_to -> (module, package to install)
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
FIX = "correct it, see TrainingArguments"


def check_training(recipe: Recipe) -> list[Problem]:
    """Return what TrainingArguments would refuse or silently ignore."""
    given = recipe.training
    problems = _limits(given) + _steps(given) + _files(given) + _precision(given) + _wandb_login(given)
    return problems or _dry_run(given)


def _limits(given: dict[str, Any]) -> list[Problem]:
    problems = []
    for name, (limit, allowed) in AT_LEAST.items():
        value = given.get(name)
        if value is not None and (value < limit or (value == limit and not allowed)):
            bound = f"at least {limit:g}" if allowed else f"above {limit:g}"
            problems.append(Problem(f"training.{name}", f"is {value:g}, must be {bound}", f"write a value {bound}"))
    if given.get("max_steps", -1) == 0 or given.get("max_steps", -1) < -1:
        fix = "write a positive number of steps, or remove it to train num_train_epochs"
        problems.append(Problem("training.max_steps", f"is {given['max_steps']}, which is no number of steps", fix))
    return problems


def _steps(given: dict[str, Any]) -> list[Problem]:
    problems = []
    for what, default in (("eval", "no"), ("save", "steps")):
        strategy, steps = given.get(f"{what}_strategy", default), given.get(f"{what}_steps")
        if what == "eval" and strategy == "steps" and steps is None:
            fix = "write eval_steps: a number of steps"
            problems.append(Problem("training.eval_strategy", "is steps, but eval_steps is not given", fix))
        if steps is not None and strategy != "steps":
            fix = f"write {what}_strategy: steps, or remove {what}_steps"
            text = f"has no effect while {what}_strategy is {strategy}"
            problems.append(Problem(f"training.{what}_steps", text, fix))
    return problems


def _files(given: dict[str, Any]) -> list[Problem]:
    """Settings named by a path must exist and be JSON."""
    problems = []
    for name in ("deepspeed", "fsdp_config", "accelerator_config"):
        value = given.get(name)
        if not isinstance(value, str) or value.startswith("{"):
            continue
        if not Path(value).is_file():
            problems.append(Problem(f"training.{name}", f"there is no file {value}", "correct the path"))
            continue
        try:
            load_json(Path(value).read_text(encoding="utf8"))
        except ValueError as error:
            problems.append(Problem(f"training.{name}", f"{value} is not JSON ({error})", "correct that file"))
    return problems


def _precision(given: dict[str, Any]) -> list[Problem]:
    """bf16 and fp16 exclude each other, and this machine must have the one."""
    import torch
    from transformers.utils import is_torch_bf16_gpu_available

    problems = []
    if given.get("bf16") and given.get("fp16"):
        problems.append(Problem("training.fp16", "bf16 and fp16 are both true", "keep one; bf16 where the GPU can"))
    cpu = bool(given.get("use_cpu"))
    if given.get("bf16") and not cpu and not is_torch_bf16_gpu_available():
        what = "bf16 is true, but this machine has no GPU that computes in it"
        fix = "write bf16: false, or use_cpu: true to train in bf16 on the CPU"
        problems.append(Problem("training.bf16", what, fix, here=True))
    if given.get("fp16") and not given.get("bf16") and (cpu or not torch.cuda.is_available()):
        what = "fp16 is true, but there is no GPU to train on"
        fix = "write fp16: false (on a CPU: bf16: true with use_cpu: true)"
        problems.append(Problem("training.fp16", what, fix, here=True))
    return problems


def _wandb_login(given: dict[str, Any]) -> list[Problem]:
    """wandb without a key would stop a run after the model has been loaded."""
    names = given.get("report_to") or []
    names = [names] if isinstance(names, str) else names
    if not {"wandb", "all"} & set(names) or rank() != 0:  # "all" is what is installed, and wandb is
        return []
    mode = os.environ.get("WANDB_MODE", "")
    if mode in ("offline", "disabled", "dryrun", "shared") or wandb_key():
        return []
    fix = "run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline, or write report_to: none"
    return [Problem("training.report_to", "is wandb, but wandb has no API key here", fix, here=True)]


def wandb_key() -> bool:
    """Return whether wandb has a key: in the environment, a netrc file or its settings."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    logins = _texts([os.environ.get("NETRC", "~/.netrc"), "~/_netrc"])
    settings = _texts(["~/.config/wandb/settings", "wandb/settings"])
    host = os.environ.get("WANDB_BASE_URL", "wandb").split("://")[-1]
    return any(host in text for text in logins) or any(
        re.search(r"(?m)^\s*(api_key\s*=|mode\s*=\s*(offline|disabled))", text) for text in settings
    )


def _texts(paths: list[str]) -> list[str]:
    files = (Path(path).expanduser() for path in paths)
    return [file.read_text(encoding="utf8", errors="replace") for file in files if file.is_file()]


def _dry_run(given: dict[str, Any]) -> list[Problem]:
    """Run TrainingArguments' own checks, without the device, the process group and the engines it would start."""
    import torch
    from transformers import TrainingArguments

    class DryArguments(TrainingArguments):
        @property
        def device(self) -> torch.device:  # the real one joins the process group
            return torch.device("cpu")

    values = {k: v for k, v in given.items() if k not in OWN and k not in ("deepspeed", "fsdp")}
    switches = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP")
    kept = {name: os.environ.pop(name) for name in switches if name in os.environ}
    try:
        DryArguments(output_dir="unused", **copy.deepcopy(values))
    except Exception as error:  # of transformers, accelerate or torch: theirs to choose
        text = " ".join(str(error).split()).rstrip(".")
        for name in sorted(values, key=lambda name: name not in text):  # those that the message names are tried first
            try:
                DryArguments(output_dir="unused", **copy.deepcopy({k: v for k, v in values.items() if k != name}))
            except Exception:  # it is not this one, or not this one alone
                continue
            return [Problem(f"training.{name}", f"transformers refuses it: {text}", FIX)]
        return [Problem("training", f"transformers refuses it: {text}", FIX)]
    finally:
        os.environ.update(kept)
    return []


# -- callbacks, trackers, the best checkpoint


def check_callbacks(recipe: Recipe) -> Problems:
    """Callbacks must be importable TrainerCallback classes that accept their options."""
    for chosen in recipe.training.get("callbacks") or []:
        problems = list(component("training.callbacks", chosen, CALLBACKS))
        yield from problems
        if problems:
            continue
        from transformers import TrainerCallback

        callback = CALLBACKS.resolve(chosen.type)
        if not (isinstance(callback, type) and issubclass(callback, TrainerCallback)):
            what = f"names {chosen.type}, which is no transformers.TrainerCallback class"
            yield Problem("training.callbacks", what, "derive it from transformers.TrainerCallback, or remove it")


def check_trackers(recipe: Recipe) -> Problems:
    """Yield what is wrong with training.report_to: unknown trackers, and what they lack here."""
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
        elif not installed(TRACKERS[name][0]):
            what = f"names {name}, whose package is not installed"
            yield Problem("training.report_to", what, f"{how_to_install(*TRACKERS[name])}, or remove it", here=True)


def check_best(recipe: Recipe) -> Problems:
    """Check that the metric that chooses the best checkpoint, lowers the rate or ends the training is measured."""
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
    """The metric must be one of those measured, larger is better, and must be able to change."""
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
        what = f"is false, but for every metric of the dev split larger is better ({metric})"
        yield Problem("training.greater_is_better", what, "remove it")


def _kept(recipe: Recipe) -> Problems:
    """The best evaluation must have a checkpoint.  (transformers refuses strategies that differ, and steps that are no
    multiple.)"""
    training = recipe.training
    every, saved = training.get("eval_steps"), training.get("save_steps", 500)
    steps = training.get("save_strategy", "steps") == training.get("eval_strategy") == "steps"
    if training.get("load_best_model_at_end") and steps and every and saved > every and saved % every == 0:
        what = f"is {saved:g}, and training.eval_steps is {every:g}: the best evaluation may have no checkpoint to load"
        yield Problem("training.save_steps", what, f"write save_steps: {every:g}, or save_strategy: best")
