"""Make the loss terms of a recipe's block ``objective``, and name by key what is wrong with them.

Every built-in term has a short block (``objective.late``), or a number where its weight is all there is
(``objective.diversity``). ``objective.terms`` adds others, or takes the place of a built-in term's block.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from inspect import Parameter, signature
from typing import Any

from smart_train.config.schema import Component, ObjectiveBlock, Where
from smart_train.config.typed_values import WRONG, Problem, fit
from smart_train.core.errors import ExtensionError
from smart_train.losses.base import LOSSES, LossTerm, declaration_problems, name_problem, no_loss
from smart_train.losses.contrastive import Contrastive
from smart_train.losses.schedule import points_problem, scheduled_problems

SCHEDULE = "objective.schedule."


@dataclass
class RecipeTerm:
    """A term and where the recipe says so.

    block: the key of its block or of its entry in objective.terms; keys: option -> the key that gives it
    short: whether it is written as a short block
    """

    term: LossTerm
    block: str
    keys: dict[str, str]
    short: bool

    def key(self, option: str = "weight") -> str:
        return self.keys.get(option, self.block if not self.short else f"{self.block}.{option}")

    def schedule_name(self, attribute: str) -> str:
        """Return the key of an attribute in objective.schedule: late.weight, diversity, hardness, my_term.weight."""
        key = self.keys.get(attribute, "objective.terms.")
        entry = key.startswith("objective.terms.")
        return f"{self.term.name}.{attribute}" if entry else key.removeprefix("objective.")


@dataclass
class RecipeTerms:
    """The loss terms of a recipe.

    terms: every term that could be made, the built-in ones that are off included; problems: what is wrong, by key
    """

    objective: ObjectiveBlock
    terms: list[RecipeTerm] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def active(self) -> list[RecipeTerm]:
        """Terms whose weight is not 0, or may be at another time."""
        names = self.objective.schedule
        return [one for one in self.terms if one.term.weight != 0 or one.schedule_name("weight") in names]

    @property
    def schedule(self) -> dict[str, list[list[float]]]:
        """Return the recipe's schedule as ``Joint`` takes it: TERM.ATTRIBUTE -> points, of the active terms."""
        return {
            f"{one.term.name}.{attribute}": points
            for key, points in self.objective.schedule.items()
            for one, attribute in self.targets(key)
            if one in self.active
        }

    def targets(self, key: str) -> list[tuple[RecipeTerm, str]]:
        """Return the terms and attributes that a key of objective.schedule names."""
        return [(one, name) for one in self.terms for name in one.term.schedulable if one.schedule_name(name) == key]

    @property
    def schedulable(self) -> list[str]:
        """Return every key that objective.schedule may have: weights, then what all terms share, then the others."""
        names = [one.schedule_name(name) for one in self.terms for name in one.term.schedulable]
        weights = [one.schedule_name("weight") for one in self.terms]
        return sorted(dict.fromkeys(names), key=lambda name: 0 if name in weights else 1 + ("." in name))

    @property
    def learns(self) -> bool:
        """Return whether any active term compares documents; regularizers, which are means over rows, do not."""
        return any("pairs" in one.term.mean_over for one in self.active)

    def trains(self, view: str) -> bool:
        """Return whether any active term gives the view, ``pooled`` or ``tokens``, a gradient."""
        return any(view in one.term.trains for one in self.active)


def read_terms(objective: ObjectiveBlock, trusted: bool = True, where: Where | None = None) -> RecipeTerms:
    """Make the terms of a recipe and find what is wrong with them; raises nothing.

    trusted: False refuses every term that is not of this package; where: which keys the recipe itself writes
    """
    result = RecipeTerms(objective)
    replaced = {entry.type for entry in objective.terms if entry.type in LOSSES.builtin}
    for name in LOSSES.builtin:
        if name not in replaced:
            result.terms.append(_short(name, objective))
        elif _written(name, objective, where):
            what = "is given, and objective.terms has the same term"
            result.problems.append(Problem(f"objective.{name}", what, "keep one of the two"))
    for number, entry in enumerate(objective.terms):
        one = _entry(entry, f"objective.terms.{number}", objective, trusted, result.problems)
        result.terms += [one] if one is not None else []
    for one in result.terms:
        result.problems += [Problem(one.key(option), what, fix) for option, what, fix in one.term.problems()]
    result.problems += [*_same_names(result), *_off(result), *_schedule(result)]
    if not result.learns and not any(problem.key.startswith("objective.terms") for problem in result.problems):
        result.problems.append(Problem("objective", *no_loss()))
    result.problems = list(dict.fromkeys(result.problems))
    return result


def _short(name: str, objective: ObjectiveBlock) -> RecipeTerm:
    """A built-in term from its block, or from its weight where that is all there is."""
    block, key = getattr(objective, name), f"objective.{name}"
    cls: type[LossTerm] = LOSSES.resolve(name)
    options = dict(vars(block)) if dataclasses.is_dataclass(block) else {"weight": block}
    keys = {option: f"{key}.{option}" if dataclasses.is_dataclass(block) else key for option in options}
    keys |= {option: f"objective.{option}" for option in cls.shared_options}
    return RecipeTerm(cls(**options, **_shared(cls, objective)), key, keys, short=True)


def _shared(cls: type[LossTerm], objective: ObjectiveBlock) -> dict[str, Any]:
    return {option: getattr(objective, option) for option in cls.shared_options if hasattr(objective, option)}


def _written(name: str, objective: ObjectiveBlock, where: Where | None) -> bool:
    """Return whether the recipe sets a built-in term's block."""
    key = f"objective.{name}"
    if any(line == key or line.startswith(f"{key}.") for line in (where.lines if where else ())):
        return True
    return bool(getattr(objective, name) != getattr(ObjectiveBlock(), name))


def _entry(
    entry: Component, key: str, objective: ObjectiveBlock, trusted: bool, problems: list[Problem]
) -> RecipeTerm | None:
    """A term of objective.terms, or None with its problems added."""
    try:
        cls = LOSSES.resolve(entry.type, trusted=trusted)
    except ExtensionError as error:
        problems.append(Problem(key, error.what, error.fix))
        return None
    except Exception as error:  # the module is the user's own code
        what = f"{entry.type} cannot be imported: {type(error).__name__}: {error}"
        problems.append(Problem(key, what, "correct the module"))
        return None
    if not (isinstance(cls, type) and issubclass(cls, LossTerm)):
        problems.append(Problem(key, f"{entry.type} is no loss term", "let it subclass smart_train.losses.LossTerm"))
        return None
    options = dict(entry.options)
    name = options.pop("name", cls.name)
    before, wrong_name = len(problems), name_problem(name)
    if wrong_name is not None:
        problems.append(Problem(f"{key}.name", wrong_name, "write name: WORD, another one"))
    options = _fitted(cls, options, key, problems)
    if len(problems) > before:
        return None
    later = {} if _accepts(cls, "weight") or "weight" not in options else {"weight": options.pop("weight")}
    keys = {option: f"{key}.{option}" for option in entry.options}
    shared = {option: value for option, value in _shared(cls, objective).items() if option not in options}
    keys |= {option: f"objective.{option}" for option in shared}
    try:
        term = cls(**options, **shared)
    except Exception as error:  # the constructor is the user's own code
        what = f"{entry.type} cannot be made: {type(error).__name__}: {error}"
        problems.append(Problem(key, what, "correct its options"))
        return None
    for attribute, value in later.items():
        setattr(term, attribute, value)
    if term.name != name:
        term.name = name
    wrong = list(declaration_problems(term))
    problems += [Problem(key, what, fix) for what, fix in wrong]
    return None if wrong else RecipeTerm(term, key, keys, short=False)


def _accepts(cls: type[LossTerm], option: str) -> bool:
    parameters = signature(cls).parameters
    return option in parameters or any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())


def _fitted(cls: type[LossTerm], options: Mapping[str, Any], key: str, problems: list[Problem]) -> dict[str, Any]:
    """The options, as the annotations of the constructor want them; a problem for each that it does not have."""
    kinds = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    names = [name for name, p in signature(cls).parameters.items() if p.kind in kinds]
    try:
        hints = typing.get_type_hints(cls.__init__)
    except Exception:  # annotations of another module that cannot be resolved: values are not checked
        hints = {}
    hints = {"weight": float} | {name: hint for name, hint in hints.items() if name != "return"}
    fitted: dict[str, Any] = {}
    for option, value in options.items():
        if option != "weight" and not _accepts(cls, option):
            known = ["weight", *(name for name in names if name != "weight"), "name"]
            near = get_close_matches(option, known, 1, 0.5)
            what = f"{cls.name} has no such option" + (f", the nearest is {near[0]}" if near else "")
            problems.append(Problem(f"{key}.{option}", what, f"choose from {', '.join(known)}"))
            continue
        one = fit(value, hints[option], f"{key}.{option}", problems) if option in hints else value
        fitted |= {option: one} if one is not WRONG else {}
    return fitted


def _same_names(result: RecipeTerms) -> Iterator[Problem]:
    taken: dict[str, RecipeTerm] = {}
    for one in result.active:
        if one.term.name in taken:
            what = f"is named {one.term.name}, as {taken[one.term.name].block} is"
            yield Problem(one.block, what, "give one of them another name (name: ...)")
        taken[one.term.name] = one


def _off(result: RecipeTerms) -> Iterator[Problem]:
    """Options of the contrastive terms, given while all of these are off."""
    if any(isinstance(one.term, Contrastive) for one in result.active):
        return
    defaults, objective = ObjectiveBlock(), result.objective
    names = [name for name in LOSSES.builtin if issubclass(LOSSES.resolve(name), Contrastive)]
    for option in Contrastive.shared_options:
        if option in objective.schedule or getattr(objective, option) != getattr(defaults, option):
            what = f"is a setting of the {', '.join(names[:-1])} and {names[-1]} terms, which are all off"
            yield Problem(f"objective.{option}", what, "remove it, or give one of them a weight")


def _schedule(result: RecipeTerms) -> Iterator[Problem]:
    """Keys, points and values of objective.schedule, and that there is a loss when training begins."""
    schedule, wrong = result.objective.schedule, False
    for key, points in schedule.items():
        for what, fix in _key_problems(key, points, result):
            wrong = True
            yield Problem(SCHEDULE + key, what, fix)
    if schedule and not wrong and result.learns:
        learning = [one for one in result.active if "pairs" in one.term.mean_over]
        points_of = [schedule.get(one.schedule_name("weight"), [[0.0, one.term.weight]]) for one in learning]
        if not any(points[0][1] for points in points_of):
            what = "every weight of the loss is 0 when training begins, so the first steps would learn nothing"
            yield Problem("objective.schedule", what, "let one weight start above 0")


def _key_problems(key: str, points: Any, result: RecipeTerms) -> Iterator[tuple[str, str]]:
    """Return what is wrong with one key of objective.schedule, and what to do."""
    targets, what = result.targets(key), points_problem(points)
    if not targets:
        near = get_close_matches(key, result.schedulable, 1, 0.5)
        fix = f"choose from {', '.join(result.schedulable)}"
        if near and near[0] not in result.objective.schedule:
            yield f"cannot be scheduled, the nearest is {near[0]}", f"write {near[0]}, or {fix}"
        else:
            yield "cannot be scheduled", fix
    elif what is not None:
        yield what, "write points [share of training, value], for example [[0, 0], [0.5, 1]]"
    elif not any(value for _, value in points):
        yield "is 0 throughout", "remove it, or let a value be above 0"
    else:
        yield from scheduled_problems([(one.term, name) for one, name in targets], points)
