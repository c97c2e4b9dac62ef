"""Save training checkpoints, and resume from them bit-exactly.

A run's checkpoint folder holds:

    checkpoint-N        a complete checkpoint: its checkpoint.json names every file, its size and its SHA-256
    checkpoint-N.part   being written or being deleted; the next run deletes it
    checkpoint-N.old    complete, while a new checkpoint of the same step takes its place
    later-N             complete, of a step after the one that a run was resumed from

A checkpoint holds everything that a resumed run needs in order to end as the uninterrupted run would, bit for bit on a
CPU:

    the encoder's folder          adapter and head, never the frozen base
    optimizer.pt, scheduler.pt, scaler.pt; global_stepN/ under DeepSpeed
    rng_state.pth (_RANK)         random states
    run_state_RANK.pt             sums since the last logged line, length of the log
    trainer_state.json            step, best metric, log history; the batches follow from the step
    checkpoint.json               engine, number of processes, every file with its size and its SHA-256
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.deepspeed import DeepSpeedSchedulerWrapper
from transformers import Trainer, TrainerCallback
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, TrainerControl, TrainerState

from smart_train.core.atomic_io import replacing
from smart_train.core.bounded_json import load_json
from smart_train.core.disk import FULL, disk_fault
from smart_train.core.errors import CheckpointError
from smart_train.core.hub import sha256_of
from smart_train.distributed.process_group import CollectError, ProcessGroup, describe
from smart_train.models.encoder import SmartEncoder
from smart_train.training.callbacks.logging import MetricMeans
from smart_train.training.engine import Engine, collected, load_optimizer, save_optimizer
from smart_train.training.weights import load_weights, read_weights

logger = logging.getLogger(__name__)

KEY = "training.resume_from_checkpoint"
MANIFEST = "checkpoint.json"
FORMAT = 2  # 1 (version 0.1) had no digests
WEIGHTS = (".safetensors", ".json")  # of what is read to load the best weights
PART, OLD = ".part", ".old"
DISK = "the disk"  # begins what a rank reports of a disk, apart from any other error


class CheckpointManager(TrainerCallback):
    """Saves a trainer's checkpoints and resumes from them.  ``SmartTrainer`` calls it from the hooks of Trainer.

    A checkpoint is complete or not there.  All ranks write into checkpoint-N.part, in stages; no rank begins a stage
    before every rank has finished the one before it.  Then the folder is renamed.

    Args:
        trainer: its state, optimizer and random states are what is saved.
        engine: decides the form of weights and optimizer.
        means: sums since the last logged line, saved with the checkpoint.
        log_file: the run's log.jsonl, cut back to the checkpoint when the run is resumed.
        interrupted: whether a signal ends the run after this step, on every rank alike.
    """

    def __init__(
        self,
        trainer: Trainer,
        engine: Engine,
        means: MetricMeans,
        log_file: Path,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self.trainer, self.engine, self.means, self.log_file = trainer, engine, means, log_file
        self.interrupted = interrupted
        self.lost: list[int] = []  # steps whose checkpoint the disk did not take
        self._reset(None)

    def _reset(self, resumed_from: Path | None) -> None:
        self.resumed_from = resumed_from
        self._saved_best: tuple[Any, Any, Any] = (None, None, None)  # metric, step, path of the best that is on disk
        self.saved_step = -1  # of the last checkpoint that this process took part in
        self._delayed = False  # a checkpoint is due once the end of the epoch has been handled
        self._ended_step = -1  # the last step of an epoch, once Trainer has asked what is due after it

    @property
    def root(self) -> Path:
        return Path(str(self.trainer.args.output_dir))

    @property
    def encoder(self) -> SmartEncoder:
        encoder: SmartEncoder = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return encoder

    # -- save

    def save_or_count(self) -> None:
        """Save; where the disk does not take a checkpoint, report and count it and train on: a later one may succeed,
        and the trained weights are saved in any case (training/final_save.py).

        Raises CheckpointError, on every rank, where the run ends after this checkpoint because of a signal, and for
        errors that are not of the disk.
        """
        try:
            self.save()
        except CheckpointError as error:
            cause = error.__cause__
            faults = cause.failures.values() if isinstance(cause, CollectError) else [str(error)]
            if self.interrupted() or not all(fault.startswith(DISK) for fault in faults):
                raise
            self.lost.append(self.trainer.state.global_step)
            self._warn([f"{error}. The training goes on; {len(self.lost)} checkpoints could not be written so far"])

    def save(self) -> None:
        """Write the checkpoint of the current step; every rank must call it.

        Raises:
            CheckpointError: on every rank, where one rank cannot write its part.  What was written of it is deleted;
                the last checkpoint stays.
        """
        state = self.trainer.state
        folder = checkpoint_path(self.root, state.global_step)
        part = folder.with_name(folder.name + PART)
        self.trainer.store_flos()
        if state.best_global_step == state.global_step:
            state.best_model_checkpoint = str(folder)
        try:
            self._on_every_rank(partial(self._write_weights, part), part)
            names = self._on_every_rank(partial(self._write_state, part), part)
            self._on_every_rank(partial(self._finalize, part, names), part)
            self._on_every_rank(partial(self._commit, part, folder), part)
        except CheckpointError:
            if state.best_global_step == state.global_step:  # the best is what can be loaded at the end
                state.best_metric, state.best_global_step, state.best_model_checkpoint = self._saved_best
            raise
        self.saved_step = state.global_step
        self._saved_best = (state.best_metric, state.best_global_step, state.best_model_checkpoint)
        if self.trainer.args.should_save:
            keep = [folder, *([Path(state.best_model_checkpoint)] if state.best_model_checkpoint else [])]
            for deleted in rotate(self.root, self.trainer.args.save_total_limit, keep):
                logger.debug("deleted %s: save_total_limit is %s", deleted, self.trainer.args.save_total_limit)

    def _on_every_rank(self, stage: Callable[[], Any], part: Path) -> list[Any]:
        """Run a stage on every rank and return every rank's result."""
        try:
            return ProcessGroup().collect(stage, lambda error: describe_write_error(error, part))
        except CollectError as error:
            if self.trainer.args.local_process_index == 0:
                delete(part)
            last = last_complete(self.root)
            step = self.trainer.state.global_step
            hint = f"{last} is complete: free some space, then resume from it with {KEY}=true" if last else ""
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.root}: {error}. "
                + (hint or "There is no earlier checkpoint")
            ) from error

    def _write_weights(self, part: Path) -> None:
        if self.trainer.args.should_save:
            delete(part)
        part.parent.mkdir(parents=True, exist_ok=True)
        self.trainer.save_model(str(part), _internal_call=True)

    def _write_state(self, part: Path) -> list[str]:
        """Write this rank's files besides the weights; return the names that must be in the folder for this rank."""
        trainer = self.trainer
        part.mkdir(parents=True, exist_ok=True)  # machines may each have a disk of their own
        if trainer.args.should_save:
            exported = {name: one.state() for name, one in self._stateful_callbacks().items()}
            trainer.state.stateful_callbacks = exported  # type: ignore[assignment]
            trainer.state.save_to_json(str(part / TRAINER_STATE_NAME))
        if trainer.args.save_only_model:
            return []
        trainer._save_optimizer_and_scheduler(str(part))
        trainer._save_scaler(str(part))
        trainer._save_rng_state(str(part))
        name = run_state_file(trainer.args.process_index)
        torch.save(self._run_state(), part / name)
        return [name]

    def save_sharded_optimizer(self, folder: Path) -> bool:
        """Save optimizer and scheduler under DeepSpeed or FSDP; return False where Trainer's own way does."""
        trainer = self.trainer
        if self.engine.deepspeed:
            save_deepspeed(trainer.model_wrapped, folder, trainer.state.global_step)
        elif self.engine.fsdp:
            assert trainer.model is not None and trainer.optimizer is not None
            save_optimizer(trainer.model, trainer.optimizer, folder / OPTIMIZER_NAME, trainer.args.should_save)
        else:
            return False
        if trainer.args.should_save and not isinstance(trainer.lr_scheduler, DeepSpeedSchedulerWrapper):
            assert trainer.lr_scheduler is not None
            torch.save(trainer.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)
        return True

    def _finalize(self, part: Path, names: list[list[str]]) -> None:
        args = self.trainer.args
        if not args.should_save:
            return
        os.listdir(part)  # has a network disk look again
        missing = [name for of_rank in names for name in of_rank if not (part / name).is_file()]
        if missing and not args.save_on_each_node:
            raise OSError(
                f"{', '.join(missing)} of other ranks are not in {part}, so the machines do not share this disk; set "
                "training.save_on_each_node: true, or choose an output folder that they share"
            )
        info = {
            "step": self.trainer.state.global_step,
            "engine": self.engine.name,
            "processes": args.world_size,
            "resumable": not args.save_only_model,
        }
        finalize(part, info)

    def _commit(self, part: Path, folder: Path) -> None:
        if self.trainer.args.should_save:
            commit(part, folder)

    def _stateful_callbacks(self) -> dict[str, ExportableState]:
        """By class name, as Trainer stores them."""
        everything = (*self.trainer.callback_handler.callbacks, self.trainer.control)
        return {type(one).__name__: one for one in everything if isinstance(one, ExportableState)}

    def _run_state(self) -> dict[str, Any]:
        """Return this rank's sums since the last logged line and since the start of the run."""
        return {
            "loss": self.trainer._tr_loss.cpu(),
            "losses": self.trainer._total_loss_scalar,
            "logged": self.trainer._globalstep_last_logged,
            "means": {name: torch.stack(values).cpu() for name, values in self.means.values.items()},
            "log_bytes": self.log_file.stat().st_size if self.log_file.is_file() else 0,
        }

    # -- when to save

    @contextmanager
    def around_step_end(self) -> Iterator[None]:
        """Decide when the checkpoint of a step is written; around Trainer's logging, evaluation and saving.

        A checkpoint at an epoch's last step waits until the end of the epoch is handled (lines, evaluation, best
        metric), since a resumed run begins with the next epoch and would never do that.  A checkpoint that a signal
        requests is written in any case, while ``save_strategy: best`` would write it after a new best only.
        """
        trainer = self.trainer
        state, control = trainer.state, trainer.control
        epoch_ends = state.epoch is not None and float(state.epoch).is_integer()
        if epoch_ends and self._ended_step != state.global_step:  # after the step; Trainer asks again after the epoch
            self._ended_step = state.global_step
            self._delayed, control.should_save = control.should_save, False
        elif self._delayed:
            self._delayed, control.should_save = False, True
        must_save = control.should_save and control.should_training_stop
        yield
        if must_save and self.saved_step != state.global_step and state.global_step not in self.lost[-1:]:
            self.save_or_count()
            trainer.control = trainer.callback_handler.on_save(trainer.args, state, trainer.control)

    @contextmanager
    def around_end(self) -> Iterator[None]:
        """Correct two things that Trainer does at the end: the mean loss covers all steps, also those before a resume;
        and the last checkpoint is kept, which save_total_limit 1 would delete where another one is the best."""
        trainer = self.trainer
        rest = trainer._tr_loss.item()
        steps = max(trainer.state.global_step - trainer._initial_global_step, 0.001)  # as Trainer divides
        total = (trainer._total_loss_scalar + rest) * steps / max(1, trainer.state.global_step)
        trainer._total_loss_scalar = total - rest
        limit, trainer.args.save_total_limit = trainer.args.save_total_limit, None
        try:
            yield
        finally:
            trainer.args.save_total_limit = limit

    # -- resume

    def begin(self, resume_from: str | bool | None) -> Path | None:
        """Prepare the checkpoint folder for a run; return the checkpoint to resume from, None where a run starts anew.

        resume_from: True = the newest complete checkpoint of the output folder; or a checkpoint's path.
        Raises CheckpointError, on every rank, where there is no such checkpoint, where a file of it is not what was
        written (about a second per gigabyte), and where this launch cannot resume from it.
        """
        args, group = self.trainer.args, ProcessGroup()
        self._warn(clean_up(self.root) if args.local_process_index == 0 else [])
        self._reset(None)
        group.exchange()  # nobody looks before the folder is clean
        if not resume_from:
            return None
        folder = find_checkpoint(resume_from, self.root, group)
        self._check_digests(folder)
        self._warn(check_processes(folder, self.engine.name, args.world_size))
        if args.should_save and folder.parent.resolve() == self.root.resolve():
            self._warn(set_later_aside(self.root, int(folder.name.split("-")[1])))
        if args.eval_on_start:
            args.eval_on_start = False
            self._warn(["training.eval_on_start is ignored: it was done before the first step"])
        self._reset(folder)
        if args.process_index == 0:
            logger.info("resumed from %s, after step %s", folder, read_manifest(folder).get("step", "?"))
        return folder

    def _check_digests(self, folder: Path, suffixes: tuple[str, ...] = ("",)) -> None:
        """Raise CheckpointError, on every rank, where a file is not what was written; one process a machine reads it.

        A flipped bit loads without an error, and the run would end with another result.
        suffixes: of the files to look at
        """
        found = damaged_files(folder, suffixes) if self.trainer.args.local_process_index == 0 else []
        lines: list[str] = next((one for one in ProcessGroup().exchange(found) if one), [])
        if lines:
            step = read_manifest(folder)["step"]
            earlier = [one for one in list_steps(folder.parent) if one < step]
            complete = (path for one in reversed(earlier) if is_complete(path := checkpoint_path(folder.parent, one)))
            last = next(complete, None)
            fix = f"resume from the one before, {KEY}={last}" if last else "there is no earlier one: start a new run"
            raise CheckpointError(
                f"{folder} was damaged after it was written: {'; '.join(lines[:5])}; copy it again, or {fix}; nothing "
                "was loaded"
            )
        if self.trainer.args.process_index == 0 and not read_manifest(folder).get("sha256"):
            self._warn(
                [f"{folder} was written by version 0.1, without digests: only the sizes of its files were compared"]
            )

    def restore_trainer_state(self) -> None:
        """Restore what Trainer does not: the path of the best checkpoint, and the state of callbacks."""
        if self.resumed_from is None:
            return
        self._restore_best(self.resumed_from)
        stored: dict[str, Any] = dict(self.trainer.state.stateful_callbacks or {})  # type: ignore[arg-type]
        for name, callback in self._stateful_callbacks().items():
            if name in stored and not isinstance(callback, TrainerControl):
                for attribute, value in stored[name].get("attributes", {}).items():
                    setattr(callback, attribute, value)

    def _restore_best(self, folder: Path) -> None:
        """Find the best checkpoint beside this one: the recorded path is from before the folder was moved."""
        state = self.trainer.state
        recorded = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME)).best_model_checkpoint
        if recorded is None:
            return
        places = [folder.parent / Path(recorded).name, Path(recorded)]
        found = next((place for place in places if is_complete(place)), None)
        state.best_model_checkpoint = str(found) if found is not None else None
        if found is None:
            self._warn([f"the best checkpoint so far, {places[0]}, no longer exists: the best is searched anew"])
            state.best_metric = state.best_global_step = None
        self._saved_best = (state.best_metric, state.best_global_step, state.best_model_checkpoint)

    def load_deepspeed(self, folder: Path) -> None:
        """Load weights, optimizer, scheduler and scaler.  (Trainer would have DeepSpeed load the frozen weights, too,
        which a checkpoint does not hold.)"""
        load_deepspeed(self.trainer.model_wrapped, self.encoder, folder, self.trainer.state.global_step)
        self.trainer._load_optimizer_and_scheduler(str(folder))
        self.trainer._load_scaler(str(folder))

    def load_sharded_optimizer(self, folder: Path) -> bool:
        """Load optimizer and scheduler under FSDP; return False where Trainer's own way does."""
        trainer = self.trainer
        if not self.engine.fsdp:
            return False
        assert trainer.model is not None and trainer.optimizer is not None and trainer.lr_scheduler is not None
        load_optimizer(trainer.model, trainer.optimizer, folder / OPTIMIZER_NAME)
        trainer.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))
        return True

    def load_weights(self, folder: Path) -> None:
        load_weights(self.encoder, folder)

    def load_best(self) -> None:
        best = Path(str(self.trainer.state.best_model_checkpoint))
        logger.info("loading the best weights, from %s", best)
        self._check_digests(best, WEIGHTS)
        load_weights(self.encoder, best)

    def on_train_begin(self, *args: Any, **options: Any) -> None:
        """Restore the sums of a checkpoint, and cut the log back to it.  Trainer has just set its sums to zero."""
        trainer = self.trainer
        file = self.resumed_from / run_state_file(trainer.args.process_index) if self.resumed_from else None
        if file is None or not file.is_file():
            return  # there are more processes than before; check_processes has warned of it
        stored = torch.load(file, weights_only=True)
        trainer._tr_loss.copy_(stored["loss"])
        trainer._total_loss_scalar, trainer._globalstep_last_logged = stored["losses"], stored["logged"]
        device = trainer.accelerator.device
        self.means.values = {name: list(values.to(device).unbind()) for name, values in stored["means"].items()}
        if trainer.args.process_index == 0:
            self._warn(truncate_log(self.log_file, stored["log_bytes"], trainer.state.global_step))

    def _warn(self, lines: list[str]) -> None:
        for line in lines:
            if self.trainer.args.process_index == 0:
                logger.warning("%s", line)


def run_state_file(rank: int) -> str:
    """Return the name of the file with a rank's state."""
    return f"run_state_{rank}.pt"


# -- folders


def checkpoint_path(root: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return root / f"checkpoint-{step}"


def list_steps(root: Path) -> list[int]:
    """Return the steps of the checkpoint folders, complete or not, in order."""
    names = (re.fullmatch(r"checkpoint-(\d+)", folder.name) for folder in root.glob("checkpoint-*") if folder.is_dir())
    return sorted(int(name[1]) for name in names if name)


def finalize(part: Path, info: dict[str, Any]) -> None:
    """Flush every file of a written folder to the disk, then list them in checkpoint.json with their SHA-256.

    Without the flush, the rename that follows could outlive the data in a power failure, as file systems are free to
    write names first.  It costs seconds for gigabytes on a network disk, and the digests a second per gigabyte.
    """
    files = {str(file.relative_to(part)): file.stat().st_size for file in sorted(part.rglob("*")) if file.is_file()}
    for name in files:
        _flush(part / name)
    manifest = {"format": FORMAT, **info, "files": files, "sha256": {name: sha256_of(part / name) for name in files}}
    text = json.dumps({**manifest, "checksum": _checksum(manifest)}, indent=2) + "\n"
    (part / MANIFEST).write_text(text, encoding="utf8")
    _flush(part / MANIFEST)
    for folder in (*(folder for folder in part.rglob("*") if folder.is_dir()), part):
        _flush(folder)


def commit(part: Path, folder: Path) -> None:
    """Rename a finalized folder to its place.  An older checkpoint of that step stays there until then."""
    old = folder.with_name(folder.name + OLD)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    _flush(folder.parent)
    delete(old)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def delete(folder: Path) -> None:
    """Delete a checkpoint.  It is renamed first, so that a half-deleted folder is no checkpoint any more."""
    if not folder.exists():
        return
    part = folder if folder.name.endswith(PART) else folder.with_name(folder.name + PART)
    if part != folder:
        shutil.rmtree(part, ignore_errors=True)
        with suppress(FileNotFoundError):  # another machine that shares the disk was first
            folder.rename(part)
    shutil.rmtree(part, ignore_errors=True)


def rotate(root: Path, limit: int | None, keep: Iterable[Path]) -> list[Path]:
    """Delete the oldest checkpoints above ``limit``, except those to keep; return the deleted ones."""
    folders, kept = [checkpoint_path(root, step) for step in list_steps(root)], {path.resolve() for path in keep}
    excess = len(folders) - limit if limit else 0
    deleted = [folder for folder in folders if folder.resolve() not in kept][: max(0, excess)]
    for folder in deleted:
        delete(folder)
    return deleted


def clean_up(root: Path) -> list[str]:
    """Delete what an earlier run was writing when it ended, and restore a checkpoint that it was replacing.

    Returns a line for the log on each.
    """
    lines = []
    for part in sorted(root.glob(f"checkpoint-*{PART}")):
        shutil.rmtree(part, ignore_errors=True)
        lines.append(f"deleted {part}, which an earlier run had not finished")
    for old in sorted(root.glob(f"checkpoint-*{OLD}")):
        folder = old.with_name(old.name.removesuffix(OLD))
        if folder.exists():
            delete(old)
            continue
        with suppress(FileNotFoundError):  # another machine that shares the disk was first
            old.rename(folder)
            lines.append(f"restored {folder}, which an earlier run was replacing when it ended")
    return lines


def set_later_aside(root: Path, step: int) -> list[str]:
    """Rename the checkpoints after ``step``, so that a resumed run neither takes them for the newest nor deletes them.

    Returns a line for the log, if there were any.
    """
    later = [found for found in list_steps(root) if found > step]
    for found in later:
        number, folder = 0, root / f"later-{found}"
        while folder.exists():
            number += 1
            folder = root / f"later-{found}.{number}"
        checkpoint_path(root, found).rename(folder)
    if not later:
        return []
    names = ", ".join(str(found) for found in later)
    return [f"{root}: renamed the checkpoints after step {step} ({names}) to later-{later[0]} ..."]


# -- what a folder holds


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the content of checkpoint.json.  Raises CheckpointError where there is none, or one of another format."""
    try:
        manifest: dict[str, Any] = load_json((folder / MANIFEST).read_text(encoding="utf8"))
    except (OSError, ValueError):
        what = f"has no readable {MANIFEST}, so it is no complete checkpoint" if folder.is_dir() else "is no folder"
        raise CheckpointError(f"{KEY}: {folder} {what}{_nearby(folder)}") from None
    if not isinstance(manifest, dict) or manifest.get("format") not in (1, FORMAT):
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise CheckpointError(f"{folder / MANIFEST} has format {found}; this version reads 1 and {FORMAT}")
    if manifest["format"] == FORMAT and manifest.get("checksum") != _checksum(manifest):
        raise CheckpointError(f"{folder / MANIFEST} was damaged or edited after it was written{_nearby(folder)}")
    return manifest


def _checksum(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest without its own checksum."""
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _nearby(folder: Path) -> str:
    roots = [root for root in (folder, folder / "checkpoints", folder.parent) if root.is_dir() and list_steps(root)]
    names = [checkpoint_path(roots[0], step).name for step in list_steps(roots[0])] if roots else []
    return f"; {roots[0]} has {', '.join(names[-3:])}" if names else ""


def missing_files(folder: Path) -> list[str]:
    """Return a line for every file of checkpoint.json that is missing or has another size."""
    lines = []
    for name, size in read_manifest(folder)["files"].items():
        file = folder / name
        if not file.is_file():
            lines.append(f"{name} is missing")
        elif file.stat().st_size != size:
            lines.append(f"{name} has {file.stat().st_size} bytes of {size}")
    return lines


def damaged_files(folder: Path, suffixes: tuple[str, ...] = ("",)) -> list[str]:
    """Return a line for every file that is missing or whose SHA-256 differs; every file is read.

    suffixes: of the files to look at.  A checkpoint of version 0.1 has no digests, and gives no lines.
    """
    lines = []
    for name, digest in read_manifest(folder).get("sha256", {}).items():
        if name.endswith(suffixes) and not (folder / name).is_file():
            lines.append(f"{name} is missing")
        elif name.endswith(suffixes) and sha256_of(folder / name) != digest:
            lines.append(f"{name} is not what was written (its SHA-256 differs)")
    return lines


def is_complete(folder: Path) -> bool:
    """Return whether a checkpoint has every file that its manifest lists."""
    try:
        return not missing_files(folder)
    except CheckpointError:
        return False


def last_complete(root: Path) -> Path | None:
    """Return the newest complete checkpoint of a run; None if there is none."""
    return next((path for step in reversed(list_steps(root)) if is_complete(path := checkpoint_path(root, step))), None)


def folder_size(folder: Path) -> int:
    """Return the bytes of all files of a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def describe_write_error(error: Exception, part: Path) -> str:
    """Return what failed, and whether the disk was full (torch and safetensors say that in words of their own)."""
    free = shutil.disk_usage(next(place for place in (part, *part.absolute().parents) if place.exists())).free
    fault = disk_fault(error)
    full = fault in [os.strerror(number) for number in FULL] or free < 2**20
    written = f"{_megabytes(folder_size(part))} were written, {_megabytes(free)} are free"
    text = describe(error)
    if full:
        return f"{DISK} is full ({written}; {text})"
    return f"{DISK} fails ({written}; {text})" if fault else f"{text} ({written})"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


# -- choose a checkpoint


def python_error(error: CheckpointError) -> CheckpointError:
    """Return the error as a Python program reads it, with the argument of ``train`` in place of the recipe's key."""
    argument = KEY.rpartition(".")[2]
    return CheckpointError(str(error).replace(f"{KEY}=true", f"{argument}=True").replace(KEY, argument))


def find_checkpoint(wanted: str | bool, root: Path, group: ProcessGroup) -> Path:
    """Return the checkpoint to resume from: the newest of ``root`` that is complete on every rank, or the one named.

    Raises:
        CheckpointError: on every rank; there is none, or the one named is incomplete on a rank's disk.
    """
    if wanted is True or str(wanted).lower() == "true":
        complete = {step for step in list_steps(root) if is_complete(checkpoint_path(root, step))}
        common = set.intersection(*group.exchange(complete))
        if not common:
            half = f" (incomplete: {', '.join(str(step) for step in list_steps(root))})" if list_steps(root) else ""
            raise CheckpointError(
                f"there is no complete checkpoint in {root}{half}; name another in {KEY}, or remove it to start anew"
            )
        folder = checkpoint_path(root, max(common))
        for step in (step for step in list_steps(root) if step > max(common)):
            logger.warning("%s is incomplete on some rank; resuming from %s", checkpoint_path(root, step), folder)
        return folder
    folder = Path(str(wanted))
    problems = {rank: text for rank, text in enumerate(group.exchange(_problem(folder))) if text}
    if problems:
        rank, text = next(iter(problems.items()))
        raise CheckpointError(f"rank {rank}: {text}" if group.world_size > 1 else text)
    return folder


def _problem(folder: Path) -> str:
    try:
        lines = missing_files(folder)
    except CheckpointError as error:
        return str(error)
    return f"{KEY}: {folder} is incomplete: {'; '.join(lines[:5])}; choose another, or copy it again" if lines else ""


def engine_family(engine: str) -> str:
    """Return a name that is equal for engines which can resume from each other's checkpoints."""
    return engine if engine.startswith(("DeepSpeed", "FSDP")) else "one process or DDP"


def check_processes(folder: Path, engine: str, processes: int) -> list[str]:
    """Raise CheckpointError where this launch cannot resume from the checkpoint; return lines on what will differ."""
    manifest = read_manifest(folder)
    if not manifest["resumable"]:
        raise CheckpointError(f"{folder} has only weights (training.save_only_model), so no run can resume from it")
    before, count = manifest["engine"], manifest["processes"]
    if engine_family(before) != engine_family(engine):
        raise CheckpointError(
            f"{folder} was written under {before} by {count} processes, and its optimizer has another form under "
            f"{engine}; launch as before, or start a new run"
        )
    if count == processes:
        return []
    if engine.startswith("DeepSpeed"):
        raise CheckpointError(
            f"{folder} was written under {before} by {count} processes, each with its share of the optimizer, and "
            f"{processes} were launched; launch {count}"
        )
    return [
        f"{folder} was written by {count} processes, and {processes} resume from it: random states differ from those "
        "of the uninterrupted run, and batches do unless objective.batch gives their size; the result will be close to "
        "the uninterrupted run's, but not equal"
    ]


# -- DeepSpeed


class _DeferredErrors:
    """Stands in for the writer of a DeepSpeed engine: it keeps an error instead of raising it.

    The ranks meet several times while the engine saves.  A rank that raised an error would not come, and the others
    would wait for it until the launch's time-out.
    """

    def __init__(self, writer: Any) -> None:
        self.writer = writer
        self.error: Exception | None = None

    def save(self, state_dict: Any, path: str) -> None:
        try:
            self.writer.save(state_dict, path)
        except Exception as error:
            self.error = self.error or error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.writer, name)


def save_deepspeed(engine: Any, folder: Path, step: int) -> None:
    """Save each rank's share of the optimizer and the trained weights, without what is frozen (most of it)."""
    deferred = _DeferredErrors(engine.checkpoint_engine)
    engine.checkpoint_engine = deferred
    engine._copy_recovery_script = lambda _: None  # a script in every checkpoint; adapter and head are beside it
    try:
        engine.save_checkpoint(str(folder), tag=deepspeed_tag(step), save_latest=False, exclude_frozen_parameters=True)
    finally:
        engine.checkpoint_engine = deferred.writer
        del engine._copy_recovery_script
    if deferred.error is not None:
        raise deferred.error


def load_deepspeed(engine: Any, encoder: SmartEncoder, folder: Path, step: int) -> None:
    """Load weights, master weights and optimizer; then compare every trained tensor with the adapter's files.

    Raises CheckpointError where DeepSpeed finds no checkpoint, or has loaded other weights than were saved.
    """
    all_trained = all(parameter.requires_grad for parameter in encoder.parameters())
    tensors = {} if all_trained else read_weights(encoder, folder)[0]  # where nothing is frozen, DeepSpeed is strict
    path, _ = engine.load_checkpoint(str(folder), tag=deepspeed_tag(step), load_module_strict=all_trained)
    if path is None:
        raise CheckpointError(f"{folder}: DeepSpeed finds no checkpoint {deepspeed_tag(step)} there")
    for name, parameter in encoder.named_parameters():
        if name in tensors:
            with collected(parameter) as loaded:
                if not torch.equal(loaded.detach().float().cpu(), tensors[name].float()):
                    raise CheckpointError(f"{folder}: DeepSpeed loaded another {name} than the adapter's file has")


def deepspeed_tag(step: int) -> str:
    """Return the name of DeepSpeed's folder in the checkpoint of a step."""
    return f"global_step{step}"


# -- the log of a resumed run


def truncate_log(log: Path, size: int, step: int) -> list[str]:
    """Cut ``log`` to what it held when the checkpoint of ``step`` was written: a killed run may have written more.

    size: its bytes at that time.  A line of that step which was written later (the end of a run) is removed as well.
    Another log in its place, or a log that has lost its end, keeps its lines up to that step.  Returns a line for the
    log, if something was removed.
    """
    if not log.is_file():
        return []
    content = log.read_bytes()
    lines = content[:size].splitlines(keepends=True)
    kept = [line for line in lines if (logged := _step_of(line)) is not None and logged <= step]
    removed = len(content.splitlines()) - len(kept)
    if not removed:
        return []
    with replacing(log) as part:
        part.write_bytes(b"".join(kept))
    return [f"{log}: removed {removed} lines after the checkpoint of step {step}; those steps are made again"]


def _step_of(line: bytes) -> int | None:
    """Return a line's step; None for half a line, as a killed process may leave."""
    if not line.endswith(b"\n"):
        return None
    try:
        return int(load_json(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None
