"""The joint loss written out over padded tokens, differentiable: what the losses and the training step are held to.

Everything goes pair by pair and document by document, in the dtype that comes in; nothing of smart_train computes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from smart_train.config.schema import HybridBlock, ObjectiveBlock, TeacherBlock
from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.losses.labels import Labels


def draw(lengths: list[int], seed: int, pooled: int = 12, width: int = 8, dtype=torch.float32) -> Embeddings:
    """Random unit vectors, as leaves with a gradient."""
    generator = torch.Generator().manual_seed(seed)

    def unit(rows: int, columns: int) -> Tensor:
        return F.normalize(torch.randn(rows, columns, generator=generator, dtype=torch.float64), dim=-1).to(dtype)

    tokens = Tokens(unit(sum(lengths), width).requires_grad_(True), torch.tensor(lengths))
    return Embeddings(unit(len(lengths), pooled).requires_grad_(True), tokens)


def cut(e: Embeddings, pooled: int | None = None, width: int | None = None) -> Embeddings:
    """Narrower vectors, normalised again; None leaves a side whole, and as it is."""
    vectors = e.pooled if pooled is None else F.normalize(e.pooled[:, :pooled], dim=-1)
    values = e.tokens.values if width is None else F.normalize(e.tokens.values[:, :width], dim=-1)
    return Embeddings(vectors, Tokens(values, e.tokens.lengths))


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
    """sum of w CE(s / tau), mean over the drawn pairs; known positives are not among a pair's negatives."""
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


def option_loss(
    queries: Embeddings,
    documents: Embeddings,
    labels: Labels,
    objective: ObjectiveBlock,
    hybrid: HybridBlock | None = None,
    pooled_widths: Sequence[int] = (),
    token_widths: Sequence[int] = (),
) -> dict[str, Tensor]:
    """Every term of the objective on one rank, by name, unweighted; ``labels`` of unique documents, without repeats."""
    hybrid = hybrid or HybridBlock()
    pooled = [cut(queries, w, None).pooled @ cut(documents, w, None).pooled.T for w in (None, *pooled_widths)]
    late = [late_matrix(cut(queries, None, w), cut(documents, None, w)) for w in (None, *token_widths)]
    matrices = {"pooled": pooled, "late": late, "hybrid": [hybrid.pooled * pooled[0] + hybrid.late * late[0]]}
    found = {}
    for name, several in matrices.items():
        tau = getattr(objective, name).temperature
        one = _sigmoid if objective.loss == "sigmoid" else _softmax
        found[name] = torch.stack([one(matrix, labels, objective, tau) for matrix in several]).mean()
    tau = objective.self_distillation.temperature
    found["self_distillation"] = torch.stack([_self(matrix, late[0].detach(), labels, tau) for matrix in pooled]).mean()
    if labels.teacher is not None:
        several = matrices[objective.teacher.score]
        found["teacher"] = torch.stack([_teacher(m, labels, objective.teacher) for m in several]).mean()
    found["diversity"] = (_diversity(queries) + _diversity(documents)) / 2
    if queries.pooled.shape[1] == queries.tokens.width:
        found["overlap"] = (_overlap(queries) + _overlap(documents)) / 2
    return found


def _limit(score: Tensor, share: float | None) -> float:
    return float("inf") if share is None else score.item() - (1 - share) * abs(score.item())


def _softmax(matrix: Tensor, labels: Labels, objective: ObjectiveBlock, tau: float) -> Tensor:
    """Cross entropy of every pair, with the options of the block, the mean of both directions if symmetric."""
    pairs, known, costs = labels.positives.tolist(), labels.relevance.tolist(), []
    limits = {q: min(_limit(matrix[q, x], objective.false_negatives) for r, x in pairs if r == q) for q, _ in pairs}

    def weighed(score: Tensor) -> Tensor:
        return torch.exp(objective.hardness * score.detach()) * torch.exp(score / tau)

    for query, own in pairs:
        row, limit = matrix[query], _limit(matrix[query, own], objective.false_negatives)
        negatives = [n for n in range(len(row)) if not known[query][n] and n != own and row[n].item() <= limit]
        answers = {own: 1.0}
        if objective.graded:
            answers = {n: grade for n, grade in enumerate(labels.grades[query].tolist()) if grade > 0}
        up = {n: torch.exp((row[n] - objective.margin) / tau) for n in answers}
        below = sum(up.values()) + sum(weighed(row[n]) for n in negatives)
        cost = sum(-grade / sum(answers.values()) * torch.log(up[n] / below) for n, grade in answers.items())
        if objective.symmetric:
            others = [b for b in range(len(matrix)) if not known[b][own] and matrix[b, own].item() <= limits[b]]
            up_own = torch.exp((row[own] - objective.margin) / tau)
            back = -torch.log(up_own / (up_own + sum(weighed(matrix[b, own]) for b in others)))
            cost = (cost + back) / 2
        costs.append(cost)
    return torch.stack(costs).mean()


def _sigmoid(matrix: Tensor, labels: Labels, objective: ObjectiveBlock, tau: float) -> Tensor:
    pairs, known, total = labels.positives.tolist(), labels.relevance.tolist(), matrix.new_zeros(())
    for query, row in enumerate(matrix):
        drawn = [x for q, x in pairs if q == query]
        limit = min(_limit(row[x], objective.false_negatives) for x in drawn)
        for n, score in enumerate(row):
            if n in drawn:
                total = total - torch.log(torch.sigmoid((score - objective.margin) / tau + objective.sigmoid_bias))
            elif not known[query][n] and score.item() <= limit:
                total = total - torch.log(torch.sigmoid(-(score / tau + objective.sigmoid_bias)))
    return total / len(pairs)


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    target = torch.softmax(teacher, 0)
    return (target * (torch.log(target) - torch.log(torch.softmax(student, 0)))).sum()


def _self(pooled: Tensor, late: Tensor, labels: Labels, tau: float) -> Tensor:
    costs = []
    for query, own in labels.positives.tolist():
        members = [n for n in range(pooled.shape[1]) if n == own or not labels.relevance[query, n]]
        if labels.grades is not None:
            members = sorted({*members, *labels.grades[query].nonzero().flatten().tolist()})
        costs.append(_kl(pooled[query, members] / tau, late[query, members] / tau))
    return torch.stack(costs).mean()


def _teacher(matrix: Tensor, labels: Labels, block: TeacherBlock) -> Tensor:
    costs = []
    for query, own in labels.positives.tolist():
        target = labels.teacher[query].to(matrix.dtype) * block.scale
        scored = [n for n in range(len(target)) if not torch.isnan(target[n])]
        cost = matrix.new_zeros(())
        if block.kind == "kl" and scored:
            cost = _kl(matrix[query, scored] / block.temperature, target[scored] / block.temperature)
        elif block.kind == "margin_mse" and own in scored and len(scored) > 1:
            errors = [
                ((matrix[query, own] - matrix[query, n]) - (target[own] - target[n])) / block.temperature
                for n in scored
                if n != own
            ]
            cost = torch.stack(errors).square().mean()
        costs.append(cost)
    return torch.stack(costs).mean()


def _diversity(rows: Embeddings) -> Tensor:
    costs = []
    for tokens in rows.tokens.rows():
        apart = ~torch.eye(len(tokens), dtype=torch.bool)
        costs.append((tokens @ tokens.T)[apart].square().mean() if len(tokens) > 1 else tokens.sum() * 0)
    return torch.stack(costs).mean()


def _overlap(rows: Embeddings) -> Tensor:
    costs = [(tokens @ p).square().mean() for p, tokens in zip(rows.pooled, rows.tokens.rows(), strict=True)]
    return torch.stack(costs).mean()
