"""Fixtures of the similarity map's tests: a tiny vision encoder and the real small model."""

from __future__ import annotations

import pytest

from smart_train.config.schema import ModelBlock
from smart_train.models.encoder import SmartEncoder


@pytest.fixture(scope="module")
def vision(tiny_models) -> SmartEncoder:
    """Tokens of the last layer; pages of 160 x 96 pixels are read as they are."""
    return SmartEncoder(str(tiny_models("qwen3vl")), model=ModelBlock(max_pixels=256 * 256), device="cpu")


@pytest.fixture(scope="module")
def real(real_base) -> SmartEncoder:
    return SmartEncoder(str(real_base), device="cpu")
