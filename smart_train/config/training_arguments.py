"""Read the block ``training``: transformers' TrainingArguments by name, head_learning_rate and callbacks."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from smart_train.config.schema import Component
from smart_train.config.training_fields import REFUSED, changed
from smart_train.core.errors import SettingError
from smart_train.core.registry import Registry

OWN = {
    "head_learning_rate": float | None,  # of the late head and the layer mix; null = learning_rate
    "callbacks": list[Component],  # transformers.TrainerCallback classes: package.module:Class, or with options
}
CALLBACKS = Registry("callback", "smart_train.callbacks", {})
MOVED = {
    "warmup_ratio": "write warmup_steps, which takes a share too: warmup_steps: 0.03",
    "evaluation_strategy": "it was renamed: write eval_strategy",
    "logging_dir": "remove it, and set the environment variable TENSORBOARD_LOGGING_DIR",
    "group_by_length": "remove it: data.length_groups groups documents of like length",
    "no_cuda": "it was renamed: write use_cpu",
    "per_gpu_train_batch_size": "it was renamed: write per_device_train_batch_size",
    "per_gpu_eval_batch_size": "write evaluation.batch_size",
    "overwrite_output_dir": "remove it: an earlier run is moved out of the way, never overwritten",
    "save_safetensors": "remove it: everything is saved as safetensors",
    "fp16_opt_level": "remove it: it belonged to apex",
    "half_precision_backend": "remove it: there is one backend",
    "lr": "write learning_rate",
    "epochs": "write num_train_epochs",
    "batch_size": "write per_device_train_batch_size",
    "head_lr": "write head_learning_rate",
    **REFUSED,
}


def hints() -> dict[str, Any]:
    """Return name -> type hint of every key that ``training`` may have.  Imports transformers."""
    from transformers import TrainingArguments

    known = typing.get_type_hints(TrainingArguments)
    names = {f.name for f in dataclasses.fields(TrainingArguments) if f.init}
    allowed = {name: hint for name, hint in known.items() if name in names and name not in MOVED}
    allowed["fsdp"] = bool | str | None  # its hint leaves out the value it is meant to have
    allowed["resume_from_checkpoint"] = bool | str | None  # true = the newest complete one of the output folder
    return allowed | OWN


def check_idle(args: Any) -> None:
    """Raise SettingError where transformers.TrainingArguments has a value that would change nothing here."""
    for name, value in changed(args):
        raise SettingError(f"training.{name}", f"is {value!r}, which changes nothing", REFUSED[name])


def make_callbacks(training: dict[str, Any]) -> list[Any]:
    """Return the callbacks of ``training.callbacks``."""
    return [CALLBACKS.create(one.type, one.options) for one in training.get("callbacks") or []]
