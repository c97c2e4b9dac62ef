"""Heatmaps: the map is the score, and the picture is the map."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw

from smart_train.config.schema import LateBlock
from smart_train.core.errors import HeatmapError
from smart_train.interpretability import drawing as fonts
from smart_train.interpretability import drawing as heatmap_drawing
from smart_train.interpretability.drawing import draw, page_heatmap
from smart_train.interpretability.similarity_map import PatchGrid, SimilarityMap, Word, compute_similarity_map
from smart_train.models.encoder import SmartEncoder

CELL = 32  # pixels of a merged patch of the tiny Qwen3-VL: 16 a patch, 2 x 2 of them merged
ROWS, COLUMNS = 3, 5
PAGE = (COLUMNS * CELL, ROWS * CELL)
TEXT = "Photosynthesis turns sunlight into sugar. Chlorophyll in the leaves absorbs light for the plants."
QUERY = "How do plants photosynthesise?"


def lined() -> Image.Image:
    page = Image.new("RGB", PAGE, "white")
    ImageDraw.Draw(page).text((8, 8), "invoice total 12", fill="black")
    return page


# -- the map is the score


@pytest.mark.parametrize("document", [TEXT, "light", lined(), {"text": "an invoice", "image": lined()}])
@pytest.mark.parametrize("late", [LateBlock(), LateBlock(layer=1, drop=["punctuation"]), LateBlock(dim=16)])
def test_the_late_score_read_from_the_map_is_the_encoders(late, document, tiny_models):
    encoder = SmartEncoder(str(tiny_models("qwen3vl")), late=late, device="cpu")
    found = compute_similarity_map(encoder, QUERY, document)
    assert found.late == pytest.approx(float(encoder.score([QUERY], [document], mode="late")), abs=1e-5)


@pytest.mark.parametrize("kind", ["bert", "modernbert", "qwen3", "real"])
def test_the_late_score_of_texts_is_read_from_the_map_for_every_family(kind, tiny_models, real_base):
    encoder = SmartEncoder(str(real_base if kind == "real" else tiny_models(kind)), device="cpu")
    for query, document in ((QUERY, TEXT), ("", "?"), ("naïve café 東京", "東京のカフェ")):
        found = compute_similarity_map(encoder, query, document)
        assert found.late == pytest.approx(float(encoder.score([query], [document], mode="late")), abs=1e-5)
        parts = sum(found.share(word) * len(word.tokens) for word in found.query_words) / len(found.similarity)
        assert parts == pytest.approx(found.late, abs=1e-5), "the words' parts make up the score"
        for side, count in ((found.query_words, 0), (found.document_words, 1)):
            tokens = [token for word in side for token in word.tokens]
            assert tokens == list(range(found.similarity.shape[count])), "each kept token is in one word, in order"


def test_every_token_of_a_page_is_a_patch_or_in_a_word(vision):
    found = compute_similarity_map(vision, QUERY, {"text": "an invoice", "image": lined()})
    tokens = [token for word in found.document_words for token in word.tokens]
    assert sorted([*tokens, *found.patches]) == list(range(found.similarity.shape[1]))
    assert found.grid == PatchGrid(ROWS, COLUMNS) and len(found.patches) == ROWS * COLUMNS


def test_a_words_row_is_the_mean_of_its_tokens(real):
    found = compute_similarity_map(real, "photosynthesise", TEXT)
    (word,) = found.query_words
    assert word.text == "photosynthesise" and len(word.tokens) > 1
    torch.testing.assert_close(found.of_word(word), found.similarity.mean(0))
    expected = torch.stack([found.similarity[:, list(one.tokens)].amax(1).mean() for one in found.document_words])
    torch.testing.assert_close(found.by_words()[0], expected)
    torch.testing.assert_close(found.over_query("max"), found.similarity.amax(0))


def test_a_row_that_keeps_nothing_is_its_pooled_vector(real):
    found = compute_similarity_map(real, "", TEXT)
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
    assert draw(SimilarityMap("long", similarity[:6], asked[:6], read)).height < 5000
    assert any("of 600 document words are drawn" in note for note in told)
    best = similarity[:6].argmax(1).numpy()
    bands = heatmap_drawing._bands(600, best)
    assert len(bands) == heatmap_drawing.BANDS and all(any(b.start <= w < b.stop for b in bands) for w in best)
    page, patches = Image.new("RGB", (40, 400), "white"), tuple(range(20))
    found = SimilarityMap("long", similarity, asked, read[20:], page, PatchGrid(10, 2), patches)
    assert draw(found).height < 5000
    assert "40 of 60 query words are drawn" in told


def test_of_a_query_as_long_as_a_page_the_first_words_are_drawn_and_told(monkeypatch):
    """200 words against 420 would be a picture of 105 million pixels, which PIL takes for an attack."""
    told: list[str] = []
    titled = heatmap_drawing._titled
    monkeypatch.setattr(heatmap_drawing, "_titled", lambda *given: (told.extend(given[-1]), titled(*given)))
    monkeypatch.setattr(heatmap_drawing, "ROWS", 3)
    asked = [Word("template", (0,), own=False), *(Word(f"q{n}", (n,)) for n in range(1, 200))]
    found = SimilarityMap("of two\nlines", torch.rand(200, 4), asked, [Word("d", tuple(range(4)))])
    drawn = draw(found)
    assert drawn.height < 400 and "3 of 200 query words are drawn" in told
    # The query stands on one line, above the notes: the picture is that of a blank in place of the break.
    assert drawn.tobytes() == draw(replace(found, query="of two lines")).tobytes()


def test_letters_that_no_font_has_are_told_once(caplog, monkeypatch, recwarn):
    monkeypatch.setattr(fonts, "FIRST", ("DejaVu Sans",))
    monkeypatch.setattr(fonts, "SCRIPTS", "none begins so")
    found = SimilarityMap(
        "東京", torch.eye(2), [Word("東京", (0,)), Word("Кафе", (1,))], [Word("b", (0,)), Word("京", (1,))]
    )
    draw(found)
    lines = [record.message for record in caplog.records if record.name == "smart_train.interpretability.drawing"]
    assert len(lines) == 1 and lines[0].startswith("2 letters, such as 京 東, are in no installed font")
    assert not recwarn.list


def test_what_has_no_map_is_refused(vision):
    with pytest.raises(HeatmapError, match="query is a Image"):
        compute_similarity_map(vision, lined(), TEXT)
    with pytest.raises(HeatmapError, match="sum or max"):
        compute_similarity_map(vision, QUERY, TEXT).over_query("median")


def test_the_pictures_own_pixels_have_the_colours_of_their_places_values(vision):
    """Measured in the finished picture: on white paper a patch has the scale's colour for its value, and no other."""
    found = compute_similarity_map(vision, QUERY, Image.new("RGB", (COLUMNS * 40, ROWS * 40), "white"))
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
