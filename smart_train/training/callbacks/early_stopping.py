"""The best evaluation of a run: which it was, when to stop waiting for a better one, and whether it says anything.

What happened before comes from the trainer's own history, which a checkpoint has: a resumed run knows it, and ranking
the dev split once more at the step of a resume counts for nothing.  (transformers' EarlyStoppingCallback counts in the
callback, which is lost in a resume, or restored with the patience of then.)
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from smart_train.core.errors import TrainingStopped
from smart_train.training.callbacks.logging import named
from smart_train.training.callbacks.progress import headline

logger = logging.getLogger(__name__)

ENOUGH = 3  # evaluations of one value, after which the measure is taken to be constant


class Best(TrainerCallback):
    """Follows ``metric_for_best_model``; where none is named, the hybrid's nDCG.

    log: the trainer's, for what every tracker should have; patience: evaluations in a row that do not beat the best
    one, after which training ends; None = never.  A ranking of the untrained start is a value to compare with, but
    never the best: there is no checkpoint of it.
    """

    def __init__(self, log: Callable[[dict[str, float]], None], patience: int | None = None) -> None:
        self.log, self.patience = log, patience
        self.warned = False

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        metric, values = history(args, state)
        self._look(metric, values, state, ENOUGH)
        if self.patience is None or not state.global_step:
            return
        step, waited = best(values)
        if waited < self.patience or state.global_step >= state.max_steps:
            return
        control.should_training_stop = True
        if state.is_world_process_zero:
            logger.info(
                "step %d: training ends, as %s has not been above the %.4f of step %d for so many evaluations: %d "
                "(evaluation.patience)",
                *(state.global_step, metric, values[step], step, waited),
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        metric, values = history(args, state)
        self._look(metric, values, state, 2)
        if not any(values):  # nothing was ranked after a step
            return
        step, _ = best(values)
        self.log({"best/step": step, "best/value": values[step]})
        if state.is_world_process_zero:
            logger.info("%s", told_best(metric, values, step, kept(args, state), state.global_step))

    def _look(self, metric: str, values: dict[int, float], state: TrainerState, least: int) -> None:
        """Warns, once, where nothing was ever told by the figure that chooses."""
        if self.warned or len(values) < least or len(set(values.values())) > 1:
            return
        self.warned = True
        self.log({"eval_constant": 1.0})
        if state.is_world_process_zero:
            logger.warning("%s", told_constant(metric, next(iter(values.values())), list(values)))


def check_choice(args: TrainingArguments, ranks: bool, patience: int | None = None) -> None:
    """Raises TrainingStopped where something is to be chosen by the dev split, and it will not be ranked."""
    if ranks or args.eval_strategy == "no":
        return
    asked = {"metric_for_best_model": args.metric_for_best_model, "evaluation.patience": patience}
    for key, value in asked.items():
        if value is not None:
            raise TrainingStopped(
                f"{key} is {value}, but the dev split is not ranked: it is empty, or evaluation.during is false; hold "
                "out more (data.dev), or leave the key out"
            )


def history(args: TrainingArguments, state: TrainerState) -> tuple[str, dict[int, float]]:
    """(the name of the figure that chooses, without a prefix; its value by step, as last measured there)."""
    lines = [named(line) for line in state.log_history]
    metric = args.metric_for_best_model
    metric = metric.removeprefix("eval_") if metric else next((found for one in lines if (found := headline(one))), "")
    values = {int(line["step"]): float(line[f"dev/{metric}"]) for line in lines if f"dev/{metric}" in line}
    return metric, dict(sorted(values.items()))


def best(values: dict[int, float]) -> tuple[int, int]:
    """(the first step with the highest value, evaluations since); the start, step 0, is left out."""
    steps = [step for step in values if step]
    if not steps:
        return 0, 0
    found = max(steps, key=lambda step: values[step])
    return found, len(steps) - 1 - steps.index(found)


def kept(args: TrainingArguments, state: TrainerState) -> int:
    """The step whose weights the trainer has when it is through."""
    loaded = re.search(r"checkpoint-(\d+)$", state.best_model_checkpoint or "")
    return int(loaded[1]) if args.load_best_model_at_end and loaded else state.global_step


def told_best(metric: str, values: dict[int, float], step: int, kept: int, last: int) -> str:
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


def told_constant(metric: str, value: float, steps: list[int]) -> str:
    """Why a figure may not move, the likeliest first."""
    if value == 0:
        why = "no query finds its document; do the queries and documents of the dev split belong together?"
    elif value == 1:
        why = "every query finds its document at once: the dev split is too easy to choose by; rank among more "
        why += "documents (data.dev_documents), or hold out more (data.dev)"
    elif metric.startswith("pooled/"):
        why = "the pooled vectors do not change, or too little to move a rank: is it the late view alone that trains?"
    else:
        why = "the weights move too little to change a rank (learning_rate), or the dev split is very small (data.dev)"
    at = ", ".join(map(str, steps))
    return f"{metric} on dev is {value:g} at every evaluation so far (steps {at}), so it cannot choose: {why}"
