"""Processes that read files: started, given work, watched, and replaced when a file kills one.

Knows: reader.py's protocol, seconds.  Does not know: what is asked for, what the answers mean.

Plain child processes and pipes: nothing of the caller's program is imported again, as multiprocessing would, and a
process that pdfium has broken takes nobody along.
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

from smart_train.data.ids import DataError
from smart_train.data.ingesting.ingest_options import Settings

START = 120.0  # seconds that a process may take to be ready: it imports an OCR hook's libraries
Task = dict[str, Any]
Answer = dict[str, Any]


class Workers:
    """Up to ``jobs`` reading processes; ``run`` gives them tasks.  Leaving the ``with`` block ends them.

    seconds: a task without an answer for so long is given up, and its process with it.
    """

    def __init__(self, jobs: int, settings: Settings, seconds: float) -> None:
        self.jobs, self.settings, self.seconds = jobs, settings, seconds
        self._inbox: queue.Queue[tuple[_Worker, Answer | None]] = queue.Queue()
        self._idle: list[_Worker] = []
        self._busy: dict[_Worker, Task] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for worker in [*self._busy, *self._idle]:
            worker.kill()
        self._busy.clear()
        self._idle.clear()

    def run(self, tasks: deque[Task]) -> Iterator[tuple[Task, Answer]]:
        """(task, answer) as answers come, until all tasks are done; more may be added to ``tasks`` in between.

        The last answer to a task has ``done``; where the process died or was given up, also ``died`` with the reason
        and ``detail``.  Raises DataError where a process cannot start or write.
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
                yield task, answer if answer is not None else worker.obituary(self.seconds)

    def _received(self) -> Iterator[tuple[_Worker, Answer | None]]:
        try:
            worker, answer = self._inbox.get(timeout=1.0)
        except queue.Empty:
            pass
        else:
            if worker in self._idle:  # it has ended without being asked
                self._idle.remove(worker)
            elif worker in self._busy and not (answer and worker.welcome(answer)):
                yield worker, answer
        for worker in self._busy:
            worker.watch(self.seconds)


class _Worker:
    """One process and the thread that listens to it."""

    def __init__(self, settings: Settings, inbox: queue.Queue[tuple[_Worker, Answer | None]]) -> None:
        # The hook is found where the caller would find it, or in the current folder; that one comes last, and -P keeps
        # it from coming first: a json.py among somebody's documents must not be run.
        path = os.pathsep.join([*(entry for entry in sys.path if entry), os.getcwd()])
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "smart_train.data.ingesting.reader"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            encoding="ascii",
            bufsize=1,
        )
        self.ready = self.late = False
        self.heard = time.monotonic()
        self._tell(asdict(settings))
        threading.Thread(target=self._listen, args=(inbox,), daemon=True).start()

    def give(self, task: Task) -> None:
        self.heard = time.monotonic()
        self._tell(task)

    def welcome(self, answer: Answer) -> bool:
        """Whether the answer is about the process itself; raises DataError where it cannot work."""
        self.heard = time.monotonic()
        if "fatal" in answer:
            raise DataError(answer["fatal"])
        self.ready = self.ready or "ready" in answer
        return "ready" in answer

    def watch(self, seconds: float) -> None:
        """Ends the process where it has been silent too long; its thread then reports that it has ended."""
        if time.monotonic() - self.heard > (seconds if self.ready else START):
            self.late = True
            self.heard = float("inf")
            self.process.kill()

    def obituary(self, seconds: float) -> Answer:
        status = self.process.wait()
        if not self.ready:
            raise DataError(f"a reading process did not start (exit status {status}); its error is told above")
        if self.late:
            return {"done": True, "died": "too slow", "detail": f"more than {seconds:g} seconds: --seconds"}
        name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return {"done": True, "died": "the reading process died", "detail": name}

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _tell(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it is dead: its thread tells
            self.process.stdin.write(json.dumps(message) + "\n")

    def _listen(self, inbox: queue.Queue[tuple[_Worker, Answer | None]]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n"):  # not one that the end of the process has cut
                inbox.put((self, json.loads(line)))
        inbox.put((self, None))
