"""What to change so that a recipe fits: what costs time before what costs quality, and nothing that does not help."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from smart_train.config.schema import AdapterBlock, DataBlock, LateBlock, ModelBlock, ObjectiveBlock, Recipe
from smart_train.planning.doctor import reduce_memory


def recipe(**blocks: Any) -> Recipe:
    given: dict[str, Any] = {
        "model": ModelBlock(base="x", max_pixels=1 << 20),
        "objective": ObjectiveBlock(batch=1024, chunk_rows=32),
        "data": DataBlock(document_tokens=512),
    }
    return Recipe(**{**given, **blocks})


def peak(found: Recipe) -> Any:
    """A measure of my own in which every key counts: half where a key is at its cheaper value."""
    size = float(1 << 32)
    size *= 0.5 if found.training.get("bf16") else 1
    size *= 0.5 if found.training.get("activation_checkpointing") else 1
    size *= (found.objective.chunk_rows or 32) / 32
    size *= (found.model.max_pixels or 1 << 20) / (1 << 20)
    size *= (found.data.document_tokens or 512) / 512
    size *= 0.5 if found.late.dim == 128 else 1
    size *= (found.objective.batch or 1024) / 1024
    return SimpleNamespace(peak=int(size))


def least(limit: float, given: Recipe | None = None, measure: Any = peak) -> tuple[dict[str, Any], int]:
    changes, found = reduce_memory(given or recipe(), measure, lambda one: one.peak <= limit * (1 << 20), 1024)
    return changes, found.peak >> 20


def test_changes_come_in_the_order_of_their_price_and_end_where_it_fits():
    assert least(4096) == ({}, 4096)
    assert least(2048) == ({"training.bf16": "true"}, 2048)
    assert list(least(1024)[0]) == ["training.bf16", "training.activation_checkpointing"]
    changes, size = least(128)
    assert changes["objective.chunk_rows"] == 4 and size == 128
    changes, _ = least(0.001)
    order = ["training.bf16", "training.activation_checkpointing", "objective.chunk_rows", "model.max_pixels"]
    order += ["data.document_tokens", "late.head", "objective.batch"]
    assert list(changes) == order and changes["model.max_pixels"] == 1 << 18
    assert changes["data.document_tokens"] == 64 and changes["late.head"] == "layernorm_linear late.dim=128"


def test_a_change_that_does_not_help_is_not_proposed():
    def without_bf16(found: Recipe) -> Any:
        return peak(replace(found, training={k: v for k, v in found.training.items() if k != "bf16"}))

    assert "training.bf16" not in least(1024, measure=without_bf16)[0]


@pytest.mark.parametrize(
    ("blocks", "absent"),
    [
        ({"training": {"fp16": True}}, "training.bf16"),
        ({"training": {"use_cpu": True}}, "training.bf16"),
        ({"adapter": AdapterBlock(kind="frozen")}, "training.activation_checkpointing"),
        ({"late": LateBlock(head="linear", dim=300)}, "late.head"),
        ({"model": ModelBlock(base="x")}, "model.max_pixels"),
    ],
)
def test_what_a_recipe_has_already_or_cannot_have_is_not_proposed(blocks, absent):
    changes, _ = least(0, recipe(**blocks))
    assert changes and absent not in changes


def test_caching_is_proposed_before_a_smaller_batch():
    plain = recipe(objective=ObjectiveBlock(), training={"per_device_train_batch_size": 64})

    def measure(found: Recipe) -> Any:
        return SimpleNamespace(peak=(100 if found.objective.batch is None else 10) << 20)

    changes, size = least(20, plain, measure)
    assert size == 10 and list(changes) == ["objective.batch"]
    assert changes["objective.batch"] == "1024 (without training.per_device_train_batch_size)"
