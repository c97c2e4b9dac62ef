"""Embeds a collection for evaluation: once, portion by portion, with its unanswered queries counted.

Queries stay in memory, and documents where they are kept: in float16, 2 x d bytes a token and in one copy.  Where they
are not kept, memory is a portion or two, whatever the corpus.

Knows: an encoder's two methods, a collection's three tables.  Does not know: how either is made, scores, rankings.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from tqdm.auto import tqdm

from smart_train.blocks import LateBlock
from smart_train.embeddings import Embeddings
from smart_train.evaluation.metrics import EvaluationError

logger = logging.getLogger(__name__)

TEXT_BATCHES = 16  # of text are a portion: 512 rows of 256 tokens of width 1024 are 0.3 GB in float16
IMAGE_BATCHES = 2  # decoded images are large: only these are in memory at a time


class Encoder(Protocol):
    late: LateBlock

    def encode_queries(self, contents: Sequence[Any], **options: Any) -> Any: ...

    def encode_documents(self, contents: Sequence[Any], **options: Any) -> Any: ...


class Document(Protocol):
    @property
    def text(self) -> str | None: ...

    @property
    def title(self) -> str | None: ...

    @property
    def image(self) -> Any: ...

    def content(self) -> Any: ...


class Collection(Protocol):
    @property
    def corpus(self) -> Mapping[str, Document]: ...

    @property
    def queries(self) -> Mapping[str, str]: ...

    @property
    def qrels(self) -> Mapping[str, Mapping[str, int]]: ...


@dataclass
class Encoded:
    """A collection's embeddings: queries B rows, documents N rows in portions, ids in the rows' order.

    documents: tokens in float16; a list, or an iterator that encodes each portion when it is asked for, once
    """

    queries: Embeddings
    documents: Iterable[Embeddings]
    query_ids: list[str]
    document_ids: list[str]
    unanswered: list[str]  # queries that no document was judged relevant to: not encoded, in no average
    themselves: frozenset[str] = frozenset()  # queries that stand in the corpus, see ``standing``
    seconds: dict[str, float] = field(default_factory=dict)  # queries, documents: grows as they are encoded


def encode(
    encoder: Encoder, collection: Collection, *, batch_size: int = 32, progress: bool = False, keep: bool = True
) -> Encoded:
    """Embeds the documents and the queries that have a relevant one; images are decoded a few batches at a time.

    keep: True for a list of all documents; False for an iterator, for who needs each portion once
    A query whose relevant documents the corpus lacks is encoded too: it counts with 0, as in BEIR, and is told.
    Raises EvaluationError where no query has a relevant document in the corpus.
    """
    corpus, queries = collection.corpus, collection.queries
    query_ids: list[str] = []
    unanswered: list[str] = []
    lost: list[str] = []
    for query in queries:
        relevant = [document for document, grade in collection.qrels.get(query, {}).items() if grade > 0]
        (query_ids if relevant else unanswered).append(query)
        if relevant and not any(document in corpus for document in relevant):
            lost.append(query)
    if len(query_ids) == len(lost):
        raise EvaluationError(
            f"none of the {len(queries)} queries has a relevant document in the corpus of {len(corpus)}"
        )
    for ids, what in (
        (unanswered, "have no document judged relevant and are left out"),
        (lost, "count with 0, since the corpus has none of their relevant documents"),
    ):
        if ids:
            logger.warning("%d of %d queries %s, such as %r", len(ids), len(queries), what, ids[0])
    themselves = standing(collection, query_ids)
    if themselves:
        what = "queries stand in the corpus themselves and are left out of their own ranking"
        logger.info("%d %s, such as %r", len(themselves), what, min(themselves))
    seconds = {"queries": 0.0, "documents": 0.0}
    texts = [queries[query] for query in query_ids]
    with clock(seconds, "queries"), _bar("queries", len(texts), batch_size, progress) as wrap:
        query_embeddings = encoder.encode_queries(texts, batch_size=batch_size, progress=wrap)
    portions = list(_portions(corpus, batch_size))
    documents: Iterable[Embeddings] = _documents(encoder, corpus, portions, batch_size, progress, seconds)
    if keep:
        documents = list(documents)
    document_ids = [document for ids in portions for document in ids]
    return Encoded(query_embeddings, documents, query_ids, document_ids, unanswered, themselves, seconds)


def _documents(
    encoder: Encoder,
    corpus: Mapping[str, Document],
    portions: list[list[str]],
    batch_size: int,
    progress: bool,
    seconds: dict[str, float],
) -> Iterator[Embeddings]:
    """Encodes a portion whenever one is asked for."""
    with _bar("documents", len(corpus), batch_size, progress) as wrap:
        for ids in portions:
            with clock(seconds, "documents"):
                part = encoder.encode_documents(
                    [corpus[document].content() for document in ids],
                    batch_size=batch_size,
                    progress=wrap,
                    dtype=torch.float16,
                )
                part = Embeddings(part.pooled.float(), part.tokens)
            yield part


def standing(collection: Collection, query_ids: Iterable[str]) -> frozenset[str]:
    """Queries that the corpus has as a document, as in ArguAna and Quora: under the same id, with the same text (with
    or without the document's title, whatever the white space), and not judged for this query.

    Such a document ranks first and takes a place from an answer.  BEIR passes over equal ids in every collection;
    here the text is compared too, since ids of two tables that merely count from 1 meet by chance.
    """
    found = set()
    for query in query_ids:
        document = collection.corpus.get(query)
        if document is None or document.text is None or query in collection.qrels.get(query, {}):
            continue
        bare = document.text.removeprefix(document.title or "")
        if " ".join(collection.queries[query].split()) in (" ".join(text.split()) for text in (document.text, bare)):
            found.add(query)
    return frozenset(found)


def _portions(corpus: Mapping[str, Document], batch_size: int) -> Iterator[list[str]]:
    """Document ids to encode together: texts by length, longest first, then images in their order."""
    texts = [id for id, document in corpus.items() if document.image is None]
    images = [id for id, document in corpus.items() if document.image is not None]
    texts.sort(key=lambda id: -len(corpus[id].text or ""))
    for ids, batches in ((texts, TEXT_BATCHES), (images, IMAGE_BATCHES)):
        size = batches * batch_size
        for begin in range(0, len(ids), size):
            yield ids[begin : begin + size]


Batches = Iterable[Any]


@contextmanager
def _bar(what: str, rows: int, batch_size: int, shown: bool) -> Iterator[Callable[[Batches], Batches] | None]:
    """One bar over several calls, on terminals only: a wrapper of the encoder's batches; None where none is wanted."""
    if not shown:
        yield None
        return
    with tqdm(total=math.ceil(rows / batch_size), desc=f"encoding {what}", leave=False, disable=None) as bar:

        def counted(batches: Batches) -> Batches:
            for batch in batches:
                yield batch
                bar.update()

        yield counted


@contextmanager
def clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Adds how long its block took."""
    begun = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begun
