"""Labels of a batch: which document answers which query, and which documents count as negatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

Exchange = Callable[[Tensor], Tensor]
"""[M] -> [W, M]: the values of every rank, differentiable."""


def _this_rank(values: Tensor) -> Tensor:
    return values.unsqueeze(0)


@dataclass
class Labels:
    """Labels of B queries of this rank and N documents of all ranks that gather together.

    P is the number of drawn pairs: the (query, positive document) pairs that the batch was sampled for. A query may
    have further positives among the N documents; they are no negatives, and no pairs either.

    relevance: [B, N] bool, documents that never count as negatives: all known positives and their copies
    positives: [P, 2] int64, the drawn pairs: (row of the query, column of the document)
    grades:    [B, N] float, above 0 for known positives, alike for copies; there if a term reads ``labels.grades``
    teacher:   [B, N] float, another model's scores, NaN where it gave none; there if a term reads ``labels.teacher``
    repeats:   [N] bool, later copies of a document: no negatives, so that no document counts twice; None = no copies
    own:       columns of this rank's documents among the N
    shares:    of pairs, queries and documents: what a mean over this rank's is multiplied by, so that the mean over
               ranks of the results is the mean over all ranks' (Gather.shares); ``Joint`` applies them, no term does
    query_repeats: [B] bool, queries that an earlier rank also has; there if a term reads ``labels.query_repeats``;
               None = no query is on two ranks
    all_ranks: [M] -> [W, M], differentiable: one value for each of M gathered documents from every rank. Every rank
               must call it equally often, so a term that reads ``labels.all_ranks`` calls it in every step.

    Two queries, three documents; document 2 also answers query 0:

    >>> relevance = torch.tensor([[True, False, True], [False, True, False]])
    >>> labels = Labels(relevance, positives=torch.tensor([[0, 0], [1, 1]]))
    >>> labels.negatives
    tensor([[False,  True, False],
            [ True, False,  True]])
    >>> labels.mean(torch.tensor([1.0, 3.0]))
    tensor(2.)
    """

    relevance: Tensor
    positives: Tensor
    grades: Tensor | None = None
    teacher: Tensor | None = None
    repeats: Tensor | None = None
    own: slice = field(default_factory=lambda: slice(None))
    shares: tuple[float, float, float] = (1.0, 1.0, 1.0)
    query_repeats: Tensor | None = None
    all_ranks: Exchange = _this_rank

    @property
    def query(self) -> Tensor:
        """[P] row of every pair's query."""
        return self.positives[:, 0]

    @property
    def document(self) -> Tensor:
        """[P] column of every pair's document."""
        return self.positives[:, 1]

    @property
    def count(self) -> int:
        """P, but at least 1: a rank without pairs costs 0, not NaN."""
        return max(1, len(self.positives))

    def mean(self, costs: Tensor) -> Tensor:
        """[P] -> mean over the pairs; 0 for a rank without pairs."""
        return costs.sum() / self.count

    @cached_property
    def known(self) -> Tensor:
        """[B, N] bool, ``relevance`` with the drawn pairs, which the labels may lack."""
        true = torch.ones((), dtype=torch.bool, device=self.relevance.device)
        return self.relevance.index_put((self.query, self.document), true)

    @cached_property
    def negatives(self) -> Tensor:
        """[P, N] bool, the negatives of every pair."""
        mask = negatives_mask(self.known, self.positives, self.repeats)
        return mask.scatter_(1, self.document.unsqueeze(1), False)

    @cached_property
    def own_document(self) -> Tensor:
        """[P, N] bool, True at every pair's own document."""
        return torch.zeros_like(self.negatives).scatter_(1, self.document.unsqueeze(1), True)

    @cached_property
    def graded_targets(self) -> Tensor:
        """[P, N] float, how a pair's target is shared among its query's positives; see the function of this name."""
        if self.grades is None:
            raise ValueError("the labels have no grades; a term that needs them reads labels.grades")
        return graded_targets(self.grades, self.positives, self.repeats)


def negatives_mask(relevance: Tensor, positives: Tensor, repeats: Tensor | None = None) -> Tensor:
    """Return which documents stand in the softmax denominator of each pair: its own document and its negatives.

    relevance: [B, N] bool, every known positive; positives: [P, 2] rows and columns of the drawn pairs
    repeats:   [N] bool, later copies of a document, which would count it twice; None = there are none
    returns:   [P, N] bool

    Without it a second page that answers the query, or the same page under another query, would be pushed away.

    >>> negatives_mask(torch.tensor([[True, True, False]]), torch.tensor([[0, 0]]))
    tensor([[ True, False,  True]])
    """
    query, document = positives.unbind(1)
    mask = relevance[query].logical_not_()
    if repeats is not None:
        mask &= ~repeats
    return mask.scatter_(1, document.unsqueeze(1), True)


def graded_targets(grades: Tensor, positives: Tensor, repeats: Tensor | None = None) -> Tensor:
    """Share a pair's target by grade over the known positives of its query in the batch.

    grades: [B, N], 0 = no known positive; positives: [P, 2]; repeats: [N] bool or None
    returns [P, N]:  t = grade / sum of the query's grades

    A document that stands in several columns counts once, by its first column. A pair's own column that is a later
    copy stays where no first column of its grade is known for the query (a copy by content under another id), so that
    no pair is without a target. An own document without a grade counts as grade 1. A query with one known positive in
    the batch has plain InfoNCE.

    >>> graded_targets(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[0, 0]]))
    tensor([[0.6667, 0.3333, 0.0000]])
    """
    query, document = positives.unbind(1)
    shares = grades[query]
    own = shares.gather(1, document.unsqueeze(1))
    own = torch.where(own > 0, own, 1.0)
    if repeats is not None:
        shares.masked_fill_(repeats, 0.0)
        stands_before = repeats[document].unsqueeze(1) & (shares == own).any(1, keepdim=True)
        own = own.masked_fill(stands_before, 0.0)
    shares.scatter_(1, document.unsqueeze(1), own)
    return shares.div_(shares.sum(1, keepdim=True))
