"""Report a rank's failure: to the launcher, to other machines, and apart from the failures that follow from it.

A failing rank prints its error; the ranks that end because of it print one line each.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from smart_train.core.environment import rank, world

PATIENCE = 30  # seconds in which the launcher should end this rank, before it ends (and prints) by itself
POLL = 5.0  # seconds between two looks at the store
GRACE = 5.0  # seconds in which a rank may meet another rank's failure by itself, and end in its own way
KEY = "smart_train/failed"

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


def is_caused_by_other_rank(error: BaseException) -> bool:
    """Return whether another rank's end caused the error: a connection or a collective broke."""
    if world() == 1:
        return False
    if type(error).__name__ in _KINDS:
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError | ConnectionError) and any(words in message for words in _WORDS)


def write_error_file(message: str) -> None:
    """Write the launcher's error file, where there is one: its summary then names this rank and the message.

    In the format of torch.distributed.elastic.multiprocessing.errors.ErrorHandler, which would import torch.  The first
    message stays: what follows from a failure does not replace it.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path and not os.path.exists(path):
        extra = {"py_callstack": message, "timestamp": str(int(time.time()))}
        with open(path, "w", encoding="utf8") as stream:
            json.dump({"message": {"message": message, "extraInfo": extra}}, stream)


def summary(error: BaseException) -> str:
    """Return one line for the launcher's summary; the traceback is printed above it."""
    return f"rank {rank()} of {world()}: {type(error).__name__}: {error} (its traceback is above)"


def end_process_after(seconds: float) -> None:
    """End this process with status 1 if it has not ended by then; does nothing where it is the only one.

    After an error the interpreter may wait for ever for collectives, streams or threads of libraries, and the other
    ranks with it.
    """
    if world() > 1:
        timer = threading.Timer(seconds, os._exit, (1,))
        timer.daemon = True
        timer.start()


# -- other machines, whose launchers do not see this machine's failures


def several_machines() -> bool:
    """Return whether the launch spans several machines.  Ranks without a launcher (srun python ...) count as such."""
    local = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or "1"
    return world() > int(local)


@contextmanager
def ending_with_other_machines() -> Iterator[None]:
    """End this process when a rank on another machine fails, within this block.  Does nothing on one machine."""
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
    """Watch the store until ``done``; on a failure wait GRACE seconds for the main thread, print a line, ``end(1)``."""
    while not done.wait(POLL):
        failure = read_failure(store())
        if failure and not done.wait(GRACE):
            with suppress(OSError):  # closed or full
                os.write(2, f"rank {rank()}: stopped, because {failure}\n".encode())
            end(1)
            return


def read_failure(store: Any) -> str:
    """Return what a rank reported; "" = nothing, no store, or one that does not answer (its host may have ended)."""
    try:
        return store.get(KEY).decode() if store is not None and store.check([KEY]) else ""
    except Exception:
        return ""


def report_to_other_machines(message: str) -> None:
    """Report to the other machines that this rank failed, unless another rank has reported already.

    Returns when they had the time to look, since this rank may be the store's host.
    """
    store = _store() if several_machines() else None
    if store is None or read_failure(store):
        return
    try:
        store.set(KEY, message[:2000])
    except Exception:  # the store is gone with its host, and this rank ends with its own error
        return
    time.sleep(2 * POLL)


def destroy_process_group() -> None:
    """Destroy the process group, if there is one; all ranks must be ending."""
    if _is_initialized():
        sys.modules["torch.distributed"].destroy_process_group()


def _is_initialized() -> bool:
    """Return whether there is a process group, without importing torch."""
    dist: Any = sys.modules.get("torch.distributed")
    return dist is not None and dist.is_available() and dist.is_initialized()


def _store() -> Any:
    if not _is_initialized():
        return None
    from torch.distributed.distributed_c10d import _get_default_store

    try:
        return _get_default_store()
    except Exception:  # the group was left since
        return None
