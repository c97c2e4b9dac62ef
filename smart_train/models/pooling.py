"""Choose the pooling of a sentence-transformers model, and report which one is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling

from smart_train.core.errors import SettingError


def pooling_name(mode: str | Sequence[str]) -> str:
    """Return a pooling mode as text; several modes, whose vectors are concatenated, are joined with a plus.

    >>> pooling_name("mean"), pooling_name(["cls", "mean"])
    ('mean', 'cls+mean')
    """
    return mode if isinstance(mode, str) else "+".join(mode)


def pooling_of(model: SentenceTransformer) -> str | None:
    """Return the mode of the model's Pooling module; None where it has none."""
    modules: list[Any] = list(model)
    return next((pooling_name(module.pooling_mode) for module in modules if hasattr(module, "pooling_mode")), None)


def set_pooling(model: SentenceTransformer, mode: str) -> None:
    """Replace the model's Pooling module by one of this mode, in place.

    mode: one of ``sentence_transformers``' ``Pooling.POOLING_MODES``
    Raises SettingError where the model has no Pooling module, and where a Dense module behind it needs the width that
    the model's own pooling has.
    """
    modules: list[Any] = list(model)
    place = next((place for place, module in enumerate(modules) if isinstance(module, Pooling)), None)
    if place is None:
        raise SettingError("model.pooling", f"is {mode}, but the base has no Pooling module", "remove it")
    before = modules[place]
    after = Pooling(before.embedding_dimension, mode, include_prompt=before.include_prompt)
    if after.pooling_output_dimension != before.pooling_output_dimension and any(
        hasattr(module, "in_features") for module in modules[place + 1 :]
    ):
        what = f"is {mode}, {after.pooling_output_dimension} wide, but the Dense module behind the base's pooling takes"
        raise SettingError("model.pooling", f"{what} {before.pooling_output_dimension}", "remove it")
    model[place] = after
