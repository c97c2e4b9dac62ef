"""Divide a corpus among ranks, and merge their top documents.

There are two ways. ``portions`` deals single documents in turn, for ranks that may share the weights of one model.
``plan_shards`` deals whole shards, which do not depend on the number of processes, so that a store can keep them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from smart_train.distributed.process_group import ProcessGroup
from smart_train.evaluation.protocols import Document
from smart_train.evaluation.topk import TopK
from smart_train.evaluation.vector_store import Shard, VectorStore, document_key

SPARES = 8  # rows tried before a rank gives up staying in step
TEXT_ROWS = 128  # texts of a shard, in whole batches of any usual size
TEXT_CHARACTERS = 1 << 20  # of a shard of long texts: about 250,000 tokens, 2 GB at a width of 4096 in float16
IMAGE_ROWS = 64  # pages of a shard: 0.2 GB at 750 tokens of width 2048


@dataclass
class Share:
    """One rank's share of the documents.

    corpus: ids of all ranks' documents, in the same order on every rank
    places: [own documents] int64, of each in ``corpus``; None = all are this rank's, in that order
    """

    corpus: Sequence[str]
    places: Tensor | None = None
    group: ProcessGroup = field(default_factory=ProcessGroup.single)

    @cached_property
    def own_places(self) -> Tensor:
        return torch.arange(len(self.corpus)) if self.places is None else self.places

    def merged(self, best: Mapping[str, TopK]) -> dict[str, TopK]:
        """Return the top documents of all ranks, by view, as places in ``corpus``; every rank must call it."""
        found = self.group.exchange({name: one.kept(self.own_places) for name, one in best.items()})
        return {name: one.merged((each[name] for each in found), self.corpus) for name, one in best.items()}


@dataclass(frozen=True)
class Portion:
    """Documents to encode together.

    ids: this rank's documents; empty if only other ranks have some left
    rows: how many to encode; more than len(ids) if ranks in lockstep run the same number, and repeats fill the rest
    spares: a few documents of the same kind, for a rank that has none to repeat, or none that can be encoded
    """

    ids: list[str]
    rows: int
    spares: list[str]


def portions(corpus: Mapping[str, Document], group: ProcessGroup, text_rows: int, image_rows: int) -> Iterator[Portion]:
    """Yield this rank's documents in portions: texts by length, longest first, then images in their order.

    text_rows, image_rows: most rows of a portion. Ranks in lockstep have the same number of portions of the same sizes,
    and images with a text come after those without: a batch of both kinds would be two forwards.
    """
    kinds: dict[tuple[bool, bool], list[str]] = {}
    for id, document in corpus.items():
        image = document.image is not None
        kinds.setdefault((image, image and group.lockstep and document.text is not None), []).append(id)
    for (image, _), ids in sorted(kinds.items()):
        if not image:
            ids.sort(key=lambda id: -len(corpus[id].text or ""))
        size = image_rows if image else text_rows
        own, rows = rows_of_rank(ids, group), rows_to_run(len(ids), group)
        for begin in range(0, rows, size):
            yield Portion(own[begin : begin + size], min(size, rows - begin), ids[-SPARES:])


def rows_of_rank(rows: Sequence[Any], group: ProcessGroup, rank: int | None = None, block: int = 1) -> list[Any]:
    """Return the rows of one rank (None = this one): every W-th ``block`` of rows."""
    first = (group.rank if rank is None else rank) * block
    starts = range(first, len(rows), group.world_size * block)
    return [row for start in starts for row in rows[start : start + block]]


def rows_to_run(rows: int, group: ProcessGroup) -> int:
    """Return how many of ``rows`` rows this rank encodes: its own, or in lockstep as many as any rank has."""
    if group.lockstep:
        return math.ceil(rows / group.world_size)
    return len(range(group.rank, rows, group.world_size))


# --- shards


@dataclass(frozen=True)
class ShardPlan:
    """Documents that are encoded, or read from the store, together.

    stored: name of the shard that has them, and ``rows`` where in it they are; None = to be encoded
    """

    ids: list[str]
    stored: str | None = None
    rows: tuple[int, ...] = ()
    is_whole: bool = True  # all of the stored shard's rows, in order


def plan_shards(
    corpus: Mapping[str, Document], group: ProcessGroup, store: VectorStore | None = None
) -> list[ShardPlan]:
    """Return this rank's shards, those that the store has first; every rank must call it.

    Raises what ``VectorStore.open`` raises, on every rank.
    """
    stored: list[ShardPlan] = []
    left = dict.fromkeys(corpus)
    if store is not None:
        known = {document_key(id, document): id for id, document in corpus.items()}
        # One rank looks: a shard that another one has just written must not be there for some ranks only.
        for shard in _listed(store, group):
            found = [(row, known[k]) for row, k in enumerate(shard.keys) if k in known and known[k] in left]
            if found:
                rows, ids = zip(*found, strict=True)
                stored.append(ShardPlan(list(ids), shard.name, rows, rows == tuple(range(len(shard.keys)))))
                for id in ids:
                    del left[id]
    parts = stored[group.rank :: group.world_size]
    return parts + [ShardPlan(ids) for ids in _cut(corpus, list(left))[group.rank :: group.world_size]]


def _listed(store: VectorStore, group: ProcessGroup) -> list[Shard]:
    found: list[Shard] | None = None
    if group.is_main:
        store.open()
        found = store.shards()
    listed = group.exchange(found)[0]
    if not group.is_main:
        store.open(first=False)
    return list(listed)


def _cut(corpus: Mapping[str, Document], ids: Sequence[str]) -> list[list[str]]:
    """Cut documents into shards: texts by length, longest first; then images in their order."""
    texts = sorted((id for id in ids if corpus[id].image is None), key=lambda id: -len(corpus[id].text or ""))
    images = [id for id in ids if corpus[id].image is not None]
    shards = []
    at = 0
    while at < len(texts):
        fit = max(1, TEXT_CHARACTERS // max(1, len(corpus[texts[at]].text or "")))
        rows = min(TEXT_ROWS, 1 << (fit.bit_length() - 1))  # a power of two: whole batches of usual sizes
        shards.append(texts[at : at + rows])
        at += rows
    return shards + [images[at : at + IMAGE_ROWS] for at in range(0, len(images), IMAGE_ROWS)]
