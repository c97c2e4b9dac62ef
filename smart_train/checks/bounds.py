"""Check single values of a recipe: bounds, duplicates, widths, components."""

from __future__ import annotations

from collections.abc import Iterator

from smart_train.config.schema import Component, LateBlock
from smart_train.config.typed_values import Problem
from smart_train.core.errors import ExtensionError
from smart_train.core.registry import Registry

Problems = Iterator[Problem]


def at_least(key: str, value: float | None, least: int) -> Problems:
    """Yield a problem where a value is below the least that it may be; None is no value."""
    if value is not None and value < least:
        fix = f"write {least} or more" if least else "write 0 (off) or more"
        yield Problem(key, f"is {value:g}, must be at least {least}", fix)


def above(key: str, value: float, limit: float, fix: str) -> Problems:
    """Yield a problem where a value is not above a limit."""
    if value <= limit:
        yield Problem(key, f"is {value:g}, must be above {limit:g}", fix)


def component(key: str, chosen: Component, registry: Registry) -> Problems:
    """Yield a problem where the registry has no such component, or the component does not accept its options."""
    try:
        registry.check(chosen.type, chosen.options)
    except ExtensionError as error:
        yield Problem(key, error.what, error.fix)


def distinct(key: str, values: list[int]) -> Problems:
    """Yield a problem where a list has a value twice."""
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        yield Problem(key, f"has {', '.join(map(str, twice))} twice", "name each once")


def widths(key: str, values: list[int]) -> Problems:
    """Yield problems of Matryoshka widths: duplicates, and widths below 1."""
    yield from distinct(key, values)
    for width in values:
        yield from at_least(key, width, 1)


def layers(late: LateBlock) -> list[int]:
    """late.layer as a list."""
    return [late.layer] if isinstance(late.layer, int) else list(late.layer)
