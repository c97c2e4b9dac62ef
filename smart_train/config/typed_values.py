"""Turn plain values into typed blocks, with an error for everything that does not fit.

Types are strict: a silent conversion is a mistake that shows hours later. The one exception is a whole number where a
number is expected.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import Enum
from math import isfinite
from typing import Any, Literal, TypeVar, Union

from smart_train.config.schema import Component, Recipe, Where
from smart_train.core.errors import Message, Setting, SmartTrainError

COMPONENT = "{type: NAME, option: value}"
NAMES = {
    Component: f"a name, package.module:Class or {COMPONENT}",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a block of keys",
}
PLURAL = {
    Component: f"names, package.module:Class or {COMPONENT}",
    str: "texts",
    int: "whole numbers",
    float: "numbers",
}
MEANT = {  # keys of other programs -> the key here
    "lr": "training.learning_rate",
    "epochs": "training.num_train_epochs",
    "batch_size": "training.per_device_train_batch_size",
    "lora": "adapter",
    "peft": "adapter",
    "rank": "adapter.r",
    "loss": "objective",
    "dataset": "data",
    "datasets": "data",
    "eval": "evaluation",
    "model_name_or_path": "model.base",
    "max_length": "model.document_tokens",
    "max_seq_length": "model.document_tokens",
    "mini_batch_size": "objective.chunk_rows",
    "gradcache": "objective.batch",
    "grad_cache": "objective.batch",
    "gather_across_devices": "objective.gather",
}
WRONG = object()
T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """One mistake in a recipe.

    key: dotted key, "" for the file itself; what: what is wrong; fix: what to do
    place: file and line, where the key cannot tell them
    here: this machine lacks something; the recipe may work on another one
    """

    key: str
    what: Message
    fix: Message
    place: str | None = None
    here: bool = False

    def message(self, where: Where) -> Message:
        """Return the problem with its place. A key in a file stays as the file has it; a front end may name others."""
        key: Message = self.key if where.line(self.key) else Setting(self.key)
        return (f"{self.place or where.place(self.key)}: ", (key, ": ") if self.key else "", self.what, "; ", self.fix)


class RecipeError(SmartTrainError, ValueError):
    """A recipe cannot be used. One line a problem, in the order of the file: file, line, key, what is wrong, fix."""

    status = 2

    def __init__(self, problems: list[Problem], where: Where) -> None:
        self.problems = sorted(problems, key=lambda problem: where.line(problem.key) or 0)
        lines = [problem.message(where) for problem in self.problems]
        super().__init__(*[part for line in lines for part in ("\n", line)][1:])


def build(values: dict[str, Any], training: dict[str, Any], moved: dict[str, str], where: Where) -> Recipe:
    """Return the recipe of nested plain values.

    training: name -> type hint of every key the block ``training`` may have; moved: names that it had once -> the fix
    Raises RecipeError with every problem found.
    """
    problems: list[Problem] = []
    recipe = _block(Recipe, values, "", problems, training)
    known = recipe.training
    recipe.training = {}
    for name, value in known.items():
        key = f"training.{name}"
        if name in moved:
            problems.append(Problem(key, "is not a key of this block", moved[name]))
        elif name not in training:
            problems.append(unknown(key, [f"training.{n}" for n in training], training))
        elif value is not None or types.NoneType in _options(training[name]):  # null elsewhere: as if it were left out
            recipe.training[name] = fit(value, training[name], key, problems)
    if problems:
        raise RecipeError(problems, where)
    recipe.where = where
    return recipe


def make_block(cls: type[T], value: T | Mapping[str, Any] | None, name: str) -> T:
    """Return a block of the recipe that a program gives: as an object, as a dict of its keys, or None = defaults.

    name: the block's name in a recipe, for messages
    Raises RecipeError with every problem found, as for a recipe file.

    >>> from smart_train.config.schema import LateBlock
    >>> make_block(LateBlock, {"layer": 4, "head": "linear"}, "late").head.type
    'linear'
    """
    if isinstance(value, cls):
        return value
    problems: list[Problem] = []
    made: T = _block(cls, dict(value) if isinstance(value, Mapping) else value, f"{name}.", problems, {})
    if problems:
        raise RecipeError(problems, Where("Python"))
    return made


def _block(
    cls: Any, values: Any, prefix: str, problems: list[Problem], training: dict[str, Any], usual: Any = None
) -> Any:
    """Return one dataclass; an empty block (null) means its defaults.

    usual: the block as it is without ``values``, which its place decides: objective.hybrid has weight 0; None = cls()
    """
    usual = cls() if usual is None else usual
    if values is None:
        values = {}
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    if not isinstance(values, dict):
        what = f"must be a block of keys, got {describe_value(values)}"
        problems.append(Problem(prefix[:-1], what, f"its keys are {', '.join(names)}"))
        return usual
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = prefix + name
        if name not in names:
            problems.append(unknown(key, [prefix + n for n in names], training))
        elif is_block(hints[name]):
            found[name] = _block(hints[name], value, f"{key}.", problems, training, getattr(usual, name))
        elif value is None and typing.get_origin(hints[name]) is dict:
            found[name] = {}
        elif isinstance(value, dict) and (inner := _values_of(hints[name])) is not Any:
            found[name] = _entries(value, inner, f"{key}.", problems)
        else:
            fitted = fit(value, hints[name], key, problems)
            if fitted is not WRONG:
                found[name] = fitted
    return dataclasses.replace(usual, **found)


def _values_of(hint: Any) -> Any:
    """Return the type of the values of a block with free keys; Any if the hint names none."""
    return typing.get_args(hint)[1] if typing.get_origin(hint) is dict else Any


def _entries(values: dict[str, Any], hint: Any, prefix: str, problems: list[Problem]) -> dict[str, Any]:
    """Return the entries of a block with free keys and values of one type.

    A block inside it becomes dotted keys, as an override writes them; of equal keys the last one counts.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= {f"{name}.{k}": v for k, v in _entries(value, hint, f"{prefix}{name}.", problems).items()}
        elif (fitted := fit(value, hint, prefix + name, problems)) is not WRONG:
            found[name] = fitted
    return found


def is_block(hint: Any) -> bool:
    """Return whether a type is a block of keys. A component is written as one value."""
    return dataclasses.is_dataclass(hint) and hint is not Component


def keys(cls: Any = Recipe, prefix: str = "") -> list[str]:
    """Return every dotted key of the recipe, blocks included, without those of ``training``."""
    out = []
    for name, hint in typing.get_type_hints(cls).items():
        out.append(prefix + name)
        if is_block(hint):
            out += keys(hint, f"{prefix}{name}.")
    return out


def _like(a: str, b: str) -> float:
    return SequenceMatcher(None, a, b).ratio()


def nearest(key: str, siblings: list[str], elsewhere: list[str]) -> str:
    """Return the valid dotted key that was probably meant.

    A key of the same block if it is spelt alike, else a key of this name in another block, else the nearest one of the
    same block.
    """
    leaf = key.rpartition(".")[2]

    def alike(other: str) -> float:
        return _like(leaf, other.rpartition(".")[2])

    if leaf in MEANT:
        return MEANT[leaf]
    best: str = max(siblings, key=alike)
    if alike(best) >= 0.6:
        return best
    same = [k for k in elsewhere if alike(k) >= 0.85]
    return max(same, key=lambda k: (alike(k), _like(key, k))) if same else best


def unknown(key: str, siblings: list[str], training: dict[str, Any]) -> Problem:
    meant = nearest(key, siblings, keys() + [f"training.{name}" for name in training])
    block = key.rpartition(".")[0]
    names = [s.rpartition(".")[2] for s in siblings]
    listed = f" (keys of {block or 'a recipe'}: {', '.join(names)})" if len(names) < 20 else ""
    return Problem(key, f"there is no such key, the nearest is {meant}", f"write {meant}, or remove the line{listed}")


def fit(value: Any, hint: Any, key: str, problems: list[Problem]) -> Any:
    """Return the value as its type says, or WRONG with a problem added."""
    fitted = _fit(value, hint)
    if fitted is WRONG:
        what = f"must be {described(hint)}, got {describe_value(value)}"
        if isinstance(value, float) and not isfinite(value):
            what = f"must be finite, got {value}"
        problems.append(Problem(key, what, _fix(value, hint)))
    return fitted


def _options(hint: Any) -> list[Any]:
    return list(typing.get_args(hint)) if typing.get_origin(hint) in (Union, types.UnionType) else [hint]


def _choices(hint: Any) -> list[str]:
    """Return the texts that are allowed, if the hint lists them."""
    options = _options(hint)
    if any(isinstance(o, type) and issubclass(o, Enum) for o in options):
        return [str(member.value) for o in options if isinstance(o, type) and issubclass(o, Enum) for member in o]
    return [v for o in options if typing.get_origin(o) is Literal for v in typing.get_args(o)]


def _fit(value: Any, hint: Any) -> Any:
    choices = _choices(hint)
    for option in _options(hint):
        origin = typing.get_origin(option) or option
        if option is Any or (option is types.NoneType and value is None):
            return value
        if choices and isinstance(value, str):
            return value if value in choices else WRONG
        if origin is list and isinstance(value, list):
            inner = (typing.get_args(option) or (Any,))[0]
            items = [_fit(item, inner) for item in value]
            if not any(item is WRONG for item in items):
                return items
        elif option is Component:
            component = Component.parse(value)
            if component is not None:
                return component
        elif origin is dict and isinstance(value, dict):
            return value
        elif option is float and type(value) in (int, float) and isfinite(value):
            return value if int in _options(hint) else float(value)
        elif option in (str, int, bool) and type(value) is option:
            return value
    return WRONG


def described(hint: Any) -> str:
    """Return a type in words."""
    words = [f"one of {', '.join(_choices(hint))}"] if _choices(hint) else []
    for option in _options(hint):
        if typing.get_origin(option) is list or option is list:
            inner = (typing.get_args(option) or (Any,))[0]
            words.append(f"a list of {_plural(inner)}")
        elif option is types.NoneType:
            words.append("null")
        elif (name := NAMES.get(typing.get_origin(option) or option)) and not (_choices(hint) and option is str):
            words.append(name)
    return " or ".join(dict.fromkeys(words)) or "left out: it cannot be written in a recipe"


def _plural(hint: Any) -> str:
    """Return the type of a list's items in words."""
    if typing.get_origin(hint) is list:
        return f"lists of {_plural((typing.get_args(hint) or (Any,))[0])}"
    return str(PLURAL.get(hint) or " or ".join(_choices(hint)) or "values")


def describe_value(value: Any) -> str:
    """Return a value as the reader wrote it, with its type."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f'"{value}" (text)'
    if isinstance(value, dict):
        return "a block of keys"
    return f"the list {value}" if isinstance(value, list) else f"{value} ({type(value).__name__})"


def _fix(value: Any, hint: Any) -> str:
    options, choices = _options(hint), _choices(hint)
    if isinstance(value, dict) and Component in options:
        return f"write {COMPONENT}, with the name of the component as type"
    if choices and isinstance(value, str):
        return f"the nearest is {max(choices, key=lambda c: _like(value, c))}"
    if bool in options and str(value).lower() in ("yes", "no", "on", "off", "y", "n", "0", "1", "true", "false"):
        return f"write {'true' if str(value).lower() in ('yes', 'on', 'y', '1', 'true') else 'false'}"
    if isinstance(value, str) and (float in options or int in options) and _number(value) is not None:
        return f"remove the quotes: {value}" if _fit(_number(value), hint) is not WRONG else f"write {described(hint)}"
    if str in options and not isinstance(value, (dict, list)) and value is not None:
        return f'put it in quotes: "{value}"'
    lists = [o for o in options if typing.get_origin(o) is list]
    if any(typing.get_origin(item) is list for o in lists for item in typing.get_args(o)):
        return f"write {described(hint)}, such as [[0, 0], [0.5, 1]]"
    if lists and not isinstance(value, (list, dict)) and _fit([value], lists[0]) is not WRONG:
        return f"write [{value}]"
    return f"write {described(hint)}"


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None
