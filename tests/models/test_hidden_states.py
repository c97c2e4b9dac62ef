"""Layers, their norm, the learned mix and the head, against the transformers model called directly."""

from __future__ import annotations

import pytest
import tiny
import tiny_data
import torch
import torch.nn.functional as F
from transformers import AutoModel

from smart_train.config.schema import Component, LateBlock
from smart_train.core.errors import ExtensionError
from smart_train.models.encoder import SmartEncoder
from smart_train.models.heads import LateHead, file_name, make_head
from smart_train.models.hidden_states import find_blocks, find_final_norm, resolve_layers

FINAL_NORM = {"bert": None, "modernbert": "final_norm", "qwen3": "norm", "qwen3vl": "language_model.norm", "real": None}
LAYERS = {"bert": 3, "modernbert": 3, "qwen3": 3, "qwen3vl": 3, "real": 6}


@pytest.fixture(scope="module")
def base_of(tiny_models, real_base):
    return lambda kind: str(real_base if kind == "real" else tiny_models(kind))


@pytest.fixture(scope="module")
def states_of(base_of):
    """Per kind, every layer's states as the transformers model itself records them, the final norm put on by hand.

    Layer 0 is the embeddings, k is block k's output; the last is ``last_hidden_state``.
    """
    made: dict[str, tuple[list[torch.Tensor], dict]] = {}

    def find(kind: str) -> tuple[list[torch.Tensor], dict]:
        if kind not in made:
            encoder = SmartEncoder(base_of(kind), device="cpu")
            contents = [tiny_data.draw_page(0), tiny_data.draw_page(5)] if kind == "qwen3vl" else tiny.TEXTS
            features = encoder.preprocess(contents, "document")
            inputs = {k: v for k, v in features.items() if torch.is_tensor(v) and k != "num_images_per_sample"}
            model = AutoModel.from_pretrained(base_of(kind)).eval()
            with torch.no_grad():
                out = model(**inputs, output_hidden_states=True)
                norm = model.get_submodule(FINAL_NORM[kind]) if FINAL_NORM[kind] else torch.nn.Identity()
                states = [norm(state) for state in out.hidden_states[:-1]]
            made[kind] = ([*states, out.last_hidden_state], features)
        return made[kind]

    return find


def expected_tokens(encoder: SmartEncoder, states: torch.Tensor, features: dict) -> torch.Tensor:
    kept = encoder.keep(features["input_ids"], features["attention_mask"])
    return F.normalize(states[kept].float(), dim=-1)


def tokens(encoder: SmartEncoder, features: dict) -> torch.Tensor:
    with torch.no_grad():
        return encoder.eval()(features).tokens.values


@pytest.mark.parametrize("kind", LAYERS)
def test_every_layer_is_the_models_own_with_its_final_norm_on(kind, base_of, states_of):
    states, features = states_of(kind)
    assert len(states) == LAYERS[kind] + 1
    for layer, state in enumerate(states):
        encoder = SmartEncoder(base_of(kind), late=LateBlock(layer=layer), device="cpu")
        torch.testing.assert_close(
            tokens(encoder, features), expected_tokens(encoder, state, features), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("kind", LAYERS)
def test_negative_numbers_count_from_the_last(kind, base_of, states_of):
    states, features = states_of(kind)
    for layer in (-1, -2):
        encoder = SmartEncoder(base_of(kind), late=LateBlock(layer=layer), device="cpu")
        torch.testing.assert_close(
            tokens(encoder, features), expected_tokens(encoder, states[layer], features), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("kind", ["qwen3", "modernbert", "qwen3vl"])
def test_without_its_norm_a_pre_norm_layer_is_another_one(kind, base_of, states_of):
    _, features = states_of(kind)
    bare = SmartEncoder(base_of(kind), late=LateBlock(layer=2, norm="none"), device="cpu")
    normed = SmartEncoder(base_of(kind), late=LateBlock(layer=2), device="cpu")
    model = AutoModel.from_pretrained(base_of(kind)).eval()
    inputs = {k: v for k, v in features.items() if torch.is_tensor(v) and k != "num_images_per_sample"}
    with torch.no_grad():
        raw = model(**inputs, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(tokens(bare, features), expected_tokens(bare, raw, features), atol=1e-5, rtol=0)
    assert (tokens(bare, features) - tokens(normed, features)).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["bert", "qwen3", "qwen3vl"])
def test_the_pooled_vector_does_not_depend_on_the_layer(kind, base_of, states_of):
    _, features = states_of(kind)
    with torch.no_grad():
        last, first = (
            SmartEncoder(base_of(kind), late=LateBlock(layer=n), device="cpu").eval()(features) for n in (-1, 1)
        )
    torch.testing.assert_close(first.pooled, last.pooled, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_final_norm_is_found_where_there_is_one(kind, base_of):
    encoder = SmartEncoder(base_of(kind), device="cpu")
    found = find_final_norm(encoder.backbone, encoder._probe)
    expected = encoder.backbone.get_submodule(FINAL_NORM[kind]) if FINAL_NORM[kind] else None
    assert found is expected


def test_a_post_norm_model_asked_for_its_final_norm_says_it_has_none(base_of):
    with pytest.raises(ValueError, match="late.norm"):
        SmartEncoder(base_of("bert"), late=LateBlock(layer=1, norm="final"), device="cpu")


def test_a_final_norm_that_is_not_to_be_found_names_the_choice(base_of):
    """A model that does something else after its last block: nothing is guessed."""
    encoder = SmartEncoder(base_of("qwen3"), device="cpu")
    norm = encoder.backbone.norm
    encoder.backbone.norm = torch.nn.Sequential(norm, torch.nn.Linear(32, 32))
    with pytest.raises(ValueError, match="late.norm to none, or late.layer to -1"):
        find_final_norm(encoder.backbone, encoder._probe)


@pytest.mark.parametrize("kind", ["bert", "qwen3", "qwen3vl"])
def test_a_list_of_layers_is_mixed_by_a_learned_softmax(kind, base_of, states_of):
    states, features = states_of(kind)
    encoder = SmartEncoder(base_of(kind), late=LateBlock(layer=[1, 2, -1]), device="cpu")
    chosen = (states[1], states[2], states[-1])
    mean = sum(chosen) / 3
    torch.testing.assert_close(tokens(encoder, features), expected_tokens(encoder, mean, features), atol=1e-5, rtol=0)
    encoder.head.mix.data.copy_(torch.tensor([0.3, -1.0, 2.0]))
    weights = torch.tensor([0.3, -1.0, 2.0]).softmax(0)
    mixed = sum(w * s for w, s in zip(weights, chosen, strict=True))
    torch.testing.assert_close(tokens(encoder, features), expected_tokens(encoder, mixed, features), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("layer", "expected"), [(0, [0]), (6, [-1]), (-1, [-1]), (-7, [0]), ([5, 6, -1], [5, -1, -1])])
def test_layer_numbers_mean_one_thing(layer, expected):
    assert resolve_layers(layer, 6) == expected


@pytest.mark.parametrize("layer", [7, -8, [1, 9]])
def test_a_layer_the_model_lacks_is_refused_with_the_range(layer):
    with pytest.raises(ValueError, match="0 .embeddings. to 6"):
        resolve_layers(layer, 6)


def test_no_layer_at_all_is_refused():
    with pytest.raises(ValueError, match="empty list"):
        resolve_layers([], 6)


@pytest.mark.parametrize(("kind", "name"), [("bert", "encoder.layer"), ("qwen3vl", "language_model.layers")])
def test_the_blocks_are_the_language_models_and_not_the_vision_towers(kind, name, base_of):
    """The tiny vision tower has as many blocks as the language model."""
    found, blocks = find_blocks(SmartEncoder(base_of(kind), device="cpu").backbone)
    assert found == name and len(blocks) == 3


# -- the head


def test_no_head_cuts_to_the_first_dimensions_and_normalises():
    state = torch.randn(5, 16)
    found = LateHead(LateBlock(dim=4), [-1], 16)([state])
    torch.testing.assert_close(found, F.normalize(state[:, :4], dim=-1))


@pytest.mark.parametrize("dim", [None, 16])
def test_a_square_linear_head_starts_as_the_training_free_view(dim):
    state = torch.randn(5, 16)
    found = LateHead(LateBlock(head="linear", dim=dim), [-1], 16)([state])
    torch.testing.assert_close(found, F.normalize(state, dim=-1))


def test_a_narrow_head_keeps_its_rows_orthonormal_at_the_start():
    weight = LateHead(LateBlock(head="linear", dim=6), [-1], 16).projection.linear.weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(6), atol=1e-5, rtol=0)


def test_the_layernorm_head_is_layernorm_then_linear_without_bias():
    head = LateHead(LateBlock(head="layernorm_linear", dim=6), [-1], 16)
    for parameter in head.parameters():
        parameter.data.copy_(torch.randn_like(parameter))
    norm, linear = head.projection.norm, head.projection.linear
    state = torch.randn(5, 16)
    centred = state - state.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    expected = F.normalize((normed * norm.weight + norm.bias) @ linear.weight.T, dim=-1)
    torch.testing.assert_close(head([state]), expected, atol=1e-5, rtol=0)
    assert {file_name(name) for name, _ in head.named_parameters()} == {"norm.weight", "norm.bias", "linear.weight"}


def test_the_gated_head_adds_a_gated_mlp_to_a_linear_head_from_which_it_starts():
    late = LateBlock(head={"type": "gated_residual", "inner": 24}, dim=6)
    head, state = LateHead(late, [-1], 16), torch.randn(5, 16)
    start = F.normalize(state @ head.projection.linear.weight.T, dim=-1)
    torch.testing.assert_close(head([state]), start, atol=1e-6, rtol=0)
    square = LateHead(
        LateBlock(head="gated_residual"), [-1], 16
    )  # as wide as the states: exactly the training-free view
    torch.testing.assert_close(square([state]), F.normalize(state, dim=-1), atol=1e-6, rtol=0)
    for parameter in head.parameters():
        parameter.data.copy_(torch.randn_like(parameter))
    w1, v, w2, wr = (getattr(head.projection, name).weight for name in ("gate", "up", "down", "linear"))
    gate = state @ w1.T
    expected = ((gate / (1 + (-gate).exp())) * (state @ v.T)) @ w2.T + state @ wr.T
    torch.testing.assert_close(head([state]), F.normalize(expected, dim=-1), atol=1e-5, rtol=0)
    names = {"gate.weight", "up.weight", "down.weight", "linear.weight"}
    assert {file_name(name) for name, _ in head.named_parameters()} == names


@pytest.mark.parametrize("inner", [0, -1, True, 1.5, "8"])
def test_a_gated_head_without_an_inner_width_is_refused(inner):
    with pytest.raises(ExtensionError, match="no whole number of 1 or more"):
        make_head(Component("gated_residual", {"inner": inner}), 16, 6)


def test_the_head_of_a_half_precision_base_stays_float32():
    head = LateHead(LateBlock(head="layernorm_linear", dim=6), [1, -1], 16)
    states = [torch.randn(5, 16, dtype=torch.bfloat16) for _ in range(2)]
    found = head(states)
    found.sum().backward()
    assert found.dtype == torch.float32
    assert all(p.grad is not None and p.dtype == torch.float32 for p in head.parameters())
