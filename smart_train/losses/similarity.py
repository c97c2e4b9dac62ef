"""Similarity scores of queries and documents: pooled, late and hybrid.

Every score is a mean of cosines, so that the three share one unit (SMART, arXiv 2605.24938, section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from smart_train.config.schema import HybridBlock, ReductionBlock
from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.core.errors import UsageError
from smart_train.losses.maxsim import maxsim
from smart_train.losses.soft_maxsim import soft_maxsim, topk_maxsim


def pooled_scores(queries: Tensor, documents: Tensor) -> Tensor:
    """Return the pooled scores s_pooled = p_q . p_x.

    queries [B, D], documents [N, D], L2-normalised -> [B, N], float32 or wider

    >>> pooled_scores(torch.eye(2), torch.tensor([[0.6, 0.8]]))
    tensor([[0.6000],
            [0.8000]])
    """
    if queries.dtype in (torch.float16, torch.bfloat16):
        queries = queries.float()
    # Autocast off: a bfloat16 score matrix has about 8 distinct values where 64 differ.
    with torch.autocast(queries.device.type, enabled=False):
        return queries @ documents.to(queries.dtype).t()


def late_scores(queries: Tokens, documents: Tokens, reduction: ReductionBlock | None = None) -> Tensor:
    """Return the late scores s_late = 1/|q| sum_i max_j t_qi . t_xj.

    B and N ragged rows -> [B, N], float32 or wider
    reduction: another one than the maximum, for a loss (losses/soft_maxsim.py); None = the maximum
    """
    if reduction is not None and reduction.kind == "soft":
        return soft_maxsim(queries, documents, reduction.temperature)
    if reduction is not None and reduction.kind == "topk":
        return topk_maxsim(queries, documents, reduction.k)
    return maxsim(queries, documents)


def hybrid_sum(pooled: Tensor, late: Tensor, hybrid: HybridBlock) -> Tensor:
    """Return lambda_pooled * s_pooled + lambda_late * s_late; the block may say to standardise each score first.

    pooled, late: [B, N] -> [B, N].  The loss reads this sum, as the paper writes it (both weights 1, no scaling): its
    temperature belongs to it.  A weight does not transfer between models, because some keep all their cosines in a
    narrow band: standardising by constants makes it comparable.
    """
    return _weighted(pooled, late, hybrid, hybrid.pooled, hybrid.late)


def hybrid_weights(hybrid: HybridBlock) -> tuple[float, float]:
    """Return the weights of the pooled and of the late score in ``hybrid_scores``: their sizes sum to 1.

    >>> hybrid_weights(HybridBlock(pooled=1, late=3))
    (0.25, 0.75)
    """
    total = abs(hybrid.pooled) + abs(hybrid.late) or 1.0
    return hybrid.pooled / total, hybrid.late / total


def hybrid_scores(pooled: Tensor, late: Tensor, hybrid: HybridBlock) -> Tensor:
    """Return s_hybrid, the weighted mean of both scores: ``hybrid_sum`` over the sum of its weights.

    pooled, late: [B, N] -> [B, N].  It ranks as the sum does, and stays a mean of cosines whatever the weights are
    (standardised, it is one of standard scores: 0 is a usual pair, and 1 one standard deviation above that).
    """
    return _weighted(pooled, late, hybrid, *hybrid_weights(hybrid))


def _weighted(pooled: Tensor, late: Tensor, hybrid: HybridBlock, by_pooled: float, by_late: float) -> Tensor:
    if hybrid.scaling == "standardised":
        pooled = (pooled - hybrid.pooled_mean) / hybrid.pooled_std
        late = (late - hybrid.late_mean) / hybrid.late_std
    return by_pooled * pooled + by_late * late


def scores(queries: Embeddings, documents: Embeddings, mode: str, hybrid: HybridBlock) -> Tensor:
    """Return [B, N] scores by mode: pooled, late or hybrid. Raises UsageError for another word."""
    if mode == "pooled":
        return pooled_scores(queries.pooled, documents.pooled)
    if mode == "late":
        return late_scores(queries.tokens, documents.tokens)
    if mode == "hybrid":
        pooled = pooled_scores(queries.pooled, documents.pooled)
        return hybrid_scores(pooled, late_scores(queries.tokens, documents.tokens), hybrid)
    raise UsageError(f"mode is pooled, late or hybrid, not {mode!r}")
