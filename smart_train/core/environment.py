"""Read this process's rank, the number of processes, and its CPU cores from the environment, without torch."""

from __future__ import annotations

import os

from smart_train.core.errors import LaunchError


def rank() -> int:
    """Return this process's rank in the launch; 0 without a launcher."""
    return _number("RANK", 0)


def world() -> int:
    """Return the number of processes of the launch; 1 without a launcher."""
    return _number("WORLD_SIZE", 1)


def check_launch() -> None:
    """Raise LaunchError where the variables that a launcher sets contradict each other."""
    if world() < 1 or not 0 <= rank() < world():
        what = f"RANK is {rank()} and WORLD_SIZE is {world()}"
        raise LaunchError(f"{what}, which no launcher sets; unset both, or start with accelerate launch")
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        _number(name, 0)
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if world() > 1 and missing:
        what = f"WORLD_SIZE is {world()} without {', '.join(missing)}"
        raise LaunchError(f"{what}, so the processes cannot find each other; unset it, or start with accelerate launch")


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    try:
        return int(value)
    except ValueError:
        what = f"the environment variable {name} is {value[:40]!r}, and a launcher sets it to a whole number"
        raise LaunchError(f"{what}; unset it") from None


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
