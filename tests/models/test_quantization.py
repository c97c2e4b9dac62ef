"""A base in 4 bits (QLoRA): trained on, reloaded, and merged as the weights that its 4 bits stand for; each step beside
bitsandbytes' own dequantised weights.  What needs bitsandbytes is left out where it is not installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from sentence_transformers import MultiVectorEncoder, SentenceTransformer

from smart_train.checks.model import check_quantised
from smart_train.config.schema import AdapterBlock, LateBlock, ModelBlock, Recipe
from smart_train.core.errors import BaseNotFound
from smart_train.models import quantization as quantised
from smart_train.models.encoder import SmartEncoder
from smart_train.models.verification import verify
from smart_train.planning.blueprint import Blueprint
from smart_train.publishing.exporter import export

SMALL = ModelBlock(quantisation="4bit")


def test_without_the_package_it_is_told_what_to_install(real_base, monkeypatch):
    monkeypatch.setattr(quantised, "installed", lambda name: False)
    with pytest.raises(BaseNotFound, match="pip install 'smart-train.qlora.', or pass quantisation=.none"):
        SmartEncoder(str(real_base), model=SMALL, device="cpu")


def test_a_recipe_that_trains_every_weight_of_it_is_refused(monkeypatch):
    monkeypatch.setattr("smart_train.checks.model.installed", lambda name: False)
    recipe = Recipe(model=SMALL, adapter=AdapterBlock(kind="full"))
    found = [problem.what for problem in check_quantised(recipe)]
    assert "adapter.kind full trains every weight" in found[0] and "bitsandbytes" in found[1]
    assert not list(check_quantised(Recipe()))


def test_an_estimate_counts_its_linear_layers_in_four_bits(real_base):
    whole, small = (
        Blueprint(ModelBlock(base=str(real_base), quantisation=kind), LateBlock(), AdapterBlock(r=4)).weights()
        for kind in ("none", "4bit")
    )
    layers = 6 * (4 * 384 * 384 + 2 * 384 * 1536) + 384 * 384  # of MiniLM, and its pooler
    assert small.frozen == whole.frozen
    assert whole.frozen_bytes - small.frozen_bytes == pytest.approx(layers * (4 - quantised.BITS / 8), rel=1e-4)


# -- with bitsandbytes


@pytest.fixture(scope="module")
def trained(real_base, tmp_path_factory) -> tuple[SmartEncoder, Path]:
    """An encoder on the real base in 4 bits after real steps, and its folder."""
    pytest.importorskip("bitsandbytes")
    late, adapter = LateBlock(head="linear", dim=64), AdapterBlock(r=4)
    encoder = SmartEncoder(str(real_base), model=SMALL, late=late, adapter=adapter, device="cpu")
    encoder.encode_documents(tiny.TEXTS)  # reading first must not keep it from training
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        features = encoder.preprocess(tiny.TEXTS, "document")
        found = encoder.train()(features)
        (found.pooled @ found.pooled.T).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    encoder.eval()
    folder = encoder.save_pretrained(tmp_path_factory.mktemp("trained") / "adapter")
    return encoder, folder


@pytest.mark.slow
def test_it_trains_and_is_the_same_when_it_is_loaded_again(trained):
    encoder, folder = trained
    moved = [p for name, p in encoder.named_parameters() if "lora_B" in name]
    assert all(bool((p != 0).any()) for p in moved)
    report = verify(encoder, folder, ["a query"], tiny.TEXTS)
    assert max(report["largest_pooled_difference"], report["largest_token_difference"]) <= 1e-6


@pytest.mark.slow
def test_it_takes_less_memory_and_other_vectors_than_the_whole_base(trained, real_base):
    encoder, folder = trained
    whole = SmartEncoder.from_pretrained(folder, device="cpu", quantisation="none")

    def size(one):
        return sum(p.numel() * p.element_size() for p in one.backbone.parameters())

    assert size(encoder) < 0.65 * size(whole)  # half of MiniLM are embeddings, which stay
    cosines = (encoder.encode_documents(tiny.TEXTS).pooled * whole.encode_documents(tiny.TEXTS).pooled).sum(-1)
    assert 0.9 < float(cosines.min()) < 0.9999


@pytest.mark.slow
def test_plain_sentence_transformers_holds_the_base_in_four_bits_as_well(trained):
    """Equal but for the kernel that bitsandbytes has for reading on some CPUs, which computes in bfloat16."""
    encoder, folder = trained
    plain = SentenceTransformer(str(folder), device="cpu")
    assert type(plain[0].model.encoder.layer[0].attention.self.query).__module__.endswith("bnb")
    found = plain.encode_document(tiny.TEXTS, convert_to_tensor=True)
    expected = encoder.encode_documents(tiny.TEXTS).pooled
    assert float((found - expected).norm(dim=-1).max()) < 2e-2 and float((found * expected).sum(-1).min()) > 0.9998


@pytest.mark.slow
def test_merged_it_is_the_weights_that_training_saw(trained, tmp_path):
    """Not the ones that were quantised: those give other vectors."""
    import bitsandbytes

    encoder, folder = trained
    name = "encoder.layer.3.attention.self.value"
    layer = encoder.backbone.get_submodule(name)
    stored = layer.base_layer.weight
    seen = bitsandbytes.functional.dequantize_4bit(stored.data, stored.quant_state).double()
    update = layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double() * (32 / 4)
    out = export(folder, "merged", tmp_path / "merged")
    written = load_file(out / "model.safetensors")[f"{name}.weight"]
    torch.testing.assert_close(written.double(), seen + update, atol=1e-6, rtol=0)
    config = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in config
    expected = encoder.encode_documents(tiny.TEXTS)
    plain = SentenceTransformer(str(out), device="cpu").encode_document(tiny.TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(plain, expected.pooled, atol=1e-5, rtol=0)
    tokens = SmartEncoder.from_pretrained(out, device="cpu").encode_documents(tiny.TEXTS).tokens
    torch.testing.assert_close(tokens.values, expected.tokens.values, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_its_tokens_can_be_had_from_a_multi_vector_encoder(trained, tmp_path):
    encoder, folder = trained
    out = export(folder, "multi-vector", tmp_path / "multi")
    found = MultiVectorEncoder(str(out), device="cpu").encode_document(tiny.TEXTS)
    for one, other in zip(encoder.encode_documents(tiny.TEXTS).tokens.rows(), found, strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=0)
