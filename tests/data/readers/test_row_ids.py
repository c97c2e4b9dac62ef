"""Negatives that are ids of other rows: compared by value, never turned into texts, counted where no row has them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_data

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError
from smart_train.data.collection import Collection
from smart_train.data.readers.base import find_reader
from smart_train.data.tables import Ids, id_text

ROWS = [
    {"query": f"q{n}", "positive": f"text {n}", "id": n, "negatives": [(n + 1) % 30, (n + 7) % 30]} for n in range(30)
]


def read(path: Path, limit: int | None = None, **change) -> Collection:
    reader = find_reader(DataBlock(path=str(path), **({"id": "id"} | change)))
    return reader.read("train") if limit is None else reader.read_first("train", limit)


def named(found: Collection) -> dict[str, list[str]]:
    return {found.queries[q]: [str(found.corpus[d].text) for d in row] for q, row in found.negatives.items()}


EXPECTED = {f"q{n}": [f"text {(n + 1) % 30}", f"text {(n + 7) % 30}"] for n in range(30)}


@pytest.mark.parametrize("own", [int, float, str, lambda n: f"{n}.0"], ids=["1", "1.0", "'1'", "'1.0'"])
@pytest.mark.parametrize("other", [int, float, str, lambda n: f"{n}.0"], ids=["1", "1.0", "'1'", "'1.0'"])
def test_ids_of_every_type_compare_by_value(tmp_path, own, other):
    rows = [row | {"id": own(row["id"]), "negatives": [other(n) for n in row["negatives"]]} for row in ROWS]
    found = read(tiny_data.write_lines(tmp_path / "r.jsonl", rows))
    assert named(found) == EXPECTED and len(found.corpus) == 30
    assert named(read(_parquet(tmp_path / "r.parquet", rows))) == EXPECTED
    assert named(read(_csv(tmp_path / "r.csv", rows))) == EXPECTED


def _parquet(path: Path, rows: list[dict]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def _csv(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["query", "positive", "id", "negative_1", "negatives"])
        writer.writeheader()
        for row in rows:
            first, *rest = row["negatives"]
            writer.writerow(row | {"negative_1": first, "negatives": json.dumps(rest)})
    return path


@pytest.mark.parametrize("limit", [1, 5, 20])
def test_a_limit_makes_no_document_of_an_id(tmp_path, limit):
    found = read(tiny_data.write_lines(tmp_path / "r.jsonl", ROWS), limit)
    assert named(found) == {query: texts for query, texts in list(EXPECTED.items())[:limit]}
    assert len(found.pairs()) == limit and {d.text for d in found.corpus.values()} <= {r["positive"] for r in ROWS}


def test_ids_that_no_row_has_are_left_out_and_counted(tmp_path, caplog):
    rows = [row | {"negatives": [*row["negatives"], 100 + row["id"], None, f"none {row['id']}"]} for row in ROWS]
    found = read(tiny_data.write_lines(tmp_path / "r.jsonl", rows))
    assert named(found) == EXPECTED and len(found.corpus) == 30
    assert "60 negatives name no document that was read and are left out: 100, none 0, 101" in caplog.text


@pytest.mark.parametrize("gone", [[900], ["gone"], [900.0, "901"], ["a-b"], [12345678901234567890]])
def test_where_no_id_is_known_that_is_an_error_with_what_to_write(tmp_path, gone):
    path = tiny_data.write_lines(tmp_path / "r.jsonl", [row | {"negatives": gone} for row in ROWS])
    with pytest.raises(
        DataError, match=rf"all {30 * len(gone)} negatives name no document.*data\.id, or leave it empty"
    ):
        read(path)


@pytest.mark.parametrize("wrong", [True, 1.5, [1, {"a": 1}]])
def test_what_is_no_id_is_refused_with_its_row(tmp_path, wrong):
    path = tiny_data.write_lines(tmp_path / "r.jsonl", [*ROWS[:3], ROWS[3] | {"negatives": wrong}])
    with pytest.raises(DataError, match=r"r\.jsonl:4: negatives holds .*an id is a text or a whole number"):
        read(path)


def test_texts_beside_ids_stay_texts(tmp_path):
    rows = [
        {k: v for k, v in row.items() if k != "negatives"} | {"negative": f"another text {n}"}
        for n, row in enumerate(ROWS)
    ]
    found = read(tiny_data.write_lines(tmp_path / "r.jsonl", rows))
    assert named(found) == {f"q{n}": [f"another text {n}"] for n in range(30)} and len(found.corpus) == 60


def test_qrels_negatives_and_scores_of_a_collection_compare_by_value(tmp_path):
    tiny_data.write_lines(tmp_path / "corpus.jsonl", [{"_id": n, "text": f"text {n}"} for n in range(4)])
    tiny_data.write_lines(tmp_path / "queries.jsonl", [{"_id": "q", "text": "query"}])
    tiny_data.write_lines(tmp_path / "negatives.jsonl", [{"_id": "q", "negatives": [1.0, "2.0", 3]}])
    tiny_data.write_lines(tmp_path / "teacher.jsonl", [{"_id": "q", "scores": {"0.0": 3.5, "2": 1}}])
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "train.tsv").write_text("q\t0.0\t1\n")
    found = find_reader(DataBlock(path=str(tmp_path))).read("train")
    assert found.qrels == {"q": {"0": 1}} and found.negatives == {"q": ["1", "2", "3"]}
    assert found.teacher == {"q": {"0": 3.5, "2": 1.0}}


def test_texts_that_only_look_alike_are_other_ids():
    assert [Ids(["1", "007", "2.50"]).find(one) for one in ("01", "7", "2.5", "1.0", "1e0", " 1")] == [
        None, None, None, "1", None, None,
    ]  # fmt: skip
    assert Ids(["1", "1.0"]).find("1.0") == "1.0" and Ids(["1", "1.0"]).find("1.00") is None
    assert [id_text(one) for one in (1, 1.0, "1.0", True, float("nan"), [], " x ")] == [
        "1", "1", "1.0", None, None, None, "x",
    ]  # fmt: skip
