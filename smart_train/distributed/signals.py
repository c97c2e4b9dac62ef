"""Save and end a run on SIGTERM and SIGINT (Ctrl-C).

While it trains, the first signal finishes the step, saves, and ends with status 75; a second one ends at once.  Before
and after training there is nothing to save, so the first one ends the process.

In a Python program or notebook (``interruptible``) nothing ends the process: where a command would end at once, the
signal does what it did before the training, which for Ctrl-C is to raise KeyboardInterrupt.

A Python handler runs only when the main thread is in Python, and a rank may wait in a collective for hours.  So a
thread reads the signals, through ``signal.set_wakeup_fd``.

What launchers do with a SIGTERM (torch 2.13, accelerate 1.15, deepspeed 0.19), and how they end:

    torchrun, accelerate launch with several processes
        passes it to each rank's process group (data workers as well: see ``outlast_first_signal``), waits for 30 s,
        then kills.  TORCH_ELASTIC_SHUTDOWN_TIMEOUT (torchrun: --shutdown-timeout) is that time: it must be longer than
        a step and a save.  Ends with status 1 or 143, whatever the ranks end with: read OUTPUT/stopped.json.
    accelerate launch with one process
        dies without passing it on.  The run then gets one of its own from the kernel (``_follow_launcher``), and saves.
    deepspeed
        starts two processes.  The inner one passes the signal to one rank after another, waits for 30 s for each, and
        ends with 1; the outer one dies without passing it on: signal the process group.

Slurm: ``#SBATCH --signal=TERM@120`` signals every process of the job's steps 120 s before the end.  Launchers and the
terminal may send one request to a rank twice, so signals within REPEAT seconds count as one.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from smart_train.core.environment import rank, world
from smart_train.core.terminal_log import in_notebook

REPEAT = 3.0  # seconds
STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT") if hasattr(signal, name))


class Listener:
    """Receives signals, and decides what they mean at this moment.

    training: steps are being made, after which a checkpoint can be saved
    saved: printed where the process ends at once: what is saved by then
    exit_status: of a process that is already ending; a further signal ends it at once
    number, since: the first signal received, and when
    end: ends what is running, at once
    """

    def __init__(self) -> None:
        self.training = False
        self.saved = "before the training began: nothing was lost"
        self.exit_status: int | None = None
        self.number = 0
        self.since = 0.0
        self.end: Callable[[int], None] = lambda number: os._exit(128 + number)

    def listen(self, source: socket.socket) -> None:
        while numbers := source.recv(64):
            for number in numbers:
                if number in STOPPING:
                    self.receive(number)

    def receive(self, number: int) -> None:
        if self.exit_status is not None:
            os._exit(self.exit_status)
        name = signal.Signals(number).name
        if self.number and self.training and time.monotonic() - self.since < REPEAT:
            return
        if self.number or not self.training:
            _print(f"{name} {self.saved}")
            self.end(number)
            return
        self.number, self.since = number, time.monotonic()
        _print(f"{name}: finishing and saving this step, then the run ends; a second signal ends it at once")


def _print(line: str) -> None:
    """Print on rank 0; not through print(), whose lock the main thread may hold.

    A notebook shows what is written to ``sys.stderr`` alone; its stream there may be written to at any moment.
    """
    if rank() == 0:
        with suppress(OSError):  # closed or full; the signal counts all the same
            if in_notebook():
                sys.stderr.write(f"{line}\n")
            else:
                os.write(2, f"{line}\n".encode())


_listener: Listener | None = None


@contextmanager
def stoppable() -> Iterator[None]:
    """Receive signals within this block, as this module describes.  Does nothing outside of the main thread."""
    global _listener
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "set_wakeup_fd"):
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    listener = _listener = Listener()
    thread = threading.Thread(target=listener.listen, args=(ours,), name="signals", daemon=True)
    thread.start()
    # A signal that is ignored already (in a shell's background job) stays so.
    handled = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
    fd = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    before: dict[int, Any] = {number: signal.signal(number, lambda *_: None) for number in handled}
    _follow_launcher()
    try:
        yield
    finally:
        # The rank that ends first has the launcher end the others, which should end with their own status.
        ending = listener.exit_status is not None and world() > 1
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if ending else handler)
        signal.set_wakeup_fd(fd)
        theirs.shutdown(socket.SHUT_RDWR)  # closing is not enough: data workers that are still there have it open
        theirs.close()
        thread.join()
        ours.close()
        _listener = None


@contextmanager
def interruptible() -> Iterator[None]:
    """Receive signals within this block for a trainer that a Python program or a notebook runs.

    Does nothing where ``stoppable`` receives them already, and outside of the main thread.  A process that a launcher
    started with others is handled as by ``stoppable``, since it may wait for them when the signal comes.
    """
    global _listener
    if _listener is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    if world() > 1:
        with stoppable():
            yield
        return
    listener = _listener = Listener()
    handled = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
    before: dict[int, Any] = {number: signal.getsignal(number) for number in handled}

    def pass_on(number: int) -> None:
        signal.signal(number, before[number])
        signal.raise_signal(signal.Signals(number))

    listener.end = pass_on
    for number in handled:
        signal.signal(number, lambda number, _: listener.receive(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _listener = None


def received() -> int:
    """Return the number of the signal that this process received; 0 = none."""
    return _listener.number if _listener else 0


def set_training(on: bool, saved: str) -> None:
    """Set whether a checkpoint can be saved after a step, and what to print where the process ends at once."""
    if _listener:
        _listener.training, _listener.saved = on, saved


def set_exit_status(status: int) -> None:
    """Have every further signal end this process at once, silently, with this status: it is ending already."""
    if _listener:
        _listener.exit_status = status


def outlast_first_signal() -> None:
    """Have a data worker ignore SIGINT and the first SIGTERM.

    They are meant for the run, which still needs batches for the step it finishes; the next SIGTERM ends the worker.
    (torch's own handler ends a worker at once, and the training with it.)
    """
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)  # inherited from the run: a signal to a worker alone is no request to the run
        signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _follow_launcher() -> None:
    """Have Linux send a SIGTERM when the launcher dies; its processes would otherwise keep running."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if launched and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG
