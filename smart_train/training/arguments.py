"""Training arguments: transformers' TrainingArguments with this project's defaults and a learning rate of the head."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from smart_train.checks.training import TRACKERS
from smart_train.core.extras import require

RATES = {"lora": 1e-4, "full": 2e-5, "frozen": 1e-3}
"""Learning rate by ``adapter.kind``, where none is given."""


class DefaultRate(float):
    """A learning rate that nobody gave: a trainer puts the one of its ``adapter.kind`` in its place."""


@dataclass
class SmartTrainingArguments(TrainingArguments):
    """transformers.TrainingArguments, exported as ``smart_train.TrainingArguments``, with other defaults and:

    learning_rate: by default that of what is trained: 1e-4 for LoRA, 2e-5 for all weights, 1e-3 for a head on a frozen
        backbone
    head_learning_rate: learning rate of the late head and the layer mix; None = learning_rate where that is given, else
        1e-3.  A fresh head wants about ten times the backbone's.  ``max_grad_norm`` applies to the head and to the rest
        separately.

    >>> arguments = SmartTrainingArguments("runs/mine", max_steps=100, use_cpu=True)
    >>> arguments.learning_rate, arguments.warmup_steps, arguments.logging_steps
    (0.0001, 0.05, 10)
    """

    learning_rate: float = DefaultRate(RATES["lora"])
    warmup_steps: float = 0.05  # a share of the steps: Adam's averages are empty at first
    logging_steps: float = 10

    report_to: None | str | list[str] = "none"  # wandb, tensorboard, trackio by name; log.jsonl is always written
    remove_unused_columns: bool = False  # rows are (query id, document id), not columns
    dataloader_drop_last: bool = True  # a last batch of few pairs would have few negatives
    logging_first_step: bool = True
    save_total_limit: int | None = 2
    lr_scheduler_type: Any = "cosine"
    project: str = "smart-train"  # under which trackers file the run
    ddp_timeout: int = 21600  # seconds; ranks wait while rank 0 ranks the test split with the base
    head_learning_rate: float | None = field(default=None, metadata={"help": "learning rate of the late head"})

    def __post_init__(self) -> None:
        """Raise MissingPackage where an optional package is asked for and missing, before anything is loaded."""
        if self.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
            require("deepspeed", "DeepSpeed")
        for name in [self.report_to] if isinstance(self.report_to, str) else self.report_to or []:
            if name in TRACKERS:
                module, package = TRACKERS[name]
                require(module, f"report_to={name!r}", package)
        super().__post_init__()

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Return the steps in which the rate rises; a share of less than one step is none, so that a run of a few steps
        does not begin with one that changes nothing."""
        share = self.warmup_steps if self.warmup_steps < 1 else 0
        return 0 if share and num_training_steps * share < 1 else super().get_warmup_steps(num_training_steps)


HEAD_RATE = 1e-3  # of a head beside a backbone that is trained, where no learning rate is given
SAID = ("warmup_steps", "lr_scheduler_type", "logging_steps", "per_device_train_batch_size", "num_train_epochs", "seed")


def learning_rates(kind: str, head: bool, training: Mapping[str, Any]) -> dict[str, float]:
    """Return the learning rates that are used where ``training`` gives none.

    kind: what is trained, as ``adapter.kind``; head: whether a late head or a mix of layers is trained
    training: a recipe's block, or the arguments as a dict

    >>> learning_rates("lora", True, {}), learning_rates("lora", True, {"learning_rate": 5e-4})
    ({'learning_rate': 0.0001, 'head_learning_rate': 0.001}, {})
    """
    if not isinstance(training.get("learning_rate", DefaultRate()), DefaultRate):
        return {}
    found = {"learning_rate": RATES[kind]}
    if head and kind != "frozen" and training.get("head_learning_rate") is None:
        found["head_learning_rate"] = HEAD_RATE
    return found


def defaults_in_use(args: SmartTrainingArguments, kind: str, rates: Mapping[str, float]) -> list[str]:
    """Return which of the values that shape a run are the defaults, as words for the log.

    rates: what ``learning_rates`` gave for a trainer of this kind
    """
    names = {"lora": "for LoRA", "full": "for all weights", "frozen": "for a head alone"}
    told = [f"{n} {v:g}" + (f" ({names[kind]})" if n == "learning_rate" else "") for n, v in rates.items()]
    usual = {field.name: field.default for field in fields(args)}
    skipped = {"num_train_epochs"} if args.max_steps > 0 else set()
    if str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)) == "constant":
        skipped.add("warmup_steps")
    values = {name: getattr(args, name) for name in SAID if name not in skipped}
    plain = {name: getattr(value, "value", value) for name, value in values.items()}
    return told + [f"{n} {v}" for n, v in plain.items() if v == getattr(usual[n], "value", usual[n])]


def training_arguments(block: dict[str, Any], output: Path) -> SmartTrainingArguments:
    """Return the arguments of a recipe's ``training`` block, with checkpoints in OUTPUT/checkpoints.

    Raises what TrainingArguments raises (checks/recipe.py names the key).
    """
    own = {name: value for name, value in block.items() if name != "callbacks"}  # the trainer gets these
    return SmartTrainingArguments(**{"output_dir": str(output / "checkpoints"), **own})
