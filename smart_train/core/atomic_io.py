"""Write a file completely or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path, mark: str = "") -> Iterator[Path]:
    """Yield a temporary path beside ``path``, which replaces it when the block succeeds.

    A reader sees the old file or the new one; an error inside, or a killed process, leaves the old one.  After an error
    the temporary file is deleted: on a full disk it would hold the room that is wanted.
    mark: makes the temporary name unique if several processes write the file at once
    """
    part = path.with_name(f"{path.name}{mark}.part")
    try:
        yield part
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
