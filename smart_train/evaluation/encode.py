"""Encode the queries and documents of a collection for an evaluation, in one process or shared by several.

``encode`` deals documents in turn to the ranks and serves training, also with sharded weights; ``encode_shards`` deals
whole shards, which a vector store can keep, and serves the command line.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm.auto import tqdm

from smart_train.core.embeddings import Embeddings
from smart_train.core.errors import EvaluationError
from smart_train.core.progress_log import ProgressLog, timed
from smart_train.distributed.process_group import ProcessGroup
from smart_train.evaluation.protocols import Collection, Document, Encoder
from smart_train.evaluation.sharding import (
    SPARES,
    Portion,
    ShardPlan,
    Share,
    plan_shards,
    portions,
    rows_of_rank,
    rows_to_run,
)
from smart_train.evaluation.vector_store import VectorStore, document_key

logger = logging.getLogger(__name__)

TEXT_BATCHES = 16  # of text are a portion: 512 rows of 256 tokens of width 1024 are 0.3 GB in float16
IMAGE_BATCHES = 2  # decoded images are large: only these are in memory at a time

Batches = Iterable[Any]
Wrap = Callable[[Batches], Batches]
Opener = Callable[[], Any]


@dataclass
class Encoded:
    """A collection's embeddings: queries B rows, documents N rows in portions, ids in the rows' order.

    documents: tokens in float16; a list, or an iterator that encodes each portion when it is requested, once
    unanswered: queries without a document judged relevant: not encoded, and in no average
    identical_ids: queries that are also documents of the corpus, see ``queries_in_corpus``
    seconds: of encoding queries and documents; grows while documents are encoded
    share: which of all ranks' documents these are; None = all of them. Every rank has all queries
    stored: documents of all ranks whose vectors a store had before
    """

    queries: Embeddings
    documents: Iterable[Embeddings]
    query_ids: list[str]
    document_ids: list[str]
    unanswered: list[str]
    identical_ids: frozenset[str] = frozenset()
    seconds: dict[str, float] = field(default_factory=dict)
    share: Share | None = None
    stored: int = 0


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
    """Encode the documents of a collection and the queries that have a relevant one.

    keep: True for a list of all documents; False for an iterator that encodes a portion when it is requested
    group: the ranks that share the work. Each encodes its share of the documents and gets all queries. Every rank calls
        this with the same arguments, and with an iterator goes on to ``evaluate_encoded``, where they exchange results.
    wide: the encoder's tokens are this many times as wide as a layer's, so portions have this many times fewer rows
    skip: documents that are not encoded

    Images are decoded a few batches at a time. A query whose relevant documents are not in the corpus is encoded, too:
    it counts as 0, as in BEIR, with a warning.

    Raises EvaluationError if no query has a relevant document in the corpus, or ranks hold different collections. What
    fails on one rank is raised on all (see ProcessGroup.propagate_failures).
    """
    corpus, group = collection.corpus, group or ProcessGroup.single()
    with group.propagate_failures():
        query_ids, unanswered, identical_ids = select_queries(collection, batch_size, group)
        calls = EncoderCalls(encoder, group, batch_size, progress and group.is_main)
        queries = _encode_queries(calls, [collection.queries[query] for query in query_ids])
        rows = (max(batch_size, batches * batch_size // wide) for batches in (TEXT_BATCHES, IMAGE_BATCHES))
        parts = list(portions({id: corpus[id] for id in corpus if id not in skip}, group, *rows))
        documents: Iterable[Embeddings] = _portions_of_documents(calls, corpus, parts)
        if keep:
            documents = list(documents)
            group.exchange()
    document_ids = [document for part in parts for document in part.ids]
    share = _share(corpus, document_ids, group)
    return Encoded(queries, documents, query_ids, document_ids, unanswered, identical_ids, calls.seconds, share)


def encode_shards(
    encoder: Encoder,
    collection: Collection,
    *,
    batch_size: int = 32,
    progress: bool = False,
    group: ProcessGroup | None = None,
    store: VectorStore | None = None,
) -> Encoded:
    """Encode a collection shard by shard: the same vectors in any number of processes, optionally kept in a store.

    As ``encode`` with an iterator of documents, which reads or encodes a shard when it is requested.

    group: as in ``encode``; ranks take whole shards and whole batches of queries, and each has all weights
    store: where documents' vectors are read from, and written to if they are missing
    Raises what ``encode`` raises, and EvaluationError for a store of another encoder, or one that cannot be read or
    written.
    """
    corpus, group = collection.corpus, group or ProcessGroup.single()
    if group.lockstep:
        raise ValueError("ranks that share the weights must run the same number of forwards; use encode instead")
    with group.propagate_failures():
        query_ids, unanswered, identical_ids = select_queries(collection, batch_size, group)
        calls = EncoderCalls(encoder, group, batch_size, progress and group.is_main)
        shards = plan_shards(corpus, group, store)  # before anything is encoded: the store may be refused
        stored = sum(group.exchange(sum(len(shard.ids) for shard in shards if shard.stored is not None)))
        if stored and group.is_main:
            left = len(corpus) - stored
            logger.info("%d of %d documents are stored, %d are left to encode", stored, len(corpus), left)
        queries = _encode_queries(calls, [collection.queries[query] for query in query_ids], batch_size)
        documents = _shards_of_documents(calls, corpus, shards, store)
    document_ids = [document for shard in shards for document in shard.ids]
    share = _share(corpus, document_ids, group)
    return Encoded(queries, documents, query_ids, document_ids, unanswered, identical_ids, calls.seconds, share, stored)


def _share(corpus: Mapping[str, Document], document_ids: list[str], group: ProcessGroup) -> Share:
    place = {document: at for at, document in enumerate(corpus)}
    return Share(list(corpus), torch.tensor([place[document] for document in document_ids], dtype=torch.int64), group)


# --- which queries are evaluated


def select_queries(
    collection: Collection, batch_size: int, group: ProcessGroup
) -> tuple[list[str], list[str], frozenset[str]]:
    """Return (queries to encode, queries without a relevant document, queries that are also documents); log both.

    Raises EvaluationError on every rank if no query has a relevant document in the corpus, or the ranks differ.
    """
    query_ids, unanswered = _with_relevant_documents(collection, log=group.is_main)
    identical_ids = queries_in_corpus(collection, query_ids)
    if identical_ids and group.is_main:
        logger.info(
            "%d queries are also documents of the corpus and are left out of their own ranking, such as %r",
            len(identical_ids),
            min(identical_ids),
        )
    _check_same_on_all_ranks(collection, query_ids, batch_size, group)
    return query_ids, unanswered, identical_ids


def _with_relevant_documents(collection: Collection, log: bool) -> tuple[list[str], list[str]]:
    """Return (queries with a document judged relevant, queries without)."""
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
            f"none of the {len(queries)} queries has a relevant document in the corpus of {len(corpus)} documents; "
            "check that qrels and corpus use the same ids"
        )
    for ids, what in (
        (unanswered, "have no document judged relevant and are left out"),
        (lost, "count with 0, since none of their relevant documents is in the corpus"),
    ):
        if ids and log:
            logger.warning("%d of %d queries %s, such as %r", len(ids), len(queries), what, ids[0])
    return query_ids, unanswered


def queries_in_corpus(collection: Collection, query_ids: Iterable[str]) -> frozenset[str]:
    """Return the queries that are also documents of the corpus, as in ArguAna and Quora: with the same id, the same
    text (with or without the document's title, whatever the white space), and not judged for this query.

    Such a document ranks first and takes a place from a relevant one. BEIR ignores identical ids in every collection;
    here the text is compared as well, since ids of two tables that count from 1 are equal by chance.
    """
    found = set()
    for query in query_ids:
        document = collection.corpus.get(query)
        if document is None or document.text is None or query in collection.qrels.get(query, {}):
            continue
        untitled = document.text.removeprefix(document.title or "")
        texts = (" ".join(text.split()) for text in (document.text, untitled))
        if " ".join(collection.queries[query].split()) in texts:
            found.add(query)
    return frozenset(found)


def _check_same_on_all_ranks(
    collection: Collection, query_ids: list[str], batch_size: int, group: ProcessGroup
) -> None:
    """Raise EvaluationError on every rank if one would divide the rows in another way than rank 0."""
    if group.world_size == 1:
        return
    digest = hashlib.blake2b(f"{batch_size}".encode(), digest_size=16)
    for query in query_ids:
        digest.update(f"query {len(query)} {query} {len(collection.queries[query])}".encode())
    for id, document in collection.corpus.items():
        digest.update(f"document {len(id)} {id} {len(document.text or '')} {document.image is None}".encode())
    digests = group.exchange(digest.hexdigest())
    if other := [rank for rank, theirs in enumerate(digests) if theirs != digests[0]]:
        raise EvaluationError(
            f"rank {other[0]} evaluates another collection than rank 0, in another order or with another batch size; "
            "give every rank the same"
        )


# --- calls of the encoder


class EncoderCalls:
    """Calls an encoder in batches, with a progress bar; ``seconds`` has the time taken for queries and documents.

    Where forwards are collectives (sharded weights), every rank runs the same number of them, even if its rows fail.
    """

    def __init__(self, encoder: Encoder, group: ProcessGroup, batch_size: int, progress: bool) -> None:
        self.encoder, self.group, self.batch_size, self.progress = encoder, group, batch_size, progress
        self.seconds = {"queries": 0.0, "documents": 0.0}

    def queries(self, texts: list[str], wrap: Wrap | None, spares: Sequence[str]) -> Embeddings:
        with timed(self.seconds, "queries"):
            return self._run(self.encoder.encode_queries, texts, wrap, [text.__str__ for text in spares])

    def documents(self, contents: list[Any], wrap: Wrap | None, spares: Sequence[Opener]) -> Embeddings:
        """Encode contents of one kind (in lockstep); tokens in float16."""
        with timed(self.seconds, "documents"):
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
        """Make one call. In lockstep, a call that fails before a forward (say, for an image that the processor refuses)
        still makes its forwards: the other ranks wait in them, and can get the error only afterwards.

        spares: functions that return contents of the same kind, in case none of these can be encoded
        A RuntimeError is what torch raises within a forward (out of memory, a lost rank). There is no way back into
        step then: it is raised on this rank alone, and the others end with their launcher or their timeout.
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
        """Show one bar over several calls, on terminals only; yield a wrapper of the batches, or None without a bar."""
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
    """Run ``left`` forwards of a single row, of the first content that can be encoded; return whether there was one."""
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


def _encode_queries(calls: EncoderCalls, texts: list[str], block: int = 1) -> Embeddings:
    """Return all queries' embeddings in order; each rank encodes its share, longest first, ``block`` in turn."""
    group, own = calls.group, None
    order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    mine = [texts[row] for row in rows_of_rank(order, group, block=block)]
    rows = rows_to_run(len(texts), group) if block == 1 else len(mine)
    if rows:
        with calls.bar("queries", rows) as wrap:
            repeats = [texts[order[-1]]] * (rows - len(mine))
            own = _first_rows(calls.queries(mine + repeats, wrap, texts[:SPARES]), len(mine))
    parts = group.exchange(own)
    placed = torch.tensor([row for rank in range(group.world_size) for row in rows_of_rank(order, group, rank, block)])
    return Embeddings.cat(part for part in parts if part is not None).select(placed.argsort())


def _portions_of_documents(
    calls: EncoderCalls, corpus: Mapping[str, Document], parts: list[Portion]
) -> Iterator[Embeddings]:
    """Encode a portion whenever one is requested."""
    with calls.bar("documents", sum(part.rows for part in parts)) as wrap:
        for part in parts:
            found = _encode_portion(calls, corpus, part, wrap)
            if part.ids:
                yield found
            del found  # before the next is made, or three are in memory


def _encode_portion(
    calls: EncoderCalls, corpus: Mapping[str, Document], part: Portion, wrap: Wrap | None
) -> Embeddings:
    with timed(calls.seconds, "documents"):
        contents = [corpus[document].content() for document in part.ids]
        if len(contents) < part.rows:
            repeat = contents[-1] if contents else corpus[part.spares[0]].content()
            contents += [repeat] * (part.rows - len(contents))
    if calls.group.lockstep:
        calls.group.exchange()  # a rank that cannot open a page reports it before the others are in a forward
    spares = [corpus[document].content for document in part.spares]
    return _first_rows(calls.documents(contents, wrap, spares), len(part.ids))


def _first_rows(found: Embeddings, rows: int) -> Embeddings:
    """Drop the repeats at the end."""
    return found if len(found) == rows else found.split(rows)[0]


def _shards_of_documents(
    calls: EncoderCalls, corpus: Mapping[str, Document], shards: list[ShardPlan], store: VectorStore | None
) -> Iterator[Embeddings]:
    """Read a shard, or encode and store it, whenever one is requested."""
    here = sum(len(shard.ids) for shard in shards)
    left = sum(len(shard.ids) for shard in shards if shard.stored is None)
    log = ProgressLog("documents encoded", here, here - left)
    with calls.bar("documents", left) as wrap:
        for shard in shards:
            if shard.stored is not None and store is not None:
                rows = store.read(shard.stored)
                yield rows if shard.is_whole else rows.select(list(shard.rows))
                continue
            begun = time.perf_counter()
            found = _encode_shard(calls, corpus, shard.ids, wrap)
            left -= len(shard.ids)
            if store is not None:
                keys = [document_key(id, corpus[id]) for id in shard.ids]
                with timed(calls.seconds, "documents"):  # else it would count as scoring
                    # Other ranks have as many left, and most often the same disk.
                    store.write(keys, found, time.perf_counter() - begun, left * calls.group.world_size)
            if wrap is None and calls.group.is_main:
                log.add(len(shard.ids))
            yield found
            del found  # before the next is made, or three are in memory


def _encode_shard(calls: EncoderCalls, corpus: Mapping[str, Document], ids: list[str], wrap: Wrap | None) -> Embeddings:
    """Encode a shard's rows in its order; as few pages as in a portion are decoded at a time."""
    images = corpus[ids[0]].image is not None
    step = IMAGE_BATCHES * calls.batch_size if images else len(ids)
    some = [ids[at : at + step] for at in range(0, len(ids), step)]
    found = [_encode_portion(calls, corpus, Portion(rows, len(rows), []), wrap) for rows in some]
    return found[0] if len(found) == 1 else Embeddings.cat(found)
