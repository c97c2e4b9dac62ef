"""What a run writes while it trains: an encoder's folder with the training's state beside, nothing of the frozen base.

A checkpoint is whole or not there.  All ranks write into checkpoint-N.part; each tells the others what became of it;
then it is renamed.  What a run that goes on needs in order to end as if it had never ended, bit for bit on a CPU:

    the encoder's folder              adapter and head, never the frozen base
    optimizer.pt, scheduler.pt, scaler.pt; global_stepN/ under DeepSpeed
    rng_state.pth (_RANK), run_state_RANK.pt    random states; sums since the last logged line
    trainer_state.json                step, best metric, early stopping; batches follow from the step
    checkpoint.json                   engine, processes, every file with its size (training/checkpoint.py)
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DeepSpeedSchedulerWrapper
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK, OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, PrinterCallback, TrainerControl, TrainerState
from transformers.trainer_utils import TrainOutput

from smart_train.config.schema import AdapterBlock, ObjectiveBlock
from smart_train.core.embeddings import Batch, Embeddings, Features
from smart_train.core.errors import CheckpointError, TrainingStopped
from smart_train.data.batch_sampler import Kin
from smart_train.distributed.process_group import ProcessGroup
from smart_train.losses.joint import Loss
from smart_train.models.encoder import SmartEncoder
from smart_train.training import checkpoint as files
from smart_train.training.arguments import SmartTrainingArguments
from smart_train.training.callbacks.early_stopping import Best, best, check_choice, history
from smart_train.training.callbacks.logging import JsonLog, Means, asked
from smart_train.training.callbacks.progress import Progress
from smart_train.training.callbacks.speed import Speed
from smart_train.training.callbacks.trackers import take_over
from smart_train.training.checkpoint import check_launch, find, load_deepspeed, load_weights, rewind, save_deepspeed
from smart_train.training.checks import FirstStep, Skips, check_cached, check_trainable
from smart_train.training.dataloader import planned, train_loader
from smart_train.training.engine import Engine, full, in_order, load_optimizer, save_optimizer, whole
from smart_train.training.gradcache import cached_backward
from smart_train.training.inputs import Inputs, Moved, Rows, held
from smart_train.training.loss_step import Step, token_dtype
from smart_train.training.nonfinite import Faults, Skipped

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
        group = ProcessGroup()
        found = group.exchange((value, files.failure(failed, part) if failed is not None else None))
        wrong = {rank: text for rank, (_, text) in enumerate(found) if text is not None}
        if not wrong:
            return [result for result, _ in found]
        if self.args.local_process_index == 0:
            files.delete(part)
        last = files.last_whole(self.root)
        ranks = "; ".join(f"rank {rank}: {text}" if group.world_size > 1 else text for rank, text in wrong.items())
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


# How a run goes on from what an earlier one wrote, so that it ends as if it had never ended.


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
        group = ProcessGroup()
        group.exchange(None)  # nobody looks before it is tidy
        if not resume_from_checkpoint:
            return super().train(None, *args, **options)
        folder = find(resume_from_checkpoint, self.root, group)
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


# SmartTrainer: transformers.Trainer whose step is one forward, two views and the joint loss; or the same with

# Pairs a rank, up to which a cached step keeps the last chunk's graph: of many chunks it is a small saving, and beside
# the loss of a large batch its activations are not.  One number for every rank, as they must agree on their forwards.
KEPT = 128


class SmartTrainer(CheckpointedTrainer):
    """transformers.Trainer over (query id, document id) pairs.

    encoder: with its adapter added; objective: the loss; pairs: the training pairs; collate: rows -> Batch, run in data
    workers, and its chunks are the forwards; rank_dev: ranks the dev split with the encoder and returns
    {"pooled/ndcg@10": ...}; log: the JSONL file that every logged line goes to.
    cached: gradient caching (training/gradcache.py), where memory follows a chunk and not the batch; None = where
    ``objective.batch`` is given.  A frozen backbone gets one pass: it keeps no activations, only the states that the
    head reads.
    kin: which pairs may share a batch (data/batch_sampler.py); None = Trainer's own order, by chance alone.
    patience: evaluations without a new best, after which training ends; None = never.
    about: the recipe, for the trackers of ``report_to`` (training/callbacks/trackers.py).
    Raises ValueError where ``objective.batch`` is not what the ranks draw together, TrainingStopped for what can't be
    trained.
    """

    def __init__(
        self,
        encoder: SmartEncoder,
        args: SmartTrainingArguments,
        objective: ObjectiveBlock,
        pairs: Dataset[tuple[str, str]],
        collate: Callable[[Rows], Batch],
        rank_dev: Callable[[SmartEncoder], dict[str, float]] | None = None,
        log: Path | None = None,
        callbacks: list[TrainerCallback] | None = None,
        cached: bool | None = None,
        kin: Kin | None = None,
        patience: int | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        if args.n_gpu > 1:
            raise TrainingStopped(
                f"one process sees {args.n_gpu} GPUs, and torch's DataParallel would take a batch's rows apart; write "
                f"accelerate launch --multi_gpu --num_processes {args.n_gpu} ..., or set CUDA_VISIBLE_DEVICES=0"
            )
        adapter = encoder.adapter or AdapterBlock(kind="frozen")
        self.rank_dev, self.kin = rank_dev, kin
        self.counts = check_trainable(encoder, adapter)
        wanted = objective.batch is not None if cached is None else cached
        self.cached = wanted and adapter.kind != "frozen"
        check_cached(args, objective.batch, self.cached)
        check_choice(args, rank_dev is not None, patience)
        self.means, self.speed, self.skips = Means(), Speed(encoder), Skips()
        self.faults = Faults(objective.skip_nonfinite, self.skips)
        super().__init__(
            model=encoder,
            args=args,
            train_dataset=pairs,
            eval_dataset=pairs,  # only its presence counts: Trainer refuses eval_strategy without; rank_dev ranks
            data_collator=Inputs(collate, hold=wanted),
            callbacks=[
                FirstStep(encoder, self.skips),
                self.speed,
                *([JsonLog(log)] if log is not None else []),
                Best(self.log, patience),
                *(callbacks or []),
            ],
        )
        for theirs in (PrinterCallback, DEFAULT_PROGRESS_CALLBACK):
            self.remove_callback(theirs)
        self.add_callback(Progress())
        take_over(self, about, log.parent if log is not None else Path(str(args.output_dir)))
        self.add_callback(self.faults)  # last: it ends a training that was saved
        self.current_gradient_accumulation_steps = 1  # Trainer sets it in its loop; a step may run outside of one
        self.model_accepts_loss_kwargs = False  # the loss is a mean over pairs: accumulation divides it
        # After the processes have joined: the groups that gather together are made here.
        widths = encoder.settings.matryoshka, encoder.late.matryoshka
        dtype = token_dtype(objective.similarity, args.device, args.bf16)
        self.step = Step(objective, encoder.late.hybrid, *widths, dtype=dtype)
        self.engine = Engine(self.accelerator, encoder)

    def get_train_dataloader(self) -> DataLoader[Any]:
        if self.kin is None:
            return super().get_train_dataloader()
        batches = planned(self.kin, self.args, self._train_batch_size)  # which auto_find_batch_size may have changed
        return train_loader(self.train_dataset, batches, self.data_collator, self.args, self.accelerator)

    # -- the step

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        self.step.progress = self.state.global_step / max(1, self.state.max_steps)
        one = self._cached_step if self.cached else super().training_step
        try:
            loss = one(model, inputs, num_items_in_batch)
        except Skipped:
            loss = torch.full((), torch.nan, device=self.args.device)  # Trainer leaves it out of its mean
        if self.step.gather.world > 1:
            self.means.add({"gather/MiB": self.step.gather.take_bytes() / 2**20})
        return loss

    def _cached_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """What Trainer.training_step does, with several forwards and backwards."""
        model.train()
        if callable(getattr(self.optimizer, "train", None)):  # schedule-free optimizers have two modes, too
            self.optimizer.train()  # type: ignore[union-attr]
        loss = self.cached_loss(model, held(inputs["batch"]))
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()
        return loss.total / self.current_gradient_accumulation_steps

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        batch = held(inputs["batch"])
        loss = self.batch_loss(model, batch)
        return (loss.total, None) if return_outputs else loss.total

    def batch_loss(self, model: nn.Module, batch: Batch) -> Loss:
        """One forward for every chunk of both sides (one call, so that DDP and ZeRO see one forward a step)."""
        chunks, labels = self._parts(batch)
        plan = self.engine.plan(chunks, cached=False)
        both = model(Moved([chunks[number] for number in plan], self.args.device))
        both = in_order(both, plan, chunks)
        return self._seen(self.step.loss(both, labels), labels, both)

    def cached_loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The same loss, detached, and its gradient (a share of the accumulation's) in the weights: every chunk runs
        twice, but only one's activations exist at a time.  See training/gradcache.py."""
        chunks, labels = self._parts(batch)
        steps, plan, calls = self.current_gradient_accumulation_steps, self.engine.plan(chunks, cached=True), count()

        def forward(chunk: Features) -> Embeddings:
            if next(calls) >= len(plan):
                chunk = chunk | {"cut": 0}  # rows at their limit were counted the first time
            both: Embeddings = model(chunk)
            return both

        return cached_backward(
            forward,
            Moved(chunks, self.args.device),
            lambda both: self._seen(self.step.loss(both, labels), labels, both),
            lambda surrogate, last: self.engine.backward(surrogate / steps),
            plan,
            partial(self.engine.around, model),
            keep=self.args.train_batch_size <= KEPT and not (self.engine.deepspeed or self.engine.fsdp),
        )

    def _parts(self, batch: Batch) -> tuple[list[Features], Batch]:
        """The chunks where they are, and everything else on the device."""
        return [*batch.queries, *batch.documents], replace(batch, queries=[], documents=[]).to(self.args.device)

    def _seen(self, loss: Loss, batch: Batch, both: Embeddings) -> Loss:
        """Notes what the log will say; stops, or leaves the step out, where a rank's loss is no finite number."""
        skips = {"batch/skipped": 0.0} if self.faults.skip else {}
        try:
            self.faults.look(loss, batch, both, self.state.global_step + 1)
        except Skipped:
            self.means.add({"batch/skipped": 1.0})
            raise
        counts = {f"batch/{n}": v for n, v in asked(batch.notes).items() if isinstance(v, int | float)}
        self.means.add({**loss.parts, **counts, **skips})
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if self.skips.now:
            return torch.zeros(())
        norm = super()._get_grad_norm(model, grad_norm)
        if not self.args.fp16:  # its scaler looks for itself, and leaves out steps until it has found its scale
            self.faults.look_at_gradient(norm, self.state.global_step + 1, self.engine.deepspeed)
        return norm

    # -- learning rates

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Groups by (head or not) x (decayed or not); the head has its own learning rate."""
        if self.optimizer is not None:
            return self.optimizer
        target: Any = self.model if model is None else model
        rate = getattr(self.args, "head_learning_rate", None)
        heads = {id(parameter) for parameter in self.encoder.head.parameters()}
        decayed = set(self.get_decay_parameter_names(target))
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in target.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((id(parameter) in heads and rate is not None, name in decayed), []).append(parameter)
        options = [
            {
                "params": parameters,
                "weight_decay": self.args.weight_decay if decay else 0.0,
                "lr": rate if head else self.args.learning_rate,
            }
            for (head, decay), parameters in groups.items()
        ]
        cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, target)
        self.optimizer = cls(options, **kwargs)
        return self.optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clips the head and everything else each for itself: a fresh head's gradient is many times a LoRA's, and one
        common norm of it would scale the backbone's steps down to nothing.  (DeepSpeed clips inside its engine, by one
        norm, and the log says so.)"""
        if self.skips.now:  # nothing to clip, nor to unscale
            return torch.zeros(())
        head = list(self.encoder.head.parameters())
        others = [p for n, p in self.encoder.named_parameters() if p.requires_grad and not n.startswith("head.")]
        if not head or not others or self.is_deepspeed_enabled:
            return super()._clip_grad_norm(model)
        self.accelerator.unscale_gradients()
        limit = float(self.args.max_grad_norm or 0.0)
        norms = [full(nn.utils.clip_grad_norm_(parameters, limit)) for parameters in (head, others)]
        return torch.stack(norms).norm()

    # -- what is seen

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Tensor | int | None]:
        """The batches of one step, as Trainer takes them from the loader."""
        with self.speed.waiting():
            samples, items = super().get_batch_samples(*args, **kwargs)
        self.speed.drawn(held(inputs["batch"]) for inputs in samples)
        return samples, items

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self.means.take(self.accelerator))
            logs.update(self.speed.take(self.accelerator, self.state))
        super().log(logs, start_time)

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Ranks the dev split; names are eval_pooled/ndcg@10 and so on, usable as metric_for_best_model; eval_seconds
        is what it took."""
        if self.rank_dev is None:
            return {}
        if callable(getattr(self.optimizer, "eval", None)):  # what is ranked is what save_model saves
            self.optimizer.eval()  # type: ignore[union-attr]
        begun = time.monotonic()
        ranked = self.rank_dev(self.encoder) | {"seconds": round(time.monotonic() - begun, 2)}
        found = {f"{metric_key_prefix}_{name}": value for name, value in ranked.items()}
        self.log(dict(found))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found
