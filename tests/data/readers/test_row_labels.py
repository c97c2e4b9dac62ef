"""Labels of rows: 0 is a negative of its query, anything above is a grade, and what is unclear is refused."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_data
from on_disk import convert_small_data

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError
from smart_train.data.collection import Collection
from smart_train.data.load import check_data, load
from smart_train.data.readers.base import find_reader
from smart_train.data.stored_collection import StoredCollection

PAIRS = [(f"question {n}", f"answer {n}", 1) for n in range(40)]
PAIRS += [(f"question {n}", f"answer to something else {n}", 0) for n in range(40)]


def write(folder: Path, kind: str, rows: list[dict]) -> Path:
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        return tiny_data.write_lines(path, rows)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


def read(path: Path, **change) -> Collection:
    return find_reader(DataBlock(path=str(path), **change)).read("train")


def judged(found: Collection) -> dict[str, tuple[dict[str, int], list[str]]]:
    """query text -> (document text -> grade, texts of negatives)."""
    return {
        found.queries[q]: (
            {str(found.corpus[d].text): grade for d, grade in row.items()},
            [str(found.corpus[d].text) for d in found.negatives.get(q, ())],
        )
        for q, row in found.qrels.items()
    }


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("name", ["label", "labels", "score", "relevance", "rel"])
@pytest.mark.parametrize("as_written", [int, float, bool])
def test_rows_of_label_0_are_negatives_and_no_pairs(tmp_path, kind, name, as_written):
    rows = [{"query": q, "positive": d, name: as_written(label)} for q, d, label in PAIRS]
    path = write(tmp_path, kind, rows)
    assert check_data(DataBlock(path=str(path), negatives=1)) == [
        problem for problem in check_data(DataBlock(path=str(path), negatives=1)) if problem.key == "data.negatives"
    ]
    found = read(path)
    assert len(found.pairs()) == 40
    assert judged(found) == {
        f"question {n}": ({f"answer {n}": 1}, [f"answer to something else {n}"]) for n in range(40)
    }
    assert len(read(path, label="").pairs()) == 80


def test_whole_numbers_are_grades_and_the_highest_of_a_pair_counts(tmp_path, caplog):
    rows = [("a", "x", 2), ("a", "y", 0), ("a", "x", 3), ("a", "y", 1), ("b", "x", 0), ("c", "z", 10), ("d", "z", None)]
    path = write(tmp_path, "jsonl", [{"query": q, "positive": d, "relevance": r} for q, d, r in rows])
    assert judged(read(path)) == {"a": ({"x": 3, "y": 1}, []), "c": ({"z": 10}, [])}
    assert "1 rows without a label are left out" in caplog.text and "rows.jsonl:7" in caplog.text
    assert "1 queries have no document with a relevance above 0 and are left out" in caplog.text
    assert "1 negatives are also positives of their query" in caplog.text


def test_a_list_has_a_label_for_each_document_of_its_row(tmp_path):
    rows = [
        {"query": "a", "positive": ["x", "y", "z"], "labels": [1, 0, 2], "negative": "n"},
        {"query": "b", "positive": ["x", None, "y"], "labels": [0, None, 1]},
        {"query": "c", "positive": ["x", "", "y"], "labels": [0, 1]},
        {"query": "d", "positive": ["x", "y"], "labels": 1},
    ]
    assert judged(read(write(tmp_path, "jsonl", rows))) == {
        "a": ({"x": 1, "z": 2}, ["y", "n"]),
        "b": ({"y": 1}, ["x"]),
        "c": ({"y": 1}, ["x"]),
        "d": ({"x": 1, "y": 1}, []),
    }


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.73, r"rows\.jsonl:2: label is 0\.73, a degree of similarity.*write data\.scores: label to learn it"),
        ("neutral", r"rows\.jsonl:2: label is 'neutral', which is no label.*write data\.label: \"\" to take every row"),
        (-1, r"rows\.jsonl:2: label is -1; a label is a whole number from 0"),
        (87, r"rows\.jsonl:2: label is 87; a label is a whole number from 0 \(a negative\) to 10"),
        ([1, 0], r"rows\.jsonl:2: label has 2 labels, and the row has 1 documents"),
        ({"a": 1}, r"rows\.jsonl:2: label is .*no label"),
    ],
)
def test_what_is_no_label_is_refused_with_its_row_and_what_to_write(tmp_path, value, told):
    rows = [{"query": "a", "positive": "x", "label": 1}, {"query": "a", "positive": "y", "label": value}]
    path = write(tmp_path, "jsonl", rows)
    with pytest.raises(DataError, match=told):
        read(path)
    assert len(read(path, label="").pairs()) == 2


def test_similarities_are_a_teachers_scores_where_they_are_named_so(tmp_path):
    rows = [{"query": "a", "positive": "x", "score": 0.9}, {"query": "b", "positive": "y", "score": 0.2}]
    found = read(write(tmp_path, "jsonl", rows), scores="score")
    assert len(found.pairs()) == 2 and sorted(s for row in found.teacher.values() for s in row.values()) == [0.2, 0.9]


@pytest.mark.parametrize(
    ("names", "clear"),
    [
        (["not_relevant", "relevant"], True),
        (["0", "1"], True),
        (["entailment", "neutral", "contradiction"], False),
        (["duplicate", "different"], False),
    ],
)
def test_classes_are_labels_where_their_names_say_which_is_the_negative(tmp_path, names, clear):
    kinds = {
        "query": datasets.Value("string"),
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=names),
    }
    rows = {"query": ["a", "a"], "text": ["x", "y"], "label": [1, 0]}
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).save_to_disk(str(tmp_path / "saved"))
    if clear:
        assert judged(read(tmp_path / "saved")) == {"a": ({"x": 1}, ["y"])}
        return
    with pytest.raises(DataError, match=r"label has the classes .*not clear which are relevant"):
        read(tmp_path / "saved")


def test_the_label_of_premise_and_hypothesis_is_refused_before_reading(tmp_path):
    path = write(tmp_path, "jsonl", [{"premise": "a", "hypothesis": "b", "label": 0}])
    (problem,) = check_data(DataBlock(path=str(path), query="premise", document="hypothesis"))
    assert problem.key == "data.label" and "0 usually means entailment" in problem.what
    assert check_data(DataBlock(path=str(path), query="premise", document="hypothesis", label="")) == []


def test_labels_of_pages_make_pages_negatives(tmp_path):
    for number in range(2):
        tiny_data.draw_page(number).save(tmp_path / f"{number}.png")
    rows = [{"query": "a", "image": f"{n}.png", "label": 1 - n} for n in range(2)]
    found = read(write(tmp_path, "jsonl", rows), image="image", document="")
    ((_, positive),) = found.pairs()
    assert found.corpus[positive].image.endswith("0.png")
    assert [found.corpus[d].image[-5:] for row in found.negatives.values() for d in row] == ["1.png"]


def test_nothing_but_negatives_is_refused(tmp_path):
    with pytest.raises(DataError, match="no row has a query and a document with a label above 0"):
        read(write(tmp_path, "jsonl", [{"query": "a", "positive": "x", "label": 0}]))


def test_training_draws_the_negatives_that_labels_gave(tmp_path):
    rows = [{"query": q, "positive": d, "label": label} for q, d, label in PAIRS]
    train, dev, test = load(DataBlock(path=str(write(tmp_path, "jsonl", rows)), negatives=1, dev=5, test=5))
    assert [len(part.pairs()) for part in (train, dev, test)] == [30, 5, 5]
    assert train.count_related("negatives") == (30, 30)


def test_a_converted_table_has_the_same_grades_and_negatives(tmp_path, monkeypatch, caplog):
    rows = [
        {"query": f"q{n % 7}", "positive": f"d{n % 11}", "label": (n * 5) % 4, "negative": f"d{n % 5}"}
        for n in range(60)
    ]
    rows += [
        {"query": "alone", "positive": "d1", "label": 0, "negative": None},
        {"query": "q1", "positive": "d", "label": None},
    ]
    path = write(tmp_path, "jsonl", rows)
    caplog.set_level(logging.INFO)
    plain = read(path)
    said = [record.getMessage() for record in caplog.records]
    caplog.clear()
    convert_small_data(monkeypatch, tmp_path, shard_rows=7, SMALL_ROWS=0, BUCKET=11)
    stored = read(path)
    assert isinstance(stored, StoredCollection)
    assert judged(stored) == judged(plain) and stored.fingerprint() == plain.fingerprint()
    assert {line for line in said if "rows.jsonl: " in line} <= {record.getMessage() for record in caplog.records}


def test_the_log_says_what_each_column_was_taken_for(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    row = {"query": "a", "positive": "x", "label": 1, "negative_1": "y", "lang": "en"}
    read(write(tmp_path, "jsonl", [row, row | {"positive": "z", "label": 0}]))
    line = "columns read: query = query, document = positive, negatives = negative_1, label = label; not read: lang"
    assert line in caplog.text and "1 documents have label 0, and are negatives of their query" in caplog.text


def test_json_is_the_reference(tmp_path):
    """Every labelled pair of the file is where its label says, and nothing else is."""
    rows = [{"query": f"q{n % 9}", "positive": f"d{n}", "label": n % 4} for n in range(50)]
    path = write(tmp_path, "jsonl", rows)
    found = judged(read(path))
    for row in map(json.loads, path.read_text().splitlines()):
        grades, negatives = found[row["query"]]
        assert grades.get(row["positive"], 0) == row["label"]
        assert (row["positive"] in negatives) == (row["label"] == 0)
