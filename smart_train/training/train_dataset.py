"""Turn training data (a Collection, a datasets.Dataset or a list of dicts) into a Collection."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from smart_train.core.errors import DataError
from smart_train.core.modality import text_fault
from smart_train.data.collection import Collection, Document, content_id

QUERY = ("query", "anchor")
POSITIVE = ("positive", "document")
NEGATIVE = re.compile(r"negatives?(_\d+)?")
NOT_TEXT = ("label", "labels", "score", "scores", "similarity", "id", "query_id", "document_id")


def to_collection(data: Any, name: str) -> tuple[Collection, int]:
    """Return a Collection (the one given, or one made of rows of texts), and how many negatives a row has at most.

    Rows are a ``datasets.Dataset`` or a list of dicts.  Their columns are found by name (query or anchor, positive or
    document, negative, negative_1 ...), else by position (query, positive, negatives ...).  A cell of a negative column
    may be a list.  Equal texts are one query, or one document.

    Raises:
        DataError: the columns do not say which text is which, or a cell is no text.

    >>> rows = [{"anchor": "a query", "positive": "a passage", "negative": "another"}]
    >>> collection, negatives = to_collection(rows, "pairs")
    >>> len(collection.queries), len(collection.corpus), negatives
    (1, 2, 1)
    """
    if isinstance(data, Collection):
        return data, 0
    if isinstance(data, Mapping | str) or not isinstance(data, Iterable):
        raise DataError(
            f"{name} is a {type(data).__name__}; give a Collection, one split of a datasets.Dataset, or a list of dicts"
        )
    columns = getattr(data, "column_names", None)
    rows: Any = data if columns is not None else list(data)
    if columns is None:
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping) or not all(isinstance(column, str) for column in row):
                raise DataError(f"{name}, row {number} is {row!r:.80}; give a dict of column -> text")
        columns = list(rows[0]) if rows else []
    query, positive, negatives = choose_columns(list(columns), name)
    collection, most = Collection(name, {}, {}, {}), 0
    for number, row in enumerate(rows):
        where = f"{name}, row {number}"
        if set(row) != set(columns):
            raise DataError(f"{where} has the columns {', '.join(row)}, the first row has {', '.join(columns)}")
        query_id = content_id("query", text := _text(row[query], query, where))
        collection.queries[query_id] = text
        document_id = _add(collection, _text(row[positive], positive, where))
        collection.qrels.setdefault(query_id, {})[document_id] = 1
        listed = collection.negatives.setdefault(query_id, [])
        cells = [(column, cell) for column in negatives for cell in _cells(row[column])]
        most = max(most, len(cells))
        for column, cell in cells:
            negative_id = _add(collection, _text(cell, column, where))
            if negative_id not in listed:
                listed.append(negative_id)
    for query_id, listed in collection.negatives.items():  # another row's positive is no negative of its query
        collection.negatives[query_id] = [one for one in listed if one not in collection.qrels[query_id]]
    if not collection.queries:
        raise DataError(f"{name} has no rows")
    return collection, most


def choose_columns(columns: list[str], name: str) -> tuple[str, str, list[str]]:
    """Return the columns of the query, the positive and the negatives; by name, else by position.

    Raises DataError where some columns have known names and others do not.
    """
    queries = [column for column in columns if column in QUERY]
    positives = [column for column in columns if column in POSITIVE]
    negatives = [column for column in columns if NEGATIVE.fullmatch(column)]
    other = [column for column in columns if column not in (*queries, *positives, *negatives)]
    found = ", ".join(columns) or "no columns"
    if len(queries) == len(positives) == 1 and not other:
        return queries[0], positives[0], negatives
    odd = [column for column in columns if column in NOT_TEXT]
    if queries or positives or negatives or odd or len(columns) < 2:
        raise DataError(
            f"{name} has {found}, and it is not clear which column is what; rename or remove columns so that they are "
            f"{' or '.join(QUERY)}, {' or '.join(POSITIVE)}, and negative, negative_1 ..."
        )
    return columns[0], columns[1], columns[2:]


def _cells(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _text(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {column} is {value!r:.80}, not a text; correct the row or remove it")
    if fault := text_fault(value):
        raise DataError(f"{where}: {column} has {fault}; remove it")
    return value


def _add(collection: Collection, text: str) -> str:
    key = content_id("text", text)
    collection.corpus.setdefault(key, Document(key, text))
    return key
