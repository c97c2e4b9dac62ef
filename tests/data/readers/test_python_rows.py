"""Rows given to a trainer become a collection: which column is which, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from PIL import Image

from smart_train.core.errors import DataError, UsageError
from smart_train.data.collection import Collection, Document
from smart_train.data.readers import row_cache
from smart_train.data.readers.python_rows import place_columns, read_named, read_together, to_collection
from smart_train.data.stored_collection import StoredCollection
from smart_train.models.encoder import SmartEncoder
from smart_train.training.arguments import SmartTrainingArguments
from smart_train.training.trainer import SmartTrainer

ROWS = [
    {"query": "a", "positive": "p", "negative": "n"},
    {"query": "a", "positive": "q", "negative": "p"},  # the other row's positive is no negative
    {"query": "b", "positive": "p", "negative": "n"},
]


KINDS = {
    "list": list,
    "dataset": Dataset.from_list,
    "formatted dataset": lambda rows: Dataset.from_list(rows).with_format("numpy"),
    "transformed dataset": lambda rows: Dataset.from_dict({"n": range(len(rows))}).with_transform(
        lambda batch: {name: [rows[n][name] for n in batch["n"]] for name in rows[0]}
    ),
    "table": pd.DataFrame,
    "part of a table": lambda rows: pd.DataFrame([rows[0], *rows])[1:],
}


def texts(collection) -> dict[str, tuple[set[str], list[str]]]:
    """query -> (its positives, its negatives), as texts"""
    corpus = {key: document.text for key, document in collection.corpus.items()}
    return {
        text: ({corpus[d] for d in collection.qrels[key]}, [corpus[d] for d in collection.negatives.get(key, ())])
        for key, text in collection.queries.items()
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [("query", "positive", "negative"), ("anchor", "document", "negative_1"), "abc"])
def test_rows_become_pairs_by_name_or_by_position(kind, names):
    rows = [dict(zip(names, row.values(), strict=True)) for row in ROWS]
    found, negatives = to_collection(KINDS[kind](rows), "rows")
    assert negatives == 1 and texts(found.check()) == {"a": ({"p", "q"}, ["n"]), "b": ({"p"}, ["n"])}
    assert len(found.corpus) == 3


def test_names_go_before_position_and_a_cell_may_list_negatives():
    found, negatives = to_collection([{"negatives": ["x", "y"], "positive": "p", "anchor": "a"}], "rows")
    assert negatives == 2 and texts(found) == {"a": ({"p"}, ["x", "y"])}


@pytest.mark.parametrize(
    "columns",
    [
        ["query", "title"] + ["positive"],
        ["positive", "query"] + ["text"],
        ["query", "anchor", "positive"],
        ["query", "positive", "title"],
        ["id", "sentence1", "sentence2"],
        ["sentence1", "score"],
        ["negative", "b", "c"],
        ["text"],
        [],
    ],
)
def test_columns_that_are_not_clear_are_refused_with_their_names(columns):
    with pytest.raises(DataError, match=f"rows has {', '.join(columns) or 'no columns'}, and it is not clear"):
        place_columns(columns, "rows", {})


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ([{"query": "a", "positive": ""}], "rows: no row has a query and a document"),
        ([{"query": "a", "positive": 3}], "rows, row 0: positive holds int"),
        ([{"query": "a", "positive": "p"}, "b"], "rows, row 1 is 'b'; give a dict of column -> text"),
        ([{"query": "a", "positive": "p", 3: "c"}], "rows has the column 3"),
        (
            [{"query": "a", "positive": "p"}, {"query": "a", "passage": "p"}],
            "has query, positive, passage, and it",
        ),
        ("pairs.csv", "rows is a str; give .*datasets.load_dataset"),
        (iter([]), "rows is a list_iterator"),
        (IterableDataset.from_generator(lambda: iter([])), "rows is an IterableDataset.*take"),
        (pd.DataFrame([["a", "p"]], columns=["query", "query"]), "rows has the column 'query' twice"),
        (None, "rows is a NoneType"),
        ([], "rows has no columns"),
    ],
)
def test_what_is_no_row_of_texts_is_refused_with_its_place(data, why):
    with pytest.raises(DataError, match=why):
        to_collection(data, "rows")


def test_blank_cells_are_left_out_and_counted(caplog):
    found, _ = to_collection(pd.DataFrame([*ROWS, {"query": np.nan, "positive": "p"}]), "rows")
    assert len(found.pairs()) == 3 and "rows: 1 rows without a query are left out" in caplog.text


# -- labels and scores, as in sentence-transformers


def test_a_label_of_0_makes_a_negative_and_a_higher_one_a_grade():
    rows = [("a", "p", 1), ("a", "n", 0), ("b", "q", 2), ("b", "p", 0)]
    found, negatives = to_collection(pd.DataFrame(rows, columns=["sentence1", "sentence2", "label"]), "rows")
    assert texts(found.check()) == {"a": ({"p"}, ["n"]), "b": ({"q"}, ["p"])} and negatives == 1
    assert sorted(grade for judged in found.qrels.values() for grade in judged.values()) == [1, 2]


def test_a_degree_of_similarity_asks_what_it_is_to_be_and_is_a_teachers_score_or_nothing():
    rows = [{"sentence1": "a", "sentence2": "p", "score": 0.7}]
    with pytest.raises(DataError, match=r'rows, row 0: score is 0.7.* give columns=\{"scores": "score"\} to learn it'):
        to_collection(rows, "rows")
    named = {"query": "sentence1", "document": "sentence2"}
    found, _ = to_collection(rows, "rows", {**named, "scores": "score"})
    assert [list(scores.values()) for scores in found.teacher.values()] == [[0.7]]
    assert not to_collection(rows, "rows", {**named, "label": ""})[0].teacher


def test_scores_of_a_cross_encoder_follow_positive_and_negatives():
    rows = [{"anchor": "a", "positive": "p", "negative_1": "n", "negative_2": "m", "scores": [9.0, 1.0, 2.0]}]
    found, negatives = to_collection(Dataset.from_list(rows), "rows")
    by_text = {found.corpus[d].text: score for scores in found.teacher.values() for d, score in scores.items()}
    assert by_text == {"p": 9.0, "n": 1.0, "m": 2.0} and negatives == 2


def test_columns_are_named_where_they_are_not_clear_and_a_wrong_name_is_refused(caplog):
    caplog.set_level("INFO", "smart_train")
    rows = [{"title": "a", "body": "p", "author": "x"}]
    found, _ = to_collection(rows, "rows", {"query": "title", "document": "body"})
    assert texts(found) == {"a": ({"p"}, [])} and "not read: author" in caplog.text
    with pytest.raises(UsageError, match="columns has 'positive'; its keys are query, document"):
        to_collection(rows, "rows", {"positive": "body"})
    with pytest.raises(DataError, match=r"there is no column 'boddy' in rows; it has .* give columns=.*\"body\""):
        to_collection(rows, "rows", {"query": "title", "document": "boddy"})


# -- pictures


PICTURES = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue", "green")]


@pytest.mark.parametrize("kind", ["objects", "paths", "dataset", "with text"])
def test_pictures_stand_where_texts_may(kind, tmp_path):
    def cell(number: int):
        if kind == "paths":
            PICTURES[number].save(path := tmp_path / f"{number}.png")
            return path
        return {"text": f"page {number}", "image": PICTURES[number]} if kind == "with text" else PICTURES[number]

    rows = [{"query": "a", "positive": cell(0), "negative": cell(1)}, {"query": "b", "positive": cell(1)}]
    rows[1]["negative"] = cell(2)
    found, negatives = to_collection(Dataset.from_list(rows) if kind == "dataset" else rows, "rows")
    assert negatives == 1 and len(found.check().corpus) == 3 and found.count_pages() == 3
    (first,) = (d for d, grade in found.qrels[next(iter(found.queries))].items() if grade)
    content = found.corpus[first].content()
    image = content["image"] if kind == "with text" else content
    assert image.getpixel((3, 3)) == (255, 0, 0) and (kind != "with text" or content["text"] == "page 0")
    (named,) = found.negatives[next(iter(found.queries))]
    assert found.qrels[list(found.queries)[1]] == {named: 1}, "one page is one document, in every row"


def test_a_column_of_images_is_read_as_in_files_and_a_text_in_it_leads_nowhere_else(tmp_path):
    found, _ = to_collection([{"query": "a", "image": PICTURES[0]}], "rows")
    assert found.count_pages() == 1
    PICTURES[0].save(tmp_path / "secret.png")
    rows = [{"query": "a", "image": str(tmp_path / "secret.png")}]
    for given in (rows, dataset := Dataset.from_list(rows)):
        with pytest.raises(DataError, match=r"lies outside.*give it as a pathlib.Path, which a Dataset cannot hold"):
            to_collection(given, "rows")
    found, _ = to_collection([{**row, "image": Path(row["image"])} for row in dataset], "rows")  # as the error says
    assert found.count_pages() == 1
    with pytest.raises(DataError, match="rows, row 0: positive: no image file .*missing.png"):
        to_collection([{"query": "a", "positive": tmp_path / "missing.png"}], "rows")


# -- several data sets


def test_a_dict_of_data_sets_is_one_collection_whose_pairs_know_their_data_set(caplog):
    caplog.set_level("INFO", "smart_train")
    other = [{"question": "a", "answer": "n"}, {"question": "c", "answer": "p"}, {"question": "b", "answer": "p"}]
    found = read_together({"first": Dataset.from_list(ROWS), "second": pd.DataFrame(other)}, "rows")
    assert texts(found.collection.check()) == {"a": ({"p", "q", "n"}, []), "b": ({"p"}, ["n"]), "c": ({"p"}, [])}
    pairs = found.collection.pairs()
    named = {key: {found.collection.queries[pairs[at][0]] for at in places} for key, places in found.sources.items()}
    assert named == {"first": {"a", "b"}, "second": {"a", "c"}} and "1 pairs are in several" in caplog.text
    assert sorted(at for places in found.sources.values() for at in places) == [0, 1, 2, 3, 4]


def test_two_collections_may_use_one_id_for_different_documents():
    one = Collection("one", {"1": Document("1", "p")}, {"1": "a"}, {"1": {"1": 1}})
    two = Collection("two", {"1": Document("1", "q")}, {"1": "b"}, {"1": {"1": 1}})
    found = read_together({"x": one, "y": two}, "rows")
    assert texts(found.collection) == {
        "a": ({"p"}, []),
        "b": ({"q"}, []),
    }


def test_splits_are_not_mixed_and_a_single_one_is_taken():
    data = Dataset.from_list(ROWS)
    with pytest.raises(DataError, match="has the splits train, test, and one of them is not to be mixed"):
        read_named(DatasetDict(train=data, test=data), "train_dataset")
    assert len(read_together(DatasetDict(train=data), "rows").collection.queries) == 2
    with pytest.raises(DataError, match="rows is an empty dict"):
        read_named({}, "rows")


def test_a_large_dataset_is_converted_to_files(tmp_path, monkeypatch):
    monkeypatch.setattr(row_cache, "SMALL_ROWS", 2)
    monkeypatch.setattr(row_cache, "cache_folder", lambda: tmp_path)
    found, negatives = to_collection(Dataset.from_list(ROWS), "rows")
    assert isinstance(found, StoredCollection) and negatives == 1 and len(found.pairs()) == 3


def test_a_training_limit_above_the_encoder_s_is_logged(tiny_bert, tmp_path, caplog):
    """The tiny BERT reads 128 tokens."""
    rows = [{"query": f"chart {n}", "positive": f"page {n}"} for n in range(4)]
    args = SmartTrainingArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=2, max_steps=1)
    encoder = SmartEncoder(str(tiny_bert), lora={"r": 2}, device="cpu")
    SmartTrainer(encoder, args, rows, query_tokens=16, document_tokens=500)
    assert "document_tokens for training is 500, and the encoder reads 128; texts are cut at 128" in caplog.text
    assert "query_tokens for training" not in caplog.text
