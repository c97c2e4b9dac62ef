"""Compare a collection on disk with the same one in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from smart_train.data.collection import Collection, Document
from smart_train.data.tables import StoredImage

ORDERED = ("queries", "qrels", "negatives")


def assert_equal(stored: Collection, plain: Collection, ordered: Sequence[str] = ORDERED) -> None:
    """A query without a negative, or without a score, may be in the one mapping and not in the other.

    ordered: mappings whose order counts
    """
    plain = replace(
        plain,
        negatives={query: row for query, row in plain.negatives.items() if row},
        teacher={query: row for query, row in plain.teacher.items() if row},
    )
    for name in ("queries", "qrels", "negatives", "teacher", "corpus"):
        one, other = (_comparable(name, mapping) for mapping in (getattr(stored, name), getattr(plain, name)))
        assert dict(one.items()) == other, name
        assert set(one) == set(other)
        assert len(one) == len(other)
        assert list(one.values()) == [one[key] for key in one]
        assert all(one[key] == other[key] for key in other)
        assert "no such id" not in one
        assert one.get("no such id") is None
    for name in ordered:
        assert list(getattr(stored, name)) == list(getattr(plain, name)), f"{name} in another order"
    assert list(stored.pairs()) == list(plain.pairs())
    assert [stored.pairs()[place] for place in range(len(plain.pairs()))] == plain.pairs()
    if ordered:
        assert {name: list(row) for name, row in stored.qrels.items()} == {n: list(r) for n, r in plain.qrels.items()}
    assert stored.problems() == plain.problems()
    assert stored.fingerprint() == plain.fingerprint() == stored.fingerprint()
    assert (stored.count_files(), stored.count_pages()) == (plain.count_files(), plain.count_pages())
    assert stored.names_pages() is plain.names_pages()
    assert [stored.count_related(name) for name in ("negatives", "teacher")] == [
        plain.count_related(name) for name in ("negatives", "teacher")
    ]


def _comparable(name: str, mapping: Any) -> Any:
    """Return documents with what their images in tables are, and where, in place of these."""
    if name != "corpus" or not any(isinstance(one.image, StoredImage) for one in mapping.values()):
        return mapping
    return {id: _document(mapping[id]) for id in mapping}


def _document(one: Document) -> Document:
    image = one.image
    if not isinstance(image, StoredImage):
        return one
    return replace(one, image=(image.content_id(), image.load().tobytes(), image.name, image.file, image.size_in_bytes))
