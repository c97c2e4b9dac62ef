"""The recipe's ``training:`` block as transformers TrainingArguments, under their own names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

DEFAULTS: dict[str, Any] = {
    "report_to": "none",  # wandb, tensorboard, trackio when named; the JSONL log is written always
    "remove_unused_columns": False,  # rows are (query id, document id), not columns
    "dataloader_drop_last": True,  # a last batch of few pairs would have few negatives
    "logging_first_step": True,
    "save_total_limit": 2,
    "lr_scheduler_type": "cosine",
    "project": "smart-train",  # what trackers file the run under
    "ddp_timeout": 21600,  # seconds; rank 0 ranks the test split with the base first, and the others wait to join it
}


@dataclass
class SmartTrainingArguments(TrainingArguments):
    """TrainingArguments and:

    head_learning_rate: learning rate of the late head and the layer mix; None = learning_rate.  A fresh head wants
        about ten times the backbone's.  max_grad_norm holds for the head and for the rest each by itself.
    """

    head_learning_rate: float | None = field(default=None, metadata={"help": "learning rate of the late head"})


def training_arguments(block: dict[str, Any], output: Path) -> SmartTrainingArguments:
    """The block over this project's defaults.  Raises what TrainingArguments raises (recipe.py names the key)."""
    return SmartTrainingArguments(**{"output_dir": str(output / "checkpoints"), **DEFAULTS, **block})
