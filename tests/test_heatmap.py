"""Heatmaps: the map is the score, every patch lies where its pixels lie, words are read whole."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw
from transformers import Gemma3Config, Idefics3Config, PaliGemmaConfig, SiglipImageProcessor

from smart_train import heatmap_drawing
from smart_train.blocks import LateBlock, ModelBlock
from smart_train.cli import main
from smart_train.heatmap import Heatmap, HeatmapError, measure, page_heatmap
from smart_train.heatmap_drawing import draw
from smart_train.model.encoder import SmartEncoder
from smart_train.patches import PatchGrid, PatchGridError, patch_grid
from smart_train.words import Word, words

CELL = 32  # pixels of a merged patch of the tiny Qwen3-VL: 16 a patch, 2 x 2 of them merged
ROWS, COLUMNS = 3, 5
PAGE = (COLUMNS * CELL, ROWS * CELL)
TEXT = "Photosynthesis turns sunlight into sugar. Chlorophyll in the leaves absorbs light for the plants."
QUERY = "How do plants photosynthesise?"


@pytest.fixture(scope="module")
def vision(tiny_models) -> SmartEncoder:
    """Tokens of the last layer; pages of 160 x 96 pixels are read as they are."""
    return SmartEncoder(str(tiny_models("qwen3vl")), model=ModelBlock(max_pixels=256 * 256), device="cpu")


@pytest.fixture(scope="module")
def real(real_base) -> SmartEncoder:
    return SmartEncoder(str(real_base), device="cpu")


def spotted(row: int, column: int) -> Image.Image:
    """White, with one black patch."""
    page = Image.new("RGB", PAGE, "white")
    at = (column * CELL, row * CELL, (column + 1) * CELL - 1, (row + 1) * CELL - 1)
    ImageDraw.Draw(page).rectangle(at, fill="black")
    return page


def lined() -> Image.Image:
    page = Image.new("RGB", PAGE, "white")
    ImageDraw.Draw(page).text((8, 8), "invoice total 12", fill="black")
    return page


# -- the map is the score


@pytest.mark.parametrize("document", [TEXT, "light", lined(), {"text": "an invoice", "image": lined()}])
@pytest.mark.parametrize("late", [LateBlock(), LateBlock(layer=1, drop=["punctuation"]), LateBlock(dim=16)])
def test_the_late_score_read_from_the_map_is_the_encoders(late, document, tiny_models):
    encoder = SmartEncoder(str(tiny_models("qwen3vl")), late=late, device="cpu")
    found = measure(encoder, QUERY, document)
    assert found.late == pytest.approx(float(encoder.score([QUERY], [document], mode="late")), abs=1e-5)


@pytest.mark.parametrize("kind", ["bert", "modernbert", "qwen3", "real"])
def test_the_late_score_of_texts_is_read_from_the_map_for_every_family(kind, tiny_models, real_base):
    encoder = SmartEncoder(str(real_base if kind == "real" else tiny_models(kind)), device="cpu")
    for query, document in ((QUERY, TEXT), ("", "?"), ("naïve café 東京", "東京のカフェ")):
        found = measure(encoder, query, document)
        assert found.late == pytest.approx(float(encoder.score([query], [document], mode="late")), abs=1e-5)
        parts = sum(found.share(word) * len(word.tokens) for word in found.query_words) / len(found.similarity)
        assert parts == pytest.approx(found.late, abs=1e-5), "the words' parts make up the score"
        for side, count in ((found.query_words, 0), (found.document_words, 1)):
            tokens = [token for word in side for token in word.tokens]
            assert tokens == list(range(found.similarity.shape[count])), "each kept token is in one word, in order"


def test_every_token_of_a_page_is_a_patch_or_in_a_word(vision):
    found = measure(vision, QUERY, {"text": "an invoice", "image": lined()})
    tokens = [token for word in found.document_words for token in word.tokens]
    assert sorted([*tokens, *found.patches]) == list(range(found.similarity.shape[1]))
    assert found.grid == PatchGrid(ROWS, COLUMNS) and len(found.patches) == ROWS * COLUMNS


def test_a_words_row_is_the_mean_of_its_tokens(real):
    found = measure(real, "photosynthesise", TEXT)
    (word,) = found.query_words
    assert word.text == "photosynthesise" and len(word.tokens) > 1
    torch.testing.assert_close(found.of_word(word), found.similarity.mean(0))
    expected = torch.stack([found.similarity[:, list(one.tokens)].amax(1).mean() for one in found.document_words])
    torch.testing.assert_close(found.by_words()[0], expected)
    torch.testing.assert_close(found.over_query("max"), found.similarity.amax(0))


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
    found = measure(encoder, QUERY, pages[0])
    rows = [tokens[list(found.patches)] for tokens in encoder.encode_documents(pages).tokens.rows()]
    for place, tokens in zip(places, rows[1:], strict=True):
        moved = (tokens - rows[0]).norm(dim=1).view(ROWS, COLUMNS)
        assert divmod(int(moved.argmax()), COLUMNS) == place


def test_two_places_that_are_swapped_swap_their_values_in_the_map(vision):
    """Tokens before any block (layer 0) hardly know of one another: what the map shows moves with the pixels."""
    left, right = (spotted(1, column) for column in (0, 4))
    blank = measure(vision, QUERY, Image.new("RGB", PAGE, "white"))
    moved = []
    for page in (left, right):
        found = measure(vision, QUERY, page)
        change = (found.similarity - blank.similarity).abs().amax(0)
        moved.append(divmod(int(found.on_page(change).argmax()), COLUMNS))
    assert moved == [(1, 0), (1, 4)]


def test_the_pictures_own_pixels_have_the_colours_of_their_places_values(vision):
    """Measured in the finished picture: on white paper a patch has the scale's colour for its value, and no other."""
    found = measure(vision, QUERY, Image.new("RGB", (COLUMNS * 40, ROWS * 40), "white"))
    values = found.on_page(found.over_query()).numpy()
    rows, columns = values.shape
    assert (rows, columns) == (4, 6), "the processor has scaled the page to whole patches"
    picture = np.asarray(draw(found), dtype=float)
    page = picture[123 : 123 + 541, 39 : 39 + 902]  # 8.2 x 4.92 inches at 110 dots, from 0.35 and 1.12 inches
    high, wide = page.shape[0] / rows, page.shape[1] / columns
    seen = np.array(
        [[page[int((r + 0.12) * high), int((c + 0.12) * wide)] for c in range(columns)] for r in range(rows)]
    )
    low = np.percentile(values, 2)
    expected = colormaps["YlOrRd"](np.clip((values - low) / (values.max() - low), 0, 1))[..., :3] * 255
    assert np.abs(seen - expected).max() <= 3 and np.ptp(seen[..., 1]) > 150


# -- grids of other families, and those that have none


def gemma_like(config: object, size: int, tokens: int, **settings: object) -> PatchGrid:
    images = SiglipImageProcessor(size={"height": size, "width": size}, **settings)
    pixels = images(Image.new("RGB", PAGE), return_tensors="pt")["pixel_values"]
    processor = type("Processor", (), {"image_processor": images})
    return patch_grid({"pixel_values": pixels}, config, processor, tokens)


def test_a_page_stretched_to_one_square_has_that_square_of_patches():
    config = PaliGemmaConfig(vision_config={"model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14})
    assert gemma_like(config, 56, 16) == PatchGrid(4, 4)
    pooled = Gemma3Config(vision_config={"image_size": 56, "patch_size": 14}, mm_tokens_per_image=4)
    assert gemma_like(pooled, 56, 4) == PatchGrid(2, 2)


@pytest.mark.parametrize(
    ("size", "tokens", "settings", "why"),
    [
        (56, 9, {}, "9 image tokens are not its 4 x 4 patches"),
        (70, 16, {}, "sizes? .*differ"),
        (56, 16, {"do_center_crop": True, "crop_size": {"height": 56, "width": 56}}, "cropped"),
    ],
)
def test_a_grid_that_cannot_be_derived_is_refused(size, tokens, settings, why):
    config = PaliGemmaConfig(vision_config={"model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14})
    with pytest.raises(PatchGridError, match=why):
        gemma_like(config, size, tokens, **settings)


def test_pages_cut_into_tiles_are_refused():
    with pytest.raises(PatchGridError, match="Idefics3Config.*not one picture"):
        patch_grid({"pixel_values": torch.zeros(1, 5, 3, 364, 364)}, Idefics3Config(), None, 5 * 64)


@pytest.mark.parametrize(
    ("grids", "count", "why"),
    [([[1, 4, 4]], 5, "2 x 2 places"), ([[2, 4, 4]], 8, "one page"), ([[1, 4, 4]] * 2, 8, "one page")],
)
def test_a_grid_that_does_not_fit_its_tokens_is_refused(grids, count, why, vision):
    with pytest.raises(PatchGridError, match=why):
        patch_grid({"image_grid_thw": torch.tensor(grids)}, vision.backbone.config, None, count)


# -- words


def test_subwords_are_joined_and_the_prompt_is_told_from_the_query(vision):
    found = measure(vision, "a naïve invoice, by the user's café 東京", lined())
    own = [word.text for word in found.query_words if word.own]
    assert own == ["a", "naïve", "invoice", ",", "by", "the", "user's", "café", "東", "京"]
    assert [word.text for word in found.query_words if not word.own][:4] == ["system", "↵", "Represent", "the"]
    assert not any(word.own for word in found.document_words), "a page has no text of its own"


def test_words_are_read_alike_from_wordpieces(real):
    ids = real.tokenizer("Unbelievably naïve: photosynthesise!")["input_ids"]
    rows = [None, *range(len(ids) - 2), None]
    found = words(real.tokenizer, ids, rows, "Unbelievably naïve: photosynthesise!")
    assert [word.text for word in found] == ["unbelievably", "naive", ":", "photosynthesise", "!"]
    assert all(word.own for word in found)


def test_no_raw_id_or_control_token_is_shown(vision, real):
    for encoder in (vision, real):
        found = measure(encoder, QUERY, TEXT)
        for word in [*found.query_words, *found.document_words]:
            assert not re.search(r"<\||\[CLS\]|##|Ġ|▁|Ċ", word.text)


def test_a_row_that_keeps_nothing_is_its_pooled_vector(real):
    found = measure(real, "", TEXT)
    assert found.query_words == [Word("(pooled)", (0,))]


# -- pictures


def test_page_heatmap_gives_an_rgb_picture_and_writes_it(vision, tmp_path):
    path = tmp_path / "maps" / "one.png"
    picture = page_heatmap(vision, QUERY, lined(), path)
    assert picture.mode == "RGB" and picture.width > 1000
    with Image.open(path) as written:
        assert written.tobytes() == picture.tobytes()
    assert page_heatmap(vision, QUERY, lined(), over="max").tobytes() != picture.tobytes()


def test_what_is_too_long_to_be_drawn_is_drawn_in_part_and_says_so(monkeypatch):
    """600 document words and 60 query words, by a map of known best matches: the lines that hold them are kept."""
    told: list[str] = []
    titled = heatmap_drawing._titled
    monkeypatch.setattr(heatmap_drawing, "_titled", lambda *given: (told.extend(given[-1]), titled(*given)))
    asked, read = ([Word(f"{side}{n}", (n,)) for n in range(count)] for side, count in (("q", 60), ("d", 600)))
    similarity = torch.rand(60, 600, generator=torch.Generator().manual_seed(0)) * 0.5
    similarity[torch.arange(60), torch.arange(60) % 5 + 590] = 0.9
    assert draw(Heatmap("long", similarity[:6], asked[:6], read)).height < 5000
    assert any("of 600 document words are drawn" in note for note in told)
    best = similarity[:6].argmax(1).numpy()
    bands = heatmap_drawing._bands(600, best)
    assert len(bands) == heatmap_drawing.BANDS and all(any(b.start <= w < b.stop for b in bands) for w in best)
    page, patches = Image.new("RGB", (40, 400), "white"), tuple(range(20))
    found = Heatmap("long", similarity, asked, read[20:], page, PatchGrid(10, 2), patches)
    assert draw(found).height < 5000
    assert "40 of 60 query words are drawn" in told


def test_what_has_no_map_is_refused(vision):
    with pytest.raises(HeatmapError, match="query is a Image"):
        measure(vision, lined(), TEXT)
    with pytest.raises(HeatmapError, match="sum or max"):
        measure(vision, QUERY, TEXT).over_query("median")


# -- the command


def test_the_command_draws_a_text_and_says_what_each_word_found(real_base, real, tmp_path, capsys):
    (tmp_path / "page.txt").write_text(TEXT)
    output = tmp_path / "map.png"
    base = ["--model", str(real_base), "--output", str(output)]
    assert main(["heatmap", QUERY, str(tmp_path / "page.txt"), *base]) == 0
    told = capsys.readouterr().out
    assert f"late {float(real.score([QUERY], [TEXT], mode='late')):.4f}" in told
    assert re.search(r"photosynthesise  0\.\d+  photosynthesis\n", told)
    first = output.read_bytes()
    assert main(["heatmap", QUERY, "--text", TEXT, *base]) == 0 and output.read_bytes() == first


def test_the_command_draws_a_page_without_a_display(tiny_models, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MPLBACKEND", "tkagg")  # what a workstation may have set, and a server can't do
    monkeypatch.delenv("DISPLAY", raising=False)
    lined().save(tmp_path / "page.png")
    output = tmp_path / "maps" / "map.png"
    arguments = ["heatmap", QUERY, str(tmp_path / "page.png"), "--text", "an invoice", "--over", "max"]
    assert main([*arguments, "--model", str(tiny_models("qwen3vl")), "--output", str(output), "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"  plants +0\.\d+  \S", told) and f"the picture: {output}" in told
    with Image.open(output) as picture:
        assert picture.width > 1000


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["x"], "no document"),
        ([" ", "--text", "a"], "query is empty"),
        (["x", "missing.png"], "no such file"),
        (["x", "page.png"], "no image side"),
        (["x", "text.txt", "--text", "more"], "not a picture"),
        (["x", "book.pdf"], "smart-train ingest"),
        (["x", "broken.png"], "not a readable image"),
        (["x", "latin.txt"], "UTF-8"),
        (["x", "--text", "a", "--output", "map.svg"], ".png"),
    ],
)
def test_a_wrong_request_is_one_line_that_says_what_to_do(arguments, told, real_base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lined().save("page.png")
    Path("text.txt").write_text(TEXT)
    Path("book.pdf").write_bytes(b"%PDF-1.7\n\x80")
    Path("broken.png").write_bytes(Path("page.png").read_bytes()[:90])
    Path("latin.txt").write_bytes("Straße".encode("latin-1"))
    assert main(["heatmap", "--model", str(real_base), "--output", "map.png", *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error and len(error.strip().splitlines()) == 1
    assert not Path("map.png").exists()
