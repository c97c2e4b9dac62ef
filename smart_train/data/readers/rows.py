"""Read tables with a query and its document in each row: files, folders of files, or datasets on the Hub."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from smart_train.config.schema import DataBlock
from smart_train.config.typed_values import Problem
from smart_train.core.errors import DataError, border
from smart_train.data.collection import DEV_SPLITS, TEST_SPLITS, Collection, Document, content_id, first_few
from smart_train.data.readers import hub_datasets as hub
from smart_train.data.readers import row_cache
from smart_train.data.readers.base import DataProblem, Reader, is_hub_name, local_path
from smart_train.data.readers.row_parser import Columns, ParsedRow, RowParser, choose_columns, document_id
from smart_train.data.tables import Ids, StoredTable, Table, columns_of, data_files, open_files, split_name, suffix

logger = logging.getLogger(__name__)

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
    raise DataProblem("data.path", what, "it needs .jsonl, .json, .csv, .tsv (also .gz), .parquet or .arrow files")


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


def read_rows(table: Table, data: DataBlock, name: str, limit: int | None = None) -> Collection:
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
    parser = RowParser(table, data)
    builder = _Builder(table, parser.columns)
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
    return builder.finish(name)


@dataclass
class _Builder:
    """Rows merged into a collection: the same query text is one query, the same id or content one document.

    Without ``data.id`` negatives are texts.  With it they are ids, unless none of them is the id of a document and
    some of them are texts: of several words, or the text of a document.
    """

    table: Table
    columns: Columns
    corpus: dict[str, Document] = field(default_factory=dict)
    queries: dict[str, str] = field(default_factory=dict)
    qrels: dict[str, dict[str, int]] = field(default_factory=dict)
    negatives: dict[str, dict[str | Document, None]] = field(default_factory=dict)  # texts or ids; unique, in order
    teacher: dict[str, dict[str, float]] = field(default_factory=dict)  # of documents by id
    scored: dict[str, dict[str, float]] = field(default_factory=dict)  # of negatives: texts or ids
    rescored: int = 0
    spare: dict[str, Document] = field(default_factory=dict)  # documents of no pair, which negatives may name
    by_text: dict[str, str] = field(default_factory=dict)
    pairs: int = 0

    def add(self, row: ParsedRow) -> None:
        documents = row.documents
        if row.query is None or not documents:
            self.keep(documents)
            return
        key = content_id("query", row.query)
        self.queries[key] = row.query
        judged, negatives = self.qrels.setdefault(key, {}), self.negatives.setdefault(key, {})
        for document, grade in zip(documents, row.grades, strict=True):
            self._check_same(document, row.where)
            if not grade:
                negatives[document] = None
                continue
            self.corpus.setdefault(document.id, document)
            if document.text and document.image is None:
                self.by_text.setdefault(document.text, document.id)
            self.pairs += document.id not in judged
            judged[document.id] = max(grade, judged.get(document.id, 0))
        negatives.update(dict.fromkeys(row.negatives))
        if row.scores is not None:
            ids = [document.id for document in documents]
            self._score(self.teacher.setdefault(key, {}), ids, row.scores[: len(ids)])
            self._score(self.scored.setdefault(key, {}), row.negatives, row.scores[len(ids) :])

    def keep(self, documents: list[Document]) -> None:
        """Remember documents without a query, which a negative may name by their id."""
        if self.columns.id:
            self.spare.update((document.id, document) for document in documents)

    def _check_same(self, document: Document, where: str) -> None:
        before = self.corpus.get(document.id, document)
        if before is not document and not _same(before, document):
            raise DataError(
                f"{where}: the id {document.id!r} is there before, with another content. Leave data.id empty (the "
                "id is then a hash of the content), or name a column that is unique per document"
            )

    def _score(self, into: dict[str, float], names: list[str], values: list[float | None]) -> None:
        for name, value in zip(names, values, strict=True):
            if value is not None:
                self.rescored += into.get(name, value) != value
                into[name] = value

    def _named(self) -> set[str]:
        return {value for row in self.negatives.values() for value in row if isinstance(value, str)}

    def unknown(self) -> bool:
        """Return whether there are negatives that are ids, as it seems, and no document that was read has one."""
        if not self.columns.id:
            return False
        known = Ids({**self.spare, **self.corpus})
        return any(known.find(value) is None and value not in self.by_text for value in self._named())

    def _negatives_are_ids(self) -> bool:
        if not self.columns.id:
            return False
        known, named = Ids({**self.spare, **self.corpus}), self._named()
        if any(known.find(value) is not None for value in named):
            return True
        return not any(value in self.by_text or len(value.split()) > 1 for value in named)

    def finish(self, name: str) -> Collection:
        """Return the collection, with negatives as documents: an id is that document; a text that some row's document
        has is that document; any other text is a document of its own."""
        lists: dict[str, list[str]] = {}
        unknown: list[str] = []
        relevant = 0
        known = Ids({**self.spare, **self.corpus}) if self._negatives_are_ids() else None
        for query, values in self.negatives.items():
            for value in values:
                key = self._negative(value, known)
                if key is None:
                    unknown.append(str(value))
                    continue
                if key in self.qrels[query]:
                    relevant += 1
                elif key not in (found := lists.setdefault(query, [])):
                    found.append(key)
                if value in self.scored.get(query, ()):
                    self._score(self.teacher[query], [key], [self.scored[query][str(value)]])
        if unknown:
            what = "negatives name no document that was read and are left out"
            if not lists:
                fix = "name the column that they are ids of in data.id, or leave it empty where they are texts"
                raise DataError(f"{self.table.name}: all {len(unknown)} {what}: {first_few(unknown)}; {fix}")
            logger.warning("%s: %d %s: %s", name, len(unknown), what, first_few(unknown))
        if relevant:
            what = "negatives are also positives of their query, and are left out of its negatives"
            logger.warning("%s: %d %s", name, relevant, what)
        if self.rescored:
            logger.warning(
                "%s: %d pairs have two scores in %s; the last counts", name, self.rescored, self.columns.scores
            )
        alone = [query for query, judged in self.qrels.items() if not judged]
        for query in alone:
            for part in (self.queries, self.qrels, lists, self.teacher):
                part.pop(query, None)
        if alone:
            what = f"queries have no document with a {self.columns.label} above 0 and are left out"
            logger.warning("%s: %d %s", name, len(alone), what)
        return Collection(
            name, self.corpus, self.queries, self.qrels, lists, {q: s for q, s in self.teacher.items() if s}
        )

    def _negative(self, value: str | Document, known: Ids | None) -> str | None:
        if isinstance(value, Document):
            return self.corpus.setdefault(value.id, value).id
        id = known.find(value) if known else None
        if id is not None:
            self.corpus.setdefault(id, self.spare.get(id) or self.corpus[id])
            return id
        if known and value not in self.by_text:
            return None
        key = self.by_text.setdefault(value, content_id("text", value))
        self.corpus.setdefault(key, Document(key, value))
        return key


def _same(first: Document, second: Document) -> bool:
    """The same content; images are compared by their bytes, which are read only here, where an id comes again."""
    if first.text != second.text or (first.image is None) != (second.image is None):
        return False
    return first.image is None or document_id(None, first.image) == document_id(None, second.image)
