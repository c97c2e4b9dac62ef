"""What an MMEB-V2 task comes as: queries with their answers and candidates, and documents, by content.

Knows: the shape, folders of frames, tables of rows.  Does not know: which column means what (mmeb_image.py,
mmeb_video.py, mmeb_questions.py, mmeb_pages.py), encoders, scores.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from smart_train.data.ids import DataError
from smart_train.data.tables import Table, open_files, readable, split_of
from smart_train.evaluation.mmeb_tasks import Task

PICTURES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Reading:
    """How media are read.

    frames: most frames of a video, evenly spaced from the first to the last; a candidate clip gets at most 8
    video: True = a video is handed over as one, for the model's own video processor; False = as several images
    """

    root: Path
    frames: int = 8
    video: bool = False


@dataclass(frozen=True)
class Query:
    """answers: document id -> grade above 0; given: ids of its own candidates, None = all documents are."""

    id: str
    content: Any
    instruction: str
    answers: dict[str, int]
    given: tuple[str, ...] | None = None


@dataclass
class Data:
    """documents: id -> content, or an object whose ``content()`` gives it (a page that is decoded when it is wanted).

    notes: what a reader had to say: rows left out, instructions that stand in the text
    """

    queries: list[Query] = field(default_factory=list)
    documents: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, content: Any, *identity: str) -> str:
        """The id of a document, which is what it shows: candidates of several queries are encoded once."""
        name = ":".join(part for part in identity if part)
        self.documents.setdefault(name, content)
        return name


Reader = Callable[[Task, Reading], Data]


def rows_of(task: Task, reading: Reading) -> Table:
    """The table of a task; raises DataError, naming the places looked at, where there is none."""
    for name in task.tables:
        place = reading.root / name
        if place.is_file():
            return open_files([place])
        files = [file for folder in (place, place / "data") for file in readable(folder)]
        files = [file for file in files if re.split(r"[_-]", split_of(file))[-1] == task.split] or files
        if files:
            kinds = {file.suffix for file in files}
            if len(kinds) > 1 or len({split_of(file) for file in files}) > 1:
                told = ", ".join(file.name for file in files[:4])
                raise DataError(f"{place}: which of {told} has the split {task.split!r}? Leave that one alone there")
            return open_files(files)
    raise DataError(f"{task.name}: no rows; looked for {_places(reading.root, task.tables)}")


def media_of(task: Task, reading: Reading) -> Path:
    """The folder of a task's images or frames; raises DataError where there is none."""
    found = next((reading.root / name for name in task.media if (reading.root / name).is_dir()), None)
    if found is None:
        raise DataError(f"{task.name}: no folder of images; looked for {_places(reading.root, task.media)}")
    return found


def _places(root: Path, names: Iterable[str]) -> str:
    return ", ".join(str(root / name) for name in names)


def frames_in(folder: Path, most: int) -> list[Path]:
    """At most so many frames, evenly spaced with both ends in, in the order of the numbers in their names; all of them
    where there are fewer: a short clip is not padded.  Raises DataError for a folder without any."""
    there = folder.iterdir() if folder.is_dir() else []
    paths = sorted((path for path in there if path.suffix.lower() in PICTURES), key=lambda path: _natural(path.name))
    if not paths:
        raise DataError(f"{folder}: no frames of this video; unpack the benchmark's frames, or make some there")
    if len(paths) <= most:
        return paths
    return [paths[at] for at in np.linspace(0, len(paths) - 1, most, dtype=int).tolist()]


def _natural(name: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part.lower()) for part in re.split(r"(\d+)", name)]


def clip(folder: Path, reading: Reading, text: str = "", most: int | None = None) -> dict[str, Any]:
    """The content of a video's frames, and a text after them."""
    paths = frames_in(folder, reading.frames if most is None else min(most, reading.frames))
    shown: dict[str, Any] = {"video" if reading.video else "image": paths}
    return {**shown, "text": text} if text.strip() else shown


def value(row: dict[str, Any], key: str, where: str) -> Any:
    """A cell that must be there."""
    if row.get(key) is None:
        raise DataError(f"{where}: no {key!r} in this row; it has {', '.join(sorted(row)) or 'nothing'}")
    return row[key]
