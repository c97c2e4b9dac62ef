"""What to change in a recipe so that it fits: one key after another, those first that cost time and nothing else.

Knows: recipes and which of their keys memory follows.  Does not know: how much any of it needs (a function tells).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from smart_train.blocks import Recipe
from smart_train.needs import Need
from smart_train.training.sizes import chunk_rows

PIXELS = 1 << 18  # of a page below which small print is not read any more
TOKENS = 64  # of a document below which hardly a sentence is left
WIDTH = 128  # of tokens, as ColBERT's
PAIRS = 32  # of a batch below which its negatives are few
GAIN = 0.98  # a change that leaves more of the peak than this is not worth its price

Change = tuple[str, Any, Recipe]
"""(key, its value, the recipe with it)"""


def lowered(
    recipe: Recipe, measure: Callable[[Recipe], Need], fits: Callable[[Need], bool], caches: int
) -> tuple[dict[str, Any], Need]:
    """key -> value of the changes after which ``fits`` holds, or of all that help, and what is needed then.

    measure: the least that a recipe needs; caches: pairs of a whole step, for gradient caching where it is off.
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
    if recipe.late.dim is None and recipe.late.head == "none":
        late = replace(recipe.late, dim=WIDTH, head="layernorm_linear")
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
