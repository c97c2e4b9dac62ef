"""Schedules: weights and strengths of the loss that change during training.

    value(t) = v_i + (v_i+1 - v_i) (t - t_i) / (t_i+1 - t_i)     for t_i <= t <= t_i+1; constant outside of the points

with t the share of the training that is done. The linear schedule of the late weight in the reference work (SMART,
arXiv 2605.24938) is two points of it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from smart_train.losses.base import LossTerm

Points = Sequence[Sequence[float]]
"""[[share of training, value], ...], shares rising."""


def interpolate(points: Points, progress: float) -> float:
    """Return the value at the share ``progress`` of training; the first and last value hold outside of the points.

    >>> interpolate([[0.0, 0.0], [0.5, 2.0]], 0.25)
    1.0
    """
    if progress <= points[0][0]:
        return float(points[0][1])
    for (start, low), (end, high) in pairwise(points):
        if progress <= end:
            return float(low + (high - low) * (progress - start) / (end - start))
    return float(points[-1][1])


def points_problem(points: Any) -> str | None:
    """Return what is wrong with the points of a schedule; None = nothing.

    >>> points_problem([[0.5, 1], [0.5, 2]])
    'has shares that do not rise (0.5, 0.5)'
    """
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


def changed(term: LossTerm, attribute: str, value: float) -> LossTerm:
    """Return a copy of the term with another value of one attribute."""
    other = copy.copy(term)
    setattr(other, attribute, value)
    return other


def scheduled_problems(targets: Iterable[tuple[LossTerm, str]], points: Points) -> Iterator[tuple[str, str]]:
    """Yield (what is wrong, what to do) where a term refuses a value that a schedule gives one of its attributes."""
    for term, attribute in targets:
        for _, value in points:
            problems = changed(term, attribute, value).problems()
            wrong = [(what, fix) for option, what, fix in problems if option == attribute]
            if wrong:
                yield wrong[0]
                return


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
