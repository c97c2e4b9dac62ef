"""The late score written out in float64 loops, and ragged tokens to hold it to; nothing of smart_train computes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from smart_train.core.embeddings import Tokens


def plain(queries: Tokens, documents: Tokens) -> torch.Tensor:
    """s(q, x) = 1/|q| sum_i max_j q_i . x_j, one number at a time, float64, differentiable."""
    rows = []
    for q in queries.rows():
        row = []
        for x in documents.rows():
            best = [torch.stack([(a.double() * b.double()).sum() for b in x]).max() for a in q]
            row.append(torch.stack(best).sum() / len(best))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def draw(lengths: list[int], width: int, seed: int, dtype: torch.dtype = torch.float32) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    values = F.normalize(torch.randn(sum(lengths), width, generator=generator, dtype=torch.float64), dim=-1)
    return Tokens(values.to(dtype), torch.tensor(lengths))


def leaf(tokens: Tokens) -> Tokens:
    return Tokens(tokens.values.detach().clone().requires_grad_(True), tokens.lengths)


def gradients(score, queries: Tokens, documents: Tokens, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    q, x = leaf(queries), leaf(documents)
    (score(q, x) * weights.to(q.values.dtype)).sum().backward()
    return q.values.grad, x.values.grad
