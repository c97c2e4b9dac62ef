"""Say which documents show the same under different ids, and which queries ask the same.

There is one identity, and all use it: splits (no copy on two sides), ``data check``, mining (a copy of an answer is no
negative), batches (no copy twice) and the loss (a copy of an answer, on any rank, is masked).

A text is its words: case, spacing and Unicode's ways to write one character do not count.  An image is its pixels
where it has been decoded, else the bytes of its file or ``Document.hash``.  A document that is one of several near
copies (``Collection.near``) is what these share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np

from smart_train.core.modality import modality
from smart_train.data.collection import Collection, Document
from smart_train.data.stored_collection import StoredCollection, same_words


def plain(text: str) -> str:
    """Return a text without case and spacing.

    >>> plain("What IS\\n a harbour"), plain("e\\u0301") == plain("\\u00c9")
    ('what is a harbour', True)
    """
    return " ".join((text.lower() if text.isascii() else normalize("NFKC", text).casefold()).split())


def content_hash(content: Any) -> int:
    """Return a signed 64-bit hash, never 0, of what a document shows: its words, and the size and pixels of its image.

    content: as ``Document.content`` returns it.  One file stored twice, as PNG and as BMP or under two names, is one
    content; an image that was resized or compressed again is another.  A megapixel takes about 5 ms.

    >>> content_hash("a text") == content_hash("A  text") != content_hash("another text")
    True
    """
    if isinstance(content, str):  # at once what follows does in steps: tables hash millions
        raw = b"text\n" + plain(content).encode("utf-8", "surrogatepass")
        return int.from_bytes(blake2b(raw, digest_size=8).digest(), "big", signed=True) or 1
    text, image = (content.get("text"), content["image"]) if isinstance(content, dict) else (content, content)
    total = blake2b(f"{modality(content)}\n".encode(), digest_size=8)
    if not isinstance(image, str):
        total.update(f"{image.mode} {image.width} {image.height}\n".encode())  # says how many bytes follow
        total.update(image.tobytes())
    if isinstance(text, str):
        total.update(plain(text).encode("utf-8", "surrogatepass"))
    return int.from_bytes(total.digest(), "big", signed=True) or 1


def known_hash(document: Document, near: Mapping[str, int] | None = None) -> int:
    """Return the hash of what a document shows as far as it is known without its file: 0 for an image.

    near: document id -> the hash that its near copies share; see ``Collection.near``
    """
    if near and (shared := near.get(document.id)):
        return shared
    return content_hash(document.text) if document.image is None and document.text is not None else 0


def shown_hashes(documents: Iterable[Document], near: Mapping[str, int] | None = None) -> list[int]:
    """Return for each document the hash of what it shows, without decoding an image; copies have the same.

    An image counts by ``Document.hash`` where the data has one, else by its bytes, which are read only where another
    image has as many, or by its pixels where it is in memory.  0 = nothing is known, or the document is empty.
    """
    kept = list(documents)
    sizes = [_stored_size(document) for document in kept]
    alike = {size for size, count in Counter(sizes).items() if count > 1 and size is not None}
    return [_shown(one, size, size in alike, near) for one, size in zip(kept, sizes, strict=True)]


def stored_hash(document: Document) -> int:
    """Return the hash that ``shown_hashes`` gives of a document beside a copy; of one without, a hash of its id.

    The bytes of an image are read.
    """
    return _shown(document, _stored_size(document), True) or content_hash(f"id {document.id}")


def _shown(document: Document, size: int | None, reads: bool, near: Mapping[str, int] | None = None) -> int:
    """reads: read the bytes of an image; size: their number, where it is known"""
    shown, image = known_hash(document, near), document.image
    if image is None:
        return shown if (document.text or "").strip() else 0
    if shown:
        return shown
    if document.hash:
        return content_hash(f"hash {document.hash}")  # of the page before words were masked in its text
    if size is not None and reads:
        raw = Path(image).read_bytes() if isinstance(image, str | Path) else image.raw()
        return content_hash(f"bytes {blake2b(raw).hexdigest()}\n{document.text}")
    if size is None and isinstance(image, str | Path):  # a missing file
        return content_hash(f"path {image}\n{document.text}")
    return content_hash(document.content()) if hasattr(image, "tobytes") else 0  # a PIL image


def _stored_size(document: Document) -> int | None:
    """Return how many bytes the image of a document has, where that is known without reading it."""
    if document.image is None or document.hash:
        return None
    if not isinstance(document.image, str | Path):
        return getattr(document.image, "size_in_bytes", None)
    file = Path(document.image)
    return file.stat().st_size if file.is_file() else None


def shared_documents(train: Collection, parts: Sequence[Collection]) -> list[set[str]]:
    """Return for each part the ids of its documents that ``train`` has too, under this id or another."""
    if isinstance(train, StoredCollection):
        hashes = [dict(zip(part.corpus, shown_hashes(part.corpus.values(), part.near), strict=True)) for part in parts]
        wanted = np.unique(np.array([hash for part in hashes for hash in part.values() if hash], np.int64))
        shown = (train.part.store.shown(rows, train.near) for rows in train.part.document_parts() if len(wanted))
        known = {hash for some in shown for hash in some[np.isin(some, wanted)].tolist()}
    else:  # together, so that the bytes of two images of one size are compared
        both = [document for part in (train, *parts) for document in part.corpus.values()]
        found = iter(shown_hashes(both, train.near))
        known = {*islice(found, len(train.corpus))} - {0}
        hashes = [dict(zip(part.corpus, found, strict=False)) for part in parts]
    return [{d for d, hash in part.items() if d in train.corpus or hash in known} for part in hashes]


def asked_by(collection: Collection, hashes: set[int]) -> set[int]:
    """Return those of the hashes that the words of a query of a collection have."""
    if isinstance(collection, StoredCollection):
        found = collection.part.store.queries.numbers(collection.part.query_rows, "shown")
        return hashes & {*found[np.isin(found, np.fromiter(hashes, np.int64, len(hashes)))].tolist()}
    return hashes & {content_hash(text) for text in collection.queries.values()} if hashes else set()


def query_copies(collection: Collection) -> dict[str, list[str]]:
    """Return query id -> ids of all queries of the same words, itself included, for queries that have such copies.

    >>> asked = {"a": "What is it", "b": "what  is it", "c": "Who"}
    >>> query_copies(Collection("demo", {}, asked, {}))
    {'a': ['a', 'b'], 'b': ['a', 'b']}
    """
    if isinstance(collection, StoredCollection):
        names = collection.part.store.queries
        groups = [names.values(rows, "id") for rows in same_words(collection)]
    else:
        held: dict[str, list[str]] = {}
        for query, text in collection.queries.items():
            held.setdefault(plain(text), []).append(query)
        groups = [ids for words, ids in held.items() if words and len(ids) > 1]
    return {query: ids for ids in groups for query in ids}
