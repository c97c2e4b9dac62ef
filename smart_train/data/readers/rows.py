"""Read tables with a query and its document in each row: files, folders of files, or datasets on the Hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from smart_train.config.schema import DataBlock
from smart_train.config.typed_values import Problem
from smart_train.core.errors import DataError, Setting
from smart_train.data.collection import DEV_SPLITS, TEST_SPLITS, Collection, Document, content_id, first_few
from smart_train.data.readers import hub_datasets as hub
from smart_train.data.readers.base import DataProblem, Reader, is_hub_name, local_path
from smart_train.data.tables import (
    FILES,
    PAGES,
    Boundary,
    StoredImage,
    StoredTable,
    Table,
    columns_of,
    data_files,
    find_column,
    open_files,
    read_image,
    read_page,
    read_score,
    split_name,
)

logger = logging.getLogger(__name__)

QUERIES = ("query", "anchor", "question")  # the first is the default; the others are sentence-transformers' names
DOCUMENTS = ("positive", "document", "text", "pos", "passage", "answer")
NEGATIVES = ("negative", "negatives", "neg")

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
        return self.read_table(self.table(split), None)

    def read_first(self, split: str, limit: int) -> Collection:
        return self.read_table(self.table(split), limit)

    def read_table(self, table: Table, limit: int | None) -> Collection:
        """Read the rows of one split, until there are ``limit`` pairs."""
        return read_rows(table, self.data, self.name, limit)

    def table(self, split: str) -> Table:
        """Open one split."""
        source = self.sources[split]
        if isinstance(source, list):
            return open_files(source)
        if isinstance(source, Path):
            import datasets

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


# Which column holds what ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Columns:
    """The column of each part of a row; None where there is none."""

    query: str
    document: str | None
    image: str | None
    id: str | None
    file: str | None
    page: str | None
    negatives: tuple[str, ...]
    scores: str | None
    source: str | None = None


def query_column(columns: list[str], data: DataBlock) -> str:
    """Return ``data.query``; where that is not given, the first usual name that the table has."""
    usual = QUERIES if data.query == QUERIES[0] else (data.query,)
    return next((name for name in usual if name in columns), data.query)


def choose_columns(columns: list[str], data: DataBlock) -> tuple[Columns | None, list[Problem]]:
    """Return (columns, []), or (None, problems), each problem with the nearest names."""
    problems: list[Problem] = []
    query = query_column(columns, data)
    named = {"query": query, "document": data.document, "image": data.image, "id": data.id, "scores": data.scores}
    named["source"] = source = data.source if data.source != "file" else None
    for key, name in named.items():
        if name and name not in columns:
            near = get_close_matches(name, columns, 1, 0.5)
            what = f"there is no column {name!r} in {data.path}; it has {', '.join(columns) or 'no rows'}"
            problems.append(Problem(f"data.{key}", what, f"write data.{key}: {near[0] if near else 'one of these'}"))
    document = data.document if data.document is not None else next((c for c in DOCUMENTS if c in columns), None)
    image = data.image if data.image is not None else ("image" if "image" in columns else None)
    if not document and not image:
        what = f"no column holds the documents of {data.path} (positive, document, text, image); it has "
        problems.append(
            Problem("data.document", what + (", ".join(columns) or "no rows"), "name the column in data.document")
        )
    negatives = [c for c in columns if c in NEGATIVES or re.fullmatch(r"negative_\d+", c)]
    negatives.sort(key=lambda c: (not c.startswith("negative_"), int("0" + "".join(filter(str.isdigit, c)))))
    if data.negatives and not negatives:
        what = f"is {data.negatives}, but {data.path} has no column negative, negative_1 ... or negatives"
        problems.append(Problem("data.negatives", what, "write data.negatives: 0, or add such a column"))
    if problems:
        return None, problems
    scores = data.scores if data.scores is not None else ("scores" if "scores" in columns else None)
    rest = [c for c in columns if c not in (query, document, image, data.id)]
    file, page = find_column(rest, FILES), find_column(rest, PAGES)
    found = Columns(
        query, document or None, image or None, data.id, file, page, tuple(negatives), scores or None, source
    )
    return found, []


# Reading -------------------------------------------------------------------------------------------------------------


def read_rows(table: Table, data: DataBlock, name: str, limit: int | None = None) -> Collection:
    """Read a table into a collection.

    A row is a query and its document: a text (or a list of texts: several documents), an image, or both.  Rows with
    the same query text are one query with several relevant documents; documents with the same id are one document.
    The id is the column ``data.id`` where that is given, else a hash of the content (of an image: of its undecoded
    bytes, which reads every image once).  File names of page images are not unique in some published sets; where an
    id meets a different content, this raises.  Columns ``file`` (or ``doc_id``) and ``page`` are kept.  Negatives
    are texts, or with ``data.id`` ids of other rows, in ``negative``, ``negative_1`` ... or lists in ``negatives``;
    rows may have different numbers.  A list in ``scores`` (or ``data.scores``) holds another model's scores of the
    row's documents, then of its negatives, in the order of the columns; see ``row_scores``.

    Rows without a query or without a document are left out, counted in a warning; the document of a row without a
    query stays where a negative names its id.  Reading stops at ``limit`` pairs.
    Raises DataError, naming the row, for wrong types, missing image files, and where nothing is left.
    """
    columns, problems = choose_columns(table.columns, data)
    if columns is None:
        lines = [(Setting(p.key), ": ", p.what, "; ", p.fix) for p in problems]
        raise DataError(*[part for line in lines for part in ("; ", line)][1:])
    builder, boundary = _Builder(table, columns), Boundary.of(data)
    empty: dict[str, list[str]] = {"query": [], "document": []}
    known, late = set(table.columns), dict[str, str]()
    for where, row in table:
        if limit is not None and builder.pairs >= limit:
            break
        late.update((name, where) for name in row.keys() - known - late.keys())
        texts = _texts(row.get(columns.query), columns.query, where)
        if len(texts) > 1:
            raise DataError(f"{where}: {columns.query} holds {len(texts)} texts; a row has one query")
        documents = list(_documents(row, columns, table, where, boundary))
        if texts and documents:
            builder.add(where, row, texts[0], documents)
        else:
            empty["document" if texts else "query"].append(where)
            if columns.id:
                builder.without_query.update((document.id, document) for document in documents)
    for what, places in empty.items():
        if places:
            logger.warning("%s: %d rows without a %s are left out: %s", name, len(places), what, first_few(places))
    if late:
        what = "columns first appear after the rows that the columns are taken from, and are not read"
        first = [f"{column} ({where})" for column, where in sorted(late.items())]
        logger.warning("%s: %d %s; give the first row every column: %s", name, len(late), what, first_few(first))
    if not builder.pairs:
        raise DataError(f"{table.name}: no row has a query and a document")
    return builder.finish(name)


@dataclass
class _Builder:
    """Rows merged into a collection: the same query text is one query, the same id or content one document."""

    table: Table
    columns: Columns
    corpus: dict[str, Document] = field(default_factory=dict)
    queries: dict[str, str] = field(default_factory=dict)
    qrels: dict[str, dict[str, int]] = field(default_factory=dict)
    negatives: dict[str, dict[str, None]] = field(default_factory=dict)  # texts or ids, ordered and unique
    teacher: dict[str, dict[str, float]] = field(default_factory=dict)  # of documents by id
    scored: dict[str, dict[str, float]] = field(default_factory=dict)  # of negatives: texts or ids
    rescored: int = 0
    without_query: dict[str, Document] = field(default_factory=dict)  # a negative may name them
    by_text: dict[str, str] = field(default_factory=dict)
    pairs: int = 0

    def add(self, where: str, row: dict[str, Any], query: str, documents: list[Document]) -> None:
        key = content_id("query", query)
        self.queries[key] = query
        for document in documents:
            before = self.corpus.setdefault(document.id, document)
            if before is not document and not _same(before, document):
                raise DataError(
                    f"{where}: the id {document.id!r} is there before, with another content. Leave data.id empty (the "
                    "id is then a hash of the content), or name a column that is unique per document"
                )
            if document.text and document.image is None:
                self.by_text.setdefault(document.text, document.id)
            judged = self.qrels.setdefault(key, {})
            self.pairs += document.id not in judged
            judged[document.id] = 1
        negatives = [text for name in self.columns.negatives for text in _texts(row.get(name), name, where)]
        self.negatives.setdefault(key, {}).update(dict.fromkeys(negatives))
        if self.columns.scores and row.get(self.columns.scores) is not None:
            values = row_scores(row, self.columns, len(documents), where)
            ids = [document.id for document in documents]
            self._score(self.teacher.setdefault(key, {}), ids, values[: len(ids)])
            self._score(self.scored.setdefault(key, {}), negatives, values[len(ids) :])

    def _score(self, into: dict[str, float], names: list[str], values: list[float | None]) -> None:
        for name, value in zip(names, values, strict=True):
            if value is not None:
                self.rescored += into.get(name, value) != value
                into[name] = value

    def finish(self, name: str) -> Collection:
        """Return the collection, with negatives as documents: where the table has ids, a negative is an id; a text that
        some row's document has is that document; any other text is a document of its own."""
        lists: dict[str, list[str]] = {}
        unknown: list[str] = []
        for query, values in self.negatives.items():
            for value in values:
                key = self._negative(value)
                if key is None:
                    unknown.append(value)
                    continue
                if key not in self.qrels[query]:
                    lists.setdefault(query, []).append(key)
                if value in self.scored.get(query, ()):
                    self._score(self.teacher[query], [key], [self.scored[query][value]])
        if unknown:
            what = "negatives name no document that was read and are left out"
            logger.warning("%s: %d %s: %s", name, len(unknown), what, first_few(unknown))
        if self.rescored:
            logger.warning(
                "%s: %d pairs have two scores in %s; the last counts", name, self.rescored, self.columns.scores
            )
        return Collection(
            name, self.corpus, self.queries, self.qrels, lists, {q: s for q, s in self.teacher.items() if s}
        )

    def _negative(self, value: str) -> str | None:
        if self.columns.id:
            if value not in self.corpus and value in self.without_query:
                self.corpus[value] = self.without_query[value]
            if value in self.corpus:
                return value
            if not self.by_text:  # a table of images: a text cannot be its negative, so this was an id
                return None
        key = self.by_text.setdefault(value, content_id("text", value))
        self.corpus.setdefault(key, Document(key, value))
        return key


def _texts(value: Any, name: str, where: str) -> list[str]:
    """The texts of a cell, which is empty, a text or a list of texts."""
    values = value if isinstance(value, list | tuple) else [value]
    if any(v is not None and not isinstance(v, str) for v in values):
        raise DataError(f"{where}: {name} holds {type(values[0]).__name__}; it must be a text or a list of texts")
    return [v.strip() for v in values if v is not None and v.strip()]


def row_scores(row: dict[str, Any], columns: Columns, documents: int, where: str) -> list[float | None]:
    """Return one score, or None, for each of the row's documents and then its negatives, empty cells left out.

    The list may also count the empty cells (rows padded to equal numbers of negatives); a number stands for a list
    of one.  Raises DataError for any other length, and for what is no finite number.
    """
    name = str(columns.scores)
    value = row[name]
    given = list(value) if isinstance(value, list | tuple) else [value]
    if any(isinstance(score, str | list | dict) for score in given):
        fix = 'correct it, or write data.scores: "" to ignore the column'
        raise DataError(f"{where}: {name} must be a list of numbers, got {str(value)[:40]!r}; {fix}")
    scores = [None if score is None else read_score(score, f"{where}: {name}") for score in given]
    cells = [*_cells(row, columns.document)] if columns.document else []
    cells = cells if any(cells) else [True] * documents  # a page has no text to be counted by
    cells += [filled for negatives in columns.negatives for filled in _cells(row, negatives)]
    if len(scores) == len(cells):
        return [score for score, filled in zip(scores, cells, strict=True) if filled]
    if len(scores) != sum(cells):
        what = f"{name} has {len(scores)} values, but the row has {documents} documents and {sum(cells) - documents}"
        raise DataError(f"{where}: {what} negatives; give one for each of these, in this order")
    return scores


def _cells(row: dict[str, Any], name: str) -> list[bool]:
    """Return whether each value of a cell holds a text; a cell without a list is one value."""
    value = row.get(name)
    return [bool(v and v.strip()) for v in (value if isinstance(value, list | tuple) else [value])]


def _documents(
    row: dict[str, Any], columns: Columns, table: Table, where: str, boundary: Boundary
) -> Iterable[Document]:
    texts = _texts(row.get(columns.document), columns.document, where) if columns.document else []
    image = read_image(row.get(columns.image) if columns.image else None, table, where, boundary)
    given = row.get(columns.id) if columns.id else None
    if columns.id and (given is None or not str(given).strip()):
        raise DataError(f"{where}: {columns.id} is empty; a row needs an id, or leave data.id empty")
    if len(texts) > 1 and (image is not None or given is not None):
        raise DataError(f"{where}: {len(texts)} documents share one {'id' if image is None else 'image'}; one a row")
    file = row.get(columns.file) if columns.file else None
    page = read_page(row.get(columns.page)) if columns.page else None
    source = row.get(columns.source) if columns.source else None
    contents: list[str | None] = [*texts] if texts or image is None else [None]
    for text in contents:
        key = str(given) if given is not None else _content_id(text, image)
        yield Document(key, text, image, _name(file), page, source=_name(source))


def _name(value: Any) -> str | None:
    return None if value in (None, "") else str(value)


def _content_id(text: str | None, image: Any) -> str:
    if image is None:
        return content_id("text", text or "")
    key = image.content_id() if isinstance(image, StoredImage) else content_id("image", Path(image).read_bytes())
    return key if text is None else content_id("page", f"{key}\n{text}")


def _same(first: Document, second: Document) -> bool:
    """The same content; images are compared by their bytes, which are read only here, where an id comes again."""
    if first.text != second.text or (first.image is None) != (second.image is None):
        return False
    return first.image is None or _content_id(None, first.image) == _content_id(None, second.image)
