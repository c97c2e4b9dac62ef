"""Files read page by page in other processes, and each written when its last page has come.

Knows: runs of pages, what to do where a page or a process is lost.
Does not know: the folder, earlier runs, what the processes do.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from smart_train.data.ingesting.folders import Skip
from smart_train.data.ingesting.workers import Workers
from smart_train.data.pages import PAGES, Kind, Outline, Page, write_pages

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
