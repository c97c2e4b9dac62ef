"""Check the block ``adapter``."""

from __future__ import annotations

import re

from smart_train.checks.bounds import Problems, at_least, distinct
from smart_train.config.schema import Recipe
from smart_train.config.typed_values import Problem


def check_adapter(recipe: Recipe) -> Problems:
    """Yield what is wrong with the block ``adapter`` by itself."""
    adapter = recipe.adapter
    yield from at_least("adapter.r", adapter.r, 1)
    yield from at_least("adapter.alpha", adapter.alpha, 1)
    if not 0 <= adapter.dropout < 1:
        yield Problem("adapter.dropout", f"is {adapter.dropout:g}, must be from 0 to below 1", "write 0.05, or 0")
    if adapter.layers is not None and isinstance(adapter.targets, str) and adapter.targets != "auto":
        what = "is given, but adapter.targets is a regular expression, which says itself which blocks it means"
        yield Problem("adapter.layers", what, "name the blocks in the expression, or write adapter.targets: auto")
    if not adapter.targets or (isinstance(adapter.targets, list) and not all(adapter.targets)):
        what = "is empty, so nothing would get LoRA"
        yield Problem("adapter.targets", what, "write auto, or names such as [q_proj, v_proj]")
    elif isinstance(adapter.targets, str):
        try:
            re.compile(adapter.targets)
        except re.error as error:
            what = f"{adapter.targets!r} is no regular expression ({error})"
            yield Problem("adapter.targets", what, "correct it, or give a list of names")
    if adapter.layers is not None:
        if not adapter.layers:
            yield Problem("adapter.layers", "is empty, so nothing would get LoRA", "write null for all blocks")
        yield from distinct("adapter.layers", adapter.layers)
