"""Keys of documents: what they tell apart, what they find alike, and what is known without decoding."""

from __future__ import annotations

import pickle

import pytest
import torch
from PIL import Image

from smart_train.core.embeddings import KEYS
from smart_train.data import document_keys
from smart_train.data.collate import Collator
from smart_train.data.collection import Collection, Document, hash_id
from smart_train.data.document_keys import DocumentKeys
from smart_train.data.identity import content_hash, known_hash
from smart_train.losses.false_negatives import relevance_mask, repeated_documents


def gradient(width: int = 12, height: int = 8, shift: int = 0) -> Image.Image:
    pixels = bytes((7 * x + 13 * y + shift) % 256 for y in range(height) for x in range(width) for _ in range(3))
    return Image.frombytes("RGB", (width, height), pixels)


def pages(folder) -> Collection:
    """Three files: two hold the same picture as PNG and as BMP, the third another one; and a text."""
    for name, shift in (("a.png", 0), ("b.bmp", 0), ("c.png", 1)):
        gradient(shift=shift).save(folder / name)
    corpus = {
        "a": Document("a", image=folder / "a.png", file="one.pdf", page=3),
        "b": Document("b", image=folder / "b.bmp", file="two.pdf", page=0),
        "c": Document("c", image=folder / "c.png", file="one.pdf"),
        "t": Document("t", "a text"),
    }
    queries = {"q": "which", "r": "what"}
    return Collection("pages", corpus, queries, {"q": {"a": 2, "gone": 1, "c": 0}, "r": {"t": 1, "c": 3}})


def test_content_is_what_is_shown_whatever_the_file_it_lies_in(tmp_path):
    made = pages(tmp_path)
    a, b, c, t = (content_hash(document.content()) for document in made.corpus.values())
    assert a == b and len({a, c, t}) == 3


def test_every_part_of_the_content_counts():
    image = gradient()
    turned = Image.frombytes("RGB", (8, 12), image.tobytes())  # the same bytes in another shape
    contents = [
        "words",
        "word s",
        "",
        image,
        turned,
        gradient(shift=1),
        {"text": "words", "image": image},
        {"text": "", "image": image},
        {"text": "words", "image": turned},
        {"text": "other", "image": image},
    ]
    found = [content_hash(content) for content in contents]
    assert len(set(found)) == len(found) and 0 not in found
    assert all(-(2**63) <= value < 2**63 for value in found)
    assert content_hash(image.copy()) == content_hash(image)
    assert content_hash("Words \n") == content_hash("words")
    assert content_hash({"text": "WORDS", "image": image}) == found[6]


def test_the_one_content_whose_hash_would_be_0_gets_another(monkeypatch):
    class Zero:
        def __init__(self, *args, **kwargs):
            pass

        update = __init__

        def digest(self):
            return bytes(8)

    monkeypatch.setattr("smart_train.data.identity.blake2b", Zero)
    assert content_hash("words") == 1


def test_keys_are_id_content_file_and_page(tmp_path):
    made = pages(tmp_path)
    ids = list(made.corpus)
    contents = [document.content() for document in made.corpus.values()]
    keys = DocumentKeys(made).of_documents(ids, contents)
    assert keys.dtype == torch.int64 and keys.shape == (4, len(KEYS))
    assert keys[:, 0].tolist() == [hash_id(name) for name in ids]
    assert keys[:, 1].tolist() == [content_hash(content) for content in contents]
    assert keys[:, 2].tolist() == [hash_id("one.pdf"), hash_id("two.pdf"), hash_id("one.pdf"), 0]
    assert keys[:, 3].tolist() == [3, 0, -1, -1]
    assert DocumentKeys(made).of_documents([], []).shape == (0, 4)


def test_known_answers_are_all_of_the_qrels_and_undecoded_pages_have_no_content(tmp_path, monkeypatch):
    made = pages(tmp_path)
    page = made.corpus["a"].content()
    monkeypatch.setattr(Document, "_decode", lambda self: pytest.fail("an image was decoded for its hash alone"))
    keys = DocumentKeys(made)
    known = keys.of_positives(["q", "r"])
    assert known.lengths.tolist() == [2, 2] and known.grades.tolist() == [2, 1, 1, 3]
    assert known.grades.dtype == torch.float32 and known.keys.dtype == known.lengths.dtype == torch.int64
    assert known.keys.tolist() == [
        [hash_id("a"), 0, hash_id("one.pdf"), 3],
        [hash_id("gone"), 0, 0, -1],
        [hash_id("t"), content_hash("a text"), 0, -1],
        [hash_id("c"), 0, hash_id("one.pdf"), -1],
    ]
    keys.of_documents(["a"], [page])  # what a batch has decoded is known from then on
    assert keys.of_positives(["q"]).keys[0, 1] == content_hash(page)
    assert keys.text_hash("t") == content_hash("a text") and keys.text_hash("a") == keys.text_hash("gone") == 0


def test_no_more_keys_are_remembered_than_allowed_and_they_stay_right(tmp_path):
    made = pages(tmp_path)
    keys = DocumentKeys(made, most=2)
    contents = {name: document.content() for name, document in made.corpus.items()}
    for name in ["a", "b", "a", "c", "t", "a", "b"]:
        assert keys.of_documents([name], [contents[name]])[0, 1] == content_hash(contents[name])
        assert len(keys._keys) <= 2


def test_a_page_is_hashed_once_while_it_is_remembered(tmp_path, monkeypatch):
    made = pages(tmp_path)
    keys, contents = DocumentKeys(made), [made.corpus["a"].content()]
    first = keys.of_documents(["a"], contents)
    monkeypatch.setattr("smart_train.data.document_keys.content_hash", lambda content: pytest.fail("hashed again"))
    assert torch.equal(keys.of_documents(["a"], contents), first)


def test_a_copy_of_an_answer_is_no_negative_in_the_batch_that_holds_both(tmp_path):
    """Data and objective together: the copy has another id, another file and another format."""
    made = pages(tmp_path)
    made.qrels["r"] = {"b": 1}
    made.corpus["d"] = Document("d", image=tmp_path / "c.png", file="one.pdf", page=4)
    made.queries["s"], made.qrels["s"] = "who", {"d": 1}
    batch = pickle.loads(pickle.dumps(Collator(made, keep)))([("q", "a"), ("r", "b"), ("s", "d")])
    order = [("a", "b", "d")[[hash_id(x) for x in "abd"].index(i)] for i in batch.document_ids.tolist()]
    found = relevance_mask(batch.known, batch.document_keys)
    masked = [{order[j] for j in row.nonzero().flatten().tolist()} for row in found]
    assert masked == [{"a", "b"}, {"a", "b"}, {"d"}]
    near = relevance_mask(batch.known, batch.document_keys, neighbour_pages=1)
    assert {order[j] for j in near[0].nonzero().flatten().tolist()} == {"a", "b", "d"}
    assert int(repeated_documents(batch.document_keys).sum()) == 1


def keep(contents: list, role: str) -> dict:
    return {"contents": contents}


@pytest.mark.parametrize("answers", [0, 5, 10**6])
def test_keys_of_many_positives_are_those_of_few(tmp_path, monkeypatch, answers):
    """Queries of more positives than MANY take another road, whatever is remembered of it, to the same keys."""
    made = pages(tmp_path)
    made.corpus |= {f"t{n}": Document(f"t{n}", f"text {n % 7}", file=f"f{n % 3}", page=n) for n in range(40)}
    made.qrels |= {
        "many": {"a": 1, "lost": 2, "c": 0} | {f"t{n}": n % 4 for n in range(30)},
        "other": {"b": 1, "t3": 2},
    }
    few = DocumentKeys(made)
    monkeypatch.setattr(document_keys, "MANY", 0)
    monkeypatch.setattr(document_keys, "ANSWERS", answers)
    many = DocumentKeys(made)
    queries = ["many", "other", "q", "r", "none", "many"]
    decoded = ["a", "t3"]
    for _ in range(2):  # before and after a page was decoded
        found = [vars(keys.of_positives(queries)) for keys in (few, many)]
        for name, one in found[0].items():
            other = found[1][name]
            assert torch.equal(one, other)
            assert one.dtype == other.dtype
        for query in queries:
            listed = ["t", "b", "a", *(f"t{n}" for n in range(30, 40))]
            assert few.copies_of_positives(query, listed) == many.copies_of_positives(query, listed)
        contents = [made.corpus[name].content() for name in decoded]
        assert torch.equal(few.of_documents(decoded, contents), many.of_documents(decoded, contents))
    assert few.copies_of_positives("many", ["t38", "t30", "a"]) == {"t38", "t30"}


def test_a_batch_of_queries_with_thousands_of_answers_hashes_each_document_once(monkeypatch):
    corpus = {f"d{n}": Document(f"d{n}", f"text {n}") for n in range(3000)}
    made = Collection(
        "many", corpus, {f"q{n}": "which" for n in range(8)}, {f"q{n}": dict.fromkeys(corpus, 1) for n in range(8)}
    )
    hashed = []
    monkeypatch.setattr(document_keys, "known_hash", lambda one, near: hashed.append(one) or known_hash(one, near))
    keys = DocumentKeys(made, most=100)
    for _ in range(3):
        assert len(keys.of_positives(made.queries).keys) == 8 * 3000
    assert len(hashed) == 3000
