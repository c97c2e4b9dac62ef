"""The joint loss written out over padded tokens, differentiable: what the losses and the training step are held to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from smart_train.blocks import ObjectiveBlock
from smart_train.embeddings import Embeddings


def late_matrix(queries: Embeddings, documents: Embeddings) -> Tensor:
    """[B, N]: mean over query tokens of the best document token, by einsum over padding that a mask keeps out."""
    q, x = (pad_sequence(list(e.tokens.rows()), batch_first=True) for e in (queries, documents))
    similarity = torch.einsum("bqd,ntd->bnqt", q, x)
    there = torch.arange(x.shape[1]) < documents.tokens.lengths.unsqueeze(1)
    best = similarity.masked_fill(~there[None, :, None], -torch.inf).amax(-1)
    counted = torch.arange(q.shape[1]) < queries.tokens.lengths.unsqueeze(1)
    return (best * counted.unsqueeze(1)).sum(-1) / queries.tokens.lengths.unsqueeze(1)


def formula_loss(
    queries: Embeddings, documents: Embeddings, relevance: Tensor, positives: Tensor, objective: ObjectiveBlock
) -> Tensor:
    """sum of w CE(s / tau), mean over the drawn pairs; known answers are not among a pair's negatives."""
    pooled, late = queries.pooled @ documents.pooled.T, late_matrix(queries, documents)
    total = pooled.new_zeros(())
    terms = (objective.pooled, objective.late, objective.hybrid)
    for matrix, term in zip((pooled, late, pooled + late), terms, strict=True):
        for query, document in positives.tolist():
            allowed = ~relevance[query]
            allowed[document] = True
            row = (matrix[query] / term.temperature).masked_fill(~allowed, -torch.inf)
            total = total + term.weight * (torch.logsumexp(row, 0) - row[document]) / len(positives)
    return total
