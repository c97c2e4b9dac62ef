"""How large a batch is, in which pieces it runs, and whether the data can fill it: what a recipe's sizes come to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from smart_train.config.schema import ObjectiveBlock
from smart_train.core.embeddings import Features
from smart_train.core.environment import world
from smart_train.data.collection import Document
from smart_train.models.encoder import SmartEncoder
from smart_train.models.microbatches import image_token, split
from smart_train.training.arguments import SmartTrainingArguments


def shared(training: dict[str, Any], objective: ObjectiveBlock) -> dict[str, Any]:
    """The block ``training`` with each rank's share of objective.batch, which is of all ranks together.

    Before TrainingArguments are made of it, since DeepSpeed's "auto" sizes are settled there.  Raises ValueError where
    the batch can't be shared.
    """
    if objective.batch is None:
        return training
    ranks = world()
    share, rest = divmod(objective.batch, ranks)
    if rest or not share:
        raise ValueError(
            f"objective.batch is {objective.batch}, which {ranks} processes cannot share evenly; "
            f"write {max(1, share) * ranks} or another multiple of {ranks}"
        )
    return training | {"per_device_train_batch_size": share}


def check_steps(args: SmartTrainingArguments, pairs: int) -> None:
    """Raises ValueError where the training pairs do not fill one batch and short batches are dropped."""
    batch = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and pairs < batch:
        raise ValueError(
            f"there are {pairs} training pairs, and a step takes {batch} (objective.batch, or "
            f"per_device_train_batch_size x processes): not one step; write at most {pairs}"
        )


def check_pages(objective: ObjectiveBlock, documents: Iterable[Document], name: str) -> None:
    """Raises ValueError where neighbouring pages are to be no negatives and no document is known to be a page."""
    near = objective.neighbour_pages
    if near is not None and not any(d.file is not None and d.page is not None for d in documents):
        raise ValueError(
            f"objective.neighbour_pages is {near}, but no document of {name} names its file and its page, so nothing "
            "would be left out; remove it, or give the documents both (docs/data.md)"
        )


def chunk_rows(objective: ObjectiveBlock) -> int | None:
    """Rows of one forward: as written, else 32 with gradient caching (its memory is a chunk's), else no limit."""
    if objective.chunk_rows is None and objective.chunk_tokens is None and objective.batch is not None:
        return 32
    return objective.chunk_rows


def splitter(encoder: SmartEncoder, objective: ObjectiveBlock) -> Callable[[Features], list[Features]] | None:
    """Splits a preprocessed chunk by the recipe's token budget; picklable, for data workers."""
    if objective.chunk_tokens is None:
        return None
    return partial(split, tokens=objective.chunk_tokens, image_token=image_token(encoder.backbone.config))
