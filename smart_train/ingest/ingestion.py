"""Read a folder of PDFs, pictures and texts into pages, and report what was not read."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from smart_train.core.environment import cores
from smart_train.core.errors import DataError
from smart_train.data.collection import first_few
from smart_train.ingest.folders import Found, Skip, find
from smart_train.ingest.ingest_report import Report
from smart_train.ingest.options import IngestOptions, Limits
from smart_train.ingest.pages import IMAGES, PAGES, images_of, read_about, read_one, write_pages
from smart_train.ingest.workers import File, Reading, Workers

__all__ = ["IngestOptions", "Limits", "Report", "ingest"]

OURS = re.compile(r"[0-9a-f]{20}(-\d{5,}\.jpg|\.parquet)(\.part)?")


def ingest(folder: str | Path, out: str | Path, options: IngestOptions | None = None, progress: bool = False) -> Report:
    """Reads every document below a folder into ``out/pages`` and ``out/images``, and writes ``out/report.json``.

    progress: bars on standard error, with rate and time left.

    Files that are there twice, byte for byte, are read once, under the name that sorts first.  A page on which nothing
    is (one colour, no text) is left out and counted; a scan is kept as an image and counted.
    Raises DataError where the folder is missing or holds no document, where ``out`` is in use or belongs to another
    folder, where it cannot be written, and with ``strict`` for the first file that cannot be read.
    """
    begin = time.monotonic()
    options = options or IngestOptions()
    folder, out = Path(folder), Path(out)
    found = find(folder, out)
    if not found.files and not found.skipped:
        kinds = f"; it has {sum(found.other.values())} files of other kinds" if found.other else ""
        raise DataError(f"{folder}: no PDF, picture or text file{kinds}")
    try:
        report = _whole(found, folder, out, options, progress)
        report.seconds = time.monotonic() - begin
        report.write(out)
    except OSError as error:  # of what is written: reading processes report what they cannot read
        raise DataError(f"{error.filename or out}: {error.strerror or error}; nothing more can be written") from error
    return report


def _whole(found: Found, folder: Path, out: Path, options: IngestOptions, progress: bool) -> Report:
    for name in (PAGES, IMAGES):
        (out / name).mkdir(parents=True, exist_ok=True)
    seconds = options.limits.seconds * (10 if options.ocr else 1)
    report = Report(options.told(), duplicates=list(found.twice))
    with _alone(out), Workers(options.jobs or cores(), options.settings(str(out)), seconds) as workers:
        run = _Run(folder, out, options, workers, report, progress)
        files = run.look(found)
        run.check_owner(files)
        run.read([file for file in files if not run.reuse(file)])
        run.sweep()
        report.files.sort(key=lambda row: row["file"])
        report.skipped.sort(key=lambda skip: (skip.file, skip.page or 0))
        report.duplicates.sort()
        report.other = dict(sorted(found.other.items()))
    return report


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Nobody else writes to ``out``; the lock goes with the process, however it ends.  Not on Windows."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise DataError(
            f"{out}: another run is writing there; wait for it, or give another folder for --out"
        ) from error
    finally:
        os.close(handle)


class _Run:
    def __init__(
        self, folder: Path, out: Path, options: IngestOptions, workers: Workers, report: Report, progress: bool
    ) -> None:
        self.folder, self.out, self.options = folder, out, options
        self.workers, self.report, self.progress = workers, report, progress
        self.there = {entry.name for entry in os.scandir(out / IMAGES) if entry.stat().st_size}

    # -- which files

    def look(self, found: Found) -> list[File]:
        """Files that can be opened, each once, by name; the others are in the report."""
        for skip in found.skipped:
            self._skip(skip)
        files = [File(*row) for row in found.files if self.options.reads(row[2])]
        found.other.update(path.suffix.lower() for _, path, kind in found.files if not self.options.reads(kind))
        tasks = deque({"do": "look", "path": str(f.path), "kind": f.kind, "of": i} for i, f in enumerate(files))
        with self._bar(len(files), 0, "file", "looking") as bar:
            for task, answer in self.workers.run(tasks):
                file = files[task["of"]]
                bar.update()
                if reason := answer.get("skip") or answer.get("died"):
                    self._skip(Skip(file.name, reason, answer["detail"]))
                else:
                    file.id, file.count, file.stamp = answer["id"], answer["pages"], answer["stamp"]
        unique: dict[str, File] = {}
        for file in files:
            if file.id and unique.setdefault(file.id, file) is not file:
                self.report.duplicates.append((file.name, unique[file.id].name))
        return list(unique.values())

    def check_owner(self, files: list[File]) -> None:
        """Pages of files that are gone will be removed: not where all of them are, which means another folder."""
        stored = {path.stem: path for path in (self.out / PAGES).glob("*.parquet")}
        if not stored or stored.keys() & {file.id for file in files}:
            return
        names = {read_about(path)["file"] for path in stored.values()}
        if not names & {file.name for file in files}:
            raise DataError(
                f"{self.out} holds pages of other files ({first_few(sorted(names), 3)}) and none of {self.folder}; "
                "give another folder for --out, or remove this one"
            )

    def reuse(self, file: File) -> bool:
        """Whether the file's pages are there as they would be made now; a name that has changed is corrected."""
        path = self.out / PAGES / f"{file.id}.parquet"
        if not path.is_file():
            return False
        about = read_about(path)
        if about["making"] != self.options.making() or about["lost"]:
            return False
        row = about["row"] | {"file": file.name}
        if not all(Path(image).name in self.there for image in images_of(path)):
            return False
        if about["file"] != file.name:
            renamed = [replace(page, file=file.name) for page in read_one(path)]
            write_pages(path, renamed, about | {"file": file.name, "row": row})
        self.report.files.append(row | {"reused": True})
        self.report.reused += 1
        return True

    def read(self, files: list[File]) -> None:
        """Reads files and puts them into the report."""
        done = sum(row["pages"] + row["blank"] + row["unread"] for row in self.report.files)
        with self._bar(sum(f.count for f in files) + done, done, "page", "reading") as bar:
            reading = Reading(self.out, self.workers, self.options.making(), self._strictly, bar.update)
            for file in reading.read(files):
                for skip in file.skipped:
                    self._skip(skip)
                if file.row:
                    self.report.files.append(file.row)

    def sweep(self) -> None:
        """Removes what this program wrote for files and pages that are no longer there."""
        kept = {row["id"] for row in self.report.files}
        images = {image for name in kept for image in images_of(self.out / PAGES / f"{name}.parquet")}
        for where in (PAGES, IMAGES):
            for entry in os.scandir(self.out / where):
                name = entry.name
                stays = name.removesuffix(".parquet") in kept if where == PAGES else f"{where}/{name}" in images
                if not stays and OURS.fullmatch(name):
                    os.unlink(entry.path)

    def _skip(self, skip: Skip) -> None:
        self._strictly(skip)
        self.report.skipped.append(skip)

    def _strictly(self, skip: Skip) -> None:
        if self.options.strict:
            raise DataError(f"{skip}; --strict stops here")

    def _bar(self, total: int, done: int, unit: str, what: str) -> Any:
        from tqdm import tqdm

        every = 0.2 if sys.stderr.isatty() else 30.0
        return tqdm(total=total, initial=done, unit=unit, desc=what, disable=not self.progress, mininterval=every)
