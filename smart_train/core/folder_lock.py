"""Let one process own an output folder, so that two runs cannot move or overwrite each other's files.

The owner's file is FOLDER/owner.json.  It names process, host and start, and its modification time is the owner's last
sign of life (heartbeat).  A process that was killed leaves the file; the next one takes it over and says so.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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
                json.dump(self.owner, stream)
            return

    def release(self) -> None:
        """Give the folder up; what another process took over stays its own."""
        self._released.set()
        if self._is_ours():
            self.file.unlink(missing_ok=True)

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
            json.dump(self.owner, stream)
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


def _read(text: str) -> dict[str, Any]:
    """Return the owner; {} for a file that was cut off or is no owner's: its age alone decides."""
    try:
        owner = json.loads(text)
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
