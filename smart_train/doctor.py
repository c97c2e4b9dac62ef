"""What a recipe needs, under every launch file and on so many GPUs; what fits, and what to change where nothing does.

Knows: subjects, needs, launch files.  Does not know: this machine (its memory is a number here), printing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from smart_train.advice import lowered
from smart_train.base_config import read_base
from smart_train.blocks import Recipe
from smart_train.data.formats import image_column
from smart_train.data.ids import DataError
from smart_train.launches import Launch
from smart_train.needs import Need, Verdict, need
from smart_train.recipe_check import check
from smart_train.recipe_types import RecipeError
from smart_train.subject import Subject


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    need: Need
    verdict: Verdict


@dataclass
class Diagnosis:
    """problems: what would stop the run, in the recipe or on this machine; rows: by number of GPUs, then by launch
    file; advice: what to take, or what to change."""

    subject: Subject
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


def examine(
    recipe: Recipe, launches: Sequence[Launch], gpus: Sequence[int], memory: int | None, ram: int | None
) -> Diagnosis:
    """gpus: numbers of GPUs of a machine to look at; memory: bytes of one; ram: of a machine; None = not known.

    On a CPU (training.use_cpu) ``memory`` is not looked at: its ranks share ``ram``.
    Mistakes are told, and what can be counted all the same is counted.  Raises RecipeError where a mistake lets nothing
    be counted (no base, a head that is none); AdapterError as the encoder does.
    """
    wrong = _wrong(recipe)
    problems = [] if wrong is None else [problem.told(recipe.where) for problem in wrong.problems]
    on_cpu = bool(recipe.training.get("use_cpu"))
    try:
        base = read_base(recipe.model.base, recipe.model.revision, recipe.model.trust_remote_code)
        subject = Subject(recipe, base, base.vision and _images(recipe), on_cpu)
        subject.rows(1)
    except Exception as error:
        if wrong is None:
            raise
        raise wrong from error  # what is told of it says more than where the counting broke
    least = [launch for launch in launches if not on_cpu or launch.machines == 1]
    rows = [Row(n, n.verdict(*_room(subject, n, memory, ram))) for count in gpus for n in _needs(subject, least, count)]
    return Diagnosis(subject, problems, rows, list(_advice(subject, least, rows, memory, ram)))


def _wrong(recipe: Recipe) -> RecipeError | None:
    """What would stop the run before its first step."""
    try:
        check(recipe)
    except RecipeError as error:
        return error
    return None


def _images(recipe: Recipe) -> bool:
    """Whether documents are images; where the data cannot be looked at, a vision base is there for them."""
    if recipe.data.image == "":
        return False
    try:
        return image_column(recipe.data) is not None
    except DataError:
        return True


def _needs(subject: Subject, launches: Sequence[Launch], gpus: int) -> list[Need]:
    return [need(subject, launch, gpus) for launch in launches]


def _room(subject: Subject, found: Need, memory: int | None, ram: int | None) -> tuple[int | None, int | None]:
    """(bytes that a rank may have, bytes of the machine's RAM)."""
    if not subject.on_cpu:
        return memory, ram
    return None if ram is None else ram // found.ranks, ram


# Advice --------------------------------------------------------------------------------------------------------------


def _advice(
    subject: Subject, launches: Sequence[Launch], rows: Sequence[Row], memory: int | None, ram: int | None
) -> Iterator[str]:
    if (ram if subject.on_cpu else memory) is None:
        yield "no GPU here: --memory GIB says what would fit on one"
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
    """The plainest first, but all GPUs; several machines last."""
    engine, found = row.need.engine, row.need
    several = found.ranks > found.gpus
    offloaded = engine.offload_weights + engine.offload_optimiser
    return several, found.ranks < found.gpus, offloaded, engine.sharded, engine.stage


def _instead(best: Row, rows: Sequence[Row]) -> str:
    without = [row.need.launch for row in rows if row.verdict == "does not fit" and _order(row) < _order(best)]
    return f" ({', '.join(without)} would not fit)" if without else ""


def _lowered(subject: Subject, launches: Sequence[Launch], gpus: int, memory: int | None, ram: int | None) -> str:
    def least(recipe: Recipe) -> Need:
        one = subject.changed(recipe)
        return min(_needs(one, [launch for launch in launches if launch.machines == 1] or launches, gpus), key=_peak)

    def fits(found: Need) -> bool:
        return found.verdict(*_room(subject, found, memory, ram)) == "fits"

    pairs = subject.pairs(1) * max(launch.ranks(gpus) for launch in launches)
    changes, found = lowered(subject.recipe, least, fits, pairs)
    said = " ".join(f"{key}={value}" for key, value in changes.items())
    if fits(found):
        return f"nothing fits as it is; it would with launch/{found.launch}.yaml and {said}"
    lower = f", even with {said}" if said else ""
    return f"nothing fits; the least is {found.peak / 2**30:.1f} GiB with launch/{found.launch}.yaml{lower}"


def _peak(found: Need) -> int:
    return found.peak
