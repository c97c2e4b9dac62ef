"""Average metrics over steps and ranks, and write every logged line to log.jsonl."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


class MetricMeans:
    """Collects values of many steps, and returns their means over steps and ranks when a line is logged.

    Every rank must add the same names in the same order.
    """

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor]] = {}

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        for name, value in values.items():
            # Not read here: .item() would wait for the GPU in every step.
            self.values.setdefault(name, []).append(torch.as_tensor(value, dtype=torch.float32).detach())

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means by name, and start again.  Names that had a number in no step (a margin where no pair had a
        negative) are left out.  It is a gather: every rank must call it, at the same step."""
        if not self.values:
            return {}
        device = accelerator.device
        means = torch.stack([torch.stack([v.to(device) for v in values]).nanmean() for values in self.values.values()])
        means = accelerator.gather(means.unsqueeze(0)).nanmean(0)
        taken = {name: mean for name, mean in zip(self.values, means.tolist(), strict=True) if mean == mean}
        self.values = {}
        return taken


def batch_counts(notes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch's counts, without those of hard negatives where none are wanted: they would be 0 in every line.

    (Each negative that is wanted is either there or missing, so every rank and step leaves out the same.)
    """
    if notes.get("negatives") or notes.get("negatives_missing"):
        return dict(notes)
    return {name: value for name, value in notes.items() if not name.startswith("negatives")}


class JsonLogger(TrainerCallback):
    """Appends every logged line to a JSONL file, with its step and seconds.  The file is closed after each line, so
    that a crash loses none.  Lines that the disk does not take are kept and written with a later one."""

    def __init__(self, path: Path) -> None:
        self.path, self.started = path, time.monotonic()
        self.waiting = ""  # lines that could not be written yet

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs:
            line = {
                "step": state.global_step,
                "seconds": round(time.monotonic() - self.started, 2),
                **rename_logs(logs),
            }
            text = json.dumps({name: _json_value(value) for name, value in line.items()}) + "\n"
            try:
                self._append(self.waiting + text)
                self.waiting = ""
            except OSError as error:
                if not self.waiting:
                    logger.warning("%s cannot be written (%s); its lines wait in memory", self.path, error.strerror)
                self.waiting += text

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        if self.waiting:
            count = len(self.waiting.splitlines())
            try:
                self._append(self.waiting)
                self.waiting = ""
            except OSError as error:
                logger.warning("%s lacks its last %d lines (%s)", self.path, count, error.strerror)

    def _append(self, text: str) -> None:
        """Append lines, all or none: half a line would spoil the next one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as stream:
            size = stream.tell()
            try:
                written = stream.write(text.encode())
                if written != len(text.encode()):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                stream.truncate(size)
                raise


def rename_logs(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Return Trainer's metrics under this project's names: ``eval_NAME`` is ``dev/NAME``."""
    return {f"dev/{k.removeprefix('eval_')}" if k.startswith("eval_") else k: v for k, v in logs.items()}


def _json_value(value: Any) -> Any:
    """JSON has no number that is not finite (a gradient's norm, while fp16 looks for its scale)."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
