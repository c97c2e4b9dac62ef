"""Number documents so that ranks can compare them: hashes of id, content and file, and the page.

Two ranks see each other's documents as vectors and these four numbers.  With them a positive is never taken for a
negative, whichever rank it comes from (losses/false_negatives.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from smart_train.core.embeddings import KnownPositives
from smart_train.core.modality import modality
from smart_train.data.collection import Collection, hash_id

Key = tuple[int, int, int, int]  # see embeddings.KEYS
REMEMBERED = 2**17  # documents whose keys a worker remembers: about 40 MB


def content_hash(content: Any) -> int:
    """Return a signed 64-bit hash, never 0, of what a document shows: its text, and the size and pixels of its image.

    content: as ``Document.content`` returns it.  One file stored twice, as PNG and as BMP or under two names, is one
    content; an image that was resized or compressed again is another.  A megapixel takes about 5 ms.

    >>> content_hash("a text") == content_hash("a text") != content_hash("another text")
    True
    """
    text, image = (content.get("text"), content["image"]) if isinstance(content, dict) else (content, content)
    total = blake2b(f"{modality(content)}\n".encode(), digest_size=8)
    if not isinstance(image, str):
        total.update(f"{image.mode} {image.width} {image.height}\n".encode())  # says how many bytes follow
        total.update(image.tobytes())
    if isinstance(text, str):
        total.update(text.encode("utf-8", "surrogatepass"))
    return int.from_bytes(total.digest(), "big", signed=True) or 1


class DocumentKeys:
    """Keys of a collection's documents and positives; the last ``most`` of them are remembered.

    A text is hashed when its key is needed.  An image is hashed only where a worker has decoded it anyway, so a
    positive that this worker has not decoded has the content hash 0, unknown; id, file and page are always known.
    """

    def __init__(self, collection: Collection, most: int = REMEMBERED) -> None:
        self.collection, self.most = collection, most
        self._keys: dict[str, Key] = {}

    def of_documents(self, documents: Sequence[str], contents: Sequence[Any]) -> Tensor:
        """Return [N, 4] int64 (see embeddings.KEYS) of documents and their decoded contents; no content hash is 0."""
        rows = [self._key(document, content) for document, content in zip(documents, contents, strict=True)]
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)

    def of_positives(self, queries: Iterable[str]) -> KnownPositives:
        """Return the keys of every positive of each query, in the order of the qrels, in the corpus or not."""
        rows: list[Key] = []
        grades: list[int] = []
        lengths: list[int] = []
        for query in queries:
            relevant = {d: g for d, g in self.collection.qrels.get(query, {}).items() if g > 0}
            rows += [self._key(document) for document in relevant]
            grades += relevant.values()
            lengths.append(len(relevant))
        return KnownPositives(
            torch.tensor(rows, dtype=torch.int64).reshape(-1, 4),
            torch.tensor(grades, dtype=torch.float32),
            torch.tensor(lengths, dtype=torch.int64),
        )

    def text_hash(self, document: str) -> int:
        """Return the content hash of a document that is a text; 0 for every other one."""
        text = self.collection.corpus.get(document)
        return self._key(document)[1] if text is not None and text.image is None else 0

    def _key(self, name: str, content: Any = None) -> Key:
        key = self._keys.get(name)
        if key is not None and (key[1] or content is None):
            return key
        document = self.collection.corpus.get(name)
        if document is None:
            return hash_id(name), 0, 0, -1
        if content is None and document.image is None:
            content = document.text
        shown = 0 if content is None else content_hash(content)
        file = 0 if document.file is None else hash_id(document.file) or 1
        key = hash_id(name), shown, file, -1 if document.page is None else document.page
        if name not in self._keys and len(self._keys) >= self.most:
            del self._keys[next(iter(self._keys))]
        self._keys[name] = key
        return key
