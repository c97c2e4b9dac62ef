"""Which document answers which query, from the files that say so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smart_train.core.errors import DataError
from smart_train.data.column_aliases import column, id_of, require
from smart_train.data.tables import Table, lines, open_files, suffix

QRELS_TEXT = (".tsv", ".txt", ".trec", ".qrels", ".qrel")
JUDGED_QUERY = ("query-id", "qid", "query", "topic")
JUDGED_DOCUMENT = ("corpus-id", "docid", "doc-id", "document-id", "docno", "pid")
GRADES = ("score", "rel", "relevance", "grade", "label")

Judgement = tuple[str, str, str, int]  # where, query id, document id, grade


def judgements(file: Path) -> Iterator[Judgement]:
    """(where, query id, document id, grade) of a qrels file: tab or space separated with or without a header, TREC's
    four columns, JSON Lines, CSV or Parquet."""
    if suffix(file) in QRELS_TEXT:
        return _judgement_lines(file)
    return judgement_rows(open_files([file]))


def judgement_rows(table: Table) -> Iterator[Judgement]:
    query = require(table, JUDGED_QUERY, "query ids")
    document = require(table, JUDGED_DOCUMENT, "document ids")
    grade = require(table, GRADES, "grades")
    for where, row in table:
        yield where, id_of(row, query, where), id_of(row, document, where), _grade(row.get(grade), where)


def _judgement_lines(file: Path) -> Iterator[Judgement]:
    places: tuple[int, int, int] | None = None
    for number, line in lines(file):
        where = f"{file}:{number}"
        fields = [f.strip() for f in (line.split("\t") if "\t" in line else line.split())]
        if places is None:
            places, header = _places(fields)
            if header:
                continue
        if len(fields) <= max(places) or not fields[places[0]] or not fields[places[1]]:
            raise DataError(f"{where}: {line!r} is not query id, document id, grade (nor TREC's four columns)")
        yield where, fields[places[0]], fields[places[1]], _grade(fields[places[2]], where)


def _places(fields: list[str]) -> tuple[tuple[int, int, int], bool]:
    """(where query, document and grade stand, whether this first line is a header)."""
    found = [column(fields, names) for names in (JUDGED_QUERY, JUDGED_DOCUMENT, GRADES)]
    if None not in found:
        query, document, grade = (fields.index(str(name)) for name in found)
        return (query, document, grade), True
    header = any(found) and not _number(fields[-1])
    return ((0, 1, 2) if len(fields) == 3 else (0, 2, 3)), header


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _grade(value: Any, where: str) -> int:
    if isinstance(value, bool) or not _number(str(value)) or not float(value).is_integer():
        raise DataError(f"{where}: the grade is {value!r}; it must be a whole number")
    return int(float(value))
