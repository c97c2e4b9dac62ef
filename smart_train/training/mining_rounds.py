"""Mine hard negatives anew during training, with the weights of that step (ANCE, Xiong et al. 2021).

Rank 0 mines; the others wait for the result.  (Where an engine shards the weights all ranks mine, since each forward
needs all of them, and rank 0's result counts.)  From the next step on every batch has the new negatives, whatever was
prepared ahead: a batch records which negatives it was made with, and one that is out of date when its step comes is
made again from its rows.  Data workers look for newer negatives before each batch, so this happens only to the few
batches that were prepared ahead, and no random state changes.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from smart_train.config.schema import MiningBlock
from smart_train.core.atomic_io import replacing
from smart_train.core.bounded_json import load_json
from smart_train.core.disk import disk_fault
from smart_train.core.errors import TrainingStopped
from smart_train.data.collection import Collection
from smart_train.distributed.process_group import ProcessGroup, describe
from smart_train.mining.extensions import MINERS, RERANKERS, load_callable
from smart_train.mining.folder import round_miner
from smart_train.mining.selection import MiningOptions
from smart_train.models.encoder import SmartEncoder

logger = logging.getLogger(__name__)

LOST = "mining/lost"  # in the log: rounds until here whose negatives the disk did not take
Negatives = dict[str, list[str]]  # query id -> document ids, as Collection.negatives
Miner = Callable[[SmartEncoder], tuple[Negatives, dict[str, float]]]
"""Mines with the encoder as it is: encoder -> (negatives, metrics for the log)."""


def is_due(step: int, last: int, every: int | None, rounds: int | None) -> bool:
    """Return whether negatives are mined after this step of ``last``: at multiples of ``every``, or ``rounds`` times at
    equal distances.  Never after the last step, since nothing would be trained with them."""
    if not 0 < step < last:
        return False
    if every is not None:
        return step % every == 0
    return any(step == last * turn // (rounds + 1) for turn in range(1, rounds + 1)) if rounds else False


@dataclass
class NegativesStore:
    """Keeps negatives by the step they were mined after, as files of a folder that this machine's processes share.

    collection: whose ``negatives`` are replaced; step: of those it has now; -1 = those it came with
    The newest step is in a file of its own, written last, so that looking for it costs one small read a batch.
    """

    folder: Path
    collection: Collection
    step: int = -1

    def file(self, step: int) -> Path:
        return self.folder / f"step-{step}.json"

    def publish(self, step: int, negatives: Negatives) -> None:
        _replace(self.file(step), json.dumps(negatives))
        self.announce(step)

    def announce(self, step: int) -> None:
        _replace(self.folder / "current", str(step))

    def use(self, step: int, negatives: Negatives | None = None) -> None:
        """Give the collection the negatives of a step."""
        self.collection.negatives = load_json(self.file(step).read_text("utf-8")) if negatives is None else negatives
        self.step = step

    def refresh(self) -> None:
        """Take the newest negatives, in a data worker."""
        current = int((self.folder / "current").read_text("utf-8"))
        if current != self.step:
            self.use(current)


def _replace(file: Path, text: str) -> None:
    """Write a file atomically: a worker may be reading it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # a name of its own: on a disk that several machines share, each writes the same file
    with replacing(file, f".{socket.gethostname()}.{os.getpid()}") as part:
        part.write_text(text, "utf-8")


@dataclass
class BatchOrigin:
    """Origin of a batch: its rows, and the step of its negatives."""

    rows: list[tuple[str, str]]
    step: int


@dataclass
class FreshCollator:
    """Wraps a data collator, so that batches have the newest negatives when they are trained on.

    collate: reads ``store.collection``; a worker gets both in one piece, so that they share it there as well
    """

    collate: Callable[[list[tuple[str, str]]], dict[str, Any]]
    store: NegativesStore
    remade: int = field(default=0, compare=False)  # batches made a second time, counted in the main process

    def __call__(self, rows: list[tuple[str, str]]) -> dict[str, Any]:
        self.store.refresh()
        return {**self.collate(rows), "origin": BatchOrigin(list(rows), self.store.step)}

    def current(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return a step's inputs, made again where negatives were mined since."""
        origin: BatchOrigin = inputs.pop("origin")
        if origin.step == self.store.step:
            return inputs
        self.remade += 1
        return self.collate(origin.rows)


def miner_of(options: MiningBlock, train: Collection, others: Sequence[Collection] = (), batch_size: int = 32) -> Miner:
    """Return what mines as a recipe's block ``mining`` says.

    train: the collection to mine for; others: those it is measured on, whose answers are no candidates
    """
    names = ("k", "mode", "max_relative", "margin", "skip_top", "window", "sampling")
    chosen = MiningOptions(**{name: getattr(options, name) for name in names}, range=(options.first, options.last))
    return round_miner(
        train,
        others,
        chosen,
        batch_size,
        miner=None if options.miner is None else load_callable(MINERS, options.miner),
        reranker=None if options.reranker is None else load_callable(RERANKERS, options.reranker),
    )


class MiningRounds(TrainerCallback):
    """Mines after the steps that are due (see ``is_due``), and with ``start`` before the first one.

    It adds itself to the trainer, and wraps the trainer's data collator and step.

    trainer: a SmartTrainer that does not train yet; collection: the one its collator reads
    mine: called by rank 0; folder: keeps every round's negatives, which a resumed run needs
    every: steps between rounds; rounds: number of rounds; give one of them
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
        self.store = NegativesStore(folder, collection)
        self.initial = collection.negatives  # of the start, should the trainer train twice
        self.collator = FreshCollator(trainer.data_collator, self.store)
        trainer.data_collator = self.collator
        self.lost = 0  # rounds whose negatives could not be written
        self.overdue = False  # a round is due after the step that a run is resumed from, and was not made
        self.training_step = trainer.training_step
        trainer.training_step = self._fresh_step
        trainer.add_callback(self)

    def _fresh_step(self, model: Any, inputs: dict[str, Any], *more: Any) -> Any:
        """Run the trainer's step with inputs that are not out of date."""
        return self.training_step(model, self.collator.current(inputs), *more)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the negatives in use at the step that a run is resumed from; or mine, with ``start``."""
        done = state.global_step
        lost = {line["step"] for line in state.log_history if LOST in line}
        due = (step for step in range(1, done + 1) if is_due(step, state.max_steps, self.every, self.rounds))
        steps, self.lost = [step for step in due if step not in lost], len(lost)
        self.overdue = done in steps and not all(ProcessGroup().exchange(self.store.file(done).is_file()))
        if self.overdue:  # a signal ended the run after this step; a line logged now would be removed again
            steps.remove(done)
        last = max(steps, default=0 if self.start else -1)
        if self._writes(args):
            self.store.announce(-1 if last < 0 or not done else last)
        self.trainer.accelerator.wait_for_everyone()
        if last < 0 or (done == 0 and not self.start):
            self.store.use(-1, self.initial)
        elif done == 0:
            self._round(args, state)
        elif not self.store.file(last).is_file():
            raise TrainingStopped(
                f"the run is resumed after step {done}, and the negatives mined after step {last} are not in "
                f"{self.store.folder}; resume from an earlier checkpoint, or start a new run"
            )
        else:
            self.store.use(last)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.overdue:
            self.overdue = False
            self._round(args, state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mine where a round is due.  A signal does not wait for a round: the resumed run makes it."""
        if is_due(state.global_step, state.max_steps, self.every, self.rounds) and not control.should_training_stop:
            self._round(args, state)

    def _round(self, args: TrainingArguments, state: TrainerState) -> None:
        """Mine on rank 0, and give every rank the result, or its error."""
        result: Any = None
        if state.is_world_process_zero or self.trainer.engine.sharded:
            try:
                result = self.mine(self.trainer.encoder)
            except Exception as error:
                if args.world_size == 1:
                    raise
                logger.exception("mining after step %d failed", state.global_step)
                result = describe(error)
        result = ProcessGroup().broadcast(result)
        if isinstance(result, str):
            raise TrainingStopped(f"mining after step {state.global_step} failed on rank 0: {result}")
        negatives, metrics = result
        step = state.global_step
        fault = self._publish(step, negatives) if self._writes(args) else None
        faults = [one for one in ProcessGroup().exchange(fault) if one is not None]
        if faults and step == 0:
            what = f"negatives mined before the first step cannot be written to {self.store.folder} ({faults[0]})"
            raise TrainingStopped(f"{what}; free space and start again")
        if faults:
            self._lose(args, step, faults[0])
            return
        self.store.use(step, negatives)
        self.trainer.log({f"mining/{name}": value for name, value in metrics.items()})

    def _publish(self, step: int, negatives: Negatives) -> str | None:
        """Write negatives for this machine's data workers; return why the disk does not take them."""
        try:
            self.store.publish(step, negatives)
        except Exception as error:
            fault = disk_fault(error)
            if fault is None:
                raise
            return fault
        return None

    def _lose(self, args: TrainingArguments, step: int, fault: str) -> None:
        """Go on with the negatives in use, on all ranks alike: what workers and a resumed run cannot read counts as not
        mined, and a run is not worth less than one round of it."""
        if self._writes(args):
            self.store.file(step).unlink(missing_ok=True)
            with suppress(OSError):  # it has not changed then
                self.store.announce(self.store.step)
        self.lost += 1
        logger.warning(
            "the negatives mined after step %d cannot be written to %s (%s): the training goes on with those of step "
            "%d; free space before the next round",
            *(step, self.store.folder, fault, self.store.step),
        )
        self.trainer.log({LOST: float(self.lost)})

    def _writes(self, args: TrainingArguments) -> bool:
        """Return whether this process writes: one of each machine does, since machines need not share a disk."""
        return args.local_process_index == 0
