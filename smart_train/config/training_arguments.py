"""Read the block ``training``: transformers' TrainingArguments by name, head_learning_rate and callbacks."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from smart_train.config.schema import Component
from smart_train.core.errors import SettingError
from smart_train.core.registry import Registry

OWN = {
    "head_learning_rate": float | None,  # of the late head and the layer mix; null = learning_rate
    "callbacks": list[Component],  # transformers.TrainerCallback classes: package.module:Class, or with options
}
CALLBACKS = Registry("callback", "smart_train.callbacks", {})
_RANKED = "remove it: the dev split is ranked, with evaluation.batch_size, and no loss is computed on it"
IDLE = {  # arguments of transformers.Trainer that would change nothing here: refused, since a run records what it used
    "label_smoothing_factor": "remove it: it smooths a classifier's labels; the softmax here is over documents",
    "per_device_eval_batch_size": "write evaluation.batch_size",
    "eval_accumulation_steps": _RANKED,
    "prediction_loss_only": _RANKED,
    "batch_eval_metrics": _RANKED,
    "eval_do_concat_batches": _RANKED,
    "include_for_metrics": _RANKED,
    "eval_use_gather_object": _RANKED,
    "fp16_full_eval": "remove it: documents are ranked in the precision of the model; model.dtype sets it",
    "bf16_full_eval": "remove it: documents are ranked in the precision of the model; model.dtype sets it",
    "length_column_name": "remove it: rows have no columns; data.length_groups groups documents of like length",
    "do_train": "remove it: a recipe always trains",
    "do_eval": "write evaluation.before, evaluation.during, evaluation.after",
    "do_predict": "write evaluation.after",
}
RESERVED = {
    **IDLE,
    "output_dir": "write output, at the recipe's top level",
    "remove_unused_columns": "remove it: batches here have no columns to remove",
    "label_names": "remove it: relevance comes from the qrels",
    "push_to_hub": "write publish.repo",
    "hub_model_id": "write publish.repo",
    "hub_private_repo": "write publish.private",
    "hub_strategy": "write publish.repo",
    "hub_token": "remove it: a secret does not belong in a recipe; set HF_TOKEN",
    "local_rank": "remove it: the launcher sets it",
}
MOVED = {
    "warmup_ratio": "write warmup_steps, which takes a share too: warmup_steps: 0.03",
    "gradient_checkpointing": "it was renamed: write activation_checkpointing",
    "gradient_checkpointing_kwargs": "it was renamed: write activation_checkpointing_kwargs",
    "evaluation_strategy": "it was renamed: write eval_strategy",
    "logging_dir": "remove it, and set the environment variable TENSORBOARD_LOGGING_DIR",
    "group_by_length": "remove it: data.length_groups groups documents of like length",
    "train_sampling_strategy": "remove it: data.length_window and data.source say which pairs share a batch",
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
    **RESERVED,
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
    for field in dataclasses.fields(args):
        # do_eval and the like are set by TrainingArguments itself, and by nobody who expects something of them
        if field.name in IDLE and not field.name.startswith("do_") and field.default is not dataclasses.MISSING:
            value = getattr(args, field.name)
            if value != field.default:
                raise SettingError(f"training.{field.name}", f"is {value!r}, which changes nothing", IDLE[field.name])


def make_callbacks(training: dict[str, Any]) -> list[Any]:
    """Return the callbacks of ``training.callbacks``."""
    return [CALLBACKS.create(one.type, one.options) for one in training.get("callbacks") or []]
