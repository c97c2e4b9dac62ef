"""Show this package's log on the terminal or in the notebook, above a progress bar."""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any

from smart_train.core.environment import rank

LOG = "smart_train"


class TerminalHandler(logging.Handler):
    """Print messages as they are, to what is standard output at that moment, above a progress bar.

    alone: print nothing as soon as the program has set up logging of its own, which then shows the messages
    """

    def __init__(self, alone: bool = False) -> None:
        super().__init__()
        self.alone = alone

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        if self.alone and logging.getLogger().handlers:
            return
        with tqdm.external_write_mode():
            print(self.format(record), flush=True)


def log_to_terminal() -> None:
    """Show the log of rank 0; of other ranks, warnings only.  For a program of this package, such as its commands."""
    from tqdm import tqdm

    log = logging.getLogger(LOG)
    log.setLevel(logging.INFO if rank() == 0 else logging.WARNING)
    if not any(isinstance(handler, TerminalHandler) for handler in log.handlers):
        # tqdm's own lock is shared with forked processes: one that is killed while it holds it would stop this one
        tqdm.set_lock(threading.RLock())
        log.addHandler(TerminalHandler())


def show_log() -> None:
    """Show the log of rank 0 in a Python program or notebook that has not set up logging.

    A program that has configured the logger ``smart_train`` or the root logger keeps what it configured:
    ``logging.getLogger("smart_train").setLevel(logging.WARNING)`` before training silences the progress.
    """
    log = logging.getLogger(LOG)
    if rank() == 0 and log.level == logging.NOTSET and not log.hasHandlers():
        log.setLevel(logging.INFO)
        log.addHandler(TerminalHandler(alone=True))


def in_notebook() -> bool:
    """Return whether this is a notebook's kernel, whose output is no terminal and still shows a progress bar."""
    ipython: Any = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
