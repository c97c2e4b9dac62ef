"""Load batches: rows to data workers, collated batches to the device, at once or chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import seed_worker

from smart_train.core.embeddings import Batch, Features
from smart_train.core.errors import DataError, SettingError
from smart_train.data.batch_sampler import PairBatchSampler, PairGroups
from smart_train.data.streaming import BatchNumbers, RowStream, StreamedBatches
from smart_train.distributed.signals import outlast_first_signal

Rows = list[tuple[str, str]]


@dataclass
class BatchOnHost:
    """Keeps accelerate from moving a Batch to the device: it moves whatever has a ``to``.  A step of a large batch
    moves one chunk after another instead (the pixels of 1,024 pages are 18 GB)."""

    batch: Batch


def batch_of(inputs: dict[str, Any]) -> Batch:
    """Return the batch in Trainer's inputs."""
    batch: Batch | BatchOnHost = inputs["batch"]
    return batch.batch if isinstance(batch, BatchOnHost) else batch


@dataclass
class TrainerInputs:
    """Collates rows to a Batch inside a dict, as Trainer's inputs must be.  (A spawned data worker gets it pickled.)

    on_host: the batch stays in main memory, and a step moves it chunk by chunk
    """

    collate: Callable[[Any], Batch]
    on_host: bool = False

    def __call__(self, rows: Any) -> dict[str, Any]:
        batch = self.collate(rows)
        return {"batch": BatchOnHost(batch) if self.on_host else batch}


class EpochOfPairs(TrainerCallback):
    """Tells the epoch to a dataset that wants to know it, before any row of it is drawn."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(int((state.epoch or 0) + 1e-6))  # a sum of fractions may end just below


@dataclass
class ChunksOnDevice(Sequence[Features]):
    """Chunks of features, each moved to the device when it is indexed."""

    chunks: list[Features]
    device: torch.device

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: Any) -> Any:
        chunk = self.chunks[number]
        return {k: v.to(self.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in chunk.items()}


def plan_batches(groups: PairGroups, args: TrainingArguments, size: int | None = None) -> PairBatchSampler:
    """Return the batches of a run.  size: pairs of one rank's batch, where it differs from the arguments'."""
    return PairBatchSampler(
        groups,
        (size or args.train_batch_size) * args.world_size,
        args.world_size,
        seed=args.seed if args.data_seed is None else args.data_seed,
        drop_last=args.dataloader_drop_last,
    )


def stream_batches(stream: RowStream, args: TrainingArguments, size: int | None = None) -> StreamedBatches:
    """Return the batches of a stream.  size: as of ``plan_batches``"""
    size = (size or args.train_batch_size) * args.world_size
    return StreamedBatches(stream, size, args.world_size, args.seed if args.data_seed is None else args.data_seed)


def _start_worker(worker: int, num_workers: int, rank: int) -> None:
    """Seed a data worker as Trainer does, and have it outlast a signal to the run."""
    seed_worker(worker, num_workers, rank)
    outlast_first_signal()


def check_accelerator(args: TrainingArguments) -> None:
    """Raise SettingError where accelerate is told to divide or draw batches itself: it cuts tensors, and these are row
    numbers, planned for all processes together."""
    config: Any = args.accelerator_config
    given = {"split_batches": config.split_batches, "dispatch_batches": config.dispatch_batches}
    given |= {"even_batches": not config.even_batches, "use_seedable_sampler": not config.use_seedable_sampler}
    wrong = [name for name, other in given.items() if other]
    if wrong:
        what = f"{' and '.join(wrong)} would cut or draw batches, and ours are planned for all processes"
        raise SettingError("training.accelerator_config", what, "remove them" if wrong[1:] else "remove it")


@contextmanager
def worker_errors() -> Iterator[None]:
    """Raise a DataError of a data worker as its own sentence: torch puts the worker's traceback before it."""
    try:
        yield
    except DataError as error:
        before, name, sentence = str(error).rpartition(f"{type(error).__module__}.{type(error).__qualname__}: ")
        if not before.startswith("Caught "):
            raise
        raise DataError(sentence.strip()) from error


def loader_options(args: TrainingArguments) -> dict[str, Any]:
    """Return what the arguments say of a DataLoader's workers and memory."""
    return {
        "num_workers": args.dataloader_num_workers,
        "pin_memory": args.dataloader_pin_memory,
        "persistent_workers": args.dataloader_persistent_workers,
        "multiprocessing_context": args.dataloader_multiprocessing_context,
        "prefetch_factor": args.dataloader_prefetch_factor,
        "in_order": args.dataloader_in_order,
    }


def train_loader(
    pairs: Any,
    batches: PairBatchSampler | BatchNumbers,
    collate: Callable[..., Any],
    args: TrainingArguments,
    accelerator: Accelerator,
) -> DataLoader[Any]:
    """Return a loader of this rank's share of planned batches, prepared by accelerate as Trainer's own loader is.

    Raises SettingError as ``check_accelerator``.
    """
    check_accelerator(args)
    loader: DataLoader[Any] = DataLoader(
        pairs,
        batch_sampler=batches,
        collate_fn=collate,
        **loader_options(args),
        worker_init_fn=partial(_start_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
    )
    prepared: DataLoader[Any] = accelerator.prepare(loader)
    shard: Any = prepared.batch_sampler
    if shard is not batches:
        # On several ranks accelerate wraps ours once, and once more where a resumed run skips what it had; Trainer
        # hands the epoch to the wrapper below the outer one, which would then keep it, and epoch 0 be drawn again.
        shard.set_epoch = batches.set_epoch
    return prepared
