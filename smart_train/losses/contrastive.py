"""Contrastive terms: rank a pair's document above its negatives, by pooled, late or hybrid score.

Scores stay cosines until ``temperature`` divides them: margins, shares and strengths are in the unit of cosines.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from smart_train.losses.base import BatchEmbeddings, LossTerm, Scores, Value, Wrong
from smart_train.losses.labels import Labels

FLOOR = -1e30
"""A logit that counts as nothing, yet finite: a softmax over such logits alone keeps finite gradients."""

MATRICES = {"plain": (3.5, 1.3), "symmetric": (3.8, 2.5), "options": (5.8, 3.5), "sigmoid": (5.5, 2.3)}
"""Float [P, N] matrices of a term with their masks, counted: most at once forward, and kept for the backward."""


class Contrastive(LossTerm):
    """A contrastive term on one score: InfoNCE with in-batch and hard negatives, or the sigmoid loss.

        L = 1/P sum over pairs of -log( exp(s_own / tau) / sum over own document and negatives of exp(s / tau) )

    temperature: tau; scores are cosines, so 0.02 to 0.05 is usual
    loss: ``softmax``, or ``sigmoid``, where every pair is judged by itself (SigLIP); sigmoid_bias is added to its
        score / tau
    symmetric: mean of both directions, the document among documents and the query among queries (CLIP)
    hardness: a negative counts exp(hardness * score) times (LLaVE); 0 = all alike
    margin: is taken from the positive's score, in cosines
    false_negatives: share of the positive's score above which a negative is left out (NV-Retriever); None = none
    graded: known positives in the batch share the target by their grade, instead of being left out

    Metric: ``false_negatives``, how many negatives of a pair the filter left out.
    """

    score: Literal["pooled", "late", "hybrid"]
    schedulable = ("weight", "temperature", "hardness", "margin")
    shared_options = ("loss", "sigmoid_bias", "symmetric", "hardness", "false_negatives", "margin", "graded")

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 0.05,
        *,
        loss: Literal["softmax", "sigmoid"] = "softmax",
        sigmoid_bias: float = -10.0,
        symmetric: bool = False,
        hardness: float = 0.0,
        false_negatives: float | None = None,
        margin: float = 0.0,
        graded: bool = False,
    ) -> None:
        super().__init__(weight, temperature)
        self.temperature: float = temperature
        self.loss, self.sigmoid_bias = loss, sigmoid_bias
        self.symmetric, self.graded = symmetric, graded
        self.hardness, self.margin, self.false_negatives = hardness, margin, false_negatives

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        names = [f"scores.{self.score}"]
        names += ["labels.grades"] if self.graded else []
        names += ["labels.query_repeats"] if self.symmetric or self.loss == "sigmoid" else []
        names += ["labels.all_ranks"] if self.symmetric and self.loss != "sigmoid" else []
        return tuple(names)

    @property
    def matrices(self) -> tuple[float, float]:
        scheduled = self.hardness or self.margin or self.false_negatives is not None
        kind = "options" if scheduled else "symmetric" if self.symmetric else "plain"
        return MATRICES["sigmoid" if self.loss == "sigmoid" else kind]

    def forward(self, scores: Scores, labels: Labels, embeddings: BatchEmbeddings) -> Value:
        cost, dropped = contrastive(
            getattr(scores, self.score),
            labels,
            self.temperature,
            loss=self.loss,
            sigmoid_bias=self.sigmoid_bias,
            symmetric=self.symmetric,
            hardness=self.hardness,
            false_negatives=self.false_negatives,
            margin=self.margin,
            graded=self.graded,
        )
        return cost if self.false_negatives is None else (cost, {"false_negatives": dropped})

    def problems(self) -> Iterator[Wrong]:
        yield from super().problems()
        sigmoid = self.loss == "sigmoid"
        if self.loss not in ("softmax", "sigmoid"):
            yield "loss", f"is {self.loss!r}", "write softmax or sigmoid"
        if self.hardness < 0:
            yield "hardness", f"is {self.hardness:g}, must be at least 0", "write 0 (off) or more"
        if self.false_negatives is not None and not 0 < self.false_negatives <= 1:
            what = f"is {self.false_negatives:g}, must be above 0 and at most 1: a share of the positive's score"
            yield "false_negatives", what, "write 0.95, or null to keep every negative"
        if not 0 <= self.margin < 1:
            what = f"is {self.margin:g}, must be from 0 to below 1: scores are cosines"
            yield "margin", what, "write 0.1, or 0"
        if not sigmoid and self.sigmoid_bias != -10.0:
            what = f"is {self.sigmoid_bias:g}, but loss is {self.loss}, which has no bias"
            yield "sigmoid_bias", what, "remove it, or write loss: sigmoid"
        if sigmoid and self.symmetric:
            what = "has no meaning with loss: sigmoid, which judges every pair by itself and so has no direction"
            yield "symmetric", what, "write false, or loss: softmax"
        if sigmoid and self.hardness > 0:
            what = "weights a softmax's denominator, and loss: sigmoid has none"
            yield "hardness", what, "write 0 (and schedule none), or loss: softmax"
        if sigmoid and self.graded:
            what = "shares one target among several answers, and loss: sigmoid judges every pair by itself"
            yield "graded", what, "write false, or loss: softmax"


class Pooled(Contrastive):
    """Contrastive loss of the pooled scores, as ``MultipleNegativesRankingLoss`` of sentence-transformers.

    Options: see ``Contrastive``.

    >>> Pooled(temperature=0.02).reads
    ('scores.pooled',)
    """

    name, score, trains = "pooled", "pooled", ("pooled",)


class Late(Contrastive):
    """Contrastive loss of the late scores: ColBERT's MaxSim (arXiv 2004.12832), with a mean over query tokens.

    Options: see ``Contrastive``.

    >>> Late(temperature=0.02, symmetric=True).reads
    ('scores.late', 'labels.query_repeats', 'labels.all_ranks')
    """

    name, score, trains = "late", "late", ("tokens",)


class Hybrid(Contrastive):
    """Contrastive loss of the hybrid scores: both scores are added before the softmax (SMART, arXiv 2605.24938).

    Options: see ``Contrastive``. It has no Matryoshka widths: both scores are those of the full width.
    """

    name, score, trains = "hybrid", "hybrid", ("pooled", "tokens")


# The losses as functions of tensors -----------------------------------------------------------------------------------


def contrastive(
    scores: Tensor,
    labels: Labels,
    temperature: float,
    *,
    loss: str = "softmax",
    sigmoid_bias: float = -10.0,
    symmetric: bool = False,
    hardness: float = 0.0,
    false_negatives: float | None = None,
    margin: float = 0.0,
    graded: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the contrastive loss of one score matrix, and how many negatives the positive-aware filter left out.

    scores: [B, N]; options: see ``Contrastive``; both results are means over the drawn pairs

    With ``symmetric`` a (query, document) that the filter leaves out is left out in both directions; a query with
    several drawn pairs goes by the lowest of their limits there (of those on the first rank that has the query), and
    so it does in the sigmoid loss.

    >>> scores = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    >>> labels = Labels(torch.eye(2, dtype=torch.bool), torch.tensor([[0, 0], [1, 1]]))
    >>> contrastive(scores, labels, temperature=0.5)[0]  # 1/2 (log(1 + exp(-0.8 / 0.5)) + log(1 + exp(-0.6 / 0.5)))
    tensor(0.2236)
    """
    limits = None
    if false_negatives is not None:
        limits = too_near(scores[labels.query, labels.document], false_negatives)
    if loss == "sigmoid":
        return _sigmoid_term(scores, labels, temperature, sigmoid_bias, margin, limits)
    costs, dropped = _among_documents(scores, labels, temperature, hardness, margin, graded, limits)
    if symmetric:
        competitors = ~labels.known
        if labels.query_repeats is not None:
            competitors &= ~labels.query_repeats.unsqueeze(1)
        if limits is not None:
            competitors &= scores.detach() <= _lowest(limits, labels.query, len(scores)).unsqueeze(1)
        costs = (costs + among_queries(scores, labels, competitors, temperature, hardness, margin)) / 2
    return labels.mean(costs), dropped


def info_nce(logits: Tensor, members: Tensor, document: Tensor) -> Tensor:
    """Compute InfoNCE (van den Oord et al. 2018, arXiv 1807.03748) of every pair.

    logits: [P, N]; members: [P, N] bool, the softmax's members; document: [P], the pair's own column
    returns [P]:  -log( exp(l_own) / sum over members of exp(l) )
    """
    return F.cross_entropy(logits.masked_fill(~members, float("-inf")), document, reduction="none")


def graded_cross_entropy(logits: Tensor, members: Tensor, targets: Tensor) -> Tensor:
    """Compute the cross entropy with a soft target (ListNet, Cao et al. 2007, with grades as target distribution).

    logits, targets: [P, N]; members: [P, N] bool; every target's row adds up to 1 over members
    returns [P]:  log sum over members of exp(l)  -  sum over positives of target * l
    """
    return logits.masked_fill(~members, float("-inf")).logsumexp(1) - (targets * logits).sum(1)


def with_margin(logits: Tensor, positives: Tensor, margin: float, temperature: float) -> Tensor:
    """Apply an additive margin (Yang et al. 2019, arXiv 1902.08564): positives have to win by ``margin``, in cosines.

    logits: any shape, scores / temperature; positives: bool, the same shape
    returns:  (s - margin) / temperature for positives, s / temperature for others
    """
    return logits - positives.to(logits.dtype).mul_(margin / temperature) if margin else logits


def with_hardness(logits: Tensor, scores: Tensor, positives: Tensor, hardness: float) -> Tensor:
    """Weight negatives by their hardness (LLaVE, Lan et al. 2025, arXiv 2503.04812, equation 5).

    A negative of score s counts w = exp(hardness * stop_gradient(s)) times in the softmax's denominator, which is
    hardness * s added to its logit; s is the score itself, not divided by the temperature (the paper's value: 9).
    logits, scores, positives (bool): of one shape; returns that shape
    """
    return logits + (hardness * scores.detach()).masked_fill_(positives, 0.0) if hardness else logits


def too_near(positive: Tensor, share: float) -> Tensor:
    """Return the scores above which a negative is taken for a false one (positive-aware mining, NV-Retriever, Moreira
    et al. 2024, arXiv 2407.15831, here inside the loss): share * s_pos for s_pos > 0.

    positive: any shape, detached here; returns the same shape:  s_pos - (1 - share) * |s_pos|
    Below 0 (standardised hybrid scores) share * s_pos would lie above the positive; the distance stays on its side.
    """
    positive = positive.detach()
    return positive - (1 - share) * positive.abs()


def sigmoid(own: Tensor, logits: Tensor, negatives: Tensor, bias: float) -> Tensor:
    """Compute the sigmoid loss (SigLIP, Zhai et al. 2023, arXiv 2303.15343): every (query, document) by itself.

    own: [P], scores / temperature of the drawn pairs; logits: [B, N], of all; negatives: [B, N] bool
    returns a scalar, to be divided by the number of drawn pairs:
        sum over drawn pairs of -log sigmoid(l + bias)  +  sum over negatives of -log sigmoid(-(l + bias))
    A document is judged once for a query, however many pairs of it were drawn; other known positives are left out.
    """
    wrong = F.logsigmoid((logits + bias).neg_()).masked_fill(~negatives, 0.0)
    return -(F.logsigmoid(own + bias).sum() + wrong.sum())


def among_queries(
    scores: Tensor, labels: Labels, competitors: Tensor, temperature: float, hardness: float = 0.0, margin: float = 0.0
) -> Tensor:
    """Compute the other direction of the symmetric loss (CLIP, Radford et al. 2021, arXiv 2103.00020), of every pair.

    scores: [B, N]; competitors: [B, N] bool, this rank's queries that are negatives of a document
    returns [P]:  -log( exp(l_qx) / ( exp(l_qx) + sum over all ranks' competitors b of exp(l_bx) ) )

    Queries are not gathered: every rank sums its own for all N documents, and the [N] log-sums are exchanged.
    """
    logits = with_hardness(scores / temperature, scores, ~competitors, hardness)
    sums = labels.all_ranks(logits.masked_fill(~competitors, FLOOR).logsumexp(0))[:, labels.document]
    own = (scores[labels.query, labels.document] - margin) / temperature
    return torch.cat([own.unsqueeze(0), sums]).logsumexp(0) - own


def _lowest(limits: Tensor, query: Tensor, queries: int) -> Tensor:
    """[P] limits of pairs -> [B] the lowest one of each query, infinity for a query without a pair."""
    return limits.new_full((queries,), float("inf")).scatter_reduce(0, query, limits, "amin")


def _among_documents(
    scores: Tensor,
    labels: Labels,
    temperature: float,
    hardness: float,
    margin: float,
    graded: bool,
    limits: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """[P] costs of the documents' softmax, and the mean number of negatives left out."""
    rows, negatives = scores[labels.query], labels.negatives
    targets = labels.graded_targets if graded else None
    positives = labels.own_document if targets is None else targets > 0
    if limits is not None:
        negatives = negatives & (rows.detach() <= limits.unsqueeze(1))
    logits = with_margin(rows / temperature, positives, margin, temperature)
    logits = with_hardness(logits, rows, positives, hardness)
    del rows  # [P, N], and not looked at again
    members = negatives | positives
    dropped = (labels.negatives.sum() - negatives.sum()) / labels.count
    if targets is None:
        return info_nce(logits, members, labels.document), dropped
    return graded_cross_entropy(logits, members, targets.to(logits.dtype)), dropped


def _sigmoid_term(
    scores: Tensor, labels: Labels, temperature: float, bias: float, margin: float, limits: Tensor | None
) -> tuple[Tensor, Tensor]:
    drawn = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    drawn[labels.query] = True
    if labels.query_repeats is not None:
        drawn &= ~labels.query_repeats
    negatives = ~labels.known & drawn.unsqueeze(1)  # a query without a pair has no cost in any of the losses
    if labels.repeats is not None:
        negatives &= ~labels.repeats
    dropped = torch.zeros((), device=scores.device)
    if limits is not None:
        kept = negatives & (scores.detach() <= _lowest(limits, labels.query, len(scores)).unsqueeze(1))
        dropped = (negatives.sum() - kept.sum()) / labels.count
        negatives = kept
    own = (scores[labels.query, labels.document] - margin) / temperature
    return sigmoid(own, scores / temperature, negatives, bias) / labels.count, dropped
