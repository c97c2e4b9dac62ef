"""Check the block ``late``: layers, head, token filters, widths and the hybrid score."""

from __future__ import annotations

import torch

from smart_train.checks.bounds import Problems, at_least, component, layers, widths
from smart_train.config.schema import HybridBlock, Recipe
from smart_train.config.typed_values import Problem
from smart_train.core.errors import ExtensionError
from smart_train.models.base_config import BaseConfig
from smart_train.models.heads import HEADS, LateHead
from smart_train.models.token_filters import TOKEN_FILTERS


def check_late(recipe: Recipe) -> Problems:
    """Yield what is wrong with the block ``late`` by itself."""
    late = recipe.late
    yield from at_least("late.dim", late.dim, 1)
    yield from widths("late.matryoshka", late.matryoshka)
    yield from component("late.head", late.head, HEADS)
    for one in late.keep:
        yield from component("late.keep", one, TOKEN_FILTERS)
    if late.norm != "auto" and layers(late) and all(layer == -1 for layer in layers(late)):
        what = f"is {late.norm}, but late.layer is -1: last_hidden_state is used as the model gives it"
        yield Problem("late.norm", what, "write auto, or choose another layer")
    hybrid: HybridBlock = late.hybrid
    for name in ("pooled", "late"):
        yield from at_least(f"late.hybrid.{name}", getattr(hybrid, name), 0)
    if hybrid.pooled == 0 and hybrid.late == 0:
        yield Problem("late.hybrid", "both weights are 0, so every hybrid score is 0", "give one a positive weight")
    for name in ("pooled_std", "late_std"):
        if getattr(hybrid, name) <= 0:
            yield Problem(f"late.hybrid.{name}", "must be above 0", "remove it: it is fitted on the dev split")


def check_layers(recipe: Recipe, base: BaseConfig) -> Problems:
    """late.layer names layers that are there, each once."""
    read = layers(recipe.late)
    if not read:
        yield Problem("late.layer", "is an empty list", "write -1 for the last layer")
    wrong = [layer for layer in read if not -base.layers - 1 <= layer <= base.layers]
    if wrong:
        what = f"the model has no layer {', '.join(map(str, wrong))}: it has 0 (embeddings) to {base.layers}"
        yield Problem("late.layer", what, f"write -1 or {base.layers} for the last")
    numbers = [layer % (base.layers + 1) for layer in read]
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    if twice and not wrong:
        what = f"layer {', '.join(map(str, twice))} is named twice (-1 is layer {base.layers})"
        yield Problem("late.layer", what, "name each layer once")


def check_widths(recipe: Recipe, base: BaseConfig) -> Problems:
    """Yield what is wrong with token and Matryoshka widths, against the base's hidden size."""
    late, hidden = recipe.late, base.hidden
    width = late.dim or hidden
    if width > hidden:
        what = f"is {width}, above the model's hidden size {hidden}"
        yield Problem("late.dim", what, f"write at most {hidden}, or null for all of it")
    for key, cuts, whole, name in (
        ("late.matryoshka", late.matryoshka, width, "token width"),
        ("model.matryoshka", recipe.model.matryoshka, base.pooled, "pooled width"),
    ):
        high = [w for w in cuts if w >= whole]
        if high:
            what = f"{', '.join(map(str, high))} is not below the whole {name} {whole}, which is trained anyway"
            yield Problem(key, what, f"keep only widths below {whole}")


def check_head(recipe: Recipe, base: BaseConfig) -> Problems:
    """Make a head of another package once, and give it two states: it must return vectors of the token width."""
    late = recipe.late
    if late.head.type in HEADS.builtin or list(component("late.head", late.head, HEADS)):
        return
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            LateHead(late, [-1], base.hidden)([torch.zeros(2, base.hidden)])
    except ExtensionError as error:
        yield Problem("late.head", error.what, error.fix)
    except Exception as error:  # code of somebody else: whatever it raises, training could only raise it later
        what = f"{late.head.type} fails with {type(error).__name__}: {error}"
        yield Problem("late.head", what, "correct the head, or its options")
