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

import gzip
import json
import logging
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from smart_train.config.schema import DataBlock
from smart_train.core.atomic_io import replacing
from smart_train.core.disk import reserve
from smart_train.core.errors import DataError
from smart_train.core.progress_log import ProgressLog
from smart_train.data.arrow_shards import Shards, write_shard
from smart_train.data.collection import content_id, first_few
from smart_train.data.identity import content_hash
from smart_train.data.readers.row_parser import ParsedRow, RowParser, choose_columns
from smart_train.data.stored_collection import StoredCollection, id_key, load_array, save_array
from smart_train.data.tables import StoredTable, Table, may_hold_images, suffix

logger = logging.getLogger(__name__)

VERSION = 3  # of the files of a store
SMALL_BYTES = 64 << 20  # smaller tables are held in memory as dicts: 0.2 GB at most, and nothing is written
SMALL_ROWS = 50_000  # the same for tables whose number of rows is known
SHARD_ROWS, SHARD_TEXT = 20_000, 64 << 20  # a shard ends after so many rows or characters: 0.3 GB while it is made
BUCKET = 2_000_000  # keys that are sorted at once: 0.2 GB
SAMPLE = 1 << 20  # bytes of a file that tell how long its lines are
EDGE = 1 << 16  # bytes at either end of a file that its key is made of
DONE = "complete.json"
_NO_SCORE = float("nan")

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
    if len(table) <= SMALL_ROWS and not _many_bytes(source):
        return None
    images = any(may_hold_images(column.type) for schema in table.schemas for column in schema)
    return None if images else table


def _many_bytes(files: list[Path]) -> bool:
    return sum(file.stat().st_size * (4 if file.suffix == ".gz" else 1) for file in files) > SMALL_BYTES


def read(table: LargeTable, data: DataBlock, name: str, limit: int | None = None) -> StoredCollection | None:
    """Return the collection of a large table, converted before or now; None where it is to be read into memory.

    That are small tables, few rows of a large one, images inside of a table, and tables whose documents have ids of
    their own (``data.id``), which may name documents of rows that were not read yet.
    limit: most pairs that are read, in the order of the rows
    Raises as ``read_rows``, and DataError where nothing can be written.
    """
    files = None if isinstance(table, StoredTable) else table.files
    # Parquet that ``open_large`` opened is large; other tables tell their rows, or their bytes.
    large = isinstance(table, ParquetRows) or (_many_bytes(files) if files else len(table) > SMALL_ROWS)  # type: ignore[arg-type]
    columns, _ = choose_columns(table.columns, data)
    if not large or columns is None or columns.id or (limit is not None and limit <= SMALL_ROWS):
        return None
    if isinstance(table, StoredTable) and columns.image in table.images:
        return None
    parser = RowParser(table, data)  # type: ignore[arg-type]
    if isinstance(table, ParquetRows):
        table.reads = parser.columns.names()
    about = {
        "version": VERSION,
        "files": [_signature(file) for file in files] if files else table.dataset._fingerprint,  # type: ignore[union-attr]
        "columns": asdict(columns),
        "limit": limit,
        # images are read from paths, so that the place of the files counts as well
        "place": [str(files[0].parent.resolve()), data.allow_outside] if files and columns.image else None,
    }
    key = sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache_folder() / key
    if not _is_complete(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _one_process(folder, table.name):
                if not _is_complete(folder):
                    _Conversion(folder, parser, name, limit, _rows_estimate(table, files)).run()
        except OSError as error:
            what = f"{table.name} is converted in {folder}, and nothing can be written there ({error})"
            raise DataError(f"{what}; free space, or name another folder in HF_DATASETS_CACHE") from error
    about = json.loads((folder / DONE).read_text("utf-8"))
    _report(name, about)
    found = StoredCollection.open(folder, name)
    if not about["alone"]:
        return found
    return found.select_rows(np.flatnonzero(np.diff(found.part.store.relations["qrels"].offsets)), None)


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
        logger.warning(
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


def _signature(file: Path) -> list[Any]:
    stat = file.stat()
    with file.open("rb") as stream:
        first = stream.read(EDGE)
        stream.seek(max(0, stat.st_size - EDGE))
        edges = sha256(first + stream.read(EDGE)).hexdigest()
    return [file.name, stat.st_size, stat.st_mtime_ns, edges]


def _rows_estimate(table: LargeTable, files: list[Path] | None) -> int:
    """Return how many rows there are, for the progress; of text files about as many."""
    if not files or suffix(files[0]) in (".parquet", ".arrow"):
        return len(table)  # type: ignore[arg-type]
    with files[0].open("rb") as raw:
        stream: Any = gzip.GzipFile(fileobj=raw) if files[0].suffix == ".gz" else raw
        try:
            lines = max(1, stream.read(SAMPLE).count(b"\n"))
        except (OSError, EOFError, zlib.error):  # a damaged file, which reading its rows tells better
            return 1
        return int(sum(file.stat().st_size for file in files) * lines / max(1, raw.tell()))


def _report(name: str, counts: dict[str, Any]) -> None:
    for what, (count, first) in counts["left_out"].items():
        logger.warning("%s: %d rows without a %s are left out: %s", name, count, what, first)
    for line in counts["lines"]:
        logger.info("%s: %s", name, line)
    for line in counts["warnings"]:
        logger.warning("%s: %s", name, line)


# Parsing: rows to shards ---------------------------------------------------------------------------------------------


class _Entries:
    """Documents or queries of one shard, each id once: its cells, the id first."""

    def __init__(self) -> None:
        self.place: dict[str, int] = {}
        self.cells: list[tuple[Any, ...]] = []

    def add(self, cells: tuple[Any, ...]) -> int:
        found = self.place.get(cells[0])
        if found is None:
            found = self.place[cells[0]] = len(self.cells)
            self.cells.append(cells)
        return found

    def write(self, file: Path, types: dict[str, Any]) -> None:
        import pyarrow as pa

        columns: Any = zip(*self.cells, strict=True) if self.cells else [()] * len(types)
        arrays = {name: pa.array(cells, kind) for (name, kind), cells in zip(types.items(), columns, strict=True)}
        keys = np.array([id_key(id) for id in self.place], np.uint64).reshape(-1, 2)
        shown = [content_hash(text if image is None else f"{id}") for id, text, image in self._contents()]
        more = {"high": pa.array(keys[:, 0]), "low": pa.array(keys[:, 1]), "shown": pa.array(shown, pa.int64())}
        write_shard(file, arrays | more)

    def _contents(self) -> Iterator[tuple[str, str, str | None]]:
        """Yield id, text and image of each; an id of an image is a hash of its bytes."""
        yield from ((cells[0], cells[1], cells[2] if len(cells) > 2 else None) for cells in self.cells)


class _Shard:
    """The rows between two writes.  Documents of pairs come before those that only negatives name."""

    def __init__(self) -> None:
        self.documents, self.others, self.queries = _Entries(), _Entries(), _Entries()
        # query and document by their places in the shard, and a score or NaN
        self.pairs, self.negatives = (array("i"), array("d")), (array("i"), array("d"))
        self.grades = array("b")  # of the pairs
        self.rows = self.text = 0
        self.scored = False

    def add(self, row: ParsedRow) -> None:
        self.rows += 1
        if row.query is None or not row.documents:
            return
        self.scored |= row.scores is not None
        query = self.queries.add((content_id("query", row.query), row.query))
        scores = row.scores or [None] * (len(row.documents) + len(row.negatives))
        for one, grade, score in zip(row.documents, row.grades, scores, strict=False):
            text, image = one.text or "", None if one.image is None else str(one.image)
            length = len(text) if image is None else 0
            self.text += len(text)
            entries, relation = (self.documents, self.pairs) if grade else (self.others, self.negatives)
            place = entries.add((one.id, one.text, image, one.file, one.page, one.source, length))
            self._relate(relation, query, place, score)
            if grade:
                self.grades.append(grade)
        for text, score in zip(row.negatives, scores[len(row.documents) :], strict=True):
            self.text += len(text)
            place = self.others.add((content_id("text", text), text, None, None, None, None, len(text)))
            self._relate(self.negatives, query, place, score)

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

        text, large = pa.string(), pa.large_string()
        types = {"id": text, "text": large, "image": text, "file": text, "page": pa.int64(), "source": text}
        types["length"] = pa.int64()
        with replacing(folder / f"documents-{2 * number:06d}.arrow") as part:
            self.documents.write(part, types)
        with replacing(folder / f"documents-{2 * number + 1:06d}.arrow") as part:
            self.others.write(part, types)
        with replacing(folder / f"queries-{number:06d}.arrow") as part:
            self.queries.write(part, {"id": text, "text": large})
        for name, (places, scores) in (("pairs", self.pairs), ("negatives", self.negatives)):
            np.save(folder / f"shard-{name}-{number:06d}.npy", np.frombuffer(places, np.int32).reshape(-1, 2))
            if self.scored:
                np.save(folder / f"shard-{name}-scores-{number:06d}.npy", np.frombuffer(scores, np.float64))
        np.save(folder / f"shard-pairs-grades-{number:06d}.npy", np.frombuffer(self.grades, np.int8))
        counts = {"pairs": len(self.pairs[1]), "negatives": len(self.negatives[1])}
        return {"rows": self.rows, "scored": self.scored, **counts}


class _Conversion:
    """Converts one table in its folder."""

    def __init__(self, folder: Path, parser: RowParser, name: str, limit: int | None, rows: int) -> None:
        self.folder, self.parser, self.name, self.limit, self.rows = folder, parser, name, limit, rows

    def run(self) -> None:
        (self.folder / DONE).unlink(missing_ok=True)
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
        if counted["relevant"]:
            what = "negatives are also positives of their query, and are left out of its negatives"
            warnings.append(f"{counted['relevant']} {what}")
        if counted["rescored"]:
            rescored, column = counted["rescored"], self.parser.columns.scores
            warnings.append(f"{rescored} pairs have two scores in {column}; the last counts")
        if counted["alone"]:
            what = f"queries have no document with a {self.parser.columns.label} above 0 and are left out"
            warnings.append(f"{counted['alone']} {what}")
        for file in [*self.folder.glob("shard-*"), *self.folder.glob("*.partial")]:
            file.unlink(missing_ok=True)
        files = {file.name: file.stat().st_size for file in self.folder.iterdir() if file.suffix != ".txt"}
        files = {name: size for name, size in files.items() if name not in ("lock", DONE)}
        about: dict[str, Any] = {"left_out": left_out, "warnings": warnings, "lines": self.parser.lines()}
        about |= {"files": files, "alone": counted["alone"]}
        with replacing(self.folder / DONE) as part:
            part.write_text(json.dumps(about), "utf-8")

    def _parse(self) -> list[dict[str, Any]]:
        """Write the shards that are not there yet; return what to remember of all."""
        kept = self.folder / "shards.partial"
        state = json.loads(kept.read_text("utf-8")) if kept.is_file() and self.limit is None else {"shards": []}
        done: list[dict[str, Any]] = state["shards"]
        if done:
            self.parser.empty, self.parser.late = state["empty"], state["late"]
            self.parser.notes.update(state["notes"])
        before = sum(one["rows"] for one in done)
        if before:
            logger.info("%s: resuming after %d rows that were converted before", self.name, before)
        else:
            logger.info("%s: converting about %d rows, once, in %s", self.name, self.rows, self.folder)
        pace = ProgressLog(f"{self.name}: rows converted", max(self.rows, before), before, every=10.0)
        shard, pairs = _Shard(), set[tuple[str, str]]()

        def flush() -> _Shard:
            done.append(shard.write(self.folder, len(done)))
            state = {"shards": done, "empty": self.parser.empty, "late": self.parser.late, "notes": self.parser.notes}
            with replacing(kept) as part:
                part.write_text(json.dumps(state), "utf-8")
            pace.add(shard.rows)
            return _Shard()

        for row in self.parser.rows(before):
            shard.add(row)
            if shard.full():
                shard = flush()
            if self.limit is not None and row.query is not None:
                pairs.update((row.query, document.id) for document in row.documents)
                if len(pairs) >= self.limit:
                    break
        if shard.rows:
            flush()
        return done

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
        query_row, query_count = _number_entries(folder, "queries", queries, queries.starts[:-1])
        # A store reads the files in the order of their names, and counts their entries in it.
        by_name = Shards(sorted(files)).starts
        begins = by_name[[*first, *(n + 1 for n in first)]]
        document_row, document_count = _number_entries(folder, "documents", documents, begins)
        scored = any(one["scored"] for one in done)
        related = {}
        for name, offset in (("pairs", 0), ("negatives", shards)):
            total = sum(one[name] for one in done)
            query = _scratch(self.folder, f"{name}.queries", np.int32, total)
            document = _scratch(self.folder, f"{name}.documents", np.int32, total)
            scores = np.full(total, np.nan) if scored else None
            begin = 0
            for n, one in enumerate(done):
                local, end = self._load(n, name), begin + one[name]
                query[begin:end] = query_row[local[:, 0] + queries.starts[n]]
                document[begin:end] = document_row[local[:, 1] + documents.starts[n + offset]]
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
        return self._write_relations(related, query_count, document_count)

    def _write_relations(self, related: dict[str, Any], queries: int, documents: int) -> dict[str, int]:
        """Write each query's documents once, with the highest grade of each pair and its last score, and without
        positives among the negatives; return how many scores were replaced by a later one, how many negatives were
        positives, and how many queries have no positive."""
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
            positives = _codes(pair[0], pair[1], documents)
            kept = _keep_first(positives)
            add("qrels", pair[0][kept], pair[1][kept], _highest(positives, pair[3])[kept])
            codes = _codes(negative[0], negative[1], documents)
            kept = _keep_first(codes)
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
        return {"rescored": rescored, "relevant": relevant, "alone": int((counts["qrels"] == 0).sum())}


def _scratch(folder: Path, name: str, kind: Any, size: int) -> NDArray[Any]:
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


def _codes(query: NDArray[Any], document: NDArray[Any], documents: int) -> Places:
    """Return one number for each (query, document)."""
    return query.astype(np.int64) * documents + document


def _keep_first(codes: Places) -> Places:
    """Return the places of the first of equal numbers, in order."""
    first = np.unique(codes, return_index=True)[1]
    first.sort()
    return first


def _highest(codes: Places, grades: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return of each number the highest grade that an equal number has."""
    if (grades == 1).all():
        return grades
    found, place = np.unique(codes, return_inverse=True)
    best = np.zeros(len(found), np.int8)
    np.maximum.at(best, place, grades)
    return best[place]


def _last_scores(pair: Any, negative: Any, documents: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], int]:
    """Return (query, document, score) of all scored entries, in the order of queries, then positives, then negatives;
    of two scores of a pair the last; and how often a score was replaced by another one."""
    query, document, score = (np.concatenate([pair[at], negative[at]]) for at in range(3))
    there = np.flatnonzero(~np.isnan(score))
    there = there[np.argsort(query[there], kind="stable")]
    query, document, score = query[there], document[there], score[there]
    codes = _codes(query, document, documents)
    order = np.argsort(codes, kind="stable")
    new = np.r_[True, codes[order][1:] != codes[order][:-1]][: len(order)]
    replaced = int((~new[1:] & (score[order][1:] != score[order][:-1])).sum())
    first, last = order[new], order[np.r_[new[1:], True][: len(order)]]
    by_place = np.argsort(first)
    first, last = first[by_place], last[by_place]
    return query[first], document[first], score[last], replaced


def _number_entries(folder: Path, name: str, shards: Shards, begins: Places) -> tuple[NDArray[np.int32], int]:
    """Number the distinct ids of all shards by their first appearance; return the row of every entry, and their number.

    begins: [shards], what the first entry of each shard is called in the array NAME, which is written here with the
    sorted keys.  Keys are compared bucket by bucket; a bucket holds the keys of one range, so that what the buckets
    give one after another is sorted.
    """
    total = len(shards)
    first = _scratch(folder, f"{name}.entries", np.int64, total)
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
    row, count = _scratch(folder, f"{name}.numbers", np.int32, total), 0
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
