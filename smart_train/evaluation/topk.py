"""Keep the top k documents of every query while the scores of a corpus are computed block by block; ties by hash."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from smart_train.evaluation.metrics import Ranking

Kept = tuple[Tensor, Tensor]
"""Scores [B, kept] and the documents' places in the corpus [B, kept], on the CPU."""


TIES = 4096  # documents that tie with the last place of a ranking and are kept; of more, those that come first do


class TopK:
    """The top documents so far of one block of queries, by one score.

    top: documents of a ranking; noise: scores nearer than this are equal, and ordered by ``tie_hash``
    identical_ids: ids of queries whose ranking leaves out the document of the same id
    query_ids, document_ids: of the block's rows, and of the columns; given both, memory is bounded by ``top`` and TIES

    What is kept follows from the scores alone: every document that reaches the score in the last place, less ``noise``.
    So parts of a corpus may be added in any order and on any rank.  Where more than TIES documents tie with the last
    place (a collapsed encoder scores all alike), those whose hash comes first are kept, which are what the ranking
    has, unless scores tie only by a chain of others.
    """

    def __init__(
        self,
        top: int,
        noise: float,
        identical_ids: Collection[str] = (),
        query_ids: Sequence[str] = (),
        document_ids: Sequence[str] = (),
    ) -> None:
        self.places, self.noise, self.identical_ids = top, noise, identical_ids
        self.query_ids, self.document_ids = query_ids, document_ids
        self.top = top + bool(identical_ids)  # one more, since one may be left out
        self.scores: Tensor | None = None  # [B, kept], best first
        self.columns: Tensor | None = None  # [B, kept], rows of the corpus

    def add(self, scores: Tensor, first: int) -> None:
        """Add the scores [B, n] of n documents, which are rows ``first`` to ``first + n`` of the corpus."""
        columns = torch.arange(first, first + scores.shape[1], device=scores.device).expand_as(scores)
        self._keep(scores, columns)

    def add_some(self, scores: Tensor, columns: Tensor) -> None:
        """Add the scores [B, n] of the documents that are rows ``columns`` [B, n] of the corpus."""
        self._keep(scores, columns)

    def kept(self, places: Tensor) -> Kept | None:
        """Return what another rank needs to merge; None if no document was added.

        places: [rows] int64, the place of each row in the corpus of all ranks
        """
        if self.scores is None or self.columns is None:
            return None
        return self.scores.cpu().contiguous(), places[self.columns.cpu()]

    def merged(self, parts: Iterable[Kept | None], document_ids: Sequence[str] = ()) -> TopK:
        """Return the top documents of all ranks, from what ``kept`` gave on each; document_ids: of all ranks."""
        merged = TopK(self.places, self.noise, self.identical_ids, self.query_ids, document_ids)
        for part in parts:
            if part is not None:
                merged._keep(*part)
        return merged

    def _keep(self, scores: Tensor, columns: Tensor) -> None:
        if self.scores is not None and self.columns is not None:
            scores, columns = torch.cat([self.scores, scores], 1), torch.cat([self.columns, columns], 1)
        if scores.shape[1] > self.top:
            # Documents that tie with the last place stay, or the block would decide and not the hash.
            last = scores.topk(self.top, dim=1).values[:, -1:]
            # Minus infinity (an excluded document) ties with itself, and is no reason to keep more.
            kept = max(self.top, int(((scores >= last - self.noise) & (scores > -torch.inf)).sum(1).max()))
            if kept > self.top + TIES and self.query_ids and self.document_ids:
                scores, kept = self._bounded(scores, columns, last)
            scores, order = scores.topk(kept, dim=1)
            columns = columns.gather(1, order)
        self.scores, self.columns = scores, columns

    def _bounded(self, scores: Tensor, columns: Tensor, last: Tensor) -> tuple[Tensor, int]:
        """Return the scores, minus infinity for ties that come after ``top`` others by hash, and how many are left."""
        scores = scores.clone()
        tied = (scores - last).abs() <= self.noise
        for row in (tied.sum(1) > TIES).nonzero().flatten().tolist():
            places = tied[row].nonzero().flatten()
            names = [self.document_ids[column] for column in columns[row, places].tolist()]
            query = self.query_ids[row]
            order = sorted(range(len(names)), key=lambda at: tie_hash(query, names[at]))
            scores[row, places[order[self.top :]]] = -torch.inf
        left = (scores >= last - self.noise) & (scores > -torch.inf)
        return scores, max(self.top, int(left.sum(1).max()))

    def rankings(self, query_ids: Sequence[str], document_ids: Sequence[str]) -> dict[str, Ranking]:
        """Return the top documents of each query of the block, best first."""
        if self.scores is None or self.columns is None:
            return {}
        scores, order = self.scores.sort(dim=1, descending=True)
        columns = self.columns.gather(1, order)
        # Another row of the block may have more ties, so that this one holds more documents than it needs; another
        # block or rank would have dropped them.
        last = scores[:, min(self.top, scores.shape[1]) - 1, None]
        counts = (scores >= last - self.noise).sum(1).tolist()
        ranked = {}
        for query, values, places, count in zip(query_ids, scores.tolist(), columns.tolist(), counts, strict=True):
            pairs = zip(places[:count], values[:count], strict=True)
            found = [(document_ids[place], value) for place, value in pairs]
            if query in self.identical_ids:
                found = [pair for pair in found if pair[0] != query]
            ranked[query] = order_ties(query, found, self.noise)[: self.places]
        return ranked


def order_ties(query: str, found: Ranking, noise: float) -> Ranking:
    """Order runs of scores that are each within ``noise`` of the one before by hash; the rest stays, best first."""
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
    """Return the hash that orders equal scores: blake2b of both ids, whatever the process and the position."""
    query = query_id.encode()
    return hashlib.blake2b(len(query).to_bytes(8, "little") + query + document_id.encode(), digest_size=8).digest()
