"""Gradient caching is exact: what it leaves in the weights, in the log and in the random generators is what one pass
over the same chunks leaves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from steps import JOINT, OBJECTIVES, assert_gradients, pages, plain, step, taken, texts
from torch import Tensor, nn

from smart_train.config.schema import AdapterBlock, LateBlock, ModelBlock, ObjectiveBlock
from smart_train.core.embeddings import Batch, Embeddings, Features
from smart_train.data.collate import Collator
from smart_train.data.collection import Collection
from smart_train.losses.joint import Loss
from smart_train.models.encoder import SmartEncoder
from smart_train.training.gradcache import cached_backward

WIDE = {"layer": [2, -1], "head": "layernorm_linear"}
HEAD = {**WIDE, "dim": 12}
ADAPTERS = {
    "lora": AdapterBlock(r=4, dropout=0.2),
    "full": AdapterBlock(kind="full"),
    "frozen": AdapterBlock(kind="frozen"),
}


def encoder_of(folder, adapter: str = "full", late: dict | None = None) -> SmartEncoder:
    """In training mode, with dropout; LoRA's B has left zero, or its A would have no gradient."""
    torch.manual_seed(0)
    settings = ModelBlock(dropout=0.2)
    late = late if late is not None else {}
    made = SmartEncoder(str(folder), model=settings, late=LateBlock(**late), adapter=ADAPTERS[adapter], device="cpu")
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return made.train()


def batch_of(encoder: SmartEncoder, collection: Collection, count: int = 6, chunk_rows: int | None = None) -> Batch:
    rows = [(q, d) for q, found in collection.qrels.items() for d in found][:count]
    return Collator(collection, encoder.preprocess, negatives=1, length_groups=2, chunk_rows=chunk_rows)(rows)


def cached(
    model: Callable[[Features], Embeddings], batch: Batch, objective: ObjectiveBlock, scale: float = 1.0, **options
) -> Loss:
    made = step(objective)
    return cached_backward(
        model,
        [*batch.queries, *batch.documents],
        lambda both: made.loss(both, batch),
        lambda surrogate, last: (surrogate * scale).backward(),
        **options,
    )


def compare(encoder: SmartEncoder, batch: Batch, objective: ObjectiveBlock, tolerance: float = 1e-6) -> None:
    """Plain and cached from one random state: gradients, loss, and where the generator ends."""
    torch.manual_seed(1)
    expected_loss = plain(encoder, batch, objective)
    expected, after = taken(encoder), torch.get_rng_state()
    torch.manual_seed(1)
    loss = cached(encoder, batch, objective)
    assert torch.equal(torch.get_rng_state(), after)
    assert not loss.total.requires_grad
    torch.testing.assert_close(loss.total, expected_loss, rtol=1e-6, atol=0)
    assert_gradients(taken(encoder), expected, tolerance)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_cached_gradients_equal_plain_ones(name, tiny_bert):
    """Every named setting of the loss, dropout on, chunks of two rows."""
    encoder = encoder_of(tiny_bert, late=WIDE if name == "regularised" else HEAD)  # overlap compares widths
    compare(encoder, batch_of(encoder, texts(), chunk_rows=2), OBJECTIVES[name])


def test_dropout_is_what_the_comparison_is_about(tiny_bert):
    """Without the replay, the second forward would be of other numbers: two seeds give other gradients."""
    encoder = encoder_of(tiny_bert)
    batch = batch_of(encoder, texts(), chunk_rows=2)
    gradients = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        plain(encoder, batch, JOINT)
        gradients.append(taken(encoder))
    with pytest.raises(AssertionError, match="largest gradient"):
        assert_gradients(*gradients, tolerance=1e-2)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, None])
@pytest.mark.parametrize("kind", ["bert", "modernbert", "qwen3"])
def test_any_size_of_chunks_gives_the_gradient(kind, rows, tiny_models):
    encoder = encoder_of(tiny_models(kind))
    compare(encoder, batch_of(encoder, texts(), chunk_rows=rows), JOINT)


@pytest.mark.parametrize("rows", [1, 2, None])
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_pages_and_texts_in_one_batch_give_the_gradient(adapter, rows, tiny_qwen3vl):
    encoder = encoder_of(tiny_qwen3vl, adapter, HEAD)
    batch = batch_of(encoder, pages(), 12, rows)
    assert any("pixel_values" in c for c in batch.documents) and "pixel_values" not in batch.queries[0]
    compare(encoder, batch, JOINT)


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_adapter_gets_its_gradient(adapter, kind, tiny_models):
    encoder = encoder_of(tiny_models(kind), adapter, HEAD)
    compare(encoder, batch_of(encoder, texts(), chunk_rows=2), JOINT)


@pytest.mark.parametrize("kind", ["bert", "qwen3", "qwen3vl"])
def test_activation_checkpointing_draws_the_same_dropout_three_times(kind, tiny_models):
    encoder = encoder_of(tiny_models(kind), "full")
    batch = batch_of(encoder, pages() if kind == "qwen3vl" else texts(), chunk_rows=2)
    torch.manual_seed(1)
    plain(encoder, batch, JOINT)
    expected = taken(encoder)
    encoder.activation_checkpointing_enable()
    calls: list[int] = []
    block = next(m for n, m in encoder.named_modules() if n.endswith(("layers.1", "layer.1")))
    linear = next(m for m in block.modules() if isinstance(m, nn.Linear))  # a block's own hooks are not run again
    linear.register_forward_pre_hook(lambda *_: calls.append(1))
    torch.manual_seed(1)
    cached(encoder, batch, JOINT)
    assert_gradients(taken(encoder), expected)
    assert len(calls) == 3 * len([*batch.queries, *batch.documents]), "without a graph, with one, and recomputed"


def test_bf16_gradients_are_as_near_as_bf16_itself_is(tiny_qwen3):
    """One pass adds up chunks in bf16 and a cached one in float32, so the two are compared with float32's."""
    encoder = encoder_of(tiny_qwen3, "full")
    batch = batch_of(encoder, texts(), chunk_rows=2)
    torch.manual_seed(1)
    plain(encoder, batch, JOINT)
    exact = taken(encoder)
    off = []
    for run in (plain, cached):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            run(encoder, batch, JOINT)
        found = taken(encoder)
        assert found.keys() == exact.keys(), "a cast that was made without a graph must not be used again"
        total = sum(float((found[n] - exact[n]).square().sum()) for n in exact)
        off.append((total / sum(float(g.square().sum()) for g in exact.values())) ** 0.5)
    assert off[0] < 0.1 and off[1] < 1.02 * off[0]


def test_a_scaled_backward_gives_scaled_gradients(tiny_qwen3):
    """fp16's scaler multiplies each surrogate; unscaled, the gradients are those of the loss."""
    encoder = encoder_of(tiny_qwen3, "lora")
    batch = batch_of(encoder, texts(), chunk_rows=2)
    torch.manual_seed(1)
    expected_loss = plain(encoder, batch, JOINT)
    expected = taken(encoder)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.0)
    made = step(JOINT)
    chunks = [*batch.queries, *batch.documents]
    torch.manual_seed(1)
    loss = cached_backward(
        encoder, chunks, lambda both: made.loss(both, batch), lambda value, last: scaler.scale(value).backward()
    )
    assert float(max(p.grad.abs().max() for p in encoder.parameters() if p.grad is not None)) > 2.0**10
    scaler.unscale_(optimizer)
    assert_gradients(taken(encoder), expected)
    torch.testing.assert_close(loss.total, expected_loss, rtol=1e-6, atol=0)


def test_gradients_of_several_batches_add_up(tiny_bert):
    encoder = encoder_of(tiny_bert)
    batches = [batch_of(encoder, texts(), count, 2) for count in (3, 6)]
    both = []
    for run in (plain, cached):
        torch.manual_seed(1)
        for batch in batches:
            run(encoder, batch, JOINT)
        both.append(taken(encoder))
    assert_gradients(both[1], both[0])


def test_only_one_chunks_activations_exist_at_a_time(tiny_bert):
    """Tensors that autograd keeps, counted as they are packed and freed."""
    encoder = encoder_of(tiny_bert)
    batch = batch_of(encoder, texts(), 24, 4)
    held: dict[str, int] = {}
    for name, run in (("plain", plain), ("cached", cached)):
        now = most = 0

        class Kept:
            def __init__(self, tensor: Tensor) -> None:
                nonlocal now, most
                self.tensor, self.size = tensor, tensor.numel()
                now += self.size
                most = max(most, now)

            def __del__(self) -> None:
                nonlocal now
                now -= self.size

        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            run(encoder, batch, JOINT)
        held[name] = most
    chunks = len([*batch.queries, *batch.documents])
    assert held["cached"] < 2.5 * held["plain"] / chunks
