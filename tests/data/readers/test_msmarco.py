"""MS MARCO's passage files, as they are published: without headers, by ids or as triples of texts."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import pytest

from smart_train.config.schema import Component, DataBlock
from smart_train.core.errors import DataError
from smart_train.data.load import check_data, load
from smart_train.data.readers.base import find_reader
from smart_train.data.readers.msmarco import MsmarcoReader, MsmarcoTriplesReader
from smart_train.data.stored_collection import StoredCollection

FILES = {
    "collection.tsv": '0\tThe "first" passage\n1\tsecond passage\n2\t"unclosed quote\n3\tfourth, it\'s [sic]\n',
    "queries.train.tsv": "10\twhat is first\n11\twho is second\n12\tnobody judged this\n",
    "queries.dev.tsv": "20\twhat is third\n21\tand fourth\n",
    "queries.dev.small.tsv": "20\twhat is third\n",
    "queries.eval.tsv": "30\tsecret\n",
    "qrels.train.tsv": "10\t0\t0\t1\n11\t0\t1\t1\n99\t0\t1\t1\n11\t0\t77\t1\n",
    "qrels.dev.tsv": "20\t0\t2\t1\n21\t0\t3\t1\n",
    "qrels.dev.small.tsv": "20\t0\t2\t1\n",
    "qidpidtriples.train.full.2.tsv": "10\t0\t1\n11\t1\t3\n10\t0\t3\n10\t0\t3\n10\t0\t2\n11\t1\t88\n",
}
TRIPLES = 'what is first\tThe "first" passage\tsecond passage\nwhat is first\tThe "first" passage\t"unclosed quote\n'


def published(folder: Path, without: tuple[str, ...] = ()) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in FILES.items():
        if name not in without:
            (folder / name).write_text(text)
    return folder


def test_passages_queries_qrels_and_triples_are_joined_by_id(tmp_path, caplog, large):
    caplog.set_level(logging.INFO)
    data = DataBlock(path=str(published(tmp_path / "marco")), test=1, negatives=2)
    assert check_data(data) == []
    reader = find_reader(data)
    assert isinstance(reader, MsmarcoReader) and sorted(reader.splits()) == ["dev", "dev.small", "train"]
    train = reader.read("train")
    assert isinstance(train, StoredCollection) is large
    assert [d.text for d in train.corpus.values()] == [
        'The "first" passage', "second passage", '"unclosed quote', "fourth, it's [sic]"
    ]  # fmt: skip
    assert dict(train.queries.items()) == {"10": "what is first", "11": "who is second"}
    assert list(train.pairs()) == [("10", "0"), ("11", "1")]
    assert dict(train.negatives.items()) == {"10": ["1", "3", "2"], "11": ["3"]}
    for told in (
        "marco: train is read from collection.tsv, queries.train.tsv, qrels.train.tsv, qidpidtriples.train.full.2.tsv",
        "1 judged queries have no text and are left out: 99",
        "1 judged documents are missing in the corpus (they stay in the qrels and lower recall): 77",
        "1 negatives are missing in the corpus and are left out",
    ):
        assert told in caplog.text, told
    assert list(reader.read("dev").pairs()) == [("20", "2"), ("21", "3")]
    assert list(reader.read("dev.small").pairs()) == [("20", "2")]


def test_other_files_beside_them_are_none_of_these(tmp_path):
    folder = published(tmp_path / "marco", ("collection.tsv",))
    (folder / "collection.part.tsv").write_text("0\ta\n")
    (folder / "queries.tsv").write_text("0\ta\n")
    assert not MsmarcoReader.detect(DataBlock(path=str(folder)))


def test_without_qrels_the_triples_say_what_answers(tmp_path, large):
    folder = published(tmp_path / "marco", ("qrels.train.tsv", "qrels.dev.tsv", "queries.dev.tsv"))
    reader = find_reader(DataBlock(path=str(folder)))
    assert sorted(reader.splits()) == ["dev", "train"]  # dev.small is the only dev
    assert list(reader.read("train").pairs()) == [("10", "0"), ("11", "1")]
    assert list(reader.read("dev").pairs()) == [("20", "2")]


def test_of_many_triples_the_first_negatives_are_kept_and_the_rest_is_counted(tmp_path, caplog, large):
    caplog.set_level(logging.INFO)
    block = DataBlock(path=str(published(tmp_path / "marco")), format=Component("msmarco", {"negatives": 1}))
    assert dict(find_reader(block).read("train").negatives.items()) == {"10": ["1"], "11": ["3"]}
    assert "4 triples are beyond the first 1 negatives of their query, and are left out" in caplog.text
    block.format = Component("msmarco", {"negatives": 0})
    assert check_data(block)[0].key == "data.format"


def test_triples_of_texts_are_rows_without_a_header(tmp_path, large):
    path = tmp_path / "triples.train.small.tsv.gz"
    path.write_bytes(gzip.compress(TRIPLES.encode()))
    for given in (path, tmp_path):
        data = DataBlock(path=str(given), dev=0, test=0, negatives=1)
        assert check_data(data) == [] and isinstance(find_reader(data), MsmarcoTriplesReader)
        train = load(data)[0]
        assert isinstance(train, StoredCollection) is large
        assert [*train.queries.values()] == ["what is first"] and len(train.pairs()) == 1
        texts = [train.corpus[d].text for (row,) in [train.negatives.values()] for d in row]
        assert texts == ["second passage", '"unclosed quote']
    data.streaming = True
    assert check_data(data) == []


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("collection.tsv", "0\ta\n1 b\n", r"collection\.tsv:2: 1 fields; a row is id, text, divided by tabs"),
        ("queries.train.tsv", "10\ta\tb\n", r"queries\.train\.tsv:1: 3 fields; a row is id, text"),
        ("qrels.train.tsv", "10\t0\t0\tyes\n", r"qrels\.train\.tsv:1: the grade is 'yes'"),
        ("qidpidtriples.train.full.2.tsv", "10\t0\n", r"full\.2\.tsv:1: 2 fields; a row is query id, positive id"),
        ("collection.tsv", "0\ta\n0\tb\n", r"collection\.tsv:2: the id '0' is there before, with another content"),
        ("collection.tsv", "0\ta\n1\t\0\n", r"collection\.tsv:2: text has a NUL"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, name, text, told, large):
    (published(tmp_path / "marco") / name).write_text(text)
    with pytest.raises(DataError, match=told):
        find_reader(DataBlock(path=str(tmp_path / "marco"))).read("train")
