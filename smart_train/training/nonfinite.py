"""What is looked at in every step: a loss or gradient that is no finite number, and a signal that asks for the end.

The ranks agree after every loss, by one tiny all_reduce on a read of the device that is made anyway, so that all do the
same in the same step: stop with one story, leave the step out, or save and end.  Nothing waits for a rank that is gone
on.

A step that is left out (``objective.skip_nonfinite``) leaves no trace: no weights, no optimizer state move on any rank,
while step count, learning rate and data go on.  With accumulation the whole step is left out, whichever of its batches
it was, since a gradient that crossed ranks cannot be taken back, and a mean over fewer batches would be another step.
Not under DeepSpeed, which steps inside its backward and keeps accumulated gradients to itself, nor FSDP (not tried).
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from smart_train.core.atomic_io import replacing
from smart_train.core.embeddings import Batch, Embeddings
from smart_train.core.errors import Preempted, TrainingStopped
from smart_train.distributed import signals
from smart_train.distributed.process_group import ProcessGroup
from smart_train.losses.joint import Loss
from smart_train.training.checks import Skips

logger = logging.getLogger(__name__)

STOPPED = "stopped.json"
SHOWN = 4  # pairs and parts of the loss that a story names


class NotFinite(TrainingStopped):
    """A loss or a gradient is no finite number; raised on every rank, with the same message."""

    on_every_rank = True


class Skipped(Exception):
    """This batch gets no backward, on any rank; caught in the trainer's step."""


class Faults(TrainerCallback):
    """Stops, leaves out or saves, on all ranks alike.

    skip: steps that may be left out; skips: is told of them.  Counts begin anew with every start of a run.
    """

    def __init__(self, skip: int, skips: Skips) -> None:
        self.skip, self.skips = skip, skips
        self.signal = 0  # that some rank heard
        self.seen: list[tuple[Loss, Batch]] = []  # of the step that is being made

    # -- in a step

    def look(self, loss: Loss, batch: Batch, both: Embeddings, step: int) -> None:
        """After a batch's loss; every rank must call it.  both: the rows that it is made of, on this rank.

        Raises NotFinite, on every rank, where a rank's loss is no finite number and no more steps may be left out;
        Skipped where this one is.
        """
        self.seen.append((Loss(loss.total.detach(), loss.parts), batch))
        bad, heard = _agreed(~torch.isfinite(loss.total.detach()), signals.asked())
        self.signal = max(self.signal, heard)
        if bad:
            found = ProcessGroup().exchange(story(loss, batch, both))
            self._not_finite(f"step {step}", _to_blame(found), len(found))
        if self.skips.now:
            raise Skipped

    def look_at_gradient(self, norm: Any, step: int, stepped: bool) -> None:
        """After the backward, before the optimizer's step; norm: of the gradient that all ranks share, None = not
        known; stepped: an engine has moved the weights already.  Raises NotFinite as ``look`` does."""
        whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if whole is None or bool(torch.isfinite(torch.as_tensor(whole)).all()):
            return
        lost = "; the weights have moved by it, so go on from a checkpoint before" if stepped else ""
        own = "; ".join(f"the loss is {_short(loss.total)} ({_parts(loss)}), of {_pairs(b)}" for loss, b in self.seen)
        found = ProcessGroup().exchange(own)
        self._not_finite(
            f"step {step}: the gradient's norm is {_short(whole)}{lost}", list(enumerate(found)), len(found)
        )

    def _not_finite(self, what: str, told: list[tuple[int, str]], world: int) -> None:
        message = f"{what}: " + "; ".join(f"on rank {rank} {one}" if world > 1 else one for rank, one in told)
        left = self.skip - self.skips.steps + (1 if self.skips.now else 0)
        if left <= 0:
            count = f" ({self.skips.steps} steps were left out before)" if self.skips.steps else ""
            raise NotFinite(
                f"{message}{count}; lower the learning rate, raise the temperature, or look at these rows "
                "(objective.skip_nonfinite leaves out so many steps)"
            )
        if not self.skips.now:
            self.skips.now, self.skips.steps = True, self.skips.steps + 1
            if ProcessGroup().rank == 0:
                logger.warning("%s; the step is left out (%d of at most %d)", message, self.skips.steps, self.skip)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Without gradients that are in step, accelerate's optimizer does nothing, nor does fp16's scaler; gradients of
        the step's other batches are dropped after it, as always."""
        if self.skips.now:
            GradientState()._set_sync_gradients(False)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.skips.now:
            GradientState()._set_sync_gradients(True)

    # -- between steps

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        kind = AcceleratorState().distributed_type
        if self.skip and kind in (DistributedType.DEEPSPEED, DistributedType.FSDP):
            raise TrainingStopped(
                f"objective.skip_nonfinite is {self.skip}, but {kind.value} moves weights where a step cannot be taken "
                "back; remove it, or launch with DDP (--multi_gpu)"
            )
        self.signal, self.skips.now, self.skips.steps = 0, False, 0
        if state.is_world_process_zero:
            (Path(str(args.output_dir)).parent / STOPPED).unlink(missing_ok=True)
        signals.training(True, f"again: ended in the middle; checkpoints up to here are in {args.output_dir}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.seen, self.skips.now = [], False
        if self.signal:
            # An evaluation that is due would take longer than the launcher waits.
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.signal:
            self._end(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.skips.steps and state.is_world_process_zero:
            count = (self.skips.steps, state.global_step)
            logger.warning("%d of %d steps were left out, as their loss or gradient was no finite number", *count)
        self.signal = _agreed(torch.zeros((), device=args.device), signals.asked())[1]
        # A network disk may show it to one rank before another.
        if self.signal and ProcessGroup().any(_checkpoint(args, state).is_dir()):
            self._end(args, state)
        signals.training(False, f"after the training: what it saved is in {Path(str(args.output_dir)).parent}")

    def _end(self, args: TrainingArguments, state: TrainerState) -> NoReturn:
        """Says in STOPPED how to go on, and ends every rank."""
        path, name = _checkpoint(args, state), signal.Signals(self.signal).name
        key = f"training.resume_from_checkpoint={path}"
        if state.is_world_process_zero:
            arguments = [word for word in sys.argv[1:] if not word.startswith("training.resume_from_checkpoint=")]
            how = f"the same command, with {key}"
            facts = {"signal": name, "step": state.global_step, "checkpoint": str(path), "resume": how}
            with replacing(Path(str(args.output_dir)).parent / STOPPED) as part:
                part.write_text(json.dumps({**facts, "arguments": [*arguments, key]}, indent=2) + "\n", encoding="utf8")
        if ProcessGroup().world_size > 1:
            dist.barrier()  # who ends first has its launcher end the others
        raise Preempted(f"{name}: stopped after step {state.global_step}; go on by the same command with {key}")


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def _agreed(bad: Tensor, heard: int) -> tuple[bool, int]:
    """Whether a rank's flag is set, and the number of the signal that a rank heard; a collective."""
    if ProcessGroup().world_size == 1:
        return bool(bad), heard
    flags = torch.stack([bad.to(torch.int32), torch.full_like(bad, heard, dtype=torch.int32)])
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    any_bad, most = flags.tolist()
    return bool(any_bad), most


# What is told --------------------------------------------------------------------------------------------------------


def story(loss: Loss, batch: Batch, both: Embeddings) -> tuple[bool, bool, str]:
    """(the loss is no finite number, a row of this rank isn't either, both in words): who is to blame shows in the
    second, as gathered documents carry a NaN into every rank's loss."""
    loss = Loss(loss.total.detach(), loss.parts)
    rows = torch.isfinite(both.pooled.detach()).all(1)
    tokens = torch.isfinite(both.tokens.values.detach()).all(1)
    rows = rows & torch.stack([part.all() for part in tokens.split(both.tokens.lengths.tolist())])
    queries, documents = batch.positives.to(rows.device).unbind(1)
    fine = rows[queries] & rows[len(batch.query_ids) + documents]
    told = f"the loss is {_short(loss.total)} ({_parts(loss)})"
    if bool(rows.all()):
        told += f", from embeddings that are finite, of {_pairs(batch)}"
    else:
        told += f", from embeddings of which {int((~rows).sum())} of {len(rows)} rows are not finite, of "
        told += _pairs(batch, [pair for pair, ok in enumerate(fine.tolist()) if not ok])
    return not bool(torch.isfinite(loss.total)), not bool(rows.all()), told


def _to_blame(found: list[tuple[bool, bool, str]]) -> list[tuple[int, str]]:
    """The ranks with rows that are no finite numbers; where there is none, those with such a loss."""
    rows = [(rank, told) for rank, (_, row, told) in enumerate(found) if row]
    return rows or [(rank, told) for rank, (loss, _, told) in enumerate(found) if loss]


def _parts(loss: Loss) -> str:
    """Those that are no finite numbers first, then the largest."""
    values = {name: float(value) for name, value in loss.parts.items()}
    wrong = [name for name, value in values.items() if not _finite(value)]
    large = sorted((n for n in values if n.startswith("loss/") and n not in wrong), key=lambda n: -abs(values[n]))
    return ", ".join(f"{name} {values[name]:.4g}" for name in [*wrong, *large][: max(SHOWN, len(wrong))])


def _pairs(batch: Batch, first: list[int] | None = None) -> str:
    """Query and document ids of a batch's pairs; first: those to name, where they are known."""
    names = [f"{query} -> {document}" for query, document in batch.rows]
    chosen = [names[pair] for pair in first if pair < len(names)] if first else names
    what = "the pairs with them are" if first else "query -> document"
    more = " ..." if len(chosen) > SHOWN else ""
    return f"{len(batch.positives)} pairs ({what}: {', '.join(chosen[:SHOWN])}{more})"


def _finite(value: float) -> bool:
    return value - value == 0


def _short(value: Any) -> str:
    return f"{float(value):.6g}"
