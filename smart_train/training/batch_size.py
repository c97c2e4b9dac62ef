"""Batch sizes: each rank's share of a batch, the chunks it runs in, and whether the data can fill it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from smart_train.config.schema import ObjectiveBlock
from smart_train.core.embeddings import Features
from smart_train.core.environment import world
from smart_train.core.errors import SettingError, TrainingStopped
from smart_train.data.collection import Collection
from smart_train.data.streaming import NO_EPOCHS, RowStream
from smart_train.models.encoder import SmartEncoder
from smart_train.models.microbatches import image_token, split
from smart_train.training.arguments import SmartTrainingArguments


def with_batch_share(training: dict[str, Any], objective: ObjectiveBlock) -> dict[str, Any]:
    """Return the block ``training`` with each rank's share of objective.batch, which counts the pairs of all ranks.

    Call it before TrainingArguments are made, which settle DeepSpeed's "auto" sizes.  Raises SettingError where the
    processes cannot share the batch evenly.
    """
    if objective.batch is None:
        return training
    ranks = world()
    share, rest = divmod(objective.batch, ranks)
    if rest or not share:
        what = f"is {objective.batch}, which {ranks} processes cannot share evenly"
        raise SettingError("objective.batch", what, f"write {max(1, share) * ranks} or another multiple of {ranks}")
    return training | {"per_device_train_batch_size": share}


def check_batch(args: SmartTrainingArguments, batch: int | None, cached: bool) -> None:
    """Raise SettingError where the ranks draw another number of pairs than ``batch``, the recipe's.

    Raises TrainingStopped for optimizers that move weights within a backward, before gradient caching is done.
    """
    drawn = args.train_batch_size * args.world_size
    if batch is not None and batch != drawn:
        what = f"is {batch}, but {args.world_size} processes draw {drawn} pairs together ({args.train_batch_size} each)"
        raise SettingError("objective.batch", what, "set per_device_train_batch_size to its share")
    optimizer = str(getattr(args.optim, "value", args.optim))
    if cached and ("lomo" in optimizer or "layerwise" in optimizer):
        raise TrainingStopped(
            f"optim {optimizer} moves the weights during a backward, and gradient caching needs several backwards of "
            "the same weights; choose another optim, or remove objective.batch"
        )


def check_steps(args: SmartTrainingArguments, pairs: int) -> None:
    """Raise SettingError where the training pairs do not fill one batch and short batches are dropped."""
    batch = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and pairs < batch:
        what = f"there are {pairs} training pairs, and a step takes {batch}, so there is not one step"
        raise SettingError("objective.batch", what, f"write at most {pairs}, or less in per_device_train_batch_size")


def check_stream(args: SmartTrainingArguments, stream: RowStream) -> None:
    """Raise SettingError where the arguments ask for what a stream does not know: its length, or the end of a pass."""
    if args.max_steps <= 0:
        pairs = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        raise SettingError("training.max_steps", *stream.steps_needed(pairs))
    for name, value in (("eval_strategy", args.eval_strategy), ("save_strategy", args.save_strategy)):
        if value == "epoch":
            raise SettingError(f"training.{name}", NO_EPOCHS, "write steps")


def check_pages(objective: ObjectiveBlock, collection: Collection | RowStream) -> None:
    """Raise SettingError where neighbouring pages are to be no negatives and no document is known to be a page."""
    near = objective.neighbour_pages
    if near is not None and not collection.names_pages():
        what = (
            f"is {near}, but no document of {collection.name} names its file and its page, so nothing would be left out"
        )
        raise SettingError("objective.neighbour_pages", what, "remove it, or give the documents both (docs/data.md)")


def chunk_rows(objective: ObjectiveBlock) -> int | None:
    """Return the rows of one forward: as written, else 32 with gradient caching, else None for no limit."""
    if objective.chunk_rows is None and objective.chunk_tokens is None and objective.batch is not None:
        return 32
    return objective.chunk_rows


def splitter(encoder: SmartEncoder, objective: ObjectiveBlock) -> Callable[[Features], list[Features]] | None:
    """Return a function that splits a preprocessed chunk by the recipe's token budget; None without one."""
    if objective.chunk_tokens is None:
        return None
    return partial(split, tokens=objective.chunk_tokens, image_token=image_token(encoder.backbone.config))
