"""Stop early, report the best evaluation, and warn where the metric that chooses it never changes.

Earlier evaluations are read from the trainer's log history, which a checkpoint holds, so a resumed run knows them.
(transformers' EarlyStoppingCallback counts in the callback: a resume loses the count, or restores the old patience.)
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from smart_train.core.errors import TrainingStopped
from smart_train.training.callbacks.logging import rename_logs
from smart_train.training.callbacks.progress import main_metric

logger = logging.getLogger(__name__)

CONSTANT = 3  # equal evaluations after which the metric is taken to be constant


class EarlyStopping(TrainerCallback):
    """Follows ``metric_for_best_model``, by default the hybrid score's nDCG, and ends training when it stops rising.

    log: the trainer's ``log``; patience: evaluations in a row that do not beat the best one, after which training ends;
    None = never.  The untrained start is compared with, but is never the best: there is no checkpoint of it.
    """

    def __init__(self, log: Callable[[dict[str, float]], None], patience: int | None = None) -> None:
        self.log, self.patience = log, patience
        self.warned = False

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        metric, values = metric_history(args, state)
        self._warn_if_constant(metric, values, state, CONSTANT)
        if self.patience is None or not state.global_step:
            return
        step, waited = best_step(values)
        if waited < self.patience or state.global_step >= state.max_steps:
            return
        control.should_training_stop = True
        if state.is_world_process_zero:
            logger.info(
                "step %d: training ends, since %s has not risen above %.4f (step %d) for %d evaluations "
                "(evaluation.patience)",
                *(state.global_step, metric, values[step], step, waited),
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        metric, values = metric_history(args, state)
        self._warn_if_constant(metric, values, state, 2)
        if not any(values):  # nothing was ranked after a step
            return
        step, _ = best_step(values)
        self.log({"best/step": step, "best/value": values[step]})
        if state.is_world_process_zero:
            logger.info("%s", best_message(metric, values, step, final_step(args, state), state.global_step))

    def out_of_patience(self, args: TrainingArguments, state: TrainerState) -> bool:
        """Return whether the evaluations so far end the run: a checkpoint of the last step comes after them."""
        _, values = metric_history(args, state)
        return self.patience is not None and best_step(values)[1] >= self.patience

    def _warn_if_constant(self, metric: str, values: dict[int, float], state: TrainerState, least: int) -> None:
        if self.warned or len(values) < least or len(set(values.values())) > 1:
            return
        self.warned = True
        self.log({"eval_constant": 1.0})
        if state.is_world_process_zero:
            logger.warning("%s", constant_message(metric, next(iter(values.values())), list(values)))


def check_best_is_measured(args: TrainingArguments, evaluated: bool, patience: int | None = None) -> None:
    """Raise TrainingStopped where the best step is to be chosen by the dev split, which will not be ranked."""
    if evaluated or args.eval_strategy == "no":
        return
    choosing = {"metric_for_best_model": args.metric_for_best_model, "evaluation.patience": patience}
    for key, value in choosing.items():
        if value is not None:
            raise TrainingStopped(
                f"{key} is {value}, but the dev split is not ranked: it is empty, or evaluation.during is false; hold "
                "out more queries (data.dev), or remove the key"
            )


def check_best_is_named(args: TrainingArguments, names: Iterable[str], patience: int | None = None) -> None:
    """Raise TrainingStopped where the best step is to be chosen among several data sets, and none of them is named.

    names: of the data sets that are ranked; "" = one that stands alone
    """
    names = [name for name in names if name]
    metric = (args.metric_for_best_model or "").removeprefix("eval_")
    if names and (patience is not None or metric) and not any(metric.startswith(f"{name}_") for name in names):
        raise TrainingStopped(
            f"metric_for_best_model is {args.metric_for_best_model}, and the eval data sets are {', '.join(names)}; "
            f"name the one to choose by, such as metric_for_best_model={names[0]}_hybrid/ndcg@10"
        )


def metric_history(args: TrainingArguments, state: TrainerState) -> tuple[str, dict[int, float]]:
    """Return the name of the metric that chooses the best step, without a prefix, and its last value by step."""
    lines = [rename_logs(line) for line in state.log_history]
    metric = args.metric_for_best_model
    metric = (
        metric.removeprefix("eval_") if metric else next((found for one in lines if (found := main_metric(one))), "")
    )
    values = {int(line["step"]): float(line[f"dev/{metric}"]) for line in lines if f"dev/{metric}" in line}
    return metric, dict(sorted(values.items()))


def best_step(values: dict[int, float]) -> tuple[int, int]:
    """Return (the first step with the highest value, evaluations since then).  Step 0, the start, is left out."""
    steps = [step for step in values if step]
    if not steps:
        return 0, 0
    found = max(steps, key=lambda step: values[step])
    return found, len(steps) - 1 - steps.index(found)


def final_step(args: TrainingArguments, state: TrainerState) -> int:
    """Return the step whose weights the trainer ends with."""
    loaded = re.search(r"checkpoint-(\d+)$", state.best_model_checkpoint or "")
    return int(loaded[1]) if args.load_best_model_at_end and loaded else state.global_step


def best_message(metric: str, values: dict[int, float], step: int, kept: int, last: int) -> str:
    """Return a sentence for the log: the best step, and the step that the adapter is of."""
    of = f"{metric} on dev was best at step {step}: {values[step]:.4f}"
    if kept == step:
        return f"{of}; the adapter is of that step"
    there = f" ({values[kept]:.4f})" if kept in values else ""
    if kept != last:
        return f"{of}, where no checkpoint was written; the adapter is of step {kept}{there}, the best that was kept"
    return (
        f"{of}; the adapter is of the last step, {last}{there} (training.load_best_model_at_end: true, with "
        f"metric_for_best_model: {metric} and a checkpoint at each evaluation, takes the best)"
    )


def constant_message(metric: str, value: float, steps: list[int]) -> str:
    """Say why a metric may not change; the likeliest reason."""
    if value == 0:
        why = "no query finds its document; do the queries and documents of the dev split belong together?"
    elif value == 1:
        why = "every query finds its document at once: the dev split is too easy to choose by; rank among more "
        why += "documents (data.dev_documents), or hold out more (data.dev)"
    elif metric.startswith("pooled/"):
        why = "the pooled vectors change too little to move a rank, or not at all: does only the late view train?"
    else:
        why = "the weights move too little to change a rank (learning_rate), or the dev split is very small (data.dev)"
    at = ", ".join(map(str, steps))
    return f"{metric} on dev is {value:g} at every evaluation so far (steps {at}), so it cannot choose: {why}"
