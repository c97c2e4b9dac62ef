"""Collections as Parquet: what is written is read again, splits share a folder, an image is there once."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import tiny_data
from PIL import Image

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError
from smart_train.data import store
from smart_train.data.collection import Collection, Document, HardNegatives
from smart_train.data.load import check_data, load, no_scores
from smart_train.data.readers.beir import read_beir
from smart_train.data.store import write_beir

MINED = HardNegatives(("c", "d"), (0.7, 0.5), 0.9, "tiny, late")


def made(folder: Path) -> Collection:
    """Texts with and without a title, a page with a text, a page without; two answers, a grade of 0, unequal lists."""
    tiny_data.draw_page(1).save(folder / "a page.png")
    corpus = {
        "a": Document("a", "Ships A harbour is a place.", None, "sea.pdf", 1, "Ships", "00ff"),
        "b": Document("b", "plain", None),
        "c": Document("c", "on paper", str(folder / "a page.png"), "sea.pdf", 2),
        "d": Document("d", None, tiny_data.draw_page(2), "land.pdf", 1),
    }
    queries = {"q": "where do ships rest", "r": "what is on paper"}
    qrels = {"q": {"a": 2, "b": 1, "d": 0}, "r": {"c": 1}}
    return Collection(
        "sea", corpus, queries, qrels, {"q": ["c", "d"], "r": ["b"]}, {"q": {"a": 8.0, "c": -1.5}}, {"q": MINED}
    )


def same(first: Collection, second: Collection) -> bool:
    shown = [{d.id: (d.text, d.title, d.hash, d.file, d.page) for d in c.corpus.values()} for c in (first, second)]
    assert all(first.corpus[d].content() == document.content() for d, document in second.corpus.items())  # pixels, too
    return (
        shown[0] == shown[1]
        and first.fingerprint() == second.fingerprint()
        and first.scored_negatives == second.scored_negatives
    )


@pytest.mark.parametrize("write", [store.write, write_beir], ids=["parquet", "jsonl"])
def test_what_is_written_is_read_again_to_the_pixel(tmp_path, write):
    collection = made(tmp_path)
    write(collection, tmp_path / "out", "train")
    assert same(collection, read_beir(tmp_path / "out", "train"))


def test_a_folder_can_be_moved_for_it_holds_its_images_and_each_only_once(tmp_path):
    collection = made(tmp_path)
    again = Document("e", None, str(shutil.copy(tmp_path / "a page.png", tmp_path / "copy.PNG")))
    collection.corpus["e"] = again
    store.write(collection, tmp_path / "out", "train")
    assert len(list((tmp_path / "out" / "images").iterdir())) == 2  # of three pages two are one picture
    (tmp_path / "a page.png").unlink()
    (tmp_path / "out").rename(tmp_path / "moved")
    found = read_beir(tmp_path / "moved", "train")
    assert found.corpus["e"].content() == found.corpus["c"].content()["image"] == tiny_data.draw_page(1)
    table = pq.read_table(tmp_path / "moved" / "corpus" / "corpus.parquet")
    assert all(not os.path.isabs(path) and "\\" not in path for path in table["image"].to_pylist() if path)


def test_an_image_that_is_in_the_folder_stays_where_it_is(tmp_path):
    (tmp_path / "images").mkdir()
    tiny_data.draw_page(1).save(tmp_path / "images" / "p1.jpg")
    store.write_corpus(tmp_path, [Document("p1", None, tmp_path / "images" / "p1.jpg")])
    assert store.read_parquet(tmp_path / "corpus" / "corpus.parquet")[0]["image"] == "images/p1.jpg"
    assert [p.name for p in (tmp_path / "images").iterdir()] == ["p1.jpg"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_stored_bytes_are_those_of_the_file_whatever_it_is_called(tmp_path, kind):
    tiny_data.draw_page(3).save(tmp_path / "page.dat", kind)
    raw = (tmp_path / "page.dat").read_bytes()
    store.write_corpus(tmp_path / "out", [Document("p", None, str(tmp_path / "page.dat"))])
    (file,) = (tmp_path / "out" / "images").iterdir()
    assert file.read_bytes() == raw
    assert file.suffix in Image.registered_extensions()
    assert Image.registered_extensions()[file.suffix] == kind


def test_splits_share_one_folder_and_the_recipe_reads_them_as_sides(tmp_path):
    collection = made(tmp_path)
    store.write(collection.select(["q"]), tmp_path / "out", "train")
    store.write(collection.select(["r"]), tmp_path / "out", "test")
    data = DataBlock(path=str(tmp_path / "out"), dev=0, negatives=2)
    assert check_data(data, teacher=True) == [] and no_scores(data) is None
    train, _, test = load(data, teacher=True)
    assert (
        train.negatives == {"q": ["c", "d"]}
        and train.scored_negatives == {"q": MINED}
        and train.teacher == collection.teacher
    )
    assert test.qrels == {"r": {"c": 1}} and len(test.corpus) == 4
    assert same(collection.select(["q"]), read_beir(tmp_path / "out", "train"))


def test_further_columns_are_kept_and_grow_with_what_is_added(tmp_path):
    store.write_corpus(tmp_path, [Document("a", "one")], {"label": {"a": "iv"}, "size": {"a": 3}, "none": {}})
    store.write_corpus(tmp_path, [Document("b", "two")], {"label": {"b": "v"}})
    rows = store.read_parquet(tmp_path / "corpus" / "corpus.parquet")
    assert [(row["id"], row["label"], row["size"], row["none"]) for row in rows] == [
        ("a", "iv", 3, None),
        ("b", "v", None, None),
    ]
    store.write_corpus(tmp_path, [Document("a", "one")])  # the same again changes nothing
    assert store.read_parquet(tmp_path / "corpus" / "corpus.parquet") == rows
    store.write_corpus(tmp_path, [Document("a", "another")], merge=False)
    assert [row["text"] for row in store.read_parquet(tmp_path / "corpus" / "corpus.parquet")] == ["another"]
    with pytest.raises(DataError, match=r"queries\.parquet: the column kind cannot be stored"):
        store.write_queries(tmp_path, {"q": "what", "r": "who"}, {"kind": {"q": 3, "r": "four"}})


def test_the_library_datasets_reads_every_part_by_itself(tmp_path):
    store.write(made(tmp_path), tmp_path / "out", "train")
    found = {
        part: datasets.load_dataset("parquet", data_files=str(tmp_path / "out" / part / "*.parquet"), split="train")
        for part in ("corpus", "queries", "qrels", "negatives", "teacher")
    }
    assert found["corpus"]["id"][:] == ["a", "b", "c", "d"] and found["corpus"]["page"][:] == [1, None, 2, 1]
    assert found["qrels"][0] == {"query-id": "q", "corpus-id": "a", "score": 2}
    assert found["negatives"][0] == {
        "query-id": "q",
        "corpus-ids": ["c", "d"],
        "scores": [0.7, 0.5],
        "positive": 0.9,
        "miner": "tiny, late",
    }


def test_negatives_are_replaced_query_by_query_and_count_for_more_than_a_jsonl_beside_them(tmp_path, beir_folder):
    folder = Path(shutil.copytree(beir_folder, tmp_path / "beir"))
    tiny_data.write_lines(folder / "negatives.jsonl", [{"_id": q, "negatives": ["d5"]} for q in ("q0", "q1")])
    store.write_negatives(folder, {"q0": HardNegatives(("d7", "d9"), (0.2, 0.1))})
    store.write_negatives(folder, {"q2": HardNegatives(("d3",))})
    found = read_beir(folder, "train")
    assert found.negatives == {"q0": ["d7", "d9"], "q1": ["d5"], "q2": ["d3"]}
    assert found.scored_negatives == {"q0": HardNegatives(("d7", "d9"), (0.2, 0.1))}
    store.write_negatives(folder, {"q0": HardNegatives(("d8",))}, merge=False)
    assert read_beir(folder, "train").negatives == {"q0": ["d8"], "q1": ["d5"]}


def test_a_selection_keeps_the_scores_of_the_negatives_it_keeps(tmp_path):
    part = made(tmp_path).select(["q"], ["a", "d"])
    assert part.negatives == {"q": ["d"]} and part.scored_negatives["q"] == HardNegatives(
        ("d",), (0.5,), 0.9, "tiny, late"
    )
    with pytest.raises(DataError, match="2 negatives have 1 scores"):
        HardNegatives(("a", "b"), (1.0,))


def test_nothing_is_written_over_or_hidden(tmp_path, beir_folder):
    collection = made(tmp_path)
    store.write(collection, tmp_path / "out", "train")
    collection.queries["q"] = "another text"
    with pytest.raises(DataError, match="'q' is there with another content"):
        store.write(collection, tmp_path / "out", "test")
    with pytest.raises(DataError, match="JSON Lines would hide it"):
        write_beir(collection, tmp_path / "out", "test")
    folder = Path(shutil.copytree(beir_folder, tmp_path / "beir"))
    with pytest.raises(DataError, match=r"its corpus is there in corpus\.jsonl"):
        store.write(collection, folder, "train")
    with pytest.raises(DataError, match=r"holds (test|train)\.tsv, which Parquet would hide"):
        store.write_qrels(folder, "dev", {"q0": {"d0": 1}})
    with pytest.raises(DataError, match="the image of document 'p' cannot be read"):
        store.write_corpus(tmp_path / "new", [Document("p", None, str(tmp_path / "nowhere.png"))])
    assert not (tmp_path / "new" / "corpus").exists()


def test_a_stopped_run_leaves_the_old_file(tmp_path, monkeypatch):
    store.write_queries(tmp_path, {"q": "what"})
    monkeypatch.setattr(pq, "write_table", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.write_queries(tmp_path, {"r": "who"})
    assert [row["id"] for row in store.read_parquet(tmp_path / "queries" / "queries.parquet")] == ["q"]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"_id": "q1", "negatives": "d1"}, "negatives must be a list of document ids"),
        ({"_id": "q1", "negatives": ["d1", "d2"], "scores": [1.0]}, "scores must be a list of 2 numbers"),
        ({"_id": "q1", "negatives": ["d1"], "scores": ["high"]}, "scores: the score is 'high'"),
        ({"_id": "q1", "negatives": ["d1"], "positive": "best"}, "positive: the score is 'best'"),
    ],
)
def test_a_malformed_negative_is_refused_with_its_line(tmp_path, beir_folder, row, told):
    folder = Path(shutil.copytree(beir_folder, tmp_path / "beir"))
    (folder / "negatives.jsonl").write_text(json.dumps({"_id": "q0", "negatives": ["d3"]}) + "\n" + json.dumps(row))
    with pytest.raises(DataError, match=rf"negatives\.jsonl:2: {told}"):
        read_beir(folder, "train")


def test_texts_are_left_out_of_pages_where_only_images_are_wanted(tmp_path):
    store.write(made(tmp_path), tmp_path / "out", "train")
    found = read_beir(tmp_path / "out", "train", text="")
    assert found.corpus["c"].content() == tiny_data.draw_page(1) and found.corpus["c"].text is None
    assert read_beir(tmp_path / "out", "train", image="").corpus["c"].content() == "on paper"
