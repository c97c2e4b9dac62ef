"""Patch grids: every token of a page lies where its pixels lie, or the grid is refused."""

from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageDraw
from transformers import (
    Gemma3Config,
    Gemma3Model,
    Idefics3Config,
    PaliGemmaConfig,
    PaliGemmaModel,
    PreTrainedModel,
    SiglipImageProcessor,
)

from smart_train.config.schema import LateBlock, ModelBlock
from smart_train.core.errors import HeatmapError
from smart_train.interpretability.similarity_map import PatchGrid, compute_similarity_map, patch_grid
from smart_train.models.encoder import SmartEncoder

CELL = 32  # pixels of a merged patch of the tiny Qwen3-VL: 16 a patch, 2 x 2 of them merged
ROWS, COLUMNS = 3, 5
PAGE = (COLUMNS * CELL, ROWS * CELL)
QUERY = "How do plants photosynthesise?"


@pytest.fixture(scope="module")
def vision(tiny_models) -> SmartEncoder:
    """Tokens of the last layer; pages of 160 x 96 pixels are read as they are."""
    return SmartEncoder(str(tiny_models("qwen3vl")), model=ModelBlock(max_pixels=256 * 256), device="cpu")


def spotted(row: int, column: int) -> Image.Image:
    """White, with one black patch."""
    page = Image.new("RGB", PAGE, "white")
    at = (column * CELL, row * CELL, (column + 1) * CELL - 1, (row + 1) * CELL - 1)
    ImageDraw.Draw(page).rectangle(at, fill="black")
    return page


# -- where a patch lies


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 4), (1, 2), (2, 0), (2, 4)])
def test_the_processor_lays_patches_out_in_the_maps_order(row, column, vision):
    """Among its flat patches the four black ones are those of the map's place: merged patches, row after row."""
    features = vision.preprocess([spotted(row, column)], "document")
    dark = features["pixel_values"].mean(1) < 0
    assert dark.nonzero().flatten().tolist() == [4 * (row * COLUMNS + column) + n for n in range(4)]


@pytest.mark.parametrize("layer", [0, -1])
def test_a_changed_place_of_the_page_changes_its_own_token_most(layer, tiny_models):
    """Through the whole model: the vector that moves most, when one place goes black, lies at that place of the map."""
    encoder = SmartEncoder(
        str(tiny_models("qwen3vl")), model=ModelBlock(max_pixels=256 * 256), late=LateBlock(layer=layer), device="cpu"
    )
    places = [(row, column) for row in range(ROWS) for column in range(COLUMNS)]
    pages = [Image.new("RGB", PAGE, "white"), *[spotted(*place) for place in places]]
    found = compute_similarity_map(encoder, QUERY, pages[0])
    rows = [tokens[list(found.patches)] for tokens in encoder.encode_documents(pages).tokens.rows()]
    for place, tokens in zip(places, rows[1:], strict=True):
        moved = (tokens - rows[0]).norm(dim=1).view(found.grid.rows, found.grid.columns)
        assert divmod(int(moved.argmax()), found.grid.columns) == place


def test_two_places_that_are_swapped_swap_their_values_in_the_map(vision):
    """The change of the map moves with the pixels: from one end of the page's middle row to the other."""
    left, right = (spotted(1, column) for column in (0, 4))
    blank = compute_similarity_map(vision, QUERY, Image.new("RGB", PAGE, "white"))
    moved = []
    for page in (left, right):
        found = compute_similarity_map(vision, QUERY, page)
        change = (found.similarity - blank.similarity).abs().amax(0)
        moved.append(tuple((found.on_page(change) == change[list(found.patches)].amax()).nonzero()[0].tolist()))
    assert moved == [(1, 0), (1, 4)]


# -- grids of other families, and those that have none


SIGLIP = {
    "model_type": "siglip_vision_model",
    "image_size": 56,
    "patch_size": 14,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GEMMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 99,
}


def squares() -> list[tuple[PreTrainedModel, int]]:
    """Both families that stretch a page to a square, as tiny random models, and their image tokens."""
    torch.manual_seed(0)
    stretched = PaliGemmaConfig(
        vision_config={**SIGLIP, "projection_dim": 32}, text_config={**GEMMA, "model_type": "gemma"}, projection_dim=32
    )
    pooled = Gemma3Config(vision_config=SIGLIP, text_config=GEMMA, mm_tokens_per_image=4)
    models = PaliGemmaModel(stretched).eval(), Gemma3Model(pooled).eval()
    torch.nn.init.normal_(models[1].multi_modal_projector.mm_input_projection_weight)  # it begins at zero
    return [(models[0], 16), (models[1], 4)]


def square_grid(config: object, size: int, tokens: int, **settings: object) -> PatchGrid:
    images = SiglipImageProcessor(size={"height": size, "width": size}, **settings)
    pixels = images(Image.new("RGB", PAGE), return_tensors="pt")["pixel_values"]
    processor = type("Processor", (), {"image_processor": images})
    return patch_grid({"pixel_values": pixels}, config, processor, tokens)


@pytest.mark.parametrize(("at", "side"), [(0, 4), (1, 2)], ids=["PaliGemma", "Gemma 3"])
def test_a_page_stretched_to_one_square_has_that_square_of_patches(at, side):
    """And the models' own image features are in its order: the one that moves most is where the page went black."""
    model, tokens = squares()[at]
    assert square_grid(model.config, 56, tokens) == PatchGrid(side, side)
    step = 56 // side
    white = torch.ones(1, 3, 56, 56)
    with torch.no_grad():
        before = model.get_image_features(white).pooler_output[0]
        for row in range(side):
            for column in range(side):
                spot = white.clone()
                spot[:, :, row * step : (row + 1) * step, column * step : (column + 1) * step] = -1
                moved = (model.get_image_features(spot).pooler_output[0] - before).norm(dim=1).view(side, side)
                assert divmod(int(moved.argmax()), side) == (row, column)


@pytest.mark.parametrize(
    ("size", "tokens", "settings", "why"),
    [
        (56, 9, {}, "9 image tokens are not its 4 x 4 patches"),
        (70, 16, {}, "sizes? .*differ"),
        (56, 16, {"do_center_crop": True, "crop_size": {"height": 56, "width": 56}}, "cropped"),
    ],
)
def test_a_grid_that_cannot_be_derived_is_refused(size, tokens, settings, why):
    config = PaliGemmaConfig(vision_config=SIGLIP)
    with pytest.raises(HeatmapError, match=why):
        square_grid(config, size, tokens, **settings)


def test_pages_cut_into_tiles_are_refused():
    with pytest.raises(HeatmapError, match="Idefics3Config does not say .*not one picture"):
        patch_grid({"pixel_values": torch.zeros(1, 5, 3, 364, 364)}, Idefics3Config(), None, 5 * 64)


@pytest.mark.parametrize(
    ("grids", "count", "why"),
    [([[1, 4, 4]], 5, "2 x 2 places"), ([[2, 4, 4]], 8, "one page"), ([[1, 4, 4]] * 2, 8, "one page")],
)
def test_a_grid_that_does_not_fit_its_tokens_is_refused(grids, count, why, vision):
    with pytest.raises(HeatmapError, match=why):
        patch_grid({"image_grid_thw": torch.tensor(grids)}, vision.backbone.config, None, count)
