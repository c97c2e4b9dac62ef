"""Parse the rows of a table with a query and its document in each row: which column holds what, what a row says.

Rows are parsed one by one, so that a table of any size can be read; readers/rows.py makes a collection of them in
memory, readers/row_cache.py one on disk.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from smart_train.config.schema import DataBlock
from smart_train.config.typed_values import Problem
from smart_train.core.errors import DataError, Setting
from smart_train.core.modality import is_unicode
from smart_train.data.collection import Document, content_id, first_few
from smart_train.data.tables import (
    FILES,
    PAGES,
    Boundary,
    StoredImage,
    Table,
    find_column,
    read_image,
    read_page,
    read_score,
)

logger = logging.getLogger(__name__)


QUERIES = ("query", "anchor", "question")  # the first is the default; the others are sentence-transformers' names
DOCUMENTS = ("positive", "document", "text", "pos", "passage", "answer")
NEGATIVES = ("negative", "negatives", "neg")


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

    def names(self) -> list[str]:
        """Return the columns that are read."""
        each = (self.query, self.document, self.image, self.id, self.file, self.page, *self.negatives)
        return [name for name in (*each, self.scores, self.source) if name]


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


# Rows -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ParsedRow:
    """What one row holds: where it is, its query, documents and negatives, and a score or None for each of the latter
    two together; None = the row has no scores.  No query, or no documents: the row is to be left out."""

    where: str
    query: str | None
    documents: list[Document]
    negatives: list[str]
    scores: list[float | None] | None


class RowParser:
    """Turn a table's rows into ``ParsedRow``, and count what is left out.  Raises DataError for unclear columns."""

    def __init__(self, table: Table, data: DataBlock) -> None:
        columns, problems = choose_columns(table.columns, data)
        if columns is None:
            lines = [(Setting(p.key), ": ", p.what, "; ", p.fix) for p in problems]
            raise DataError(*[part for line in lines for part in ("; ", line)][1:])
        self.table, self.columns, self.boundary = table, columns, Boundary.of(data)
        self.empty: dict[str, list[str]] = {"query": [], "document": []}
        self.late: dict[str, str] = {}

    def rows(self, skip: int = 0) -> Iterator[ParsedRow]:
        """Yield every row, after the first ``skip``.  Raises DataError, naming the row, for what it cannot hold."""
        columns, known = self.columns, set(self.table.columns)
        for where, row in islice(iter(self.table), skip, None):
            if not row.keys() <= known:
                self.late.update((name, where) for name in row.keys() - known - self.late.keys())
            _check_unicode(row, columns, where)
            texts = _texts(row.get(columns.query), columns.query, where)
            if len(texts) > 1:
                raise DataError(f"{where}: {columns.query} holds {len(texts)} texts; a row has one query")
            documents = list(_documents(row, columns, self.table, where, self.boundary))
            if not (texts and documents):
                self.empty["document" if texts else "query"].append(where)
                yield ParsedRow(where, texts[0] if texts else None, documents, [], None)
                continue
            negatives = [text for name in columns.negatives for text in _texts(row.get(name), name, where)]
            scored = columns.scores and row.get(columns.scores) is not None
            scores = row_scores(row, columns, len(documents), where) if scored else None
            yield ParsedRow(where, texts[0], documents, negatives, scores)

    def report(self, name: str) -> None:
        """Log what was left out."""
        for what, places in self.empty.items():
            if places:
                logger.warning("%s: %d rows without a %s are left out: %s", name, len(places), what, first_few(places))
        if self.late:
            what = "columns first appear after the rows that the columns are taken from, and are not read"
            first = [f"{column} ({where})" for column, where in sorted(self.late.items())]
            fix = "give the first row every column"
            logger.warning("%s: %d %s; %s: %s", name, len(self.late), what, fix, first_few(first))


def _check_unicode(row: dict[str, Any], columns: Columns, where: str) -> None:
    for name in columns.names():
        value = row.get(name)
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, str) and not is_unicode(one):
                raise DataError(f"{where}: {name} has half of a surrogate pair, which is no character; remove it")


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
        key = str(given) if given is not None else document_id(text, image)
        yield Document(key, text, image, _name(file), page, source=_name(source))


def _name(value: Any) -> str | None:
    return None if value in (None, "") else str(value)


def document_id(text: str | None, image: Any) -> str:
    if image is None:
        return content_id("text", text or "")
    key = image.content_id() if isinstance(image, StoredImage) else content_id("image", Path(image).read_bytes())
    return key if text is None else content_id("page", f"{key}\n{text}")
