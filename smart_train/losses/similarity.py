"""Similarity scores of queries and documents: pooled, late and hybrid.

Every score is a mean of cosines, so that the three share one unit (SMART, arXiv 2605.24938, section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from smart_train.config.schema import HybridBlock
from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.core.errors import UsageError
from smart_train.losses.maxsim import maxsim


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


def late_scores(queries: Tokens, documents: Tokens) -> Tensor:
    """Return the late scores s_late = 1/|q| sum_i max_j t_qi . t_xj.

    B and N ragged rows -> [B, N], float32 or wider
    """
    return maxsim(queries, documents)


def hybrid_scores(pooled: Tensor, late: Tensor, hybrid: HybridBlock) -> Tensor:
    """Return s_hybrid = lambda_pooled * s_pooled + lambda_late * s_late; the block may say to standardise each first.

    pooled, late: [B, N] -> [B, N].  The paper has both weights 1 and no scaling; a weight does not transfer between
    models, because some keep all their cosines in a narrow band: standardising by constants makes it comparable.
    """
    if hybrid.scaling == "standardised":
        pooled = (pooled - hybrid.pooled_mean) / hybrid.pooled_std
        late = (late - hybrid.late_mean) / hybrid.late_std
    return hybrid.pooled * pooled + hybrid.late * late


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
