"""The best documents of every query so far, and the scores of named pairs, as tiles of a corpus go by.

Knows: tiles of scores.  Does not know: embeddings, encoders, why a pair is named.

Memory is queries x top and the named pairs, whatever the corpus.  What was gathered can be written down between two
portions and gone on with in another process: the same tiles give the same ranking.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from smart_train.evaluation.metrics import EvaluationError, Ranking
from smart_train.evaluation.ranking import Best


class Candidates:
    """The first ``top`` documents of every query but those that a named pair keeps out, and the named pairs' scores.

    pairs: [E, 2] int64, (query row, document row), in any order
    noise: scores nearer than this are equal and ordered by a hash of the ids (see ranking.py)
    """

    def __init__(self, pairs: Tensor, top: int, noise: float) -> None:
        self.top, self.noise = top, noise
        self.order = pairs[:, 1].argsort(stable=True)
        self.rows, self.columns = pairs[self.order].unbind(1)
        self.columns = self.columns.contiguous()
        self.found = torch.full((len(pairs),), float("nan"))
        self.best: dict[tuple[int, int], Best] = {}

    def add(self, rows: slice, columns: slice, scores: Tensor) -> None:
        """Takes the scores [rows, columns] of one tile, and overwrites those of named pairs in it."""
        begin, end = torch.searchsorted(self.columns, torch.tensor([columns.start, columns.stop])).tolist()
        row = self.rows[begin:end]
        here = ((row >= rows.start) & (row < rows.stop)).nonzero().squeeze(1) + begin
        at = (self.rows[here] - rows.start).to(scores.device), (self.columns[here] - columns.start).to(scores.device)
        self.found[here] = scores[at].to(self.found)
        scores[at] = float("-inf")
        best = self.best.setdefault((rows.start, rows.stop), Best(self.top, self.noise))
        if best.scores is not None and best.columns is not None and best.scores.device != scores.device:
            best.scores, best.columns = best.scores.to(scores.device), best.columns.to(scores.device)
        best.add(scores, columns.start)

    def pair_scores(self) -> Tensor:
        """[E] float32, in the order in which the pairs were given; NaN where the document did not go by."""
        scores = torch.empty_like(self.found)
        scores[self.order] = self.found
        return scores

    def ranked(self, query_ids: Sequence[str], document_ids: Sequence[str]) -> Iterator[tuple[str, Ranking]]:
        """(query id, its ranking, best first and without named pairs) of every query; one block at a time in lists."""
        for (begin, end), best in sorted(self.best.items()):
            for query, ranking in best.rankings(query_ids[begin:end], document_ids).items():
                yield query, [pair for pair in ranking if pair[1] != float("-inf")]

    def state(self) -> dict[str, Tensor]:
        """Tensors on the CPU by name, for ``restore``."""
        kept = {"found": self.found}
        for (begin, end), best in self.best.items():
            if best.scores is not None and best.columns is not None:
                kept[f"{begin}:{end}:scores"] = best.scores.cpu().contiguous()
                kept[f"{begin}:{end}:columns"] = best.columns.cpu().contiguous()
        return kept

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes what ``state`` gave for the same pairs.  Raises EvaluationError for that of others."""
        if state["found"].shape != self.found.shape:
            raise EvaluationError(f"the state has {len(state['found'])} pairs, and there are {len(self.found)}")
        self.found = state["found"].clone()
        for name, tensor in state.items():
            if not name.endswith(":scores"):
                continue
            begin, end = (int(part) for part in name.split(":")[:2])
            best = Best(self.top, self.noise)
            best.scores, best.columns = tensor.clone(), state[f"{begin}:{end}:columns"].clone()
            self.best[begin, end] = best
