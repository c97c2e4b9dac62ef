"""The best documents of every query so far, in one process or of all ranks together; ties by hash."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from smart_train.distributed.process_group import ProcessGroup
from smart_train.evaluation.metrics import Ranking

Kept = tuple[Tensor, Tensor]
"""Scores [B, kept] and the documents' places [B, kept], on the CPU."""


class Best:
    """The running best of one view for one block of queries.

    What is kept follows from the scores alone: all that reach the score in the last place, less ``noise``.  So parts
    of a corpus may go by in any order and on any rank.
    """

    def __init__(self, top: int, noise: float, themselves: Collection[str] = ()) -> None:
        self.places, self.noise, self.themselves = top, noise, themselves
        self.top = top + bool(themselves)  # one more, since one may be left out
        self.scores: Tensor | None = None  # [B, kept], best first
        self.columns: Tensor | None = None  # [B, kept], rows of the corpus

    def add(self, scores: Tensor, first: int) -> None:
        """Takes the scores [B, n] of the documents from row ``first`` on."""
        columns = torch.arange(first, first + scores.shape[1], device=scores.device).expand_as(scores)
        self._keep(scores, columns)

    def kept(self, places: Tensor) -> Kept | None:
        """What another rank needs; places: [rows] int64, of each row in the whole corpus.  None = no document."""
        if self.scores is None or self.columns is None:
            return None
        return self.scores.cpu().contiguous(), places[self.columns.cpu()]

    def joined(self, parts: Iterable[Kept | None]) -> Best:
        """The best of all ranks, of what ``kept`` gave on each; columns are places in the whole corpus then."""
        whole = Best(self.places, self.noise, self.themselves)
        for part in parts:
            if part is not None:
                whole._keep(*part)
        return whole

    def _keep(self, scores: Tensor, columns: Tensor) -> None:
        if self.scores is not None and self.columns is not None:
            scores, columns = torch.cat([self.scores, scores], 1), torch.cat([self.columns, columns], 1)
        if scores.shape[1] > self.top:
            # What ties with the last place stays too, or the block would decide and not the hash.
            last = scores.topk(self.top, dim=1).values[:, -1:]
            # Minus infinity (a document that must not be found) ties with itself, and is no reason to keep more.
            kept = max(self.top, int(((scores >= last - self.noise) & (scores > -torch.inf)).sum(1).max()))
            scores, order = scores.topk(kept, dim=1)
            columns = columns.gather(1, order)
        self.scores, self.columns = scores, columns

    def rankings(self, query_ids: Sequence[str], document_ids: Sequence[str]) -> dict[str, Ranking]:
        """The first ``top`` documents of each query of the block, best first."""
        if self.scores is None or self.columns is None:
            return {}
        scores, order = self.scores.sort(dim=1, descending=True)
        columns = self.columns.gather(1, order)
        # A row of the block may have had more ties than this one, which then holds more than it needs; those would
        # tie with what is needed, and not with what another block, or another rank, would have let go.
        last = scores[:, min(self.top, scores.shape[1]) - 1, None]
        counts = (scores >= last - self.noise).sum(1).tolist()
        ranked = {}
        for query, values, places, count in zip(query_ids, scores.tolist(), columns.tolist(), counts, strict=True):
            pairs = zip(places[:count], values[:count], strict=True)
            found = [(document_ids[place], value) for place, value in pairs]
            if query in self.themselves:
                found = [pair for pair in found if pair[0] != query]
            ranked[query] = order_ties(query, found, self.noise)[: self.places]
        return ranked


def order_ties(query: str, found: Ranking, noise: float) -> Ranking:
    """Runs of scores each within ``noise`` of the one before are ordered by hash; the rest stays, best first."""
    ordered: Ranking = []
    begin = 0
    for place in range(1, len(found) + 1):
        if place < len(found) and found[place - 1][1] - found[place][1] <= noise:
            continue
        run = found[begin:place]
        ordered += run if len(run) == 1 else sorted(run, key=lambda pair: tie_hash(query, pair[0]))
        begin = place
    return ordered


def tie_hash(query_id: str, document_id: str) -> bytes:
    """What orders equal scores: blake2b of the two ids, the same in every process and unrelated to any position."""
    query = query_id.encode()
    return hashlib.blake2b(len(query).to_bytes(8, "little") + query + document_id.encode(), digest_size=8).digest()


# Who encodes what, and whose ranking it is: a collection dealt to ranks, and their best documents joined.

SPARES = 8  # rows tried before a rank gives up staying in step


class Document(Protocol):
    @property
    def text(self) -> str | None: ...

    @property
    def title(self) -> str | None: ...

    @property
    def image(self) -> Any: ...

    def content(self) -> Any: ...


@dataclass
class Share:
    """One rank's documents among those of all.

    corpus: ids of all ranks' documents, in the same order on every rank
    places: [own documents] int64, of each in ``corpus``; None = all are this rank's, in that order
    """

    corpus: Sequence[str]
    places: Tensor | None = None
    group: ProcessGroup = field(default_factory=ProcessGroup.single)

    def joined(self, best: Mapping[str, Best]) -> dict[str, Best]:
        """The best of all ranks, by view, with places in ``corpus``; a collective where there are several."""
        places = torch.arange(len(self.corpus)) if self.places is None else self.places
        found = self.group.exchange({name: one.kept(places) for name, one in best.items()})
        return {name: one.joined(each[name] for each in found) for name, one in best.items()}


@dataclass(frozen=True)
class Portion:
    """Documents to encode together.

    ids: this rank's own; none where only the others have some left
    rows: how many to run: above len(ids) where ranks run as many forwards each, and repeats make up for rows
    spares: a few of the same kind, for a rank that has no row to repeat, or none that can be encoded
    """

    ids: list[str]
    rows: int
    spares: list[str]


def portions(corpus: Mapping[str, Document], group: ProcessGroup, text_rows: int, image_rows: int) -> Iterator[Portion]:
    """This rank's documents: texts by length, longest first, then images in their order.

    text_rows, image_rows: most rows of a portion.  Where ranks run together, all have as many portions of as many rows,
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
        own, rows = dealt(ids, group), run_rows(len(ids), group)
        for begin in range(0, rows, size):
            yield Portion(own[begin : begin + size], min(size, rows - begin), ids[-SPARES:])


def dealt(rows: Sequence[Any], group: ProcessGroup, rank: int | None = None, block: int = 1) -> list[Any]:
    """What one rank gets of some rows (None = this one): every W-th ``block`` of rows."""
    first = (group.rank if rank is None else rank) * block
    starts = range(first, len(rows), group.world_size * block)
    return [row for start in starts for row in rows[start : start + block]]


def run_rows(rows: int, group: ProcessGroup) -> int:
    """How many of so many rows this rank runs: its own, or where ranks run together, as many as any has."""
    if group.lockstep:
        return math.ceil(rows / group.world_size)
    return len(range(group.rank, rows, group.world_size))
