"""Read a folder of PDFs, images and text files into pages, and report what was not read."""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from smart_train.core.environment import cores
from smart_train.core.errors import DataError
from smart_train.core.folder_lock import own
from smart_train.data.collection import first_few
from smart_train.ingest.ingest_options import IngestOptions, Limits
from smart_train.ingest.ingest_report import IngestReport
from smart_train.ingest.pages import (
    IMAGES,
    PAGES,
    Kind,
    Outline,
    Page,
    images_of,
    read_about,
    read_one,
    write_pages,
)
from smart_train.ingest.source_files import Skipped, SourceFiles, list_files
from smart_train.ingest.worker_pool import Answer, Task, WorkerPool

__all__ = ["IngestOptions", "IngestReport", "Limits", "ingest"]

PAGES_PER_TASK = 32  # so that one long file keeps all processes busy
MAX_DEATHS = 3  # of processes on one file, each on another page, before the file is given up
MAX_TEXT = 100_000_000  # characters of one file, which are in memory until it is written
OURS = re.compile(r"[0-9a-f]{20}(-\d{5,}\.jpg|\.parquet)(\.part)?")  # names of files that this module writes


def ingest(
    folder: str | Path, out: str | Path, options: IngestOptions | None = None, progress: bool = False
) -> IngestReport:
    """Read every document below a folder into ``out/pages`` and ``out/images``, and write ``out/report.json``.

    progress: draw bars on standard error, with rate and time left

    A run that was stopped continues when it is run again, and a second run reads only what is new or has changed. Files
    with the same bytes are read once, under the name that sorts first. A page with nothing on it (one colour, no text)
    is left out and counted; a scan without text is stored as an image and counted.
    Raises FolderInUse where another process writes to ``out``, and DataError where the folder is missing or holds no
    document, where ``out`` belongs to another folder or cannot be written, and with ``strict`` for the first file or
    page that cannot be read.
    """
    begin = time.monotonic()
    options = options or IngestOptions()
    folder, out = Path(folder).expanduser(), Path(out).expanduser()
    sources = list_files(folder, out, options.allow_outside)
    if not sources.files and not sources.skipped:
        others = f"; it has {sum(sources.other.values())} files of other kinds" if sources.other else ""
        raise DataError(f"{folder}: no PDF, image or text file{others}")
    report = IngestReport(options.as_dict(), duplicates=list(sources.duplicates))
    seconds = options.limits.seconds * (10 if options.ocr else 1)
    try:
        for name in (PAGES, IMAGES):
            (out / name).mkdir(parents=True, exist_ok=True)
        with own(out), WorkerPool(options.jobs or cores(), options.worker_settings(str(out)), seconds) as workers:
            run = _Run(folder, out, options, workers, report, progress)
            files = run.inspect(sources)
            run.check_owner(files)
            run.read([file for file in files if not run.reuse(file)])
            run.remove_stale()
        report.files.sort(key=lambda row: row["file"])
        report.skipped.sort(key=lambda skipped: (skipped.file, skipped.page or 0))
        report.duplicates.sort()
        report.other = dict(sorted(sources.other.items()))
        report.seconds = time.monotonic() - begin
        report.write(out)
    except OSError as error:  # of what is written; workers report what they cannot read
        raise DataError(f"{error.filename or out}: {error.strerror or error}; free space, and run it again") from error
    return report


@dataclass
class _File:
    """A file on its way through a run.

    id, count, stamp: what the first look found (number of pages; size and time); id "" where it failed
    pages: read so far, by number, until the file is written
    page_counts: how many pages are scanned, ocr, blank, unread
    skipped: what was lost of it
    open_tasks, deaths: tasks that are not done, and processes that died on it
    """

    name: str
    path: Path
    kind: Kind
    id: str = ""
    count: int = 0
    stamp: list[int] = field(default_factory=list)
    pages: dict[int, Page] = field(default_factory=dict)
    page_counts: Counter[str] = field(default_factory=Counter)
    skipped: list[Skipped] = field(default_factory=list)
    characters: int = 0
    open_tasks: int = 0
    deaths: int = 0

    def report_row(self) -> dict[str, Any]:
        """Return the row of ``IngestReport.files``."""
        counts = {name: self.page_counts[name] for name in ("scanned", "ocr", "blank", "unread")}
        return {"file": self.name, "id": self.id, "kind": self.kind, "pages": len(self.pages), **counts}

    def skip_reason(self) -> Skipped | None:
        """Return why nothing of a file that was read to its end is stored; None where its pages are."""
        whole = next((skipped for skipped in self.skipped if skipped.page is None), None)
        if whole is not None:
            return whole
        if self.characters > MAX_TEXT:
            return Skipped(self.name, "too much text", f"{self.characters:,} characters")
        if self.pages:
            return None
        if self.skipped:
            return replace(self.skipped[0], page=None)
        if self.page_counts["blank"]:
            return Skipped(self.name, "blank", "nothing is on its pages")
        return Skipped(self.name, "no text", "and images are off")


class _Run:
    """The steps of one run, in the order in which ``ingest`` calls them."""

    def __init__(
        self,
        folder: Path,
        out: Path,
        options: IngestOptions,
        workers: WorkerPool,
        report: IngestReport,
        progress: bool,
    ) -> None:
        self.folder, self.out, self.options = folder, out, options
        self.workers, self.report, self.progress = workers, report, progress
        self.stored_images = {entry.name for entry in os.scandir(out / IMAGES) if entry.stat().st_size}

    def inspect(self, sources: SourceFiles) -> list[_File]:
        """Open every file once, for its id and number of pages; return those that can be read, each content once."""
        for skipped in sources.skipped:
            self._skip(skipped)
        files = [_File(*row) for row in sources.files if self.options.stores(row[2])]
        sources.other.update(path.suffix.lower() for _, path, kind in sources.files if not self.options.stores(kind))
        tasks = deque({"do": "inspect", "path": str(f.path), "kind": f.kind, "of": i} for i, f in enumerate(files))
        with self._bar(len(files), 0, "file", "inspecting") as bar:
            for task, answer in self.workers.run(tasks):
                file = files[task["of"]]
                bar.update()
                if reason := answer.get("skip") or answer.get("died"):
                    self._skip(Skipped(file.name, reason, answer["detail"]))
                else:
                    file.id, file.count, file.stamp = answer["id"], answer["pages"], answer["stamp"]
        unique: dict[str, _File] = {}
        for file in files:
            if file.id and unique.setdefault(file.id, file) is not file:
                self.report.duplicates.append((file.name, unique[file.id].name))
        return list(unique.values())

    def check_owner(self, files: list[_File]) -> None:
        """Raise DataError where ``out`` holds pages, none of them of these files.

        Pages of files that are gone are removed later; where all of them are, ``out`` belongs to another folder.
        """
        stored = {path.stem: path for path in (self.out / PAGES).glob("*.parquet")}
        if not stored or stored.keys() & {file.id for file in files}:
            return
        names = {read_about(path)["file"] for path in stored.values()}
        if not names & {file.name for file in files}:
            raise DataError(
                f"{self.out} holds pages of other files ({first_few(sorted(names), 3)}) and none of {self.folder}; "
                "give another folder for --output, or remove this one"
            )

    def reuse(self, file: _File) -> bool:
        """Return whether stored pages of a file equal those of a new run; correct a changed file name."""
        path = self._pages_file(file)
        if not path.is_file():
            return False
        about = read_about(path)
        if about["making"] != self.options.page_settings() or about["lost"]:
            return False
        row = about["row"] | {"file": file.name}
        if not all(Path(image).name in self.stored_images for image in images_of(path)):
            return False
        if about["file"] != file.name:
            renamed = [replace(page, file=file.name) for page in read_one(path)]
            write_pages(path, renamed, about | {"file": file.name, "row": row})
        self.report.files.append(row | {"reused": True})
        self.report.reused += 1
        return True

    def read(self, files: list[_File]) -> None:
        """Read files, in tasks of a few pages, and write each when its last page has come."""
        tasks: deque[Task] = deque()
        for i, file in enumerate(files):
            self._pages_file(file).unlink(missing_ok=True)  # old and new pages of a file are never mixed
            size = file.count if file.kind == "text" else PAGES_PER_TASK  # a text is cut into pages as a whole
            for first in range(1, file.count + 1, size):
                tasks.append(self._task(file, i, first, min(first + size - 1, file.count)))
        done = sum(row["pages"] + row["blank"] + row["unread"] for row in self.report.files)
        with self._bar(sum(f.count for f in files) + done, done, "page", "reading") as bar:
            for task, answer in self.workers.run(tasks):
                file = files[task["of"]]
                if "done" not in answer:
                    bar.update()
                    task["first"] = self._take_page(file, answer) + 1
                    continue
                if "died" in answer:
                    self._survive(file, task, answer, tasks)
                elif "skip" in answer:
                    self._give_up(file, answer["skip"], answer["detail"], tasks)
                file.open_tasks -= 1
                if not file.open_tasks:
                    self._finish(file)

    def remove_stale(self) -> None:
        """Remove pages and images that this program wrote for files and pages that are no longer there."""
        kept = {row["id"] for row in self.report.files}
        images = {image for name in kept for image in images_of(self.out / PAGES / f"{name}.parquet")}
        for folder in (PAGES, IMAGES):
            for entry in os.scandir(self.out / folder):
                name = entry.name
                stays = name.removesuffix(".parquet") in kept if folder == PAGES else f"{folder}/{name}" in images
                if not stays and OURS.fullmatch(name):
                    os.unlink(entry.path)

    # -- parts of read

    def _task(self, file: _File, of: int, first: int, last: int) -> Task:
        file.open_tasks += 1
        about = {"path": str(file.path), "file": file.name, "kind": file.kind, "id": file.id, "pages": file.count}
        return {"do": "read", "of": of, "first": first, "last": last, "stamp": file.stamp, **about}

    def _take_page(self, file: _File, answer: Answer) -> int:
        """Store what an answer says of one page; return the page's number."""
        if "page" not in answer:
            outcome = next(name for name in ("lost", "blank", "unread") if name in answer)
            number = int(answer[outcome])
            if outcome == "lost":
                self._lose_page(file, number, answer["reason"], answer["detail"])
            file.page_counts[outcome] += 1
            return number
        row = answer["page"]
        page = Page(**row | {"outline": tuple(Outline(**entry) for entry in row["outline"])})
        file.pages[page.page] = page
        file.characters += len(page.text)
        if file.characters > MAX_TEXT:
            file.pages.clear()
        file.page_counts["scanned"] += bool(answer.get("scanned"))
        file.page_counts["ocr"] += bool(answer.get("scanned") and page.text)
        if "note" in answer:
            self._lose_page(file, page.page, "the OCR hook failed", answer["note"])
        return page.page

    def _lose_page(self, file: _File, page: int, reason: str, detail: str) -> None:
        skipped = Skipped(file.name, reason, detail, page)
        self._check_strict(skipped)
        file.skipped.append(skipped)

    def _survive(self, file: _File, task: Task, answer: Answer, tasks: deque[Task]) -> None:
        """A process died on a page: skip that page, and give the rest of its task to another process."""
        if task["first"] > task["last"]:
            return  # it had read them all
        file.deaths += 1
        self._lose_page(file, task["first"], answer["died"], answer["detail"])
        if file.deaths >= MAX_DEATHS:
            self._give_up(file, answer["died"], f"{answer['detail']}, on {file.deaths} pages", tasks)
        elif task["first"] < task["last"]:
            tasks.appendleft(self._task(file, task["of"], task["first"] + 1, task["last"]))

    def _give_up(self, file: _File, reason: str, detail: str, tasks: deque[Task]) -> None:
        """Skip the whole file, and drop its tasks that have not begun."""
        file.skipped = [Skipped(file.name, reason, detail)]
        waiting = [task for task in tasks if task["id"] == file.id]
        for task in waiting:
            tasks.remove(task)
        file.open_tasks -= len(waiting)

    def _finish(self, file: _File) -> None:
        """Write the pages of a file that was read to its end, and put it into the report."""
        whole = file.skip_reason()
        if whole is not None:
            self._skip(whole)
        else:
            row = file.report_row()
            lost = [asdict(skipped) for skipped in file.skipped]  # such a file is read again by the next run
            about = {"file": file.name, "making": self.options.page_settings(), "row": row, "lost": lost}
            write_pages(self._pages_file(file), [file.pages[number] for number in sorted(file.pages)], about)
            self.report.files.append(row)
            self.report.skipped += file.skipped
        file.pages.clear()

    # -- helpers

    def _pages_file(self, file: _File) -> Path:
        return self.out / PAGES / f"{file.id}.parquet"

    def _skip(self, skipped: Skipped) -> None:
        self._check_strict(skipped)
        self.report.skipped.append(skipped)

    def _check_strict(self, skipped: Skipped) -> None:
        if self.options.strict:
            raise DataError(f"{skipped}; --strict stops here")

    def _bar(self, total: int, done: int, unit: str, label: str) -> Any:
        from tqdm import tqdm

        every = 0.2 if sys.stderr.isatty() else 30.0
        return tqdm(total=total, initial=done, unit=unit, desc=label, disable=not self.progress, mininterval=every)
