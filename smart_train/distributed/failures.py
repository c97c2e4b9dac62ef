"""What a rank that fails says, and what those say that end because of it: one error on top, the others a line."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from smart_train.core.environment import rank, world

# Seconds that a rank gives the launcher to end it, before it ends (and speaks) by itself.
PATIENCE = 30

_KINDS = {"DistBackendError", "DistNetworkError", "DistStoreError", "DistQueueEmptyError"}
_WORDS = (
    "connection closed by peer",
    "connection reset",
    "broken pipe",
    "socket closed",
    "application timeout caused pair closure",
    "timed out waiting",
    "nccl communicator was aborted",
    "remote process exited",
)


def is_echo(error: BaseException) -> bool:
    """Whether the error is what a rank sees of another one's end: a connection or a collective that broke."""
    if world() == 1:
        return False
    if type(error).__name__ in _KINDS:
        return True
    told = str(error).lower()
    return isinstance(error, RuntimeError | ConnectionError) and any(words in told for words in _WORDS)


def record(told: str) -> None:
    """The launcher's error file, where there is one: its summary then names this rank and says this.

    In the form of torch.distributed.elastic.multiprocessing.errors.ErrorHandler, which is not imported for it.  The
    first word stands: what follows from a failure does not replace it.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path and not os.path.exists(path):
        extra = {"py_callstack": told, "timestamp": str(int(time.time()))}
        with open(path, "w", encoding="utf8") as stream:
            json.dump({"message": {"message": told, "extraInfo": extra}}, stream)


def summary(error: BaseException) -> str:
    """One line, for the launcher's summary; the traceback is above it."""
    return f"rank {rank()} of {world()}: {type(error).__name__}: {error} (its traceback is above)"


def end_by(seconds: float) -> None:
    """Ends this process with status 1, should it not have ended by then: after an error the interpreter may wait for
    ever for collectives, streams or threads of libraries.  Where it is one of several: they must not outlive it."""
    if world() > 1:
        timer = threading.Timer(seconds, os._exit, (1,))
        timer.daemon = True
        timer.start()


# A failure is told to the ranks on other machines, whose launchers do not see it.

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
