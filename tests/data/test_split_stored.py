"""A collection on disk is split as one in memory."""

from __future__ import annotations

import json
import logging
import random

import pytest
from on_disk import convert_small_data

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError
from smart_train.data import store
from smart_train.data.collection import RetrievalDataset
from smart_train.data.readers.base import find_reader
from smart_train.data.split import halves, split
from smart_train.data.validate import validate


def both(tmp_path, monkeypatch, seed: int, files: int):
    """files: how many files the documents come from; 0 = they have none."""
    draw, content = random.Random(seed), []
    for number in range(90):
        row = {"query": f"query {number if draw.random() < 0.8 else draw.randrange(90)}"}
        row["positive"] = [f"passage {draw.randrange(150)}" for _ in range(draw.choice((1, 1, 1, 2)))]
        if draw.random() < 0.1:  # the same words, other ids
            row = {
                name: str(value).upper() if name == "query" else [f" {one.title()}" for one in value]
                for name, value in row.items()
            }
        row["negatives"] = [f"passage {draw.randrange(200)}" for _ in range(draw.randrange(4))]
        if files and draw.random() < 0.8:
            row["file"] = f"file {draw.randrange(files)}"
        content.append({"file": None} | row if files else row)
    path = tmp_path / f"rows-{seed}-{files}.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in content), "utf8")
    data = DataBlock(path=str(path))
    plain = find_reader(data).read("train")
    convert_small_data(monkeypatch, tmp_path, shard_rows=25, BUCKET=50)
    return find_reader(data).read("train"), plain


@pytest.mark.parametrize(
    ("files", "options"),
    [
        (0, {"dev": 5, "test": 7}),
        (0, {"dev": 0.1, "test": 0.2}),
        (0, {"dev": 5, "test": 7, "test_documents": 40, "dev_documents": 20}),
        (25, {"dev": 4, "test": 6}),
        (60, {"dev": 0.05, "test": 0.1, "test_documents": 30}),
        (60, {"dev": 0, "test": 6, "test_documents": 60}),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_a_stored_collection_is_split_as_one_in_memory(tmp_path, monkeypatch, caplog, seed, files, options):
    caplog.set_level(logging.WARNING)
    stored, plain = both(tmp_path, monkeypatch, seed, files)
    results, said = [], []
    for collection in (plain, stored, stored):  # the second time from what the first has kept
        caplog.clear()
        try:
            results.append(split(collection, seed=seed, **options))
        except DataError as error:
            results.append(str(error))
        said.append([record.getMessage() for record in caplog.records])
    expected, found, again = results
    assert said[0] == said[1] == said[2]
    if isinstance(expected, str):
        assert found == again == expected
        return
    for one, other in zip((*found, *again), (*expected, *expected), strict=True):
        assert one.name == other.name
        assert list(one.queries.items()) == list(other.queries.items())
        assert set(one.corpus) == set(other.corpus)
        assert list(one.pairs()) == list(other.pairs())
        assert dict(one.negatives.items()) == {query: row for query, row in other.negatives.items() if row}
        assert one.fingerprint() == other.fingerprint()


@pytest.mark.parametrize("files", [0, 1])
def test_what_cannot_be_held_out_is_refused_alike(tmp_path, monkeypatch, files):
    stored, plain = both(tmp_path, monkeypatch, 0, files)
    wrong = {"dev": 300, "test": 300} if not files else {"dev": 0, "test": 60}
    with pytest.raises(DataError) as expected:
        split(plain, **wrong)
    with pytest.raises(DataError) as found:
        split(stored, **wrong)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("files", [0, 40])
def test_a_stored_collection_is_divided_in_halves_as_one_in_memory(tmp_path, monkeypatch, files):
    stored, plain = both(tmp_path, monkeypatch, 1, files)
    assert halves(stored) == halves(plain)


def test_data_check_and_a_copy_read_a_stored_collection(tmp_path, monkeypatch):
    stored, plain = both(tmp_path, monkeypatch, 2, 25)
    report = validate(RetrievalDataset("x", stored.corpus, stored.queries, {"train": stored.qrels}))
    expected = validate(RetrievalDataset("x", plain.corpus, plain.queries, {"train": plain.qrels}))
    assert report.findings == expected.findings
    assert report.clean.splits == expected.clean.splits
    for name, collection in (("stored", stored), ("plain", plain)):
        store.write(collection, tmp_path / name, "train")
    for file in sorted((tmp_path / "plain").rglob("*.parquet")):
        other = tmp_path / "stored" / file.relative_to(tmp_path / "plain")
        assert sorted(store.read_parquet(other), key=str) == sorted(store.read_parquet(file), key=str)
