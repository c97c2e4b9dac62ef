"""Convert large tables of rows to a ``Store`` on disk, once: later opens take seconds and no memory for rows.

A table is converted in two steps. Its rows are parsed in order and written as shards (Arrow files), each complete or
absent, so that a stopped conversion resumes after the last one. Then equal ids are found by their 128-bit keys, bucket
by bucket, and the relations are numbered: arrays of integers alone. Texts are written once. Memory is a shard or a
bucket, and 8 bytes a relation where the rows of one query do not stand together.

The cache is ``smart_train`` in the folder of the `datasets` library's cache (HF_DATASETS_CACHE). Its key is made of
each file's size, modification time and first and last bytes, of the columns that are read, and of VERSION. Reading
all of a file would take as long as a tenth of the conversion, at every start of every rank; a file that is changed in
its middle has another modification time.
"""

from __future__ import annotations

import json
import logging
import lzma
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from smart_train.config.schema import DataBlock
from smart_train.core.atomic_io import replacing
from smart_train.core.disk import reserve
from smart_train.core.errors import DataError
from smart_train.core.progress_log import ProgressLog
from smart_train.data.arrow_shards import Shards, write_shard
from smart_train.data.collection import Document, content_id, first_few
from smart_train.data.identity import content_hash, stored_hash
from smart_train.data.readers.row_builder import UNKNOWN
from smart_train.data.readers.row_parser import ParsedRow, RowParser, choose_columns, two_contents
from smart_train.data.stored_collection import (
    NONE,
    Names,
    StoredCollection,
    id_key,
    id_keys,
    image_cells,
    load_array,
    save_array,
    select_names,
)
from smart_train.data.tables import COMPRESSED, StoredTable, Table, may_hold_images, open_bytes, suffix

logger = logging.getLogger(__name__)
machine = logging.getLogger(f"{__name__}.machine")  # warnings about the cache and memory, not about the data

VERSION = 6  # of the files of a store
SMALL_BYTES = 64 << 20  # smaller tables are held in memory as dicts: 0.2 GB at most, and nothing is written
SMALL_ROWS = 50_000  # the same for tables whose number of rows is known
SHARD_ROWS, SHARD_TEXT = 20_000, 64 << 20  # a shard ends after so many rows or characters: 0.3 GB while it is made
BUCKET = 2_000_000  # keys that are sorted at once: 0.2 GB
SAMPLE = 1 << 20  # bytes of a file that tell how long its lines are
EDGE = 1 << 16  # bytes at either end of a file that its key is made of
DONE = "complete.json"
_NO_SCORE = float("nan")

T = TypeVar("T", contravariant=True)
Keys = NDArray[np.uint64]
Places = NDArray[np.int64]


@dataclass
class ParquetRows:
    """Rows of Parquet files, read a few at a time; only the columns ``reads`` are (None = all)."""

    files: list[Path]
    reads: list[str] | None = None

    def __post_init__(self) -> None:
        from pyarrow.parquet import read_metadata

        try:
            found = [read_metadata(file) for file in self.files]
        except Exception as error:  # Arrow raises OSError, ValueError ... by what is damaged
            raise DataError(f"{self.files[0]}: not a readable parquet file ({error})") from error
        self.rows = sum(one.num_rows for one in found)
        # (file, its row group, rows of all files before the group)
        self.groups: list[tuple[int, int, int]] = []
        before = 0
        for number, one in enumerate(found):
            for group in range(one.num_row_groups):
                self.groups.append((number, group, before))
                before += one.row_group(group).num_rows
        self.schemas = [one.schema.to_arrow_schema() for one in found]
        self.name = str(self.files[0] if len(self.files) == 1 else self.files[0].parent)

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for schema in self.schemas for name in schema.names))

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for segment in range(self.segments):
            yield from self.read_segment(segment)

    @property
    def segments(self) -> int:
        """Return how many parts there are that can be read in any order: the row groups of all files."""
        return len(self.groups)

    def read_segment(self, segment: int, skip: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
        """Read the rows of a row group, after the first ``skip``."""
        from pyarrow.parquet import ParquetFile

        place, group, number = self.groups[segment]
        file, schema = self.files[place], self.schemas[place]
        names = [name for name in schema.names if self.reads is None or name in self.reads]
        try:
            # A buffer, so that of a group of a million rows a few pages are in memory and not all of them.
            with ParquetFile(file, buffer_size=1 << 20) as stored:
                for batch in stored.iter_batches(1000, row_groups=[group], columns=names):
                    rows = batch.slice(min(skip, len(batch)))
                    number, skip = number + len(batch) - len(rows), skip - (len(batch) - len(rows))
                    for row in rows.to_pylist():
                        yield f"{self.name}: row {number}", row
                        number += 1
        except Exception as error:  # also UnicodeDecodeError, of a damaged cell
            raise DataError(f"{file}: not a readable parquet file ({error})") from error

    def folder(self, where: str) -> Path:
        return self.files[0].parent


LargeTable = Table | ParquetRows


def open_large(source: Any) -> ParquetRows | None:
    """Open large Parquet files without images so that they are read a few rows at a time; None for anything else."""
    if not isinstance(source, list) or {suffix(file) for file in source} != {".parquet"}:
        return None
    table = ParquetRows(sorted(source))
    if len(table) <= SMALL_ROWS and not many_bytes(source):
        return None
    images = any(may_hold_images(column.type) for schema in table.schemas for column in schema)
    return None if images else table


def many_bytes(files: list[Path]) -> bool:
    return sum(file.stat().st_size * (4 if file.suffix.lower() in COMPRESSED else 1) for file in files) > SMALL_BYTES


def read(table: LargeTable, data: DataBlock, name: str, limit: int | None = None) -> StoredCollection | None:
    """Return the collection of a large table, converted before or now; None where it is to be read into memory.

    That are small tables, few rows of a large one, and the first rows of a table whose negatives name documents by
    their ids (``data.id``), which may be in rows behind them.
    limit: most pairs that are read, in the order of the rows
    Raises as ``read_rows``, and DataError where nothing can be written.
    """
    columns, _ = choose_columns(table.columns, data)
    if not is_large(table) or columns is None or (limit is not None and (columns.id or limit <= SMALL_ROWS)):
        return None
    if isinstance(table, StoredTable) and (set(columns.names()) - {columns.image}) & {*table.images}:
        return None  # pictures where a text may stand
    parser = RowParser(table, data)  # type: ignore[arg-type]
    if isinstance(table, ParquetRows):
        table.reads = parser.columns.names()
    about = {
        "version": VERSION,
        "files": rows_of(table),
        "columns": asdict(columns),
        "limit": limit,
        # images are read from paths, so that the place of the files counts as well
        "place": [str(table.folder("").resolve()), data.allow_outside] if columns.image else None,
    }
    folder, counts = convert(about, name, _Conversion(parser, name, limit, rows_estimate(table)).run)
    _report(name, counts)
    images = table.image_column(columns.image) if isinstance(table, StoredTable) else None
    return StoredCollection.open(folder, name, images)


def convert(about: dict[str, Any], name: str, run: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a conversion, made before or now, and what it remembers.

    about: what the conversion depends on; run: fills the folder, and returns what to remember
    Only one process of the machine converts, the others wait.  Raises DataError where nothing can be written.
    """
    folder = cache_folder() / sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
    if not _is_complete(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _one_process(folder, name):
                if not _is_complete(folder):
                    _fill(folder, run)
        except OSError as error:
            what = f"{name} is converted in {folder}, and nothing can be written there ({error})"
            raise DataError(f"{what}; free space, or name another folder in HF_DATASETS_CACHE") from error
    return folder, json.loads((folder / DONE).read_text("utf-8"))


def _fill(folder: Path, run: Callable[[Path], dict[str, Any]]) -> None:
    (folder / DONE).unlink(missing_ok=True)
    remembered = run(folder)
    for file in [*folder.glob("shard-*"), *folder.glob("*.partial")]:
        file.unlink(missing_ok=True)
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.suffix != ".txt"}
    sizes = {name: size for name, size in sizes.items() if name not in ("lock", DONE)}
    with replacing(folder / DONE) as part:
        part.write_text(json.dumps({**remembered, "files": sizes}), "utf-8")


def warn_of_memory(name: str, kind: str, files: list[Path]) -> None:
    """Warn where a format that is read into memory at any size is large."""
    if many_bytes(files):
        what = f"the format {kind} is read into memory, about 2 kB a row and process, and these files are large"
        machine.warning("%s: %s; write it as a BEIR collection, which is converted to files", name, what)


def cache_folder() -> Path:
    """Return the folder of all conversions."""
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE) / "smart_train"


def _is_complete(folder: Path) -> bool:
    """Return whether all files of a conversion are there, of the sizes that they had; warn where one was changed."""
    done = folder / DONE
    if not done.is_file():
        return False
    sizes: dict[str, int] = json.loads(done.read_text("utf-8"))["files"]
    there = {file.name: file.stat().st_size for file in folder.iterdir()}
    wrong = [name for name, size in sizes.items() if there.get(name) != size]
    if wrong:
        machine.warning(
            "%s: %d files are missing or cut off (%s); converting anew", folder, len(wrong), first_few(wrong)
        )
    return not wrong


def _one_process(folder: Path, name: str) -> Any:
    """Return a lock that one process of the machine holds; say so where another one does."""
    lock = FileLock(folder / "lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        logger.info("%s is being converted by another process; waiting for it", name)
        return lock.acquire()


def both_ends(file: Path) -> bytes:
    """Return the first and the last EDGE bytes of a file; of a short file they overlap."""
    with file.open("rb") as stream:
        first = stream.read(EDGE)
        stream.seek(max(0, file.stat().st_size - EDGE))
        return first + stream.read(EDGE)


def signature(file: Path) -> list[Any]:
    stat = file.stat()
    return [file.name, stat.st_size, stat.st_mtime_ns, sha256(both_ends(file)).hexdigest()]


def rows_of(table: LargeTable) -> Any:
    """Return what the rows of a table depend on, for the key of a conversion."""
    return table.dataset._fingerprint if isinstance(table, StoredTable) else [signature(file) for file in table.files]


def is_large(table: LargeTable) -> bool:
    """Return whether a table takes too much memory. Parquet that ``open_large`` opened does; other tables tell their
    rows, or their bytes."""
    if isinstance(table, StoredTable):
        return len(table) > SMALL_ROWS
    return isinstance(table, ParquetRows) or many_bytes(table.files)


def rows_estimate(table: LargeTable) -> int:
    """Return how many rows there are, for the progress; of text files about as many."""
    files = [] if isinstance(table, StoredTable) else table.files
    if not files or suffix(files[0]) in (".parquet", ".arrow"):
        return len(table)  # type: ignore[arg-type]
    with files[0].open("rb") as raw:
        try:
            if files[0].suffix.lower() not in COMPRESSED:
                lines, read = raw.read(SAMPLE).count(b"\n"), raw.tell()
            else:
                with open_bytes(files[0]) as stream:  # texts shrink to about a quarter
                    sample = stream.read(SAMPLE)
                    lines, read = sample.count(b"\n"), len(sample) // 4
        except (OSError, EOFError, zlib.error, lzma.LZMAError):  # a damaged file, which reading its rows tells better
            return 1
        return int(sum(file.stat().st_size for file in files) * max(1, lines) / max(1, read))


def _report(name: str, counts: dict[str, Any]) -> None:
    for what, (count, first) in counts["left_out"].items():
        logger.warning("%s: %d rows without a %s are left out: %s", name, count, what, first)
    for line in counts["lines"]:
        logger.info("%s: %s", name, line)
    for line in counts["warnings"]:
        logger.warning("%s: %s", name, line)


# Parsing: rows to shards ---------------------------------------------------------------------------------------------


def write_entries(file: Path, types: dict[str, Any], cells: Sequence[tuple[Any, ...]]) -> None:
    """Write documents or queries with the keys of their ids.  types: column -> Arrow type; the id comes first"""
    import pyarrow as pa

    columns: Any = zip(*cells, strict=True) if cells else [()] * len(types)
    arrays = {name: pa.array(values, kind) for (name, kind), values in zip(types.items(), columns, strict=True)}
    keys = id_keys([one[0] for one in cells])
    with replacing(file) as part:
        write_shard(part, {**arrays, "high": pa.array(keys[:, 0]), "low": pa.array(keys[:, 1])})


class _Entries:
    """Documents or queries of one shard, each id once: its cells, the id first."""

    def __init__(self) -> None:
        self.place: dict[str, int] = {}
        self.cells: list[tuple[Any, ...]] = []

    def add(self, id: str, *cells: Any, shown: Any) -> int:
        """shown: the text, or the document whose ``stored_hash`` is taken"""
        found = self.place.get(id)
        if found is None:
            found = self.place[id] = len(self.cells)
            self.cells.append((id, *cells, content_hash(shown) if isinstance(shown, str) else stored_hash(shown)))
        return found

    def add_own(self, document: Document, row: int, *cells: Any) -> int:
        """Add a document with an id of its own, which may be there with another content: that is an entry, too.

        row: of the shard; NONE = another content does not matter
        """
        shown = stored_hash(document)
        key = f"{document.id}\n{row == NONE}\n{shown}\n{document.text}"
        found = self.place.get(key)
        if found is None:
            found = self.place[key] = len(self.cells)
            self.cells.append((document.id, *cells, shown, row))
        return found


class _Shard:
    """The rows between two writes.  Documents of pairs come before those that only negatives name.

    own: documents have ids of their own; negatives are then names, written as -1 - their place
    """

    def __init__(self, own: bool = False) -> None:
        self.own, self.names = own, dict[str, int]()
        self.documents, self.others, self.queries = _Entries(), _Entries(), _Entries()
        # query and document by their places in the shard, and a score or NaN
        self.pairs, self.negatives = (array("i"), array("d")), (array("i"), array("d"))
        self.grades = array("b")  # of the pairs
        self.rows = self.text = 0
        self.scored = False

    def add(self, row: ParsedRow) -> None:
        self.rows += 1
        if row.query is None or not row.documents:
            for one in row.documents if self.own else ():  # which a negative may name
                self._document(self.others, one, NONE)
            return
        self.scored |= row.scores is not None
        query = self.queries.add(content_id("query", row.query), row.query, len(row.query), shown=row.query)
        scores = row.scores or [None] * (len(row.documents) + len(row.negatives))
        for one, grade, score in zip(row.documents, row.grades, scores, strict=False):
            entries, relation = (self.documents, self.pairs) if grade else (self.others, self.negatives)
            self._relate(relation, query, self._document(entries, one, self.rows - 1), score)
            if grade:
                self.grades.append(grade)
        for text, score in zip(row.negatives, scores[len(row.documents) :], strict=True):
            self.text += len(text)
            if self.own:
                place = -1 - self.names.setdefault(text, len(self.names))
            else:
                place = self.others.add(*text_cells(text), shown=text)
            self._relate(self.negatives, query, place, score)

    def _document(self, entries: _Entries, one: Document, row: int) -> int:
        text, (image, *where) = one.text or "", image_cells(one.image)
        self.text += len(text)
        cells = (one.text, image, one.file, one.page, one.source, *where, len(text) if image is None else 0)
        if self.own:
            return entries.add_own(one, row, *cells)
        return entries.add(one.id, *cells, shown=text if image is None else one.id)  # the id is a hash of its bytes

    @staticmethod
    def _relate(relation: tuple[array[int], array[float]], query: int, document: int, score: float | None) -> None:
        relation[0].append(query)
        relation[0].append(document)
        relation[1].append(_NO_SCORE if score is None else score)

    def full(self) -> bool:
        return self.rows >= SHARD_ROWS or self.text >= SHARD_TEXT

    def write(self, folder: Path, number: int) -> dict[str, Any]:
        """Write the shard's files; return what to remember of it."""
        import pyarrow as pa

        types = document_types() | ({"row": pa.int64()} if self.own else {})
        write_entries(folder / f"documents-{2 * number:06d}.arrow", types, self.documents.cells)
        write_entries(folder / f"documents-{2 * number + 1:06d}.arrow", types, self.others.cells)
        if self.own:
            write_shard(folder / f"shard-names-{number:06d}.arrow", {"text": pa.array(self.names, pa.large_string())})
        query_types = {"id": pa.string(), "text": pa.large_string(), "length": pa.int64(), "shown": pa.int64()}
        write_entries(folder / f"queries-{number:06d}.arrow", query_types, self.queries.cells)
        for name, (places, scores) in (("pairs", self.pairs), ("negatives", self.negatives)):
            np.save(folder / f"shard-{name}-{number:06d}.npy", np.frombuffer(places, np.int32).reshape(-1, 2))
            if self.scored:
                np.save(folder / f"shard-{name}-scores-{number:06d}.npy", np.frombuffer(scores, np.float64))
        np.save(folder / f"shard-pairs-grades-{number:06d}.npy", np.frombuffer(self.grades, np.int8))
        counts = {"pairs": len(self.pairs[1]), "negatives": len(self.negatives[1])}
        return {"rows": self.rows, "scored": self.scored, **counts}


def document_types() -> dict[str, Any]:
    """Return the columns of documents of rows, with their Arrow types."""
    import pyarrow as pa

    texts = dict.fromkeys(("image", "file", "page", "source"), pa.string()) | {"page": pa.int64()}
    numbers = dict.fromkeys(("image_row", "image_bytes", "length", "shown"), pa.int64())
    return {"id": pa.string(), "text": pa.large_string(), **texts, **numbers}


def text_cells(text: str) -> tuple[Any, ...]:
    """Return the cells of a document that is a text alone, without ``shown``."""
    return (content_id("text", text), text, *[None] * 6, len(text))


class Shard(Protocol[T]):
    """What a conversion writes at once."""

    rows: int

    def add(self, row: T) -> None: ...
    def full(self) -> bool: ...
    def write(self, folder: Path, number: int) -> dict[str, Any]:
        """Write the files; return what to remember, ``rows`` among it."""


@dataclass
class ShardedPass(Generic[T]):
    """Write rows as shards, each complete or absent, so that a stopped pass resumes after the last one.

    rows: those after the first so many; make: an empty shard; total: about how many rows there are
    state: what is remembered besides, of all rows so far; recall: takes it back where a pass resumes
    """

    folder: Path
    name: str
    rows: Callable[[int], Iterator[T]]
    make: Callable[[], Shard[T]]
    total: int
    state: Callable[[], dict[str, Any]] = dict
    recall: Callable[[dict[str, Any]], None] = lambda state: None
    resumes: bool = True
    is_last: Callable[[T], bool] = lambda row: False

    def run(self) -> list[dict[str, Any]]:
        """Write the shards that are not there yet; return what to remember of all."""
        kept = self.folder / "shards.partial"
        state = json.loads(kept.read_text("utf-8")) if kept.is_file() and self.resumes else {"shards": []}
        done: list[dict[str, Any]] = state.pop("shards")
        if done:
            self.recall(state)
        before = sum(one["rows"] for one in done)
        if before:
            logger.info("%s: resuming after %d rows that were converted before", self.name, before)
        else:
            logger.info("%s: converting about %d rows, once, in %s", self.name, self.total, self.folder)
        pace = ProgressLog(f"{self.name}: rows converted", max(self.total, before), before, every=10.0)
        shard = self.make()

        def flush() -> Shard[T]:
            done.append(shard.write(self.folder, len(done)))
            with replacing(kept) as part:
                part.write_text(json.dumps({"shards": done, **self.state()}), "utf-8")
            pace.add(shard.rows)
            return self.make()

        for row in self.rows(before):
            shard.add(row)
            if shard.full():
                shard = flush()
            if self.is_last(row):
                break
        if shard.rows:
            flush()
        return done


class _Conversion:
    """Converts one table."""

    folder: Path
    lost: str | None = None

    def __init__(self, parser: RowParser, name: str, limit: int | None, rows: int) -> None:
        self.parser, self.name, self.limit, self.rows = parser, name, limit, rows
        self.pairs: set[tuple[str, str]] = set()

    def run(self, folder: Path) -> dict[str, Any]:
        """Fill the folder; return what to report whenever it is opened."""
        self.folder = folder
        done = self._parse()
        if not any(one["pairs"] for one in done):
            raise DataError(f"{self.parser.table.name}: {self.parser.nothing()}")
        logger.info("%s: %d rows are parsed; numbering their texts", self.name, sum(one["rows"] for one in done))
        counted = self._number(done)
        left_out = {what: (len(places), first_few(places)) for what, places in self.parser.empty.items() if places}
        warnings = []
        if self.parser.late:
            first = [f"{column} ({where})" for column, where in sorted(self.parser.late.items())]
            what = "columns first appear after the rows that the columns are taken from, and are not read"
            warnings.append(f"{len(first)} {what}; give the first row every column: {first_few(first)}")
        if self.lost:
            warnings.append(self.lost)
        if counted["relevant"]:
            what = "negatives are also positives of their query, and are left out of its negatives"
            warnings.append(f"{counted['relevant']} {what}")
        if counted["rescored"]:
            rescored, column = counted["rescored"], self.parser.columns.scores
            warnings.append(f"{rescored} pairs have two scores in {column}; the last counts")
        if counted["alone"]:
            what = f"queries have no document with a {self.parser.columns.label} above 0 and are left out"
            warnings.append(f"{counted['alone']} {what}")
        return {"left_out": left_out, "warnings": warnings, "lines": self.parser.lines()}

    def _parse(self) -> list[dict[str, Any]]:
        parser = self.parser

        def recall(state: dict[str, Any]) -> None:
            parser.empty, parser.late = state["empty"], state["late"]
            parser.notes.update(state["notes"])

        def is_last(row: ParsedRow) -> bool:
            if self.limit is None or row.query is None:
                return False
            self.pairs.update((row.query, document.id) for document in row.documents)
            return len(self.pairs) >= self.limit

        return ShardedPass(
            self.folder,
            self.name,
            parser.rows,
            lambda: _Shard(bool(parser.columns.id)),
            self.rows,
            lambda: {"empty": parser.empty, "late": parser.late, "notes": parser.notes},
            recall,
            self.limit is None,
            is_last,
        ).run()

    def _load(self, number: int, name: str) -> NDArray[Any]:
        found: NDArray[Any] = np.load(self.folder / f"shard-{name}-{number:06d}.npy")
        return found

    # Numbering: shards to rows

    def _number(self, done: list[dict[str, Any]]) -> dict[str, int]:
        """Write the arrays of the store; return what ``_write_relations`` counts."""
        folder, shards = self.folder, len(done)
        queries = Shards([folder / f"queries-{n:06d}.arrow" for n in range(shards)])
        # Documents of pairs come first, as they are numbered, then those that only negatives name.
        first = [2 * n for n in range(shards)]
        files = [folder / f"documents-{n:06d}.arrow" for n in (*first, *(n + 1 for n in first))]
        documents = Shards(files)
        query_row, query_count = number_entries(folder, "queries", queries, queries.starts[:-1])
        # A store reads the files in the order of their names, and counts their entries in it.
        by_name = Shards(sorted(files)).starts
        begins = by_name[[*first, *(n + 1 for n in first)]]
        document_row, document_count = number_entries(folder, "documents", documents, begins)
        scored = any(one["scored"] for one in done)
        named: list[NDArray[Any]] = []
        unknown: dict[str, int] = {}
        if self.parser.columns.id:
            self._check_same(done, documents, document_row)
            named, unknown, document_count = self._find_names(
                done, document_count, document_row[: documents.starts[shards]]
            )
        related = {}
        for name, offset in (("pairs", 0), ("negatives", shards)):
            total = sum(one[name] for one in done)
            query = scratch(self.folder, f"{name}.queries", np.int32, total)
            document = scratch(self.folder, f"{name}.documents", np.int32, total)
            scores = np.full(total, np.nan) if scored else None
            begin = 0
            for n, one in enumerate(done):
                local, end = self._load(n, name), begin + one[name]
                query[begin:end] = query_row[local[:, 0] + queries.starts[n]]
                place = local[:, 1]
                is_name, own = place < 0, np.empty(len(place), np.int32)
                own[~is_name] = document_row[place[~is_name] + documents.starts[n + offset]]
                if is_name.any():
                    own[is_name] = named[n][-1 - place[is_name]]
                document[begin:end] = own
                if scores is not None and one["scored"]:
                    scores[begin:end] = self._load(n, f"{name}-scores")
                begin = end
            grades = [self._load(n, "pairs-grades") for n in range(shards)] if name == "pairs" else []
            grade = np.concatenate(grades) if grades else None
            if (query[1:] < query[:-1]).any():
                by_query = np.argsort(query, kind="stable")
                query, document = query[by_query], document[by_query]
                scores = None if scores is None else scores[by_query]
                grade = None if grade is None else grade[by_query]
            related[name] = query, document, scores, grade
        del document_row, query_row
        lost = self._leave_out(related, list(unknown)) if unknown else None
        if self.parser.columns.id:
            document_count = self._keep_named(related, document_count)
        answered = np.zeros(query_count, np.bool_)
        answered[related["pairs"][0]] = True
        alone = int((~answered).sum())
        if alone:
            related = {name: _renumbered(relation, answered) for name, relation in related.items()}
            select_names(Names(folder, "queries"), folder, "queries", np.flatnonzero(answered))
        counted = self._write_relations(related, query_count - alone, document_count) | {"alone": alone}
        if lost and not counted["negatives"]:
            fix = "name the column that they are ids of in data.id, or leave it empty where they are texts"
            raise DataError(f"{self.parser.table.name}: all {lost}; {fix}")
        self.lost = lost
        return counted

    # Documents with ids of their own

    def _check_same(self, done: list[dict[str, Any]], documents: Shards, row: NDArray[np.int32]) -> None:
        """Raise DataError, naming the first row, for an id that is there again with another content."""
        begins = np.cumsum([0, *(one["rows"] for one in done)])
        begins = np.concatenate([begins[:-1], begins[:-1]])  # of documents of pairs, then of the others
        first = np.full(len(documents), len(documents), np.int64)  # the earliest row of each document, and its entry
        place = np.arange(len(documents))
        own = documents.numbers(place, "row")
        shard = np.searchsorted(documents.starts, place, side="right") - 1
        at = np.where(own == NONE, NONE, own + begins[shard])
        kept = np.flatnonzero(at != NONE)
        order = kept[np.lexsort((at[kept], row[kept]))]
        new = np.r_[True, row[order][1:] != row[order][:-1]][: len(order)]
        first = order[new][np.cumsum(new) - 1]
        again = np.flatnonzero(order != first)
        wrong = [
            int(at[entry])
            for entry, one, other in zip(
                order[again].tolist(),
                documents.blocks(order[again], "text", "shown"),
                documents.blocks(first[again], "text", "shown"),
                strict=True,
            )
            if one != other
        ]
        if wrong:
            where, _ = next(islice(iter(self.parser.table), min(wrong), None))
            entry = order[np.flatnonzero(at[order] == min(wrong))[0]]
            raise two_contents(where, documents.value(int(entry), "id"))

    def _find_names(
        self, done: list[dict[str, Any]], count: int, pairs: NDArray[np.int32]
    ) -> tuple[list[NDArray[Any]], dict[str, int], int]:
        """Return of each shard the document that each name is of; of unknown names -2 - their number; and the number of
        documents, with those that are written here: names that are texts. As ``rows._Builder`` understands them.

        pairs: documents that are in pairs
        """
        store = Names(self.folder, "documents")
        texts = [_texts(self.folder / f"shard-names-{n:06d}.arrow") for n in range(len(done))]
        found = [store.find_all(names) for names in texts]
        are_ids = any((rows != NONE).any() for rows in found)
        missing = [np.flatnonzero(rows == NONE) for rows in found]
        if not any(map(len, missing)):
            return found, {}, count
        rows = np.unique(pairs)
        rows = rows[[image is None and bool(text) for image, text in store.blocks(rows, "image", "text")]]
        hashes = id_keys([text for (text,) in store.blocks(rows, "text")])[:, 0]
        order = np.argsort(hashes, kind="stable")
        by_text = hashes[order], rows[order]
        several = False
        for names, own, places in zip(texts, found, missing, strict=True):
            for place in places.tolist():
                own[place] = _find_text(store, by_text, names[place])
                several |= bool(own[place] != NONE) or len(names[place].split()) > 1
        are_ids = are_ids or not several
        numbers: dict[str, int] = {}
        for names, own in zip(texts, found, strict=True):
            for place in np.flatnonzero(own == NONE).tolist():
                number = numbers.setdefault(names[place], len(numbers))
                own[place] = -2 - number if are_ids else count + number
        if are_ids:
            return found, numbers, count
        import pyarrow as pa

        cells = [(*text_cells(text), content_hash(text), NONE) for text in numbers]
        append_entries(self.folder, store, "documents", "text", {**document_types(), "row": pa.int64()}, cells)
        return found, {}, count + len(numbers)

    def _leave_out(self, related: dict[str, Any], unknown: list[str]) -> str | None:
        """Leave out the negatives that name no document, in place; return how many they are, and the first."""
        query, document, *_ = related["negatives"]
        lost = document <= -2
        codes = codes_of(query[lost], -2 - document[lost], len(unknown))
        first = [unknown[int(code)] for code in codes[keep_first(codes)][:6] % len(unknown)]
        related["negatives"] = tuple(None if part is None else part[~lost] for part in related["negatives"])
        count = len(np.unique(codes))
        first = [*first, *[""] * (count - len(first))]
        return f"{count} {UNKNOWN}: {first_few(first)}" if count else None

    def _keep_named(self, related: dict[str, Any], count: int) -> int:
        """Number documents that no pair and no negative names behind the others, in place; return their number."""
        used = np.zeros(count, np.bool_)
        for relation in related.values():
            used[relation[1]] = True
        order = np.r_[np.flatnonzero(used), np.flatnonzero(~used)]
        new = np.empty(count, np.int32)
        new[order] = np.arange(count)
        select_names(Names(self.folder, "documents"), self.folder, "documents", order)
        save_array(self.folder, "documents.count", np.array([int(used.sum())], np.int64))
        for name, (query, document, *rest) in related.items():
            related[name] = query, new[document], *rest
        return count

    def _write_relations(self, related: dict[str, Any], queries: int, documents: int) -> dict[str, int]:
        """Write each query's documents once, with the highest grade of each pair and its last score, and without
        positives among the negatives; return how many scores were replaced by a later one, and how many negatives were
        positives."""
        counts = {name: np.zeros(queries, np.int32) for name in ("qrels", "negatives", "teacher")}
        rescored = relevant = 0

        def add(name: str, query: NDArray[Any], document: NDArray[Any], values: NDArray[Any]) -> None:
            np.add.at(counts[name], query, 1)
            save_array(self.folder, f"{name}.documents", document.astype(np.int32), append=True)
            save_array(self.folder, f"{name}.values", values, append=True)

        for name in counts:
            for what in ("documents", "values"):
                for file in self.folder.glob(f"{name}.{what}.*"):
                    file.unlink()
        for begin, end in _query_blocks(related["pairs"][0], related["negatives"][0], queries):
            pair, negative = (_between(related[name], begin, end) for name in ("pairs", "negatives"))
            positives = codes_of(pair[0], pair[1], documents)
            kept = keep_first(positives)
            add("qrels", pair[0][kept], pair[1][kept], highest(positives, pair[3])[kept])
            codes = codes_of(negative[0], negative[1], documents)
            kept = keep_first(codes)
            is_positive = np.isin(codes[kept], positives)
            relevant += int(is_positive.sum())
            kept = kept[~is_positive]
            add("negatives", negative[0][kept], negative[1][kept], np.empty(0, np.int8))
            if pair[2] is not None:
                *scored, replaced = _last_scores(pair, negative, documents)
                add("teacher", *scored)
                rescored += replaced
        for name, found in counts.items():
            offsets = np.zeros(queries + 1, np.int64)
            np.cumsum(found, out=offsets[1:])
            save_array(self.folder, f"{name}.offsets", offsets)
        # the files are there, should no query have one
        save_array(self.folder, "teacher.documents", np.empty(0, np.int32), append=True)
        save_array(self.folder, "teacher.values", np.empty(0, np.float64), append=True)
        return {"rescored": rescored, "relevant": relevant, "negatives": int(counts["negatives"].sum())}


def _renumbered(relation: Any, kept: NDArray[np.bool_]) -> Any:
    """Return only the entries of the queries that are kept [Q], and number these anew."""
    here = kept[relation[0]]
    number = np.cumsum(kept, dtype=np.int32) - 1
    query, *rest = (None if part is None else part[here] for part in relation)
    return number[query], *rest


def scratch(folder: Path, name: str, kind: Any, size: int) -> NDArray[Any]:
    """Return an array in a file, which is removed at the end: the system may write its pages to the disk."""
    if not size:
        return np.empty(0, kind)
    file = folder / f"{name}.partial"
    reserve(file, size * np.dtype(kind).itemsize)
    return np.asarray(np.memmap(file, kind, "r+", shape=(size,)))


def _between(relation: Any, begin: int, end: int) -> Any:
    """Return the entries of the queries from ``begin`` to ``end``."""
    low, high = np.searchsorted(relation[0], [begin, end])
    return tuple(None if part is None else part[low:high] for part in relation)


def _query_blocks(pairs: NDArray[Any], negatives: NDArray[Any], queries: int, size: int = 1 << 21) -> Any:
    """Yield (first, end) of blocks of queries with about ``size`` entries each, one query at least."""
    begin = 0
    while begin < queries:
        end = queries
        for query in (pairs, negatives):
            place = int(np.searchsorted(query, begin)) + size
            if place < len(query):
                end = min(end, int(query[place]))
        end = max(end, begin + 1)
        yield begin, end
        begin = end


def codes_of(query: NDArray[Any], document: NDArray[Any], documents: int) -> Places:
    """Return one number for each (query, document)."""
    return query.astype(np.int64) * documents + document


def keep_first(codes: Places) -> Places:
    """Return the places of the first of equal numbers, in order."""
    first = np.unique(codes, return_index=True)[1]
    first.sort()
    return first


def highest(codes: Places, grades: NDArray[Any]) -> NDArray[Any]:
    """Return of each number the highest grade that an equal number has."""
    if (grades == 1).all():
        return grades
    found, place = np.unique(codes, return_inverse=True)
    best = np.full(len(found), np.iinfo(grades.dtype).min, grades.dtype)
    np.maximum.at(best, place, grades)
    return best[place]


def _last_scores(pair: Any, negative: Any, documents: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], int]:
    """Return (query, document, score) of all scored entries, in the order of queries, then positives, then negatives;
    of two scores of a pair the last; and how often a score was replaced by another one."""
    query, document, score = (np.concatenate([pair[at], negative[at]]) for at in range(3))
    there = np.flatnonzero(~np.isnan(score))
    there = there[np.argsort(query[there], kind="stable")]
    query, document, score = query[there], document[there], score[there]
    codes = codes_of(query, document, documents)
    order = np.argsort(codes, kind="stable")
    new = np.r_[True, codes[order][1:] != codes[order][:-1]][: len(order)]
    replaced = int((~new[1:] & (score[order][1:] != score[order][:-1])).sum())
    first, last = order[new], order[np.r_[new[1:], True][: len(order)]]
    by_place = np.argsort(first)
    first, last = first[by_place], last[by_place]
    return query[first], document[first], score[last], replaced


def _texts(file: Path) -> list[str]:
    shards = Shards([file])
    return shards.values(np.arange(len(shards)), "text")


def _find_text(store: Names, by_text: tuple[Keys, NDArray[Any]], text: str) -> int:
    """Return the first document that is this text; NONE where there is none.  by_text: sorted hashes, and rows"""
    hashed = np.uint64(id_key(text)[0])
    begin, end = (int(np.searchsorted(by_text[0], hashed, side)) for side in ("left", "right"))  # type: ignore[call-overload]
    return next((int(row) for row in by_text[1][begin:end] if store.value(int(row), "text") == text), NONE)


def append_entries(
    folder: Path, source: Names, name: str, what: str, types: dict[str, Any], cells: Sequence[tuple[Any, ...]]
) -> None:
    """Write NAME-WHAT.arrow, and the arrays of ``source`` with its entries behind the others."""
    write_entries(folder / f"{name}-{what}.arrow", types, cells)
    keys = Shards([folder / f"{name}-{what}.arrow"]).numbers(np.arange(len(cells)), "high", np.uint64)
    hashes, places = (
        np.r_[source.hashes, keys],
        np.r_[source.places, len(source) + np.arange(len(cells), dtype=np.int32)],
    )
    order = np.argsort(hashes, kind="stable")
    entries = np.r_[source.rows, len(source.entries) + np.arange(len(cells))]
    for end, values in (("", entries), (".hashes", hashes[order]), (".rows", places[order].astype(np.int32))):
        save_array(folder, f"{name}{end}", values)


def number_entries(folder: Path, name: str, shards: Shards, begins: Places) -> tuple[NDArray[np.int32], int]:
    """Number the distinct ids of all shards by their first appearance; return the row of every entry, and their number.

    begins: [shards], what the first entry of each shard is called in the array NAME, which is written here with the
    sorted keys.  Keys are compared bucket by bucket; a bucket holds the keys of one range, so that what the buckets
    give one after another is sorted.
    """
    total = len(shards)
    first = scratch(folder, f"{name}.entries", np.int64, total)
    for what in ("", ".hashes", ".first"):
        for file in folder.glob(f"{name}{what}.[iu][48]"):
            file.unlink()
    for high, low, at in _buckets(folder, shards, max(1, -(-total // BUCKET))):
        order = np.lexsort((at, low, high))
        high, low, at = high[order], low[order], at[order]
        new = np.r_[True, (high[1:] != high[:-1]) | (low[1:] != low[:-1])][: len(order)]
        first[at] = at[new][np.cumsum(new) - 1]
        save_array(folder, f"{name}.hashes", high[new], append=True)
        save_array(folder, f"{name}.first", at[new], append=True)
    row, count = scratch(folder, f"{name}.numbers", np.int32, total), 0
    for begin in range(0, total, BUCKET):
        some = np.asarray(first[begin : begin + BUCKET])
        place = np.arange(begin, begin + len(some))
        own = some == place
        row[place[own]] = count + np.arange(int(own.sum()))
        row[begin : begin + len(some)] = row[some]  # the first appearance of each is at or before it
        shard = np.searchsorted(shards.starts, place[own], side="right") - 1
        save_array(folder, name, place[own] - shards.starts[shard] + begins[shard], append=True)
        count += int(own.sum())
    places = load_array(folder, f"{name}.first")
    rows = folder / f"{name}.rows.i4"
    rows.unlink(missing_ok=True)
    for begin in range(0, count, BUCKET):
        save_array(folder, f"{name}.rows", row[places[begin : begin + BUCKET]], append=True)
    (folder / f"{name}.first.i8").unlink()
    return row, count


def _buckets(folder: Path, shards: Shards, buckets: int) -> Iterator[tuple[Keys, Keys, Places]]:
    """Yield (high, low, place) of the entries whose key is in one range, range after range."""
    files = [folder / f"bucket-{number:04d}.partial" for number in range(buckets)]
    for file in files:
        file.unlink(missing_ok=True)
    for begin, batch in zip(shards.starts[:-1].tolist(), shards.batches, strict=True):
        high, low = batch.column("high").to_numpy(), batch.column("low").to_numpy()
        at = np.arange(begin, begin + len(high)).astype(np.uint64)
        bucket = (high >> np.uint64(32)) * np.uint64(buckets) >> np.uint64(32)
        rows = np.stack([high, low, at], axis=1)
        for number in np.unique(bucket).tolist():
            with files[int(number)].open("ab") as stream:
                rows[bucket == number].tofile(stream)
    for file in files:
        if file.is_file():
            found = np.fromfile(file, np.uint64).reshape(-1, 3)
            file.unlink()
            yield found[:, 0].copy(), found[:, 1].copy(), found[:, 2].astype(np.int64)
