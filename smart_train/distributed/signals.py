"""Signals that ask a run to end.  While it trains: one = finish the step, save, end with status 75; another = at once.
Before and after the training there is nothing to save, and the first one ends the process.

A handler in Python runs only when the main thread comes back to Python, and a rank may wait in a collective for hours.
So the signals are read by a thread, through ``signal.set_wakeup_fd``.

What launchers do with a SIGTERM (torch 2.13, accelerate 1.15, deepspeed 0.19), and what comes back:

    torchrun, accelerate launch with several processes
        passes it to each rank's process group (the data workers too: see ``outlast``), waits for 30 s, then kills.
        TORCH_ELASTIC_SHUTDOWN_TIMEOUT (torchrun: --shutdown-timeout) is that time: it must be longer than a step and
        a save.  Ends with status 1 or 143, whatever the ranks end with: look at OUTPUT/stopped.json.
    accelerate launch with one process
        dies without passing it on.  The run then gets one of its own from the kernel (``_follow``), and saves.
    deepspeed
        of the two processes that it makes, the inner passes it to one rank after the other and waits for 30 s for each,
        ends with 1; the outer dies without passing it on: signal the process group.

Slurm: ``#SBATCH --signal=TERM@120`` signals every process of the job's steps 120 s before the end; launchers and the
terminal may so hand one request to a rank twice, which counts as one for AGAIN seconds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from smart_train.core.environment import rank, world

STATUS = 75  # EX_TEMPFAIL of sysexits.h: try again later
AGAIN = 3.0  # seconds
ASKING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT") if hasattr(signal, name))


class Listener:
    """What signals came, and what they mean at this moment.

    training: steps are being made, after which a checkpoint can be saved
    saved: said to who ends the process at once: what there is
    leaving: exit status of a process that is on its way out, and that a further signal only hurries
    """

    def __init__(self) -> None:
        self.training = False
        self.saved = "before the training began: nothing was lost"
        self.leaving: int | None = None
        self.number = 0
        self.since = 0.0

    def listen(self, source: socket.socket) -> None:
        while numbers := source.recv(64):
            for number in numbers:
                if number in ASKING:
                    self.came(number)

    def came(self, number: int) -> None:
        if self.leaving is not None:
            os._exit(self.leaving)
        name = signal.Signals(number).name
        if self.number and self.training and time.monotonic() - self.since < AGAIN:
            return
        if self.number or not self.training:
            _tell(f"{name} {self.saved}")
            os._exit(128 + number)
        self.number, self.since = number, time.monotonic()
        _tell(f"{name}: this step is finished and saved, then the run ends; once more ends it at once")


def _tell(line: str) -> None:
    """By rank 0; not through print, whose lock the main thread may hold."""
    if rank() == 0:
        os.write(2, f"{line}\n".encode())


_listener: Listener | None = None


@contextmanager
def stoppable() -> Iterator[None]:
    """Within it, signals are heard as this file's head says.  Nothing changes outside of the main thread."""
    global _listener
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "set_wakeup_fd"):
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    listener = _listener = Listener()
    thread = threading.Thread(target=listener.listen, args=(ours,), name="signals", daemon=True)
    thread.start()
    # Ignored by who started it (a shell's background job): stays so.
    heard = [number for number in ASKING if signal.getsignal(number) != signal.SIG_IGN]
    fd = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    before: dict[int, Any] = {number: signal.signal(number, lambda *_: None) for number in heard}
    _follow()
    try:
        yield
    finally:
        # A rank that ends first has the launcher end the others; those end with their own status all the same.
        out = listener.leaving is not None and world() > 1
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if out else handler)
        signal.set_wakeup_fd(fd)
        theirs.shutdown(socket.SHUT_RDWR)  # closing is not enough: data workers that are still there have it open
        theirs.close()
        thread.join()
        ours.close()
        _listener = None


def asked() -> int:
    """Number of the signal that asked this process to end; 0 = none."""
    return _listener.number if _listener else 0


def training(on: bool, saved: str) -> None:
    """Says whether a checkpoint can be saved after a step, and what there is without one."""
    if _listener:
        _listener.training, _listener.saved = on, saved


def leaving(status: int) -> None:
    """This process is on its way out; a signal from here on ends it at once, silently, with this status."""
    if _listener:
        _listener.leaving = status


def outlast() -> None:
    """For a data worker: the first SIGTERM of a process group is the run's, which still needs batches for the step it
    finishes; the next ends the worker.  SIGINT is the run's alone.  (torch's own handler ends a worker at once, and
    the training with it.)"""
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)  # the run's own, inherited: what is sent to a worker alone is no request to the run
        signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _follow() -> None:
    """Has Linux send a SIGTERM when the launcher dies, which would else leave its processes running alone."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if launched and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG
