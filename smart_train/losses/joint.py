"""Joint loss: the weighted sum of terms over one set of embeddings.

    loss = w_pooled L(s_pooled; tau_p) + w_late L(s_late; tau_l) + w_hybrid L(s_hybrid; tau_h)
         + w_self KL(late || pooled) + w_teacher (teacher's scores) + w_div (diversity) + w_over (overlap) + your terms

The settings of the reference work (SMART, arXiv 2605.24938) are points of it, by (w_pooled, w_late, w_hybrid):
(1, 0, 0) pooled only; (0, 1, 0) late only, with a frozen backbone its adapter; (0, 0, 1) hybrid logits, where the
two scores are added before the softmax; (1, 1, 0) the usual loss next to the new one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from smart_train.config.schema import HybridBlock, ObjectiveBlock, ReductionBlock
from smart_train.core.embeddings import Embeddings
from smart_train.core.errors import LossError
from smart_train.losses.base import (
    VIEWS,
    BatchEmbeddings,
    LossTerm,
    Scores,
    declaration_problems,
    no_loss,
)
from smart_train.losses.labels import Labels
from smart_train.losses.recipe_terms import read_terms
from smart_train.losses.schedule import Points, changed, interpolate, points_problem, scheduled_problems
from smart_train.losses.similarity import hybrid_sum, late_scores, pooled_scores

SCORES = ("pooled", "late", "hybrid")


@dataclass
class Loss:
    """total: scalar with a gradient; parts: detached scalars by name (loss/late, accuracy/late, margin/late ...)."""

    total: Tensor
    parts: dict[str, Tensor]


class Joint:
    """The loss of a run: the weighted sum of its terms.

    terms: ``Pooled()``, ``Late()`` ... or your own; names must differ
    schedule: what changes during training: ``NAME.weight`` (or another attribute in the term's ``schedulable``), or
        the bare attribute (``hardness``) for every term that can change it -> points [share of training, value]
    reduction: of a query token's similarities over a document's tokens, in every late and hybrid score of the loss;
        None = the maximum, as search has it
    Raises LossError, a line for each problem, where values or declarations are wrong or no term can learn.

    >>> from smart_train.losses import Late, Pooled
    >>> loss = Joint(Pooled(), Late(temperature=0.02), schedule={"late.weight": [[0, 0.2], [0.5, 1]]})
    >>> sorted(loss.reads), sorted(loss.trains)
    (['scores.late', 'scores.pooled'], ['pooled', 'tokens'])

    One query of two tokens, two documents of one token, in two dimensions:

    >>> from smart_train.core.embeddings import Tokens
    >>> unit = torch.eye(2)
    >>> queries = Embeddings(unit[:1], Tokens(unit, torch.tensor([2])))
    >>> documents = Embeddings(unit, Tokens(unit, torch.tensor([1, 1])))
    >>> labels = Labels(torch.tensor([[True, False]]), positives=torch.tensor([[0, 0]]))
    >>> Joint(Pooled(temperature=1.0))(queries, documents, labels).total  # log(1 + exp(-1))
    tensor(0.3133)
    """

    def __init__(
        self,
        *terms: LossTerm,
        schedule: Mapping[str, Points] | None = None,
        reduction: ReductionBlock | None = None,
    ) -> None:
        self.terms, self.schedule = terms, dict(schedule or {})
        self.reduction = reduction or ReductionBlock()
        problems = list(self._problems())
        if problems:
            raise LossError("\n".join(problems))
        self._scheduled = [(*target, points) for key, points in self.schedule.items() for target in self._targets(key)]
        growing = {term.name for term, attribute, _ in self._scheduled if attribute == "weight"}
        self.terms = tuple(term for term in terms if term.weight or term.name in growing)
        if not any("pairs" in term.mean_over for term in self.terms):
            raise LossError("objective: {}; {}".format(*no_loss()))
        self.at(0.0)

    def __repr__(self) -> str:
        """Return the terms and what is scheduled.

        >>> from smart_train.losses import Late, Pooled
        >>> Joint(Pooled(), Late(temperature=0.02), schedule={"late.weight": [[0, 0.2], [1, 1]]})  # doctest: +ELLIPSIS
        Joint(Pooled(...), Late(...), schedule={'late.weight': [[0, 0.2], [1, 1]]})
        """
        parts = [*map(repr, self.terms), *([f"schedule={self.schedule}"] if self.schedule else [])]
        return f"Joint({', '.join(parts)})"

    @classmethod
    def from_recipe(cls, objective: ObjectiveBlock, trusted: bool = True) -> Joint:
        """Return the loss that a recipe's block ``objective`` describes.

        trusted: whether the recipe is the user's own; False refuses terms that are not of this package, so that a
            downloaded recipe cannot have code imported
        Raises LossError with every problem, by the recipe's keys.

        >>> [term.name for term in Joint.from_recipe(ObjectiveBlock(diversity=0.1)).terms]
        ['pooled', 'late', 'diversity']
        """
        recipe = read_terms(objective, trusted)
        if recipe.problems:
            raise LossError("\n".join(f"{p.key}: {p.what}; {p.fix}" for p in recipe.problems))
        return cls(*(one.term for one in recipe.active), schedule=recipe.schedule, reduction=objective.reduction)

    # -- what the terms declare

    @cached_property
    def reads(self) -> frozenset[str]:
        """Return what any term reads, which is computed and gathered from all ranks."""
        return frozenset(name for term in self.terms for name in term.reads)

    @cached_property
    def trains(self) -> frozenset[str]:
        """Return the views that any term gives a gradient: ``pooled``, ``tokens``."""
        return frozenset(view for term in self.terms for view in term.trains)

    @cached_property
    def views(self) -> frozenset[str]:
        """Return the views that any term reads, directly or as scores: ``pooled``, ``tokens``."""
        return frozenset(view for name in self.reads for view in VIEWS.get(name, ()))

    @cached_property
    def scores(self) -> tuple[str, ...]:
        """Return the score matrices that are computed; hybrid scores are made of the two others."""
        read = {name for name in SCORES if f"scores.{name}" in self.reads}
        return tuple(name for name in SCORES if name in read or ("hybrid" in read))

    def matrices(self, pooled_cuts: int = 0, token_cuts: int = 0) -> tuple[int, list[tuple[float, float]]]:
        """Count the [P, N] float32 matrices of a step: of scores, and of every call of a term (at most, kept for the
        backward), at the most over the schedule.

        pooled_cuts, token_cuts: numbers of Matryoshka widths besides the full one
        """
        cuts = {"pooled": pooled_cuts, "late": token_cuts}
        averaged = {term.matryoshka for term in self.terms}
        scores = sum(1 + (cuts[name] if name in averaged else 0) for name in self.scores)
        calls: list[tuple[float, float]] = []
        for term in self.terms:
            mine = [(attribute, points) for one, attribute, points in self._scheduled if one is term]
            others = [changed(term, attribute, value) for attribute, points in mine for _, value in points]
            held = max(one.matrices for one in (term, *others))
            calls += [held] * (1 + (cuts[term.matryoshka] if term.matryoshka else 0))
        return scores, calls

    def at(self, progress: float) -> None:
        """Set every scheduled value to what it is when the share ``progress`` (0 to 1) of training is done. A term
        whose weight is 0 just now stays a term of the loss: it is logged, and what it trains gets a gradient."""
        for term, attribute, points in self._scheduled:
            setattr(term, attribute, interpolate(points, progress))

    def _targets(self, key: str) -> Iterator[tuple[LossTerm, str]]:
        """The attributes of terms that a key of the schedule names."""
        name, _, attribute = key.rpartition(".")
        for term in self.terms:
            if attribute in term.schedulable and (term.name == name or (not name and attribute != "weight")):
                yield term, attribute

    def _problems(self) -> Iterator[str]:
        for term in self.terms:
            if not isinstance(term, LossTerm):
                kind, bases = type(term).__name__, "losses.LossTerm"
                bases += ", nn.Module" if isinstance(term, nn.Module) else ""
                fix = f"write class {kind}({bases}), with what it reads and trains (docs/extending.md)"
                yield f"{term!r:.80} is not a loss term; {fix}"
                return
            yield from (f"{term.name}: {what}; {fix}" for what, fix in declaration_problems(term))
            yield from (f"{term.name}.{option}: {what}; {fix}" for option, what, fix in term.problems())
        names = [term.name for term in self.terms]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"two terms are named {name}; set the attribute name of one of them"
        for key, points in self.schedule.items():
            targets = list(self._targets(key))
            what = points_problem(points)
            if not targets:
                choices = [f"{term.name}.{attribute}" for term in self.terms for attribute in term.schedulable]
                yield f"schedule {key}: cannot be scheduled; choose from {', '.join(choices)}"
            elif what is not None:
                yield f"schedule {key}: {what}; write points [share of training, value], such as [[0, 0], [0.5, 1]]"
            else:
                yield from (f"schedule {key}: {what}; {fix}" for what, fix in scheduled_problems(targets, points))

    # -- the loss

    def __call__(
        self,
        queries: Embeddings,
        documents: Embeddings,
        labels: Labels,
        hybrid: HybridBlock | None = None,
        pooled_widths: Sequence[int] = (),
        token_widths: Sequence[int] = (),
        progress: float | None = None,
    ) -> Loss:
        """Compute the loss of one batch, as this rank's part of it.

        queries: B rows, documents: N rows (positives and negatives alike)
        hybrid: weights of the hybrid score; None = both 1
        pooled_widths, token_widths: narrower cuts (Matryoshka, Kusupati et al. 2022, arXiv 2205.13147); a term on the
            pooled (late) score is then the mean over the full width and the cuts, each normalised again. Hybrid
            scores, a late score that only teaches and regularizers have the full width.
        progress: share of the training that is done, for schedules; None = as before

        parts: loss/NAME, and NAME/METRIC for what a term measures itself; accuracy/SCORE and margin/SCORE against the
        negatives; masked and negatives, how many documents the labels leave out and leave (before a term's own
        filter). Numbers are means per pair. All carry ``labels.shares``: their mean over ranks is the global mean.
        Raises LossError where the labels lack what a term reads, or a term does not return what it declares.
        """
        if progress is not None:
            self.at(progress)
        self._check_labels(labels)
        with torch.autocast(queries.pooled.device.type, enabled=False):
            cuts = {"pooled": pooled_widths, "late": token_widths}
            matrices = _Matrices(self, queries, documents, hybrid or HybridBlock(), cuts)
            parts = _measure({name: matrices.get(name) for name in self.scores}, labels)
            weighted: list[Tensor] = []
            for term in self.terms:
                cost, metrics = self._value(term, matrices, labels)
                parts[f"loss/{term.name}"] = cost.detach()
                parts |= {f"{term.name}/{name}": value for name, value in metrics.items()}
                weighted.append(term.weight * cost)
            return Loss(torch.stack(weighted).sum(), parts)

    def _value(self, term: LossTerm, matrices: _Matrices, labels: Labels) -> tuple[Tensor, dict[str, Tensor]]:
        """The term's cost, averaged over Matryoshka widths, and its metrics at full width; both times the shares."""
        seen = BatchEmbeddings(matrices.queries, matrices.documents, labels.own, term)
        costs: list[Tensor] = []
        metrics: dict[str, Tensor] = {}
        for cut in range(len(matrices.widths[term.matryoshka]) if term.matryoshka else 1):
            value = term.forward(_TermScores(matrices, term, cut), labels, seen)
            cost, measured = value if isinstance(value, tuple) else (value, {})
            costs.append(_checked(cost, term))
            if cut == 0:
                metrics = {name: _metric(number, cost, term, labels) for name, number in measured.items()}
        return _mean(torch.stack(costs).mean(0), term, labels), metrics

    def _check_labels(self, labels: Labels) -> None:
        what = {
            "labels.grades": "the grades of the positives",
            "labels.teacher": "a teacher's scores (data.teacher, see docs/data.md)",
        }
        for name, meaning in what.items():
            readers = [term.name for term in self.terms if name in term.reads]
            if readers and getattr(labels, name.removeprefix("labels.")) is None:
                raise LossError(
                    f"the loss term {readers[0]} needs {meaning}, but the labels have none; give the data some, or "
                    "turn the term or its option off"
                )


class _Matrices:
    """The score matrices of a step, at every trained width; each is computed when a term first reads it."""

    def __init__(
        self,
        joint: Joint,
        queries: Embeddings,
        documents: Embeddings,
        hybrid: HybridBlock,
        cuts: Mapping[str, Sequence[int]],
    ) -> None:
        self.queries, self.documents, self.hybrid = queries, documents, hybrid
        self.widths: dict[str, list[int | None]] = {name: [None, *cuts.get(name, ())] for name in SCORES}
        # A late score that only teaches needs no graph: MaxSim then keeps no places either.
        readers = [t for t in joint.terms if {"scores.late", "scores.hybrid"} & set(t.reads)]
        self._reduction = joint.reduction
        self._late_trains = any("tokens" in term.trains for term in readers)
        self._computed: dict[tuple[str, int], Tensor] = {}

    def get(self, name: str, cut: int = 0) -> Tensor:
        if (name, cut) not in self._computed:
            self._computed[name, cut] = self._compute(name, self.widths[name][cut])
        return self._computed[name, cut]

    def _compute(self, name: str, width: int | None) -> Tensor:
        if name == "hybrid":
            return hybrid_sum(self.get("pooled"), self.get("late"), self.hybrid)
        if name == "pooled":
            return pooled_scores(self.queries.cut(pooled=width).pooled, self.documents.cut(pooled=width).pooled)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._late_trains):
            queries, documents = (rows.cut(tokens=width).tokens for rows in (self.queries, self.documents))
            return late_scores(queries, documents, self._reduction)


class _TermScores(Scores):
    """The matrices that a term declares, at one Matryoshka cut of the score that it is averaged over."""

    def __init__(self, matrices: _Matrices, term: LossTerm, cut: int) -> None:
        self._matrices, self._term, self._cut = matrices, term, cut

    def _get(self, name: str) -> Tensor:
        term, views = self._term, VIEWS[f"scores.{name}"]
        if f"scores.{name}" not in term.reads:
            raise LossError(
                f"the loss term {term.name} reads scores.{name} without declaring it; add 'scores.{name}' to "
                f"{type(term).__name__}.reads"
            )
        trained = [view in term.trains for view in views]
        if name == "hybrid" and any(trained) and not all(trained):
            both = [self._matrices.get("pooled"), self._matrices.get("late")]
            both = [matrix if train else matrix.detach() for matrix, train in zip(both, trained, strict=True)]
            return hybrid_sum(both[0], both[1], self._matrices.hybrid)
        matrix = self._matrices.get(name, self._cut if name == term.matryoshka else 0)
        return matrix if all(trained) else matrix.detach()

    @property
    def pooled(self) -> Tensor:  # type: ignore[override]
        return self._get("pooled")

    @property
    def late(self) -> Tensor:  # type: ignore[override]
        return self._get("late")

    @property
    def hybrid(self) -> Tensor:  # type: ignore[override]
        return self._get("hybrid")


def _checked(cost: Any, term: LossTerm) -> Tensor:
    """A term's cost, of the shape that it declares."""
    expected = () if len(term.mean_over) == 1 else (len(term.mean_over),)
    if not isinstance(cost, Tensor) or cost.shape != expected:
        got = f"a tensor {list(cost.shape)}" if isinstance(cost, Tensor) else f"{cost!r}"
        shape = "a scalar tensor" if not expected else f"a tensor {list(expected)}, one mean for each of mean_over"
        raise LossError(f"the loss term {term.name} returned {got}; {type(term).__name__}.forward returns {shape}")
    return cost


def _mean(value: Tensor, term: LossTerm, labels: Labels) -> Tensor:
    """A rank's means -> the rank's part of the mean over all ranks: times its shares, averaged over ``mean_over``."""
    shares = dict(zip(("pairs", "queries", "documents"), labels.shares, strict=True))
    if len(term.mean_over) == 1:
        return value * shares[term.mean_over[0]]
    weighted = [part * shares[of] for part, of in zip(value.unbind(), term.mean_over, strict=True)]
    return torch.stack(weighted).sum() / len(weighted)


def _metric(number: Tensor | float, cost: Tensor, term: LossTerm, labels: Labels) -> Tensor:
    value = torch.as_tensor(number, device=cost.device).detach().to(cost.dtype)
    return _mean(_checked(value, term), term, labels)


@torch.no_grad()
def _measure(scores: Mapping[str, Tensor], labels: Labels) -> dict[str, Tensor]:
    """Share of pairs whose document beats every negative, and the mean margin to the best negative (in cosines), by
    score; how many negatives a pair has, and how many documents are left out of them besides its own."""
    share = labels.shares[0]
    left = labels.negatives.sum() / labels.count
    others = (labels.negatives.shape[1] - 1) * len(labels.query) / labels.count
    parts = {"negatives": left * share, "masked": (others - left) * share}
    for name, matrix in scores.items():
        positive = matrix[labels.query, labels.document]
        best = matrix[labels.query].masked_fill_(~labels.negatives, float("-inf")).amax(1)
        known = best.isfinite()  # a pair alone in its batch has no negative, and no margin
        parts[f"accuracy/{name}"] = (positive > best).sum() / labels.count * share
        parts[f"margin/{name}"] = torch.where(known, positive - best, 0.0).sum() / known.sum() * share
    return parts
