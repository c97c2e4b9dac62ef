"""Which parts of the objective are on, how large at this point of the training, and which settings exclude each other.

    value(t) = v_i + (v_i+1 - v_i) (t - t_i) / (t_i+1 - t_i)     for t_i <= t <= t_i+1; constant outside of the points

with t the share of the training that is done.  The linear schedule of the late weight in the reference work (SMART,
arXiv 2605.24938) is two points of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

from smart_train.config.schema import SCHEDULED, ObjectiveBlock

CONTRASTIVE = ("pooled", "late", "hybrid")
"""The terms that tell a pair's document from its negatives; margin, hardness and the like are settings of these."""

Conflict = tuple[str, str, str]
"""(key of the recipe, what is wrong, what to do)"""


def at(objective: ObjectiveBlock, progress: float) -> ObjectiveBlock:
    """The objective with every scheduled value as it is when the share ``progress`` (0 to 1) of training is done.

    The value that stands at a scheduled key itself plays no part.  The schedule is kept, so that a term which is 0
    just now still counts as one of the loss (see ``active``).
    """
    for key, points in objective.schedule.items():
        name, _, leaf = key.partition(".")
        value = interpolate(points, progress)
        changed: Any = replace(getattr(objective, name), **{leaf: value}) if leaf else value
        objective = replace(objective, **{name: changed})
    return objective


def interpolate(points: list[list[float]], progress: float) -> float:
    """Piecewise linear between points [share, value] of rising share; the first and last value hold outside of them."""
    if progress <= points[0][0]:
        return float(points[0][1])
    for (start, low), (end, high) in pairwise(points):
        if progress <= end:
            return float(low + (high - low) * (progress - start) / (end - start))
    return float(points[-1][1])


def active(objective: ObjectiveBlock, key: str) -> bool:
    """Whether a weight or strength (a key of SCHEDULED) is other than 0 now, or may be at another time."""
    found: Any = objective
    for name in key.split("."):
        found = getattr(found, name)
    return key in objective.schedule or found != 0


def learns(objective: ObjectiveBlock) -> bool:
    """Whether any term is on that tells documents apart (the regularisers do not)."""
    return any(active(objective, f"{name}.weight") for name in (*CONTRASTIVE, "self_distillation", "teacher"))


def needs(objective: ObjectiveBlock) -> tuple[bool, bool]:
    """Whether any active term reads the pooled vectors, and whether any reads the tokens: what has to be gathered."""
    on = {key for key in SCHEDULED if active(objective, key)}
    if "teacher.weight" in on:
        on.add(f"{objective.teacher.score}.weight")
    both = {"hybrid.weight", "self_distillation.weight", "overlap"} & on
    return bool(both or "pooled.weight" in on), bool(both or {"late.weight", "diversity"} & on)


def conflicts(objective: ObjectiveBlock) -> list[Conflict]:
    """Settings of the block that exclude each other or would do nothing, and what is wrong with its schedule.

    Keys are those of a recipe (objective.symmetric).  Ranges of single values are the recipe check's.
    """
    return [*_combinations(objective), *_schedule(objective)]


def refuse(objective: ObjectiveBlock) -> None:
    """Raises ValueError with every conflict, and where no term of the loss is on."""
    found = [f"{key}: {what}; {fix}" for key, what, fix in conflicts(objective)]
    if not learns(objective):
        found.append(
            "objective: every weight is 0, so there is no loss; give pooled, late, hybrid, self_distillation or "
            "teacher a weight"
        )
    if found:
        raise ValueError("\n".join(found))


def _combinations(objective: ObjectiveBlock) -> Iterator[Conflict]:
    settings = {
        "loss": objective.loss == "sigmoid",
        "symmetric": objective.symmetric,
        "hardness": active(objective, "hardness"),
        "false_negatives": objective.false_negatives is not None,
        "margin": active(objective, "margin"),
        "graded": objective.graded,
    }
    if not any(active(objective, f"{name}.weight") for name in CONTRASTIVE):
        for key in (key for key, on in settings.items() if on):
            what = "is a setting of the pooled, late and hybrid terms, which are all off"
            yield f"objective.{key}", what, "remove it, or give one of them a weight"
    if not settings["loss"]:
        return
    if settings["symmetric"]:
        what = "has no meaning with loss: sigmoid, which judges every pair by itself and so has no direction"
        yield "objective.symmetric", what, "write false, or loss: softmax"
    if settings["hardness"]:
        what = "weights a softmax's denominator, and loss: sigmoid has none"
        yield "objective.hardness", what, "write 0 (and schedule none), or loss: softmax"
    if settings["graded"]:
        what = "shares one target among several answers, and loss: sigmoid judges every pair by itself"
        yield "objective.graded", what, "write false, or loss: softmax"


def _schedule(objective: ObjectiveBlock) -> Iterator[Conflict]:
    for key, points in objective.schedule.items():
        where = f"objective.schedule.{key}"
        if key not in SCHEDULED:
            yield where, "cannot be scheduled", f"choose from {', '.join(SCHEDULED)}"
            continue
        what = _wrong(points)
        if what is not None:
            yield where, what, "write points [share of training, value], for example [[0, 0], [0.5, 1]]"


def _wrong(points: Any) -> str | None:
    """What is wrong with the points of one key; None = nothing."""
    if not isinstance(points, list | tuple) or not points:
        return f"is {points!r}, not a list of points"
    for point in points:
        if not isinstance(point, list | tuple) or len(point) != 2 or not all(_number(part) for part in point):
            return f"has {point!r}, which is no pair of numbers"
        if not 0 <= point[0] <= 1:
            return f"has the share {point[0]}, which is not from 0 to 1"
        if point[1] < 0:
            return f"has the value {point[1]}, which is below 0"
    if any(later[0] <= earlier[0] for earlier, later in pairwise(points)):
        return f"has shares that do not rise ({', '.join(str(point[0]) for point in points)})"
    return None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
