"""Lines about how far long work has come and how long it still takes, where there is no bar: logs, files, other ranks.

Knows: counts and a clock.  Does not know: what is counted.
"""

from __future__ import annotations

import logging
import time

logger = logging.getLogger(__name__)

EVERY = 30.0  # seconds between two lines


class Pace:
    """Tells ``logger`` every ``every`` seconds; short work tells nothing.

    what: "documents encoded"; total: how many there are; done: how many were there before this run; mine: how many of
        the total this process does (None = all that are left)
    """

    def __init__(self, what: str, total: int, done: int = 0, every: float = EVERY) -> None:
        self.what, self.total, self.before, self.done, self.every = what, total, done, done, every
        self.begun = self.told = time.perf_counter()

    def add(self, count: int) -> None:
        self.done += count
        now = time.perf_counter()
        if now - self.told < self.every or self.done == self.before:
            return
        self.told = now
        left = (now - self.begun) / (self.done - self.before) * (self.total - self.done)
        logger.info("%s: %d of %d, about %s left", self.what, self.done, self.total, lasting(left))


def lasting(seconds: float) -> str:
    """40 s, 8 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
