"""Embeds a collection shard by shard, for a command: the same vectors in however many processes, kept in a store.

Knows: an encoder's two methods, a collection's three tables, a plan, a store.  Does not know: scores, rankings.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping

import torch

from smart_train.embeddings import Embeddings
from smart_train.evaluation.encoding import (
    IMAGE_BATCHES,
    Collection,
    Encoded,
    Encoder,
    asked,
    embed_portion,
    embed_queries,
)
from smart_train.evaluation.forwards import Forwards, Wrap, clock
from smart_train.evaluation.pace import Pace
from smart_train.evaluation.peers import Meetings, Peers
from smart_train.evaluation.shards import Part, key, plan
from smart_train.evaluation.shares import Document, Portion, Share
from smart_train.evaluation.store import Store

logger = logging.getLogger(__name__)


def encode_shards(
    encoder: Encoder,
    collection: Collection,
    *,
    batch_size: int = 32,
    progress: bool = False,
    peers: Peers | None = None,
    store: Store | None = None,
) -> Encoded:
    """As ``encode`` without keeping documents in memory; the iterator encodes a shard when it is asked for one.

    peers: as in ``encode``; ranks take whole shards and whole batches of queries (see shards.py), and forwards must be
        each rank's own (not ``together``)
    store: where documents' vectors are read from, and written to where they are missing
    Raises as ``encode``, and EvaluationError for a store of another encoder, or one that cannot be read or written.
    """
    corpus, meetings = collection.corpus, Meetings(peers)
    if meetings.together:
        raise ValueError("ranks that share the weights run as many forwards each, and shards are dealt whole")
    with meetings.telling():
        query_ids, unanswered, themselves = asked(collection, batch_size, meetings)
        forwards = Forwards(encoder, meetings, batch_size, progress and meetings.first)
        parts = plan(corpus, meetings, store)  # before anything is encoded: it may be refused
        stored = sum(meetings.meet(sum(len(part.ids) for part in parts if part.stored is not None)))
        if stored and meetings.first:
            logger.info(
                "%d of %d documents are stored, %d are left to encode", stored, len(corpus), len(corpus) - stored
            )
        queries = embed_queries(forwards, [collection.queries[query] for query in query_ids], batch_size)
        documents = _documents(forwards, corpus, parts, store)
    document_ids = [document for part in parts for document in part.ids]
    place = {document: at for at, document in enumerate(corpus)}
    places = torch.tensor([place[document] for document in document_ids], dtype=torch.int64)
    share = Share(list(corpus), places, meetings)
    return Encoded(queries, documents, query_ids, document_ids, unanswered, themselves, forwards.seconds, share, stored)


def _documents(
    forwards: Forwards, corpus: Mapping[str, Document], parts: list[Part], store: Store | None
) -> Iterator[Embeddings]:
    """Reads a shard, or encodes and stores it, whenever one is asked for."""
    here = sum(len(part.ids) for part in parts)
    left = sum(len(part.ids) for part in parts if part.stored is None)
    pace = Pace("documents encoded", here, here - left)
    with forwards.bar("documents", left) as wrap:
        for part in parts:
            if part.stored is not None and store is not None:
                rows = store.read(part.stored)
                yield rows if part.whole else rows.select(list(part.rows))
                continue
            begun = time.perf_counter()
            found = _encoded(forwards, corpus, part.ids, wrap)
            left -= len(part.ids)
            if store is not None:
                keys = [key(id, corpus[id]) for id in part.ids]
                with clock(forwards.seconds, "documents"):  # else it would count as scoring
                    # Other ranks have as many left, and most often the same disk.
                    store.write(keys, found, time.perf_counter() - begun, left * forwards.meetings.world)
            if wrap is None and forwards.meetings.first:
                pace.add(len(part.ids))
            yield found
            del found  # before the next is made, or three are in memory


def _encoded(forwards: Forwards, corpus: Mapping[str, Document], ids: list[str], wrap: Wrap | None) -> Embeddings:
    """A shard's rows in its order; of pages so few are decoded at a time as in a portion."""
    images = corpus[ids[0]].image is not None
    step = IMAGE_BATCHES * forwards.batch_size if images else len(ids)
    some = [ids[at : at + step] for at in range(0, len(ids), step)]
    found = [embed_portion(forwards, corpus, Portion(rows, len(rows), []), wrap) for rows in some]
    return found[0] if len(found) == 1 else Embeddings.cat(found)
