"""Run worker processes that read files, and replace those that a broken file crashes.

They are plain child processes with pipes. Nothing of the caller's program is imported again, as multiprocessing would,
and a process that pdfium has crashed takes no other one along. ``worker_process.py`` is what runs inside.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from types import TracebackType
from typing import Any

from smart_train.core.errors import DataError
from smart_train.ingest.ingest_options import WorkerSettings

START = 120.0  # seconds that a process may take to be ready, as it imports the libraries of an OCR hook
Task = dict[str, Any]
Answer = dict[str, Any]


class WorkerPool:
    """Up to ``jobs`` worker processes; ``run`` gives them tasks, and leaving the ``with`` block ends them.

    seconds: a task without an answer for this long is given up, and its process killed
    """

    def __init__(self, jobs: int, settings: WorkerSettings, seconds: float) -> None:
        self.jobs, self.settings, self.seconds = jobs, settings, seconds
        self._inbox: queue.Queue[tuple[_Worker, Answer | None]] = queue.Queue()
        self._idle: list[_Worker] = []
        self._busy: dict[_Worker, Task] = {}

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for worker in [*self._busy, *self._idle]:
            worker.kill()
        self._busy.clear()
        self._idle.clear()

    def run(self, tasks: deque[Task]) -> Iterator[tuple[Task, Answer]]:
        """Yield (task, answer) as answers come, until all tasks are done; more may be added to ``tasks`` meanwhile.

        The last answer to a task has ``done``. Where the process died or was killed, it also has ``died`` with the
        reason, and ``detail``. Raises DataError where a process cannot start or cannot write.
        """
        while tasks or self._busy:
            while tasks and (self._idle or len(self._busy) < self.jobs):
                worker = self._idle.pop() if self._idle else _Worker(self.settings, self._inbox)
                self._busy[worker] = tasks.popleft()
                worker.give(self._busy[worker])
            for worker, answer in self._received():
                task = self._busy[worker]
                if answer is None or answer.get("done"):
                    del self._busy[worker]
                    if answer is not None:
                        self._idle.append(worker)
                yield task, answer if answer is not None else worker.died(self.seconds)

    def _received(self) -> Iterator[tuple[_Worker, Answer | None]]:
        try:
            worker, answer = self._inbox.get(timeout=1.0)
        except queue.Empty:
            pass
        else:
            if worker in self._idle:  # it ended without a task
                self._idle.remove(worker)
            elif worker in self._busy and not (answer and worker.started(answer)):
                yield worker, answer
        for worker in self._busy:
            worker.watch(self.seconds)


class _Worker:
    """One process, and the thread that reads its answers."""

    def __init__(self, settings: WorkerSettings, inbox: queue.Queue[tuple[_Worker, Answer | None]]) -> None:
        # An OCR hook is imported from where the caller would import it, or from the current folder. That one comes
        # last, and -P keeps it from coming first: a json.py among somebody's documents must not be run.
        path = os.pathsep.join([*(entry for entry in sys.path if entry), os.getcwd()])
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "smart_train.ingest.worker_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            encoding="ascii",
            bufsize=1,
        )
        self.ready = self.timed_out = False
        self.last_answer = time.monotonic()
        self._send(asdict(settings))
        threading.Thread(target=self._listen, args=(inbox,), daemon=True).start()

    def give(self, task: Task) -> None:
        self.last_answer = time.monotonic()
        self._send(task)

    def started(self, answer: Answer) -> bool:
        """Return whether the process says that it is ready. Raises DataError if it says that it cannot work."""
        self.last_answer = time.monotonic()
        if "fatal" in answer:
            raise DataError(answer["fatal"])
        self.ready = self.ready or "ready" in answer
        return "ready" in answer

    def watch(self, seconds: float) -> None:
        """Kill the process where its last answer is too old; its thread then reports that it has ended."""
        if time.monotonic() - self.last_answer > (seconds if self.ready else START):
            self.timed_out = True
            self.last_answer = float("inf")
            self.process.kill()

    def died(self, seconds: float) -> Answer:
        """Return the answer in the name of a process that has ended. Raises DataError where it never was ready."""
        status = self.process.wait()
        if not self.ready:
            raise DataError(f"a worker process did not start (exit status {status}); its error is printed above")
        if self.timed_out:
            return {"done": True, "died": "too slow", "detail": f"no page in {seconds:g} seconds: --seconds"}
        name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return {"done": True, "died": "the reading process died", "detail": name}

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended: its thread reports that
            self.process.stdin.write(json.dumps(message) + "\n")

    def _listen(self, inbox: queue.Queue[tuple[_Worker, Answer | None]]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n"):  # the last line of a killed process may be cut
                inbox.put((self, json.loads(line)))
        inbox.put((self, None))
