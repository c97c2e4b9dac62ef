"""A failure is told to the ranks on other machines, whose launchers do not see it.

Knows: the process group's store.  Does not know: what failed.

A launcher ends the ranks of its own machine when one fails.  Those of other machines sit in a collective, until their
network notices or ``ddp_timeout`` is over (six hours).  So a rank that fails writes it into the store where the ranks
met, and a thread of every rank looks there every EVERY seconds.

Only what was written ends a rank.  There are no heartbeats: a process that a debugger stopped, that swaps, or whose
store is slow misses them as a dead one does, and a healthy run of days must not end for it.  A rank that is killed can
write nothing; its launcher ends its machine's ranks, and those that see it as a broken connection write for it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from smart_train.processes import rank, world

EVERY = 5.0  # seconds between two looks
GRACE = 5.0  # seconds in which a rank may meet the failure by itself, and end in its own way
KEY = "smart_train/failed"


def several_machines() -> bool:
    """Whether a launcher sees only a part of the ranks.  Ranks without a launcher (srun python ...) see nobody."""
    beside = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or "1"
    return world() > int(beside)


@contextmanager
def watched() -> Iterator[None]:
    """Within it, this rank ends with another machine's failing one.  Does nothing on one machine."""
    if not several_machines():
        yield
        return
    done = threading.Event()
    threading.Thread(target=watch, args=(done, _store), name="watch", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def watch(done: threading.Event, store: Callable[[], Any], end: Callable[[int], None] = os._exit) -> None:
    """Looks until ``done``; on a failure: GRACE seconds for the main thread, one line, ``end(1)``."""
    while not done.wait(EVERY):
        told = read(store())
        if told and not done.wait(GRACE):
            os.write(2, f"rank {rank()}: stopped, because {told}\n".encode())
            end(1)
            return


def read(store: Any) -> str:
    """What a rank wrote; "" = nothing, no store, or one that does not answer (its host may be through before us)."""
    try:
        return store.get(KEY).decode() if store is not None and store.check([KEY]) else ""
    except Exception:
        return ""


def tell(told: str) -> None:
    """Writes for the other machines that this rank failed, and why, unless one has written already; returns when they
    had the time to look, as this rank may be the store's host."""
    store = _store() if several_machines() else None
    if store is None or read(store):
        return
    try:
        store.set(KEY, told[:2000])
    except Exception:  # the store is gone with its host, and this rank ends with its own error
        return
    time.sleep(2 * EVERY)


def leave() -> None:
    """Leaves the process group, if there is one; all ranks must be on their way out."""
    if joined():
        sys.modules["torch.distributed"].destroy_process_group()


def joined() -> bool:
    """torch is not loaded for the question."""
    dist: Any = sys.modules.get("torch.distributed")
    return dist is not None and dist.is_available() and dist.is_initialized()


def _store() -> Any:
    if not joined():
        return None
    from torch.distributed.distributed_c10d import _get_default_store

    try:
        return _get_default_store()
    except Exception:  # the group was left since
        return None
