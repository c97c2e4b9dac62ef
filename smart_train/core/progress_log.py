"""Measure how long parts of a work take, and log the progress of long ones."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

EVERY = 30.0  # seconds between two lines


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds that the block takes to ``seconds[name]``."""
    begun = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begun


class ProgressLog:
    """Log a line with the time left every ``every`` seconds, for logs, files and other ranks; short work logs nothing.

    what: "documents encoded"; total: how many there are; done: how many were done before this process began
    """

    def __init__(self, what: str, total: int, done: int = 0, every: float = EVERY) -> None:
        self.what, self.total, self.before, self.done, self.every = what, total, done, done, every
        self.begun = self.logged = time.perf_counter()

    def add(self, count: int) -> None:
        self.done += count
        now = time.perf_counter()
        if now - self.logged < self.every or self.done == self.before:
            return
        self.logged = now
        left = (now - self.begun) / (self.done - self.before) * (self.total - self.done)
        logger.info("%s: %d of %d, about %s left", self.what, self.done, self.total, format_duration(left))


def format_duration(seconds: float) -> str:
    """Return "40 s", "8 min" or "3 h 20 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
