"""A recipe that is looked at: its longest rows are those of the real preprocessing, its sizes those of a real batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from smart_train.config.schema import (
    AdapterBlock,
    Component,
    DataBlock,
    LateBlock,
    ModelBlock,
    ObjectiveBlock,
    Recipe,
    TermBlock,
)
from smart_train.data.collate import TruncatingPreprocess
from smart_train.models.base_config import read_base
from smart_train.models.encoder import SmartEncoder
from smart_train.planning.estimates import Engine
from smart_train.planning.memory_model import CHAT, MemoryModel

LONG = "the invoice with a total amount due and a chart of yearly revenue by region " * 60


def looked(folder: Path, images: bool = False, on_cpu: bool = True, **blocks: Any) -> MemoryModel:
    model = ModelBlock(**{"base": str(folder), **blocks.pop("model", {})})
    recipe = Recipe(model=model, **blocks)
    return MemoryModel(recipe, read_base(str(folder)), images, on_cpu)


def longest(found: MemoryModel, role: str, content: Any) -> int:
    """Tokens of a long row as training preprocesses it."""
    model, data = found.recipe.model, found.recipe.data
    encoder = SmartEncoder(model.base, model=model, device="cpu")
    preprocess = TruncatingPreprocess(encoder.preprocess, data.query_tokens, data.document_tokens)
    return int(preprocess([content], role)["input_ids"].shape[1])


@pytest.mark.parametrize(
    ("model", "data"),
    [
        ({}, {}),
        ({"query_tokens": 7, "document_tokens": 30}, {}),
        ({"query_tokens": 20, "document_tokens": 100}, {"query_tokens": 5, "document_tokens": 50}),
    ],
)
@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_the_longest_text_is_as_long_as_the_tokenizer_lets_it_be(kind, model, data, tiny_models):
    found = looked(tiny_models(kind), model=model, data=DataBlock(**data))
    lengths = found.lengths
    assert lengths.patches == 0
    assert lengths.query == longest(found, "query", LONG)
    assert lengths.document == longest(found, "document", LONG)


@pytest.mark.parametrize("pixels", [64 * 64, 128 * 128, 20_000])
def test_the_largest_page_has_the_patches_that_its_pixels_allow(pixels, tiny_qwen3vl):
    found = looked(tiny_qwen3vl, images=True, model={"max_pixels": pixels, "min_pixels": 1024})
    encoder = SmartEncoder(str(tiny_qwen3vl), model=found.recipe.model, device="cpu")
    page = Image.new("RGB", (700, 700))
    features = encoder.preprocess([page], "document")
    patches, tokens = len(features["pixel_values"]), int(features["input_ids"].shape[1])
    assert found.lengths.patches >= patches > 0.7 * found.lengths.patches, "sides are whole patches"
    assert found.lengths.document >= tokens > 0.7 * (found.lengths.document - CHAT)


def test_a_text_side_of_a_vision_base_has_no_patches(tiny_qwen3vl):
    assert looked(tiny_qwen3vl, images=False).lengths.patches == 0


def test_a_ranks_rows_are_its_share_of_the_batch(tiny_bert):
    batch = {"objective": ObjectiveBlock(batch=96), "data": DataBlock(negatives=3), "late": LateBlock(dim=5)}
    found = looked(tiny_bert, **batch)
    rows = found.rows(8)
    assert (rows.pairs, rows.queries, rows.documents, rows.width, rows.group) == (12, 12, 48, 5, 8)
    assert found.rows(7).pairs == 14, "what cannot be shared evenly is rounded up"
    grouped = looked(tiny_bert, objective=ObjectiveBlock(batch=96, gather_group=2))
    assert grouped.rows(8).group == 2 and grouped.rows(1).group == 1
    alone = looked(tiny_bert, objective=ObjectiveBlock(gather=False), training={"per_device_train_batch_size": 6})
    assert alone.rows(8).group == 1 and alone.rows(8).pairs == 6 and not alone.cached


def test_tokens_are_compared_in_half_precision_on_gpus_alone(tiny_bert):
    half = {"training": {"bf16": True}}
    assert looked(tiny_bert, on_cpu=False, **half).rows(1).token_size == 2
    assert looked(tiny_bert, on_cpu=True, **half).rows(1).token_size == 4
    always = ObjectiveBlock(similarity="bfloat16")
    assert looked(tiny_bert, objective=always).rows(1).token_size == 2


def test_chunks_are_bounded_by_rows_and_by_tokens(tiny_bert):
    def chunk(length: int, **objective: Any) -> int:
        return looked(tiny_bert, objective=ObjectiveBlock(**objective)).chunk(length)

    assert chunk(10, batch=64) == 32 and chunk(10, batch=64, chunk_rows=4) == 4
    assert chunk(100, batch=64, chunk_tokens=350) == 3 and chunk(1000, batch=64, chunk_tokens=350) == 1
    assert chunk(10, batch=64, chunk_rows=4, chunk_tokens=20) == 2
    assert chunk(10) > 10**6, "without caching a side is one forward"


def test_caching_keeps_a_chunk_and_a_plain_pass_both_sides(tiny_bert):
    engine = Engine()
    cached = looked(tiny_bert, objective=ObjectiveBlock(batch=64, chunk_rows=4)).activations(engine, 1)[0]
    larger = looked(tiny_bert, objective=ObjectiveBlock(batch=128, chunk_rows=4)).activations(engine, 1)[0]
    plain = looked(tiny_bert, training={"per_device_train_batch_size": 64}).activations(engine, 1)[0]
    assert cached == larger and plain > 20 * cached


def test_a_frozen_backbone_keeps_nothing_but_what_the_head_reads(tiny_bert):
    head = LateBlock(head="linear", dim=8)
    frozen = looked(tiny_bert, adapter=AdapterBlock(kind="frozen"), late=head)
    trained = looked(tiny_bert, adapter=AdapterBlock(r=4), late=head)
    assert frozen.activations(Engine(), 1)[0] < trained.activations(Engine(), 1)[0] / 4
    assert not looked(tiny_bert, adapter=AdapterBlock(kind="frozen"), objective=ObjectiveBlock(batch=8)).cached


def test_other_sizes_of_the_same_base_need_no_new_blueprint(tiny_bert):
    found = looked(tiny_bert)
    assert found.lengths.document > 20
    other = found.changed(Recipe(model=found.recipe.model, data=DataBlock(document_tokens=20)))
    assert other.lengths.document == 20 and other.blueprint is found.blueprint


def test_what_is_gathered_and_held_is_what_the_terms_declare(tiny_bert):
    """A term of a user's own is asked as a built-in one is."""
    off = TermBlock(0.0)
    term = Component("own_terms:HardestNegative")
    own = looked(tiny_bert, objective=ObjectiveBlock(off, off, off, terms=[term]), late=LateBlock(matryoshka=[4, 8]))
    rows = own.rows(2)
    assert not rows.uses_pooled and rows.uses_tokens
    assert own.joint.matrices(0, 2) == (3, [(3.5, 1.3)] * 3)
    symmetric = looked(tiny_bert, objective=ObjectiveBlock(symmetric=True, schedule={"hardness": [[0, 0], [1, 9]]}))
    assert symmetric.joint.matrices(1, 0) == (3, [(5.8, 3.5)] * 3)  # by the most that the schedule comes to
    regularized = looked(tiny_bert, objective=ObjectiveBlock(off, TermBlock(1.0), off, diversity=0.1))
    assert regularized.joint.matrices() == (1, [(3.5, 1.3), (0.0, 0.0)])
