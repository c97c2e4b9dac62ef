"""Read tables: JSON Lines, JSON, CSV, TSV (also .gz), Parquet, Arrow and datasets of the `datasets` library.

A table has ``name``, ``columns``, ``folder(where)``, and iterates over (where, row): where is ``file:line`` or the row
number, for messages; row is a dict of Python values, in which a stored image is a StoredImage, not yet decoded.
The last part reads single cells (ids, texts, scores, images) and finds columns by their usual names.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import IO, Any, Protocol

from smart_train.config.schema import DataBlock
from smart_train.core.bounded_json import load_json
from smart_train.core.errors import DataError, Setting
from smart_train.core.modality import text_fault
from smart_train.core.pictures import open_picture, to_rgb
from smart_train.data.collection import content_id, first_few

TEXT_FILES = (".jsonl", ".json", ".csv", ".tsv")
STORED_FILES = (".parquet", ".arrow")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
FOREIGN = {  # how files begin that are no text, under the name of one
    b"PK\x03\x04": "a zip archive or an Excel file; unpack it, or save it as CSV (UTF-8)",
    b"PAR1": "a Parquet file; call it .parquet",
    b"\x1f\x8b": "a gzip file; end its name in .gz",
    b"BZh": "a bzip2 file; end its name in .bz2",
    b"\xfd7zX": "an xz file; end its name in .xz",
    b"\x28\xb5\x2f\xfd": "a zstandard file; end its name in .zst",
    b"%PDF": "a PDF; smart-train ingest reads it",
}
LISTS_OF_ROWS = ("data", "rows", "examples", "items", "records", "train", "samples", "instances")
SHOWN = 20  # columns that a line names
PEEK = 100  # rows that are read to learn the columns of a text file

# Usual names of columns; the first one is the one that this package writes or documents.
QUERY_IDS = ("_id", "id", "query-id", "qid")
CORPUS_IDS = ("_id", "id", "corpus-id", "docid")
FILES = ("file", "doc-id")
PAGES = ("page", "page-number-in-doc")
HASHES = ("hash",)


class Tabular(Protocol):
    """What every table has; see the head of this module."""

    @property
    def name(self) -> str: ...
    @property
    def columns(self) -> list[str]: ...
    def folder(self, where: str) -> Path: ...
    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]: ...


class Boundary:
    """The folders that files named in data may lie in; a link counts as what it leads to.

    Data that came from somewhere else could name any file of this machine, which training would show in vectors and
    ``data push`` would upload.

    folders: the folders; snapshots of the Hub's cache may use the blobs of their repository
    allow_outside: any file will do; what the rows of a Hub dataset name stays limited to the cache all the same
    hub: the rows are those of a dataset on the Hub
    """

    def __init__(self, *folders: Path, allow_outside: bool = False, hub: bool = False) -> None:
        self.folders, self.allow_outside, self.hub = folders, allow_outside, hub
        self._allowed = [Path(os.path.realpath(folder)) for folder in folders]
        for folder in [*self._allowed]:
            for one in (folder, *folder.parents):
                if one.parent.name == "snapshots":
                    self._allowed.append(one.parent.parent / "blobs")
        self._real: dict[Path, Path] = {}  # a folder -> without links

    @classmethod
    def of(cls, data: DataBlock) -> Boundary:
        """Return the boundary of a data block: the folder of its path, or the cache of its Hub dataset."""
        import datasets
        from huggingface_hub.constants import HF_HUB_CACHE

        unpacked = Path(datasets.config.EXTRACTED_DATASETS_PATH)  # `datasets` unpacks archives of images here
        path = Path(data.path)
        if path.exists():
            return cls(path if path.is_dir() else path.parent, unpacked, allow_outside=data.allow_outside)
        cache = Path(HF_HUB_CACHE) / f"datasets--{data.path.replace('/', '--')}"
        return cls(cache, unpacked, hub=True)

    def holds(self, path: Path) -> bool:
        """Whether a file may be read."""
        if self.allow_outside:
            return True
        real = self.real(path)
        return any(real.is_relative_to(folder) for folder in self._allowed)

    def check(self, path: Path, where: str) -> None:
        """Raise DataError, naming ``where``, for a file that lies outside."""
        if self.holds(path):
            return
        real = self.real(path)
        link = f", a link to {real}" if real != Path(os.path.abspath(path)) else ""
        if self.hub:
            what = f"{path}{link} is a file of this machine, and a Hub dataset must bring its images as bytes"
            raise DataError(f"{where}: {what}; nothing was read from it")
        fix = Setting("data.allow_outside", True)
        what = f"{path}{link} lies outside of the data's folder {self.folders[0]}"
        raise DataError(f"{where}: {what}; nothing was read from it; copy it into the folder, or ", fix)

    def real(self, path: Path) -> Path:
        """Return a path without links; a folder is looked up once."""
        try:
            if path.name in ("", "..") or path.is_symlink():
                return Path(os.path.realpath(path))
        except OSError:  # too long for a name
            return Path(os.path.abspath(path))
        folder = path.parent
        if folder not in self._real:
            self._real[folder] = Path(os.path.realpath(folder))
        return self._real[folder] / path.name


def suffix(path: Path) -> str:
    """Return the file type: ``.jsonl`` for both ``a.jsonl`` and ``a.ndjson.gz``."""
    found = Path(path.stem).suffix.lower() if path.suffix.lower() in COMPRESSED else path.suffix.lower()
    return ".jsonl" if found == ".ndjson" else found


def open_bytes(path: Path) -> Any:
    """Open a file, decompressed where its name says that it is compressed."""
    kind = path.suffix.lower()
    if kind == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return openers.get(kind, open)(path, "rb")


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """Open a text file, decompressed where its name says so, without a byte order mark: UTF-8, or UTF-16 with its mark.

    Raises DataError where the bytes are no such text or a compressed file is not whole.
    """
    kind = path.suffix.lower()
    name = "gzip" if kind == ".gz" else kind[1:]
    try:
        with open_bytes(path) as raw:
            begin = raw.peek(4)[:4] if hasattr(raw, "peek") else b""
            encoding = "utf-16" if begin[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
            if encoding != "utf-16" and (
                what := next((w for head, w in FOREIGN.items() if begin.startswith(head)), "")
            ):
                raise DataError(f"{path}: this is {what}")
            if encoding != "utf-16" and b"\0" in begin:
                what = "zero bytes at the beginning: UTF-16 without its mark, or no text at all"
                raise DataError(f"{path}: {what}; convert the file to UTF-8")
            with io.TextIOWrapper(raw, encoding, newline="") as stream:
                yield stream
    except UnicodeDecodeError as error:
        line, byte = _undecodable(path)
        raise DataError(f"{path}:{line}: not UTF-8 text ({byte}); convert the file to UTF-8") from error
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}: the {name} file is cut off or damaged ({error}); download it again") from error
    except OSError as error:  # bz2, and Arrow's of zst, raise it for damaged bytes
        if kind not in (".bz2", ".zst") or error.errno is not None:
            raise
        raise DataError(f"{path}: the {name} file is cut off or damaged ({error}); download it again") from error


def _undecodable(path: Path) -> tuple[int, str]:
    """Return (line, byte in it) of the first byte that is not UTF-8."""
    with open_bytes(path) as stream:
        for number, raw in enumerate(stream, 1):
            try:
                raw.decode("utf-8")
            except UnicodeDecodeError as error:
                return number, f"byte {error.start + 1} of the line is 0x{raw[error.start]:02x}"
    return 1, "it ends within a character"


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Read (line number, line) of the lines that are not blank."""
    with open_text(path) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield number, line.rstrip("\r\n")


def read_json_lines(path: Path, skip: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read (``file:line``, object) from a JSON Lines file, after the first ``skip`` rows, which are not parsed."""
    for number, line in islice(text_lines(path), skip, None):
        yield f"{path}:{number}", _object(line, f"{path}:{number}", number <= PEEK)


def _object(text: str, where: str, first: bool) -> dict[str, Any]:
    """first: also look for a key that is there twice, of which Python keeps the last; a writer does it in every row"""
    try:
        row = load_json(text)
        if first:
            json.loads(text, object_pairs_hook=lambda pairs: _check_twice([key for key, _ in pairs], where))
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg} at character {error.pos}); one object per line") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: a row must be a JSON object, this is {type(row).__name__}")
    return row


def _read_json(path: Path, skip: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read JSON Lines, one list of objects, or one object that holds such a list (``{"data": [...]}``)."""
    lines = (line for _, line in text_lines(path))
    first, second = next(lines, ""), next(lines, None)
    whole = first.lstrip().startswith("[")
    if first.lstrip().startswith("{"):
        try:
            whole = _listed(load_json(first)) is not None and second is None
        except json.JSONDecodeError:
            whole = second is not None  # an object over several lines
    if not whole:
        yield from read_json_lines(path, skip)
        return
    with open_text(path) as stream:
        try:
            value = load_json(stream.read())
        except json.JSONDecodeError as error:
            several = error.msg == "Extra data"
            fix = "; one object per line, or all in one list" if several else ""
            raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg}){fix}") from error
    rows = value if isinstance(value, list) else _listed(value)
    if rows is None:
        rows = [value]
    for number, row in islice(enumerate(rows, 1), skip, None):
        if not isinstance(row, dict):
            what = f"entry {number} must be a JSON object, with the names of the columns, this is {type(row).__name__}"
            raise DataError(f"{path}: {what}")
        yield f"{path}: entry {number}", row


def _listed(value: Any) -> list[Any] | None:
    """Return the rows of an object that holds one list of objects, beside texts and numbers about it; None for a row.

    >>> _listed({"version": 2, "data": [{"query": "q"}]}), _listed({"messages": [{"role": "user", "content": "q"}]})
    ([{'query': 'q'}], None)
    """
    if not isinstance(value, dict):
        return None
    held = [one for one in value.values() if isinstance(one, list | dict)]
    if len(held) != 1 or not isinstance(held[0], list) or not held[0] or not all(isinstance(r, dict) for r in held[0]):
        return None
    name = next(key for key, one in value.items() if one is held[0])
    return held[0] if name.lower() in LISTS_OF_ROWS else None


def _read_csv(path: Path, usual: str) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(2**31 - 1)  # documents are longer than the module's 128 KiB
    with open_text(path) as stream:
        delimiter, skip, spaced = _delimiter(path, usual)
        for _ in range(skip):
            next(stream)
        reader = csv.DictReader(stream, delimiter=delimiter, strict=True, skipinitialspace=spaced)
        begun = skip
        try:
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            _check_twice(list(reader.fieldnames), f"{path}:{1 + skip}")
            for row in reader:
                where, begun = f"{path}:{reader.line_num + skip}", reader.line_num + skip
                if None in row:
                    held = f"more fields than the header has ({len(reader.fieldnames)}, separated by {delimiter!r})"
                    raise DataError(f"{where}: {held}; quote them, or end the header as the rows end")
                if delimiter == "\t" and any(value and "\t" in value and "\n" in value for value in row.values()):
                    what = "a field that begins with a quote holds further rows"
                    raise DataError(f"{where}: {what}; double the quotes, or write JSON Lines")
                yield where, dict(row)
        except csv.Error as error:
            what = f"a field that begins with a quote does not end with one ({error})"
            fix = "close it, and double the quotes within a quoted field"
            raise DataError(f"{path}:{begun + 1}: {what}; {fix}, or write JSON Lines") from error


def _delimiter(path: Path, usual: str) -> tuple[str, int, bool]:
    """Return what separates the fields of a CSV file, how many lines stand before its header, and whether a space
    follows every delimiter.

    That is what its suffix says, unless the header is then one field and another delimiter divides it.  Excel may
    write ``sep=;`` before the header.
    """
    with open_text(path) as stream:
        header = stream.readline().rstrip("\r\n")
    if named := re.fullmatch(r"sep=(.)", header):
        return named[1], 1, False
    parts = {one: len(next(csv.reader([header], delimiter=one), [])) for one in (usual, ",", ";", "\t", "|")}
    found = usual if parts[usual] > 1 else max(parts, key=parts.__getitem__)
    names = next(csv.reader([header], delimiter=found), [])[1:]
    return found, 0, bool(names) and all(name.startswith(" ") for name in names)


def _check_twice(names: list[str], where: str) -> None:
    """Raise DataError where two columns have one name: only the last would be read."""
    twice = next((name for name, count in Counter(names).items() if name and count > 1), None)
    if twice is not None:
        what = f"the column {twice!r} is there {names.count(twice)} times"
        raise DataError(f"{where}: {what}; give each a name of its own ({twice}_1, {twice}_2 ...)")


@dataclass
class TextTable:
    """Rows of JSON Lines, JSON, CSV or TSV files; read anew at every iteration, so that memory holds one row."""

    files: list[Path]

    @property
    def name(self) -> str:
        return str(self.files[0]) if len(self.files) == 1 else f"{self.files[0].parent} ({len(self.files)} files)"

    @cached_property
    def columns(self) -> list[str]:
        """Return the columns of the first 100 rows, in order of appearance."""
        return list(dict.fromkeys(key for _, row in islice(iter(self), PEEK) for key in row))

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for segment in range(self.segments):
            yield from self.read_segment(segment)

    @property
    def segments(self) -> int:
        """Return how many parts there are that can be read in any order: the files."""
        return len(self.files)

    def read_segment(self, segment: int, skip: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
        """Read the rows of a file, after the first ``skip``."""
        path = self.files[segment]
        kind = suffix(path)
        if kind in (".jsonl", ".json"):
            yield from _read_json(path, skip)
        else:
            yield from islice(_read_csv(path, "\t" if kind == ".tsv" else ","), skip, None)

    def folder(self, where: str) -> Path:
        """Return the folder that image paths of this row are relative to."""
        return next((f.parent for f in self.files if where.startswith(f"{f}:")), self.files[0].parent)


@dataclass(frozen=True, eq=False)
class StoredImage:
    """An image inside a datasets.Dataset, by row: nothing is read before ``load`` or ``raw``.

    path: what the row has instead of bytes
    file: the file of that path, set by ``read_image`` after it was checked; no other file is opened
    size_in_bytes: of the undecoded image, where the row has it
    """

    dataset: Any = field(repr=False)
    row: int
    column: str
    name: str
    path: str | None = None
    file: Path | None = None
    size_in_bytes: int | None = None

    def raw(self) -> bytes:
        """Return the undecoded file."""
        value = self.dataset[self.row][self.column]
        if value.get("bytes"):
            return value["bytes"]
        if self.file is None:
            raise DataError(f"{self.name}: {self.column} has no bytes, and no file that may be read")
        return self.file.read_bytes()

    def load(self) -> Any:
        """Return the decoded image as RGB; raises as ``open_picture``."""
        return open_picture(io.BytesIO(self.raw()))

    def content_id(self) -> str:
        return content_id("image", self.raw())


@dataclass(frozen=True)
class ImageColumn:
    """The images of a datasets.Dataset, by row."""

    dataset: Any = field(repr=False)
    column: str
    name: str

    def image(self, row: int, file: str | None, size: int | None) -> StoredImage:
        """Return an image as ``read_image`` does.  file: where it has no bytes"""
        name = f"{self.name} row {row}"
        return StoredImage(self.dataset, row, self.column, name, file or None, Path(file) if file else None, size)


@dataclass
class StoredTable:
    """Rows of a datasets.Dataset; images come as StoredImage (undecoded), everything else as Python values."""

    dataset: Any
    name: str
    root: Path = Path()  # what image paths in a column of texts are relative to

    def __post_init__(self) -> None:
        import datasets

        self.images = [c for c, feature in self.dataset.features.items() if _holds_images(feature)]
        for column in self.images:
            self.dataset = self.dataset.cast_column(column, datasets.Image(decode=False))

    @property
    def columns(self) -> list[str]:
        return list(self.dataset.column_names)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        plain = [c for c in self.columns if c not in self.images]
        stores = {c: self.dataset.select_columns([c]) for c in self.images}
        stored = {c: iter(self._stored_paths(c)) for c in self.images}
        values = self._rows(plain) if plain else ({} for _ in range(len(self.dataset)))
        for number, row in enumerate(values):
            for column, store in stores.items():
                size, path = next(stored[column])
                name = f"{self.name} row {number}"
                image = StoredImage(store, number, column, name, path, size_in_bytes=size or None)
                row[column] = image if size or path else None
            yield f"{self.name}: row {number}", row

    def renamed(self, new: Mapping[str, str]) -> StoredTable:
        """Return the table with other names of some columns."""
        return StoredTable(self.dataset.rename_columns(dict(new)), self.name, self.root)

    def _rows(self, columns: list[str]) -> Iterator[dict[str, Any]]:
        rows = iter(self.dataset.select_columns(columns))
        for number in range(len(self.dataset)):
            try:
                yield next(rows)
            except Exception as error:  # damaged cells raise what Arrow and Python's codecs happen to meet
                raise DataError(f"{self.name}: row {number} is damaged ({error}); download the file again") from error

    def image_column(self, column: str | None) -> ImageColumn | None:
        """Return a column of stored images; None where it is no such column."""
        if column not in self.images:
            return None
        return ImageColumn(self.dataset.select_columns([column]), str(column), self.name)

    def _stored_paths(self, column: str) -> Iterator[tuple[int, str | None]]:
        """Yield for each row how many bytes its image has, and its path where it has none."""
        import pyarrow.compute as pc

        table = self.dataset.with_format("arrow").select_columns([column])
        for part in table.iter(10_000):
            cells = part.column(0)
            sizes = pc.fill_null(pc.binary_length(pc.struct_field(cells, "bytes")), 0)
            paths = pc.if_else(pc.greater(sizes, 0), None, pc.struct_field(cells, "path")).to_pylist()
            yield from ((size, path or None) for size, path in zip(sizes.to_pylist(), paths, strict=True))

    def folder(self, where: str) -> Path:
        return self.root


def _holds_images(feature: Any) -> bool:
    """An Image column, or its storage as Parquet files have it that were not written by `datasets`."""
    import datasets

    stored = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    return stored or isinstance(feature, datasets.Image) or getattr(feature, "dtype", "") in ("binary", "large_binary")


@dataclass
class IterableTable:
    """Rows of a ``datasets.IterableDataset``, such as one of ``load_dataset(..., streaming=True)``, by its shards."""

    dataset: Any
    name: str
    reads: list[str] | None = None  # columns that are read; None = all

    @cached_property
    def columns(self) -> list[str]:
        names = self.dataset.column_names
        return list(names) if names else list(next(iter(self.dataset.take(1)), {}))

    @property
    def segments(self) -> int:
        return int(self.dataset.num_shards)

    def read_segment(self, segment: int, skip: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
        number = skip
        try:
            read = self.dataset if self.reads is None else self.dataset.select_columns(self.reads)
            shard = read.shard(self.segments, segment)
            # Not iter(shard): in a data worker it would leave out what it takes for the share of other workers.
            for block in (shard.skip(skip) if skip else shard).iter(100):
                for cells in zip(*block.values(), strict=True):
                    yield f"{self.name}: row {number} of shard {segment}", dict(zip(block, cells, strict=True))
                    number += 1
        except Exception as error:  # of the network, of Arrow, of whatever the dataset maps its rows with
            what = f"cannot be read on ({type(error).__name__}: {error}); resume the run when it can"
            raise DataError(f"{self.name}: row {number} of shard {segment} {what}") from error

    def folder(self, where: str) -> Path:
        return Path()


@dataclass(frozen=True, eq=False)
class MemoryImage:
    """A PIL image, or the bytes of an image file, that stands in a row of a Python program."""

    image: Any = field(repr=False)

    def load(self) -> Any:
        """Return the decoded image as RGB; raises as ``open_picture``."""
        return open_picture(io.BytesIO(self.image)) if isinstance(self.image, bytes) else to_rgb(self.image)

    def content_id(self) -> str:
        if isinstance(self.image, bytes):
            return content_id("image", self.image)
        return content_id("image", f"{self.image.mode} {self.image.size}\n".encode() + self.image.tobytes())


def is_picture(value: Any) -> bool:
    """Return whether a cell that may hold a text holds a picture: a PIL image, a ``pathlib.Path``, a stored image, or
    the bytes or path of an image file as the `datasets` library gives them undecoded."""
    from PIL import Image

    stored = isinstance(value, dict) and value.keys() == {"bytes", "path"}
    return stored or isinstance(value, Image.Image | Path | StoredImage)


@dataclass
class MemoryTable:
    """Rows of a Python program: dicts of column -> value.

    columns: of all rows together; new: column -> another name for it
    """

    rows: Sequence[Mapping[str, Any]]
    name: str
    columns: list[str]
    new: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for number in range(len(self.rows)):
            row = self.rows[number]
            yield f"{self.name}, row {number}", {self.new.get(name, name): value for name, value in row.items()}

    def renamed(self, new: Mapping[str, str]) -> MemoryTable:
        """Return the table with other names of some columns."""
        return replace(self, columns=[new.get(name, name) for name in self.columns], new=new)

    def folder(self, where: str) -> Path:
        return Path()


Table = TextTable | StoredTable


def open_files(files: list[Path], name: str | None = None, reads: Iterable[str] | None = None) -> Table:
    """Open files of one type as a table; raises DataError for types that cannot be read.

    reads: the columns of Parquet files that will be read; others may have another type in every file.  None = all
    """
    files = sorted(files)
    kinds = {suffix(f) for f in files}
    if kinds <= set(TEXT_FILES):
        return TextTable(files)
    if len(kinds) == 1 and kinds <= set(STORED_FILES):
        stored = _stored(files, kinds.pop()[1:], None if reads is None else {*reads})
        return StoredTable(stored, name or str(files[0] if len(files) == 1 else files[0].parent), files[0].parent)
    raise DataError(
        f"{files[0]}: files of kind {', '.join(sorted(kinds))} cannot be read as one table; "
        f"use {', '.join(TEXT_FILES + STORED_FILES)} (text also as {', '.join(COMPRESSED)})"
    )


def _stored(files: list[Path], kind: str, reads: set[str] | None) -> Any:
    """Load files as a datasets.Dataset.  Parquet without images is read into memory, where its rows go anyway, since
    `datasets` would first copy it into its cache."""
    import datasets
    import pyarrow as pa
    from pyarrow.parquet import read_schema, read_table

    options: dict[str, Any] = {}
    try:
        if kind == "parquet":
            schemas = [read_schema(f) for f in files]
            for file, schema in zip(files, schemas, strict=True):
                _check_twice(schema.names, str(file))
            there = dict.fromkeys(name for schema in schemas for name in schema.names)
            names = [name for name in there if reads is None or name in reads]
            if not any(may_hold_images(column.type) for schema in schemas for column in schema):
                parts = [
                    read_table(f, partitioning=None, columns=[name for name in names if name in schema.names])
                    for f, schema in zip(files, schemas, strict=True)
                ]
                _check_kinds([part.schema for part in parts], files)
                return datasets.Dataset(pa.concat_tables(map(_plain, parts), promote_options="permissive"))
            if reads is not None:
                options["columns"] = names
        return datasets.load_dataset(kind, data_files={"train": [str(f) for f in files]}, split="train", **options)
    except DataError:
        raise
    except Exception as error:  # Arrow raises OSError, ValueError, KeyError ... by what is damaged
        raise DataError(f"{files[0]}: not a readable {kind} file ({error.__cause__ or error})") from error


def _plain(table: Any) -> Any:
    """Return a table whose texts have one of Arrow's types for text, of which writers use four."""
    import pyarrow as pa

    kinds = pa.schema([field.with_type(_plain_type(field.type)) for field in table.schema])
    return table.cast(kinds) if kinds != table.schema else table


def _plain_type(kind: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):  # a category of pandas
        return _plain_type(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.large_list(_plain_type(kind.value_type))
    return kind


def _check_kinds(schemas: list[Any], files: list[Path]) -> None:
    """Raise DataError for a column that holds different things in two files."""
    import pyarrow as pa

    first: dict[str, tuple[Any, Path]] = {}
    for schema, file in zip(schemas, files, strict=True):
        for column in schema:
            kind, other = first.setdefault(column.name, (_plain_type(column.type), file))
            try:
                merged = [pa.schema([(column.name, one)]) for one in (kind, _plain_type(column.type))]
                unified = pa.unify_schemas(merged, promote_options="permissive").field(0).type
            except pa.ArrowException as error:
                what = f"the column {column.name!r} is {column.type} here and {kind} in {other.name}"
                raise DataError(f"{file}: {what}; write it with one type") from error
            first[column.name] = unified, other


def may_hold_images(kind: Any) -> bool:
    """Return whether a column of this Arrow type may hold images."""
    import pyarrow as pa

    return pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def columns_of(files: list[Path]) -> list[str]:
    """Return the columns of files; of a Parquet file only the schema is read."""
    if {suffix(file) for file in files} == {".parquet"}:
        from pyarrow.parquet import read_schema

        try:
            return list(dict.fromkeys(name for file in sorted(files) for name in read_schema(file).names))
        except Exception as error:  # Arrow raises OSError, ValueError ... by what is damaged
            raise DataError(f"{files[0]}: not a readable parquet file ({error})") from error
    return open_files(files).columns


def split_name(path: Path) -> str:
    """Return the split that a file name gives.

    >>> split_name(Path("train-00000-of-00002.parquet")), split_name(Path("dev.jsonl.gz"))
    ('train', 'dev')
    """
    stem = path.stem if path.suffix.lower() in COMPRESSED else path.name
    return re.sub(r"-\d+-of-\d+$", "", stem[: len(stem) - len(Path(stem).suffix)])


def data_files(folder: Path, *more: str) -> list[Path]:
    """Return the data files directly in a folder, sorted; more: further file types."""
    kinds = {*TEXT_FILES, *STORED_FILES, *more}
    return sorted(p for p in folder.iterdir() if p.is_file() and suffix(p) in kinds) if folder.is_dir() else []


# Columns and cells --------------------------------------------------------------------------------------------------


def find_column(columns: Iterable[str], names: Iterable[str]) -> str | None:
    """Return the first of these names that is a column, in any case, with - or _; as it is written, where that is one.

    >>> find_column(["ID", "Doc_Id "], ("file", "doc-id"))
    'Doc_Id '
    """
    there = list(columns)
    plain = {plain_name(c): c for c in reversed(there)} | {c: c for c in there}
    return next((found for n in names if (found := plain.get(n) or plain.get(plain_name(n)))), None)


def plain_name(column: str) -> str:
    """Return the name of a column without case and space around it, with - for _ and spaces."""
    return column.strip().lower().replace("_", "-").replace(" ", "-")


def require_column(table: Tabular, names: tuple[str, ...], what: str) -> str:
    """Return the first of these names that is a column; raises DataError, with the nearest name, where none is."""
    found = find_column(table.columns, names)
    if found is None:
        near = get_close_matches(names[0], table.columns, 1)
        raise DataError(
            f"{table.name}: no column for {what} ({', '.join(names)}); it has {', '.join(table.columns) or 'no rows'}"
            + (f"; rename {near[0]!r}?" if near else "")
        )
    return found


def describe_columns(columns: Iterable[str], parts: Mapping[str, str | Sequence[str] | None]) -> str:
    """Return what each column was taken for, and which are not read, as one line.

    parts: what is read -> its column or columns; those that the table lacks are left out

    >>> describe_columns(["_id", "text", "views"], {"id": "_id", "text": "text", "title": "title"})
    'columns read: id = _id, text = text; not read: views'
    """
    there = list(columns)
    named = {part: [one] if isinstance(one, str) else [*(one or ())] for part, one in parts.items()}
    named = {part: [one for one in found if one in there] for part, found in named.items()}
    read = ", ".join(f"{part} = {', '.join(found)}" for part, found in named.items() if found)
    taken = {one for found in named.values() for one in found}
    rest = [column or "(no name)" for column in there if column not in taken]
    return f"columns read: {read}" + (f"; not read: {first_few(rest, SHOWN)}" if rest else "")


def id_text(value: Any) -> str | None:
    """Return an id as text; None where the value is none.  A whole number is itself, however it is stored.

    >>> id_text(7), id_text(7.0), id_text(" a "), id_text("7.0"), id_text(0.5)
    ('7', '7', 'a', '7.0', None)
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of ids that pandas has widened
    if value is None or isinstance(value, float | dict | list | tuple | bool):
        return None
    return str(value).strip() or None


class Ids:
    """Known ids, found by what is written, else by value: where "7" is known, "7.0" is no other id.

    A text stays as it is, so that "1" and "1.0" are two documents where a corpus has both.

    >>> Ids(["1", "2.0", "a"]).find("1.0"), Ids(["1", "2.0"]).find("2"), Ids(["1", "1.0"]).find("1.00")
    ('1', '2.0', None)
    """

    def __init__(self, known: Iterable[str]) -> None:
        self.known = known if isinstance(known, dict) else dict.fromkeys(known)
        self._by_value: dict[int, str | None] | None = None  # None = several ids have the value

    def find(self, id: str) -> str | None:
        """Return the known id that this one names; None where there is none."""
        if id in self.known:
            return id
        if self._by_value is None:
            self._by_value = {}
            for one in self.known:
                if (number := whole_number(one)) is not None:
                    self._by_value[number] = None if number in self._by_value else one
        value = whole_number(id)
        return None if value is None else self._by_value.get(value)


def whole_number(id: str) -> int | None:
    """Return the value of an id that is a whole number as a column of numbers writes it; "007" is a text."""
    found = re.fullmatch(r"(-?(?:0|[1-9]\d{0,30}))(?:\.0+)?", id)
    return None if found is None else int(found[1])


def read_id(row: dict[str, Any], key: str, where: str) -> str:
    """Return a cell as an id; raises DataError where it is empty, or neither a text nor a whole number."""
    found = id_text(row.get(key))
    if found is None or text_fault(found):
        raise DataError(f"{where}: {key} is {row.get(key)!r}; an id is a text or a whole number")
    return found


def read_text(row: dict[str, Any], key: str | None, where: str) -> str:
    """Return a cell as a text without space around it, "" where it is empty; raises DataError for another type."""
    value = row.get(key) if key else None
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: {key} is {type(value).__name__}; it must be a text")
    if value and (fault := text_fault(value)):
        raise DataError(f"{where}: {key} has {fault}; remove it")
    return (value or "").strip()


def read_score(value: Any, where: str) -> float:
    """Return a score, which may have any unit and sign but must be a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise DataError(f"{where}: the score is {value!r}; it must be a finite number")
    return float(value)


def read_image(
    value: Any, table: Tabular, where: str, boundary: Boundary, home: Path | None = None, must_exist: bool = True
) -> Any:
    """Return a stored image, the path of an image file, or None where the cell is empty.

    boundary: where files may lie
    home: a second folder that paths may be relative to (that of a collection, for a table in its corpus/)
    must_exist: False takes the path of a file that is missing, which then fails when it is decoded
    """
    if value is None or value == "":
        return None
    if isinstance(value, StoredImage):
        if value.path is None:
            return value
        return replace(value, file=_find_file(value.path, table, where, boundary, [home, Path()], must_exist))
    if isinstance(value, Path):  # made by a program, while a text may come with the data
        if not value.is_file():
            raise DataError(f"{where}: no image file {value}")
        return str(value)
    if is_picture(value) and not isinstance(value, dict):
        return MemoryImage(value)
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes) and value["bytes"]:
        return MemoryImage(value["bytes"])
    if isinstance(value, dict) and not value.get("bytes") and isinstance(value.get("path"), str):
        value = value["path"]  # what `datasets` writes for an image that it left where it was
    if not isinstance(value, str):
        raise DataError(f"{where}: the image is {type(value).__name__}; give the path of an image file")
    if boundary.hub:
        what = f"the image is the text {value[:80]!r}, and a Hub dataset must bring its images as bytes"
        raise DataError(f'{where}: {what}; name a column of images in data.image, or write data.image: ""')
    return str(_find_file(value, table, where, boundary, [home], must_exist))


def _find_file(
    name: str, table: Tabular, where: str, boundary: Boundary, more: list[Path | None], must_exist: bool
) -> Path:
    """The first file of this name in the folder of the row's table, or in one of ``more``."""
    if "\0" in name:
        raise DataError(f"{where}: the path {name[:80]!r} has a zero byte; give the path of an image file")
    paths = [folder / name for folder in (table.folder(where), *more) if folder is not None]
    for path in filter(boundary.holds, paths):
        try:
            if path.is_file():
                return path
        except OSError:  # too long for a name
            break
    for path in paths:  # whether the file is there or not, so that an error says nothing about files elsewhere
        boundary.check(path, where)
    if must_exist:
        raise DataError(f"{where}: no image file {paths[-1]}; paths are relative to the folder of the table")
    return paths[-1]


def read_page(value: Any) -> int | None:
    """Return a cell as a page number; None where it is none."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return None  # some sets hold labels such as "iv" here; the number is for messages only
