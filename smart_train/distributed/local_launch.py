"""Run a command as several processes of this machine, each a rank of one launch (``--processes N``)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from smart_train.core.environment import cores

GRACE = 10.0  # seconds in which the others should end by themselves after one failed
POLL = 0.05


def remove_option(arguments: Sequence[str], flag: str) -> list[str]:
    """Return the arguments without ``flag VALUE`` and ``flag=VALUE``."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip or argument.startswith(f"{flag}="):
            skip = False
        elif argument == flag:
            skip = True
        else:
            kept.append(argument)
    return kept


def launch_local(count: int, arguments: Sequence[str]) -> int:
    """Run ``smart-train ARGUMENTS`` as ``count`` ranks; return the status of the first that failed, else 0.

    Each gets its share of this machine's cores, unless OMP_NUM_THREADS is set.  Ctrl-C and SIGTERM end all of them.
    """
    environment = {
        **os.environ,
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // count))),
    }
    before = signal.signal(signal.SIGTERM, _exit_on_signal)
    command = [sys.executable, "-m", "smart_train", *arguments]
    processes = [
        subprocess.Popen(command, env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]
    try:
        return _wait(processes)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        signal.signal(signal.SIGTERM, before)


def _exit_on_signal(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    failed, end = 0, float("inf")
    while time.monotonic() < end:
        statuses = [process.poll() for process in processes]
        if not failed and (bad := [status for status in statuses if status]):
            failed, end = bad[0], time.monotonic() + GRACE
            for process in processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
        if None not in statuses:
            break
        time.sleep(POLL)
    return failed if failed >= 0 else 128 - failed


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
