"""The joint loss: pooled, late and hybrid InfoNCE side by side, from one set of embeddings.

    loss = w_pooled CE(s_pooled / tau_p) + w_late CE(s_late / tau_l) + w_hybrid CE(s_hybrid / tau_h)

Knows: embeddings, scores, the objective's weights and temperatures.  Does not know: models, optimisers, processes.

The settings of the reference work (SMART, arXiv 2605.24938) are points of it, by (w_pooled, w_late, w_hybrid):
(1, 0, 0) pooled only; (0, 1, 0) late only, with a frozen backbone its adapter; (0, 0, 1) hybrid logits, where the
two scores are added before the softmax; (1, 1, 0) the usual loss next to the new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from smart_train.blocks import HybridBlock, ObjectiveBlock, TermBlock
from smart_train.embeddings import Embeddings
from smart_train.objective.scores import hybrid_scores, late_scores, negatives_mask, pooled_scores


@dataclass
class Loss:
    """total: scalar with a gradient; parts: detached scalars by name (loss/late, accuracy/late, margin/late ...)."""

    total: Tensor
    parts: dict[str, Tensor]


def contrastive(scores: Tensor, positives: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    """InfoNCE (van den Oord et al. 2018), mean over the drawn pairs.

    scores: [B, N]; positives: [P, 2] (query row, document row); candidates: [P, N] bool, the softmax's members
    returns a scalar: mean over P of  -log( exp(s_pos / tau) / sum over candidates exp(s / tau) )
    """
    query, document = positives.unbind(1)
    logits = (scores[query] / temperature).masked_fill(~candidates, float("-inf"))
    return F.cross_entropy(logits, document)


def _watch(scores: Tensor, positives: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Share of pairs whose document beats every negative, and the mean margin to the best negative (in cosines)."""
    query, document = positives.unbind(1)
    positive = scores[query, document]
    others = candidates.scatter(1, document.unsqueeze(1), False)
    best = scores[query].masked_fill(~others, float("-inf")).amax(1)
    known = best.isfinite()  # a pair alone in its batch has no negative, and no margin
    return (positive > best).float().mean(), (positive - best)[known].mean()


def joint_loss(
    queries: Embeddings,
    documents: Embeddings,
    relevance: Tensor,
    positives: Tensor,
    objective: ObjectiveBlock,
    hybrid: HybridBlock,
    pooled_widths: Sequence[int] = (),
    token_widths: Sequence[int] = (),
) -> Loss:
    """The joint loss of one batch.

    queries: B rows, documents: N rows (positives and negatives alike, each once); relevance: [B, N] bool, every
    known answer; positives: [P, 2] the drawn pairs.  A term of weight 0 is neither computed nor logged.
    pooled_widths, token_widths: narrower cuts (Matryoshka, Kusupati et al. 2022); the pooled (late) term is then the
    mean over the whole width and the cuts; hybrid logits use whole widths.
    Raises ValueError where every weight is 0.
    """
    candidates = negatives_mask(relevance, positives)
    matrices: dict[str, list[Tensor]] = {}
    if objective.pooled.weight or objective.hybrid.weight:
        cuts = pooled_widths if objective.pooled.weight else ()
        matrices["pooled"] = [_pooled(queries, documents, width) for width in (None, *cuts)]
    if objective.late.weight or objective.hybrid.weight:
        cuts = token_widths if objective.late.weight else ()
        matrices["late"] = [_late(queries, documents, width) for width in (None, *cuts)]
    if objective.hybrid.weight:
        matrices["hybrid"] = [hybrid_scores(matrices["pooled"][0], matrices["late"][0], hybrid)]

    total: Tensor | None = None
    parts: dict[str, Tensor] = {}
    for name, found in matrices.items():
        term: TermBlock = getattr(objective, name)
        if term.weight:
            losses = [contrastive(scores, positives, candidates, term.temperature) for scores in found]
            part = torch.stack(losses).mean()
            total = term.weight * part if total is None else total + term.weight * part
            parts[f"loss/{name}"] = part.detach()
        accuracy, margin = _watch(found[0].detach(), positives, candidates)
        parts[f"accuracy/{name}"], parts[f"margin/{name}"] = accuracy, margin
    if total is None:
        raise ValueError("objective: every weight is 0, so there is no loss; give pooled, late or hybrid a weight")
    return Loss(total, parts)


def _pooled(queries: Embeddings, documents: Embeddings, width: int | None) -> Tensor:
    # Autocast off: a bfloat16 score matrix has about 8 distinct values where 64 differ.
    with torch.autocast(queries.pooled.device.type, enabled=False):
        return pooled_scores(queries.cut(pooled=width).pooled, documents.cut(pooled=width).pooled)


def _late(queries: Embeddings, documents: Embeddings, width: int | None) -> Tensor:
    return late_scores(queries.cut(tokens=width).tokens, documents.cut(tokens=width).tokens)
