"""Save the trained weights where there is room: in the run's folder, in a second place, or as soon as there is any.

A disk that is full, over its quota, read-only or gone when the last step is done must not cost what was trained.  In
this order:

    1. the run's folder
    2. smart-train-NAME-PID in the system's temporary folder: $TMPDIR if it is set, else /tmp (Python's ``tempfile``)
    3. the weights stay in memory, and 1 and 2 are tried again every RETRY seconds, until one has room, a signal ends
       the run, or PATIENCE is over
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from smart_train.core.disk import disk_fault
from smart_train.core.errors import CheckpointError
from smart_train.distributed import signals
from smart_train.distributed.process_group import CollectError, ProcessGroup, describe

logger = logging.getLogger(__name__)

RETRY = 30.0  # seconds: short beside what it takes to free space, long beside an attempt
PATIENCE = 24 * 3600.0  # seconds: over a night; a machine that waits longer costs more than a run that is repeated
SPARE = 2**20  # bytes that must be free beside the weights, for checksums, settings and metrics
OTHER_FILES = 32 * 2**20  # bytes: tokenizer and settings, for the estimate of what is needed
FAULT = "disk: "  # begins what a rank reports of a disk, apart from any other error


class Trainer(Protocol):
    """What is asked of a trainer here."""

    args: Any
    parameter_counts: Any

    def save_model(self, output_dir: str | None = None) -> None:
        """Save the encoder's folder; every rank calls it."""


def save_trained(trainer: Trainer, folder: Path) -> Path:
    """Save the trainer's encoder in ``folder``, or else where this module says; return where.  Every rank must call it.

    Raises:
        CheckpointError: on every rank; nothing could be written for PATIENCE seconds.
        RankError: on every rank, where saving fails for another reason than the disk.
    """
    group, begun = ProcessGroup(), time.monotonic()
    second = group.broadcast(_second_place(folder) if group.is_main else None)
    places = [folder, second] if second is not None else [folder]
    while True:
        failures = {}
        for place in places:
            failure = _save(trainer, place)
            if failure is None:
                signals.set_training(False, f"after the training, whose weights are in {place}")
                return place
            failures[place] = failure
        told = "; ".join(f"{place}: {failure}" for place, failure in failures.items())
        if group.broadcast(time.monotonic() - begun > PATIENCE):
            what = f"the trained weights could not be saved for {PATIENCE / 3600:g} h, and are lost: {told}"
            raise CheckpointError(f"{what}. The last checkpoint may be complete: resume from it")
        signals.set_training(False, "while the trained weights were in memory only: they are lost")
        if group.is_main:
            logger.error(
                "the trained weights cannot be saved (%s). They stay in memory: free about %s in one of these places, "
                "or make it writable. The next attempt is in %g s; ending this process loses them",
                *(told, _megabytes(_needed(trainer)), RETRY),
            )
        time.sleep(RETRY)


def _second_place(folder: Path) -> Path | None:
    with suppress(OSError):  # no temporary folder can be written
        return Path(tempfile.gettempdir()) / f"smart-train-{folder.parent.name}-{os.getpid()}" / folder.name
    return None


def _save(trainer: Trainer, place: Path) -> str | None:
    """Save once; return why the disk did not take it, on every rank alike, after deleting what it took."""

    def attempt() -> None:
        trainer.save_model(str(place))
        if trainer.args.should_save:
            _check_spare(place)

    try:
        ProcessGroup().collect(attempt, _report)
    except CollectError as error:
        if trainer.args.should_save:
            shutil.rmtree(place, ignore_errors=True)
        faults = list(error.failures.values())
        if not all(fault.startswith(FAULT) for fault in faults):
            raise error.__cause__ or error from None
        return faults[0].removeprefix(FAULT)
    return None


def _report(error: Exception) -> str:
    fault = disk_fault(error)
    return describe(error) if fault is None else f"{FAULT}{fault}"


def _check_spare(place: Path) -> None:
    with tempfile.TemporaryFile(dir=place) as stream:
        stream.write(bytes(SPARE))
        stream.flush()
        os.fsync(stream.fileno())


def _needed(trainer: Trainer) -> int:
    """Return about how many bytes the folder takes: trained weights are float32."""
    return 4 * trainer.parameter_counts["trainable"] + OTHER_FILES + SPARE


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
