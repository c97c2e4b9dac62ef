"""Diagnose a recipe: its memory under every launch file, what fits, and what to change where nothing does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from smart_train.checks.recipe import check
from smart_train.config.schema import Component, Recipe
from smart_train.config.typed_values import RecipeError
from smart_train.core.errors import DataError, written
from smart_train.data.load import image_column
from smart_train.models.base_config import language_model_advice, read_base
from smart_train.planning.launch_files import Launch
from smart_train.planning.memory_model import MemoryModel
from smart_train.planning.memory_requirements import MemoryRequirement, Verdict, memory_requirement
from smart_train.training.batch_size import chunk_rows

# Limits of what advice lowers.
PIXELS = 1 << 18  # of a page; with fewer, small print cannot be read
TOKENS = 64  # of a document; fewer hold hardly a sentence
WIDTH = 128  # of tokens, as ColBERT's
PAIRS = 32  # of a batch; fewer give few negatives
GAIN = 0.98  # a change must lower the peak at least to this share


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    need: MemoryRequirement
    verdict: Verdict


@dataclass
class Diagnosis:
    """Result of ``diagnose``.

    problems: what would stop the run, in the recipe or on this machine; rows: by number of GPUs, then by launch file;
    advice: which launch file to use, or what to change
    """

    subject: MemoryModel
    problems: list[str]
    rows: list[Row]
    advice: list[str]

    def plain(self) -> dict[str, Any]:
        """For --json; sizes in bytes."""
        subject = self.subject
        return {
            "problems": self.problems,
            "parameters": dataclasses.asdict(subject.weights) | subject.blueprint.counts(),
            "lengths": dataclasses.asdict(subject.lengths),
            "pairs": subject.recipe.objective.batch or subject.pairs(1),
            "cached": subject.cached,
            "needs": [dataclasses.asdict(row.need) | {"verdict": row.verdict} for row in self.rows],
            "advice": self.advice,
        }


def diagnose(
    recipe: Recipe, launches: Sequence[Launch], gpus: Sequence[int], memory: int | None, ram: int | None
) -> Diagnosis:
    """Compute the memory of a recipe under every launch file, and advise.

    gpus: numbers of GPUs of a machine to try; memory: bytes of one GPU; ram: bytes of a machine; None = not known
    On a CPU (training.use_cpu) the ranks share ``ram``, and ``memory`` is not used.
    Mistakes in the recipe become problems. Raises RecipeError if nothing can be counted because of one (no base, an
    unknown head), and AdapterError as the encoder does.
    """
    wrong, model = _wrong(recipe), recipe.model
    problems = [] if wrong is None else [written(problem.message(recipe.where)) for problem in wrong.problems]
    on_cpu = bool(recipe.training.get("use_cpu"))
    try:
        base = read_base(model.base, model.revision, model.trust_remote_code, model.pooling)
        subject = MemoryModel(recipe, base, base.vision and _images(recipe), on_cpu)
        subject.rows(1)
    except Exception as error:
        if wrong is None:
            raise
        raise wrong from error  # the recipe's mistake says more than where the counting broke
    least = [launch for launch in launches if not on_cpu or launch.machines == 1]
    rows = [
        Row(n, n.verdict(*_available(subject, n, memory, ram))) for count in gpus for n in _needs(subject, least, count)
    ]
    advice = list(_advice(subject, least, rows, memory, ram))
    if base.language_model and model.pooling is None:
        advice.append(language_model_advice(model.base))
    return Diagnosis(subject, problems, rows, advice)


def _wrong(recipe: Recipe) -> RecipeError | None:
    """Return the recipe's mistakes, None without any."""
    try:
        check(recipe)
    except RecipeError as error:
        return error
    return None


def _images(recipe: Recipe) -> bool:
    """Return whether documents are images; if the data cannot be read, a vision base means that they are."""
    if recipe.data.image == "":
        return False
    try:
        return image_column(recipe.data) is not None
    except DataError:
        return True


def _needs(subject: MemoryModel, launches: Sequence[Launch], gpus: int) -> list[MemoryRequirement]:
    return [memory_requirement(subject, launch, gpus) for launch in launches]


def _available(
    subject: MemoryModel, found: MemoryRequirement, memory: int | None, ram: int | None
) -> tuple[int | None, int | None]:
    """Return (bytes that a rank may use, bytes of the machine's RAM)."""
    if not subject.on_cpu:
        return memory, ram
    return None if ram is None else ram // found.ranks, ram


# Advice --------------------------------------------------------------------------------------------------------------


def _advice(
    subject: MemoryModel, launches: Sequence[Launch], rows: Sequence[Row], memory: int | None, ram: int | None
) -> Iterator[str]:
    if (ram if subject.on_cpu else memory) is None:
        yield "no GPU here; give the memory of one (--memory GIB) to see what fits"
        return
    for gpus in sorted({row.need.gpus for row in rows}):
        mine = [row for row in rows if row.need.gpus == gpus]
        good = [row for row in mine if row.verdict == "fits" and not row.need.notes]
        where = f"{gpus} GPU{'s' if gpus > 1 else ''}" if not subject.on_cpu else "this machine"
        if good:
            best = min(good, key=_order)
            yield f"{where}: --config_file launch/{best.need.launch}.yaml{_instead(best, mine)}"
            continue
        close = [row for row in mine if row.verdict == "close"]
        if close:
            yield f"{where}: nothing fits with room to spare; {min(close, key=_order).need.launch}.yaml may do"
        yield f"{where}: {_lowered(subject, launches, gpus, memory, ram)}"


def _order(row: Row) -> tuple[int, ...]:
    """Sort key: the simplest engine that uses all GPUs first; several machines last."""
    engine, found = row.need.engine, row.need
    several = found.ranks > found.gpus
    offloaded = engine.offload_weights + engine.offload_optimiser
    return several, found.ranks < found.gpus, offloaded, engine.sharded, engine.stage


def _instead(best: Row, rows: Sequence[Row]) -> str:
    without = [row.need.launch for row in rows if row.verdict == "does not fit" and _order(row) < _order(best)]
    return f" ({', '.join(without)} would not fit)" if without else ""


def _lowered(subject: MemoryModel, launches: Sequence[Launch], gpus: int, memory: int | None, ram: int | None) -> str:
    def least(recipe: Recipe) -> MemoryRequirement:
        one = subject.changed(recipe)
        return min(_needs(one, [launch for launch in launches if launch.machines == 1] or launches, gpus), key=_peak)

    def fits(found: MemoryRequirement) -> bool:
        return found.verdict(*_available(subject, found, memory, ram)) == "fits"

    pairs = subject.pairs(1) * max(launch.ranks(gpus) for launch in launches)
    changes, found = reduce_memory(subject.recipe, least, fits, pairs)
    said = " ".join(f"{key}={value}" for key, value in changes.items())
    if fits(found):
        return f"nothing fits as it is; it would with launch/{found.launch}.yaml and {said}"
    lower = f", even with {said}" if said else ""
    return f"nothing fits; the least is {found.peak / 2**30:.1f} GiB with launch/{found.launch}.yaml{lower}"


def _peak(found: MemoryRequirement) -> int:
    return found.peak


# Changes that save memory ---------------------------------------------------------------------------------------------

Change = tuple[str, Any, Recipe]
"""(key, its value, the recipe with it)"""


def reduce_memory(
    recipe: Recipe,
    measure: Callable[[Recipe], MemoryRequirement],
    fits: Callable[[MemoryRequirement], bool],
    caches: int,
) -> tuple[dict[str, Any], MemoryRequirement]:
    """Return the changes (key -> value) after which a recipe fits, or all that help, and its requirement then.

    One key changes after another; those that cost only time come first.
    measure: the smallest requirement of a recipe; caches: pairs of a step, for gradient caching where it is off
    """
    found, changed = measure(recipe), dict[str, Any]()
    for step in (_half, lambda r: _cached(r, caches), _checkpointing, _chunk, _pixels, _tokens, _width, _batch):
        while not fits(found):
            change = next(iter(step(recipe)), None)
            tried = measure(change[2]) if change is not None else found
            if change is None or tried.peak > GAIN * found.peak:
                break
            (key, value, recipe), found = change, tried
            changed[key] = value
    return changed, found


def _trained(recipe: Recipe, **values: Any) -> Recipe:
    kept = {name: value for name, value in (recipe.training | values).items() if value is not None}
    return _as(recipe, training=kept)


def _as(recipe: Recipe, **blocks: Any) -> Recipe:
    other = replace(recipe, **blocks)
    other.where = recipe.where
    return other


def _half(recipe: Recipe) -> Iterator[Change]:
    if not (recipe.training.get("bf16") or recipe.training.get("fp16") or recipe.training.get("use_cpu")):
        yield "training.bf16", "true", _trained(recipe, bf16=True)


def _cached(recipe: Recipe, pairs: int) -> Iterator[Change]:
    if recipe.objective.batch is None and recipe.adapter.kind != "frozen":
        without = _trained(recipe, per_device_train_batch_size=None)
        found = _as(without, objective=replace(recipe.objective, batch=pairs))
        yield "objective.batch", f"{pairs} (without training.per_device_train_batch_size)", found


def _checkpointing(recipe: Recipe) -> Iterator[Change]:
    if not recipe.training.get("activation_checkpointing") and recipe.adapter.kind != "frozen":
        yield "training.activation_checkpointing", "true", _trained(recipe, activation_checkpointing=True)


def _chunk(recipe: Recipe) -> Iterator[Change]:
    rows = chunk_rows(recipe.objective) or 0
    if recipe.objective.batch is not None and rows > 1:
        found = _as(recipe, objective=replace(recipe.objective, chunk_rows=rows // 2))
        yield "objective.chunk_rows", rows // 2, found


def _pixels(recipe: Recipe) -> Iterator[Change]:
    pixels = recipe.model.max_pixels or 0
    if pixels >= 2 * PIXELS:
        yield "model.max_pixels", pixels // 2, _as(recipe, model=replace(recipe.model, max_pixels=pixels // 2))


def _tokens(recipe: Recipe) -> Iterator[Change]:
    given = [n for n in (recipe.data.document_tokens, recipe.model.document_tokens) if n is not None]
    tokens = min(given, default=1024)
    if tokens >= 2 * TOKENS:
        found = _as(recipe, data=replace(recipe.data, document_tokens=tokens // 2))
        yield "data.document_tokens", tokens // 2, found


def _width(recipe: Recipe) -> Iterator[Change]:
    if recipe.late.dim is None and recipe.late.head.type == "none":
        late = replace(recipe.late, dim=WIDTH, head=Component("layernorm_linear"))
        yield "late.head", f"layernorm_linear late.dim={WIDTH}", _as(recipe, late=late)


def _batch(recipe: Recipe) -> Iterator[Change]:
    objective = recipe.objective
    if objective.batch is not None and objective.batch >= 2 * PAIRS:
        yield (
            "objective.batch",
            objective.batch // 2,
            _as(recipe, objective=replace(objective, batch=objective.batch // 2)),
        )
        return
    rows = recipe.training.get("per_device_train_batch_size", 8)
    if objective.batch is None and rows >= 2:
        yield "training.per_device_train_batch_size", rows // 2, _trained(recipe, per_device_train_batch_size=rows // 2)
