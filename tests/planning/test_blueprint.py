"""An encoder without its weights has the parameters of the one with them: names, shapes, dtypes, what is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from smart_train.config.schema import AdapterBlock, LateBlock, ModelBlock
from smart_train.models.encoder import SmartEncoder
from smart_train.planning.blueprint import Blueprint
from smart_train.training.callbacks.first_step import check_trainable

HEAD = LateBlock(layer=[1, -1], head="layernorm_linear", dim=12)
ADAPTERS = {
    "lora": AdapterBlock(r=4),
    "lora, one block": AdapterBlock(r=8, layers=[1]),
    "lora, vision too": AdapterBlock(r=4, vision=True),
    "full": AdapterBlock(kind="full"),
    "frozen": AdapterBlock(kind="frozen"),
}


def both(folder: Path, adapter: AdapterBlock, dtype: str = "auto", late: LateBlock = HEAD) -> tuple[Any, Any]:
    model = ModelBlock(base=str(folder), dtype=dtype)  # type: ignore[arg-type]
    encoder = SmartEncoder(str(folder), model=model, late=late, adapter=adapter, device="cpu")
    return Blueprint(model, late, adapter), encoder


def parameters(module: Any) -> list[tuple[tuple[int, ...], torch.dtype, bool]]:
    """Whatever they are called: the blueprint leaves out the prefix of sentence-transformers' module."""
    found = ((tuple(p.shape), p.dtype, p.requires_grad) for p in module.parameters())
    return sorted(found, key=str)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("kind", ["bert", "modernbert", "qwen3", "qwen3vl"])
def test_the_parameters_are_those_of_the_encoder(kind, adapter, tiny_models):
    if "vision" in adapter and kind != "qwen3vl":
        pytest.skip("there is no vision tower")
    blueprint, encoder = both(tiny_models(kind), ADAPTERS[adapter])
    assert parameters(blueprint) == parameters(encoder)
    assert all(p.is_meta for p in blueprint.parameters()), "no weight takes memory"
    counts = check_trainable(encoder, ADAPTERS[adapter])
    assert {name: blueprint.counts()[name] for name in counts} == counts
    found, frozen = blueprint.weights(), [p for p in encoder.parameters() if not p.requires_grad]
    assert found.all == sum(p.numel() for p in encoder.parameters()) and found.frozen == sum(p.numel() for p in frozen)
    assert found.frozen_bytes == sum(p.nbytes for p in frozen)


def test_half_precision_is_counted_as_it_is_held(tiny_qwen3):
    blueprint, encoder = both(tiny_qwen3, AdapterBlock(r=4), dtype="bfloat16")
    assert parameters(blueprint) == parameters(encoder)
    found = blueprint.weights()
    assert found.frozen_bytes == 2 * found.frozen and found.trained_bytes == 4 * found.trained, "LoRA is float32"


def test_a_real_base_is_counted_to_the_last_parameter(real_base):
    blueprint, encoder = both(real_base, AdapterBlock(r=8), late=LateBlock())
    assert parameters(blueprint) == parameters(encoder)
    assert blueprint.weights().frozen == 22_713_216  # all-MiniLM-L6-v2, as its card has it: 22.7 million


def test_dense_modules_are_counted_and_unknown_ones_named(tiny_bert, tmp_path):
    folder = tmp_path / "dense"
    shutil.copytree(tiny_bert, folder)
    listed = json.loads((folder / "modules.json").read_text())
    for name, kind in (("8_Dense", "Dense"), ("9_Strange", "Strange")):
        listed.append({"idx": 8, "name": name, "path": name, "type": f"sentence_transformers.models.{kind}"})
        (folder / name).mkdir()
    (folder / "8_Dense" / "config.json").write_text(json.dumps({"in_features": 32, "out_features": 7}))
    (folder / "modules.json").write_text(json.dumps(listed))
    plain, found = (
        Blueprint(ModelBlock(base=str(one)), LateBlock(), AdapterBlock(kind="frozen")) for one in (tiny_bert, folder)
    )
    assert found.unknown == ["Strange"] and plain.unknown == []
    assert found.weights().all - plain.weights().all == 32 * 7 + 7


@pytest.mark.parametrize("kind", ["bert", "modernbert", "qwen3", "qwen3vl"])
def test_towers_have_the_sizes_that_the_configuration_names(kind, tiny_models):
    blueprint, _ = both(tiny_models(kind), AdapterBlock(r=4))
    config = blueprint.config.get_text_config()
    text = blueprint.towers()["text"]
    assert text.layers == config.num_hidden_layers and text.hidden == config.hidden_size
    assert text.heads == config.num_attention_heads
    head = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    assert text.query == config.num_attention_heads * head
    assert text.key == getattr(config, "num_key_value_heads", config.num_attention_heads) * head
    assert text.gated == (kind != "bert") and text.fused == (kind == "modernbert")
    assert text.rms == text.qk_norm == (kind in ("qwen3", "qwen3vl"))
    assert text.first == 0 and not text.full and text.lora > text.shared > 0
    assert ("vision" in blueprint.towers()) == (kind == "qwen3vl")


def test_a_gradient_starts_at_the_first_adapted_block(tiny_bert):
    late = LateBlock(layer=-1)
    blueprint, _ = both(tiny_bert, AdapterBlock(r=4, layers=[2]), late=late)
    assert blueprint.towers()["text"].first == 1  # layer k is the output of block k
    frozen, _ = both(tiny_bert, AdapterBlock(kind="frozen"), late=late)
    tower = frozen.towers()["text"]
    assert tower.first == tower.layers


def test_the_largest_block_and_what_is_in_none_make_the_whole(tiny_qwen3vl):
    blueprint, encoder = both(tiny_qwen3vl, AdapterBlock(kind="frozen"))
    found = blueprint.weights()
    towers = (encoder.backbone.language_model.layers, encoder.backbone.visual.blocks)
    sizes = [sum(p.numel() for p in block.parameters()) for tower in towers for block in tower]
    assert found.block == max(sizes) and found.outside == found.all - sum(sizes)
