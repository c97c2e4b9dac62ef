"""Number documents so that ranks can compare them: hashes of id, content and file, and the page.

Two ranks see each other's documents as vectors and these four numbers.  With them a positive is never taken for a
negative, whichever rank it comes from (losses/false_negatives.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smart_train.core.embeddings import KnownPositives
from smart_train.data.collection import Collection, hash_id
from smart_train.data.identity import content_hash, known_hash, query_copies

Key = tuple[int, int, int, int]  # see embeddings.KEYS
REMEMBERED = 2**17  # documents whose keys a worker remembers: about 40 MB
MANY = 64  # positives of a query above which their keys are taken from a table
UNITED = 2**12  # groups of queries of the same words whose grades are remembered
ANSWERS = 2**24  # rows of that table that are remembered by query: 128 MB


class DocumentKeys:
    """Keys of a collection's documents and positives; the last ``most`` of them are remembered.

    A text is hashed when its key is needed.  An image is hashed only where a worker has decoded it anyway, so a
    positive that this worker has not decoded has the content hash 0, unknown; id, file and page are always known.

    Positives of queries that have more than MANY are remembered in a table, 32 bytes each, and their keys are taken
    from it by row: a batch of such queries would else hash hundreds of thousands of documents, each time anew.

    The positives of queries of the same words under other ids are positives of a query, too.
    """

    def __init__(self, collection: Collection, most: int = REMEMBERED) -> None:
        self.collection, self.most = collection, most
        self._same_words = query_copies(collection)
        self._united: dict[str, dict[str, int]] = {}  # first of the queries of the same words -> grades of all
        self._keys: dict[str, Key] = {}
        self._row: dict[str, int] = {}  # of documents in the table
        self._table = np.empty((0, 4), np.int64)
        self._is_text = np.empty(0, np.bool_)
        self._answers: dict[str, tuple[NDArray[np.int32], NDArray[np.float32]]] = {}  # query -> rows, grades
        self._held = 0  # rows in it

    def of_documents(self, documents: Sequence[str], contents: Sequence[Any]) -> Tensor:
        """Return [N, 4] int64 (see embeddings.KEYS) of documents and their decoded contents; no content hash is 0."""
        rows = [self._key(document, content) for document, content in zip(documents, contents, strict=True)]
        for document, key in zip(documents, rows, strict=True):
            if document in self._row:  # a page that was decoded by now
                self._table[self._row[document]] = key
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)

    def of_positives(self, queries: Iterable[str]) -> KnownPositives:
        """Return the keys of every positive of each query, in the order of the qrels, in the corpus or not; of queries
        of the same words all have those of all."""
        keys, grades, lengths = [torch.empty(0, 4, dtype=torch.int64)], [torch.empty(0)], []
        for query in queries:
            judged = self._judged(query)
            if len(judged) > MANY:
                rows, own = self._many(query, judged)
                keys.append(torch.from_numpy(self._table[rows]))
                grades.append(torch.from_numpy(own))
            else:
                relevant = {d: g for d, g in judged.items() if g > 0}
                keys.append(torch.tensor([self._key(d) for d in relevant], dtype=torch.int64).reshape(-1, 4))
                grades.append(torch.tensor([*relevant.values()], dtype=torch.float32))
            lengths.append(len(grades[-1]))
        return KnownPositives(torch.cat(keys), torch.cat(grades), torch.tensor(lengths, dtype=torch.int64))

    def copies_of_positives(self, query: str, documents: Sequence[str]) -> set[str]:
        """Return those of the documents that show what some positive of the query does, as far as that is known without
        decoding an image, and those that are a positive of a query of the same words."""
        if not documents:
            return set()
        judged, own = self._judged(query), self.collection.qrels.get(query, {})
        also = {document for document in documents if judged.get(document, 0) > 0 >= own.get(document, 0)}
        shown = {document: self.text_hash(document) for document in documents}
        if len(judged) > MANY:
            rows, _ = self._many(query, judged)
            positives = set(self._table[rows[self._is_text[rows]], 1].tolist() if any(shown.values()) else ())
        else:
            positives = {self.text_hash(document) for document, grade in judged.items() if grade > 0}
        return also | {document for document, one in shown.items() if one and one in positives}

    def _judged(self, query: str) -> Mapping[str, int]:
        """Return the grades of a query, and those of its copies where it has some; of two of a document the higher."""
        copies = self._same_words.get(query)
        if copies is None:
            return self.collection.qrels.get(query, {})
        found = self._united.get(copies[0])
        if found is None:
            if len(self._united) >= UNITED:
                self._united.clear()
            found = self._united[copies[0]] = {}
            for copy in copies:
                for document, grade in self.collection.qrels.get(copy, {}).items():
                    found[document] = max(grade, found.get(document, grade))
        return found

    def text_hash(self, document: str) -> int:
        """Return the content hash of a document as it is known without decoding; 0 for an image."""
        return self._key(document)[1] if self._is_known(document) else 0

    def _is_known(self, name: str) -> bool:
        document = self.collection.corpus.get(name)
        return document is not None and (document.image is None or name in self.collection.near)

    def _many(self, query: str, judged: Mapping[str, int]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return (rows of the table, grades) of a query's positives."""
        found = self._answers.get(query)
        if found is None:
            relevant = {document: grade for document, grade in judged.items() if grade > 0}
            rows = np.fromiter((self._table_row(document) for document in relevant), np.int32, len(relevant))
            found = self._answers[query] = rows, np.fromiter(relevant.values(), np.float32, len(relevant))
            self._held += len(rows)
            while self._held > ANSWERS and len(self._answers) > 1:
                self._held -= len(self._answers.pop(next(iter(self._answers)))[0])
        return found

    def _table_row(self, document: str) -> int:
        row = self._row.get(document)
        if row is None:
            row = self._row[document] = len(self._row)
            if row == len(self._table):
                size = max(1024, 2 * row)
                self._table = np.resize(self._table, (size, 4)) if row else np.empty((size, 4), np.int64)
                self._is_text = np.resize(self._is_text, size) if row else np.empty(size, np.bool_)
            key = self._keys.get(document) or self._made(document)
            self._table[row], self._is_text[row] = key, self._is_known(document)
        return row

    def _key(self, name: str, content: Any = None) -> Key:
        key = self._keys.get(name)
        if key is not None and (key[1] or content is None):
            return key
        key = self._made(name, content)
        if name in self.collection.corpus:
            if name not in self._keys and len(self._keys) >= self.most:
                del self._keys[next(iter(self._keys))]
            self._keys[name] = key
        return key

    def _made(self, name: str, content: Any = None) -> Key:
        document = self.collection.corpus.get(name)
        if document is None:
            return hash_id(name), 0, 0, -1
        near = self.collection.near
        shown = content_hash(content) if content is not None and name not in near else known_hash(document, near)
        file = 0 if document.file is None else hash_id(document.file) or 1
        return hash_id(name), shown, file, -1 if document.page is None else document.page
