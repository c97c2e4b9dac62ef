"""An encoder whose embeddings are known: a vector a word, their mean as the pooled one; and collections of words."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch

from smart_train.config.schema import HybridBlock, LateBlock
from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.data.collection import Collection, Document

WIDTH = 16
WORDS = [f"{letter}{number}" for letter in "abcdefgh" for number in range(12)]


def word_vector(word: str) -> torch.Tensor:
    seed = int.from_bytes(word.encode(), "big") % 10**9
    vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
    return vector / vector.norm()


class WordEncoder:
    """Notes the documents that it was given; ``before`` is called with every call's contents."""

    def __init__(self, hybrid: HybridBlock | None = None, before: Callable[[list[Any]], None] | None = None) -> None:
        self.late = LateBlock(hybrid=hybrid or HybridBlock(late=2.0))
        self.before = before
        self.seen: list[str] = []
        self.batches: list[list[str]] = []

    def _encode(self, contents: list[Any], batch_size: int, progress: Any) -> Embeddings:
        starts = range(0, len(contents), batch_size)
        for _ in progress(starts) if progress else starts:
            pass
        rows = [torch.stack([word_vector(word) for word in str(content).split()]) for content in contents]
        pooled = torch.stack([row.mean(0) / row.mean(0).norm() for row in rows])
        return Embeddings(pooled, Tokens(torch.cat(rows), torch.tensor([len(row) for row in rows])))

    def encode_queries(self, contents: list[Any], batch_size: int = 32, progress: Any = None) -> Embeddings:
        return self._encode(contents, batch_size, progress)

    def encode_documents(
        self, contents: list[Any], batch_size: int = 32, progress: Any = None, dtype: torch.dtype = torch.float32
    ) -> Embeddings:
        if self.before is not None:
            self.before(contents)
        self.seen += contents
        self.batches += [contents[at : at + batch_size] for at in range(0, len(contents), batch_size)]
        found = self._encode(contents, batch_size, progress)
        return Embeddings(found.pooled, found.tokens.to(dtype))


def words_collection(documents: int, queries: int = 12, seed: int = 0) -> Collection:
    """Documents of 2 to 12 words; a query has three words of the document that answers it."""
    rng = random.Random(seed)
    corpus = {
        f"d{n}": Document(f"d{n}", " ".join(rng.choices(WORDS, k=rng.randint(2, 12))), file=f"f{n % 3}")
        for n in range(documents)
    }
    asked, qrels = {}, {}
    for n in range(queries):
        answer = f"d{rng.randrange(documents)}"
        asked[f"q{n}"] = " ".join(rng.choices(str(corpus[answer].text).split(), k=3))
        qrels[f"q{n}"] = {answer: 1}
    return Collection("words", corpus, asked, qrels)
