"""Keep working when standard output or error is closed, full, or cannot hold a character.

Whoever reads a pipe may leave (``| head``), a disk with the log may be full, a service may be started with its streams
closed.  None of that is a reason to lose hours of training: files of the run hold everything that matters.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import Any

OUT, ERR = 1, 2


class _Lasting(io.FileIO):
    """A file descriptor whose failed writes are remembered (``failed``, the errno) and reported once, not raised."""

    failed = 0

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # a pipe that does not block is full
                select.select([], [self.fileno()], [])
            return written
        except OSError as error:
            if not self.failed and self.fileno() == OUT:
                line = f"standard output cannot be written ({error.strerror}); the work goes on without it\n"
                with suppress(OSError):
                    os.write(ERR, line.encode())
            self.failed = self.failed or error.errno or errno.EIO
            return len(memoryview(data).cast("B"))


def protect_streams() -> None:
    """Make ``sys.stdout`` and ``sys.stderr`` survive what happens to them; does nothing where they were replaced.

    A descriptor that was closed is opened on the null device first: the next file that is opened would otherwise get
    its number, and everything that is printed.
    """
    for number in (0, OUT, ERR):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stdout = _protected(sys.stdout, OUT)
    sys.stderr = _protected(sys.stderr, ERR)


def output_lost() -> bool:
    """Return whether something printed could not be written, and not because its reader left."""
    with suppress(AttributeError, ValueError):  # replaced by another stream, or closed
        sys.stdout.flush()
        return _raw(sys.stdout).failed not in (0, errno.EPIPE)
    return False


def _protected(stream: Any, number: int) -> Any:
    if stream is None:  # was closed when Python started
        return open(os.devnull, "w", encoding="utf8")  # noqa: SIM115 - for as long as the process lives
    try:
        if stream.fileno() != number or isinstance(_raw(stream), _Lasting):
            return stream
    except (AttributeError, OSError, ValueError):  # in a notebook or a test
        return stream
    with suppress(OSError):
        stream.flush()
    lines = stream.line_buffering or stream.write_through  # PYTHONUNBUFFERED: whole lines, at once
    buffer = io.BufferedWriter(_Lasting(number, "w", closefd=False))
    return io.TextIOWrapper(buffer, stream.encoding, "backslashreplace", line_buffering=lines)


def _raw(stream: Any) -> Any:
    """Return what writes to the descriptor; with PYTHONUNBUFFERED there is no buffer between."""
    return getattr(stream.buffer, "raw", stream.buffer)
