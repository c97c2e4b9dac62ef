"""The best documents of every query so far, in one process or of all ranks together; ties by hash.

Knows: scores, places of documents, ids.  Does not know: embeddings, encoders, where scores come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

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
