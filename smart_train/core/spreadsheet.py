"""Write CSV files that a spreadsheet opens as data, never as formulas."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from smart_train.core.atomic_io import replacing

# What makes a cell a formula; spreadsheets skip spaces, and take full-width forms for the plain ones.
FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
CONTROL = ("\t", "\r", "\n", "\0")


def write_csv(path: Path, head: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file, whole or not at all; None is an empty cell.

    A text that a spreadsheet would run as a formula gets an apostrophe before it, which spreadsheets hide (CWE-1236):
    queries and file names come from data, and a formula can send cells of the sheet elsewhere.  Numbers stay numbers.
    """
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([cell(name) for name in head])
        writer.writerows([cell(value) for value in row] for row in rows)


def cell(value: Any) -> Any:
    """Return a value as a cell of ``write_csv``.

    >>> cell("=1+1"), cell(-0.5), cell("a-b"), cell(None)
    ("'=1+1", -0.5, 'a-b', '')
    """
    if value is None:
        return ""
    if isinstance(value, str) and (value.startswith(CONTROL) or value.lstrip().startswith(FORMULA)):
        return f"'{value}"
    return value
