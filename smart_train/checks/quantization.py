"""A base in 4 bits (model.quantisation) against the rest of a recipe and what is installed."""

from __future__ import annotations

from importlib.util import find_spec

from smart_train.checks.bounds import Problems
from smart_train.config.schema import Recipe
from smart_train.config.typed_values import Problem


def check_quantised(recipe: Recipe) -> Problems:
    if recipe.model.quantisation == "none":
        return
    if recipe.adapter.kind == "full":
        what = "is 4bit, and adapter.kind full trains every weight: one of 16 values can't take a small step"
        yield Problem("model.quantisation", what, "write adapter.kind: lora, or model.quantisation: none")
    if find_spec("bitsandbytes") is None:
        what = "4bit needs the package bitsandbytes, which is not installed"
        yield Problem("model.quantisation", what, "pip install bitsandbytes, or write none", here=True)
