"""List the files below a folder, in an order that does not depend on the disk."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from smart_train.core.errors import DataError
from smart_train.ingest.pages import Kind, Unreadable

SUFFIXES: dict[str, Kind] = {
    ".pdf": "pdf",
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"), "image"),  # type: ignore[dict-item]
    **dict.fromkeys((".txt", ".text", ".md", ".markdown", ".html", ".htm", ".xhtml"), "text"),  # type: ignore[dict-item]
}
FolderId = tuple[int, int]  # device and inode: the same for every link that leads to a folder


@dataclass(frozen=True)
class Skipped:
    """A file, or one page of it, that was not taken, and why. page: None = the whole file."""

    file: str
    reason: str
    detail: str = ""
    page: int | None = None

    def __str__(self) -> str:
        where = self.file if self.page is None else f"{self.file}, page {self.page}"
        return f"{where}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass
class SourceFiles:
    """The files of a folder.

    files: (name to display, path, kind), by name
    skipped: files and folders that the operating system does not hand out
    other: suffix -> number of files of kinds that are not read
    duplicates: (link to a folder, the folder that is read anyway)
    """

    files: list[tuple[str, Path, Kind]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)
    duplicates: list[tuple[str, str]] = field(default_factory=list)


def display_name(name: str) -> str:
    """Return a file's name as valid Unicode; bytes that are none are written as ``\\xe9``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def os_error_reason(error: OSError, path: Path) -> Unreadable:
    """Return why the operating system does not hand out a file."""
    if isinstance(error, PermissionError):
        return Unreadable("permission denied")
    if error.errno == errno.ELOOP:
        return Unreadable("symlink loop")
    if isinstance(error, FileNotFoundError):
        return Unreadable("broken link" if path.is_symlink() else "disappeared")
    return Unreadable("cannot be read", os.strerror(error.errno) if error.errno else str(error))


def list_files(folder: Path, out: Path, allow_outside: bool = False) -> SourceFiles:
    """Return all files below a folder (or one file), without ``out`` and without names that begin with a dot.

    Folders are walked by name, links to folders after everything else, and no folder twice: a link up its own path is
    skipped as a loop, a link to a folder that is read anyway is a duplicate, a link out of ``folder`` is skipped unless
    ``allow_outside``. A file of unknown suffix is a PDF where it
    begins like one.
    Raises DataError where the folder is missing, or is ``out`` itself.
    """
    found = SourceFiles()
    if folder.is_file():
        _add_file(found, folder.name, folder)
        return found
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder or file")
    root = folder.resolve()
    inside = None if allow_outside else root
    if root == out.resolve():
        raise DataError(f"{out} is the folder to read; give another folder for --output")
    above = {_folder_id(parent) for parent in root.parents}
    visited: dict[FolderId, str] = {_folder_id(out): ""} if out.is_dir() else {}
    plain: list[tuple[str, Path, set[FolderId]]] = [("", folder, above)]
    links: list[tuple[str, Path, set[FolderId]]] = []
    while plain or links:
        name, path, trail = plain.pop() if plain else links.pop(0)
        try:
            place = _folder_id(path)
            if place in trail:
                raise Unreadable("symlink loop")
            if place in visited:
                if visited[place]:
                    found.duplicates.append((display_name(name) + "/", visited[place]))
                continue
            _check_inside(path, inside)
            visited[place] = display_name(name) + "/"
            entries = sorted(os.scandir(path), key=lambda e: os.fsencode(e.name))
        except OSError as error:
            why = os_error_reason(error, path)
            found.skipped.append(Skipped(display_name(name) + "/", why.reason, why.detail))
            continue
        except Unreadable as why:
            found.skipped.append(Skipped(display_name(name) + "/", why.reason, why.detail))
            continue
        folders = []
        for entry in entries:
            inner = f"{name}/{entry.name}" if name else entry.name
            if entry.name.startswith("."):
                continue
            if not _is_folder(entry):
                _add_file(found, inner, path / entry.name, inside)
            elif entry.is_symlink():
                links.append((inner, path / entry.name, trail | {place}))
            else:
                folders.append((inner, path / entry.name, trail | {place}))
        plain += reversed(folders)
    found.files.sort()
    found.skipped.sort(key=lambda skip: skip.file)
    return found


def _folder_id(path: Path) -> FolderId:
    status = path.stat()
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself: reported as a file


def _check_inside(path: Path, folder: Path | None) -> None:
    """Raise Unreadable for a link that leads out of the folder to read."""
    if folder is not None and path.is_symlink() and not path.resolve().is_relative_to(folder):
        raise Unreadable("link out of the folder", "--allow-outside reads it")


def _add_file(found: SourceFiles, name: str, path: Path, folder: Path | None = None) -> None:
    suffix = path.suffix.lower()
    kind = SUFFIXES.get(suffix)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait forever
            raise Unreadable("not a regular file")
        _check_inside(path, folder)
        if kind is None:
            with path.open("rb") as stream:
                kind = "pdf" if stream.read(5) == b"%PDF-" else None
    except (OSError, Unreadable) as error:
        if kind is not None or path.is_symlink():
            why = os_error_reason(error, path) if isinstance(error, OSError) else error
            found.skipped.append(Skipped(display_name(name), why.reason, why.detail))
            return
    if kind is None:
        found.other[suffix or "no suffix"] += 1
    else:
        found.files.append((display_name(name), path, kind))
