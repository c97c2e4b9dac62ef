"""The contrastive terms: a drawn pair's document against its negatives, and every option of that, one function each.

Scores stay cosines until ``temperature`` divides them: margins, shares and strengths are in the unit of cosines.
Memory of a term, counted in float [P, N] tensors with their masks, most at once forward (and kept for backward):
plain 3.5 (1.3), symmetric 3.8 (2.5), with hardness, margin and filter too 5.8 (3.5), sigmoid 5.5 (2.3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from smart_train.config.schema import ObjectiveBlock
from smart_train.losses.similarity import negatives_mask

FLOOR = -1e30
"""A logit that counts as nothing, yet finite: a softmax over such logits alone keeps finite gradients."""

Exchange = Callable[[Tensor], Tensor]
"""[M] -> [ranks, M]: what every rank gave, differentiable (Gather.columns)."""


@dataclass
class Pairs:
    """Who stands where in a batch, found once for all terms.

    query, document: [P] row and column of the drawn pairs
    known:     [B, N] bool, never negatives; drawn pairs included
    repeats:   [N] bool, later copies of a document, or None
    negatives: [P, N] bool
    answers:   [P, N] bool, what the softmax should find: the pair's own document; graded: every known answer, once
    targets:   [P, N], graded: how the target is shared among the answers; None = all on the own document
    acting:    [B] bool, queries that count for other pairs' documents, too: all but those that an earlier rank has
    """

    query: Tensor
    document: Tensor
    known: Tensor
    repeats: Tensor | None
    negatives: Tensor
    answers: Tensor
    targets: Tensor | None = None
    acting: Tensor | None = None

    @staticmethod
    def of(
        relevance: Tensor,
        positives: Tensor,
        repeats: Tensor | None = None,
        grades: Tensor | None = None,
        query_repeats: Tensor | None = None,
    ) -> Pairs:
        """relevance [B, N] bool, positives [P, 2], repeats [N] bool, grades [B, N], query_repeats [B] bool: see
        losses.Labels."""
        query, document = positives.unbind(1)
        known = relevance.index_put((query, document), torch.ones((), dtype=torch.bool, device=relevance.device))
        negatives = negatives_mask(known, positives, repeats).scatter_(1, document.unsqueeze(1), False)
        acting = None if query_repeats is None else ~query_repeats
        if grades is None:
            answers = torch.zeros_like(negatives).scatter_(1, document.unsqueeze(1), True)
            return Pairs(query, document, known, repeats, negatives, answers, acting=acting)
        targets = graded_targets(grades, positives, repeats)
        return Pairs(query, document, known, repeats, negatives, targets > 0, targets, acting)

    @property
    def count(self) -> int:
        return max(1, len(self.query))  # a rank without pairs costs 0, not NaN


def info_nce(logits: Tensor, members: Tensor, document: Tensor) -> Tensor:
    """InfoNCE (van den Oord et al. 2018, arXiv 1807.03748), of every pair.

    logits: [P, N]; members: [P, N] bool, the softmax's members; document: [P], the pair's own column
    returns [P]:  -log( exp(l_own) / sum over members of exp(l) )
    """
    return F.cross_entropy(logits.masked_fill(~members, float("-inf")), document, reduction="none")


def graded_cross_entropy(logits: Tensor, members: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy with a soft target (the ListNet loss of Cao et al. 2007 with grades for its target distribution).

    logits, targets: [P, N]; members: [P, N] bool; every target's row adds up to 1 over members
    returns [P]:  log sum over members of exp(l)  -  sum over answers of target * l
    """
    return logits.masked_fill(~members, float("-inf")).logsumexp(1) - (targets * logits).sum(1)


def graded_targets(grades: Tensor, positives: Tensor, repeats: Tensor | None) -> Tensor:
    """How a pair's target is shared: by grade, over its query's known answers in the batch.

    grades: [B, N], 0 = no known answer; positives: [P, 2]; repeats: [N] bool or None
    returns [P, N]:  t = grade / sum of the query's grades

    A document that stands in several columns counts once: by its first one.  A pair's own column that is a later
    copy stays where no first column of its grade is known for the query (a copy by content under another id), so
    that no pair is without a target.  An own document without a grade counts as grade 1.
    A query with one known answer in the batch has plain InfoNCE.
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


def with_margin(logits: Tensor, answers: Tensor, margin: float, temperature: float) -> Tensor:
    """Additive margin (Yang et al. 2019, arXiv 1902.08564): answers have to win by ``margin``, in cosines.

    logits: any shape, scores / temperature; answers: bool, the same shape
    returns:  (s - margin) / temperature for answers, s / temperature for others
    """
    return logits - answers.to(logits.dtype).mul_(margin / temperature) if margin else logits


def with_hardness(logits: Tensor, scores: Tensor, answers: Tensor, strength: float) -> Tensor:
    """Hardness weighting (LLaVE, Lan et al. 2025, arXiv 2503.04812, equation 5).

    A negative of score s counts w = exp(strength * stop_gradient(s)) times in the softmax's denominator, which is
    strength * s added to its logit; s is the score itself, not divided by the temperature (the paper's strength: 9).
    logits, scores, answers (bool): of one shape; returns that shape
    """
    return logits + (strength * scores.detach()).masked_fill_(answers, 0.0) if strength else logits


def too_near(positive: Tensor, share: float) -> Tensor:
    """Scores above which a negative is taken for a false one (positive-aware mining, NV-Retriever, Moreira et al.
    2024, arXiv 2407.15831, here inside the loss): share * s_pos for s_pos > 0.

    positive: any shape, detached here; returns the same shape:  s_pos - (1 - share) * |s_pos|
    Below 0 (standardised hybrid scores) share * s_pos would lie above the positive; the distance stays on its side.
    """
    positive = positive.detach()
    return positive - (1 - share) * positive.abs()


def _lowest(limits: Tensor, query: Tensor, queries: int) -> Tensor:
    """[P] limits of pairs -> [B] the lowest one of each query, infinity for a query without a pair."""
    return limits.new_full((queries,), float("inf")).scatter_reduce(0, query, limits, "amin")


def sigmoid(own: Tensor, logits: Tensor, negatives: Tensor, bias: float) -> Tensor:
    """Sigmoid loss (SigLIP, Zhai et al. 2023, arXiv 2303.15343): every (query, document) judged by itself.

    own: [P], scores / temperature of the drawn pairs; logits: [B, N], of all; negatives: [B, N] bool
    returns a scalar, to be divided by the number of drawn pairs:
        sum over drawn pairs of -log sigmoid(l + bias)  +  sum over negatives of -log sigmoid(-(l + bias))
    A document is judged once for a query, however many pairs of it were drawn; other known answers are left out.
    """
    wrong = F.logsigmoid((logits + bias).neg_()).masked_fill(~negatives, 0.0)
    return -(F.logsigmoid(own + bias).sum() + wrong.sum())


def among_queries(
    scores: Tensor, pairs: Pairs, competitors: Tensor, objective: ObjectiveBlock, temperature: float, columns: Exchange
) -> Tensor:
    """The other direction of the symmetric loss (CLIP, Radford et al. 2021, arXiv 2103.00020), of every pair.

    scores: [B, N]; competitors: [B, N] bool, this rank's queries that are negatives of a document
    returns [P]:  -log( exp(l_qx) / ( exp(l_qx) + sum over all ranks' competitors b of exp(l_bx) ) )

    Queries are not gathered: every rank sums its own for all N documents, and the [N] log-sums are exchanged.
    """
    logits = with_hardness(scores / temperature, scores, ~competitors, objective.hardness)
    sums = columns(logits.masked_fill(~competitors, FLOOR).logsumexp(0))[:, pairs.document]
    own = (scores[pairs.query, pairs.document] - objective.margin) / temperature
    return torch.cat([own.unsqueeze(0), sums]).logsumexp(0) - own


def contrastive(
    scores: Tensor, pairs: Pairs, objective: ObjectiveBlock, temperature: float, columns: Exchange | None = None
) -> tuple[Tensor, Tensor]:
    """One term on one score matrix, with the options of the block: the mean over pairs, and the mean number of
    negatives that the positive-aware filter dropped (0 without one).

    With ``symmetric`` a (query, document) that the filter dropped is dropped in both directions; a query with
    several drawn pairs goes by the lowest of their limits there (of those on the first rank that has the query), and
    so it does in the sigmoid loss.
    """
    columns = columns or (lambda own: own.unsqueeze(0))
    limits = None
    if objective.false_negatives is not None:
        limits = too_near(scores[pairs.query, pairs.document], objective.false_negatives)
    if objective.loss == "sigmoid":
        return _sigmoid_term(scores, pairs, objective, temperature, limits)
    costs, dropped = _among_documents(scores, pairs, objective, temperature, limits)
    if objective.symmetric:
        competitors = ~pairs.known
        if pairs.acting is not None:
            competitors &= pairs.acting.unsqueeze(1)
        if limits is not None:
            competitors &= scores.detach() <= _lowest(limits, pairs.query, len(scores)).unsqueeze(1)
        costs = (costs + among_queries(scores, pairs, competitors, objective, temperature, columns)) / 2
    return costs.sum() / pairs.count, dropped


def _among_documents(
    scores: Tensor, pairs: Pairs, objective: ObjectiveBlock, temperature: float, limits: Tensor | None
) -> tuple[Tensor, Tensor]:
    rows, negatives = scores[pairs.query], pairs.negatives
    if limits is not None:
        negatives = negatives & (rows.detach() <= limits.unsqueeze(1))
    logits = with_margin(rows / temperature, pairs.answers, objective.margin, temperature)
    logits = with_hardness(logits, rows, pairs.answers, objective.hardness)
    del rows  # [P, N], and not looked at again
    members = negatives | pairs.answers
    dropped = (pairs.negatives.sum() - negatives.sum()) / pairs.count
    if pairs.targets is None:
        return info_nce(logits, members, pairs.document), dropped
    return graded_cross_entropy(logits, members, pairs.targets.to(logits.dtype)), dropped


def _sigmoid_term(
    scores: Tensor, pairs: Pairs, objective: ObjectiveBlock, temperature: float, limits: Tensor | None
) -> tuple[Tensor, Tensor]:
    drawn = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    drawn[pairs.query] = True
    if pairs.acting is not None:
        drawn &= pairs.acting
    negatives = ~pairs.known & drawn.unsqueeze(1)  # a query without a pair has no term in any of the losses
    if pairs.repeats is not None:
        negatives &= ~pairs.repeats
    dropped = torch.zeros((), device=scores.device)
    if limits is not None:
        kept = negatives & (scores.detach() <= _lowest(limits, pairs.query, len(scores)).unsqueeze(1))
        dropped = (negatives.sum() - kept.sum()) / pairs.count
        negatives = kept
    own = (scores[pairs.query, pairs.document] - objective.margin) / temperature
    return sigmoid(own, scores / temperature, negatives, objective.sigmoid_bias) / pairs.count, dropped
