"""How pairs come to the data workers: Trainer's loader around batches that are planned whole."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import TrainingArguments
from transformers.trainer_utils import seed_worker

from smart_train.data.batch_sampler import Batches, Kin
from smart_train.distributed.signals import outlast


def planned(kin: Kin, args: TrainingArguments, size: int | None = None) -> Batches:
    """The batches of a run by its arguments; size: pairs of one rank's batch, where it is not the arguments'."""
    return Batches(
        kin,
        (size or args.train_batch_size) * args.world_size,
        args.world_size,
        seed=args.seed if args.data_seed is None else args.data_seed,
        drop_last=args.dataloader_drop_last,
    )


def _begin(worker: int, num_workers: int, rank: int) -> None:
    """What a data worker does first: Trainer's seeds, and it outlasts a signal to the run."""
    seed_worker(worker, num_workers, rank)
    outlast()


def train_loader(
    pairs: Any,
    batches: Batches,
    collate: Callable[..., Any],
    args: TrainingArguments,
    accelerator: Accelerator,
) -> DataLoader[Any]:
    """This rank's share of the batches, collated in data workers; prepared by accelerate, as Trainer's own loader is.

    Raises ValueError where accelerate is told to divide batches itself: it cuts tensors, and these are none.
    """
    if accelerator.split_batches or accelerator.dispatch_batches:
        raise ValueError(
            "training.accelerator_config: split_batches and dispatch_batches cut a batch of tensors, and a batch here "
            "is planned for all processes together; leave them out"
        )
    loader: DataLoader[Any] = DataLoader(
        pairs,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        prefetch_factor=args.dataloader_prefetch_factor,
        in_order=args.dataloader_in_order,
        worker_init_fn=partial(_begin, num_workers=args.dataloader_num_workers, rank=args.process_index),
    )
    prepared: DataLoader[Any] = accelerator.prepare(loader)
    shard: Any = prepared.batch_sampler
    if shard is not batches:
        # On several ranks accelerate wraps ours once, and once more where a resumed run skips what it had; Trainer
        # hands the epoch to the wrapper below the outer one, which would then keep it, and epoch 0 be drawn again.
        shard.set_epoch = batches.set_epoch
    return prepared
