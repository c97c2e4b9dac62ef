"""Processes that read files: started, given work, watched, and replaced when a file kills one.

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
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from smart_train.core.errors import DataError
from smart_train.ingest.folders import Skip
from smart_train.ingest.options import Settings
from smart_train.ingest.pages import PAGES, Kind, Outline, Page, write_pages

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
            [sys.executable, "-P", "-m", "smart_train.ingest.worker_process"],
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


# Files read page by page in other processes, and each written when its last page has come.

RUN = 32  # pages that a process reads at once, so that one long file keeps all of them busy
DEATHS = 3  # of reading processes on one file, each on another page, before the file is given up
TEXT = 100_000_000  # characters of one file, which are in memory until it is written


@dataclass
class File:
    """A file on its way.

    id, count, stamp: what a first look has found; "" where it has failed
    row: of the report, once it is on the disk
    pages: read so far, by number.  told: how many are scanned, ocr, blank, unread.  skipped: what was lost of it
    """

    name: str
    path: Path
    kind: Kind
    id: str = ""
    count: int = 0
    stamp: list[int] = field(default_factory=list)
    open_tasks: int = 0
    deaths: int = 0
    pages: dict[int, Page] = field(default_factory=dict)
    told: Counter[str] = field(default_factory=Counter)
    skipped: list[Skip] = field(default_factory=list)
    characters: int = 0
    row: dict[str, Any] | None = None

    def counted(self) -> dict[str, Any]:
        """See ``Report.files``."""
        counts = {what: self.told[what] for what in ("scanned", "ocr", "blank", "unread")}
        return {"file": self.name, "id": self.id, "kind": self.kind, "pages": len(self.pages), **counts}


@dataclass
class Reading:
    """making: what pages depend on, stored beside them.  strictly: raises where a skip must end the run.
    tick: called for each page."""

    out: Path
    workers: Workers
    making: dict[str, Any]
    strictly: Callable[[Skip], None]
    tick: Callable[[], None]

    def read(self, files: list[File]) -> Iterator[File]:
        """The files in the order in which they are done; ``stored`` of those that could be read is on the disk."""
        tasks: deque[dict[str, Any]] = deque()
        for i, file in enumerate(files):
            self.stored(file).unlink(missing_ok=True)  # its pages are made anew, and may not be half of each
            most = file.count if file.kind == "text" else RUN  # a text is split as a whole
            for first in range(1, file.count + 1, most):
                tasks.append(self._task(file, i, first, min(first + most - 1, file.count)))
        for task, answer in self.workers.run(tasks):
            file = files[task["of"]]
            if "done" not in answer:
                self.tick()
                task["first"] = self._take(file, answer) + 1
                continue
            if "died" in answer:
                self._survive(file, task, answer, tasks)
            elif "skip" in answer:
                self._give_up(file, answer["skip"], answer["detail"], tasks)
            file.open_tasks -= 1
            if not file.open_tasks:
                self._finish(file)
                yield file

    def _task(self, file: File, of: int, first: int, last: int) -> dict[str, Any]:
        file.open_tasks += 1
        asked = {"path": str(file.path), "file": file.name, "kind": file.kind, "id": file.id, "pages": file.count}
        return {"do": "read", "of": of, "first": first, "last": last, "stamp": file.stamp, **asked}

    def _take(self, file: File, answer: dict[str, Any]) -> int:
        """The number of the page that the answer is about."""
        if "page" not in answer:
            kind = next(k for k in ("lost", "blank", "unread") if k in answer)
            number = answer[kind]
            if kind == "lost":
                self._lose(file, number, answer["reason"], answer["detail"])
            file.told[kind] += 1
            return int(number)
        row = answer["page"]
        page = Page(**row | {"outline": tuple(Outline(**entry) for entry in row["outline"])})
        file.pages[page.page] = page
        file.characters += len(page.text)
        if file.characters > TEXT:
            file.pages.clear()
        file.told["scanned"] += bool(answer.get("scanned"))
        file.told["ocr"] += bool(answer.get("scanned") and page.text)
        if "note" in answer:
            self._lose(file, page.page, "the OCR hook failed", answer["note"])
        return page.page

    def _lose(self, file: File, page: int, reason: str, detail: str) -> None:
        self.strictly(Skip(file.name, reason, detail, page))
        file.skipped.append(Skip(file.name, reason, detail, page))

    def _survive(self, file: File, task: dict[str, Any], answer: dict[str, Any], tasks: deque[dict[str, Any]]) -> None:
        """A process died on a page: that page is lost, the rest of its run goes to another process."""
        if task["first"] > task["last"]:
            return  # it had read them all
        file.deaths += 1
        self._lose(file, task["first"], answer["died"], answer["detail"])
        if file.deaths >= DEATHS:
            self._give_up(file, answer["died"], f"{answer['detail']}, on {file.deaths} pages", tasks)
        elif task["first"] < task["last"]:
            tasks.appendleft(self._task(file, task["of"], task["first"] + 1, task["last"]))

    def _give_up(self, file: File, reason: str, detail: str, tasks: deque[dict[str, Any]]) -> None:
        file.skipped = [Skip(file.name, reason, detail)]
        waiting = [task for task in tasks if task["id"] == file.id]
        for task in waiting:
            tasks.remove(task)
        file.open_tasks -= len(waiting)

    def _finish(self, file: File) -> None:
        whole = next((skip for skip in file.skipped if skip.page is None), None)
        if whole is None and file.characters > TEXT:
            whole = Skip(file.name, "too much text", f"{file.characters:,} characters")
        if whole is None and not file.pages:
            if file.skipped:
                whole = replace(file.skipped[0], page=None)
            elif file.told["blank"]:
                whole = Skip(file.name, "blank", "nothing is on its pages")
            else:
                whole = Skip(file.name, "no text", "and images are off")
        if whole is not None:
            file.skipped = [whole]
        else:
            file.row = file.counted()
            lost = [asdict(skip) for skip in file.skipped]  # such a file is tried again by the next run
            about = {"file": file.name, "making": self.making, "row": file.row, "lost": lost}
            write_pages(self.stored(file), [file.pages[number] for number in sorted(file.pages)], about)
        file.pages.clear()

    def stored(self, file: File) -> Path:
        """Where the pages of a file are, or would be."""
        return self.out / PAGES / f"{file.id}.parquet"
