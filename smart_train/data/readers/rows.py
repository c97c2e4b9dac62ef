"""Read tables with a query and its document in each row: files, folders of files, or datasets on the Hub."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from smart_train.config.schema import DataBlock
from smart_train.config.typed_values import Problem
from smart_train.core.errors import DataError, border
from smart_train.data.collection import DEV_SPLITS, TEST_SPLITS, Collection
from smart_train.data.readers import hub_datasets as hub
from smart_train.data.readers import row_cache
from smart_train.data.readers.base import DataProblem, Reader, is_hub_name, local_path
from smart_train.data.readers.row_builder import RowBuilder
from smart_train.data.readers.row_parser import RowParser, choose_columns
from smart_train.data.tables import (
    IterableTable,
    StoredTable,
    Table,
    TextTable,
    columns_of,
    data_files,
    open_files,
    split_name,
    suffix,
)

logger = logging.getLogger(__name__)

SHARD_ROWS = 100_000  # of a stored dataset that is streamed: a resume skips less than that

Sources = dict[str, Any]
"""split -> its files, a folder of save_to_disk, or None: `datasets` loads it."""


class RowsReader(Reader):
    """Read a table of queries and documents."""

    has_source_column = True

    def __init__(self, data: DataBlock) -> None:
        super().__init__(data)
        path = local_path(data)
        self.on_hub = path is None
        self.sources: Sources = dict.fromkeys(_hub_splits(data)) if path is None else local_sources(path, data)

    @classmethod
    def detect(cls, data: DataBlock) -> bool:
        return Path(data.path).exists() or is_hub_name(data.path)

    def splits(self) -> list[str]:
        return list(self.sources)

    def read(self, split: str) -> Collection:
        return self._read(split, None)

    def read_first(self, split: str, limit: int) -> Collection:
        return self._read(split, limit)

    def _read(self, split: str, limit: int | None) -> Collection:
        """Read a large table from its conversion on disk, any other one into memory."""
        table: Any = row_cache.open_large(self.sources[split]) or self.table(split)
        stored = row_cache.read(table, self.data, self.name, limit)
        return self.read_table(table, limit) if stored is None else stored

    def read_table(self, table: Table, limit: int | None) -> Collection:
        """Read the rows of one split, until there are ``limit`` pairs."""
        return read_rows(table, self.data, self.name, limit)

    def table(self, split: str) -> Table:
        """Open one split."""
        source = self.sources[split]
        if isinstance(source, list):
            parquet = {suffix(file) for file in source} == {".parquet"}
            chosen = choose_columns(columns_of(source), self.data)[0] if parquet else None
            return open_files(source, reads=chosen.names() if chosen else None)
        if isinstance(source, Path):
            import datasets

            with border(source, "not a readable folder of Dataset.save_to_disk; write it again"):
                return StoredTable(datasets.load_from_disk(str(source)), str(source), source)
        return hub.table(self.data.path, self.data.subset, split, self.data.revision)

    def stream_table(self, split: str) -> Any:
        source = self.sources[split]
        if isinstance(source, list) and {suffix(file) for file in source} == {".parquet"}:
            return row_cache.ParquetRows(sorted(source))
        if isinstance(source, list) and (table := open_files(source)) and isinstance(table, TextTable):
            return table
        if source is None:
            return IterableTable(hub.stream(self.data.path, self.data.subset, split, self.data.revision), self.name)
        dataset: Any = self.table(split).dataset  # type: ignore[union-attr]  # mapped from the disk: Arrow files, or a saved dataset
        return IterableTable(dataset.to_iterable_dataset(num_shards=max(1, len(dataset) // SHARD_ROWS)), self.name)

    def columns(self) -> list[str]:
        """Return the columns of the split that is trained on; [] where a Hub dataset does not describe them."""
        if self.on_hub:
            return hub.columns(self.data.path, self.data.subset, self.data.revision)
        source = self.sources[self.data.split]
        return columns_of(source) if isinstance(source, list) else self.table(self.data.split).columns

    def problems(self) -> Iterable[Problem]:
        columns = self.columns()
        return choose_columns(columns, self.data)[1] if columns else ()

    def no_scores(self) -> str | None:
        columns = self.columns()
        chosen, _ = choose_columns(columns, self.data)
        return f"{self.data.path} has no column of scores" if columns and chosen and not chosen.scores else None

    def image_column(self) -> str | None:
        chosen, _ = choose_columns(self.columns(), self.data)
        return chosen.image if chosen else None


# Where the rows are --------------------------------------------------------------------------------------------------


def local_sources(path: Path, data: DataBlock) -> Sources:
    """Return split -> files of a file or folder: a saved dataset, an image folder with metadata, files named by split,
    folders named by split, or just files, which are then ``data.split``."""
    if path.is_file():
        return {data.split: [path]}
    if (path / "state.json").is_file():
        return {data.split: path}
    saved = {f.parent.name: f.parent for f in sorted(path.glob("*/state.json"))}
    if saved:
        return dict(saved)
    if is_image_folder(path):
        return dict.fromkeys(hub.splits(str(path), data.subset, None))
    for files in (data_files(path), data_files(path / "data")):
        groups: dict[str, list[Path]] = {}
        for file in files:
            groups.setdefault(split_name(file), []).append(file)
        if groups.keys() & {"train", data.split, *DEV_SPLITS, *TEST_SPLITS}:
            return dict(groups)
        if files:
            return {data.split: files}
    for base in (path / "data", path):
        nested = {sub.name: data_files(sub) for sub in sorted(base.iterdir())} if base.is_dir() else {}
        nested = {name: files for name, files in nested.items() if files}
        if nested:
            return dict(nested)
    what = f"{path} has no data files"
    raise DataProblem(
        "data.path", what, "it needs .jsonl, .json, .csv, .tsv (also .gz, .bz2, .xz, .zst), .parquet or .arrow files"
    )


def is_image_folder(folder: Path) -> bool:
    """Return whether a folder has images and a table of them called metadata, as `datasets` reads them."""
    return any(split_name(f) == "metadata" for f in data_files(folder)) or any(folder.glob("*/metadata.*"))


def _hub_splits(data: DataBlock) -> list[str]:
    with hub.named_by_key(data):
        configs = hub.configs(data.path, data.revision)
        if data.subset is not None and data.subset not in configs:
            near = get_close_matches(data.subset, [*configs, *hub.retrieval_subsets(configs)], 1)
            what = f"{data.path} has no configuration {data.subset!r}; there is {', '.join(configs)}"
            raise DataProblem("data.subset", what, f"write data.subset: {near[0] if near else 'one of these'}")
        if data.subset is None and len(configs) > 1 and "default" not in configs:
            names = hub.retrieval_subsets(configs) or configs
            what = f"is not given, and {data.path} has several configurations: {', '.join(names)}"
            raise DataProblem("data.subset", what, "name one of them")
        return hub.splits(data.path, data.subset, data.revision)


# Reading -------------------------------------------------------------------------------------------------------------


def read_rows(
    table: Table, data: DataBlock, name: str, limit: int | None = None, parser: RowParser | None = None
) -> Collection:
    """Read a table into a collection.

    A row is a query and its document: a text (or a list of texts: several documents), an image, or both.  Rows with
    the same query text are one query with several relevant documents; documents with the same id are one document.
    The id is the column ``data.id`` where that is given, else a hash of the content (of an image: of its undecoded
    bytes, which reads every image once).  File names of page images are not unique in some published sets; where an
    id meets a different content, this raises.  Columns ``file`` (or ``doc_id``) and ``page`` are kept.  Negatives
    are texts, or with ``data.id`` ids of other rows, in ``negative``, ``negative_1`` ... or lists in ``negatives``;
    rows may have different numbers.  A document whose label (``data.label``) is 0 is a negative of its query, any
    other label is its grade.  A list in ``scores`` (or ``data.scores``) holds another model's scores of the row's
    documents, then of its negatives, in the order of the columns; see ``row_scores``.

    Rows without a query, a document or a label are left out, counted in a warning; the document of a row without a
    query stays where a negative names its id.  Reading stops at ``limit`` pairs.
    Raises DataError, naming the row, for wrong types, missing image files, and where nothing is left.
    """
    parser = parser or RowParser(table, data)
    builder = RowBuilder(table.name, parser.columns)
    rows = parser.rows()
    for row in rows:
        builder.add(row)
        if limit is not None and builder.pairs >= limit:
            break
    if builder.unknown():  # the ids that the negatives name are not read yet, or there are none
        for row in rows:
            builder.keep(row.documents)
    parser.report(name)
    if not builder.pairs:
        raise DataError(f"{table.name}: {parser.nothing()}")
    collection = builder.finish(name)
    for line in builder.warnings:
        logger.warning("%s: %s", name, line)
    return collection
