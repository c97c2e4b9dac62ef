"""Distillation terms: the encoder's own scores together, or another model's, teach its single views.

A divergence is not multiplied by the squared temperature (Hinton et al. 2015): its gradient, (p_student - p_teacher)
/ temperature, then has the size of the contrastive terms' beside which it stands; the weight may hold the factor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from smart_train.losses.base import BatchEmbeddings, LossTerm, Scores, Value, Wrong
from smart_train.losses.contrastive import FLOOR
from smart_train.losses.labels import Labels


class SelfDistillation(LossTerm):
    """The encoder's own views together teach single views (self-knowledge distillation, BGE-M3, arXiv 2402.03216).

        s* = stop_gradient(w_pooled s_pooled + w_late s_late + w_teacher t)
        L  = mean over students v of  KL( softmax(s* / tau_teacher) || softmax(s_v / tau) )

    temperature: tau of the students' softmax
    teacher_temperature: tau of the teacher's softmax; None = ``temperature``
    pooled, late, teacher: weights of the scores in the teacher; t are scores that the data has (BM25 ..., see
        ``smart-train score``), 0 for a pair without one. None = the preset's; without a preset the late score alone
    students: the views that learn; a score never has a gradient as a part of the teacher. None = the preset's; without
        a preset pooled
    preset: ``bge_m3`` = pooled 1, late 1, teacher 0; pooled and late learn (0.3 is BGE-M3's weight of a lexical score)
    graded: as in ``Contrastive``; all known positives of the query in the batch are compared then, too

    Metrics: ``pooled``, ``late``, the divergence of each student, where there are several.

    >>> SelfDistillation(preset="bge_m3").teacher_weights
    {'pooled': 1.0, 'late': 1.0}
    """

    name = "self_distillation"
    schedulable = ("weight", "temperature", "teacher_temperature")
    shared_options = ("graded",)

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 0.05,
        *,
        teacher_temperature: float | None = None,
        pooled: float | None = None,
        late: float | None = None,
        teacher: float | None = None,
        students: list[Literal["pooled", "late", "hybrid"]] | None = None,
        preset: Literal["bge_m3"] | None = None,
        graded: bool = False,
    ) -> None:
        super().__init__(weight, temperature)
        self.temperature: float = temperature
        self.teacher_temperature = teacher_temperature
        self.pooled, self.late, self.teacher = pooled, late, teacher
        self.students, self.preset, self.graded = students, preset, graded

    @property
    def teacher_weights(self) -> dict[str, float]:
        """Return the weights of the scores that teach: pooled, late, teacher; those of 0 are absent."""
        preset = PRESETS.get(self.preset or "", LATE_TEACHES).weights
        given = {"pooled": self.pooled, "late": self.late, "teacher": self.teacher}
        weights = {name: preset.get(name, 0.0) if value is None else float(value) for name, value in given.items()}
        return {name: value for name, value in weights.items() if value}

    @property
    def views(self) -> tuple[str, ...]:
        """Return the views that learn, each once."""
        preset = PRESETS.get(self.preset or "", LATE_TEACHES).students
        return tuple(dict.fromkeys(preset if self.students is None else self.students))

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        taught = [f"scores.{name}" for name in ("pooled", "late") if name in self.teacher_weights]
        names = [*(f"scores.{view}" for view in self.views), *taught]
        names += ["labels.teacher"] if "teacher" in self.teacher_weights else []
        names += ["labels.grades"] if self.graded else []
        return tuple(dict.fromkeys(names))

    @property
    def trains(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(dict.fromkeys(view for student in self.views for view in TRAINED[student]))

    @property
    def matrices(self) -> tuple[float, float]:
        students, ensemble = len(self.views), len(self.teacher_weights) > 1
        return 2.2 + 1.3 * students + ensemble, 1.3 * students

    def forward(self, scores: Scores, labels: Labels, embeddings: BatchEmbeddings) -> Value:
        positives = labels.graded_targets > 0 if self.graded else labels.own_document
        weights = self.teacher_weights
        parts = [weights[name] * getattr(scores, name).detach() for name in ("pooled", "late") if name in weights]
        if "teacher" in weights:
            assert labels.teacher is not None
            parts.append(weights["teacher"] * labels.teacher.masked_fill(~labels.teacher.isfinite(), 0.0))
        teacher = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
        students = [getattr(scores, view) for view in self.views]
        temperatures = self.teacher_temperature or self.temperature, self.temperature
        costs = self_distillation(students, teacher, labels, positives, *temperatures)
        return _mean_over(self.views, costs)

    def problems(self) -> Iterator[Wrong]:
        yield from super().problems()
        yield from _temperature_problem(self.teacher_temperature)
        if self.preset not in (None, *PRESETS):
            yield "preset", f"is {self.preset!r}", f"choose from {', '.join(PRESETS)}"
        for name in ("pooled", "late", "teacher"):
            value = getattr(self, name)
            if value is not None and value < 0:
                yield name, f"is {value:g}, must be at least 0", "write the score's weight in the teacher, or 0"
        if not self.teacher_weights:
            yield "late", "is 0, and so is every other weight of the teacher", "give pooled, late or teacher a weight"
        unknown = [view for view in self.views if view not in TRAINED]
        if unknown or not self.views:
            yield "students", f"is {self.students!r}", f"choose from {', '.join(TRAINED)}"
        elif len(self.teacher_weights) == 1 and set(self.views) == set(self.teacher_weights):
            what = f"names {self.views[0]} alone, which is the only teacher: nothing can be learned from itself"
            yield "students", what, "add another student, or give another score a weight in the teacher"


class Teacher(LossTerm):
    """Another model's scores teach this one's; a pair without scores costs 0.

    temperature: tau of the student's softmax (kl), or the unit of the scores (margin_mse)
    teacher_temperature: tau of the teacher's softmax (kl); None = ``temperature``
    kind: ``kl``, the divergence from the teacher's distribution, or ``margin_mse``, the squared error of its
        differences to the positive
    normalise: of the teacher's scores of each query: ``none``; ``minmax``, to 0 ... 1; ``zscore``, to mean 0 and
        standard deviation 1
    scale: the teacher's scores are multiplied by it, after ``normalise``: brings another unit to that of cosines
    score: which of the student's scores learns; ``each`` = pooled and late, each by itself, and the mean of both costs
    """

    name = "teacher"
    schedulable = ("weight", "temperature", "teacher_temperature")

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 0.05,
        kind: Literal["kl", "margin_mse"] = "kl",
        scale: float = 1.0,
        score: Literal["pooled", "late", "hybrid", "each"] = "hybrid",
        teacher_temperature: float | None = None,
        normalise: Literal["none", "minmax", "zscore"] = "none",
    ) -> None:
        super().__init__(weight, temperature)
        self.temperature: float = temperature
        self.kind, self.scale, self.score = kind, scale, score
        self.teacher_temperature, self.normalise = teacher_temperature, normalise

    @property
    def views(self) -> tuple[str, ...]:
        """Return the scores that learn."""
        return ("pooled", "late") if self.score == "each" else (self.score,)

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*(f"scores.{view}" for view in self.views), "labels.teacher")

    @property
    def trains(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(dict.fromkeys(name for view in self.views for name in TRAINED.get(view, ())))

    def forward(self, scores: Scores, labels: Labels, embeddings: BatchEmbeddings) -> Value:
        options = (self.kind, self.scale, self.teacher_temperature, self.normalise)
        costs = [from_teacher(getattr(scores, view), labels, self.temperature, *options) for view in self.views]
        return _mean_over(self.views, costs)

    def problems(self) -> Iterator[Wrong]:
        yield from super().problems()
        yield from _temperature_problem(self.teacher_temperature)
        if self.scale <= 0:
            yield "scale", f"is {self.scale:g}, must be above 0", "write 1 for scores that are cosines"
        if self.kind not in ("kl", "margin_mse"):
            yield "kind", f"is {self.kind!r}", "write kl or margin_mse"
        if self.kind == "margin_mse" and self.teacher_temperature is not None:
            what = f"is {self.teacher_temperature:g}, but margin_mse compares differences in one unit"
            yield "teacher_temperature", what, "remove it, or write kind: kl; scale brings the teacher to another unit"
        if self.normalise not in NORMALISED:
            yield "normalise", f"is {self.normalise!r}", f"write {', '.join(NORMALISED[:-1])} or {NORMALISED[-1]}"
        if self.score not in (*TRAINED, "each"):
            yield "score", f"is {self.score!r}", "write pooled, late, hybrid or each"


@dataclass(frozen=True)
class Ensemble:
    """Weights of the scores that teach, and the views that learn."""

    weights: dict[str, float]
    students: tuple[str, ...]


LATE_TEACHES = Ensemble({"late": 1.0}, ("pooled",))
PRESETS = {"bge_m3": Ensemble({"pooled": 1.0, "late": 1.0}, ("pooled", "late"))}
TRAINED = {"pooled": ("pooled",), "late": ("tokens",), "hybrid": ("pooled", "tokens")}  # score -> views it trains
NORMALISED = ("none", "minmax", "zscore")


def _mean_over(views: Sequence[str], costs: list[Tensor]) -> Value:
    """Return the mean cost of the views that learn, and each view's as a metric where there are several."""
    if len(costs) == 1:
        return costs[0]
    return torch.stack(costs).mean(), dict(zip(views, (cost.detach() for cost in costs), strict=True))


def _temperature_problem(value: float | None) -> Iterator[Wrong]:
    if value is not None and value <= 0:
        yield "teacher_temperature", f"is {value:g}, must be above 0", "write 0.02 to 0.05 for cosines, or null"


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


def self_distillation(
    students: Sequence[Tensor],
    teacher: Tensor,
    labels: Labels,
    positives: Tensor,
    teacher_temperature: float,
    temperature: float,
) -> list[Tensor]:
    """Compute the divergence of each student's distribution from the teacher's.

    students, teacher: [B, N]; positives: [P, N] bool, the pair's own document, or all known positives of its query
    returns a scalar a student, the mean over pairs of
        KL( softmax(teacher / tau_teacher) || softmax(student / tau) )   over the pair's positives and negatives
    """
    others = (labels.negatives | positives).logical_not_()
    target = soft_target((teacher.detach()[labels.query] / teacher_temperature).masked_fill_(others, FLOOR))
    logits = ((student[labels.query] / temperature).masked_fill(others, FLOOR) for student in students)
    return [labels.mean(divergence(one, *target)) for one in logits]


def from_teacher(
    scores: Tensor,
    labels: Labels,
    temperature: float,
    kind: str = "kl",
    scale: float = 1.0,
    teacher_temperature: float | None = None,
    normalise: str = "none",
) -> Tensor:
    """Compute the mean over all drawn pairs of the distance to another model's scores.

    scores: [B, N] of the student; labels.teacher: [B, N], not finite where the teacher gave none. Only the documents
    that it scored count, copies and known positives among them too: its list is taken as it is.
    """
    assert labels.teacher is not None
    columns, scored = compact_columns(labels.teacher.isfinite())
    student = scores.gather(1, columns)
    given = labels.teacher.gather(1, columns).masked_fill(~scored, 0.0).to(scores.dtype)
    target = scale * normalised(given, scored, normalise)
    if kind == "kl":
        costs = kl_to_teacher(student, target, scored, temperature, teacher_temperature)
        return labels.mean(costs[labels.query])
    own = (columns[labels.query] == labels.document.unsqueeze(1)) & scored[labels.query]
    return labels.mean(margin_mse(student[labels.query], target[labels.query], own, scored[labels.query], temperature))


def normalised(teacher: Tensor, scored: Tensor, how: str) -> Tensor:
    """Bring the scores of each row to one unit; a row whose scores are all equal becomes 0.

    teacher: [B, K], 0 where not scored; scored: [B, K] bool; how: ``none``, ``minmax`` or ``zscore``

    >>> normalised(torch.tensor([[2.0, 6.0, 4.0]]), torch.ones(1, 3, dtype=torch.bool), "minmax")
    tensor([[0.0000, 1.0000, 0.5000]])
    """
    if how == "none" or not teacher.numel():
        return teacher
    if how == "minmax":
        low = teacher.masked_fill(~scored, torch.inf).amin(1, keepdim=True)
        spread = teacher.masked_fill(~scored, -torch.inf).amax(1, keepdim=True) - low
    else:
        count = scored.sum(1, keepdim=True).clamp(min=1)
        low = teacher.sum(1, keepdim=True) / count
        spread = ((teacher - low).masked_fill(~scored, 0.0).square().sum(1, keepdim=True) / count).sqrt()
    flat = ~(spread > 0) | ~scored
    return ((teacher - low) / spread.masked_fill(~(spread > 0), 1.0)).masked_fill(flat, 0.0)


def kl_to_teacher(
    student: Tensor, teacher: Tensor, scored: Tensor, temperature: float, teacher_temperature: float | None = None
) -> Tensor:
    """Compute the distillation of a ranking (Hinton et al. 2015, arXiv 1503.02531; Lin et al. 2020, arXiv 2010.11386).

    student, teacher: [B, K] scores; scored: [B, K] bool, places that have scores
    returns [B]:  KL( softmax(t / tau_teacher) || softmax(s / tau) )
    """
    target = soft_target((teacher / (teacher_temperature or temperature)).masked_fill(~scored, FLOOR))
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
