"""What a folder says of its queries and of its documents' texts besides what training reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from smart_train.config.schema import DataBlock
from smart_train.data import store
from smart_train.data.collection import Collection, Document
from smart_train.data.readers.base import QueryMetadata, find_reader


def metadata_and_texts(data: DataBlock) -> tuple[QueryMetadata, dict[str, str | None]]:
    reader = find_reader(data)
    collection = reader.read("test")
    return reader.query_metadata(collection), reader.document_texts(collection)


def lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize(
    ("column", "given", "kinds"),
    [
        ("rule", ["outline", None], {"q1": "outline"}),
        ("query_types", [["open", "compare"], ["numeric"]], {"q1": "compare, open", "q2": "numeric"}),
        ("Kind", ["a", " b "], {"q1": "a", "q2": "b"}),
    ],
)
def test_kinds_and_files_come_from_columns_by_their_usual_names(tmp_path, column, given, kinds):
    lines(tmp_path / "corpus.jsonl", [{"_id": "d1", "text": "harbour"}, {"_id": "d2", "text": "bridge"}])
    rows = [{"_id": f"q{n}", "text": "where", column: value, "file": f"f{n}"} for n, value in enumerate(given, 1)]
    lines(tmp_path / "queries.jsonl", [*rows, {"_id": "q9", "text": "of another split", column: "x"}])
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("q1\td1\t1\nq2\td2\t1\n")
    found, texts = metadata_and_texts(DataBlock(path=str(tmp_path), split="test"))
    assert (found.kind, found.column) == (kinds, column) and found.file == {"q1": "f1", "q2": "f2"}
    assert texts == {"d1": "harbour", "d2": "bridge"}


def test_rows_have_neither(tmp_path):
    lines(tmp_path / "test.jsonl", [{"query": "where", "positive": "harbour", "kind": "x"}])
    found, texts = metadata_and_texts(DataBlock(path=str(tmp_path / "test.jsonl"), split="test"))
    assert found == QueryMetadata() and list(texts.values()) == ["harbour"]


def test_pages_read_as_images_keep_the_text_layer_beside_them_for_those_who_ask(tmp_path):
    page = Image.new("RGB", (20, 20), "white")
    corpus = {"p1": Document("p1", "Ports where ships rest", page, title="Ports"), "p2": Document("p2", None, page)}
    store.write(Collection("x", corpus, {"q": "ports"}, {"q": {"p1": 1}}), tmp_path, "test")
    data = DataBlock(path=str(tmp_path), split="test", document="")
    reader = find_reader(data)
    pages = reader.read("test")
    assert all(document.text is None for document in pages.corpus.values())
    assert reader.document_texts(pages) == {"p1": "Ports where ships rest", "p2": None}
