"""Texts that no tokenizer can read are found while reading, with their row and column, in every format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError
from smart_train.data.load import dev_and_test, load, load_ranked, read_all
from smart_train.data.readers.python_rows import to_collection

FAULTS = {"NUL": "a\0b", "surrogate": "half \ud800"}
COLUMNS = ["query", "positive", "negative", "negatives", "file", "id", "source"]


def lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("column", COLUMNS)
def test_a_row_is_refused_with_its_line_and_column(tmp_path, name, column):
    good = {"query": "q", "positive": "p", "negative": "n", "negatives": ["m"], "file": "f", "id": "1", "source": "s"}
    bad = good | {"id": "2"} | {column: ["m", FAULTS[name]] if column == "negatives" else FAULTS[name]}
    path = lines(tmp_path / "r.jsonl", [good, bad])
    with pytest.raises(DataError, match=rf"r\.jsonl:2: {column}.* has .*({name}|{name} pair)"):
        load(DataBlock(path=str(path), id="id" if column == "id" else None, source="source", dev=0, test=0))


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("part", ["corpus", "queries"])
def test_a_collection_is_refused_with_its_line(tmp_path, name, part):
    for one in ("corpus", "queries"):
        rows = [{"_id": f"{n}", "text": FAULTS[name] if one == part and n else "fine"} for n in range(2)]
        lines(tmp_path / f"{one}.jsonl", rows)
    lines(tmp_path / "qrels" / "train.jsonl", [{"query-id": "0", "corpus-id": "0", "score": 1}])
    with pytest.raises(DataError, match=rf"{part}\.jsonl:2: text has .*{name}"):
        load(DataBlock(path=str(tmp_path), dev=0, test=0))


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("column", ["query", "positive", "negative"])
def test_rows_from_python_are_refused_with_their_number_and_column(name, column):
    row = {"query": "q", "positive": "p", "negative": "n"}
    with pytest.raises(DataError, match=rf"row 1.*{column} has .*{name}"):
        to_collection([row, row | {column: FAULTS[name]}], "train_dataset")


@pytest.mark.parametrize("name", FAULTS)
def test_pages_are_refused_by_the_line_of_their_query_and_by_the_file_of_their_text(tmp_path, name):
    (tmp_path / "a.txt").write_text("fine")
    table = lines(tmp_path / "ask.jsonl", [{"query": "q", "file": "a.txt", "page": 1}] * 2)
    data = DataBlock(path=str(table), dev=0, test=0)
    assert len(load(data)[0].pairs()) == 1
    lines(table, [{"query": q, "file": "a.txt", "page": 1} for q in ("fine", FAULTS[name])])
    with pytest.raises(DataError, match=rf"ask\.jsonl:2: query has .*{name}"):
        load(data)
    if name == "NUL":  # no file of UTF-8 holds half of a surrogate pair
        lines(table, [{"query": "q", "file": "a.txt", "page": 1}])
        (tmp_path / "a.txt").write_text(FAULTS[name])
        with pytest.raises(DataError, match=r"ask\.jsonl:1: a\.txt has .*NUL"):
            load(data)


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("part", ["corpus", "queries"])
@pytest.mark.parametrize("read", [dev_and_test, read_all, load_ranked])
def test_what_evaluate_check_mine_and_score_read_is_refused_too(tmp_path, name, part, read):
    for one in ("corpus", "queries"):
        rows = [{"_id": f"{n}", "text": FAULTS[name] if one == part and n else f"fine {n}"} for n in range(4)]
        lines(tmp_path / f"{one}.jsonl", rows)
    for split in ("train", "dev", "test"):
        judged = [{"query-id": f"{n}", "corpus-id": f"{n}", "score": 1} for n in range(4)]
        lines(tmp_path / "qrels" / f"{split}.jsonl", judged)
    with pytest.raises(DataError, match=rf"{part}\.jsonl:2: text has .*{name}"):
        read(DataBlock(path=str(tmp_path)))
