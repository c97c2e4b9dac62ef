"""Check the block ``model``: values, installed packages, pooling, lengths and images against the base."""

from __future__ import annotations

from smart_train.checks.bounds import Problems, at_least, widths
from smart_train.config.schema import Recipe
from smart_train.config.typed_values import Problem
from smart_train.core.extras import how_to_install, installed
from smart_train.models.base_config import BaseConfig

ATTENTION = ["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]


def check_model(recipe: Recipe) -> Problems:
    """Yield what is wrong with the block ``model`` by itself."""
    model = recipe.model
    low, high = model.min_pixels, model.max_pixels
    for name in ("query_tokens", "document_tokens", "min_pixels", "max_pixels"):
        yield from at_least(f"model.{name}", getattr(model, name), 1)
    if low is not None and high is not None and low > high:
        what = f"is {low}, above model.max_pixels {high}"
        yield Problem("model.min_pixels", what, "lower it, or raise model.max_pixels")
    if model.dropout is not None and not 0 <= model.dropout < 1:
        what = f"is {model.dropout:g}, must be from 0 to below 1"
        yield Problem("model.dropout", what, "write 0, or null for the base's own")
    yield from widths("model.matryoshka", model.matryoshka)
    attention = model.attention
    if attention is not None and attention not in ATTENTION and "/" not in attention:
        what = f"{attention!r} is no attention of transformers"
        yield Problem("model.attention", what, f"write one of {', '.join(ATTENTION)}, a kernel as owner/name, or null")
    package = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}.get(attention or "")
    if package and not installed(package):
        what = f"{attention} needs the package {package}, which is not installed"
        yield Problem("model.attention", what, "install it, or write sdpa", here=True)


def check_quantised(recipe: Recipe) -> Problems:
    """Yield what is wrong with model.quantisation, for the adapter and on this machine."""
    if recipe.model.quantisation == "none":
        return
    if recipe.adapter.kind == "full":
        what = "is 4bit, and adapter.kind full trains every weight: one of 16 values can't take a small step"
        yield Problem("model.quantisation", what, "write adapter.kind: lora, or model.quantisation: none")
    if not installed("bitsandbytes"):
        what = "4bit needs the package bitsandbytes, which is not installed"
        yield Problem("model.quantisation", what, f"{how_to_install('bitsandbytes')}, or write none", here=True)


# Against the base ----------------------------------------------------------------------------------------------------


def check_pooling(recipe: Recipe, base: BaseConfig) -> Problems:
    """Check that the base has a Pooling module to replace, and that the next module takes the new width."""
    mode = recipe.model.pooling
    if mode is not None and not base.pooling:
        what = f"is {mode}, but the base has no Pooling module that it could replace"
        yield Problem("model.pooling", what, "remove it, or choose a base that pools its token states")
    elif mode is not None and len(base.pooling) > 1 and base.projected:
        what = f"is {mode}, but the Dense module behind the base's pooling takes {' + '.join(base.pooling)} together"
        yield Problem("model.pooling", what, "remove it")


def check_lengths(recipe: Recipe, base: BaseConfig) -> Problems:
    """Yield length limits that are above the base's number of positions."""
    for name in ("query_tokens", "document_tokens"):
        for key, limit in (("model", getattr(recipe.model, name)), ("data", getattr(recipe.data, name))):
            if limit is not None and base.positions is not None and limit > base.positions:
                what = f"is {limit}, above the {base.positions} positions of the model"
                yield Problem(
                    f"{key}.{name}", what, f"write at most {base.positions}, or null for the base's own limit"
                )
        yield from at_least(f"data.{name}", getattr(recipe.data, name), 1)


def check_vision(recipe: Recipe, base: BaseConfig) -> Problems:
    """Check that image settings are left out for a model that reads no images."""
    if base.vision:
        return
    asked = {
        "adapter.vision": recipe.adapter.vision,
        "model.min_pixels": recipe.model.min_pixels is not None,
        "model.max_pixels": recipe.model.max_pixels is not None,
        "data.image": bool(recipe.data.image),  # "" leaves images out
    }
    for key, given in asked.items():
        if given:
            what = f"is given, but {recipe.model.base} has no image side"
            yield Problem(key, what, "remove it, or choose a vision-language base")
