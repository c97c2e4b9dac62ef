"""Stream training rows: read them one after another, with no conversion and no copy on disk (``data.streaming``).

The rows of a pass (each row once) are read segment by segment: files of text, row groups of Parquet files, shards of a
``datasets.IterableDataset``, in an order that is drawn for the pass.  They are taken in windows of
``data.shuffle_buffer`` rows, and the pairs of a window are shuffled.  Batches are cut from the pairs of one pass after
another, so no pair of a pass is left out, and the last pairs of a pass may share a batch with the first of the next.

Every process reads and parses all rows, and tokenises its own share of each batch.  So batch n depends on the data, the
seed, the buffer and the batch size, and neither on the number of data workers nor on how ranks share it, and every rank
knows the answers of the whole batch.  Training takes a few thousand pairs a second at most; parsing is faster.

To resume, reading starts at the window of the next batch: a Parquet row group or a file is opened at once, and rows
before the window are skipped, lines without being parsed.

Letters: S pairs of a batch of all ranks, W ranks.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset, Sampler

from smart_train.config.schema import DataBlock
from smart_train.config.typed_values import Problem
from smart_train.core.embeddings import Batch
from smart_train.core.errors import DataError, UsageError
from smart_train.core.modality import content_size
from smart_train.data.collate import Collator, EpochRow
from smart_train.data.collection import Collection, content_id, first_few, hash_id
from smart_train.data.readers.base import DataProblem, find_reader
from smart_train.data.readers.row_builder import RowBuilder
from smart_train.data.readers.row_cache import both_ends
from smart_train.data.readers.row_parser import ParsedRow, RowParser
from smart_train.data.tables import IterableTable

SHOWN = 5  # places of rows left out that a report names
NOTE = "stream"  # of Batch.notes: (number of the batch, its place, lines to log)
WITHOUT = (
    "a query's answers in other batches are not known, copies of dev and test are not looked for, and equal rows "
    "stay (docs/data.md)"
)
NO_EPOCHS = "is epoch, and while streaming a run is one epoch, however often it goes through the rows"
KNOWN = "data.streaming does not know all rows before training"


class SegmentedTable(Protocol):
    """A table whose segments can be read in any order; TextTable, ParquetRows and IterableTable are."""

    @property
    def name(self) -> str: ...
    @property
    def columns(self) -> list[str]: ...
    @property
    def segments(self) -> int: ...
    def read_segment(self, segment: int, skip: int = 0) -> Iterator[tuple[str, dict[str, Any]]]: ...


# What is read -------------------------------------------------------------------------------------------------------


class RowStream:
    """Training rows that are never in memory, nor on disk a second time; ``SmartTrainer`` trains on one.

    table: what is read; its columns have the names of docs/data.md
    data: its columns, ``negatives`` and ``shuffle_buffer``, as in a recipe
    Raises DataProblem for keys that need to know all rows, DataError for unclear columns.

    >>> import tempfile, pathlib
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "pairs.jsonl"
    >>> _ = file.write_text('{"query": "a query", "positive": "a passage"}\\n' * 4)
    >>> list(RowStream.open(file).head(1).queries.values())
    ['a query']
    """

    def __init__(self, table: SegmentedTable, data: DataBlock | None = None, name: str | None = None) -> None:
        self.data = data or DataBlock()
        self.table = table
        self.name = name or table.name
        for problem in stream_problems(self.data):
            raise DataProblem(problem.key, problem.what, problem.fix)
        self.columns = self.parser().columns
        if self.columns.image:
            what = f"is {self.columns.image}, and streaming reads texts alone: every process would read every image"
            raise DataProblem("data.image", what, 'write data.image: "" for the texts, or data.streaming: false')
        if hasattr(table, "reads"):
            table.reads = self.columns.names()

    @classmethod
    def open(cls, path: str | Path | DataBlock, **options: Any) -> RowStream:
        """Return the stream of data that a recipe can stream.

        path: ``data.path``, and options: further keys of the block ``data``; or the block itself
        Raises as ``find_reader``, and DataProblem for formats that cannot be streamed.
        """
        data = path if isinstance(path, DataBlock) else DataBlock(path=str(path), **options)
        reader = find_reader(data)
        if data.split not in (there := reader.splits()):
            what = f"{data.path} has no split {data.split!r}; there is {', '.join(there) or 'none'}"
            raise DataProblem("data.split", what, "name one of these")
        return cls(reader.stream_table(data.split), data, reader.name)

    def parser(self) -> RowParser:
        return RowParser(self.table, self.data)  # type: ignore[arg-type]

    @property
    def rows(self) -> int | None:
        """Return the number of rows where the files say it, as Parquet files do; None else."""
        return getattr(self.table, "rows", None)

    def names_pages(self) -> bool:
        """Return whether documents may name their file and their page in it."""
        return self.columns.file is not None and self.columns.page is not None

    def head(self, pairs: int) -> Collection:
        """Return the first pairs as a collection."""
        parser = self.parser()
        read = (row for segment in range(self.table.segments) for row in self.table.read_segment(segment))
        parsed = (row for row in (parser.parse(*row) for row in read) if row.query and any(row.grades))
        return self.collection(islice(parsed, pairs))

    def collection(self, rows: Iterable[ParsedRow]) -> Collection:
        """Return the collection of a few rows, each of which has a pair."""
        builder = RowBuilder(self.table.name, self.columns)
        for row in rows:
            builder.add(row)
        return builder.finish(self.name)

    def fingerprint(self) -> str:
        """Return a SHA-256 of the name, the size and both ends of every file, and of the columns that are read.

        A change in the middle of a file that keeps its size is not seen.  Of other tables: name and columns.
        """
        total = sha256(json.dumps([self.name, asdict(self.columns)]).encode())
        for file in getattr(self.table, "files", ()):
            total.update(f"{file.name} {file.stat().st_size}".encode() + both_ends(file))
        return total.hexdigest()

    def steps_needed(self, pairs: int) -> tuple[str, str]:
        """Return (what is wrong, what to do) where ``max_steps`` is not given.  pairs: that a step takes"""
        what = "is not given, and the number of pairs of a stream is not known"
        if self.rows is None:
            return what, f"write it: the rows you want to train on, divided by {pairs} (the pairs of a step)"
        return what, f"write {max(1, self.rows // pairs)} for one pass through the {self.rows:,} rows"


def stream_problems(data: DataBlock) -> Iterator[Problem]:
    """Yield what of a data block cannot be done while streaming."""
    if data.shuffle_buffer < 1:
        yield Problem("data.shuffle_buffer", f"is {data.shuffle_buffer}, must be at least 1", "write 10000")
    needs = {
        "id": (data.id, "so an id can't be looked for in other rows", "the id is then a hash of the content"),
        "limit": (data.limit, "so it takes no first pairs out of a pass", "training.max_steps ends a run earlier"),
        "source": (data.source, "so it can't plan batches of one source", "put the sources into runs of their own"),
        "near_duplicates": (
            None if data.near_duplicates == "keep" else "together",
            "so it can't compare their texts",
            "smart-train data check compares them",
        ),
        "length_window": (data.length_window > 1 or None, "so it can't sort batches by length", "length_groups works"),
    }
    for name, (value, why, instead) in needs.items():
        if value is not None:
            yield Problem(f"data.{name}", f"is {getattr(data, name)}, but {KNOWN}, {why}", f"remove it: {instead}")


# Counting ------------------------------------------------------------------------------------------------------------

Counts = dict[str, Any]  # as JSON: it is part of a checkpoint


def _no_counts() -> Counts:
    return {"rows": 0, "pairs": 0, "left": {}, "notes": {}, "late": {}}


def _add_counts(counts: Counts, parser: RowParser) -> None:
    """Move what a parser has counted to the counts of the pass, so that what is remembered does not grow."""
    for what, places in parser.empty.items():
        if places:
            number, first = counts["left"].get(what, (0, []))
            counts["left"][what] = [number + len(places), [*first, *places][:SHOWN]]
            places.clear()
    for what, number in parser.notes.items():
        counts["notes"][what] = counts["notes"].get(what, 0) + number
    parser.notes.clear()
    for column, where in parser.late.items():
        counts["late"].setdefault(column, where)


def report(name: str, counts: Counts, label: str | None) -> list[str]:
    """Return what was read, what was left out and why, as lines for the log."""
    lines = [f"{name}: {counts['rows']:,} rows read, {counts['pairs']:,} pairs"]
    for what, (number, first) in counts["left"].items():
        more = "; a stream can't add their documents to the negatives of other rows" if what == _positive(label) else ""
        shown = ", ".join(first) + (f" and {number - len(first)} more" if number > len(first) else "")
        lines.append(f"{name}: {number} rows without a {what} are left out: {shown}{more}")
    lines += [f"{name}: {number} {what}" for what, number in counts["notes"].items() if number]
    if counts["late"]:
        first = [f"{column} ({where})" for column, where in sorted(counts["late"].items())]
        what = "columns first appear after the rows that the columns are taken from, and are not read"
        lines.append(f"{name}: {len(first)} {what}; give the first row every column: {first_few(first)}")
    return lines


def _positive(label: str | None) -> str:
    return f"document with a {label} above 0"


# Batches -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a window begins.

    pairs: of all windows before it, in all passes; epoch: its pass; window: its number in the pass
    segment: in the order of the pass; row: rows of it that were read before; counts: of the pass so far
    before: counts of the pass that ended where this one begins
    """

    pairs: int = 0
    epoch: int = 0
    window: int = 0
    segment: int = 0
    row: int = 0
    counts: Counts = field(default_factory=_no_counts)
    before: Counts | None = None


@dataclass(frozen=True)
class StreamedPair:
    """One pair: a parsed row, the number of its document in it, and the pass that it is of."""

    row: ParsedRow
    document: int
    epoch: int

    @property
    def ids(self) -> EpochRow:
        pair = content_id("query", str(self.row.query)), self.row.documents[self.document].id
        return EpochRow(pair, self.epoch)

    @property
    def length(self) -> int:
        return content_size(self.row.documents[self.document].text or "")


@dataclass(frozen=True)
class StreamedBatch:
    """A batch of all W ranks.

    pairs: [S], the shorter documents first; rank r of W takes every W-th from r on
    place: of the window that the first pair is in, where reading may begin again
    lines: reports of passes that ended before or in it
    """

    number: int
    pairs: list[StreamedPair]
    place: Place
    lines: list[str]
    rank: int = 0


class StreamedBatches(Dataset[StreamedBatch]):
    """The batches of a stream, as a torch dataset: item n x W + r is batch n for rank r, in any process the same.

    Reading goes forward, so ask for increasing numbers: a smaller one begins at ``start``.
    size: S; ranks: W, which divides it
    start: a place at or before the first batch that is asked for, as a checkpoint remembers it
    Raises DataError for rows that cannot be read, and where a pass has less than S pairs.
    """

    def __init__(self, stream: RowStream, size: int, ranks: int = 1, seed: int = 0) -> None:
        if size < 1 or size % ranks:
            raise UsageError(f"a batch of {size} pairs cannot be shared evenly by {ranks} ranks; write a multiple")
        self.stream, self.size, self.ranks, self.seed = stream, size, ranks, seed
        self.start = Place()
        self._reading: Iterator[StreamedBatch] | None = None
        self._last = -1

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reading": None, "_last": -1}  # a spawned data worker reads for itself

    def close(self) -> None:
        """Close the file that is being read."""
        self._reading = None

    def resized(self, size: int) -> StreamedBatches:
        """Return itself, with batches of another size."""
        if size != self.size:
            self.size, self._reading = size, None
        return self

    def key(self) -> str:
        """Return what a place depends on."""
        about = [self.stream.fingerprint(), self.seed, self.stream.data.shuffle_buffer]
        return sha256(json.dumps(about).encode()).hexdigest()[:32]

    def __getitem__(self, number: int) -> StreamedBatch:
        batch, rank = divmod(number, self.ranks)
        if self._reading is None or batch <= self._last:
            self._reading = self._batches(batch)
        found = next(one for one in self._reading if one.number == batch)
        self._last = batch
        return replace(found, rank=rank)

    def _batches(self, number: int) -> Iterator[StreamedBatch]:
        """Yield every batch from this number on, without an end."""
        first = number * self.size  # of the next batch's pairs, counted over all passes
        begin = self.start if self.start.pairs <= first else Place()
        places, pending, at = deque[Place](), list[StreamedPair](), begin.pairs  # at: of pending[0]
        ended = deque[Place]()  # where a pass has ended
        for place, pairs in self._windows(begin):
            if place.before:
                ended.append(place)
            places.append(place)
            pending += pairs
            while True:
                gone = min(len(pending), first - at)
                del pending[:gone]
                at += gone
                while len(places) > 1 and places[1].pairs <= at:
                    places.popleft()
                if len(pending) < self.size:
                    break
                lines: list[str] = []
                while ended and ended[0].pairs < first + self.size:
                    end = ended.popleft()
                    lines += self.report(end.epoch - 1, end.before) if end.pairs >= first else []  # else told before
                own = sorted(pending[: self.size], key=lambda pair: pair.length)
                yield StreamedBatch(number, own, places[0], lines)
                number, first = number + 1, first + self.size

    def report(self, epoch: int, counts: Counts | None) -> list[str]:
        """Return what was read in a pass, and what was left out and why, as lines for the log."""
        return report(f"{self.stream.name}, pass {epoch + 1}", counts or _no_counts(), self.stream.columns.label)

    def _windows(self, place: Place) -> Iterator[tuple[Place, list[StreamedPair]]]:
        """Yield (where it begins, its pairs, shuffled) of every window from a place on, pass after pass."""
        parser = self.stream.parser()
        while True:
            rows, counts = self._rows(place), deepcopy(place.counts)
            while True:
                pairs, before, end = list[StreamedPair](), counts["rows"], (0, 0)
                for end, where, cells in islice(rows, self._window_rows(place)):  # noqa: B007 (its last value is used)
                    counts["rows"] += 1
                    row = parser.parse(where, cells)
                    if row.query is not None and row.documents and not any(row.grades):
                        parser.empty.setdefault(_positive(self.stream.columns.label), []).append(where)
                    elif row.query is not None:
                        pairs += [StreamedPair(row, n, place.epoch) for n, grade in enumerate(row.grades) if grade]
                if counts["rows"] == before:
                    break
                _add_counts(counts, parser)
                counts["pairs"] += len(pairs)
                order = self._rng(f"{place.epoch} {place.window}").permutation(len(pairs))
                yield place, [pairs[n] for n in order]
                place = Place(place.pairs + len(pairs), place.epoch, place.window + 1, *end, deepcopy(counts))
            if counts["pairs"] < self.size:
                why = f"a batch takes {self.size} pairs, and a pass has {counts['pairs']}"
                told = "; ".join(self.report(place.epoch, counts))
                raise DataError(f"{self.stream.table.name}: {why} ({told}); write a smaller batch, or give more rows")
            place = Place(place.pairs, place.epoch + 1, before=counts)

    def _rows(self, place: Place) -> Iterator[tuple[tuple[int, int], str, dict[str, Any]]]:
        """Yield ((segment in the order of the pass, rows of it up to here), where, row) from a place to the end of its
        pass."""
        table = self.stream.table
        order = self._rng(f"segments of {place.epoch}").permutation(table.segments)
        for number in range(place.segment, len(order)):
            skip = place.row if number == place.segment else 0
            for rows, (where, cells) in enumerate(table.read_segment(int(order[number]), skip), skip + 1):
                yield (number, rows), where, cells

    def _window_rows(self, place: Place) -> int:
        """Return the rows of a window; in later passes the first is shorter, so that other rows share a window."""
        most = self.stream.data.shuffle_buffer
        if place.window or not place.epoch:
            return most
        return int(self._rng(f"first window of {place.epoch}").integers(most // 2 + 1, most + 1))

    def _rng(self, what: str) -> np.random.Generator:
        return np.random.default_rng(hash_id(f"{self.seed}\n{what}") % 2**64)


class BatchNumbers(Sampler[list[int]]):
    """A torch batch sampler of StreamedBatches: one item a batch, each rank's in turn.  count: batches of a run"""

    batch_size, drop_last = None, True  # as accelerate wants to know

    def __init__(self, count: int, ranks: int = 1) -> None:
        self.count, self.ranks = count, ranks

    def __len__(self) -> int:
        return self.count * self.ranks

    def __iter__(self) -> Iterator[list[int]]:
        return ([number] for number in range(len(self)))

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: passes follow one another within the one epoch of a run."""


# A batch to train on -------------------------------------------------------------------------------------------------


@dataclass
class StreamCollator:
    """A streamed batch -> Batch of one rank, as ``collate`` makes it of the collection of all ranks' rows.

    What a query's known answers and negatives are is what the rows of the batch say.  ``notes["stream"]`` has what a
    checkpoint remembers (the place of the batch) and lines for the log.
    """

    stream: RowStream
    ranks: int
    collate: Collator

    def __call__(self, items: list[StreamedBatch]) -> Batch:
        (batch,) = items
        collection = self.stream.collection({id(pair.row): pair.row for pair in batch.pairs}.values())
        own = batch.pairs[batch.rank :: self.ranks]
        made = replace(self.collate, collection=collection)([pair.ids for pair in own])
        made.notes[NOTE] = (batch.number, asdict(batch.place), batch.lines)
        return made


def as_stream(data: Any, columns: Mapping[str, str] | None = None) -> RowStream | None:
    """Return the stream that training data is, or that is made of a ``datasets.IterableDataset``; None for others.

    columns: keys of a recipe's block ``data`` -> column, of an IterableDataset; a RowStream has its own
    Raises UsageError for columns beside a RowStream.
    """
    import datasets

    if isinstance(data, datasets.IterableDataset):
        return RowStream(IterableTable(data, "train_dataset"), DataBlock(**dict(columns or {})))  # type: ignore[arg-type]
    if isinstance(data, RowStream) and columns:
        raise UsageError("columns is given, and the RowStream has its own; name them in its DataBlock")
    return data if isinstance(data, RowStream) else None
