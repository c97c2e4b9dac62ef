"""Rows given to a trainer become a collection: which column is which, and what is refused."""

from __future__ import annotations

import pytest
from datasets import Dataset

from smart_train.core.errors import DataError
from smart_train.models.encoder import SmartEncoder
from smart_train.training.arguments import SmartTrainingArguments
from smart_train.training.train_dataset import choose_columns, to_collection
from smart_train.training.trainer import SmartTrainer

ROWS = [
    {"query": "a", "positive": "p", "negative": "n"},
    {"query": "a", "positive": "q", "negative": "p"},  # the other row's positive is no negative
    {"query": "b", "positive": "p", "negative": "n"},
]


def texts(collection) -> dict[str, tuple[set[str], list[str]]]:
    """query -> (its positives, its negatives), as texts"""
    corpus = {key: document.text for key, document in collection.corpus.items()}
    return {
        text: ({corpus[d] for d in collection.qrels[key]}, [corpus[d] for d in collection.negatives[key]])
        for key, text in collection.queries.items()
    }


@pytest.mark.parametrize("kind", ["list", "dataset"])
@pytest.mark.parametrize("names", [("query", "positive", "negative"), ("anchor", "document", "negative_1"), "abc"])
def test_rows_become_pairs_by_name_or_by_position(kind, names):
    rows = [dict(zip(names, row.values(), strict=True)) for row in ROWS]
    found, negatives = to_collection(Dataset.from_list(rows) if kind == "dataset" else rows, "rows")
    assert negatives == 1 and texts(found.check()) == {"a": ({"p", "q"}, ["n"]), "b": ({"p"}, ["n"])}
    assert len(found.corpus) == 3


def test_names_go_before_position_and_a_cell_may_list_negatives():
    found, negatives = to_collection([{"negatives": ["x", "y"], "positive": "p", "anchor": "a"}], "rows")
    assert negatives == 2 and texts(found) == {"a": ({"p"}, ["x", "y"])}


@pytest.mark.parametrize(
    "columns",
    [
        ["query", "passage"],
        ["query", "anchor", "positive"],
        ["query", "positive", "title"],
        ["sentence1", "sentence2", "score"],
        ["text"],
        [],
    ],
)
def test_columns_that_are_not_clear_are_refused_with_their_names(columns):
    with pytest.raises(DataError, match=f"rows has {', '.join(columns) or 'no columns'}, and it is not clear"):
        choose_columns(columns, "rows")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ([{"query": "a", "positive": ""}], "rows, row 0: positive is '', not a text"),
        ([{"query": "a", "positive": "p"}, {"query": None, "positive": "p"}], "row 1: query is None"),
        ([{"query": "a", "positive": "p"}, {"query": "a", "document": "p"}], "row 1 has the columns query, document"),
        ({"train": []}, "rows is a dict; give a Collection, one split"),
        ("pairs.csv", "rows is a str"),
        (None, "rows is a NoneType"),
        ([], "rows has no columns"),
    ],
)
def test_what_is_no_row_of_texts_is_refused_with_its_place(data, why):
    with pytest.raises(DataError, match=why):
        to_collection(data, "rows")


def test_a_training_limit_above_the_encoder_s_is_logged(tiny_bert, tmp_path, caplog):
    """The tiny BERT reads 128 tokens."""
    rows = [{"query": f"chart {n}", "positive": f"page {n}"} for n in range(4)]
    args = SmartTrainingArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=2, max_steps=1)
    encoder = SmartEncoder(str(tiny_bert), lora={"r": 2}, device="cpu")
    SmartTrainer(encoder, args, rows, query_tokens=16, document_tokens=500)
    assert "document_tokens for training is 500, and the encoder reads 128; texts are cut at 128" in caplog.text
    assert "query_tokens for training" not in caplog.text
