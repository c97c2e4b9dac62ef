"""What a run says of its steps: means over steps and ranks, and every logged line as JSON."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Means:
    """Values of many steps, until they are logged as their mean over steps and ranks.

    Every rank must add the same names in the same order.
    """

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor]] = {}

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        for name, value in values.items():
            # Not read here: .item() would wait for the GPU in every step.
            self.values.setdefault(name, []).append(torch.as_tensor(value, dtype=torch.float32).detach())

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Means by name, then empty again; without those that no step had a number for (a margin where no pair had a
        negative).  Every rank logs at the same step, as the gather among them needs."""
        if not self.values:
            return {}
        device = accelerator.device
        means = torch.stack([torch.stack([v.to(device) for v in found]).nanmean() for found in self.values.values()])
        means = accelerator.gather(means.unsqueeze(0)).nanmean(0)
        taken = {name: mean for name, mean in zip(self.values, means.tolist(), strict=True) if mean == mean}
        self.values = {}
        return taken


def asked(notes: Mapping[str, Any]) -> dict[str, Any]:
    """A batch's counts, without those of hard negatives where none are drawn: they would be 0 in every line.  (Each
    that is asked for is either there or missing, so that every rank and step leaves out the same.)"""
    if notes.get("negatives") or notes.get("negatives_missing"):
        return dict(notes)
    return {name: value for name, value in notes.items() if not name.startswith("negatives")}


class JsonLog(TrainerCallback):
    """Every logged line as JSON, one object a line, with its step and seconds; appended, so that a resume goes on, and
    closed after each, so that a crash loses none."""

    def __init__(self, path: Path) -> None:
        self.path, self.started = path, time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs:
            line = {"step": state.global_step, "seconds": round(time.monotonic() - self.started, 2), **named(logs)}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf8") as stream:
                stream.write(json.dumps({name: _written(value) for name, value in line.items()}) + "\n")


def named(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Trainer's names as they are everywhere here, in the JSONL log as with trackers: its eval_ is the dev split's."""
    return {f"dev/{k.removeprefix('eval_')}" if k.startswith("eval_") else k: v for k, v in logs.items()}


def _written(value: Any) -> Any:
    """JSON has no number for what is not finite (a gradient's norm, when fp16 looks for its scale)."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
