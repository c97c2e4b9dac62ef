"""Runs of a recipe as real processes that can be killed: by their command, or as forks of a process that has imported
everything already, so that CI pays for the imports once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HEAVY = [
    "smart_train.cli.main",
    "smart_train.training.run",
    "smart_train.checks.recipe",
    "smart_train.training.trainer",
]


class Fork:
    """``smart-train WORDS`` in a fork of a server that has done its imports; killed as any process.

    start: a function of a module, called in the fork before the command
    """

    def __init__(self, words: list[str], printed: Path, start: Callable[[], object] | None = None) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(HEAVY)
        self.printed = printed
        self.process = context.Process(target=_run, args=(words, str(printed), start))  # no daemon: it has data workers
        self.process.start()

    def wait(self, seconds: float) -> int | None:
        self.process.join(seconds)
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


class Command:
    """``python -m smart_train WORDS``, or under ``accelerate launch``; killed with all its ranks, as a machine dies."""

    def __init__(self, words: list[str], printed: Path, launcher: tuple[str, ...] = ()) -> None:
        python = [sys.executable, "-m", "accelerate.commands.launch", *launcher] if launcher else [sys.executable]
        module = ["-m", "smart_train"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self.printed = printed
        with printed.open("wb") as stream:
            self.process = subprocess.Popen(
                [*python, *module, *words],
                cwd=ROOT,
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, seconds: float) -> int | None:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _run(words: list[str], printed: str, start: Callable[[], object] | None) -> None:
    handle = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    # As in a process of its own: a server's child would start one more server, with its imports, for each data worker.
    multiprocessing.set_start_method("fork", force=True)
    if start is not None:
        start()
    main: Any = __import__("smart_train.cli.main", fromlist=["main"]).main
    sys.exit(main(words))
