"""A plan's shards, and what tells one document from another."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from smart_train.core.errors import EvaluationError
from smart_train.data.collection import Document
from smart_train.distributed.process_group import ProcessGroup
from smart_train.evaluation import sharding
from smart_train.evaluation.sharding import plan_shards
from smart_train.evaluation.vector_store import document_key


def test_long_texts_make_small_shards_and_pages_come_after_texts(monkeypatch):
    monkeypatch.setattr(sharding, "TEXT_ROWS", 128)
    monkeypatch.setattr(sharding, "TEXT_CHARACTERS", 4000)
    corpus = {f"t{n}": Document(f"t{n}", "x" * 900) for n in range(9)} | {"s": Document("s", "x")}
    corpus |= {f"p{n}": Document(f"p{n}", image=Image.new("RGB", (8, 8))) for n in range(70)}
    parts = plan_shards(corpus, ProcessGroup.single())
    assert [len(part.ids) for part in parts] == [4, 4, 2, 64, 6]
    assert parts[2].ids == ["t8", "s"] and parts[3].ids[0] == "p0"


class Loaded:
    """An image that is there once it is asked for."""

    def __init__(self, colour: str) -> None:
        self.colour = colour

    def load(self) -> Image.Image:
        return Image.new("RGB", (4, 4), self.colour)


def test_the_key_of_a_document_follows_its_id_text_and_image(tmp_path):
    first = tmp_path / "page.png"
    Image.new("RGB", (4, 4), "red").save(first)
    documents = [
        Document("a", "x"),
        Document("b", "x"),
        Document("a", "y"),
        Document("a", None, Image.new("RGB", (4, 4), "red")),
        Document("a", None, Image.new("RGB", (4, 4), "blue")),
        Document("a", "x", Image.new("RGB", (4, 4), "red")),
        Document("a", None, Loaded("green")),
        Document("a", None, first),
        Document("a", None, first, hash="1f"),
    ]
    keys = [document_key(document.id, document) for document in documents]
    assert len(set(keys)) == len(keys)
    assert document_key("a", Document("a", None, Image.new("RGB", (4, 4), "red"))) == keys[3]
    assert document_key("a", Document("a", None, Loaded("green"))) == keys[6]
    assert document_key("a", Document("a", None, str(first))) == keys[7]
    os.utime(first, (1, 1))
    assert document_key("a", Document("a", None, first)) != keys[7]
    with pytest.raises(EvaluationError, match="gone.png cannot be read"):
        document_key("a", Document("a", None, tmp_path / "gone.png"))
