"""Let one process own an output folder, so that two runs cannot move or overwrite each other's files.

The owner's file is FOLDER/owner.json.  It names process, host and start, and its modification time is the owner's last
sign of life (heartbeat).  A process that was killed leaves the file; the next one takes it over and says so.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from smart_train.core.bounded_json import load_json
from smart_train.core.errors import FolderInUse, SettingError

logger = logging.getLogger(__name__)

NAME = "owner.json"
BEAT = 15.0  # seconds between two signs of life
DEAD_AFTER = 180.0  # seconds without one, after which the owner on another host counts as dead


class FolderLock:
    """A folder that this process owns from ``acquire`` to ``release``; one for each folder and use.

    Whether an owner lives is decided by its process, where that is on this host, in this container and since this boot:
    a stopped process still owns the folder, a killed one does not.  Anywhere else its heartbeat decides.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with FolderLock(folder):
    ...     sorted(path.name for path in folder.iterdir())
    ['owner.json']
    >>> list(folder.iterdir())
    []
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / NAME
        self.owner = {
            "id": uuid.uuid4().hex,
            "pid": os.getpid(),
            "born": _born(os.getpid()),
            "host": socket.gethostname(),
            "machine": _machine(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }
        self._released = threading.Event()
        self._made = False  # whether the folder was not there before

    def acquire(self) -> None:
        """Make the folder and own it; log where a dead owner's lock is taken over.

        Raises:
            FolderInUse: another process owns it and lives.
            SettingError: the folder cannot be made or written to.
        """
        try:
            self._own()
        except OSError as error:
            what = f"nothing can be written to {self.folder} ({error.strerror or error})"
            raise SettingError("output", what, "name another folder, or free space") from error
        self._released = threading.Event()
        threading.Thread(target=self._beat, args=(self._released,), name="folder-lock", daemon=True).start()

    def _own(self) -> None:
        self._made = self._made or not self.folder.exists()
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                handle = os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileNotFoundError:  # the folder was moved away since
                continue
            except FileExistsError:
                if self._take_over():
                    return
                continue
            with os.fdopen(handle, "w", encoding="utf8") as stream:
                self._write(stream)
            return

    def _write(self, stream: IO[str]) -> None:
        """Write who we are; or, on a full disk, delete the file: half of it names no owner that could be found dead."""
        try:
            json.dump(self.owner, stream)
            stream.flush()
        except OSError:
            self.file.unlink(missing_ok=True)
            raise

    def release(self) -> None:
        """Give the folder up, and delete it where it is as empty as before; what another process took over stays."""
        self._released.set()
        if self._is_ours():
            with suppress(OSError):  # the disk may be gone, or read-only since: a dead owner's file is taken over
                self.file.unlink(missing_ok=True)
        if self._made:
            with suppress(OSError):
                self.folder.rmdir()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Have ``own`` of this folder, or of one below it, succeed in this thread within the block."""
        place = self.folder.resolve()
        _held().add(place)
        try:
            yield
        finally:
            _held().discard(place)

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def move_folder(self, to: Path) -> None:
        """Rename the folder and own a new, empty one in its place.

        Raises FolderInUse where another process was faster in making the new one.
        """
        self._released.set()
        self.folder.rename(to)
        (to / NAME).unlink(missing_ok=True)
        self.acquire()

    def _take_over(self) -> bool:
        """Make a dead owner's lock ours; return False where it went away meanwhile.  Raises FolderInUse."""
        try:
            stream = self.file.open("r+", encoding="utf8")
        except FileNotFoundError:
            return False
        with stream, _exclusive(stream.fileno()):
            there = os.fstat(stream.fileno())
            if not self.file.exists() or self.file.stat().st_ino != there.st_ino:
                return False
            owner = _read(stream.read())
            silent = max(0.0, _now(self.folder) - there.st_mtime)
            reason = _dead(owner, silent)
            who = f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'unknown')}"
            who += f", started {owner['started']}" if "started" in owner else ""
            if reason is None:
                raise FolderInUse(
                    f"{self.folder} is in use by {who} (last sign of life {silent:.0f} s ago); wait for it, or name "
                    f"another output; if that process no longer exists, delete {self.file}"
                )
            stream.seek(0)
            stream.truncate()
            self._write(stream)
        logger.warning("took over %s from %s: %s", self.folder, who, reason)
        return True

    def _is_ours(self) -> bool:
        with suppress(OSError):
            return _read(self.file.read_text(encoding="utf8")).get("id") == self.owner["id"]
        return False

    def _beat(self, released: threading.Event) -> None:
        while not released.wait(BEAT):
            if self._is_ours():
                with suppress(OSError):  # a full or absent disk ends the run where it matters, when it writes
                    os.utime(self.file)
            elif not released.is_set() and self.file.exists():
                logger.error("%s was taken over by another process; both write to it now, stop one", self.folder)
                return


_holding = threading.local()  # folders: those that this thread owns by ``own``


@contextmanager
def own(folder: str | Path | None) -> Iterator[None]:
    """Own a folder within the block (None: nothing); a folder that this thread owns already, or one below it, is free.

    Raises as ``FolderLock.acquire``.
    """
    held = _held()
    place = Path(folder).resolve() if folder is not None else None
    if folder is None or place is None or not held.isdisjoint((place, *place.parents)):
        yield
        return
    with FolderLock(Path(folder)) as lock, lock.holding():
        yield


def _held() -> set[Path]:
    if not hasattr(_holding, "folders"):
        _holding.folders = set()
    folders: set[Path] = _holding.folders
    return folders


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder to fill, which becomes ``out`` when the block succeeds, and is deleted otherwise.

    So ``out`` is whole or not there; the next call deletes what a killed process left.  An empty ``out`` may be there.
    The folder lies in .OUT.part, which this process owns.

    Raises FolderInUse where another process is making the same folder, and as ``FolderLock.acquire``.
    """
    place = out.with_name(f".{out.name}.part")
    with FolderLock(place):
        part = place / out.name
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            yield part
            if out.is_dir():
                out.rmdir()
            part.rename(out)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    with suppress(OSError):
        place.rmdir()  # where a killed process had left it


def _read(text: str) -> dict[str, Any]:
    """Return the owner; {} for a file that was cut off or is no owner's: its age alone decides."""
    try:
        owner = load_json(text)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _dead(owner: dict[str, Any], silent: float) -> str | None:
    """Return why an owner counts as dead; None where it may live."""
    machine = _machine()
    if machine is not None and owner.get("machine") == machine and isinstance(owner.get("pid"), int):
        return None if _born(owner["pid"]) == owner.get("born") else "that process has ended without giving it up"
    return None if silent < DEAD_AFTER else f"it has shown no sign of life for {silent:.0f} s"


def _machine() -> str | None:
    """Return what is equal for two processes that see each other's pid: boot and pid namespace; None where unknown."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return None


def _born(pid: int) -> int | None:
    """Return when a process started, in ticks since boot: a pid is used again; None where it is not there (or a zombie,
    which writes no more)."""
    with suppress(OSError, IndexError, ValueError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    return None


def _now(folder: Path) -> float:
    """Return the file server's time, to which the heartbeat is compared: clocks of two hosts may differ."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".now-") as file:
        return os.fstat(file.fileno()).st_mtime


@contextmanager
def _exclusive(handle: int) -> Iterator[None]:
    """Keep two processes that take over one lock apart (where the system has no flock: not at all)."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)
