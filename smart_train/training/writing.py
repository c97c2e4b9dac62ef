"""What a run writes while it trains: an encoder's folder with the training's state beside, nothing of the frozen base.

A checkpoint is whole or not there.  All ranks write into checkpoint-N.part; each tells the others what became of it;
then it is renamed.  What a run that goes on needs in order to end as if it had never ended, bit for bit on a CPU:

    the encoder's folder              adapter and head, never the frozen base
    optimizer.pt, scheduler.pt, scaler.pt; global_stepN/ under DeepSpeed
    rng_state.pth (_RANK), run_state_RANK.pt    random states; sums since the last logged line
    trainer_state.json                step, best metric, early stopping; batches follow from the step (data/batches.py)
    checkpoint.json                   engine, processes, every file with its size (training/checkpoint_files.py)

Knows: transformers' checkpoints, engines, ranks.  Does not know: losses, data, recipes, how a run goes on
(training/checkpoints.py).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DeepSpeedSchedulerWrapper
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from smart_train.model.encoder import SmartEncoder
from smart_train.training import checkpoint_files as files
from smart_train.training.arguments import SmartTrainingArguments
from smart_train.training.checkpoint_files import CheckpointError
from smart_train.training.engines import Engine
from smart_train.training.fsdp import save_optimizer
from smart_train.training.logs import JsonLog, Means
from smart_train.training.peers import Group
from smart_train.training.resuming import save_deepspeed
from smart_train.training.whole import whole

logger = logging.getLogger(__name__)


class WritingTrainer(Trainer):
    """transformers.Trainer that saves an encoder's folder instead of a state dict.

    Raises CheckpointError, on every rank, where one rank cannot write its part: what was written of it is deleted, and
    the last one is whole.
    """

    args: SmartTrainingArguments
    engine: Engine
    means: Means
    written = -1  # step of the last checkpoint that this process took part in

    @property
    def encoder(self) -> SmartEncoder:
        found: SmartEncoder = self.accelerator.unwrap_model(self.model)
        return found

    @property
    def root(self) -> Path:
        return Path(str(self.args.output_dir))

    # -- weights

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Every rank must call it: where an engine shards the weights, they are collected from all."""
        folder = str(output_dir or self.args.output_dir)
        if callable(getattr(self.optimizer, "eval", None)):  # schedule-free optimizers have the averaged weights there
            self.optimizer.eval()  # type: ignore[union-attr]
        if not self.engine.sharded:
            self._save(folder)
            return
        with whole(self.encoder, keep=self.args.should_save) as state:
            self._save(folder, state)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """No pickled arguments beside it: the recipe has them."""
        if self.args.should_save:
            self.encoder.save_pretrained(Path(str(output_dir or self.args.output_dir)), state=state_dict)

    def release(self) -> None:
        """Lets go of weights, optimizer and engine; the trainer is of no use afterwards."""
        del self.model, self.model_wrapped
        self.callback_handler.model = self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
        self.optimizer = self.lr_scheduler = None  # type: ignore[assignment]
        self.__dict__.pop("deepspeed", None)
        self.accelerator.free_memory()

    # -- writing

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """All ranks, stage by stage; none goes on before all have told how the stage went."""
        step = self.state.global_step
        folder = files.folder_of(self.root, step)
        part = folder.with_name(folder.name + files.PART)
        self.store_flos()
        best = self.state.best_model_checkpoint
        if self.state.best_global_step == step:
            self.state.best_model_checkpoint = str(folder)
        try:
            self._together(partial(self._write_weights, part), part)
            told = self._together(partial(self._write_state, part), part)
            self._together(partial(self._seal, part, told), part)
            self._together(partial(self._publish, part, folder), part)
        except CheckpointError:
            self.state.best_model_checkpoint = best
            raise
        self.written = step
        if self.args.should_save:
            keep = [folder, *([Path(found)] if (found := self.state.best_model_checkpoint) else [])]
            for gone in files.rotate(self.root, self.args.save_total_limit, keep):
                logger.debug("%s: deleted, save_total_limit is %s", gone, self.args.save_total_limit)

    def _together(self, stage: Callable[[], Any], part: Path) -> list[Any]:
        """Every rank's result of a stage; or, on every rank, CheckpointError with what each failed of."""
        failed: Exception | None = None
        value: Any = None
        try:
            value = stage()
        except Exception as error:
            failed = error
        peers = Group()
        found = peers.exchange((value, files.failure(failed, part) if failed is not None else None))
        wrong = {rank: text for rank, (_, text) in enumerate(found) if text is not None}
        if not wrong:
            return [result for result, _ in found]
        if self.args.local_process_index == 0:
            files.delete(part)
        last = files.last_whole(self.root)
        ranks = "; ".join(f"rank {rank}: {text}" if peers.world > 1 else text for rank, text in wrong.items())
        raise CheckpointError(
            f"the checkpoint of step {self.state.global_step} could not be written to {self.root}: {ranks}. "
            + (
                f"{last} is whole: make room, then go on from it with training.resume_from_checkpoint=true"
                if last is not None
                else "there is no earlier one"
            )
        ) from failed

    def _write_weights(self, part: Path) -> None:
        if self.args.should_save:
            files.delete(part)
        part.parent.mkdir(parents=True, exist_ok=True)
        self.save_model(str(part), _internal_call=True)

    def _write_state(self, part: Path) -> list[str]:
        """This rank's files besides the weights; returns names that the folder must have for it."""
        part.mkdir(parents=True, exist_ok=True)  # of this machine's own disk, if it has one
        if self.args.should_save:
            self.state.stateful_callbacks = _exported(self._exportable())  # type: ignore[assignment]
            self.state.save_to_json(str(part / TRAINER_STATE_NAME))
        if self.args.save_only_model:
            return []
        self._save_optimizer_and_scheduler(str(part))
        self._save_scaler(str(part))
        self._save_rng_state(str(part))
        name = run_state(self.args.process_index)
        torch.save(self._sums(), part / name)
        return [name]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.engine.deepspeed:
            save_deepspeed(self.model_wrapped, Path(output_dir), self.state.global_step)
        elif self.engine.fsdp:
            assert self.model is not None and self.optimizer is not None
            save_optimizer(self.model, self.optimizer, Path(output_dir) / OPTIMIZER_NAME, self.args.should_save)
        else:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        if self.args.should_save and not isinstance(self.lr_scheduler, DeepSpeedSchedulerWrapper):
            assert self.lr_scheduler is not None
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _seal(self, part: Path, told: list[list[str]]) -> None:
        if not self.args.should_save:
            return
        os.listdir(part)  # a network disk looks again
        absent = [name for names in told for name in names if not (part / name).is_file()]
        if absent and not self.args.save_on_each_node:
            raise OSError(
                f"{', '.join(absent)} of other ranks are not in {part}: the machines share no disk there; set "
                "training.save_on_each_node: true, or choose an output that they share"
            )
        facts = {
            "step": self.state.global_step,
            "engine": self.engine.name,
            "processes": self.args.world_size,
            "resumable": not self.args.save_only_model,
        }
        files.seal(part, facts)

    def _publish(self, part: Path, folder: Path) -> None:
        if self.args.should_save:
            files.publish(part, folder)

    # -- sums

    def _sums(self) -> dict[str, Any]:
        """What this rank has added up since the last logged line, and since the run began."""
        log = self._log()
        return {
            "loss": self._tr_loss.cpu(),
            "losses": self._total_loss_scalar,
            "logged": self._globalstep_last_logged,
            "means": {name: torch.stack(values).cpu() for name, values in self.means.values.items()},
            "log_bytes": log.path.stat().st_size if log is not None and log.path.is_file() else 0,
        }

    def _log(self) -> JsonLog | None:
        return next((one for one in self.callback_handler.callbacks if isinstance(one, JsonLog)), None)

    def _exportable(self) -> list[ExportableState]:
        return [one for one in (*self.callback_handler.callbacks, self.control) if isinstance(one, ExportableState)]


def run_state(rank: int) -> str:
    return f"run_state_{rank}.pt"


def by_name(found: list[ExportableState]) -> dict[str, ExportableState]:
    return {type(one).__name__: one for one in found}


def _exported(found: list[ExportableState]) -> dict[str, Any]:
    return {name: one.state() for name, one in by_name(found).items()}
