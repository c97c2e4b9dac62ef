"""A copy under another id, and a query in other letters, never lies on both sides of a split."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import tiny_data
from PIL import Image

from smart_train.config.schema import DataBlock
from smart_train.data.collection import Collection, Document
from smart_train.data.copies import identities, plain
from smart_train.data.load import load
from smart_train.data.split import halves, split


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
    found = identities([Document(name, image=str(tmp_path / name)) for name in names])
    assert found["0.bmp"] == found["copy.bmp"] and len({found[name] for name in names[:3]}) == 3
    assert "long.bmp" not in found
    hashed = [Document("a", image="gone.png", hash="1"), Document("b", image="gone.png", hash="1", text="x")]
    hashed.append(Document("c", image="else.png", hash="1"))
    found = identities(hashed)
    assert found["a"] == found["c"] != found["b"]


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
