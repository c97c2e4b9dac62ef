"""Distillation terms: the late score teaches the pooled one, or another model's scores teach either.

A divergence is not multiplied by the squared temperature (Hinton et al. 2015): its gradient, (p_student - p_teacher)
/ temperature, then has the size of the contrastive terms' beside which it stands; the weight may hold the factor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from smart_train.losses.base import BatchEmbeddings, LossTerm, Scores, Value, Wrong
from smart_train.losses.contrastive import FLOOR
from smart_train.losses.labels import Labels


class SelfDistillation(LossTerm):
    """The late score teaches the pooled one (self-knowledge distillation, BGE-M3, Chen et al. 2024, arXiv 2402.03216;
    there the teacher is the sum of all views).

    temperature: tau of both softmaxes
    graded: as in ``Contrastive``; all known positives of the query in the batch are compared then, too
    """

    name, trains = "self_distillation", ("pooled",)
    shared_options = ("graded",)

    def __init__(self, weight: float = 1.0, temperature: float = 0.05, *, graded: bool = False) -> None:
        super().__init__(weight, temperature)
        self.temperature: float = temperature
        self.graded = graded

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("scores.pooled", "scores.late", *(["labels.grades"] if self.graded else []))

    def forward(self, scores: Scores, labels: Labels, embeddings: BatchEmbeddings) -> Value:
        positives = labels.graded_targets > 0 if self.graded else labels.own_document
        return self_distillation(scores.pooled, scores.late, labels, positives, self.temperature)


class Teacher(LossTerm):
    """Another model's scores teach this one's; a pair without scores costs 0.

    temperature: tau of both softmaxes (kl), or the unit of the scores (margin_mse)
    kind: ``kl``, the divergence from the teacher's distribution, or ``margin_mse``, the squared error of its
        differences to the positive
    scale: the teacher's scores are multiplied by it first: brings another unit to that of cosines
    score: which of the student's scores learns
    """

    name = "teacher"

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 0.05,
        kind: Literal["kl", "margin_mse"] = "kl",
        scale: float = 1.0,
        score: Literal["pooled", "late", "hybrid"] = "hybrid",
    ) -> None:
        super().__init__(weight, temperature)
        self.temperature: float = temperature
        self.kind, self.scale, self.score = kind, scale, score

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return (f"scores.{self.score}", "labels.teacher")

    @property
    def trains(self) -> tuple[str, ...]:  # type: ignore[override]
        return {"pooled": ("pooled",), "late": ("tokens",)}.get(self.score, ("pooled", "tokens"))

    def forward(self, scores: Scores, labels: Labels, embeddings: BatchEmbeddings) -> Value:
        return from_teacher(getattr(scores, self.score), labels, self.temperature, self.kind, self.scale)

    def problems(self) -> Iterator[Wrong]:
        yield from super().problems()
        if self.scale <= 0:
            yield "scale", f"is {self.scale:g}, must be above 0", "write 1 for scores that are cosines"
        if self.kind not in ("kl", "margin_mse"):
            yield "kind", f"is {self.kind!r}", "write kl or margin_mse"
        if self.score not in ("pooled", "late", "hybrid"):
            yield "score", f"is {self.score!r}", "write pooled, late or hybrid"


# The losses as functions of tensors -----------------------------------------------------------------------------------


@torch.no_grad()
def soft_target(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return a teacher's distribution and its negative entropy: [rows, K] logits -> p [rows, K], sum p log p [rows]."""
    logs = logits.log_softmax(1)
    target = logs.exp()
    return target, logs.mul_(target).sum(1)


def divergence(student: Tensor, target: Tensor, negative_entropy: Tensor) -> Tensor:
    """Compute the Kullback-Leibler divergence of every row.

    student: [rows, K] logits, FLOOR where a place is no member of the row; the others: see ``soft_target``, FLOOR at
    the same places
    returns [rows]:  sum p_teacher (log p_teacher - log p_student);  0 for a row with fewer than two members
    """
    return negative_entropy - (target * student.log_softmax(1)).sum(1)


def self_distillation(pooled: Tensor, late: Tensor, labels: Labels, positives: Tensor, temperature: float) -> Tensor:
    """Compute the divergence of the pooled distribution from the late one.

    pooled, late: [B, N]; positives: [P, N] bool, the pair's own document, or all known positives of its query
    returns a scalar, the mean over pairs of
        KL( softmax(stop_gradient(s_late) / tau) || softmax(s_pooled / tau) )   over the pair's positives and negatives
    """
    others = (labels.negatives | positives).logical_not_()
    target = soft_target(late.detach()[labels.query].div_(temperature).masked_fill_(others, FLOOR))
    student = (pooled[labels.query] / temperature).masked_fill(others, FLOOR)
    return labels.mean(divergence(student, *target))


def from_teacher(scores: Tensor, labels: Labels, temperature: float, kind: str = "kl", scale: float = 1.0) -> Tensor:
    """Compute the mean over all drawn pairs of the distance to another model's scores.

    scores: [B, N] of the student; labels.teacher: [B, N], not finite where the teacher gave none. Only the documents
    that it scored count, copies and known positives among them too: its list is taken as it is.
    """
    assert labels.teacher is not None
    columns, scored = compact_columns(labels.teacher.isfinite())
    student = scores.gather(1, columns)
    target = scale * labels.teacher.gather(1, columns).masked_fill(~scored, 0.0).to(scores.dtype)
    if kind == "kl":
        return labels.mean(kl_to_teacher(student, target, scored, temperature)[labels.query])
    own = (columns[labels.query] == labels.document.unsqueeze(1)) & scored[labels.query]
    return labels.mean(margin_mse(student[labels.query], target[labels.query], own, scored[labels.query], temperature))


def kl_to_teacher(student: Tensor, teacher: Tensor, scored: Tensor, temperature: float) -> Tensor:
    """Compute the distillation of a ranking (Hinton et al. 2015, arXiv 1503.02531; Lin et al. 2020, arXiv 2010.11386).

    student, teacher: [B, K] scores; scored: [B, K] bool, places that have scores
    returns [B]:  KL( softmax(t / tau) || softmax(s / tau) )
    """
    target = soft_target((teacher / temperature).masked_fill(~scored, FLOOR))
    return divergence((student / temperature).masked_fill(~scored, FLOOR), *target)


def margin_mse(student: Tensor, teacher: Tensor, own: Tensor, scored: Tensor, temperature: float) -> Tensor:
    """Compute MarginMSE (Hofstaetter et al. 2020, arXiv 2010.02666) of scores in units of tau.

    student, teacher: [P, K]; scored: [P, K] bool, places that have scores; own: [P, K] bool, the pair's own document
    returns [P]:  mean over the other documents x of  ( ((s_own - s_x) - (t_own - t_x)) / tau )^2,
        0 where the teacher did not score the own document, or no other one
    """
    error = (student - teacher) / temperature
    differences = error.masked_fill(~own, 0.0).sum(1, keepdim=True) - error
    others = scored & ~own & own.any(1, keepdim=True)
    return differences.square().masked_fill(~others, 0.0).sum(1) / others.sum(1).clamp(min=1)


def compact_columns(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Put the few True of every row side by side: a teacher scores some of tens of thousands of columns.

    mask: [B, N] bool -> columns [B, K] int64 (0 where there is none), and which of them are real [B, K] bool

    >>> compact_columns(torch.tensor([[False, True, False, True], [True, False, False, False]]))
    (tensor([[1, 3],
            [0, 0]]), tensor([[ True,  True],
            [ True, False]]))
    """
    row, column = mask.nonzero(as_tuple=True)
    counts = mask.sum(1)
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    most = int(counts.max()) if len(counts) else 0
    columns = column.new_zeros(len(mask), most).index_put((row, place), column)
    return columns, torch.arange(most, device=row.device) < counts.unsqueeze(1)
