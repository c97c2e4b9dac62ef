"""An encoder's calls during an evaluation: timed, with a bar, and as many on every rank where ranks run together."""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from tqdm.auto import tqdm

from smart_train.config.schema import LateBlock
from smart_train.core.embeddings import Embeddings
from smart_train.core.errors import EvaluationError
from smart_train.distributed.process_group import ProcessGroup
from smart_train.evaluation.topk import SPARES, Document, Portion, Share, dealt, portions, run_rows

Batches = Iterable[Any]
Wrap = Callable[[Batches], Batches]
Opener = Callable[[], Any]


class Encoder(Protocol):
    late: LateBlock

    def encode_queries(self, contents: Sequence[Any], **options: Any) -> Any: ...

    def encode_documents(self, contents: Sequence[Any], **options: Any) -> Any: ...


class Forwards:
    """Calls an encoder; ``seconds`` has what it took: queries, documents."""

    def __init__(self, encoder: Encoder, group: ProcessGroup, batch_size: int, progress: bool) -> None:
        self.encoder, self.group, self.batch_size, self.progress = encoder, group, batch_size, progress
        self.seconds = {"queries": 0.0, "documents": 0.0}

    def queries(self, texts: list[str], wrap: Wrap | None, spares: Sequence[str]) -> Embeddings:
        with clock(self.seconds, "queries"):
            return self._run(self.encoder.encode_queries, texts, wrap, [text.__str__ for text in spares])

    def documents(self, contents: list[Any], wrap: Wrap | None, spares: Sequence[Opener]) -> Embeddings:
        """Of contents of one kind where ranks run together; tokens in float16."""
        with clock(self.seconds, "documents"):
            found = self._run(self.encoder.encode_documents, contents, wrap, spares, dtype=torch.float16)
        return Embeddings(found.pooled.float(), found.tokens)

    def _run(
        self,
        method: Callable[..., Any],
        contents: list[Any],
        wrap: Wrap | None,
        spares: Sequence[Opener],
        **options: Any,
    ) -> Any:
        """One call.  Where forwards are collectives, a call that fails before a forward (an image that the processor
        refuses, say) still makes its forwards: the others wait in them, and cannot be told before they are through.

        spares: what gives contents of the same kind, should none of these be encodable
        A RuntimeError is what torch raises within a forward (out of memory, a rank that is gone): there is no way back
        into step then, so it is raised here alone, and the others end with their launcher or their timeout.
        """
        if not self.group.lockstep:
            return method(contents, batch_size=self.batch_size, progress=wrap, **options)
        begun = 0

        def counted(batches: Batches) -> Batches:
            nonlocal begun
            for batch in wrap(batches) if wrap else batches:
                begun += 1
                yield batch

        with self.group.inside_collective():
            try:
                return method(contents, batch_size=self.batch_size, progress=counted, **options)
            except RuntimeError:
                raise
            except Exception as error:
                failed = error
            left = math.ceil(len(contents) / self.batch_size) - max(0, begun - 1)
            own = [functools.partial(contents.__getitem__, at) for at in range(len(contents))]
            if not _make_up(lambda content: method([content], batch_size=1, **options), [*own, *spares], left):
                raise failed
        raise failed

    @contextmanager
    def bar(self, what: str, rows: int) -> Iterator[Wrap | None]:
        """One bar over several calls, on terminals only: a wrapper of the encoder's batches; None without progress."""
        if not self.progress:
            yield None
            return
        total = math.ceil(rows / self.batch_size)
        with tqdm(total=total, desc=f"encoding {what}", leave=False, disable=None) as bar:

            def counted(batches: Batches) -> Batches:
                for batch in batches:
                    yield batch
                    bar.update()

            yield counted


def _make_up(run: Callable[[Any], Any], openers: Sequence[Opener], left: int) -> bool:
    """Runs so many forwards of a single row, of the first content that can be run; whether there was one."""
    for opened in openers:
        try:
            content = opened()
            run(content)
        except RuntimeError:
            raise
        except Exception:  # the error to raise is the one before
            continue
        for _ in range(left - 1):
            run(content)
        return True
    return False


@contextmanager
def clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Adds how long its block took."""
    begun = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begun


# Embeds a collection for evaluation: once, portion by portion, with its unanswered queries counted.

__all__ = ["Collection", "Document", "Encoded", "Encoder", "encode", "standing"]

logger = logging.getLogger(__name__)

TEXT_BATCHES = 16  # of text are a portion: 512 rows of 256 tokens of width 1024 are 0.3 GB in float16
IMAGE_BATCHES = 2  # decoded images are large: only these are in memory at a time


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
    share: which of all ranks' documents these are; None = all of them.  The queries are all of them on every rank
    """

    queries: Embeddings
    documents: Iterable[Embeddings]
    query_ids: list[str]
    document_ids: list[str]
    unanswered: list[str]  # queries that no document was judged relevant to: not encoded, in no average
    themselves: frozenset[str] = frozenset()  # queries that stand in the corpus, see ``standing``
    seconds: dict[str, float] = field(default_factory=dict)  # queries, documents: grows as they are encoded
    share: Share | None = None
    stored: int = 0  # documents of all ranks that a store has from before


def encode(
    encoder: Encoder,
    collection: Collection,
    *,
    batch_size: int = 32,
    progress: bool = False,
    keep: bool = True,
    group: ProcessGroup | None = None,
    wide: int = 1,
    skip: Set[str] = frozenset(),
) -> Encoded:
    """Embeds the documents and the queries that have a relevant one; images are decoded a few batches at a time.

    keep: True for a list of all documents; False for an iterator, for who needs each portion once
    group: the ranks to share the rows with; each encodes its part of either side once and gets all queries.  Every rank
        calls this with the same arguments; with an iterator, it goes on to ``evaluate_encoded``, where they meet again.
    wide: the encoder's tokens are so many times as wide as a layer's, so that a portion has so many times fewer rows
    skip: documents that are not encoded, since somebody has what came of them
    A query whose relevant documents the corpus lacks is encoded too: it counts with 0, as in BEIR, and is told.
    Raises EvaluationError where no query has a relevant document in the corpus, and where ranks hold other collections.
    What fails on one rank is raised on all (see ProcessGroup.propagate_failures).
    """
    corpus, group = collection.corpus, group or ProcessGroup.single()
    with group.propagate_failures():
        query_ids, unanswered, themselves = asked(collection, batch_size, group)
        forwards = Forwards(encoder, group, batch_size, progress and group.is_main)
        queries = embed_queries(forwards, [collection.queries[query] for query in query_ids])
        rows = (max(batch_size, batches * batch_size // wide) for batches in (TEXT_BATCHES, IMAGE_BATCHES))
        parts = list(portions({id: corpus[id] for id in corpus if id not in skip}, group, *rows))
        documents: Iterable[Embeddings] = _documents(forwards, corpus, parts)
        if keep:
            documents = list(documents)
            group.exchange()
    document_ids = [document for part in parts for document in part.ids]
    place = {document: at for at, document in enumerate(corpus)}
    share = Share(list(corpus), torch.tensor([place[document] for document in document_ids], dtype=torch.int64), group)
    return Encoded(queries, documents, query_ids, document_ids, unanswered, themselves, forwards.seconds, share)


def asked(collection: Collection, batch_size: int, group: ProcessGroup) -> tuple[list[str], list[str], frozenset[str]]:
    """(queries to encode, queries left out, those that stand in the corpus), told, and the same on all ranks."""
    query_ids, unanswered = answered(collection, told=group.is_main)
    themselves = standing(collection, query_ids)
    if themselves and group.is_main:
        what = "queries stand in the corpus themselves and are left out of their own ranking"
        logger.info("%d %s, such as %r", len(themselves), what, min(themselves))
    check_same(collection, query_ids, batch_size, group)
    return query_ids, unanswered, themselves


def answered(collection: Collection, told: bool) -> tuple[list[str], list[str]]:
    """(queries to encode, queries left out), with warnings where ``told``."""
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
        if ids and told:
            logger.warning("%d of %d queries %s, such as %r", len(ids), len(queries), what, ids[0])
    return query_ids, unanswered


def check_same(collection: Collection, query_ids: list[str], batch_size: int, group: ProcessGroup) -> None:
    """Raises EvaluationError on every rank where they would deal otherwise than rank 0: rows would be lost."""
    if group.world_size == 1:
        return
    digest = hashlib.blake2b(f"{batch_size}".encode(), digest_size=16)
    for query in query_ids:
        digest.update(f"query {len(query)} {query} {len(collection.queries[query])}".encode())
    for id, document in collection.corpus.items():
        digest.update(f"document {len(id)} {id} {len(document.text or '')} {document.image is None}".encode())
    found = group.exchange(digest.hexdigest())
    if other := [rank for rank, theirs in enumerate(found) if theirs != found[0]]:
        raise EvaluationError(
            f"rank {other[0]} evaluates another collection than rank 0, in another order or with another batch size; "
            "give every rank the same"
        )


def embed_queries(forwards: Forwards, texts: list[str], block: int = 1) -> Embeddings:
    """All queries' embeddings, in the order given; each rank encodes its share, longest first, ``block`` in turn."""
    group, own = forwards.group, None
    order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    mine = [texts[row] for row in dealt(order, group, block=block)]
    rows = run_rows(len(texts), group) if block == 1 else len(mine)
    if rows:
        with forwards.bar("queries", rows) as wrap:
            repeats = [texts[order[-1]]] * (rows - len(mine))
            own = _first(forwards.queries(mine + repeats, wrap, texts[:SPARES]), len(mine))
    found = group.exchange(own)
    placed = torch.tensor([row for rank in range(group.world_size) for row in dealt(order, group, rank, block)])
    return Embeddings.cat(part for part in found if part is not None).select(placed.argsort())


def _documents(forwards: Forwards, corpus: Mapping[str, Document], parts: list[Portion]) -> Iterator[Embeddings]:
    """Encodes a portion whenever one is asked for."""
    with forwards.bar("documents", sum(part.rows for part in parts)) as wrap:
        for part in parts:
            found = embed_portion(forwards, corpus, part, wrap)
            if part.ids:
                yield found
            del found  # before the next is made, or three are in memory


def embed_portion(forwards: Forwards, corpus: Mapping[str, Document], part: Portion, wrap: Wrap | None) -> Embeddings:
    with clock(forwards.seconds, "documents"):
        contents = [corpus[document].content() for document in part.ids]
        if len(contents) < part.rows:
            repeat = contents[-1] if contents else corpus[part.spares[0]].content()
            contents += [repeat] * (part.rows - len(contents))
    if forwards.group.lockstep:
        forwards.group.exchange()  # who could not open a page tells it before the others are in a forward
    spares = [corpus[document].content for document in part.spares]
    return _first(forwards.documents(contents, wrap, spares), len(part.ids))


def _first(found: Embeddings, rows: int) -> Embeddings:
    """Without the repeats behind them."""
    return found if len(found) == rows else found.split(rows)[0]


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


# Lines about how far long work has come and how long it still takes, where there is no bar: logs, files, other ranks.

EVERY = 30.0  # seconds between two lines


class ProgressLog:
    """Tells ``logger`` every ``every`` seconds; short work tells nothing.

    what: "documents encoded"; total: how many there are; done: how many were there before this run; mine: how many of
        the total this process does (None = all that are left)
    """

    def __init__(self, what: str, total: int, done: int = 0, every: float = EVERY) -> None:
        self.what, self.total, self.before, self.done, self.every = what, total, done, done, every
        self.begun = self.told = time.perf_counter()

    def add(self, count: int) -> None:
        self.done += count
        now = time.perf_counter()
        if now - self.told < self.every or self.done == self.before:
            return
        self.told = now
        left = (now - self.begun) / (self.done - self.before) * (self.total - self.done)
        logger.info("%s: %d of %d, about %s left", self.what, self.done, self.total, format_duration(left))


def format_duration(seconds: float) -> str:
    """40 s, 8 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
