"""What a person sees of a run while it trains: a bar on a terminal, a plain line at each logging step elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from smart_train.training.callbacks.logging import named

logger = logging.getLogger(__name__)

BAR = "{percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt}  {elapsed}{postfix}"
WAITING = 0.1  # share of a step's time from which waiting for data is told


class Progress(TrainerCallback):
    """On rank 0, instead of transformers' bar and prints.

    With ``disable_tqdm``, or where standard error is no terminal, a line of the log instead of the bar.  The dev
    split's figures are a line of the log in both cases.
    """

    def __init__(self) -> None:
        self.bar: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and not args.disable_tqdm and sys.stderr.isatty():
            options = {"initial": state.global_step, "dynamic_ncols": True, "bar_format": BAR}
            self.bar = tqdm(total=state.max_steps, file=sys.stderr, **options)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        found = named(logs)
        if "loss" in found and self.bar is not None:
            self.bar.set_postfix_str(told(found))
        elif "loss" in found:
            logger.info("step %d/%d  %s", state.global_step, state.max_steps, told(found))
        elif ranked := told_dev(found, args.metric_for_best_model):
            logger.info("step %d/%d  %s", state.global_step, state.max_steps, ranked)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def told(found: Mapping[str, Any]) -> str:
    """A training line: ``loss 0.412 (pooled 0.21, late 0.20)  64 pairs/s  21k tokens/s  12.3 GiB  8 min left``."""
    parts = {name.removeprefix("loss/"): value for name, value in found.items() if name.startswith("loss/")}
    inner = ", ".join(f"{name} {value:.3g}" for name, value in parts.items())
    words = [f"loss {found['loss']:.4g}" + (f" ({inner})" if inner else "")]
    for name, unit in (("pairs", "pairs/s"), ("tokens", "tokens/s")):
        if (speed := found.get(f"speed/{name}_per_second")) is not None:
            words.append(f"{_count(speed)} {unit}")
    if (waiting := found.get("speed/waiting", 0.0)) >= WAITING:
        words.append(f"{waiting:.0%} of it waiting for data")
    if (memory := found.get("memory/gib")) is not None:
        words.append(f"{memory:.1f} GiB")
    if (left := found.get("eta_seconds", 0.0)) >= 1:
        words.append(f"{duration(left)} left")
    return "  ".join(words)


def told_dev(found: Mapping[str, Any], chosen: str | None = None) -> str:
    """An evaluation's line: ``dev ndcg@10: pooled 0.612, late 0.660, hybrid 0.667  (8 s)``; empty where nothing was
    ranked.  chosen: ``metric_for_best_model``, which is told as well where it is another measure."""
    metric = headline(found)
    if metric is None:
        return ""
    end = f"/{metric.rpartition('/')[2]}"
    values = {n.split("/")[1]: v for n, v in found.items() if n.startswith("dev/") and n.endswith(end)}
    chosen = (chosen or "").removeprefix("eval_")
    if f"dev/{chosen}" in found and not chosen.endswith(end):
        values[chosen] = found[f"dev/{chosen}"]
    inner = ", ".join(f"{mode} {value:.3f}" for mode, value in values.items())
    took = f"  ({duration(found['dev/seconds'])})" if "dev/seconds" in found else ""
    return f"dev {end[1:]}: {inner}{took}"


def headline(found: Mapping[str, Any]) -> str | None:
    """The figure that speaks for an evaluation, without "dev/": nDCG at 10, else at the deepest cut-off; of the hybrid,
    where it was ranked."""
    names = [name.removeprefix("dev/") for name in found if name.startswith("dev/") and "/ndcg@" in name]
    if not names:
        return None
    depth = {name: int(name.rpartition("@")[2]) for name in names}
    return max(names, key=lambda name: (depth[name] == 10, depth[name], name.startswith("hybrid/")))


def duration(seconds: float) -> str:
    """40 s, 8 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _count(number: float) -> str:
    """64, 3.2, 21k."""
    return f"{number / 1000:.0f}k" if number >= 10_000 else f"{number:.0f}" if number >= 10 else f"{number:.2g}"
