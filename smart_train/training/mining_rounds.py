"""Hard negatives mined anew while a run trains, with the weights as they are at that step (ANCE, Xiong et al. 2021).

The first rank mines, the others wait and are told (where an engine shards the weights all mine, as each forward is
everyone's, and the first one's result counts).  From the next step on every batch has the new negatives, whatever
was prepared ahead: a batch says which negatives it was made with, and one that is out of date when its step comes is
made again from its rows.  Data workers look for newer negatives before each batch, so that happens to the few batches
that were prepared ahead, and no random state is touched: the run is the one whose negatives were replaced at that step.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from smart_train.core.atomic_io import replacing
from smart_train.core.errors import TrainingStopped
from smart_train.data.collection import Collection
from smart_train.distributed.process_group import ProcessGroup
from smart_train.models.encoder import SmartEncoder

logger = logging.getLogger(__name__)

Found = dict[str, list[str]]  # query id -> document ids, as Collection.negatives
Miner = Callable[[SmartEncoder], tuple[Found, dict[str, float]]]
"""Mines with the encoder as it is: the negatives, and figures for the log."""


def due(step: int, last: int, every: int | None, rounds: int | None) -> bool:
    """Whether negatives are mined after this step of ``last``: at multiples of ``every``, or ``rounds`` times at equal
    distances; never after the last step, since nothing would be trained with them."""
    if not 0 < step < last:
        return False
    if every is not None:
        return step % every == 0
    return any(step == last * turn // (rounds + 1) for turn in range(1, rounds + 1)) if rounds else False


@dataclass
class Store:
    """Negatives by the step they were mined after, as files of a folder that this machine's processes share.

    collection: whose ``negatives`` are replaced; step: those it has now; -1 = those it came with
    The newest step is told by a file of its own, written last, so that looking for it costs one small read a batch.
    """

    folder: Path
    collection: Collection
    step: int = -1

    def file(self, step: int) -> Path:
        return self.folder / f"step-{step}.json"

    def publish(self, step: int, negatives: Found) -> None:
        _replace(self.file(step), json.dumps(negatives))
        self.announce(step)

    def announce(self, step: int) -> None:
        _replace(self.folder / "current", str(step))

    def use(self, step: int, negatives: Found | None = None) -> None:
        """Gives the collection the negatives of a step."""
        self.collection.negatives = json.loads(self.file(step).read_text("utf-8")) if negatives is None else negatives
        self.step = step

    def refresh(self) -> None:
        """In a data worker: takes what was announced since."""
        current = int((self.folder / "current").read_text("utf-8"))
        if current != self.step:
            self.use(current)

    def before(self, step: int) -> int | None:
        """The latest step up to this one after which negatives were mined; None where there is no such file."""
        steps = (int(file.stem.removeprefix("step-")) for file in self.folder.glob("step-*.json"))
        return max((found for found in steps if found <= step), default=None)


def _replace(file: Path, text: str) -> None:
    """Whole or not at all: a worker may be reading."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # a name of its own: on a disk that several machines share, each writes the same file
    with replacing(file, f".{socket.gethostname()}.{os.getpid()}") as part:
        part.write_text(text, "utf-8")


@dataclass
class Made:
    """What a batch was made of."""

    rows: list[tuple[str, str]]
    step: int


@dataclass
class Fresh:
    """A data collator around another whose batches have the newest negatives when they are trained on.

    collate: reads ``store.collection``; a worker gets both in one piece, so that they share it there as well
    """

    collate: Callable[[list[tuple[str, str]]], dict[str, Any]]
    store: Store
    again: int = field(default=0, compare=False)  # batches made a second time, counted in the main process

    def __call__(self, rows: list[tuple[str, str]]) -> dict[str, Any]:
        self.store.refresh()
        return {**self.collate(rows), "made": Made(list(rows), self.store.step)}

    def current(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A step's inputs, made again where negatives were mined since."""
        made: Made = inputs.pop("made")
        if made.step == self.store.step:
            return inputs
        self.again += 1
        return self.collate(made.rows)


class Remine(TrainerCallback):
    """Mines after the steps that are due (see ``due``), and with ``start`` before the first one.

    trainer: its data collator and its step are wrapped here, before it trains; collection: the one its collator reads
    mine: what the first rank calls; folder: keeps every round's negatives, which a resumed run needs
    Raises ValueError where neither or both of every and rounds are given, or one is below 1.
    """

    def __init__(
        self,
        trainer: Any,
        collection: Collection,
        mine: Miner,
        folder: Path,
        every: int | None = None,
        rounds: int | None = None,
        start: bool = False,
    ) -> None:
        if (every is None) == (rounds is None) or (every or rounds or 0) < 1:
            raise ValueError(f"give steps between rounds, or a number of rounds, 1 or more; not {every}, {rounds}")
        self.trainer, self.mine, self.every, self.rounds, self.start = trainer, mine, every, rounds, start
        self.store = Store(folder, collection)
        self.given = collection.negatives  # what the run began with, should it train twice
        self.fresh = Fresh(trainer.data_collator, self.store)
        trainer.data_collator = self.fresh
        self.owed = False  # a round that is due after the step a run goes on from, and was not made
        self.step = trainer.training_step
        trainer.training_step = self._step
        trainer.add_callback(self)

    def _step(self, model: Any, inputs: dict[str, Any], *more: Any) -> Any:
        """The trainer's step, with inputs that are not out of date."""
        return self.step(model, self.fresh.current(inputs), *more)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes the negatives that were in force at the step a run is resumed from; mines, where it begins so."""
        done = state.global_step
        steps = [step for step in range(1, done + 1) if due(step, state.max_steps, self.every, self.rounds)]
        self.owed = done in steps and not all(ProcessGroup().exchange(self.store.file(done).is_file()))
        if self.owed:  # a signal ended the run after this step; what is logged now would be taken out again
            steps.remove(done)
        last = max(steps, default=0 if self.start else -1)
        if self._writes(args):
            self.store.announce(-1 if last < 0 or not done else last)
        self._meet()
        if last < 0 or (done == 0 and not self.start):
            self.store.use(-1, self.given)
        elif done == 0:
            self._round(args, state)
        elif not self.store.file(last).is_file():
            raise TrainingStopped(
                f"the run is resumed after step {done}, and the negatives mined after step {last} are not in "
                f"{self.store.folder}; resume from an earlier checkpoint, or start anew"
            )
        else:
            self.store.use(last)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.owed:
            self.owed = False
            self._round(args, state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A signal does not wait for a round: the run that goes on makes it."""
        if due(state.global_step, state.max_steps, self.every, self.rounds) and not control.should_training_stop:
            self._round(args, state)

    def _round(self, args: TrainingArguments, state: TrainerState) -> None:
        """Rank 0 mines; everyone gets the result, or its error."""
        told: list[Any] = [None]
        if state.is_world_process_zero or self.trainer.engine.sharded:
            try:
                told = [self.mine(self.trainer.encoder)]
            except Exception as error:
                if args.world_size == 1:
                    raise
                logger.exception("mining after step %d failed", state.global_step)
                told = [f"{type(error).__name__}: {error}"]
        if args.world_size > 1:
            dist.broadcast_object_list(told, src=0)
        if isinstance(told[0], str):
            raise TrainingStopped(f"mining after step {state.global_step} failed on rank 0: {told[0]}")
        negatives, figures = told[0]
        step = state.global_step
        if self._writes(args):
            self.store.publish(step, negatives)
        self._meet()
        self.store.use(step, negatives)
        self.trainer.log({f"mining/{name}": value for name, value in figures.items()})

    def _writes(self, args: TrainingArguments) -> bool:
        """One process of each machine: machines need not share a disk."""
        return args.local_process_index == 0

    def _meet(self) -> None:
        self.trainer.accelerator.wait_for_everyone()
