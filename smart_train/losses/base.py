"""Define the interface of loss terms, built-in or your own, and the registry of their names.

A term declares once what it reads and what it trains. ``Joint`` asks the declaration for what it computes and gathers,
the recipe check for what it refuses, ``smart-train doctor`` for the memory, the data for a teacher's scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.core.errors import LossError
from smart_train.core.registry import Registry
from smart_train.losses.labels import Labels

LOSSES = Registry(
    "loss term",
    "smart_train.losses",
    {
        "pooled": "smart_train.losses.contrastive:Pooled",
        "late": "smart_train.losses.contrastive:Late",
        "hybrid": "smart_train.losses.contrastive:Hybrid",
        "self_distillation": "smart_train.losses.distillation:SelfDistillation",
        "teacher": "smart_train.losses.distillation:Teacher",
        "diversity": "smart_train.losses.regularizers:Diversity",
        "overlap": "smart_train.losses.regularizers:Overlap",
    },
)
"""Loss terms by short name. Another package adds its own with an entry point of the group ``smart_train.losses``."""

VIEWS = {
    "scores.pooled": ("pooled",),
    "scores.late": ("tokens",),
    "scores.hybrid": ("pooled", "tokens"),
    "embeddings.pooled": ("pooled",),
    "embeddings.tokens": ("tokens",),
}
"""What a term may read of the embeddings -> the views of a row that it is made of."""

READABLE = (*VIEWS, "labels.grades", "labels.teacher", "labels.query_repeats", "labels.all_ranks")
"""Everything that ``LossTerm.reads`` may name."""

RESERVED = ("loss", "accuracy", "margin", "negatives", "masked", "batch", "gather", "dev")
"""Names that a term cannot have: keys of the log begin with them."""

Value = Tensor | tuple[Tensor, Mapping[str, Tensor | float]]
"""What ``LossTerm.forward`` returns: the cost, or the cost and metrics by name."""

Wrong = tuple[str, str, str]
"""(option, what is wrong, what to do)"""


class Scores:
    """The score matrices [B, N] of a batch, as one term sees them; each is computed at most once a step.

    A matrix that the term does not declare in ``reads`` is refused. One whose view is not in ``trains`` has no
    gradient.
    """

    pooled: Tensor
    late: Tensor
    hybrid: Tensor


class BatchEmbeddings:
    """The vectors of a batch, as one term sees them.

    queries: B rows of this rank; documents: N rows of all ranks that gather together; own_documents: those of them
    that are this rank's. ``pooled`` or ``tokens`` that the term does not declare in ``reads`` is refused; a view that
    is not in ``trains`` has no gradient.
    """

    def __init__(self, queries: Embeddings, documents: Embeddings, own: slice, term: LossTerm) -> None:
        self.queries: Embeddings = DeclaredEmbeddings(queries, term)
        self.documents: Embeddings = DeclaredEmbeddings(documents, term)
        self._documents, self._own, self._term = documents, own, term

    @property
    def own_documents(self) -> Embeddings:
        start, stop, _ = self._own.indices(len(self._documents))
        if (start, stop) == (0, len(self._documents)):
            return self.documents
        return DeclaredEmbeddings(self._documents.split(stop)[0].split(start)[1], self._term)


class LossTerm:
    """One term of the loss. Subclass it, declare what the term reads and trains, and write ``forward``.

    name:        names the term in the log (loss/NAME) and in schedules (NAME.weight); default: the class's name
    weight:      factor in the loss; 0 turns the term off
    temperature: divides scores, if the term has one
    reads:       what ``forward`` looks at, of READABLE: ``scores.pooled``, ``scores.late``, ``scores.hybrid`` (score
                 matrices), ``embeddings.pooled``, ``embeddings.tokens`` (vectors), ``labels.grades``,
                 ``labels.teacher``, ``labels.query_repeats``, ``labels.all_ranks`` (labels that not every batch has)
    trains:      the views that get a gradient: ``pooled``, ``tokens`` or both
    mean_over:   what the cost is a mean over. ``("pairs",)``, the default: the P drawn pairs of this rank. Or
                 ``queries``, ``documents`` (the rank's own): for both of them ``forward`` returns one mean each,
                 stacked to [2]. ``Joint`` weights means by the ranks' shares, so the mean over ranks is exact and no
                 term has to know about ranks.
    schedulable: attributes that a schedule may change during training
    shared_options: options that follow the recipe's key ``objective.OPTION`` unless the term's own entry gives them

    With Matryoshka widths, a term that reads exactly one of ``scores.pooled`` and ``scores.late`` whose view it trains
    is called once a width, and the mean over widths is the cost. Everything else has the full width.

    A term may also be an ``nn.Module`` (``class MyTerm(LossTerm, nn.Module)``) or hold some; the trainer moves them to
    its device. It has no trainable parameters of its own: they would be neither trained nor saved. Checkpoints do not
    save other state of a term either, so a resumed run starts with that of a new term.

    >>> import torch
    >>> class HardestNegative(LossTerm):
    ...     '''Hinge on the distance between the positive and the hardest negative, in cosines.'''
    ...
    ...     name, reads, trains = "hardest", ("scores.late",), ("tokens",)
    ...
    ...     def __init__(self, weight: float = 1.0, margin: float = 0.1) -> None:
    ...         super().__init__(weight)
    ...         self.margin = margin
    ...
    ...     def forward(self, scores, labels, embeddings):
    ...         positive = scores.late[labels.query, labels.document]  # [P]
    ...         hardest = scores.late[labels.query].masked_fill(~labels.negatives, -torch.inf).amax(1)  # [P]
    ...         costs = (self.margin - positive + hardest).relu()
    ...         return labels.mean(costs), {"distance": labels.mean(positive - hardest)}
    >>> HardestNegative(weight=0.5)
    HardestNegative(weight=0.5, margin=0.1)
    """

    name: str = ""
    weight: float = 1.0
    temperature: float | None = None
    reads: tuple[str, ...] = ()
    trains: tuple[str, ...] = ()
    mean_over: tuple[str, ...] = ("pairs",)
    schedulable: tuple[str, ...] = ("weight",)
    shared_options: tuple[str, ...] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not cls.name:
            cls.name = cls.__name__

    def __init__(self, weight: float = 1.0, temperature: float | None = None) -> None:
        super().__init__()  # of nn.Module, for a term that is both
        self.weight = weight
        if temperature is not None:
            self.temperature = temperature

    def forward(self, scores: Scores, labels: Labels, embeddings: BatchEmbeddings) -> Value:
        """Return the cost, a mean over the pairs (see ``mean_over``), or the cost and a dict of metrics.

        Metrics are means over what the cost is a mean over; they are logged as NAME/METRIC. Autocast is off; scores
        are float32 or wider.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def problems(self) -> Iterator[Wrong]:
        """Yield (option, what is wrong, what to do) for every value that cannot be right. Extend it with ``yield from
        super().problems()``."""
        if not _number(self.weight):
            yield "weight", f"is {self.weight!r}, which is no finite number", "write a number, 0 to turn the term off"
        elif self.weight < 0:
            yield "weight", f"is {self.weight:g}, must be at least 0", "write 0 (off) or more"
        if self.temperature is None:
            return
        if not _number(self.temperature):
            yield "temperature", f"is {self.temperature!r}, which is no finite number", "write a number such as 0.02"
        elif self.temperature <= 0:
            fix = "write 0.02 to 0.05 (scores are cosines)"
            yield "temperature", f"is {self.temperature:g}, must be above 0", fix

    def width_problem(self, pooled: int, tokens: int) -> tuple[str, str] | None:
        """Return (what is wrong, what to do) where the term cannot work with vectors of these widths."""
        return None

    @property
    def matrices(self) -> tuple[float, float]:
        """Memory for ``smart-train doctor``: [P, N] float32 matrices that a call holds at most, and that it keeps for
        the backward."""
        return (3.5, 1.3) if any(name.startswith("scores.") for name in self.reads) else (0.0, 0.0)

    @property
    def matryoshka(self) -> str | None:
        """Return the score over whose Matryoshka widths the cost is averaged; None = full width alone."""
        scores = ("pooled", "late")
        trained = [s for s in scores if f"scores.{s}" in self.reads and VIEWS[f"scores.{s}"][0] in self.trains]
        return trained[0] if len(trained) == 1 else None

    def __repr__(self) -> str:
        values = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"


def name_problem(name: Any) -> str | None:
    """Return what is wrong with a term's name, None = nothing. Names are parts of keys in the log and in schedules."""
    if not isinstance(name, str) or not name or "." in name or "/" in name:
        return f"is {name!r}, not a word without dots and slashes"
    return f"is {name!r}, which the log uses already" if name in RESERVED else None


def no_loss() -> tuple[str, str]:
    """Return what is wrong, and what to do, where no term tells documents apart (regularizers do not)."""
    names = [name for name in LOSSES.builtin if "pairs" in LOSSES.resolve(name).mean_over]
    return "every weight is 0, so there is no loss", f"give {', '.join(names[:-1])} or {names[-1]} a weight"


def declaration_problems(term: LossTerm) -> Iterator[tuple[str, str]]:
    """Yield (what is wrong, what to do) for a term whose declaration cannot be right, or that has parameters."""
    kind = type(term).__name__
    wrong = name_problem(term.name)
    if wrong is not None:
        yield f"the name {wrong}", "set another name"
    unknown = [name for name in term.reads if name not in READABLE]
    if unknown:
        yield f"{kind}.reads names {', '.join(map(repr, unknown))}", f"choose from {', '.join(READABLE)}"
    if not term.trains or not set(term.trains) <= {"pooled", "tokens"}:
        yield f"{kind}.trains is {term.trains!r}", "declare ('pooled',), ('tokens',) or ('pooled', 'tokens')"
    unread = [view for view in term.trains if not any(view in VIEWS.get(name, ()) for name in term.reads)]
    if unread and not unknown:
        what = f"{kind}.trains names {', '.join(unread)}, which nothing in its reads is made of"
        yield what, "declare what the term reads of it"
    allowed = {"pairs", "queries", "documents"}
    if not term.mean_over or not set(term.mean_over) <= allowed:
        yield f"{kind}.mean_over is {term.mean_over!r}", "declare ('pairs',), or 'queries' and 'documents'"
    parameters = _parameters(term)
    if parameters:
        names = ", ".join(parameters)
        what = f"{kind} has trainable parameters of its own ({names}), which a run neither trains nor saves"
        yield what, "compute them from scores and embeddings, or freeze them with requires_grad_(False)"


def _parameters(term: LossTerm) -> list[str]:
    """Names of the term's own tensors that want a gradient."""
    names = []
    values = dict(vars(term)) | (dict(term.named_parameters()) if isinstance(term, nn.Module) else {})
    for name, value in values.items():
        if isinstance(value, nn.Module):
            names += [f"{name}.{inner}" for inner, p in value.named_parameters() if p.requires_grad]
        elif isinstance(value, Tensor) and value.requires_grad:
            names.append(name)
    return names


def loss_modules(terms: Iterable[LossTerm]) -> list[nn.Module]:
    """Return the modules that terms are or hold."""
    return [one for term in terms for one in (term, *vars(term).values()) if isinstance(one, nn.Module)]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class DeclaredEmbeddings(Embeddings):
    """Embeddings of which a term gets only the views that it declares, without a gradient where it trains none."""

    def __init__(self, rows: Embeddings, term: LossTerm) -> None:
        self._rows, self._term = rows, term

    def __len__(self) -> int:
        return len(self._rows)

    def _declared(self, view: str) -> bool:
        """Return whether the view has a gradient; raises LossError where the term does not read it."""
        if f"embeddings.{view}" not in self._term.reads:
            raise LossError(
                f"the loss term {self._term.name} reads embeddings.{view} without declaring it; add "
                f"'embeddings.{view}' to {type(self._term).__name__}.reads, so that it is gathered from all ranks"
            )
        return view in self._term.trains

    @property
    def pooled(self) -> Tensor:  # type: ignore[override]
        return self._rows.pooled if self._declared("pooled") else self._rows.pooled.detach()

    @property
    def tokens(self) -> Tokens:  # type: ignore[override]
        tokens = self._rows.tokens
        return tokens if self._declared("tokens") else Tokens(tokens.values.detach(), tokens.lengths)
