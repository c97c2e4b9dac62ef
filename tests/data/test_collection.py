"""Documents and collections: contents, pairs, fingerprints, checks, stable hashes."""

from __future__ import annotations

import subprocess
import sys
from hashlib import blake2b

import pytest
from PIL import Image

from smart_train.core.errors import DataError
from smart_train.data.collection import Collection, Document, hash_id


def small(**change) -> Collection:
    parts = {
        "corpus": {
            "a": Document("a", "apples are red"),
            "b": Document("b", "bees can fly"),
            "c": Document("c", "cats"),
        },
        "queries": {"q1": "what is red", "q2": "what flies"},
        "qrels": {"q1": {"a": 2, "c": 0}, "q2": {"b": 1, "a": 1}},
        "negatives": {"q1": ["b", "c"]},
    }
    return Collection("small", **(parts | change))


def test_an_id_hashes_to_the_same_int64_in_another_process():
    here = [hash_id(text) for text in ("", "d1", "página 3", "文書")]
    code = (
        "from smart_train.data.collection import hash_id; print([hash_id(t) for t in ('', 'd1', 'página 3', '文書')])"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert str(here) == there.strip()
    assert all(-(2**63) <= value < 2**63 for value in here) and len(set(here)) == 4
    raw = int.from_bytes(blake2b(b"d1", digest_size=8).digest(), "big")
    assert hash_id("d1") == raw - 2**64 * (raw >= 2**63)


def test_pairs_are_the_judgements_above_zero_in_order_and_without_dangling_ones():
    assert small().pairs() == [("q1", "a"), ("q2", "b"), ("q2", "a")]
    dangling = small(qrels={"q2": {"gone": 1, "b": 1}, "lost": {"a": 1}})
    assert dangling.pairs() == [("q2", "b")]


def test_check_names_every_dangling_id_and_empty_text():
    assert small().check().name == "small"
    broken = small(
        corpus={"a": Document("a", "  "), "b": Document("b", "bees"), "x": Document("y", "filed wrongly")},
        queries={"q1": "", "q2": "what flies", "q3": "never judged"},
        qrels={"q1": {"a": 1, "gone": 1}, "q2": {"b": 1}, "q4": {"b": 1}},
        negatives={"q1": ["missing"]},
        teacher={"q1": {"b": 1.0, "nowhere": 2.0}, "q2": {"b": float("nan")}, "q7": {"b": 1.0}},
    )
    with pytest.raises(DataError) as error:
        broken.check()
    told = str(error.value)
    for part in (
        "1 queries in the qrels without a text: q4",
        "1 queries that are empty: q1",
        "1 queries without a judgement: q3",
        "1 judged documents missing in the corpus: gone",
        "1 negatives missing in the corpus: missing",
        "1 queries with a teacher's scores, but without a text: q7",
        "1 documents with a teacher's score missing in the corpus: nowhere",
        "1 queries with a teacher's score that is not finite: q2",
        "1 documents that are empty: a",
        "1 documents filed under another id: x",
    ):
        assert part in told


def test_the_fingerprint_does_not_depend_on_the_order_of_reading():
    one = small()
    other = small(
        corpus=dict(reversed(one.corpus.items())),
        queries=dict(reversed(one.queries.items())),
        qrels={q: dict(reversed(row.items())) for q, row in reversed(one.qrels.items())},
    )
    assert one.fingerprint() == other.fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"corpus": {**small().corpus, "a": Document("a", "apples are green")}},
        {"corpus": {**small().corpus, "a": Document("a", "apples are red", file="fruit.pdf")}},
        {"queries": {"q1": "what is red?", "q2": "what flies"}},
        {"qrels": {"q1": {"a": 1, "c": 0}, "q2": {"b": 1, "a": 1}}},
        {"negatives": {"q1": ["c", "b"]}},
        {"negatives": {}},
        {"teacher": {"q1": {"a": 0.5}}},
    ],
)
def test_the_fingerprint_changes_with_every_part(change):
    assert small().fingerprint() != small(**change).fingerprint()


def test_a_teachers_scores_count_by_pair_and_value_in_the_fingerprint():
    scored = {"q1": {"a": 0.5, "b": 2.0}, "q2": {"b": -1.0}}
    one = small(teacher=scored).fingerprint()
    assert one == small(teacher={q: dict(reversed(s.items())) for q, s in reversed(scored.items())}).fingerprint()
    changed = [{**scored, "q2": {"b": 1.0}}, {**scored, "q2": {"a": -1.0}}, {"q1": scored["q1"]}]
    assert len({one, *(small(teacher=other).fingerprint() for other in changed)}) == 4
    assert small(teacher={"q1": {}}).fingerprint() == small().fingerprint()  # no score, no teacher


def test_a_selection_keeps_only_judgements_negatives_and_scores_of_its_documents():
    scored = small(teacher={"q1": {"a": 1.0, "c": 2.0}, "q2": {"b": 3.0}})
    part = scored.select(["q1"], ["a", "b"])
    assert part.teacher == {"q1": {"a": 1.0}} and scored.select(["q2", "q1"]).teacher == scored.teacher
    assert list(part.corpus) == ["a", "b"] and part.queries == {"q1": "what is red"}
    assert part.qrels == {"q1": {"a": 2}} and part.negatives == {"q1": ["b"]}
    whole = small().select(["q2"])
    assert list(whole.corpus) == ["a", "b", "c"] and whole.qrels == {"q2": {"b": 1, "a": 1}}
    with pytest.raises(KeyError, match="q9"):
        small().select(["q9"])


def test_content_is_text_or_an_rgb_image_or_both(tmp_path):
    red = Image.new("RGB", (8, 6), "red")
    red.save(tmp_path / "red.png")

    class Lazy:
        def load(self):
            return red

    assert Document("t", "words").content() == "words"
    for image in (red, str(tmp_path / "red.png"), tmp_path / "red.png", Lazy()):
        content = Document("i", image=image).content()
        assert content.mode == "RGB" and content.size == (8, 6) and content.getpixel((3, 3)) == (255, 0, 0)
    both = Document("b", "a caption", red).content()
    assert both["text"] == "a caption" and both["image"].size == (8, 6)
    with pytest.raises(DataError, match="'n' has neither text nor image"):
        Document("n").content()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_paper_becomes_white_not_black(mode, tmp_path):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.putpixel((1, 1), (0, 0, 0, 255))
    if mode == "P":
        image = image.quantize()
    image.convert(mode).save(tmp_path / "page.png")
    content = Document("p", image=tmp_path / "page.png").content()
    assert content.getpixel((0, 0)) == (255, 255, 255) and content.getpixel((1, 1)) == (0, 0, 0)


def test_a_rotated_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.new("RGB", (10, 4), "blue").save(tmp_path / "photo.jpg", exif=exif)
    assert Document("p", image=tmp_path / "photo.jpg").content().size == (4, 10)


@pytest.mark.parametrize("damage", ["cut", "noise", "missing"])
def test_a_broken_image_raises_and_names_its_document_and_file(tmp_path, damage):
    path = tmp_path / "page.png"
    Image.effect_noise((64, 64), 80).save(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:400])
    elif damage == "noise":
        path.write_bytes(b"NULL" * 40)
    else:
        path.unlink()
    with pytest.raises(DataError, match=r"document 'page-7' of book\.pdf cannot be decoded \(.*page\.png\)"):
        Document("page-7", image=path, file="book.pdf").content()
