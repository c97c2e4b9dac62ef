"""The joint loss: every term of the objective side by side, from one set of embeddings.

    loss = w_pooled L(s_pooled; tau_p) + w_late L(s_late; tau_l) + w_hybrid L(s_hybrid; tau_h)
         + w_self KL(late || pooled) + w_teacher (teacher's scores) + w_div (diversity) + w_over (overlap)

The settings of the reference work (SMART, arXiv 2605.24938) are points of it, by (w_pooled, w_late, w_hybrid):
(1, 0, 0) pooled only; (0, 1, 0) late only, with a frozen backbone its adapter; (0, 0, 1) hybrid logits, where the
two scores are added before the softmax; (1, 1, 0) the usual loss next to the new one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from smart_train.config.schema import HybridBlock, ObjectiveBlock
from smart_train.core.embeddings import Embeddings
from smart_train.losses.contrastive import Exchange, Pairs, contrastive
from smart_train.losses.distillation import from_teacher, self_distillation
from smart_train.losses.regularizers import diversity, overlap
from smart_train.losses.schedule import CONTRASTIVE, active, at, needs, refuse
from smart_train.losses.similarity import hybrid_scores, late_scores, pooled_scores

__all__ = ["Labels", "Loss", "at", "joint_loss", "needs"]

Scores = dict[str, list[Tensor]]
"""pooled, late, hybrid -> [B, N] of the whole width, then of every narrower cut that is trained."""


@dataclass
class Loss:
    """total: scalar with a gradient; parts: detached scalars by name (loss/late, accuracy/late, margin/late ...)."""

    total: Tensor
    parts: dict[str, Tensor]


@dataclass
class Labels:
    """Who answers whom among B queries of this rank and N documents of all ranks that gather together.

    relevance: [B, N] bool, never negatives: the known answers and what may not count as wrong (drawn ones included)
    positives: [P, 2] int64, the drawn pairs: (query row, column among the N documents)
    grades:    [B, N] float, above 0 for known answers, alike for copies; needed by ``graded`` alone
    teacher:   [B, N] float, another model's scores, NaN where it gave none; needed by ``teacher`` alone
    repeats:   [N] bool, later copies of a document: no negatives, so that no document counts twice
    own:       this rank's rows among the N documents: the regularisers look at these alone
    shares:    of pairs, queries and documents: what a mean over this rank's is multiplied by, so that the mean over
               ranks of the results is the mean over all ranks' (Gather.shares)
    query_repeats: [B] bool, queries that an earlier rank has, too (other pairs of theirs were dealt to it): in the
               symmetric and sigmoid losses, where a query counts beyond its own pairs, it does so there
    """

    relevance: Tensor
    positives: Tensor
    grades: Tensor | None = None
    teacher: Tensor | None = None
    repeats: Tensor | None = None
    own: slice = field(default_factory=lambda: slice(None))
    shares: tuple[float, float, float] = (1.0, 1.0, 1.0)
    query_repeats: Tensor | None = None


def joint_loss(
    queries: Embeddings,
    documents: Embeddings,
    labels: Labels,
    objective: ObjectiveBlock,
    hybrid: HybridBlock,
    pooled_widths: Sequence[int] = (),
    token_widths: Sequence[int] = (),
    columns: Exchange | None = None,
) -> Loss:
    """The joint loss of one batch, as this rank's part of it.

    queries: B rows, documents: N rows (positives and negatives alike); a term that is off is neither computed nor
    logged.  Scores, softmax and sums are float32 or wider, whatever the embeddings and autocast are.
    pooled_widths, token_widths: narrower cuts (Matryoshka, Kusupati et al. 2022, arXiv 2205.13147); a term on the
    pooled (late) score is then the mean over the whole width and the cuts, each with all options, as if it were
    whole.  Hybrid scores, the teaching late score and the regularisers use whole widths.
    columns: [M] -> [ranks, M], what every rank gave (Gather.columns); needed by ``symmetric`` on several ranks.

    parts: loss/TERM; accuracy/SCORE and margin/SCORE against the negatives; false_negatives/TERM, how many negatives
    the positive-aware filter dropped; masked and negatives, how many documents the labels leave out and leave (before
    that filter); numbers are means per pair.  All carry ``labels.shares``: their mean over ranks is the global mean.
    Raises ValueError where every weight is 0, settings exclude each other, or grades or teacher are needed and absent.
    """
    refuse(objective)
    _check(labels, objective)
    with torch.autocast(queries.pooled.device.type, enabled=False):
        grades = labels.grades if objective.graded else None
        pairs = Pairs.of(labels.relevance, labels.positives, labels.repeats, grades, labels.query_repeats)
        found = _scores(queries, documents, objective, hybrid, pooled_widths, token_widths)
        parts = _counts(found, pairs, labels.shares[0])
        weighted: list[Tensor] = []

        def add(name: str, weight: float, cost: Tensor) -> None:
            parts[f"loss/{name}"] = cost.detach()
            weighted.append(weight * cost)

        for name in (name for name in CONTRASTIVE if active(objective, f"{name}.weight")):
            block = getattr(objective, name)
            costs, dropped = zip(
                *(contrastive(scores, pairs, objective, block.temperature, columns) for scores in found[name]),
                strict=True,
            )
            add(name, block.weight, torch.stack(costs).mean() * labels.shares[0])
            if objective.false_negatives is not None:
                parts[f"false_negatives/{name}"] = dropped[0] * labels.shares[0]
        _distil(found, pairs, labels, objective, add)
        _regularise(queries, documents, labels, objective, add)
        return Loss(torch.stack(weighted).sum(), parts)


def _check(labels: Labels, objective: ObjectiveBlock) -> None:
    if objective.graded and labels.grades is None:
        raise ValueError("objective.graded needs the answers' grades, but the labels have none; write graded: false")
    if active(objective, "teacher.weight") and labels.teacher is None:
        raise ValueError(
            "objective.teacher.weight needs a teacher's scores, but the labels have none; give the data a teacher "
            "(data.teacher), or write weight: 0"
        )


def _scores(
    queries: Embeddings,
    documents: Embeddings,
    objective: ObjectiveBlock,
    hybrid: HybridBlock,
    pooled_widths: Sequence[int],
    token_widths: Sequence[int],
) -> Scores:
    """Every score matrix that an active term reads."""
    learning = {name for name in CONTRASTIVE if active(objective, f"{name}.weight")}
    if active(objective, "teacher.weight"):
        learning.add(objective.teacher.score)
    distilled = active(objective, "self_distillation.weight")
    both = "hybrid" in learning or distilled
    found: Scores = {}
    if both or "pooled" in learning:
        cuts = pooled_widths if "pooled" in learning or distilled else ()
        found["pooled"] = [_pooled(queries, documents, width) for width in (None, *cuts)]
    if both or "late" in learning:
        cuts = token_widths if "late" in learning else ()
        # A late score that only teaches needs no graph: MaxSim then keeps no places either.
        with torch.set_grad_enabled(torch.is_grad_enabled() and bool({"late", "hybrid"} & learning)):
            found["late"] = [_late(queries, documents, width) for width in (None, *cuts)]
    if "hybrid" in learning:
        found["hybrid"] = [hybrid_scores(found["pooled"][0], found["late"][0], hybrid)]
    return found


def _pooled(queries: Embeddings, documents: Embeddings, width: int | None) -> Tensor:
    return pooled_scores(queries.cut(pooled=width).pooled, documents.cut(pooled=width).pooled)


def _late(queries: Embeddings, documents: Embeddings, width: int | None) -> Tensor:
    return late_scores(queries.cut(tokens=width).tokens, documents.cut(tokens=width).tokens)


@torch.no_grad()
def _counts(found: Scores, pairs: Pairs, share: float) -> dict[str, Tensor]:
    """Share of pairs whose document beats every negative, and the mean margin to the best negative (in cosines), by
    score; how many negatives a pair has, and how many documents are left out of them besides its own."""
    left = pairs.negatives.sum() / pairs.count
    others = (pairs.negatives.shape[1] - 1) * len(pairs.query) / pairs.count
    parts = {"negatives": left * share, "masked": (others - left) * share}
    for name, (scores, *_) in found.items():
        positive = scores[pairs.query, pairs.document]
        best = scores[pairs.query].masked_fill_(~pairs.negatives, float("-inf")).amax(1)
        known = best.isfinite()  # a pair alone in its batch has no negative, and no margin
        parts[f"accuracy/{name}"] = (positive > best).sum() / pairs.count * share
        parts[f"margin/{name}"] = torch.where(known, positive - best, 0.0).sum() / known.sum() * share
    return parts


def _distil(
    found: Scores,
    pairs: Pairs,
    labels: Labels,
    objective: ObjectiveBlock,
    add: Callable[[str, float, Tensor], None],
) -> None:
    if active(objective, "self_distillation.weight"):
        block, late = objective.self_distillation, found["late"][0]
        costs = [self_distillation(pooled, late, pairs, block.temperature) for pooled in found["pooled"]]
        add("self_distillation", block.weight, torch.stack(costs).mean() * labels.shares[0])
    if active(objective, "teacher.weight") and labels.teacher is not None:
        teacher = objective.teacher
        costs = [from_teacher(scores, labels.teacher, pairs, teacher) for scores in found[teacher.score]]
        add("teacher", teacher.weight, torch.stack(costs).mean() * labels.shares[0])


def _regularise(
    queries: Embeddings,
    documents: Embeddings,
    labels: Labels,
    objective: ObjectiveBlock,
    add: Callable[[str, float, Tensor], None],
) -> None:
    """Mean of both sides; of the documents this rank's alone, as every rank has its own."""
    _, of_queries, of_documents = labels.shares
    if active(objective, "diversity"):
        own = _rows(documents, labels.own)
        cost = (diversity(queries.tokens) * of_queries + diversity(own.tokens) * of_documents) / 2
        add("diversity", objective.diversity, cost)
    if active(objective, "overlap"):
        cost = (overlap(queries) * of_queries + overlap(_rows(documents, labels.own)) * of_documents) / 2
        add("overlap", objective.overlap, cost)


def _rows(documents: Embeddings, own: slice) -> Embeddings:
    start, stop, _ = own.indices(len(documents))
    if (start, stop) == (0, len(documents)):
        return documents
    return documents.split(stop)[0].split(start)[1]
