"""All layers from one forward are what an encoder of each layer alone gives."""

from __future__ import annotations

import pytest
import torch
from tiny import TEXTS
from tiny_data import draw_page

from smart_train.config.schema import AdapterBlock, LateBlock
from smart_train.core.embeddings import Embeddings
from smart_train.models.encoder import SmartEncoder
from smart_train.probing.every_layer import every_layer, reads_fixed_layers

OPTIONS = {
    "as it is": LateBlock(),
    "cut": LateBlock(dim=8),
    "no norm": LateBlock(norm="none"),
    "no punctuation": LateBlock(drop=["punctuation"]),
}


def compared(base: str, contents: list, late: LateBlock, role: str = "document", **options) -> None:
    encoder = SmartEncoder(base, late=late, device="cpu", **options)
    forward, forwards = encoder.backbone.forward, []

    def counted(*args, **kwargs):
        forwards.append(1)
        return forward(*args, **kwargs)

    encoder.backbone.forward = counted
    with every_layer(encoder) as layers:
        forwards.clear()  # of the one that finds the final norm
        found = encoder.encode(contents, role, batch_size=len(contents))
    assert len(forwards) == 1
    width = late.dim or encoder.hidden_size
    assert found.tokens.width == len(layers) * width
    for at, layer in enumerate(layers):
        alone = SmartEncoder(
            base, late=LateBlock(layer, late.norm, dim=late.dim, drop=late.drop), device="cpu", **options
        )
        expected: Embeddings = alone.encode(contents, role, batch_size=len(contents))
        assert torch.equal(found.tokens.lengths, expected.tokens.lengths)
        difference = found.tokens.values[:, at * width : (at + 1) * width] - expected.tokens.values
        assert float(difference.abs().max()) < 1e-6, layer
        assert float((found.pooled - expected.pooled).abs().max()) < 1e-6
    assert len(layers) > 3 and layers[-1] == -1


@pytest.mark.parametrize("kind", ["bert", "modernbert", "qwen3", "qwen3_right"])
def test_tokens_of_every_layer_are_those_of_an_encoder_of_that_layer(tiny_models, kind):
    compared(str(tiny_models(kind)), TEXTS, LateBlock())
    compared(str(tiny_models(kind)), TEXTS, LateBlock(), "query")


@pytest.mark.parametrize("name", OPTIONS)
def test_cut_norm_and_left_out_tokens_are_the_encoders_own(tiny_modernbert, name):
    compared(str(tiny_modernbert), [*TEXTS, ",", "."], OPTIONS[name])  # the last two keep no token without punctuation


def test_page_images_too(tiny_qwen3vl):
    compared(str(tiny_qwen3vl), [draw_page(n) for n in range(3)], LateBlock())


def test_real_weights_too(real_base):
    compared(str(real_base), ["Return the absolute value of the argument.", "sum", ""], LateBlock())


def test_an_adapters_layers_are_read_with_its_weights(tmp_path, tiny_qwen3):
    encoder = SmartEncoder(str(tiny_qwen3), adapter=AdapterBlock(r=4), device="cpu")
    torch.manual_seed(0)
    for name, weight in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    encoder.save_pretrained(tmp_path)
    whole = SmartEncoder.from_pretrained(tmp_path, device="cpu")
    plain = SmartEncoder(str(tiny_qwen3), device="cpu").encode_documents(TEXTS)
    with every_layer(whole) as layers:
        found = whole.encode_documents(TEXTS)
    for at, layer in enumerate(layers):
        alone = SmartEncoder.from_pretrained(tmp_path, layer=layer, device="cpu").encode_documents(TEXTS)
        part = found.tokens.values[:, at * alone.tokens.width : (at + 1) * alone.tokens.width]
        assert float((part - alone.tokens.values).abs().max()) < 1e-6
    assert float((part - plain.tokens.values).abs().max()) > 1e-2
    again = whole.encode_documents(TEXTS)  # as it was before the block
    assert torch.equal(again.tokens.values, encoder.encode_documents(TEXTS).tokens.values)


def test_a_head_or_a_mix_can_read_no_other_layer(tiny_bert):
    for late in (LateBlock(head="linear", dim=8), LateBlock(layer=[1, -1])):
        encoder = SmartEncoder(str(tiny_bert), late=late, device="cpu")
        assert reads_fixed_layers(encoder)
        with pytest.raises(ValueError, match="can't read others"), every_layer(encoder):
            pass
    assert not reads_fixed_layers(SmartEncoder(str(tiny_bert), late=LateBlock(layer=1, dim=8), device="cpu"))


def test_an_error_inside_leaves_the_encoder_as_it_was(tiny_bert):
    encoder = SmartEncoder(str(tiny_bert), late=LateBlock(layer=1), device="cpu")
    before = encoder.encode_documents(TEXTS)
    with pytest.raises(RuntimeError), every_layer(encoder):
        raise RuntimeError
    assert torch.equal(encoder.encode_documents(TEXTS).tokens.values, before.tokens.values)
