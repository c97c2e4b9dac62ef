"""What a rank that fails says, and what those say that end because of it: one error on top, the others a line.

Knows: exceptions by their names, the launcher's error file.  Does not know: what failed, torch (which is not loaded for
a wrong recipe).
"""

from __future__ import annotations

import json
import os
import threading
import time

from smart_train.processes import rank, world

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
