"""Streamed rows: every row once a pass, the same batches on any number of ranks and workers and after any resume, the
same batch as in memory, and a sentence for what a stream cannot do."""

from __future__ import annotations

import gzip
import json
import pickle
from collections import Counter
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError
from smart_train.data.collate import Collator
from smart_train.data.collection import Collection
from smart_train.data.load import check_data, load, load_ranked, load_streamed
from smart_train.data.readers.base import DataProblem
from smart_train.data.streaming import BatchNumbers, Place, RowStream, StreamCollator, StreamedBatches, as_stream

Rows = list[dict[str, Any]]


def rows_of(count: int, begin: int = 0) -> Rows:
    return [
        {"query": f"ask {n}", "positive": f"answer {n} {'long ' * (n % 7)}", "negatives": [f"no {n}", f"never {n}"]}
        for n in range(begin, begin + count)
    ]


def write(folder: Path, kind: str, rows: Rows, shards: int = 3) -> Path:
    """Write rows as shards of the split train; return the folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        own = rows[shard::shards]
        file = folder / f"train-{shard:05d}-of-{shards:05d}.{kind}"
        lines = "".join(json.dumps(row) + "\n" for row in own)
        if kind == "jsonl":
            file.write_text(lines + "\n")
        elif kind == "jsonl.gz":
            file.write_bytes(gzip.compress(lines.encode()))
        elif kind == "csv":
            cells = [",".join([row["query"], row["positive"], f'"{row["negatives"]}"']) for row in own]
            file.write_text("\n".join(["query,positive,negatives", *cells]) + "\n")
        else:
            pq.write_table(pa.Table.from_pylist(own), file, row_group_size=7)
    return folder


def stream_of(folder: Path, **options: Any) -> RowStream:
    return RowStream.open(folder, **{"negatives": 1, "shuffle_buffer": 16, **options})


def first_batches(batches: StreamedBatches, count: int) -> list[list[Any]]:
    return [batches[number * batches.ranks].pairs for number in range(count)]


def ids(batch: list[Any]) -> list[tuple[tuple[str, str], int]]:
    return [(tuple(pair.ids), pair.epoch) for pair in batch]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "parquet"])
def test_every_pair_that_memory_has_is_in_each_pass_once(kind, tmp_path):
    folder = write(tmp_path / "rows", kind, rows_of(80))
    held = load(DataBlock(path=str(folder), dev=0, test=0))[0]
    batches = StreamedBatches(stream_of(folder), 8)
    passes = [ids(batch) for batch in first_batches(batches, 30)]
    for number in range(3):
        pairs = [pair for batch in passes[number * 10 : number * 10 + 10] for pair in batch]
        assert {epoch for _, epoch in pairs} == {number}
        assert Counter(pair for pair, _ in pairs) == Counter(held.pairs())
    orders = [[pair for batch in passes[n : n + 10] for pair, _ in batch] for n in (0, 10, 20)]
    assert orders[0] != orders[1] != orders[2]
    texts = {pair.row.documents[0].text: pair.row.negatives for batch in first_batches(batches, 10) for pair in batch}
    assert texts == {row["positive"].strip(): row["negatives"] for row in rows_of(80)}


def test_rows_without_order_leave_no_pair_out_where_a_pass_fills_no_whole_batches(tmp_path):
    """90 pairs in batches of 8: the last two of a pass share a batch with the first of the next."""
    folder = write(tmp_path / "rows", "jsonl", rows_of(90))
    pairs = [pair for batch in first_batches(StreamedBatches(stream_of(folder), 8), 45) for pair in ids(batch)]
    assert len(pairs) == len({*pairs}) == 360
    assert Counter(epoch for _, epoch in pairs) == {0: 90, 1: 90, 2: 90, 3: 90}


def test_the_order_depends_on_the_seed_and_the_buffer_bounds_how_far_a_row_moves(tmp_path):
    folder = write(tmp_path / "rows", "jsonl", rows_of(64), shards=1)
    first, again, other = (first_batches(StreamedBatches(stream_of(folder), 8, seed=seed), 8) for seed in (1, 1, 2))
    assert [ids(batch) for batch in first] == [ids(batch) for batch in again] != [ids(batch) for batch in other]
    for window in range(4):  # of 16 rows
        lines = {int(pair.row.query.split()[1]) for batch in first[2 * window : 2 * window + 2] for pair in batch}
        assert lines == {*range(16 * window, 16 * window + 16)}


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_each_batch_and_it_is_the_same_for_any_number_of_them(ranks, tmp_path):
    stream = stream_of(write(tmp_path / "rows", "jsonl", rows_of(80)))
    alone = [ids(batch) for batch in first_batches(StreamedBatches(stream, 8), 20)]
    shares = []
    for rank in range(ranks):  # each in a process of its own
        batches = StreamedBatches(stream, 8, ranks)
        own = [batches[number * ranks + rank] for number in range(20)]
        assert {batch.rank for batch in own} == {rank}
        shares.append([ids(batch.pairs[batch.rank :: ranks]) for batch in own])
    for number in range(20):
        together = [pair for share in shares for pair in share[number]]
        assert len(together) == len({*together}) == 8 and {*together} == {*alone[number]}


def as_numbers(items: list[Any]) -> Any:
    return items[0].number, ids(items[0].pairs)


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_batches(tmp_path):
    stream = stream_of(write(tmp_path / "rows", "parquet", rows_of(80)))
    found = [
        list(
            DataLoader(
                StreamedBatches(stream, 8), batch_sampler=BatchNumbers(25), collate_fn=as_numbers, num_workers=workers
            )
        )
        for workers in (0, 1, 3)
    ]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "parquet"])
@pytest.mark.parametrize("size", [4, 8, 30])
def test_reading_begins_again_at_any_batch_with_the_same_batches_and_reports(kind, size, tmp_path):
    stream = stream_of(write(tmp_path / "rows", kind, [*rows_of(66), {"query": "", "positive": "x", "negatives": []}]))
    whole = list(islice(StreamedBatches(stream, size)._batches(0), 45))
    for number in range(0, 40, 3):
        resumed = StreamedBatches(stream, size)
        resumed.start = Place(**json.loads(json.dumps(asdict(whole[number].place))))
        assert list(islice(resumed._batches(number), 5)) == whole[number : number + 5]
        assert whole[number].place.pairs <= number * size < whole[number].place.pairs + 16  # of this window
    ended = [line for batch in whole for line in batch.lines if "rows read" in line]
    assert len(ended) == (45 * size - 1) // 66
    assert all(line.endswith("67 rows read, 66 pairs") for line in ended)


def test_resuming_reads_no_more_than_it_must(tmp_path, monkeypatch):
    """Rows before the window are parsed by nobody."""
    stream = stream_of(write(tmp_path / "rows", "jsonl", rows_of(80)))
    place = StreamedBatches(stream, 8)[8].place
    parsed: list[str] = []
    monkeypatch.setattr(
        "smart_train.data.tables._object", lambda text, where, first: parsed.append(where) or json.loads(text)
    )
    resumed = StreamedBatches(stream, 8)
    resumed.start = place
    resumed[8]
    assert len(parsed) <= 16 + 8


def test_a_dataset_that_a_worker_gets_begins_for_itself(tmp_path):
    batches = StreamedBatches(stream_of(write(tmp_path / "rows", "jsonl", rows_of(80))), 8)
    third = batches[2]
    assert pickle.loads(pickle.dumps(batches))[2] == third == batches[2]
    batches.close()


EMPTY = Collection("rows", {}, {}, {})

# The same as in memory -----------------------------------------------------------------------------------------------


def no_tokens(contents: list[Any], role: str) -> dict[str, Any]:
    return {"attention_mask": torch.ones(len(contents), 1, dtype=torch.int64), "texts": list(contents)}


@pytest.mark.parametrize("scores", [False, True])
def test_a_batch_is_the_batch_that_the_collator_makes_in_memory(scores, tmp_path):
    rows = rows_of(40)
    for number, row in enumerate(rows):
        row |= {"scores": [0.9] * (1 + (number == 3)) + [0.1, number / 40]} if scores else {}
    rows[3]["positive"], rows[4]["positive"] = ["one", "two"], "answer 9 longlong"
    folder = write(tmp_path / "rows", "jsonl", rows, shards=1)
    held = load(DataBlock(path=str(folder), negatives=1, dev=0, test=0))[0]
    stream = stream_of(folder, shuffle_buffer=100)
    options = {"preprocess": no_tokens, "negatives": 1, "length_groups": 2, "seed": 5}
    collate = StreamCollator(stream, 1, Collator(EMPTY, **options))
    batches = StreamedBatches(stream, 10)
    for number in range(8):
        streamed = collate([batches[number]])
        expected = Collator(held, **options)(streamed.rows)
        for name in ("query_ids", "document_keys", "positives"):
            assert torch.equal(getattr(streamed, name), getattr(expected, name)), name
        assert [chunk["texts"] for chunk in streamed.documents] == [chunk["texts"] for chunk in expected.documents]
        for name in ("keys", "grades", "lengths"):
            assert torch.equal(getattr(streamed.known, name), getattr(expected.known, name)), name
        if scores:
            dense = [batch.teacher.dense(10, 30) for batch in (streamed, expected)]
            torch.testing.assert_close(*dense, rtol=0, atol=0, equal_nan=True)
        else:
            assert streamed.teacher is None is expected.teacher


def test_the_answers_of_a_query_on_another_rank_are_known(tmp_path):
    """Two rows of one query, and a text that answers two queries, in one batch of two ranks."""
    rows = [{"query": "the same", "positive": text} for text in ("first", "second one", "third text")]
    rows += [{"query": "another", "positive": "first"}]
    folder = write(tmp_path / "rows", "jsonl", rows, shards=1)
    stream = RowStream.open(folder)
    collate = StreamCollator(stream, 2, Collator(EMPTY, no_tokens))
    batches = StreamedBatches(stream, 4, 2)
    made = [collate([batches[rank]]) for rank in range(2)]
    for batch in made:
        known = dict(zip([query for query, _ in batch.rows], batch.known.lengths.tolist(), strict=False))
        assert 3 in known.values()  # all three answers, though the rank has two rows at most
    contents = [set(batch.document_keys[:, 1].tolist()) for batch in made]
    assert len(contents[0] | contents[1]) == 3  # "first" is one document


def test_epochs_deal_other_negatives(tmp_path):
    stream = stream_of(write(tmp_path / "rows", "jsonl", rows_of(8), shards=1))
    collate = StreamCollator(stream, 1, Collator(EMPTY, no_tokens, negatives=1))
    batches = StreamedBatches(stream, 8)
    drawn = [{text for text in collate([batches[n]]).documents[0]["texts"] if text[0] == "n"} for n in range(2)]
    assert len(drawn[0]) == len(drawn[1]) == 8 and not drawn[0] & drawn[1]


# What was read, and what cannot be ------------------------------------------------------------------------------------


def test_rows_left_out_are_counted_with_their_places(tmp_path):
    rows = [
        *({"query": f"ask {n}", "positive": f"answer {n}", "label": 1} for n in range(9)),
        {"query": "", "positive": "x", "label": 1},
        {"query": "y", "positive": "", "label": 1},
        {"query": "z", "positive": "z", "label": None},
        {"query": "w", "positive": "w", "label": 0},
    ]
    folder = write(tmp_path / "rows", "jsonl", rows, shards=1)
    (file,) = folder.iterdir()
    batches = StreamedBatches(stream_of(folder, negatives=0), 9)
    assert batches[0].lines == []
    assert batches[1].lines == [
        "rows, pass 1: 13 rows read, 9 pairs",
        f"rows, pass 1: 1 rows without a query are left out: {file}:10",
        f"rows, pass 1: 1 rows without a document are left out: {file}:11",
        f"rows, pass 1: 1 rows without a label are left out: {file}:12",
        f"rows, pass 1: 1 rows without a document with a label above 0 are left out: {file}:13; a stream can't add "
        "their documents to the negatives of other rows",
        "rows, pass 1: 1 documents have label 0, and are negatives of their query",
    ]


def test_what_is_counted_does_not_grow_with_the_rows(tmp_path):
    rows = [{"query": "" if n % 2 else f"ask {n}", "positive": f"answer {n}"} for n in range(2000)]
    stream = stream_of(write(tmp_path / "rows", "jsonl", rows, shards=1), negatives=0)
    line = StreamedBatches(stream, 100)[10].lines[1]
    assert line.endswith("and 995 more") and line.count(".jsonl:") == 5


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"query": "a", "positive": 7}', "positive holds int; it must be a text or a list of texts"),
        ('{"query": "a", "positive": "b"', "not JSON"),
        ('{"query": ["a", "b"], "positive": "c"}', "query holds 2 texts; a row has one query"),
        ('{"query": "a", "positive": "\\u0000"}', "positive has a NUL"),
    ],
)
def test_a_row_that_cannot_be_read_is_named_by_file_and_line(line, told, tmp_path):
    folder = write(tmp_path / "rows", "jsonl", rows_of(6), shards=1)
    (file,) = folder.iterdir()
    file.write_text(file.read_text().rstrip("\n") + f"\n\n{line}\n")
    with pytest.raises(DataError) as error:
        StreamedBatches(stream_of(folder), 4)[0]
    assert str(error.value).startswith(f"{file}:8: ") and told in str(error.value)


def test_a_pass_that_fills_no_batch_is_an_error(tmp_path):
    stream = stream_of(write(tmp_path / "rows", "jsonl", rows_of(6), shards=1))
    with pytest.raises(DataError, match="a batch takes 8 pairs, and a pass has 6 .*write a smaller batch"):
        StreamedBatches(stream, 8)[0]


REFUSED = {
    "id": ({"id": "positive"}, "data.id: is positive, but data.streaming does not know all rows"),
    "limit": ({"limit": 10}, "data.limit: is 10, but"),
    "source": ({"source": "negatives"}, "data.source: is negatives, but"),
    "length_window": ({"length_window": 4}, "data.length_window: is 4, but"),
    "near_duplicates": ({"near_duplicates": "together"}, "data.near_duplicates: is together, but"),
    "shuffle_buffer": ({"shuffle_buffer": 0}, "data.shuffle_buffer: is 0, must be at least 1"),
    "dev": ({"dev": 0.05}, "data.dev: is 0.05, but data.streaming does not know all rows before training, so it can"),
    "test": ({"test": 20}, "data.test: is 20, but"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_all_rows_is_refused_before_any_is_read(name, tmp_path):
    folder = write(tmp_path / "rows", "jsonl", rows_of(6))
    options, told = REFUSED[name]
    data = DataBlock(path=str(folder), streaming=True, **{"dev": 0, "test": 0, **options})
    (problem,) = check_data(data)
    assert f"{problem.key}: {problem.what}".startswith(told) and problem.fix
    with pytest.raises(DataProblem, match=f"data.{name}"):
        load_streamed(data)


def test_formats_and_images_that_cannot_be_streamed_are_refused(beir_folder, page_rows, tmp_path):
    data = DataBlock(path=str(beir_folder), streaming=True, dev=0, test=0)
    assert "is no table with a query and its document" in check_data(data)[0].what
    data = DataBlock(path=str(page_rows), streaming=True, dev=0, test=0)
    assert [problem.key for problem in check_data(data)] == ["data.image"]


def test_dev_and_test_are_the_data_s_own_splits(tmp_path):
    folder = write(tmp_path / "rows", "jsonl", rows_of(30))
    for name, begin in (("dev", 100), ("test", 200)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(9, begin)))
    data = DataBlock(path=str(folder), streaming=True, dev=4)
    assert check_data(data) == []
    stream, dev, test = load_streamed(data)
    assert (len(dev.queries), len(test.queries)) == (4, 9) and len(dev.corpus) == 27
    assert stream.name == "rows/train" and {*stream.head(30).queries.values()} == {r["query"] for r in rows_of(30)}
    assert load_ranked(data)[1].queries == load_ranked(replace(data, streaming=False))[1].queries == test.queries
    with pytest.raises(DataProblem, match="needs .* as a whole"):
        load(data)


def test_the_steps_that_a_pass_takes_are_told_where_they_are_known(tmp_path):
    known = stream_of(write(tmp_path / "known", "parquet", rows_of(80)))
    assert known.steps_needed(16)[1] == "write 5 for one pass through the 80 rows"
    unknown = stream_of(write(tmp_path / "unknown", "jsonl", rows_of(80)))
    assert unknown.steps_needed(16)[1] == "write it: the rows you want to train on, divided by 16 (the pairs of a step)"


def test_the_fingerprint_sees_other_rows_and_no_other_folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, second = (stream_of(write(tmp_path / name / "rows", "jsonl", rows_of(9))) for name in ("a", "b"))
    assert first.fingerprint() == second.fingerprint()
    (file, *_) = (tmp_path / "b" / "rows").iterdir()
    file.write_text(file.read_text().replace("ask", "asc"))
    assert first.fingerprint() != stream_of(tmp_path / "b" / "rows").fingerprint()


def test_an_iterable_dataset_is_streamed_by_its_shards(tmp_path):
    import datasets

    folder = write(tmp_path / "rows", "jsonl", rows_of(80))
    files = [str(file) for file in sorted(folder.iterdir())]
    streamed = datasets.load_dataset("json", data_files={"train": files}, split="train", streaming=True)
    stream = as_stream(streamed)
    assert stream is not None and stream.table.segments == 3
    pairs = [pair for batch in first_batches(StreamedBatches(stream, 8), 20) for pair in ids(batch)]
    assert len(pairs) == len({*pairs}) == 160
    place = StreamedBatches(stream, 8)
    place.start = StreamedBatches(stream, 8)[6].place
    assert place[6] == StreamedBatches(stream, 8)[6]
    assert as_stream(rows_of(1)) is None


def test_a_saved_dataset_is_streamed(tmp_path):
    import datasets

    datasets.Dataset.from_list(rows_of(20)).save_to_disk(tmp_path / "saved")
    batches = StreamedBatches(stream_of(tmp_path / "saved"), 5)
    assert {pair.row.query for n in range(4) for pair in batches[n].pairs} == {row["query"] for row in rows_of(20)}
