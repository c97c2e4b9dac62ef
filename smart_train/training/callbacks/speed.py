"""Measure training speed and memory between logged lines, and warn of a rank that is far slower than the others.

Pairs, tokens and padding come from the batch's notes, which the data worker counted.  A step's time runs from its
first wait for the loader to its end, so the speed leaves out evaluations, checkpoints and mining; the time left
includes them.
"""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from smart_train.core.embeddings import Batch
from smart_train.distributed.process_group import ProcessGroup

logger = logging.getLogger(__name__)

FACTOR = 1.5  # a rank this many times above the others' median is reported,
SHARE = 0.1  # if the difference is at least this share of a step's time
GIB = 0.5  # or this many GiB
COLUMNS = ("pairs", "tokens", "positions", "seconds", "waiting", "forward", "memory")


class SpeedMeter(TrainerCallback):
    """Counts what one rank did since the last logged line; ``take`` returns metrics over all ranks.

    The trainer calls ``waiting`` around its loader and ``count`` with the batches that came.

    encoder: its training forwards are timed where there are several ranks.  A step lasts equally long on all of them,
    so a slow rank shows in what it does before it waits for the others.  (Sharded weights are collected within a
    forward, so there every rank waits in it.)
    """

    def __init__(self, encoder: nn.Module) -> None:
        self.forwards = ForwardTimer(encoder)
        self.started: float | None = None  # the clock, while a step runs
        self.first: tuple[int, float] | None = None  # the first step's number and when it ended
        self.previous: dict[str, set[int]] = {}  # "time" or "memory" -> ranks that were far off in the line before
        self.reported: set[tuple[str, int]] = set()
        self.lines = 0
        self._reset()

    def _reset(self) -> None:
        self.pairs = self.tokens = self.positions = 0.0
        self.seconds = self.waited = 0.0

    # -- called by the trainer

    @contextmanager
    def waiting(self) -> Iterator[None]:
        begun = time.monotonic()
        self.started = self.started or begun
        yield
        self.waited += time.monotonic() - begun

    def count(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            self.pairs += len(batch.rows)
            self.tokens += batch.notes.get("tokens", 0)
            self.positions += batch.notes.get("positions", 0)

    # -- events

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started, self.first, self.lines = None, None, 0
        self._reset()
        if args.world_size > 1:
            self.forwards.start(args.device)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.device.type != "cpu" and (control.should_log or control.should_evaluate or control.should_save):
            torch.accelerator.synchronize()  # what follows would wait for this step's backward anyway: it is the step's
        now = time.monotonic()
        if self.started is not None:
            self.seconds += now - self.started
        self.started = None
        self.first = self.first or (state.global_step, now)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.forwards.stop()

    # -- a logged line

    def take(self, accelerator: Accelerator, state: TrainerState) -> dict[str, float]:
        """Return metrics since the last line, and reset the counters.  It is a gather: every rank calls it.

        speed/pairs_per_second, speed/tokens_per_second: of all ranks together; tokens as the backbone reads them,
            padding left out, each once (gradient caching reads them twice)
        speed/padding: share of the positions that are padding; speed/waiting: share of the time that the loader was
            waited for, on the rank that waited longest
        memory/gib: largest over ranks: the peak of the GPU's memory, or on a CPU what the process holds now (without
            its data workers)
        eta_seconds: to the last step, at the pace since this process's first one
        """
        own = [self.pairs, self.tokens, self.positions, self.seconds, self.waited, self.forwards.take(), _memory()]
        self._reset()
        rows = accelerator.gather(torch.tensor([own], dtype=torch.float32, device=accelerator.device)).tolist()
        table = {name: [row[at] for row in rows] for at, name in enumerate(COLUMNS)}
        seconds = max(table["seconds"])
        if not seconds:
            return {}
        self._warn_of_outliers(table, state)
        found = {
            "speed/pairs_per_second": sum(table["pairs"]) / seconds,
            "speed/tokens_per_second": sum(table["tokens"]) / seconds,
            "speed/padding": 1 - sum(table["tokens"]) / max(1.0, sum(table["positions"])),
            "speed/waiting": max(table["waiting"]) / seconds,
            "memory/gib": max(table["memory"]),
        }
        left = self._left(state)
        return {name: _short(value) for name, value in found.items()} | ({} if left is None else {"eta_seconds": left})

    def _left(self, state: TrainerState) -> float | None:
        """Seconds; the first step is left out, since it warms up; None after it alone."""
        if self.first is None or state.global_step <= self.first[0]:
            return None
        pace = (time.monotonic() - self.first[1]) / (state.global_step - self.first[0])
        return round(pace * max(0, state.max_steps - state.global_step), 1)

    # -- ranks that are far off

    def _warn_of_outliers(self, table: dict[str, list[float]], state: TrainerState) -> None:
        """Warn once of each rank that was far off in two lines in a row; the first line of a run does not count.

        Every rank has the same table, and so takes part in the exchange of names.
        """
        self.lines += 1
        seconds = max(table["seconds"])
        alone = [waited + forward for waited, forward in zip(table["waiting"], table["forward"], strict=True)]
        far = {
            "time": set(outliers(alone, FACTOR, SHARE * seconds)),
            "memory": set(outliers(table["memory"], FACTOR, GIB)),
        }
        due = [(what, rank) for what in far for rank in sorted(far[what] & self.previous.get(what, set()))]
        due = [one for one in due if one not in self.reported]
        self.previous = far if self.lines > 1 else {}
        if not due:
            return
        self.reported.update(due)
        names = ProcessGroup().exchange(socket.gethostname())
        for what, rank in due:
            values = alone if what == "time" else table["memory"]
            others = median(values[:rank] + values[rank + 1 :])
            if what == "time":
                text = (
                    f"spends {alone[rank] / seconds:.0%} of a step on its own work "
                    f"({table['waiting'][rank] / seconds:.0%} waiting for data, "
                    f"{table['forward'][rank] / seconds:.0%} in forwards), the others {others / seconds:.0%}: "
                    "every rank waits for it"
                )
            else:
                text = f"uses {values[rank]:.1f} GiB, the others {others:.1f}: it limits the batch size"
            if state.is_world_process_zero:
                logger.warning("step %d: rank %d (%s) %s", state.global_step, rank, names[rank], text)


def outliers(values: list[float], factor: float, least: float) -> list[int]:
    """Return the indices of values above ``factor`` times the median of the others, by ``least`` or more."""
    found = []
    for place, value in enumerate(values):
        others = values[:place] + values[place + 1 :]
        if others and value > factor * (middle := median(others)) and value - middle >= least:
            found.append(place)
    return found


class ForwardTimer:
    """Measures the seconds in a module's training forwards.  On a GPU it records events, which are read when a line is
    logged, so that no step waits."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.hooks: list[Any] = []
        self.marks: list[tuple[Any, Any]] = []
        self.begun: Any = None
        self.device = torch.device("cpu")

    def start(self, device: torch.device) -> None:
        self.stop()
        self.device = device
        self.hooks = [self.module.register_forward_pre_hook(self._begin), self.module.register_forward_hook(self._end)]

    def stop(self) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks, self.marks = [], []

    def take(self) -> float:
        marks, self.marks = self.marks, []
        if self.device.type == "cuda":
            return math.fsum(begin.elapsed_time(end) for begin, end in marks) / 1000
        return math.fsum(end - begin for begin, end in marks)

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        self.begun = self._now() if module.training else None

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self.begun is not None:
            self.marks.append((self.begun, self._now()))

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _memory() -> float:
    """Return the memory of this process in GiB."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    return float(psutil.Process().memory_info().rss) / 2**30


def _short(value: float) -> float:
    """Round to four digits."""
    return float(f"{value:.4g}")
