"""Learning from scores: the late score teaches the pooled one, and another model teaches either.

A divergence is not multiplied by the squared temperature (Hinton et al. 2015): its gradient, (p_student - p_teacher)
/ temperature, then has the size of the contrastive terms' beside which it stands; the weight may hold the factor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smart_train.config.schema import TeacherBlock
from smart_train.losses.contrastive import FLOOR, Pairs


@torch.no_grad()
def soft_target(logits: Tensor) -> tuple[Tensor, Tensor]:
    """A teacher's distribution and its negative entropy: [rows, K] logits -> p [rows, K], sum p log p [rows]."""
    logs = logits.log_softmax(1)
    target = logs.exp()
    return target, logs.mul_(target).sum(1)


def divergence(student: Tensor, target: Tensor, negative_entropy: Tensor) -> Tensor:
    """Kullback-Leibler divergence of every row.

    student: [rows, K] logits, FLOOR where a place is no member of the row; the others: see ``soft_target``, FLOOR at
    the same places
    returns [rows]:  sum p_teacher (log p_teacher - log p_student);  0 for a row with fewer than two members
    """
    return negative_entropy - (target * student.log_softmax(1)).sum(1)


def self_distillation(pooled: Tensor, late: Tensor, pairs: Pairs, temperature: float) -> Tensor:
    """The late score teaches the pooled one (self-knowledge distillation, BGE-M3, Chen et al. 2024, arXiv 2402.03216;
    there the teacher is the sum of all views).

    pooled, late: [B, N]
    returns a scalar, the mean over pairs of
        KL( softmax(stop_gradient(s_late) / tau) || softmax(s_pooled / tau) )   over the pair's answers and negatives
    """
    others = (pairs.negatives | pairs.answers).logical_not_()
    target = soft_target(late.detach()[pairs.query].div_(temperature).masked_fill_(others, FLOOR))
    student = (pooled[pairs.query] / temperature).masked_fill(others, FLOOR)
    return divergence(student, *target).sum() / pairs.count


def from_teacher(scores: Tensor, teacher: Tensor, pairs: Pairs, block: TeacherBlock) -> Tensor:
    """Another model's scores as target: mean over all drawn pairs; a pair without scores costs 0.

    scores: [B, N] of the student; teacher: [B, N], not finite where the teacher gave none.  Only the documents that
    it scored are looked at, copies and known answers among them too: its list is taken as it is.
    """
    columns, there = listed(teacher.isfinite())
    student = scores.gather(1, columns)
    target = block.scale * teacher.gather(1, columns).masked_fill(~there, 0.0).to(scores.dtype)
    if block.kind == "kl":
        return kl_to_teacher(student, target, there, block.temperature)[pairs.query].sum() / pairs.count
    own = (columns[pairs.query] == pairs.document.unsqueeze(1)) & there[pairs.query]
    costs = margin_mse(student[pairs.query], target[pairs.query], own, there[pairs.query], block.temperature)
    return costs.sum() / pairs.count


def kl_to_teacher(student: Tensor, teacher: Tensor, there: Tensor, temperature: float) -> Tensor:
    """Distillation of a ranking (Hinton et al. 2015, arXiv 1503.02531; Lin et al. 2020, arXiv 2010.11386).

    student, teacher: [B, K] scores; there: [B, K] bool, which are scores
    returns [B]:  KL( softmax(t / tau) || softmax(s / tau) )
    """
    target = soft_target((teacher / temperature).masked_fill(~there, FLOOR))
    return divergence((student / temperature).masked_fill(~there, FLOOR), *target)


def margin_mse(student: Tensor, teacher: Tensor, own: Tensor, there: Tensor, temperature: float) -> Tensor:
    """MarginMSE (Hofstaetter et al. 2020, arXiv 2010.02666), the scores measured in units of tau.

    student, teacher: [P, K]; there: [P, K] bool, which are scores; own: [P, K] bool, the pair's own document
    returns [P]:  mean over the other documents x of  ( ((s_own - s_x) - (t_own - t_x)) / tau )^2,
        0 where the teacher did not score the own document, or no other one
    """
    error = (student - teacher) / temperature
    differences = error.masked_fill(~own, 0.0).sum(1, keepdim=True) - error
    others = there & ~own & own.any(1, keepdim=True)
    return differences.square().masked_fill(~others, 0.0).sum(1) / others.sum(1).clamp(min=1)


def listed(there: Tensor) -> tuple[Tensor, Tensor]:
    """The few True of every row, side by side: a teacher scores some tens of thousands of columns.

    there: [B, N] bool -> columns [B, K] int64 (0 where there is none) and which of them are real [B, K] bool
    """
    row, column = there.nonzero(as_tuple=True)
    counts = there.sum(1)
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    most = int(counts.max()) if len(counts) else 0
    columns = column.new_zeros(len(there), most).index_put((row, place), column)
    return columns, torch.arange(most, device=row.device) < counts.unsqueeze(1)
