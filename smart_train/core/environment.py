"""Read this process's rank, the number of processes, and its CPU cores from the environment, without torch."""

from __future__ import annotations

import os


def rank() -> int:
    """Return this process's rank in the launch; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """Return the number of processes of the launch; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
