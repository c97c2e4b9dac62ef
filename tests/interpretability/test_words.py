"""Words: sub-words are joined, the prompt is told from the content, nothing raw is shown."""

from __future__ import annotations

import re

from PIL import Image, ImageDraw

from smart_train.interpretability.similarity_map import compute_similarity_map, words

TEXT = "Photosynthesis turns sunlight into sugar. Chlorophyll in the leaves absorbs light for the plants."
QUERY = "How do plants photosynthesise?"


def lined() -> Image.Image:
    page = Image.new("RGB", (160, 96), "white")
    ImageDraw.Draw(page).text((8, 8), "invoice total 12", fill="black")
    return page


# -- words


def test_subwords_are_joined_and_the_prompt_is_told_from_the_query(vision):
    found = compute_similarity_map(vision, "a naïve invoice, by the user's café 東京", lined())
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
        found = compute_similarity_map(encoder, QUERY, TEXT)
        for word in [*found.query_words, *found.document_words]:
            assert not re.search(r"<\||\[CLS\]|##|Ġ|▁|Ċ", word.text)
