"""Show training progress: a bar on a terminal and in a notebook, elsewhere a plain log line at each logging step."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from smart_train.core.terminal_log import in_notebook
from smart_train.training.callbacks.logging import rename_logs

logger = logging.getLogger(__name__)

BAR = "{percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt}  {elapsed}{postfix}"
WAITING = 0.1  # share of a step's time from which waiting for data is reported


class ProgressReporter(TrainerCallback):
    """Replaces transformers' progress bar and prints, on rank 0.

    With ``disable_tqdm``, or where standard error is neither a terminal nor a notebook, it logs a line instead of
    drawing a bar.  Metrics of the dev split are a log line in both cases.
    """

    def __init__(self) -> None:
        self.bar: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        shown = sys.stderr.isatty() or in_notebook()
        if state.is_world_process_zero and not args.disable_tqdm and shown:
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
        metrics = rename_logs(logs)
        if "loss" in metrics and self.bar is not None:
            self.bar.set_postfix_str(training_line(metrics))
        elif "loss" in metrics:
            logger.info("step %d/%d  %s", state.global_step, state.max_steps, training_line(metrics))
        elif "train_runtime" in metrics:
            took, mean = format_duration(metrics["train_runtime"]), metrics.get("train_loss", float("nan"))
            logger.info("step %d/%d  done in %s, mean loss %.4g", state.global_step, state.max_steps, took, mean)
        elif line := dev_line(metrics, args.metric_for_best_model):
            logger.info("step %d/%d  %s", state.global_step, state.max_steps, line)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bar as it stands: an open one would be drawn again under what the program prints next."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def training_line(metrics: Mapping[str, Any]) -> str:
    """Return a training step's line.

    For example ``loss 0.412 (pooled 0.21, late 0.20)  64 pairs/s  21k tokens/s  12.3 GiB  8 min left``.
    """
    parts = {name.removeprefix("loss/"): value for name, value in metrics.items() if name.startswith("loss/")}
    inner = ", ".join(f"{name} {value:.3g}" for name, value in parts.items())
    words = [f"loss {metrics['loss']:.4g}" + (f" ({inner})" if inner else "")]
    for name, unit in (("pairs", "pairs/s"), ("tokens", "tokens/s")):
        if (speed := metrics.get(f"speed/{name}_per_second")) is not None:
            words.append(f"{_short_count(speed)} {unit}")
    if (waiting := metrics.get("speed/waiting", 0.0)) >= WAITING:
        words.append(f"{waiting:.0%} of it waiting for data")
    if (memory := metrics.get("memory/gib")) is not None:
        words.append(f"{memory:.1f} GiB")
    if (left := metrics.get("eta_seconds", 0.0)) >= 1:
        words.append(f"{format_duration(left)} left")
    return "  ".join(words)


def dev_line(metrics: Mapping[str, Any], chosen: str | None = None) -> str:
    """Return the line of an evaluation: ``dev ndcg@10: pooled 0.612, late 0.660, hybrid 0.667  (8 s)``.

    Empty where nothing was ranked.  chosen: ``metric_for_best_model``, reported as well where it is another measure.
    """
    metric = main_metric(metrics)
    if metric is None:
        return ""
    end = f"/{metric.rpartition('/')[2]}"
    values = {n.split("/")[1]: v for n, v in metrics.items() if n.startswith("dev/") and n.endswith(end)}
    chosen = (chosen or "").removeprefix("eval_")
    if f"dev/{chosen}" in metrics and not chosen.endswith(end):
        values[chosen] = metrics[f"dev/{chosen}"]
    inner = ", ".join(f"{mode} {value:.3f}" for mode, value in values.items())
    took = f"  ({format_duration(metrics['dev/seconds'])})" if "dev/seconds" in metrics else ""
    return f"dev {end[1:]}: {inner}{took}"


def main_metric(metrics: Mapping[str, Any]) -> str | None:
    """Return the metric that stands for an evaluation, without "dev/".

    It is nDCG at 10, else at the deepest cut-off; of the hybrid score, where that was ranked.
    """
    names = [name.removeprefix("dev/") for name in metrics if name.startswith("dev/") and "/ndcg@" in name]
    if not names:
        return None
    depth = {name: int(name.rpartition("@")[2]) for name in names}
    return max(names, key=lambda name: (depth[name] == 10, depth[name], name.startswith("hybrid/")))


def format_duration(seconds: float) -> str:
    """Return 40 s, 8 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _short_count(number: float) -> str:
    """Return 64, 3.2, 21k."""
    return f"{number / 1000:.0f}k" if number >= 10_000 else f"{number:.0f}" if number >= 10 else f"{number:.2g}"
