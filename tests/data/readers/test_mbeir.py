"""Queries with a candidate pool, as M-BEIR has them: both layouts, several answers, what cannot be a query here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_data

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError
from smart_train.data.load import check_data, has_test, image_column, load, no_scores

CANDIDATES = [
    {"did": "9:1", "txt": "a harbour", "img_path": None, "modality": "text", "src_content": "x"},
    {"did": "9:2", "txt": None, "img_path": "mbeir_images/sea/p2.png", "modality": "image"},
    {"did": "9:3", "txt": "a bridge", "img_path": "mbeir_images/sea/p3.png", "modality": "image,text"},
    {"did": "9:4", "txt": "a garden", "img_path": None, "modality": "text"},
]


def query(number: int, positives: list, negatives: list | None = None, **change) -> dict:
    row = {"qid": f"9:{number}", "query_txt": f"question {number}", "query_img_path": None, "query_modality": "text"}
    return row | {"pos_cand_list": positives, "neg_cand_list": negatives, "task_id": 0} | change


TRAIN = [
    query(1, ["9:1", "9:3"], ["9:2", "9:4", "9:1"]),
    query(2, [{"did": "9:2", "txt": None}], [{"did": "9:4"}]),
    query(3, ["9:1"], [], query_txt=None, query_img_path="mbeir_images/q3.png", query_modality="image"),
    query(4, ["9:4"], None, query_img_path="mbeir_images/q4.png", query_modality="image,text"),
]
TEST = [query(7, ["9:4", "9:lost"])]


def as_published(folder: Path) -> Path:
    tiny_data.write_lines(folder / "cand_pool" / "local" / "mbeir_sea_task0_cand_pool.jsonl", CANDIDATES)
    tiny_data.write_lines(folder / "cand_pool" / "global" / "mbeir_union_cand_pool.jsonl", CANDIDATES)
    tiny_data.write_lines(folder / "query" / "union_train" / "mbeir_union_up_train.jsonl", TRAIN)
    tiny_data.write_lines(folder / "query" / "test" / "mbeir_sea_task0_test.jsonl", TEST)
    return with_images(folder)


def side_by_side(folder: Path) -> Path:
    tiny_data.write_lines(folder / "sea_cand_pool.jsonl", CANDIDATES)
    tiny_data.write_lines(folder / "sea_train.jsonl", TRAIN)
    tiny_data.write_lines(folder / "sea_test.jsonl", TEST)
    return with_images(folder)


def with_images(folder: Path) -> Path:
    for number in (2, 3):
        (folder / "mbeir_images" / "sea").mkdir(parents=True, exist_ok=True)
        tiny_data.draw_page(number).save(folder / "mbeir_images" / "sea" / f"p{number}.png")
    return folder


@pytest.mark.parametrize("layout", [as_published, side_by_side], ids=lambda f: f.__name__)
def test_queries_and_candidates_are_joined_by_id(tmp_path, layout, caplog):
    data = DataBlock(path=str(layout(tmp_path / "sea")), dev=0, negatives=1)
    assert check_data(data) == [] and has_test(data) and image_column(data) == "img_path"
    train, _, test = load(data)
    assert train.queries == {"9:1": "question 1", "9:2": "question 2"}
    assert train.qrels == {"9:1": {"9:1": 1, "9:3": 1}, "9:2": {"9:2": 1}}
    assert train.negatives == {"9:1": ["9:2", "9:4"], "9:2": ["9:4"]}  # an answer is no negative
    assert train.corpus["9:1"].content() == "a harbour" and train.corpus["9:2"].content() == tiny_data.draw_page(2)
    assert train.corpus["9:3"].content() == {"text": "a bridge", "image": tiny_data.draw_page(3)}
    assert "2 queries are images or have one, and are left out: queries are texts here: 9:3, 9:4" in caplog.text
    assert test.qrels == {"9:7": {"9:4": 1, "9:lost": 1}} and "9:lost" in caplog.text


def test_images_or_texts_of_candidates_are_left_out_and_the_limit_counts_pairs(tmp_path):
    folder = side_by_side(tmp_path)
    texts = load(DataBlock(path=str(folder), dev=0, image="", limit=1))[0]
    assert texts.corpus["9:3"].content() == "a bridge" and texts.corpus["9:2"].content() == ""
    assert list(texts.queries) == ["9:1"] and len(texts.qrels["9:1"]) == 2
    pages = load(DataBlock(path=str(folder), dev=0, document=""))[0]
    assert pages.corpus["9:3"].content() == tiny_data.draw_page(3)
    assert "no scores" in str(no_scores(DataBlock(path=str(folder))))


@pytest.mark.parametrize(
    ("name", "row", "told"),
    [
        ("sea_cand_pool.jsonl", {"did": "9:1", "txt": "another"}, r"cand_pool\.jsonl:5: the id '9:1' is there before"),
        ("sea_cand_pool.jsonl", {"did": "9:9", "img_path": "no.png"}, r"cand_pool\.jsonl:5: no image file"),
        ("sea_cand_pool.jsonl", {"txt": "nameless"}, r"cand_pool\.jsonl:5: did is None"),
        ("sea_train.jsonl", query(1, ["9:1"], query_txt="another"), r"train\.jsonl:5: the query id '9:1' is there"),
        ("sea_train.jsonl", query(8, "9:1"), r"train\.jsonl:5: pos_cand_list must be a list of candidate ids"),
    ],
)
def test_a_malformed_row_is_refused_with_its_line(tmp_path, name, row, told):
    file = side_by_side(tmp_path) / name
    file.write_text(file.read_text() + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=told):
        load(DataBlock(path=str(tmp_path), dev=0))


def test_a_split_whose_queries_are_all_images_is_refused(tmp_path):
    folder = side_by_side(tmp_path)
    tiny_data.write_lines(folder / "sea_train.jsonl", TRAIN[2:])
    with pytest.raises(DataError, match="no query of train has a text and a candidate"):
        load(DataBlock(path=str(folder), dev=0))


def test_a_large_pool_is_read_into_memory_with_a_warning(tmp_path, monkeypatch, caplog):
    folder = as_published(tmp_path / "data")
    monkeypatch.setattr("smart_train.data.readers.row_cache.SMALL_BYTES", 100)
    load(DataBlock(path=str(folder), dev=0, test=0))
    assert "the format mbeir is read into memory, about 2 kB a row and process" in caplog.text
    monkeypatch.undo()
    caplog.clear()
    load(DataBlock(path=str(folder), dev=0, test=0))
    assert "into memory" not in caplog.text
