"""Files that are written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, mark: str = "") -> Iterator[Path]:
    """A path beside ``path`` to write to, which takes its place when the block ends: who reads sees the old file or the
    new one, and a run that is stopped, or an error inside, leaves the old one.

    mark: makes the name beside it this process's own, where several write the same file at once
    """
    part = path.with_name(f"{path.name}{mark}.part")
    yield part
    part.replace(path)
