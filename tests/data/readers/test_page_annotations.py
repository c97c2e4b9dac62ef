"""A table of (query, file, page): beside a corpus of pages, beside the files themselves, and where it leads nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_data

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError
from smart_train.data import store
from smart_train.data.collection import Document
from smart_train.data.load import check_data, image_column, load, no_scores
from smart_train.data.readers.base import find_reader

CORPUS = [
    *(Document(f"a{page}", f"ships, page {page}", None, "reports/sea.pdf", page) for page in (1, 2, 3)),
    Document("b1", "a garden", None, "land.pdf", 1),
    Document("c1", "notes of one", None, "x/notes.pdf", 1),
    Document("d1", "notes of two", None, "y/notes.pdf", 1),
]


def table(folder: Path, rows: list[str], name: str = "questions.csv", header: str = "query,file,page") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return folder / name


def block(path: Path, **change) -> DataBlock:
    return DataBlock(**({"path": str(path), "dev": 0, "test": 0} | change))


def test_rows_lead_to_the_pages_of_the_corpus_beside_them(tmp_path):
    store.write_corpus(tmp_path, CORPUS)
    rows = [
        "where do ships rest,reports/sea.pdf,2",
        "where do ships rest,sea.pdf,3",
        "which ships,./reports\\sea.pdf,2",
        "what grows,land.pdf,",
        "whose notes,x/notes.pdf,1",
    ]
    data = block(table(tmp_path, rows))
    assert check_data(data) == [] and image_column(data) is None and "no scores" in str(no_scores(data))
    train = load(data)[0]
    answers = {train.queries[q]: list(judged) for q, judged in train.qrels.items()}
    assert answers == {
        "where do ships rest": ["a2", "a3"],
        "which ships": ["a2"],
        "what grows": ["b1"],
        "whose notes": ["c1"],
    }
    assert len(train.corpus) == 6  # the other pages are there to be ranked
    assert len(load(block(tmp_path / "questions.csv", limit=2))[0].queries) == 1
    parts = load(block(tmp_path / "questions.csv", test=1))
    assert not {d.file for d in parts[0].corpus.values()} & {d.file for d in parts[2].corpus.values()}


def test_rows_that_lead_nowhere_are_counted_with_their_lines(tmp_path, caplog):
    store.write_corpus(tmp_path, CORPUS)
    rows = ["one,sea.pdf,2", "two,sea.pdf,9", "three,lost.pdf,1", ",sea.pdf,1", "five,notes.pdf,1", "six,,1"]
    assert len(load(block(table(tmp_path, rows)))[0].queries) == 1
    assert "5 rows have no query, or name a page that is not there" in caplog.text
    for line in (":3 (sea.pdf, page 9)", ":4 (lost.pdf, page 1)", ":6 (notes.pdf, page 1)", ":7 (no file, page 1)"):
        assert f"questions.csv{line}" in caplog.text
    with pytest.raises(DataError, match=r"no row names a page that is there; the first: .*csv:2 \(lost\.pdf, page 1\)"):
        load(block(table(tmp_path, rows[2:3])))
    with pytest.raises(DataError, match=r"csv:2: sea\.pdf has 3 pages, and the row names none"):
        load(block(table(tmp_path, ["where,sea.pdf,"])))


def test_images_and_texts_beside_the_table_are_documents_themselves(tmp_path):
    tiny_data.draw_page(1).save(tmp_path / "scan.PNG")
    (tmp_path / "notes.md").write_text("# Notes\nof a harbour", encoding="utf-8")
    rows = [
        "what is on it,scan.PNG,1",
        "which page,scan.PNG,",
        "whose notes,notes.md,1",
        "lost,no.png,1",
        "x,scan.PNG,2",
    ]
    data = block(table(tmp_path, rows, header="question,doc_id,page"))
    assert check_data(data) == [] and image_column(data) == "doc_id"
    train = load(data)[0]
    assert sorted(d.file for d in train.corpus.values()) == ["notes.md", "scan.PNG"] and len(train.queries) == 3
    page = next(d for d in train.corpus.values() if d.image)
    assert page.content() == tiny_data.draw_page(1)
    (tmp_path / "book.pdf").write_bytes(b"%PDF-")
    with pytest.raises(DataError, match=r"csv:2: book\.pdf is neither .* smart-train ingest"):
        load(block(table(tmp_path, ["what,book.pdf,1"])))


def test_negatives_are_refused_for_a_table_that_names_none(tmp_path):
    store.write_corpus(tmp_path, CORPUS)
    (problem,) = check_data(block(table(tmp_path, ["a,sea.pdf,1"]), negatives=2))
    assert problem.key == "data.negatives" and "names none" in problem.what


def test_pages_of_label_0_are_negatives_of_their_query(tmp_path):
    for number in range(3):
        tiny_data.draw_page(number).save(tmp_path / f"{number}.png")
    lines = ["query,file,label", "a,0.png,1", "a,1.png,0", "a,2.png,2", "b,1.png,0"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    found = find_reader(DataBlock(path=str(tmp_path / "t.csv"))).read("train")
    shown = {d: Path(str(document.image)).name for d, document in found.corpus.items()}
    assert [{shown[d]: grade for d, grade in row.items()} for row in found.qrels.values()] == [{"0.png": 1, "2.png": 2}]
    assert [[shown[d] for d in row] for row in found.negatives.values()] == [["1.png"]]
    assert len(find_reader(DataBlock(path=str(tmp_path / "t.csv"), label="")).read("train").pairs()) == 4
