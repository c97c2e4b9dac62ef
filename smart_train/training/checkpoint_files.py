"""Checkpoint folders on the disk: made beside their place and renamed, told whole from half, deleted and put aside.

    checkpoint-N        a whole one: its checkpoint.json names every file and its size
    checkpoint-N.part   being written, or being deleted; whoever finds one at the start of a run deletes it
    checkpoint-N.old    whole, while a new one of the same step takes its place
    later-N             whole, of a step after the one that a run was resumed from

Knows: folders and files.  Does not know: what is in them, trainers, processes.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

FACTS = "checkpoint.json"
PART, OLD = ".part", ".old"
FORMAT = 1
FULL = {errno.ENOSPC, errno.EDQUOT}


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written or cannot be gone on from; what holds still, and what to do."""


def folder_of(root: Path, step: int) -> Path:
    return root / f"checkpoint-{step}"


def steps(root: Path) -> list[int]:
    """Steps of the folders that are named as checkpoints, whole or not, in order."""
    names = (re.fullmatch(r"checkpoint-(\d+)", folder.name) for folder in root.glob("checkpoint-*") if folder.is_dir())
    return sorted(int(name[1]) for name in names if name)


# Writing -------------------------------------------------------------------------------------------------------------


def seal(part: Path, facts: dict[str, Any]) -> None:
    """Makes a written folder whole: every file is on the disk itself before checkpoint.json lists them.

    The rename that follows could otherwise outlive the data in a power failure: the file system is free to write names
    first.  Costs one flush of what was just written (seconds for gigabytes on a network disk).
    """
    files = {str(file.relative_to(part)): file.stat().st_size for file in sorted(part.rglob("*")) if file.is_file()}
    for name in files:
        _flush(part / name)
    text = json.dumps({"format": FORMAT, **facts, "files": files}, indent=2) + "\n"
    (part / FACTS).write_text(text, encoding="utf8")
    _flush(part / FACTS)
    for folder in (*(folder for folder in part.rglob("*") if folder.is_dir()), part):
        _flush(folder)


def publish(part: Path, folder: Path) -> None:
    """Renames a sealed folder to its place; an older checkpoint of that step is there until then."""
    old = folder.with_name(folder.name + OLD)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    _flush(folder.parent)
    delete(old)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def delete(folder: Path) -> None:
    """Renamed first: what is half deleted is no checkpoint any more."""
    if not folder.exists():
        return
    part = folder if folder.name.endswith(PART) else folder.with_name(folder.name + PART)
    if part != folder:
        shutil.rmtree(part, ignore_errors=True)
        with suppress(FileNotFoundError):  # another machine that shares the disk was first
            folder.rename(part)
    shutil.rmtree(part, ignore_errors=True)


def rotate(root: Path, limit: int | None, keep: Iterable[Path]) -> list[Path]:
    """Deletes the oldest checkpoints above ``limit``, never those to keep; returns what was deleted."""
    found, kept = [folder_of(root, step) for step in steps(root)], {path.resolve() for path in keep}
    over = len(found) - limit if limit else 0
    gone = [folder for folder in found if folder.resolve() not in kept][: max(0, over)]
    for folder in gone:
        delete(folder)
    return gone


# What an earlier run has left ----------------------------------------------------------------------------------------


def tidy(root: Path) -> list[str]:
    """Deletes what a run was writing when it ended, and gives back its name to a checkpoint that was being replaced.
    Returns a line for the log on each."""
    told = []
    for part in sorted(root.glob(f"checkpoint-*{PART}")):
        shutil.rmtree(part, ignore_errors=True)
        told.append(f"{part} was not finished when an earlier run ended: deleted")
    for old in sorted(root.glob(f"checkpoint-*{OLD}")):
        folder = old.with_name(old.name.removesuffix(OLD))
        if folder.exists():
            delete(old)
            continue
        with suppress(FileNotFoundError):  # another machine that shares the disk was first
            old.rename(folder)
            told.append(f"{folder} was being replaced when an earlier run ended: it is there again")
    return told


def put_aside(root: Path, step: int) -> list[str]:
    """Renames the checkpoints of later steps, of the line that a resumed run leaves, so that they are neither taken
    for the newest nor deleted.  Returns a line for the log, if there were any."""
    later = [found for found in steps(root) if found > step]
    for found in later:
        number, folder = 0, root / f"later-{found}"
        while folder.exists():
            number += 1
            folder = root / f"later-{found}.{number}"
        folder_of(root, found).rename(folder)
    if not later:
        return []
    names = ", ".join(str(found) for found in later)
    return [
        f"{root}: the checkpoints of later steps than {step} ({names}) are kept under other names, later-{later[0]} ..."
    ]


# Reading -------------------------------------------------------------------------------------------------------------


def facts_of(folder: Path) -> dict[str, Any]:
    """What checkpoint.json says.  Raises CheckpointError where there is none, or one of another format."""
    try:
        found: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf8"))
    except (OSError, ValueError):
        what = "is no folder" if not folder.is_dir() else f"has no {FACTS}, so it is no checkpoint, or half of one"
        raise CheckpointError(f"training.resume_from_checkpoint: {folder} {what}{_others(folder)}") from None
    if found.get("format") != FORMAT:
        raise CheckpointError(f"{folder / FACTS}: format {found.get('format')}, this version reads {FORMAT}")
    return found


def _others(folder: Path) -> str:
    near = [root for root in (folder, folder / "checkpoints", folder.parent) if root.is_dir() and steps(root)]
    there = [folder_of(near[0], step).name for step in steps(near[0])] if near else []
    return f"; {near[0]} has {', '.join(there[-3:])}" if there else ""


def lacking(folder: Path) -> list[str]:
    """Files that checkpoint.json names and that are missing, or have another size."""
    found = []
    for name, size in facts_of(folder)["files"].items():
        file = folder / name
        if not file.is_file():
            found.append(f"{name} is missing")
        elif file.stat().st_size != size:
            found.append(f"{name} has {file.stat().st_size} bytes of {size}")
    return found


def is_whole(folder: Path) -> bool:
    try:
        return not lacking(folder)
    except CheckpointError:
        return False


def last_whole(root: Path) -> Path | None:
    return next((folder for step in reversed(steps(root)) if is_whole(folder := folder_of(root, step))), None)


# What a failed write says --------------------------------------------------------------------------------------------


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def failure(error: BaseException, part: Path) -> str:
    """The error of a write, and whether the disk was full (torch and safetensors tell that in words of their own)."""
    free = shutil.disk_usage(next(place for place in (part, *part.absolute().parents) if place.exists())).free
    numbers = {one.errno for one in (error, error.__cause__, error.__context__) if isinstance(one, OSError)}
    full = bool(numbers & FULL) or free < 2**20 or any(f"os error {number}" in str(error) for number in FULL)
    written = f"{_mb(size_of(part))} were written, {_mb(free)} are free"
    told = " ".join(f"{type(error).__name__}: {error}".split())
    return f"the disk is full ({written}; {told})" if full else f"{told} ({written})"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
