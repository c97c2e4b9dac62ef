"""Count histograms of the scores of relevant and other query-document pairs while a corpus is ranked.

Bins are fixed beforehand, so memory is the bins and the relevant pairs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from smart_train.config.schema import HybridBlock
from smart_train.evaluation.encode import Encoded
from smart_train.evaluation.metrics import Ranking
from smart_train.evaluation.scoring import MODES, Tile, view
from smart_train.evaluation.sharding import Share

BINS = 400
OVER = 1.001  # a cosine may exceed 1 by a rounding


@dataclass
class ScoreHistogram:
    """The scores of one mode.

    low, high: ends of the bins; others: [BINS] int64, scores of pairs that are not relevant in each bin
    relevant: the scores of relevant pairs whose document is in the corpus
    """

    low: float
    high: float
    others: Tensor
    relevant: Tensor

    def separation(self) -> float | None:
        """Return the probability that a relevant pair scores above one that is not, over all queries: the area under
        the ROC curve, where pairs of one bin count half. None if there are no such pairs.

        It is summed in integers, so that the order of the scores, which a store or several ranks change, does not
        matter."""
        total = int(self.others.sum())
        if not total or not len(self.relevant):
            return None
        twice_below = 2 * self.others.cumsum(0) - self.others
        width = (self.high - self.low) / len(self.others)
        bins = ((self.relevant.double() - self.low) / width).long().clamp(0, len(self.others) - 1)
        return int(twice_below[bins].sum()) / (2 * total * len(self.relevant))


@dataclass
class ScoreObserver:
    """Collects rankings and score histograms of an evaluation: pass it to ``evaluate_encoded``.

    top: documents of a ranking to keep at least
    count: whether to make histograms. Every score must be computed for them: a CPU then ranks at 0.7 of the speed that
        it has with the bfloat16 prefilter. False leaves ``histograms`` empty
    rankings: mode -> query id -> documents, best first; histograms: mode -> ScoreHistogram
    seconds: time spent here, on this rank
    """

    qrels: Mapping[str, Mapping[str, int]]
    hybrid: HybridBlock
    top: int = 100
    count: bool = True
    rankings: dict[str, dict[str, Ranking]] = field(default_factory=dict)
    histograms: dict[str, ScoreHistogram] = field(default_factory=dict)
    seconds: float = 0.0

    def watch(self, tiles: Iterable[Tile], encoded: Encoded) -> Iterator[Tile]:
        """Yield the tiles, and count their scores."""
        self._start(encoded)
        for rows, columns, pooled, late in tiles:
            begun = time.perf_counter()
            self._count(rows, columns, pooled, late)
            self.seconds += time.perf_counter() - begun
            yield rows, columns, pooled, late

    def join(self, share: Share) -> None:
        """Make the histograms of all ranks' scores; every rank must call it."""
        if not self.count:
            return
        found = share.group.exchange((self._bins, self._scores))
        for name in MODES:
            low, high = self._ends[name]
            relevant = torch.cat([scores[name] for _, scores in found])
            inside = _binned(relevant, low, high)  # counted with all others before
            others = torch.stack([bins[name] for bins, _ in found]).sum(0) - inside
            self.histograms[name] = ScoreHistogram(low, high, others, relevant)

    def _start(self, encoded: Encoded) -> None:
        row = {document: place for place, document in enumerate(encoded.document_ids)}
        pairs = [
            (row[document], at)
            for at, query in enumerate(encoded.query_ids)
            for document, grade in self.qrels.get(query, {}).items()
            if grade > 0 and document in row
        ]
        found = torch.tensor(sorted(pairs), dtype=torch.int64).view(-1, 2)
        self._columns, self._rows = found[:, 0].contiguous(), found[:, 1].contiguous()
        self._views = {name: view(name, self.hybrid).score for name in MODES}
        self._ends = {name: self._range(name) for name in MODES}
        self._bins = {name: torch.zeros(BINS, dtype=torch.int64) for name in MODES}
        self._scores = {name: torch.full((len(found),), float("nan")) for name in MODES}

    def _range(self, name: str) -> tuple[float, float]:
        """Return the least and the greatest value of a score that is linear in two cosines."""
        ends = torch.tensor([-OVER, OVER])
        corners = self._views[name](ends.repeat(2).view(2, 2), ends.repeat_interleave(2).view(2, 2))
        return float(corners.min()), float(corners.max())

    def _count(self, rows: slice, columns: slice, pooled: Tensor, late: Tensor) -> None:
        begin, end = torch.searchsorted(self._columns, torch.tensor([columns.start, columns.stop])).tolist()
        row = self._rows[begin:end]
        here = ((row >= rows.start) & (row < rows.stop)).nonzero().squeeze(1) + begin
        at = (self._rows[here] - rows.start).to(pooled.device), (self._columns[here] - columns.start).to(pooled.device)
        for name, score in self._views.items():
            scores = score(pooled, late)
            self._bins[name] += _binned(scores, *self._ends[name])
            self._scores[name][here] = scores[at].to(self._scores[name])


def _binned(scores: Tensor, low: float, high: float) -> Tensor:
    """Return counts [BINS] int64 on the CPU; exact for up to 16 million scores at a time."""
    return torch.histc(scores.float(), BINS, low, high).to(torch.int64).cpu()
