"""A chunk in pieces is the chunk: rows in order, limits kept, padding gone on either side, every row with its own
images; and the forwards of the pieces are the forward of the whole."""

from __future__ import annotations

import math

import pytest
import tiny
import tiny_data
import torch
from hypothesis import given
from hypothesis import strategies as st

from smart_train.core.embeddings import Embeddings
from smart_train.models.encoder import SmartEncoder
from smart_train.models.microbatches import image_token, rows_of, split

LIMITS = [(1, None), (2, None), (3, None), (100, None), (None, 1), (None, 40), (None, 90), (2, 60), (None, None)]


@pytest.fixture(scope="module")
def encoders(tiny_models):
    made: dict[str, SmartEncoder] = {}
    return lambda kind: made.setdefault(kind, SmartEncoder(str(tiny_models(kind)), device="cpu"))


def assert_same(pieces: list, whole: dict, encoder: SmartEncoder) -> None:
    with torch.no_grad():
        found, expected = Embeddings.cat(encoder(piece) for piece in pieces), encoder(whole)
    assert found.tokens.lengths.tolist() == expected.tokens.lengths.tolist()
    torch.testing.assert_close(found.pooled, expected.pooled, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.tokens.values, expected.tokens.values, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("rows", "tokens"), LIMITS)
@pytest.mark.parametrize("kind", ["bert", "modernbert", "qwen3", "qwen3_right", "qwen3vl"])
def test_pieces_of_texts_embed_as_the_whole_does(kind, rows, tokens, encoders):
    encoder = encoders(kind)
    whole = encoder.preprocess(tiny.TEXTS, "query")
    assert_same(split(whole, rows, tokens, image_token(encoder.backbone.config)), whole, encoder)


def pages(texts: bool) -> list:
    drawn = [tiny_data.draw_page(n) for n in range(5)]
    return [{"text": tiny.TEXTS[n], "image": page} for n, page in enumerate(drawn)] if texts else drawn


@pytest.mark.parametrize(("rows", "tokens"), LIMITS)
@pytest.mark.parametrize("texts", [False, True])
@pytest.mark.parametrize("counted", [True, False])
def test_pieces_of_pages_embed_as_the_whole_does(counted, texts, rows, tokens, encoders):
    """Grids differ between rows; without the processor's count, images are told by their placeholder tokens."""
    encoder = encoders("qwen3vl")
    whole = encoder.preprocess(pages(texts), "document")
    assert len({tuple(grid) for grid in whole["image_grid_thw"].tolist()}) > 1
    if not counted:
        del whole["num_images_per_sample"]
    pieces = split(whole, rows, tokens, image_token(encoder.backbone.config))
    assert sum(len(piece["pixel_values"]) for piece in pieces) == len(whole["pixel_values"])
    assert_same(pieces, whole, encoder)


def album(encoder: SmartEncoder) -> dict:
    """Six rows with 2, 0, 1, 3, 0 and 1 images of unequal size, as the processor itself makes them."""
    counts = [2, 0, 1, 3, 0, 1]
    drawn = iter(tiny_data.draw_page(n) for n in range(sum(counts)))
    rows = [
        [{"role": "user", "content": [{"type": "image"}] * n + [{"type": "text", "text": tiny.TEXTS[at % 5]}]}]
        for at, n in enumerate(counts)
    ]
    processor = encoder.transformer.processor
    texts = [processor.apply_chat_template(row, add_generation_prompt=True) for row in rows]
    images = [[next(drawn) for _ in range(n)] for n in counts]
    made = dict(processor(text=texts, images=[i for row in images for i in row], padding=True, return_tensors="pt"))
    return made | {"modality": "message"}


@pytest.mark.parametrize(("rows", "tokens"), LIMITS)
def test_rows_of_several_images_and_of_none_keep_their_own(rows, tokens, encoders):
    encoder = encoders("qwen3vl")
    whole = album(encoder)
    pieces = split(whole, rows, tokens, image_token(encoder.backbone.config))
    assert_same(pieces, whole, encoder)
    if rows == 1:
        grids = [piece.get("image_grid_thw") for piece in pieces]
        assert [0 if grid is None else len(grid) for grid in grids] == [2, 0, 1, 3, 0, 1]
        assert ["pixel_values" in piece for piece in pieces] == [True, False, True, True, False, True]


def test_images_in_rows_of_their_own_are_divided_by_row():
    """CLIP's layout: [rows, channels, height, width]; Idefics': [rows, images, channels, height, width]."""
    ids = torch.arange(12).view(4, 3)
    for shape in ((4, 3, 8, 8), (4, 2, 3, 8, 8)):
        images = torch.rand(shape)
        pieces = split({"input_ids": ids, "pixel_values": images}, rows=3)
        assert [len(piece["pixel_values"]) for piece in pieces] == [2, 2]
        assert torch.equal(torch.cat([piece["pixel_values"] for piece in pieces]), images)


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=12),
    st.none() | st.integers(1, 14),
    st.none() | st.integers(1, 60),
    st.sampled_from(["left", "right"]),
)
def test_limits_are_kept_and_nothing_is_lost(lengths, rows, tokens, side):
    """Every token is there once, in order; no column of a piece is padding alone; a piece beyond the budget is one
    row; the next row would not have fitted."""
    most, count = max(lengths) + 2, len(lengths)
    mask = torch.zeros(count, most, dtype=torch.int64)
    for row, length in enumerate(lengths):
        first = 1 if side == "right" else most - 1 - length  # a column of padding on both sides, which no row needs
        mask[row, first : first + length] = 1
    ids = torch.arange(1, count * most + 1).view(count, most) * mask
    pieces = split({"input_ids": ids, "attention_mask": mask, "role": "query", "cut": 3}, rows, tokens)
    assert torch.equal(torch.cat([p["input_ids"][p["attention_mask"].bool()] for p in pieces]), ids[mask.bool()])
    assert sum(rows_of(p) for p in pieces) == count
    assert [p["cut"] for p in pieces] == [3] + [0] * (len(pieces) - 1) and {p["role"] for p in pieces} == {"query"}
    sizes = [rows_of(p) for p in pieces]
    if rows is not None:
        assert max(sizes) <= rows
    if tokens is not None:
        widths = [int(p["attention_mask"].sum(1).max()) for p in pieces]
        assert all(n == 1 or n * width <= tokens for n, width in zip(sizes, widths, strict=True))
    if tokens is None:
        assert len(pieces) == (1 if rows is None else math.ceil(count / rows))
        assert max(sizes) - min(sizes) <= math.ceil(count / len(pieces))
    if len(pieces) > 1:
        assert all(p["attention_mask"].any(0).all() for p in pieces)


def test_a_token_budget_fills_its_pieces():
    mask = torch.ones(10, 7, dtype=torch.int64)
    pieces = split({"input_ids": mask, "attention_mask": mask}, tokens=21)
    assert [rows_of(p) for p in pieces] == [3, 3, 3, 1]


def test_a_chunk_within_its_limits_is_handed_back(encoders):
    whole = encoders("bert").preprocess(tiny.TEXTS, "query")
    assert split(whole, rows=5) == [whole] and split(whole) == [whole]
    assert split(whole, rows=5)[0] is whole


def test_an_unknown_layout_is_named():
    ids = torch.ones(4, 3, dtype=torch.int64)
    for name, value in (
        ("video_grid_thw", torch.ones(2, 3)),
        ("audio", torch.rand(4, 100)),
        ("bias", torch.rand(4, 3, 3)),
    ):
        with pytest.raises(ValueError, match=rf"'{name}'.*not known"):
            split({"input_ids": ids, name: value}, rows=2)


def test_images_that_do_not_add_up_are_refused(encoders):
    whole = encoders("qwen3vl").preprocess(pages(False), "document")
    with pytest.raises(ValueError, match="must agree"):
        split(whole | {"num_images_per_sample": torch.tensor([1, 1, 1, 1, 2])}, rows=2)
    with pytest.raises(ValueError, match="must agree"):
        split(whole | {"pixel_values": whole["pixel_values"][:-1]}, rows=2)
    del whole["num_images_per_sample"]
    with pytest.raises(ValueError, match="image token"):
        split(whole, rows=2)


@pytest.mark.parametrize("limit", [{"rows": 0}, {"tokens": 0}, {"rows": -3}])
def test_limits_below_one_are_refused(limit):
    with pytest.raises(ValueError, match="1 or more"):
        split({"input_ids": torch.ones(2, 2)}, **limit)


def test_the_image_token_is_the_models(encoders):
    assert image_token(encoders("qwen3vl").backbone.config) == encoders("qwen3vl").backbone.config.image_token_id
    assert image_token(encoders("bert").backbone.config) is None
