"""Training arguments: transformers' TrainingArguments with this project's defaults and a learning rate of the head."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainingArguments


@dataclass
class SmartTrainingArguments(TrainingArguments):
    """transformers.TrainingArguments, exported as ``smart_train.TrainingArguments``, with other defaults and:

    head_learning_rate: learning rate of the late head and the layer mix; None = learning_rate.  A fresh head wants
        about ten times the backbone's.  ``max_grad_norm`` applies to the head and to the rest separately.
    """

    report_to: None | str | list[str] = "none"  # wandb, tensorboard, trackio by name; log.jsonl is always written
    remove_unused_columns: bool = False  # rows are (query id, document id), not columns
    dataloader_drop_last: bool = True  # a last batch of few pairs would have few negatives
    logging_first_step: bool = True
    save_total_limit: int | None = 2
    lr_scheduler_type: Any = "cosine"
    project: str = "smart-train"  # under which trackers file the run
    ddp_timeout: int = 21600  # seconds; ranks wait while rank 0 ranks the test split with the base
    head_learning_rate: float | None = field(default=None, metadata={"help": "learning rate of the late head"})


def training_arguments(block: dict[str, Any], output: Path) -> SmartTrainingArguments:
    """Return the arguments of a recipe's ``training`` block, with checkpoints in OUTPUT/checkpoints.

    Raises what TrainingArguments raises (checks/recipe.py names the key).
    """
    own = {name: value for name, value in block.items() if name != "callbacks"}  # the trainer gets these
    return SmartTrainingArguments(**{"output_dir": str(output / "checkpoints"), **own})
