"""A large table, converted to files, is the same collection as one that is read into memory."""

from __future__ import annotations

import io
import json
import logging
import pickle
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_data
import torch
from alike import assert_equal
from on_disk import convert_small_data

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError
from smart_train.data.batch_sampler import PairBatchSampler, pair_groups
from smart_train.data.collate import Collator, Pairs
from smart_train.data.collection import Collection
from smart_train.data.readers import row_cache
from smart_train.data.readers.base import find_reader
from smart_train.data.stored_collection import StoredCollection


@pytest.fixture(autouse=True)
def small_limits(tmp_path, monkeypatch):
    """Everything is large, and takes several shards and buckets."""
    convert_small_data(monkeypatch, tmp_path, shard_rows=7, SMALL_ROWS=0, BUCKET=11)


def rows(seed: int, count: int = 60, scores: bool = True) -> list[dict]:
    """Rows with everything that repeats: queries, positives, negatives, and a negative that is a positive elsewhere."""
    draw = random.Random(seed)
    text = lambda: f"passage {draw.randrange(40)} é"  # noqa: E731
    found = []
    for _ in range(count):
        row: dict = {"query": f"query {draw.randrange(count // 2)}", "positive": text(), "source": draw.choice("ab")}
        row["negatives"] = [text() for _ in range(draw.randrange(4))]
        if draw.random() < 0.1:
            row["query" if draw.random() < 0.5 else "positive"] = ""
        if scores and draw.random() < 0.7:
            filled = 1 if row["positive"] else 0
            row["scores"] = [round(draw.random(), 3) for _ in range(filled + len(row["negatives"]))]
        else:
            row["scores"] = None
        found.append(row)
    return found


def write(path: Path, content: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([row | {"unread": "x"} for row in content]), path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in content), "utf8")
    return path


def both(path: Path, monkeypatch, **options) -> tuple[StoredCollection, Collection]:
    data = DataBlock(path=str(path), source="source", **options)
    stored = find_reader(data).read("train")
    assert isinstance(stored, StoredCollection)
    with monkeypatch.context() as patch:
        patch.setattr(row_cache, "SMALL_BYTES", 1 << 30)
        patch.setattr(row_cache, "SMALL_ROWS", 1 << 30)
        plain = find_reader(data).read("train")
    assert type(plain) is Collection
    return stored, plain


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_converted_table_is_the_collection_that_reading_into_memory_gives(tmp_path, monkeypatch, seed, kind):
    path = write(tmp_path / f"rows.{kind}", rows(seed, scores=seed % 2 == 0))
    stored, plain = both(path, monkeypatch, scores="scores" if seed % 2 == 0 else "")
    assert_equal(stored, plain)
    assert_equal(pickle.loads(pickle.dumps(stored)), plain)  # as a spawned data worker gets it
    draw = random.Random(seed)
    queries = draw.sample(sorted(plain.queries), 12)
    documents = draw.sample(sorted(plain.corpus), 20)
    assert_equal(stored.select(queries), plain.select(queries))
    assert_equal(stored.select(queries, documents), plain.select(queries, documents))
    again = stored.select(queries, documents).select(queries[3:7], documents[:15])
    assert_equal(again, plain.select(queries[3:7], documents[:15]))


@pytest.mark.parametrize("unknown", [{"queries": ["none"]}, {"queries": [], "documents": ["none"]}])
def test_selecting_an_unknown_id_raises(tmp_path, monkeypatch, unknown):
    stored, _ = both(write(tmp_path / "rows.jsonl", rows(0)), monkeypatch)
    with pytest.raises(KeyError, match="none"):
        stored.select(unknown["queries"], unknown.get("documents"))


@pytest.mark.parametrize("limit", [1, 13, 1000])
def test_a_limit_takes_the_same_pairs(tmp_path, monkeypatch, limit):
    data = DataBlock(path=str(write(tmp_path / "rows.jsonl", rows(3))), source="source")
    stored = find_reader(data).read_first("train", limit)
    monkeypatch.setattr(row_cache, "SMALL_BYTES", 1 << 30)
    assert_equal(stored, find_reader(data).read_first("train", limit))


def test_a_second_open_converts_nothing_and_warns_alike(tmp_path, monkeypatch, caplog):
    path = write(tmp_path / "rows.jsonl", rows(1))
    caplog.set_level(logging.WARNING)
    find_reader(DataBlock(path=str(path))).read("train")
    first = [record.getMessage() for record in caplog.records]
    caplog.clear()
    monkeypatch.setattr(row_cache._Conversion, "run", lambda self: pytest.fail("converted again"))
    find_reader(DataBlock(path=str(path))).read("train")
    assert [record.getMessage() for record in caplog.records] == first
    assert any("rows without a query are left out" in line for line in first)


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:-8])])
@pytest.mark.parametrize("name", ["documents-000003.arrow", "qrels.documents.i4"])
def test_a_conversion_with_a_damaged_file_is_made_anew(tmp_path, monkeypatch, caplog, damage, name):
    path = write(tmp_path / "rows.jsonl", rows(1))
    find_reader(DataBlock(path=str(path), source="source")).read("train")
    (folder,) = (tmp_path / "cache").iterdir()
    damage(folder / name)
    assert_equal(*both(path, monkeypatch))
    assert f"1 files are missing or cut off ({name}); converting anew" in caplog.text


def test_changed_files_and_other_columns_are_converted_anew(tmp_path, monkeypatch):
    path = write(tmp_path / "rows.jsonl", rows(1))
    before = find_reader(DataBlock(path=str(path))).read("train")
    write(path, [*rows(1), {"query": "new", "positive": "new", "source": "a", "negatives": [], "scores": None}])
    assert len(find_reader(DataBlock(path=str(path))).read("train").queries) == len(before.queries) + 1
    other = find_reader(DataBlock(path=str(path), query="positive", document="query")).read("train")
    assert "passage" in next(iter(other.queries.values()))


def test_a_conversion_that_was_killed_resumes_after_its_last_shard(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    path = write(tmp_path / "rows.jsonl", rows(2))
    write_shard, written = row_cache._Shard.write, []

    def killed(self, folder, number):
        if number == 4:
            raise KeyboardInterrupt
        return write_shard(self, folder, number)

    def counted(self, folder, number):
        written.append(number)
        return write_shard(self, folder, number)

    with monkeypatch.context() as patch:
        patch.setattr(row_cache._Shard, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            find_reader(DataBlock(path=str(path), source="source")).read("train")
    monkeypatch.setattr(row_cache._Shard, "write", counted)
    assert_equal(*both(path, monkeypatch))
    assert written[0] == 4
    assert "resuming after 28 rows" in caplog.text
    (folder,) = (tmp_path / "cache").iterdir()
    assert not [*folder.glob("*.partial"), *folder.glob("shard-*")]


def test_a_wrong_row_is_named_and_the_file_can_be_mended(tmp_path, monkeypatch):
    content = rows(2)
    path = write(tmp_path / "rows.jsonl", [*content, {**content[0], "positive": 7}])
    with pytest.raises(DataError, match=r"rows.jsonl:61: positive holds int"):
        find_reader(DataBlock(path=str(path))).read("train")
    write(path, content)
    assert_equal(*both(path, monkeypatch))


def test_half_a_surrogate_pair_is_refused(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"query": "a", "positive": "broken \ud800"}])
    with pytest.raises(DataError, match=r"rows.jsonl:1: positive has half of a surrogate pair"):
        find_reader(DataBlock(path=str(path))).read("train")


def test_rows_without_one_pair_are_refused(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"query": "", "positive": "a"}, {"query": "b", "positive": ""}])
    with pytest.raises(DataError, match="no row has a query and a document"):
        find_reader(DataBlock(path=str(path))).read("train")


def test_of_parquet_only_the_columns_that_are_read_are_loaded(tmp_path, monkeypatch):
    path = write(tmp_path / "rows.parquet", rows(1))
    seen = []
    monkeypatch.setattr(row_cache.RowParser, "rows", _watched(row_cache.RowParser.rows, seen))
    find_reader(DataBlock(path=str(path), scores="")).read("train")
    assert "unread" not in seen
    assert "scores" not in seen


def _watched(parse, seen):
    def rows(self, skip=0):
        seen.extend(name for _, row in self.table for name in row)
        yield from parse(self, skip)

    return rows


@pytest.mark.parametrize("source", [None, "source", "file"])
@pytest.mark.parametrize("drop_last", [True, False])
def test_batches_of_a_seed_are_those_of_a_collection_in_memory(tmp_path, monkeypatch, source, drop_last):
    content = [row | {"file": f"file {number % 3}"} for number, row in enumerate(rows(4, 80))]
    stored, plain = both(write(tmp_path / "rows.jsonl", content), monkeypatch)
    stored, plain = (one.select(list(plain.queries)[::-2]) for one in (stored, plain))
    groups = [pair_groups(one, one.pairs(), source, temperature=2.0, window=3) for one in (stored, plain)]
    assert list(groups[0].sources) == list(groups[1].sources)
    first, second = (PairBatchSampler(one, 6, 2, seed=5, drop_last=drop_last) for one in groups)
    assert first.summary() == second.summary()
    for epoch in range(3):
        assert first.plan(epoch) == second.plan(epoch)
        first.set_epoch(epoch)
        assert [row for batch in first for row in batch] == [
            row for batch in second.plan(epoch) for rank in range(2) for row in batch[rank::2]
        ]


def test_a_collated_batch_is_that_of_a_collection_in_memory(tmp_path, monkeypatch):
    stored, plain = both(write(tmp_path / "rows.jsonl", rows(5)), monkeypatch)
    preprocess = lambda contents, role: {"texts": contents, "attention_mask": torch.ones(len(contents), 3)}  # noqa: E731
    drawn = [
        Collator(one, preprocess, negatives=2, length_groups=2)([Pairs(one)[place] for place in range(3, 15)])
        for one in (stored, plain)
    ]
    assert [chunk["texts"] for chunk in drawn[0].documents] == [chunk["texts"] for chunk in drawn[1].documents]
    assert drawn[0].rows == drawn[1].rows
    assert drawn[0].notes == drawn[1].notes
    for name in ("document_keys", "positives", "query_ids"):
        assert torch.equal(getattr(drawn[0], name), getattr(drawn[1], name))


def test_of_several_processes_one_converts_and_the_others_wait(tmp_path, caplog):
    """A thread stands for the other process: the lock is of the file, whoever holds it."""
    caplog.set_level(logging.INFO)
    path = write(tmp_path / "rows.jsonl", rows(1))
    find_reader(DataBlock(path=str(path))).read("train")
    (folder,) = (tmp_path / "cache").iterdir()
    (folder / row_cache.DONE).unlink()  # as it is while another process converts
    waiting, found = threading.Event(), []
    logged = row_cache.logger.info

    def info(message: str, *arguments: object) -> None:
        logged(message, *arguments)
        if "waiting for it" in message:
            waiting.set()

    row_cache.logger.info = info
    try:
        with row_cache.FileLock(folder / "lock"):
            other = threading.Thread(target=lambda: found.append(find_reader(DataBlock(path=str(path))).read("train")))
            other.start()
            assert waiting.wait(60)
            assert not found
        other.join(60)
    finally:
        row_cache.logger.info = logged
    assert len(found[0].queries) > 0


def test_a_killed_process_leaves_what_the_next_one_needs(tmp_path, monkeypatch):
    """The real thing: kill -9 while a shard is written, then a conversion that ends as if nothing had happened."""
    path = write(tmp_path / "rows.jsonl", rows(6, 120))
    code = f"""
import os, signal
from pathlib import Path
from smart_train.config.schema import DataBlock
from smart_train.data.readers import row_cache
from smart_train.data.readers.base import find_reader
row_cache.SMALL_BYTES, row_cache.SHARD_ROWS = 0, 7
row_cache.cache_folder = lambda: Path({str(tmp_path / "cache")!r})
write = row_cache.write_shard
def killed(file, columns):
    write(file, columns)
    if "documents-000011" in file.name:
        os.kill(os.getpid(), signal.SIGKILL)
row_cache.write_shard = killed
find_reader(DataBlock(path={str(path)!r}, source="source")).read("train")
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert_equal(*both(path, monkeypatch))


def images(folder: Path) -> list[dict]:
    """Cells of images inside of a table: bytes, some twice, some under a relative path, some none."""
    folder.mkdir(exist_ok=True)
    found: list[dict] = []
    for number in range(20):
        stream = io.BytesIO()
        tiny_data.draw_page(number % 14).save(stream, "PNG")
        found.append({"bytes": stream.getvalue(), "path": None})
        if number % 5 == 4:
            (folder / f"page {number}.png").write_bytes(stream.getvalue())
            found[-1] = {"bytes": None, "path": f"page {number}.png"}
    return [*found, {"bytes": None, "path": None}]


@pytest.mark.parametrize("text", [True, False])
def test_images_inside_of_a_table_stay_there(tmp_path, monkeypatch, text):
    cells = images(tmp_path / "data")
    content = [
        {"query": f"query {number % 17}", "image": cells[number % 21], "negative": f"passage {number % 6}"}
        | ({"text": None if number % 3 else f"caption {number % 4}"} if text else {})
        for number in range(40)
    ]
    path = tmp_path / "data" / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(content), path)
    data = DataBlock(path=str(path))
    stored = find_reader(data).read("train")
    assert isinstance(stored, StoredCollection)
    (folder,) = (tmp_path / "cache").iterdir()
    assert not any(b"PNG" in file.read_bytes() for file in folder.glob("documents-*.arrow"))
    monkeypatch.setattr(row_cache, "_fill", lambda *_: pytest.fail("converted again"))
    again = find_reader(data).read("train")
    monkeypatch.setattr(row_cache, "SMALL_ROWS", 1 << 30)
    plain = find_reader(data).read("train")
    assert type(plain) is Collection and plain.count_pages() >= 14
    for one in (stored, again, pickle.loads(pickle.dumps(stored))):
        assert_equal(one, plain)
    groups = [pair_groups(one, one.pairs()) for one in (stored, plain)]
    assert groups[0].documents.tolist() == groups[1].documents.tolist()


def id_rows(seed: int, kind: str) -> list[dict]:
    """Rows whose documents have ids of their own.  kind: what negatives are"""
    draw, found = random.Random(seed), []
    for _ in range(60):
        own = draw.randrange(50)
        row = {
            "query": f"query {draw.randrange(40)}",
            "id": float(own) if seed % 2 else own,
            "text": f"passage {own % 45}",
        }
        if draw.random() < 0.15:
            row["query"] = ""  # a document that only a negative may name
        names = [draw.choice((draw.randrange(56), f"{draw.randrange(50)}.0", f"passage {own}")) for _ in range(3)]
        if kind == "texts":
            names = [f"passage {draw.randrange(70)}" for _ in names]
        elif kind == "one word":
            names = [f"word{draw.randrange(70)}" for _ in names] + ["passage 3"]
        row["negatives"] = [str(name) for name in names[: draw.randrange(5)]]
        row["label"] = draw.choice((0, 1, 1, 2)) if kind == "labels" else 1
        row["scores"] = [round(draw.random(), 3) for _ in range(1 + len(row["negatives"]))] if seed > 1 else None
        found.append(row)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["ids", "labels", "texts", "one word"])
@pytest.mark.parametrize("file", ["rows.jsonl", "rows.parquet"])
def test_a_table_with_ids_of_its_own_is_that_which_reading_into_memory_gives(
    tmp_path, monkeypatch, caplog, seed, kind, file
):
    path = write(tmp_path / file, id_rows(seed, kind))
    data = DataBlock(path=str(path), id="id", scores=None if seed > 1 else "")
    stored = find_reader(data).read("train")
    said = sorted(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert isinstance(stored, StoredCollection)
    caplog.clear()
    for name in ("SMALL_BYTES", "SMALL_ROWS"):
        monkeypatch.setattr(row_cache, name, 1 << 30)
    plain = find_reader(data).read("train")
    assert said == sorted(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    for one in (stored, pickle.loads(pickle.dumps(stored))):
        assert_equal(one, plain)


@pytest.mark.parametrize("place", [4, 33, 59])
@pytest.mark.parametrize("change", [{"text": "another"}, {"text": "another", "label": 0}])
def test_an_id_with_two_contents_is_named_with_its_row(tmp_path, monkeypatch, place, change):
    content = [row | {"query": row["query"] or "asked"} for row in id_rows(0, "ids")]
    content[place] |= {"id": content[place - 2]["id"], **change}
    path = write(tmp_path / "rows.jsonl", content)
    errors = []
    for limit in (0, 1 << 30):
        monkeypatch.setattr(row_cache, "SMALL_BYTES", limit)
        with pytest.raises(
            DataError, match=rf"rows.jsonl:\d+: the id '{content[place]['id']}' is there before"
        ) as error:
            find_reader(DataBlock(path=str(path), id="id")).read("train")
        errors.append(str(error.value))
    assert errors[0] == errors[1]


def test_ids_that_no_row_has_are_refused_as_in_memory(tmp_path, monkeypatch):
    path = write(
        tmp_path / "rows.jsonl", [row | {"negatives": ["900", f"x{n}"]} for n, row in enumerate(id_rows(0, "ids"))]
    )
    errors = []
    for limit in (0, 1 << 30):
        monkeypatch.setattr(row_cache, "SMALL_BYTES", limit)
        with pytest.raises(DataError, match="all [0-9]+ negatives name no document") as error:
            find_reader(DataBlock(path=str(path), id="id")).read("train")
        errors.append(str(error.value))
    assert errors[0] == errors[1]
