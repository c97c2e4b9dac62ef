"""LoRA as weights beside W + s B A in float64, and several adapters as one beside the sum of their dense updates."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from smart_train.config.schema import AdapterBlock
from smart_train.core.errors import AdapterError
from smart_train.models.lora import add_lora, merge_lora, weighted_lora
from smart_train.models.quantization import quantised


def adapted(base, r: int = 4, alpha: int = 8, targets: str | list[str] = "auto", seed: int = 1):
    model = AutoModel.from_pretrained(base).eval()
    add_lora(model, AdapterBlock(r=r, alpha=alpha, targets=targets), str(base), None)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def updates(model) -> dict[str, torch.Tensor]:
    """Module name -> (alpha / r) B A in float64, from the tensors alone."""
    tensors = dict(model.named_parameters())
    config = model.peft_config["default"]
    names = [name.removesuffix(".lora_A.default.weight") for name in tensors if name.endswith(".lora_A.default.weight")]
    return {
        name: config.lora_alpha
        / config.r
        * tensors[f"{name}.lora_B.default.weight"].double()
        @ tensors[f"{name}.lora_A.default.weight"].double()
        for name in names
    }


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_the_weights_are_the_bases_plus_the_update(kind, tiny_models):
    model = adapted(tiny_models(kind))
    base = load_file(tiny_models(kind) / "model.safetensors")
    wanted = updates(model)
    assert len(wanted) > 15
    rounding = merge_lora(model)
    assert rounding.lost < 1e-6 and rounding.dtype == "float32"
    state = model.state_dict()
    assert not hasattr(model, "peft_config") and not [name for name in state if "lora" in name]
    for name, tensor in base.items():
        expected = tensor.double() + wanted.get(name.removesuffix(".weight"), 0)
        torch.testing.assert_close(state[name].double(), expected, atol=1e-7, rtol=1e-6)


def test_what_rounding_takes_is_measured(tiny_bert):
    model = adapted(tiny_bert).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    wanted, before = updates(model), {n.replace(".base_layer", ""): p.clone() for n, p in model.named_parameters()}
    rounding = merge_lora(model)
    after = dict(model.named_parameters())
    lost = sum(
        (after[f"{n}.weight"].double() - before[f"{n}.weight"].double() - update).square().sum()
        for n, update in wanted.items()
    )
    whole = sum(update.square().sum() for update in wanted.values())
    assert rounding.dtype == "bfloat16"
    assert rounding.lost == pytest.approx(float((lost / whole).sqrt()), rel=1e-3) and rounding.lost > 1e-3


def test_a_weight_that_two_layers_share_is_refused_and_nothing_is_changed(tiny_bert):
    model = adapted(tiny_bert, targets=["query"])
    first, second = (model.encoder.layer[n].attention.self.query.get_base_layer() for n in (0, 1))
    second.weight = first.weight
    before = first.weight.detach().clone()
    with pytest.raises(AdapterError, match=r"layer.0.attention.self.query: its weight is shared"):
        merge_lora(model)
    assert torch.equal(first.weight, before) and hasattr(model, "peft_config")


def test_a_layer_that_is_used_twice_is_one_layer(tiny_bert):
    """As ALBERT's blocks: one module in several places, with one LoRA."""
    model = adapted(tiny_bert, targets=["query"])
    model.encoder.layer[1] = model.encoder.layer[0]
    wanted = updates(model)["encoder.layer.0.attention.self.query"]
    before = model.encoder.layer[0].attention.self.query.get_base_layer().weight.double()
    merge_lora(model)
    for block in model.encoder.layer[:2]:
        torch.testing.assert_close(block.attention.self.query.weight.double(), before + wanted, atol=1e-7, rtol=1e-6)


def test_quantised_weights_are_refused_with_what_to_do(tiny_bert, tmp_path):
    """By what the base's own config.json says, as a base that was saved in 4 bits does."""
    base = shutil.copytree(tiny_bert, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    model = adapted(tiny_bert)
    model.config = type(model.config).from_dict(config)
    assert quantised(model) == "gptq"
    with pytest.raises(AdapterError, match=r"quantised \(gptq\).*unquantised \(--base"):
        merge_lora(model)


def lora_of(model) -> dict[str, torch.Tensor]:
    return {n.replace(".default", ""): p.detach() for n, p in model.named_parameters() if "lora_" in n}


def test_several_adapters_are_the_weighted_sum_of_their_updates(tiny_bert):
    """Also of another rank and alpha; the product of the averages of A and B would not be."""
    one, two = adapted(tiny_bert, 4, 8, seed=1), adapted(tiny_bert, 2, 3, seed=2)
    tensors, rank = weighted_lora([(lora_of(one), 8 / 4, 0.7), (lora_of(two), 3 / 2, -0.4)])
    assert rank == 6
    first, second = updates(one), updates(two)
    for name in first:
        found = tensors[f"{name}.lora_B.weight"].double() @ tensors[f"{name}.lora_A.weight"].double()
        torch.testing.assert_close(found, 0.7 * first[name] - 0.4 * second[name], atol=1e-7, rtol=1e-6)


def test_adapters_of_other_layers_are_refused(tiny_bert):
    one, two = adapted(tiny_bert, targets=["query"]), adapted(tiny_bert, targets=["query", "value"])
    with pytest.raises(AdapterError, match="adapt different layers: 12 tensors|adapt different layers: 6 tensors"):
        weighted_lora([(lora_of(one), 1.0, 0.5), (lora_of(two), 1.0, 0.5)])
