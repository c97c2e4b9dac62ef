"""What a run writes while it trains, and reads when it goes on: an encoder's folder with the training's state beside.

A checkpoint is whole or not there.  All ranks write into checkpoint-N.part; each tells the others what became of it;
then it is renamed.  What a run that goes on needs in order to end as if it had never ended, bit for bit on a CPU:

    the encoder's folder              adapter and head, never the frozen base
    optimizer.pt, scheduler.pt, scaler.pt; global_stepN/ under DeepSpeed
    rng_state.pth (_RANK), run_state_RANK.pt    random states; sums since the last logged line
    trainer_state.json                step, best metric, early stopping; batches follow from the step (data/batches.py)
    checkpoint.json                   engine, processes, every file with its size (training/checkpoint_files.py)

Knows: transformers' checkpoints, engines, ranks.  Does not know: losses, data, recipes.
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
from transformers import Trainer, TrainerCallback
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, TrainerControl, TrainerState
from transformers.trainer_utils import TrainOutput

from smart_train.model.encoder import SmartEncoder
from smart_train.training import checkpoint_files as files
from smart_train.training.arguments import SmartTrainingArguments
from smart_train.training.best import Best, best, history
from smart_train.training.checkpoint_files import CheckpointError
from smart_train.training.engines import Engine
from smart_train.training.logs import JsonLog, Means
from smart_train.training.peers import Group
from smart_train.training.resuming import check_launch, find, load_deepspeed, load_weights, save_deepspeed
from smart_train.training.rewind import rewind
from smart_train.training.whole import whole

logger = logging.getLogger(__name__)


class CheckpointedTrainer(Trainer):
    """transformers.Trainer that saves an encoder's folder instead of a state dict, and nothing of the frozen base.

    A checkpoint holds everything that a resumed run needs to be the uninterrupted one.  Raises CheckpointError, on
    every rank, where one rank cannot write its part: what was written of it is deleted, and the last one is whole.
    """

    args: SmartTrainingArguments
    engine: Engine
    means: Means
    _late = False  # a checkpoint is due when the epoch's end has been gone through

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

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(self.encoder, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        logger.info("the best weights are those of %s", self.state.best_model_checkpoint)
        load_weights(self.encoder, Path(str(self.state.best_model_checkpoint)))

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
        if not self.engine.deepspeed:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        save_deepspeed(self.model_wrapped, Path(output_dir), self.state.global_step)
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

    # -- going on

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **options: Any) -> TrainOutput:
        """As Trainer's.  resume_from_checkpoint: True takes the newest whole checkpoint of the output folder.

        Raises CheckpointError where there is none to go on from, AdapterError where it is of another adapter.
        """
        self._told(files.tidy(self.root) if self.args.local_process_index == 0 else [])
        self.remove_callback(Restored)
        peers = Group()
        peers.exchange(None)  # nobody looks before it is tidy
        if not resume_from_checkpoint:
            return super().train(None, *args, **options)
        folder = find(resume_from_checkpoint, self.root, peers)
        self._told(check_launch(folder, self.engine.name, self.args.world_size))
        if self.args.should_save and folder.parent.resolve() == self.root.resolve():
            self._told(files.put_aside(self.root, int(folder.name.split("-")[1])))
        if self.args.eval_on_start:
            self.args.eval_on_start = False
            self._told(["training.eval_on_start: was done before the first step, and is not done again"])
        self.add_callback(Restored(self, folder))
        return super().train(str(folder), *args, **options)

    def _told(self, lines: list[str]) -> None:
        for line in lines:
            if self.args.process_index == 0:
                logger.warning("%s", line)

    def _init_training_state(self, *args: Any, **options: Any) -> tuple[int, int]:
        """Whatever is not in transformers' own state: where the best checkpoint lies now, and callbacks' counts."""
        found = super()._init_training_state(*args, **options)
        restored = self._restored()
        if restored is not None:
            self._find_best(restored.folder)
            stored: dict[str, Any] = dict(self.state.stateful_callbacks or {})  # type: ignore[arg-type]
            for name, one in _by_name(self._exportable()).items():
                for values in [stored[name]] if name in stored and not isinstance(one, TrainerControl) else []:
                    for attribute, value in values.get("attributes", {}).items():
                        setattr(one, attribute, value)
        return found

    def _find_best(self, folder: Path) -> None:
        """The recorded path is that of the folder as it was called then; beside this checkpoint is where it lies."""
        recorded = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME)).best_model_checkpoint
        if recorded is None:
            return
        places = [folder.parent / Path(recorded).name, Path(recorded)]
        there = next((place for place in places if files.is_whole(place)), None)
        self.state.best_model_checkpoint = str(there) if there is not None else None
        if there is None:
            self._told([f"{places[0]}, the best checkpoint so far, is not there any more: the best is looked for anew"])
            self.state.best_metric = self.state.best_global_step = None

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        """Trainer's own would have DeepSpeed load the frozen weights, too, which are not there."""
        if resume_from_checkpoint is None or not self.engine.deepspeed:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        load_deepspeed(self.model_wrapped, self.encoder, Path(resume_from_checkpoint), self.state.global_step)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        self._load_scaler(resume_from_checkpoint)
        return prepared

    def _run_epoch(self, *args: Any, **options: Any) -> None:
        """Not one step more where the run had come to its end: Trainer looks after a step only."""
        restored = self._restored()
        if restored is not None and (self.state.global_step >= self.state.max_steps or self._out_of_patience()):
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **options)

    def _maybe_log_save_evaluate(self, *args: Any, **options: Any) -> None:
        """A checkpoint at an epoch's last step waits until what belongs to the epoch's end is done (lines, evaluation,
        best metric): a resumed run begins with the next epoch and would never do it."""
        ends = self.state.epoch is not None and float(self.state.epoch).is_integer()
        if self._late:
            self._late, self.control.should_save = False, True
        elif self.control.should_save and ends:
            self._late, self.control.should_save = True, False
        super()._maybe_log_save_evaluate(*args, **options)

    def _finalize_training(self, *args: Any, **options: Any) -> TrainOutput:
        """The mean loss is that of all steps, also of those before a resume; and the last checkpoint stays, which
        Trainer deletes with save_total_limit 1 where another one is the best."""
        rest, steps = self._tr_loss.item(), max(self.state.global_step - self._initial_global_step, 0.001)
        self._total_loss_scalar = (self._total_loss_scalar + rest) * steps / max(1, self.state.global_step) - rest
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **options)
        finally:
            self.args.save_total_limit = limit

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

    def take_up(self, folder: Path) -> None:
        """The sums of a checkpoint, and the log as it was then."""
        file = folder / run_state(self.args.process_index)
        if not file.is_file():
            return  # of more processes than wrote it; check_launch has told it
        stored = torch.load(file, weights_only=True)
        self._tr_loss.copy_(stored["loss"])
        self._total_loss_scalar, self._globalstep_last_logged = stored["losses"], stored["logged"]
        device = self.accelerator.device
        self.means.values = {name: list(values.to(device).unbind()) for name, values in stored["means"].items()}
        log = self._log()
        if log is not None and self.args.process_index == 0:
            self._told(rewind(log.path, stored["log_bytes"], self.state.global_step))

    def _log(self) -> JsonLog | None:
        return next((one for one in self.callback_handler.callbacks if isinstance(one, JsonLog)), None)

    def _restored(self) -> Restored | None:
        return next((one for one in self.callback_handler.callbacks if isinstance(one, Restored)), None)

    def _exportable(self) -> list[ExportableState]:
        return [one for one in (*self.callback_handler.callbacks, self.control) if isinstance(one, ExportableState)]

    def _out_of_patience(self) -> bool:
        """Whether early stopping had ended the run: the checkpoint of that step comes after the evaluation."""
        _, values = history(self.args, self.state)
        followers = (one for one in self.callback_handler.callbacks if isinstance(one, Best))
        return any(one.patience is not None and best(values)[1] >= one.patience for one in followers)


class Restored(TrainerCallback):
    """Trainer sets its sums to zero just before this event."""

    def __init__(self, trainer: CheckpointedTrainer, folder: Path) -> None:
        self.trainer, self.folder = trainer, folder

    def on_train_begin(self, *args: Any, **options: Any) -> None:
        self.trainer.take_up(self.folder)


def run_state(rank: int) -> str:
    return f"run_state_{rank}.pt"


def _by_name(found: list[ExportableState]) -> dict[str, ExportableState]:
    return {type(one).__name__: one for one in found}


def _exported(found: list[ExportableState]) -> dict[str, Any]:
    return {name: one.state() for name, one in _by_name(found).items()}
