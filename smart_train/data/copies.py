"""Find documents that show the same under different ids, and queries that ask the same, without decoding an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from hashlib import blake2b
from pathlib import Path

from smart_train.data.collection import Document


def plain(text: str) -> str:
    """Return a text without case and spacing.

    >>> plain("What IS\\n a harbour")
    'what is a harbour'
    """
    return " ".join(text.lower().split())


def identities(documents: Iterable[Document]) -> dict[str, Hashable]:
    """Return document id -> what it shows; documents with the same are copies of each other.

    A text counts without case and spacing, an image by ``Document.hash`` where the data has one, else by the bytes of
    its file, which are read only where another file has as many.  What is empty has no identity, nor have images inside
    of tables: without ``data.id`` their ids are hashes of their bytes.
    """
    kept = list(documents)
    sizes = Counter(size for document in kept if (size := _file_size(document)) is not None)
    found: dict[str, Hashable] = {}
    for document in kept:
        text = None if document.text is None else plain(document.text)
        size = _file_size(document)
        if document.image is None:
            if text:
                found[document.id] = ("text", text)
        elif document.hash:
            found[document.id] = ("hash", document.hash, text)
        elif size is not None and sizes[size] > 1:
            found[document.id] = ("file", blake2b(Path(document.image).read_bytes()).digest(), text)
    return found


def _file_size(document: Document) -> int | None:
    if document.hash or not isinstance(document.image, str | Path):
        return None
    file = Path(document.image)
    return file.stat().st_size if file.is_file() else None
