"""Run calls in forks of a process that has done its imports, each with a limit of time and memory.

A call is data: ``{"words": [...]}`` is a command line, ``{"function": "name", "arguments": {...}}`` one of
python_doors.py. Its fork has its own session, current folder, environment and files for standard output and error.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SECONDS = 90.0  # for a call, on a machine that others use, too: what takes longer hangs
MEMORY = 12 << 30  # bytes of address space, of which torch reserves some; an input that needs more is a bomb
BUG = 70  # exit status of a fork in which something else than a SmartTrainError was raised (sysexits.h: EX_SOFTWARE)


@dataclass
class Attempt:
    """What became of a call. status: of its process, negative for a signal, None where it was killed for its time."""

    status: int | None
    out: str
    err: str
    answer: Any = None

    @property
    def traceback(self) -> bool:
        return (
            self.status == BUG or (self.status or 0) < 0 or "Traceback (most recent call last)" in self.err + self.out
        )

    @property
    def refused(self) -> bool:
        """Ended with a message and a status that says so."""
        return self.status in (1, 2) and bool(self.err.strip()) and not self.traceback

    def last_line(self) -> str:
        return (self.err.strip() or self.out.strip() or "nothing").splitlines()[-1][:300]


class Attempts:
    """The process that forks. environment: its own, as it is when it imports; default: this one's, offline."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "helpers", HERE)))
        quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "offline"}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "attempts.py")],
            env={**(environment or {**os.environ, "HF_HUB_OFFLINE": "1"}), **quiet, "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> Attempts:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def run(self, call: dict[str, Any], folder: Path, seconds: float = SECONDS) -> Attempt:
        """Run a call whose current folder is ``folder``, which also gets its printed files."""
        assert self.process.stdin is not None and self.process.stdout is not None
        folder.mkdir(parents=True, exist_ok=True)
        self.process.stdin.write(json.dumps({**call, "folder": str(folder), "seconds": seconds}) + "\n")
        self.process.stdin.flush()
        status = json.loads(self.process.stdout.readline())
        out, err = ((folder / f"printed.{name}").read_text("utf-8", "replace") for name in ("out", "err"))
        answer = folder / "printed.json"
        return Attempt(status, out, err, json.loads(answer.read_text("utf-8")) if answer.exists() else None)


def _serve() -> None:
    import python_doors

    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no reply
    python_doors.import_everything()
    for line in sys.stdin:
        call = json.loads(line)
        child = os.fork()
        if child == 0:
            replies.close()
            _child(call)
        replies.write(json.dumps(_status(child, call["seconds"])) + "\n")
        replies.flush()


def _status(child: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.003)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _child(call: dict[str, Any]) -> None:
    status = BUG
    try:
        os.setsid()
        os.chdir(call["folder"])
        for number, name in ((0, None), (1, "out"), (2, "err")):
            path = "/dev/null" if name is None else f"printed.{name}"
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(handle, number)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
        os.environ.update(call.get("environment", {}))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        status = _run(call)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def _run(call: dict[str, Any]) -> int:
    import multiprocessing

    import python_doors

    from smart_train.cli.main import main
    from smart_train.core.errors import SmartTrainError

    multiprocessing.set_start_method("fork", force=True)
    try:
        if "words" in call:
            return main(call["words"])
        answer = getattr(python_doors, call["function"])(**call["arguments"])
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except SmartTrainError as error:
        print(error, file=sys.stderr)
        return error.status
    Path("printed.json").write_text(json.dumps(answer), "utf-8")
    return 0


if __name__ == "__main__":
    _serve()
