"""Write CSV files that a spreadsheet opens as data, never as formulas."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from numbers import Number
from pathlib import Path
from typing import Any

from smart_train.core.atomic_io import replacing

# A cell is a formula where it begins with one of these signs or their full-width forms, or with a control character.
# Spreadsheets skip spaces; where lists are separated by semicolons (German, French ...) they cut a text there.
FORMULA = re.compile(r"(^[\t\r\n\0]|(?:^|[;|\t\r\n])\s*(?=[=+\-@\uff1d\uff0b\uff0d\uff20]))")
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


def write_csv(path: Path, head: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file, whole or not at all; None is an empty cell.

    A text that a spreadsheet would run as a formula gets an apostrophe before it, which spreadsheets hide (CWE-1236):
    queries and file names come from data, and a formula can send cells of the sheet elsewhere.  Numbers stay numbers,
    also those that are texts.
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
    text = str(value)
    if isinstance(value, Number) or NUMBER.fullmatch(text):
        return value
    found = FORMULA.sub(lambda match: f"'{match[0]}" if match.start() == 0 else f"{match[0]}'", text)
    return found if found != text else value
