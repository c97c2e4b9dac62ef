"""Choose a negative miner, a reranker or a teacher by name: built-in, of an installed package, or ``module:function``.

    miner      MiningTask -> {query id: document ids}         smart-train mine --miner, mining.miner in a recipe
    reranker   [(query text, document), ...] -> scores        smart-train mine --reranker, mining.reranker
    teacher    [(query text, document), ...] -> scores        smart-train score --teacher, and mine --teacher

The protocols are ``mining.miner.Miner`` and ``mining.pair_scores.PairScorer``; docs/mining.md has an example of each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import isclass, signature
from typing import Any

from smart_train.config.schema import Component
from smart_train.core.errors import ExtensionError
from smart_train.core.registry import Registry

MINERS = Registry("negative miner", "smart_train.miners", {"by_score": "smart_train.mining.miner:mine_by_score"})
RERANKERS = Registry("reranker", "smart_train.rerankers", {})
TEACHERS = Registry(
    "teacher",
    "smart_train.teachers",
    {
        "encoder": "smart_train.mining.teachers:EncoderTeacher",
        "cross_encoder": "smart_train.mining.teachers:CrossEncoderTeacher",
        "bm25": "smart_train.mining.teachers:BM25Teacher",
        "ensemble": "smart_train.mining.teachers:EnsembleTeacher",
    },
)


def check_callable(registry: Registry, chosen: Component) -> Any:
    """Return what the name stands for: a function of one argument, or a class whose objects are such functions.

    Nothing is created and nothing is called, so a wrong name costs no time.
    Raises ExtensionError if the name cannot be imported, is not callable, or does not accept its options.
    """
    target = registry.resolve(chosen.type)
    named = f"the {registry.kind} {chosen.type!r}"
    fix = "name a function of one argument, or a class whose objects can be called with one argument"
    if not callable(target) or (isclass(target) and not any("__call__" in vars(base) for base in target.__mro__)):
        what = "is a class without __call__" if isclass(target) else f"is a {type(target).__name__}"
        raise ExtensionError(f"{named} {what} and cannot be called", fix)
    try:
        parameters = signature(target)
    except ValueError:  # some functions written in C have no signature
        return target
    try:
        parameters.bind(*([] if isclass(target) else [None]), **chosen.options)
    except TypeError as error:
        raise ExtensionError(f"{named} cannot be called with {_described(chosen, target)} ({error})", fix) from None
    return target


def _described(chosen: Component, target: Any) -> str:
    options = f"the options {', '.join(chosen.options)}" if chosen.options else "no options"
    return options if isclass(target) else f"one argument and {options}"


def load_callable(registry: Registry, chosen: Component | str) -> Callable[[Any], Any]:
    """Return the chosen function with its options bound; a class is instantiated with them.

    Raises ExtensionError as ``check_callable`` does.
    """
    chosen = Component(chosen) if isinstance(chosen, str) else chosen
    target = check_callable(registry, chosen)
    if isclass(target):
        made: Any = target(**chosen.options)
        return made  # type: ignore[no-any-return]
    return partial(target, **chosen.options)
