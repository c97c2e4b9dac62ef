"""A copy under another id, and a query in other letters, never lies on both sides of a split."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import tiny_data
from on_disk import convert_small_data
from PIL import Image

from smart_train.config.schema import DataBlock
from smart_train.data.batch_sampler import pair_groups
from smart_train.data.collection import Collection, Document, RetrievalDataset
from smart_train.data.document_keys import DocumentKeys
from smart_train.data.identity import plain, query_copies, shared_documents, shown_hashes
from smart_train.data.load import load
from smart_train.data.readers.base import find_reader
from smart_train.data.split import file_groups, halves, split
from smart_train.data.validate import validate
from smart_train.losses.false_negatives import relevance_mask
from smart_train.mining.selection import ExcludedDocuments, held_out_documents


def mixed(copies: str, with_files: bool, seed: int = 0) -> Collection:
    """80 questions; every second one has a copy, of its answer or of its words, under another id, in another file."""
    draw = random.Random(seed)
    corpus, queries, qrels = {}, {}, {}
    for n in range(80):
        text, query = f"answer {n}", f"Question {n}"
        if n % 2 and copies == "answers":
            text = f"answer {n - 1}"
        if n % 2 and copies == "spacing":
            text = f" Answer \n {n - 1} "
        if n % 2 and copies == "queries":
            query = f"question  {n - 1}"
        file = f"file {draw.randrange(1000)}" if with_files else None
        corpus[f"d{n}"] = Document(f"d{n}", text, file=file)
        queries[f"q{n}"], qrels[f"q{n}"] = query, {f"d{n}": 1}
    return Collection("mixed", corpus, queries, qrels)


@pytest.mark.parametrize("copies", ["answers", "spacing", "queries"])
@pytest.mark.parametrize("with_files", [False, True])
@pytest.mark.parametrize("dev_test", [(0, 0.2), (0.1, 0.2), (4, 10)])
def test_what_is_ranked_is_not_trained_on_under_another_id(copies, with_files, dev_test):
    sides = split(mixed(copies, with_files), *dev_test)
    answers = [{plain(str(side.corpus[d].text)) for _, d in side.pairs()} for side in sides]
    asked = [{plain(text) for text in side.queries.values()} for side in sides]
    for one in (answers, asked):
        assert not one[0] & one[1] and not one[0] & one[2] and not one[1] & one[2]


def test_halves_have_no_copy_in_common():
    data = mixed("answers", with_files=False)
    left, right, _ = halves(data)
    shown = [{data.corpus[d].text for q in half for d in data.qrels[q]} for half in (left, right)]
    assert not shown[0] & shown[1]


def test_copies_that_answer_nothing_join_no_files():
    data = mixed("none", with_files=True)
    plainly = split(data, 0, 10)
    data.corpus |= {
        f"blank {n}": Document(f"blank {n}", "left blank", file=d.file) for n, d in enumerate(data.corpus.values())
    }
    assert [set(side.queries) for side in split(data, 0, 10)] == [set(side.queries) for side in plainly]


def test_images_are_compared_by_their_bytes_or_their_hash(tmp_path):
    for n in range(3):
        Image.new("RGB", (8, 8), (n, 0, 0)).save(tmp_path / f"{n}.bmp")
    (tmp_path / "copy.bmp").write_bytes((tmp_path / "0.bmp").read_bytes())
    (tmp_path / "long.bmp").write_bytes((tmp_path / "0.bmp").read_bytes() + b"\0")
    names = ["0.bmp", "1.bmp", "2.bmp", "copy.bmp", "long.bmp"]
    found = dict(zip(names, shown_hashes([Document(name, image=str(tmp_path / name)) for name in names]), strict=True))
    assert found["0.bmp"] == found["copy.bmp"] and len({found[name] for name in names[:3]}) == 3
    assert found["long.bmp"] == 0  # no other file has as many bytes: it was not read
    hashed = [Document("a", image="gone.png", hash="1"), Document("b", image="gone.png", hash="1", text="x")]
    hashed.append(Document("c", image="else.png", hash="1"))
    assert len({*shown_hashes(hashed)}) == 1  # of a page before words were masked in its text


@pytest.mark.parametrize("shape", ["rows with ids", "own splits"])
def test_own_splits_with_copies_are_told(tmp_path: Path, caplog, shape):
    train = [{"query": f"q{n}", "positive": f"text {n}", "id": f"a{n}"} for n in range(6)]
    test = [
        {"query": f"Q{n}" if n == 3 else f"other {n}", "positive": f"Text  {n}", "id": f"b{n}"} for n in range(3, 9)
    ]
    tiny_data.write_lines(tmp_path / "train.jsonl", train)
    tiny_data.write_lines(tmp_path / "test.jsonl", test)
    load(DataBlock(path=str(tmp_path), dev=0, id="id" if shape == "rows with ids" else None))
    assert "/test shares 3 documents and 1 queries with" in caplog.text


def test_every_user_takes_the_same_documents_for_copies(tmp_path):
    """Split, batch, loss, mining and check: a copy in other letters under another id is the document itself."""
    corpus = {"a": Document("a", "Ships rest"), "b": Document("b", " ships  REST"), "c": Document("c", "a bridge")}
    queries = {"q": "Where do ships rest", "r": "where do  ships rest", "s": "what crosses"}
    data = Collection("demo", corpus, queries, {"q": {"a": 1}, "r": {"c": 1}, "s": {"b": 1}})
    assert len(file_groups(data)[0]) == 1  # q and s by their answers, q and r by their words
    assert pair_groups(data, [("q", "a"), ("s", "b"), ("r", "c")]).documents.tolist() == [0, 0, 1]
    keys = DocumentKeys(data)
    documents = keys.of_documents(list(corpus), [one.text for one in corpus.values()])
    masked = relevance_mask(keys.of_positives(["q", "r", "s"]), documents)
    assert masked.tolist() == [[True, True, True], [True, True, True], [True, True, False]]
    assert keys.copies_of_positives("q", ["b", "c"]) == {"b", "c"}
    assert ExcludedDocuments(data).of("q") == {"a": "answer", "c": "answer", "b": "duplicate"}
    held_out = held_out_documents(
        data.select(["r"]), [Collection("t", {"x": corpus["a"]}, {"q": "?"}, {"q": {"x": 1}})]
    )
    assert held_out == {"a", "b"}
    report = validate(RetrievalDataset("demo", corpus, queries, {"train": data.qrels}))
    assert {one.kind: one.ids for one in report.findings} == {"duplicate": ["b = a"], "duplicate-query": ["r = q"]}
    assert report.clean.splits == {"train": {"q": {"a": 1, "c": 1}, "s": {"a": 1}}}


@pytest.mark.parametrize("seed", range(3))
def test_copies_of_a_stored_collection_are_those_of_one_in_memory(tmp_path, monkeypatch, seed):
    draw = random.Random(seed)
    shapes = [str.upper, str.title, lambda text: f" {text} ", lambda text: text]
    texts = [draw.choice(shapes)(f"words {draw.randrange(30)}") for _ in range(120)]
    rows = [{"query": f"Q {draw.choice(texts)}", "positive": draw.choice(texts)} for _ in range(60)]
    tiny_data.write_lines(tmp_path / "rows.jsonl", rows)
    data = DataBlock(path=str(tmp_path / "rows.jsonl"))
    here = find_reader(data).read("train")
    convert_small_data(monkeypatch, tmp_path, shard_rows=25)
    stored = find_reader(data).read("train")
    assert query_copies(stored) == query_copies(here) != {}
    few = [*here.queries][:20]
    assert query_copies(stored.select(few)) == query_copies(here.select(few))
    groups = [pair_groups(one, one.pairs()).documents.tolist() for one in (stored, here)]
    assert groups[0] == groups[1] and max(groups[0]) < 30
    ranked = Collection("test", {"x": Document("x", "WORDS 3"), "y": Document("y", "others")}, {}, {})
    assert shared_documents(stored, [ranked]) == shared_documents(here, [ranked]) == [{"x"}]
