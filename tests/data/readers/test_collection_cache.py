"""A large retrieval collection, converted to files, is the same collection as one that is read into memory."""

from __future__ import annotations

import io
import json
import logging
import pickle
import random
from pathlib import Path

import alike
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_data
from on_disk import convert_small_data

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError
from smart_train.data.batch_sampler import PairBatchSampler, pair_groups
from smart_train.data.collection import Collection
from smart_train.data.load import load
from smart_train.data.readers import row_cache
from smart_train.data.readers.base import find_reader
from smart_train.data.split import split
from smart_train.data.stored_collection import StoredCollection

ORDERED = ("queries", "qrels")  # the order of negatives.jsonl is of no account
SMALL = {"SMALL_BYTES": 1 << 30, "SMALL_ROWS": 1 << 30}


@pytest.fixture(autouse=True)
def small_limits(tmp_path, monkeypatch):
    """Everything is large, and takes several shards and buckets."""
    convert_small_data(monkeypatch, tmp_path, shard_rows=7, SMALL_ROWS=0, BUCKET=11)


def write_lines(file: Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([row | {"unread": "x"} for row in rows]), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")


def write_beir(folder: Path, seed: int = 0, kind: str = "jsonl", negatives: bool = True, teacher: bool = True) -> Path:
    """All that repeats, dangles or is empty: ids by value, grades of 0 and below, two grades of a pair, a document that
    is there twice, judgements of nothing, and negatives and scores of nothing."""
    draw = random.Random(seed)
    corpus = [
        {"_id": f"{n}.0" if n % 9 == 4 else str(n), "title": f"T{n}" if n % 3 else "", "text": f"passage {n % 35} é"}
        | {"file": f"file {n // 2}" if seed % 2 else None, "page": n if seed % 2 else None, "hash": f"{n:x}"}
        for n in range(45)
    ]
    corpus += [corpus[3], {**corpus[0], "_id": "empty", "title": "", "text": " "}]
    queries = [{"_id": f"q{n}", "text": "" if n == 7 else f"query {n}"} for n in range(40)]
    write_lines(folder / f"corpus.{kind}", corpus)
    write_lines(folder / f"queries.{kind}", queries)
    names = [str(n) for n in range(50)] + ["none", "11.0"]
    for name, count in (("train", 90), ("test", 30)):
        lines = ["query-id\tcorpus-id\tscore"]
        for _ in range(count):
            query = draw.choice(["unknown", *(f"q{n}" for n in (range(26) if name == "train" else range(20, 40)))])
            lines.append(f"{query}\t{draw.choice(names)}\t{draw.choice((-1, 0, 1, 1, 1, 2))}")
        (folder / "qrels").mkdir(exist_ok=True)
        (folder / "qrels" / f"{name}.tsv").write_text("\n".join(lines))
    rows = []
    for n in draw.choices(range(45), k=40):
        ids = [draw.choice(names) for _ in range(draw.randrange(5))]
        mined = {"scores": [round(draw.random(), 3) for _ in ids], "positive": 0.5, "miner": draw.choice("ab")}
        rows.append({"_id": f"q{n}", "negatives": ids} | (mined if draw.random() < 0.5 else {}))
    if negatives:
        write_lines(folder / "negatives.jsonl", rows)
    given = [
        {"_id": f"q{n}", "scores": {d: draw.random() for d in draw.sample(names, draw.randrange(4))}} for n in range(45)
    ]
    if teacher:
        write_lines(folder / "teacher.jsonl", given)
    return folder


def assert_equal(stored, plain, ordered=ORDERED) -> None:
    alike.assert_equal(stored, plain, ordered)


def in_memory(monkeypatch, read):
    with monkeypatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(row_cache, name, value)
        return read()


def both(path: Path, monkeypatch, name: str = "train", **options) -> tuple[StoredCollection, Collection]:
    data = DataBlock(path=str(path), **options)
    stored = find_reader(data).read(name)
    assert isinstance(stored, StoredCollection)
    plain = in_memory(monkeypatch, lambda: find_reader(data).read(name))
    assert type(plain) is Collection
    return stored, plain


def messages(caplog) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_converted_collection_is_that_which_reading_into_memory_gives(tmp_path, monkeypatch, caplog, seed, kind):
    folder = write_beir(tmp_path / "data", seed, kind)
    for name in ("train", "test"):
        caplog.clear()
        stored = find_reader(DataBlock(path=str(folder))).read(name)
        said = messages(caplog)
        again = find_reader(DataBlock(path=str(folder))).read(name)
        assert messages(caplog) == said
        plain = in_memory(monkeypatch, lambda name=name: find_reader(DataBlock(path=str(folder))).read(name))
        assert messages(caplog) == said and len(said) >= 4
        for one in (stored, again, pickle.loads(pickle.dumps(stored))):
            assert_equal(one, plain)
            assert dict(one.scored_negatives) == plain.scored_negatives and len(plain.scored_negatives) > 1
            assert len(one.scored_negatives) == len(plain.scored_negatives)
        draw = random.Random(seed)
        queries = draw.sample(sorted(plain.queries), 9)
        documents = draw.sample(sorted(plain.corpus), 20)
        assert_equal(stored.select(queries), plain.select(queries))
        assert_equal(stored.select(queries, documents), plain.select(queries, documents))
        assert stored.select(queries, documents).scored_negatives == plain.select(queries, documents).scored_negatives


def test_the_corpus_is_converted_once_for_all_splits(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    folder = write_beir(tmp_path / "data")
    for name in ("train", "test"):
        find_reader(DataBlock(path=str(folder))).read(name)
    assert sum("corpus: converting" in record.getMessage() for record in caplog.records) == 1
    assert len([*(tmp_path / "cache").iterdir()]) == 4  # corpus, queries, and what each split judges
    monkeypatch.setattr(row_cache, "_fill", lambda *_: pytest.fail("converted again"))
    find_reader(DataBlock(path=str(folder))).read("train")


@pytest.mark.parametrize(("dev", "test", "most"), [(2, 3, None), (0.1, 0.2, None), (2, 3, 20)])
@pytest.mark.parametrize("seed", range(2))
def test_it_is_split_as_one_in_memory(tmp_path, monkeypatch, seed, dev, test, most):
    stored, plain = both(write_beir(tmp_path / "data", seed), monkeypatch)
    results = []
    for one in (stored, plain):
        try:
            results.append(split(one, dev, test, test_documents=most))
        except DataError as error:
            results.append(str(error))
    if isinstance(results[1], str):
        assert results[0] == results[1]
        return
    for one, other in zip(*results, strict=True):
        assert_equal(one, other, ordered=())


@pytest.mark.parametrize("options", [{}, {"dev_documents": 12, "test_documents": 25}, {"limit": 9}])
def test_a_run_loads_the_same_splits_and_plans_the_same_batches(tmp_path, monkeypatch, options):
    folder = write_beir(tmp_path / "data", 2)
    data = DataBlock(path=str(folder), dev=2, negatives=2, **options)
    found, expected = load(data), in_memory(monkeypatch, lambda: load(data))
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other, ordered=())
        assert list(one.queries) == list(other.queries)
    groups = [pair_groups(one[0], one[0].pairs()) for one in (found, expected)]
    first, second = (PairBatchSampler(one, 3, seed=5, drop_last=False) for one in groups)
    assert [first.plan(epoch) for epoch in range(3)] == [second.plan(epoch) for epoch in range(3)]


BROKEN = {
    "corpus.jsonl": ['{"_id": "z", "text": 7}', '{"_id": "12", "text": "other"}', '{"text": "no id"}', "{"],
    "queries.jsonl": ['{"_id": "q1", "text": "other"}', '{"_id": 1.5, "text": "x"}', "[]"],
    "qrels/train.tsv": ["q1\t2\tx", "q1\t2"],
    "negatives.jsonl": ['{"_id": "q1", "negatives": "2"}', '{"_id": "q1", "negatives": ["2"], "scores": [1, 2]}'],
    "teacher.jsonl": ['{"_id": "q1", "scores": 3}', '{"_id": "q0", "scores": {"2": 1}}'],
}


@pytest.mark.parametrize(("name", "line"), [(name, line) for name, lines in BROKEN.items() for line in lines])
def test_a_wrong_row_is_named_as_in_memory(tmp_path, monkeypatch, name, line):
    folder = write_beir(tmp_path / "data")
    file = folder / name
    text = file.read_text("utf8").rstrip("\n")
    file.write_text(f"{text}\n{line}\n", "utf8")
    data = DataBlock(path=str(folder))
    with pytest.raises(DataError) as found:
        find_reader(data).read("train")
    with pytest.raises(DataError) as expected:
        in_memory(monkeypatch, lambda: find_reader(data).read("train"))
    assert str(found.value) == str(expected.value)
    assert f"{name}:{text.count(chr(10)) + 2}: " in str(found.value)
    file.write_text(text, "utf8")
    assert_equal(*both(folder, monkeypatch))


def test_a_conversion_that_was_stopped_resumes_after_its_last_shard(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    folder = write_beir(tmp_path / "data")
    write, written = row_cache.write_entries, []

    def stopped(file, types, cells):
        if file.name == "documents-000004.arrow":
            raise KeyboardInterrupt
        write(file, types, cells)

    def counted(file, types, cells):
        written.append(file.name)
        write(file, types, cells)

    with monkeypatch.context() as patch:
        patch.setattr(row_cache, "write_entries", stopped)
        with pytest.raises(KeyboardInterrupt):
            find_reader(DataBlock(path=str(folder))).read("train")
    monkeypatch.setattr(row_cache, "write_entries", counted)
    assert_equal(*both(folder, monkeypatch))
    assert written[0] == "documents-000004.arrow"
    assert "resuming after 28 rows" in caplog.text


def test_a_split_that_was_stopped_is_made_anew(tmp_path, monkeypatch):
    folder = write_beir(tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr("smart_train.data.readers.collection_cache._Split._teacher", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            find_reader(DataBlock(path=str(folder))).read("train")
    assert_equal(*both(folder, monkeypatch))


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "negatives.jsonl"])
def test_a_changed_file_is_converted_anew(tmp_path, monkeypatch, name):
    folder = write_beir(tmp_path / "data")
    find_reader(DataBlock(path=str(folder))).read("train")
    lines = (folder / name).read_text("utf8").splitlines()
    (folder / name).write_text("\n".join([*lines[:1], *lines[2:]]), "utf8")
    assert_equal(*both(folder, monkeypatch))


@pytest.mark.parametrize("options", [{"document": "title"}, {"document": "text"}])
def test_other_columns_are_converted_anew(tmp_path, monkeypatch, options):
    folder = write_beir(tmp_path / "data")
    find_reader(DataBlock(path=str(folder))).read("train")
    assert_equal(*both(folder, monkeypatch, **options))


def test_pages_inside_of_a_corpus_stay_there(tmp_path, monkeypatch):
    """Also those that show the same under two ids, by their bytes."""
    pages = []
    for number in range(20):
        stream = io.BytesIO()
        tiny_data.draw_page(number % 14).save(stream, "PNG")
        image = {"bytes": stream.getvalue() if number % 7 else None, "path": None}
        pages.append({"_id": f"d{number}", "text": None if number % 7 else f"text {number}", "image": image})
    folder = tmp_path / "data"
    write_lines(folder / "queries.jsonl", [{"_id": f"q{n}", "text": f"query {n}"} for n in range(30)])
    pq.write_table(pa.Table.from_pylist(pages), folder / "corpus.parquet")
    (folder / "qrels").mkdir()
    (folder / "qrels" / "train.tsv").write_text("\n".join(f"q{n}\td{n % 20}\t1" for n in range(30)))
    stored, plain = both(folder, monkeypatch)
    assert plain.count_pages() == 17
    for one in (stored, pickle.loads(pickle.dumps(stored))):
        assert_equal(one, plain)
    groups = [pair_groups(one, one.pairs()) for one in (stored, plain)]
    assert groups[0].documents.tolist() == groups[1].documents.tolist()
    assert len(set(groups[0].documents.tolist())) < 20
