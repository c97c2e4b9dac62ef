"""Stop or skip a step whose loss or gradient is NaN or infinite, and save and end a run that a signal interrupts.

After every loss the ranks agree by one small all_reduce, at a point where the device is read anyway, so that all of
them do the same in the same step: stop with one message, skip the step, or save and end.

A skipped step (``objective.skip_nonfinite``) leaves no trace: neither weights nor optimizer state change on any rank,
while step count, learning rate and data advance.  With accumulation the whole step is skipped, whichever batch it was:
a gradient that crossed ranks cannot be taken back, and a mean over fewer batches would be another step.  DeepSpeed
steps inside its backward, so steps cannot be skipped there; nor under FSDP, where this is untested.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from dataclasses import dataclass
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

logger = logging.getLogger(__name__)

STOPPED = "stopped.json"
SHOWN = 4  # pairs and parts of the loss that a message names


@dataclass
class SkippedSteps:
    """Steps that were skipped: whether the current one is, and how many so far."""

    current: bool = False
    count: int = 0


class NonfiniteError(TrainingStopped):
    """A loss or a gradient is NaN or infinite; raised on every rank with the same message."""

    on_every_rank = True


class SkipBatch(Exception):
    """Raised on every rank for a batch that gets no backward; the trainer's step catches it."""


class NonfiniteGuard(TrainerCallback):
    """Checks every loss and gradient, and whether a signal came; acts alike on all ranks.

    limit: steps that may be skipped; a resumed run counts anew.  run_dir: where stopped.json is written.
    """

    def __init__(self, limit: int, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.limit, self.skipped = limit, SkippedSteps()
        self.signal = 0  # that some rank received
        self.from_recipe = False  # else a Python program made the trainer, and resumes it
        self.losses: list[tuple[Loss, Batch]] = []  # of the current step

    # -- in a step

    def check_loss(self, loss: Loss, batch: Batch, embeddings: Embeddings, step: int) -> None:
        """Check a batch's loss; every rank must call it.  embeddings: of the batch's queries and documents.

        Raises, on every rank, NonfiniteError where a rank's loss is not finite and no more steps may be skipped, and
        SkipBatch where the step is skipped.
        """
        self.losses.append((Loss(loss.total.detach(), loss.parts), batch))
        bad, received = _agree(~torch.isfinite(loss.total.detach()), signals.received())
        self.signal = max(self.signal, received)
        if bad:
            reports = ProcessGroup().exchange(describe_loss(loss, batch, embeddings))
            self._skip_or_stop(f"step {step}", _at_fault(reports), len(reports))
        if self.skipped.current:
            raise SkipBatch

    def check_gradient(self, norm: Any, step: int, stepped: bool) -> None:
        """Check the gradient's norm before the optimizer's step; every rank must call it.

        norm: of the gradient that all ranks share; None = not known.  stepped: the engine has moved the weights
        already.  Raises NonfiniteError as ``check_loss`` does.
        """
        whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if whole is None or bool(torch.isfinite(torch.as_tensor(whole)).all()):
            return
        lost = "; the weights have moved by it, so resume from an earlier checkpoint" if stepped else ""
        own = "; ".join(f"the loss is {_short(loss.total)} ({_parts(loss)}), of {_pairs(b)}" for loss, b in self.losses)
        reports = ProcessGroup().exchange(own)
        what = f"step {step}: the gradient's norm is {_short(whole)}{lost}"
        self._skip_or_stop(what, list(enumerate(reports)), len(reports))

    def _skip_or_stop(self, what: str, reports: list[tuple[int, str]], world_size: int) -> None:
        message = f"{what}: " + "; ".join(f"on rank {rank} {one}" if world_size > 1 else one for rank, one in reports)
        left = self.limit - self.skipped.count + (1 if self.skipped.current else 0)
        if left <= 0:
            before = f" ({self.skipped.count} steps were skipped before)" if self.skipped.count else ""
            raise NonfiniteError(
                f"{message}{before}; lower the learning rate, raise the temperature, or check these rows "
                "(objective.skip_nonfinite: N skips up to N such steps)"
            )
        if not self.skipped.current:
            self.skipped.current, self.skipped.count = True, self.skipped.count + 1
            if ProcessGroup().is_main:
                logger.warning("%s; skipped the step (%d of at most %d)", message, self.skipped.count, self.limit)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Have accelerate's optimizer and fp16's scaler do nothing in a skipped step: they act on synchronized
        gradients only.  Gradients of the step's other batches are dropped after it, as always."""
        if self.skipped.current:
            GradientState()._set_sync_gradients(False)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.skipped.current:
            GradientState()._set_sync_gradients(True)

    # -- between steps

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        kind = AcceleratorState().distributed_type
        if self.limit and kind in (DistributedType.DEEPSPEED, DistributedType.FSDP):
            raise TrainingStopped(
                f"objective.skip_nonfinite is {self.limit}, but steps cannot be skipped under {kind.value}; remove it, "
                "or launch with DDP (--multi_gpu)"
            )
        self.signal, self.skipped.current, self.skipped.count = 0, False, 0
        if state.is_world_process_zero:
            (self.run_dir / STOPPED).unlink(missing_ok=True)
        signals.set_training(True, f"again: ended at once; the checkpoints so far are in {args.output_dir}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.losses, self.skipped.current = [], False
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
        if self.skipped.count and state.is_world_process_zero:
            count = (self.skipped.count, state.global_step)
            logger.warning("skipped %d of %d steps, whose loss or gradient was not finite", *count)
        self.signal = _agree(torch.zeros((), device=args.device), signals.received())[1]
        # A network disk may show it to one rank before another.
        if self.signal and ProcessGroup().any(_checkpoint(args, state).is_dir()):
            self._end(args, state)
        signals.set_training(False, f"after the training, whose results are in {self.run_dir}")

    def _end(self, args: TrainingArguments, state: TrainerState) -> NoReturn:
        """Write to stopped.json how to resume, and end every rank."""
        path, name = _checkpoint(args, state), signal.Signals(self.signal).name
        key = f"training.resume_from_checkpoint={path}"
        how = f"the same command and {key}" if self.from_recipe else "trainer.train(resume_from_checkpoint=True)"
        if state.is_world_process_zero:
            facts = {"signal": name, "step": state.global_step, "checkpoint": str(path), "resume": how}
            if self.from_recipe:
                words = [word for word in sys.argv[1:] if not word.startswith("training.resume_from_checkpoint=")]
                facts["arguments"] = [*words, key]
            text = json.dumps(facts, indent=2) + "\n"
            try:
                with replacing(self.run_dir / STOPPED) as part:
                    part.write_text(text, encoding="utf8")
            except OSError as error:  # the checkpoint is there, and the other ranks wait
                logger.warning("%s could not be written (%s)", self.run_dir / STOPPED, error.strerror)
        ProcessGroup().barrier()  # the rank that ends first has its launcher end the others
        saved = "" if self.from_recipe else f", which is saved in {path}"
        raise Preempted(f"{name}: stopped after step {state.global_step}{saved}; resume with {how}")


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def _agree(bad: Tensor, received: int) -> tuple[bool, int]:
    """Return whether any rank's flag is set, and the number of the signal that any rank received; a collective."""
    if ProcessGroup().world_size == 1:
        return bool(bad), received
    flags = torch.stack([bad.to(torch.int32), torch.full_like(bad, received, dtype=torch.int32)])
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    any_bad, most = flags.tolist()
    return bool(any_bad), most


# -- messages


def describe_loss(loss: Loss, batch: Batch, embeddings: Embeddings) -> tuple[bool, bool, str]:
    """Return (the loss is not finite, a row of this rank is not finite, both in words).

    The second finds the rank at fault, since gathered documents carry a NaN into every rank's loss.
    """
    loss = Loss(loss.total.detach(), loss.parts)
    rows = torch.isfinite(embeddings.pooled.detach()).all(1)
    tokens = torch.isfinite(embeddings.tokens.values.detach()).all(1)
    rows = rows & torch.stack([part.all() for part in tokens.split(embeddings.tokens.lengths.tolist())])
    queries, documents = batch.positives.to(rows.device).unbind(1)
    fine = rows[queries] & rows[len(batch.query_ids) + documents]
    text = f"the loss is {_short(loss.total)} ({_parts(loss)})"
    if bool(rows.all()):
        text += f", from embeddings that are finite, of {_pairs(batch)}"
    else:
        text += f", from embeddings of which {int((~rows).sum())} of {len(rows)} rows are not finite, of "
        text += _pairs(batch, [pair for pair, ok in enumerate(fine.tolist()) if not ok])
    return not bool(torch.isfinite(loss.total)), not bool(rows.all()), text


def _at_fault(reports: list[tuple[bool, bool, str]]) -> list[tuple[int, str]]:
    """Return the ranks with rows that are not finite; where there is none, those with such a loss."""
    rows = [(rank, text) for rank, (_, row, text) in enumerate(reports) if row]
    return rows or [(rank, text) for rank, (loss, _, text) in enumerate(reports) if loss]


def _parts(loss: Loss) -> str:
    """Name the parts of a loss: those that are not finite first, then the largest."""
    values = {name: float(value) for name, value in loss.parts.items()}
    wrong = [name for name, value in values.items() if not _finite(value)]
    large = sorted((n for n in values if n.startswith("loss/") and n not in wrong), key=lambda n: -abs(values[n]))
    return ", ".join(f"{name} {values[name]:.4g}" for name in [*wrong, *large][: max(SHOWN, len(wrong))])


def _pairs(batch: Batch, first: list[int] | None = None) -> str:
    """Name a batch's pairs by query and document id.  first: the numbers of those to name, where they are known."""
    names = [f"{query} -> {document}" for query, document in batch.rows]
    chosen = [names[pair] for pair in first if pair < len(names)] if first else names
    what = "the pairs with them are" if first else "query -> document"
    more = " ..." if len(chosen) > SHOWN else ""
    return f"{len(batch.positives)} pairs ({what}: {', '.join(chosen[:SHOWN])}{more})"


def _finite(value: float) -> bool:
    return value - value == 0


def _short(value: Any) -> str:
    return f"{float(value):.6g}"
