"""The block ``training``: transformers' TrainingArguments under their own names, head_learning_rate and callbacks.

Values are tried on a TrainingArguments that starts no process group, opens no DeepSpeed engine and makes no folder.
What the engine or a device would refuse beyond that shows only when the run starts.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import typing
from pathlib import Path
from typing import Any

from smart_train.config.schema import Component, Recipe
from smart_train.config.typed_values import Problem
from smart_train.core.environment import rank
from smart_train.core.registry import Registry

OWN = {
    "head_learning_rate": float | None,  # of the late head and the layer mix; null = learning_rate
    "callbacks": list[Component],  # transformers.TrainerCallback classes: package.module:Class, or with options
}
CALLBACKS = Registry("callback", "smart_train.callbacks", {})
RESERVED = {
    "output_dir": "write output, at the recipe's top level",
    "remove_unused_columns": "leave it out: batches here have no columns to remove",
    "label_names": "leave it out: relevance comes from the qrels",
    "push_to_hub": "write publish.repo",
    "hub_model_id": "write publish.repo",
    "hub_private_repo": "write publish.private",
    "hub_strategy": "write publish.repo",
    "hub_token": "leave it out: a secret does not belong in a recipe; set HF_TOKEN",
    "local_rank": "leave it out: the launcher sets it",
}
MOVED = {
    "warmup_ratio": "write warmup_steps, which takes a share too: warmup_steps: 0.03",
    "gradient_checkpointing": "it was renamed: write activation_checkpointing",
    "gradient_checkpointing_kwargs": "it was renamed: write activation_checkpointing_kwargs",
    "evaluation_strategy": "it was renamed: write eval_strategy",
    "logging_dir": "leave it out, and set the environment variable TENSORBOARD_LOGGING_DIR",
    "group_by_length": "leave it out: data.length_groups groups documents of like length",
    "train_sampling_strategy": "leave it out: data.length_window and data.source say which pairs share a batch",
    "no_cuda": "it was renamed: write use_cpu",
    "per_gpu_train_batch_size": "it was renamed: write per_device_train_batch_size",
    "per_gpu_eval_batch_size": "write evaluation.batch_size",
    "overwrite_output_dir": "leave it out: an earlier run is moved out of the way, never overwritten",
    "save_safetensors": "leave it out: everything is saved as safetensors",
    "fp16_opt_level": "leave it out: it belonged to apex",
    "half_precision_backend": "leave it out: there is one backend",
    "lr": "write learning_rate",
    "epochs": "write num_train_epochs",
    "batch_size": "write per_device_train_batch_size",
    "head_lr": "write head_learning_rate",
    **RESERVED,
}
AT_LEAST: dict[str, tuple[float, bool]] = {  # name -> (limit, whether the limit itself is allowed)
    "learning_rate": (0, False),
    "head_learning_rate": (0, False),
    "per_device_train_batch_size": (1, True),
    "per_device_eval_batch_size": (1, True),
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


def hints() -> dict[str, Any]:
    """Name -> type hint of every key that ``training`` may have (this imports transformers)."""
    from transformers import TrainingArguments

    found = typing.get_type_hints(TrainingArguments)
    names = {f.name for f in dataclasses.fields(TrainingArguments) if f.init}
    allowed = {name: hint for name, hint in found.items() if name in names and name not in MOVED}
    allowed["fsdp"] = bool | str | None  # its hint leaves out the value it is meant to have
    allowed["resume_from_checkpoint"] = bool | str | None  # true = the newest whole one of the output folder
    return allowed | OWN


def check_training(recipe: Recipe) -> list[Problem]:
    """What TrainingArguments would refuse or silently ignore."""
    given = recipe.training
    problems = _limits(given) + _steps(given) + _files(given) + _precision(given) + _trackers(given)
    return problems or _dry_run(given)


def make_callbacks(training: dict[str, Any]) -> list[Any]:
    """Return the callbacks of ``training.callbacks``."""
    return [CALLBACKS.create(one.type, one.options) for one in training.get("callbacks") or []]


def _limits(given: dict[str, Any]) -> list[Problem]:
    problems = []
    for name, (limit, allowed) in AT_LEAST.items():
        value = given.get(name)
        if value is not None and (value < limit or (value == limit and not allowed)):
            bound = f"at least {limit:g}" if allowed else f"above {limit:g}"
            problems.append(Problem(f"training.{name}", f"is {value:g}, must be {bound}", f"write a value {bound}"))
    if given.get("max_steps", -1) == 0 or given.get("max_steps", -1) < -1:
        fix = "write a positive number of steps, or leave it out to train num_train_epochs"
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
    """JSON settings named by a path: there, and JSON."""
    problems = []
    for name in ("deepspeed", "fsdp_config", "accelerator_config"):
        value = given.get(name)
        if not isinstance(value, str) or value.startswith("{"):
            continue
        if not Path(value).is_file():
            problems.append(Problem(f"training.{name}", f"there is no file {value}", "correct the path"))
            continue
        try:
            json.loads(Path(value).read_text(encoding="utf8"))
        except ValueError as error:
            problems.append(Problem(f"training.{name}", f"{value} is not JSON ({error})", "correct that file"))
    return problems


def _precision(given: dict[str, Any]) -> list[Problem]:
    """bf16 and fp16, and whether this machine has them."""
    import torch
    from transformers.utils import is_torch_bf16_gpu_available

    problems = []
    for a, b in (("bf16", "fp16"), ("bf16_full_eval", "fp16_full_eval")):
        if given.get(a) and given.get(b):
            problems.append(Problem(f"training.{b}", f"{a} and {b} are both true", f"keep one; {a} where the GPU can"))
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


def _trackers(given: dict[str, Any]) -> list[Problem]:
    """wandb without a key stops a run after the model has been loaded: say it before."""
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
    """TrainingArguments' own checks, without the device, the process group and the engines it would start."""
    import torch
    from transformers import TrainingArguments

    class DryArguments(TrainingArguments):
        @property
        def device(self) -> torch.device:  # the real one joins the process group
            return torch.device("cpu")

    values = {k: v for k, v in copy.deepcopy(given).items() if k not in OWN and k not in ("deepspeed", "fsdp")}
    switches = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP")
    kept = {name: os.environ.pop(name) for name in switches if name in os.environ}
    try:
        DryArguments(output_dir="unused", **values)
    except (ValueError, TypeError, ImportError, KeyError, NotImplementedError) as error:
        text = " ".join(str(error).split()).rstrip(".")
        named = [name for name in given if f"--{name}" in text or f"`{name}`" in text]
        named += [name for name in given if name in text and name not in named]
        key = f"training.{named[0]}" if named else "training"
        return [Problem(key, f"transformers refuses it: {text}", "correct it, see TrainingArguments")]
    finally:
        os.environ.update(kept)
    return []
