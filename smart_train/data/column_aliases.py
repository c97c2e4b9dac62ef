"""What the columns of other people's tables are called, and what a cell may hold."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any

from smart_train.core.errors import DataError
from smart_train.data.tables import StoredImage, Table

QUERY_IDS = ("_id", "id", "query-id", "qid")
CORPUS_IDS = ("_id", "id", "corpus-id", "docid")
FILES = ("file", "doc-id")
PAGES = ("page", "page-number-in-doc")
HASHES = ("hash",)


def column(columns: Iterable[str], names: Iterable[str]) -> str | None:
    """The first of these names that is a column, whatever its case and whether it is written with - or _."""
    plain = {c.lower().replace("_", "-").replace(" ", "-"): c for c in columns}
    return next((plain[n.replace("_", "-")] for n in names if n.replace("_", "-") in plain), None)


def require(table: Table, names: tuple[str, ...], what: str) -> str:
    found = column(table.columns, names)
    if found is None:
        near = get_close_matches(names[0], table.columns, 1)
        raise DataError(
            f"{table.name}: no column for {what} ({', '.join(names)}); it has {', '.join(table.columns) or 'no rows'}"
            + (f"; rename {near[0]!r}?" if near else "")
        )
    return found


def id_of(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of ids that pandas has widened
    if value is None or isinstance(value, float | dict | list | bool) or not str(value).strip():
        raise DataError(f"{where}: {key} is {value!r}; an id is a text or a whole number")
    return str(value)


def text_of(row: dict[str, Any], key: str | None, where: str) -> str:
    value = row.get(key) if key else None
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: {key} is {type(value).__name__}; it must be a text")
    return (value or "").strip()


def score_of(value: Any, where: str) -> float:
    """A teacher's score, which may have any unit and sign but must be a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise DataError(f"{where}: the score is {value!r}; it must be a finite number")
    return float(value)


def picture_of(value: Any, table: Table, where: str, home: Path | None = None, there: bool = True) -> Any:
    """A stored image as it is, or the path of an image file; None for none.

    home: paths that lead nowhere from the table's own folder are looked for here (a corpus/ inside a collection)
    there: False takes the path of a file that is missing, which then fails when it is decoded
    """
    if value is None or value == "":
        return None
    if isinstance(value, StoredImage):
        return value
    if not isinstance(value, str):
        raise DataError(f"{where}: the image is {type(value).__name__}; give the path of an image file")
    paths = [folder / value for folder in (table.folder(where), home) if folder is not None]
    path = next((p for p in paths if p.is_file()), None)
    if path is None and there:
        raise DataError(f"{where}: no image file {paths[-1]}; paths are relative to the folder of the table")
    return str(path or paths[-1])


def page_of(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None  # some sets hold labels such as "iv" here; the number is for messages only
