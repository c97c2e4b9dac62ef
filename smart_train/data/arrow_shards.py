"""Read rows of many Arrow files by number, without loading them: the files are memory-mapped.

Nothing of a row is a Python object before it is asked for, and the pages of the files are shared by all processes of a
machine.  A pickled ``Shards`` is the names of its files.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smart_train.core.errors import DataError

BLOCK = 4096  # rows that are turned into Python objects at once
FEW = 16  # rows below which single cells are read faster than arrays are taken

Ints = NDArray[np.integer[Any]]


class Shards:
    """The rows of Arrow files, one after another, as ``write_shard`` wrote them: a file is one record batch."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self.batches = [_mapped(file) for file in self.files]
        self.starts = np.cumsum([0, *(batch.num_rows for batch in self.batches)])
        self._starts: list[int] = self.starts.tolist()
        self._cells: dict[str, list[Any]] = {}  # column -> of each file its array; None = all its cells are empty

    def __reduce__(self) -> tuple[Any, ...]:
        return Shards, (self.files,)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def value(self, row: int, column: str) -> Any:
        """Return one cell."""
        return self.row(row, (column,))[0]

    def row(self, row: int, columns: Iterable[str]) -> list[Any]:
        """Return the cells of one row."""
        number = bisect_right(self._starts, row) - 1
        place, found = row - self._starts[number], []
        for column in columns:
            cells = self._cells.get(column) or self._cells.setdefault(
                column, [_filled(_column(b, column)) for b in self.batches]
            )
            held = cells[number]
            found.append(None if held is None else held[place].as_py())
        return found

    def arrow(self, rows: Ints, column: str) -> Iterator[tuple[Ints, Any]]:
        """Yield (places in ``rows``, their cells as a pyarrow array), one file at a time."""
        import pyarrow as pa

        if not len(rows):
            return
        shard = np.searchsorted(self.starts, rows, side="right") - 1
        if shard[0] == shard[-1] and (shard == shard[0]).all():
            groups: Iterable[Ints] = [np.arange(len(rows))]
        else:
            order = np.argsort(shard, kind="stable")
            groups = np.split(order, np.flatnonzero(np.diff(shard[order])) + 1)
        for places in groups:
            number = int(shard[places[0]])
            local = pa.array(np.asarray(rows)[places] - self.starts[number], pa.int64())
            yield places, _column(self.batches[number], column).take(local)

    def values(self, rows: Ints, column: str) -> list[Any]:
        """Return the cells of these rows, in their order, as Python values."""
        if len(rows) <= FEW:
            return [self.value(row, column) for row in rows.tolist()]
        found: list[Any] = [None] * len(rows)
        for places, cells in self.arrow(rows, column):
            for place, value in zip(places.tolist(), cells.to_pylist(), strict=True):
                found[place] = value
        return found

    def numbers(self, rows: Ints, column: str, dtype: Any = np.int64) -> NDArray[Any]:
        """Return the cells of a column of numbers, in the order of ``rows``."""
        found = np.empty(len(rows), dtype)
        for begin in range(0, len(rows), 1 << 20):  # so that what is taken is small beside the result
            part = found[begin : begin + (1 << 20)]
            for places, cells in self.arrow(rows[begin : begin + (1 << 20)], column):
                part[places] = cells.to_numpy(zero_copy_only=False)
        return found

    def blocks(self, rows: Ints, *columns: str) -> Iterator[tuple[Any, ...]]:
        """Yield the cells of these columns row by row, of a bounded number of rows at once."""
        for begin in range(0, len(rows), BLOCK):
            part = rows[begin : begin + BLOCK]
            yield from zip(*(self.values(part, column) for column in columns), strict=True)


def _column(batch: Any, name: str) -> Any:
    """Return a column; one of empty cells where the file has none of this name."""
    import pyarrow as pa

    return batch.column(name) if name in batch.schema.names else pa.nulls(batch.num_rows)


def _filled(cells: Any) -> Any:
    return None if cells.null_count == len(cells) else cells


def write_shard(file: Path, columns: dict[str, Any]) -> None:
    """Write columns (pyarrow arrays of one length) to an Arrow file of one record batch."""
    import pyarrow as pa

    batch = pa.record_batch(columns)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def _mapped(file: Path) -> Any:
    import pyarrow as pa

    try:
        return pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable Arrow file ({error}); delete its folder to write it anew") from error
