"""How a run goes on from what an earlier one wrote, so that it ends as if it had never ended.

Knows: transformers' loop, checkpoints.  Does not know: losses, data, recipes; what is written (training/writing.py);
whether these processes can go on from it (training/resuming.py).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.trainer_utils import TrainOutput

from smart_train.training import checkpoint_files as files
from smart_train.training.best import Best, best, history
from smart_train.training.fsdp import load_optimizer
from smart_train.training.peers import Group
from smart_train.training.resuming import check_launch, find, load_deepspeed, load_weights
from smart_train.training.rewind import rewind
from smart_train.training.writing import WritingTrainer, by_name, run_state

logger = logging.getLogger(__name__)


class CheckpointedTrainer(WritingTrainer):
    """A trainer whose checkpoints hold everything that a resumed run needs to be the uninterrupted one."""

    _late = False  # a checkpoint is due when the epoch's end has been gone through
    _ended = -1  # the last step of an epoch, once Trainer has asked what is due after it

    # -- going on

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **options: Any) -> TrainOutput:
        """As Trainer's.  resume_from_checkpoint: True takes the newest whole checkpoint of the output folder.

        Raises CheckpointError where there is none to go on from, AdapterError where it is of another adapter.
        """
        self._told(files.tidy(self.root) if self.args.local_process_index == 0 else [])
        self.remove_callback(Restored)
        self._late, self._ended, self.written = False, -1, -1
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
            for name, one in by_name(self._exportable()).items():
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

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.engine.fsdp:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        assert self.model is not None and self.optimizer is not None and self.lr_scheduler is not None
        load_optimizer(self.model, self.optimizer, Path(checkpoint) / OPTIMIZER_NAME)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

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
        if ends and self._ended != self.state.global_step:  # after the step; Trainer asks again after the epoch
            self._ended = self.state.global_step
            self._late, self.control.should_save = self.control.should_save, False
        elif self._late:
            self._late, self.control.should_save = False, True
        # By a signal; save_strategy "best" would take the save back where an evaluation is not the best.
        stops = self.control.should_save and self.control.should_training_stop
        super()._maybe_log_save_evaluate(*args, **options)
        if stops and self.written != self.state.global_step:
            self._save_checkpoint(self.encoder, None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

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

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(self.encoder, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        logger.info("the best weights are those of %s", self.state.best_model_checkpoint)
        load_weights(self.encoder, Path(str(self.state.best_model_checkpoint)))

    # -- sums

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

    def _restored(self) -> Restored | None:
        return next((one for one in self.callback_handler.callbacks if isinstance(one, Restored)), None)

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
