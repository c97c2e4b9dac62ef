"""Tevatron's queries with a corpus of its own: where the files are, what is read and what is left out."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import tiny_data

from smart_train.config.schema import Component, DataBlock
from smart_train.core.errors import DataError
from smart_train.data.load import check_data, load, read_all
from smart_train.data.readers.base import find_reader
from smart_train.data.stored_collection import StoredCollection

CORPUS = [
    {"docid": f"d{n}", "title": "Part" if n == 1 else "", "text": f"passage {n}", "video": None} for n in range(5)
]
TRAIN = [
    {"query_id": "q1", "query_text": "first", "positive_document_ids": ["d1", "d2"], "negative_document_ids": ["d3"]},
    {
        "query_id": 2,
        "query_text": "second",
        "positive_document_ids": ["d0"],
        "negative_document_ids": ["d0", "x", "d4"],
    },
    {"query_id": "q3", "query_text": "third", "positive_document_ids": ["gone"], "negative_document_ids": None},
    {"query_id": "q4", "query_text": "", "query_image": "a.png", "positive_document_ids": ["d1"]},
    {"query_id": "q5", "query_text": "fifth", "positive_document_ids": []},
]
TEST = [{"query_id": "q9", "query_text": "last", "positive_document_ids": ["d4"], "negative_document_ids": []}]


def side_by_side(folder: Path) -> Path:
    for name, rows in (("corpus", CORPUS), ("train", TRAIN), ("test", TEST)):
        tiny_data.write_lines(folder / f"{name}.jsonl", rows)
    return folder


def called_queries(folder: Path) -> Path:  # the names of a BEIR collection
    for name, rows in (("corpus", CORPUS), ("queries", TRAIN), ("queries_test", TEST)):
        tiny_data.write_lines(folder / f"{name}.jsonl", rows)
    return folder


def in_folders(folder: Path) -> Path:
    tiny_data.write_lines(folder / "corpus" / "part-0.jsonl", CORPUS[:3])
    tiny_data.write_lines(folder / "corpus" / "part-1.jsonl", CORPUS[3:])
    tiny_data.write_lines(folder / "train" / "data.jsonl", TRAIN)
    tiny_data.write_lines(folder / "test" / "data.jsonl", TEST)
    return folder


@pytest.mark.parametrize("layout", [side_by_side, called_queries, in_folders], ids=lambda f: f.__name__)
def test_queries_and_corpus_are_joined_and_what_is_left_out_is_counted(tmp_path, caplog, layout, large):
    caplog.set_level(logging.INFO)
    data = DataBlock(path=str(layout(tmp_path / "set")), dev=0, negatives=1)
    assert check_data(data) == []
    reader = find_reader(data)
    assert sorted(reader.splits()) == ["test", "train"]
    train = reader.read("train")
    assert isinstance(train, StoredCollection) is large
    assert {d.id: d.text for d in train.corpus.values()} == {
        "d0": "passage 0", "d1": "Part passage 1", "d2": "passage 2", "d3": "passage 3", "d4": "passage 4"
    }  # fmt: skip
    assert dict(train.queries.items()) == {"q1": "first", "2": "second", "q3": "third"}
    assert list(train.pairs()) == [("q1", "d1"), ("q1", "d2"), ("2", "d0")]
    assert {q: row for q, row in train.negatives.items() if row} == {"q1": ["d3"], "2": ["d4"]}
    for told in (
        "columns read: id = docid, title = title, text = text; not read: video",
        "columns read: id = query_id, text = query_text, positives = positive_document_ids",
        "1 queries are images or have one, and are left out: queries are texts here: q4",
        "1 queries have no positive_document_ids, and are left out: q5",
        "1 negatives are also positives of their query, and are left out",
        "1 negatives are missing in the corpus and are left out",
        "1 judged documents are missing in the corpus (they stay in the qrels and lower recall): gone",
    ):
        assert told in caplog.text, told
    parts = load(data)
    assert list(parts[2].pairs()) == [("q9", "d4")] and len(parts[2].corpus) == 5


def test_a_file_of_queries_is_read_with_the_corpus_beside_it_or_with_a_named_one(tmp_path):
    side_by_side(tmp_path / "set")
    alone = DataBlock(path=str(tmp_path / "set" / "train.jsonl"), dev=0, test=0)
    assert len(load(alone)[0].pairs()) == 3 and find_reader(alone).splits() == ["train"]
    (tmp_path / "else").mkdir()
    (tmp_path / "set" / "corpus.jsonl").rename(tmp_path / "else" / "docs.jsonl")
    alone.format = Component("tevatron")
    (problem,) = check_data(alone)
    assert problem.key == "data.path" and "there is no corpus (a column docid)" in problem.what
    alone.format = Component("tevatron", {"corpus": str(tmp_path / "else" / "docs.jsonl")})
    assert len(load(alone)[0].pairs()) == 3


def test_images_of_documents_are_paths_in_the_folder(tmp_path):
    tiny_data.draw_page(1).save(tmp_path / "p1.png")
    tiny_data.write_lines(tmp_path / "corpus.jsonl", [{"docid": "a", "text": None, "image": "p1.png"}])
    row = {"query_id": "q", "query": "what", "positive_document_ids": ["a"], "negative_document_ids": []}
    tiny_data.write_lines(tmp_path / "train.jsonl", [row])
    reader = find_reader(DataBlock(path=str(tmp_path)))
    assert reader.read("train").corpus["a"].content() == tiny_data.draw_page(1) and reader.image_column() == "image"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"positive_document_ids": "d1"}, r"train\.jsonl:2: positive_document_ids must be a list of document ids"),
        ({"negative_document_ids": ["d1", 0.5]}, r"train\.jsonl:2: negative_document_ids must be a list"),
        ({"query_id": None}, r"train\.jsonl:2: query_id is None"),
        ({"query_text": "a\0b"}, r"train\.jsonl:2: query_text has a NUL"),
        ({"query_id": "q1"}, r"train\.jsonl:2: the query id 'q1' is there before, with another text"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, change, told):
    side_by_side(tmp_path)
    tiny_data.write_lines(tmp_path / "train.jsonl", [TRAIN[0], TRAIN[1] | change])
    with pytest.raises(DataError, match=told):
        find_reader(DataBlock(path=str(tmp_path))).read("train")


def test_data_check_reads_every_split(tmp_path):
    found = read_all(DataBlock(path=str(side_by_side(tmp_path))))
    assert {split: len(qrels) for split, qrels in found.splits.items()} == {"train": 3, "test": 1}
    assert found.negatives["q1"].documents == ("d3",)
