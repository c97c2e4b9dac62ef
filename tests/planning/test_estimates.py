"""Formulas of memory against torch: tensors saved for a backward, the most that a step holds, optimiser states."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from PIL import Image
from saved_tensors import peak_bytes, saved_bytes
from steps import plain, step

from smart_train.config.schema import AdapterBlock, LateBlock, ModelBlock, ObjectiveBlock, Recipe
from smart_train.core.embeddings import Batch
from smart_train.data.collate import Collator
from smart_train.data.collection import Collection, Document
from smart_train.losses.maxsim_torch import _places
from smart_train.models.base_config import read_base
from smart_train.models.encoder import SmartEncoder
from smart_train.models.hidden_states import find_blocks
from smart_train.planning.estimates import (
    Engine,
    Rows,
    Weights,
    loss_embeddings,
    own_embeddings,
    states,
    weights_volume,
)
from smart_train.planning.launch_files import Launch
from smart_train.planning.memory_model import Lengths, MemoryModel
from smart_train.planning.memory_requirements import memory_requirement
from smart_train.training.gradcache import cached_backward

NEAR = 1.3  # factor that an estimate may be off, either way
TEXT = "the invoice with a total amount due and a chart of yearly revenue by region stands beside the bridge " * 2
PATCHES = 64  # of a tiny Qwen3-VL's 128 x 128 pixels

Case = tuple[str, AdapterBlock, dict[str, Any]]
LORA, FULL, FROZEN = AdapterBlock(r=4), AdapterBlock(kind="full"), AdapterBlock(kind="frozen")
HEAD = LateBlock(head="layernorm_linear", dim=16)
CASES: dict[str, Case] = {
    "bert": ("bert", LORA, {}),
    "bert, dropout": ("bert", LORA, {"dropout": None}),  # attention keeps its matrix then, on a CPU
    "bert, full": ("bert", FULL, {}),
    "bert, autocast": ("bert", LORA, {"half": True}),
    "bert, bfloat16": ("bert", LORA, {"half": True, "dtype": "bfloat16"}),
    "bert, last block": ("bert", replace(LORA, layers=[3]), {}),
    "bert, frozen": ("bert", FROZEN, {"late": HEAD}),
    "modernbert": ("modernbert", LORA, {}),
    "modernbert, full, autocast": ("modernbert", FULL, {"half": True}),
    "qwen3": ("qwen3", LORA, {}),
    "qwen3, two kinds of layer": ("qwen3", replace(LORA, targets=["q_proj", "down_proj"]), {}),
    "qwen3, full": ("qwen3", FULL, {}),
    "qwen3, bfloat16": ("qwen3", LORA, {"half": True, "dtype": "bfloat16"}),
    "qwen3, bfloat16 without autocast": ("qwen3", LORA, {"dtype": "bfloat16"}),
    "qwen3, full, autocast": ("qwen3", FULL, {"half": True}),
    "qwen3vl, text": ("qwen3vl", LORA, {}),
    "qwen3vl, pages": ("qwen3vl", LORA, {"pages": True}),
    "qwen3vl, pages, bfloat16": ("qwen3vl", LORA, {"pages": True, "half": True, "dtype": "bfloat16"}),
    "qwen3vl, pages, vision": ("qwen3vl", replace(LORA, vision=True), {"pages": True}),
    "qwen3vl, pages, full": ("qwen3vl", FULL, {"pages": True}),
}


def made(
    folder: Path,
    adapter: AdapterBlock,
    *,
    dtype: str = "float32",
    dropout: float | None = 0.0,
    late: LateBlock | None = None,
    checkpointing: bool = False,
    objective: ObjectiveBlock | None = None,
    **training: Any,
) -> tuple[SmartEncoder, Recipe]:
    model = ModelBlock(base=str(folder), dtype=dtype, dropout=dropout)  # type: ignore[arg-type]
    late = late or LateBlock()
    encoder = SmartEncoder(str(folder), model=model, late=late, adapter=adapter, device="cpu").train()
    if checkpointing:
        encoder.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    block = {"use_cpu": True, "activation_checkpointing": checkpointing} | training
    blocks = {"model": model, "late": late, "adapter": adapter, "objective": objective or ObjectiveBlock()}
    return encoder, Recipe(**blocks, training=block)  # type: ignore[arg-type]


def subject(recipe: Recipe, pages: bool, query: int, document: int) -> MemoryModel:
    """Of rows as long as the ones that are run."""
    found = MemoryModel(recipe, read_base(recipe.model.base), pages, on_cpu=True)
    found.__dict__["lengths"] = Lengths(query, document, PATCHES * pages)
    return found


def contents(pages: bool) -> list[Any]:
    return [Image.new("RGB", (128, 128), (n, 0, 0)) for n in range(4)] if pages else [TEXT] * 4


@pytest.mark.parametrize("case", CASES)
def test_activations_are_near_to_what_torch_saves(case, tiny_models):
    kind, adapter, given = CASES[case]
    options = dict(given)
    pages, half = options.pop("pages", False), options.pop("half", False)
    encoder, recipe = made(tiny_models(kind), adapter, bf16=half, per_device_train_batch_size=4, **options)
    features = encoder.preprocess(contents(pages), "document")
    rows, length = features["input_ids"].shape
    found = saved_bytes(encoder, lambda: encoder(dict(features)), autocast=half)
    looked = subject(recipe, pages, 0, length)
    expected, _ = looked.activations(Engine(half=half), 1)
    assert rows == 4
    assert found / NEAR < expected < found * NEAR


@pytest.mark.parametrize("kind", ["bert", "qwen3", "qwen3vl"])
def test_with_checkpointing_inputs_of_blocks_are_kept_and_one_block_is_computed_again(kind, tiny_models):
    pages = kind == "qwen3vl"
    kept, whole = [], []
    for checkpointing, into in ((True, kept), (False, whole)):
        encoder, recipe = made(tiny_models(kind), LORA, checkpointing=checkpointing, per_device_train_batch_size=4)
        features = encoder.preprocess(contents(pages), "document")
        looked = subject(recipe, pages, 0, features["input_ids"].shape[1])
        run = partial(encoder, dict(features))
        into += [saved_bytes(encoder, run), *looked.activations(Engine(), 1)]
    blocks = len(find_blocks(encoder.backbone)[1])
    block = (whole[0] - kept[0]) / blocks  # about: what a plain pass keeps more is its blocks
    assert kept[0] / NEAR < kept[1] < kept[0] * NEAR
    assert block / NEAR < kept[2] - whole[2] < 1.5 * block


def words(number: int, length: int) -> str:
    """Texts of one length in tokens, no two alike."""
    found, count = tiny.WORDS, len(tiny.WORDS)
    return " ".join([found[number % count], found[number // count % count], *(found[n] for n in range(2, length))])


def batch(encoder: SmartEncoder, pairs: int, length: int, chunk: int | None) -> Batch:
    corpus = {f"d{n}": Document(f"d{n}", words(n, length)) for n in range(pairs)}
    queries = {f"q{n}": words(n, 8) for n in range(pairs)}
    side = Collection("texts", corpus, queries, {f"q{n}": {f"d{n}": 1} for n in range(pairs)}, {})
    collate = Collator(side, encoder.preprocess, negatives=0, length_groups=1, chunk_rows=chunk)
    return collate([(f"q{n}", f"d{n}") for n in range(pairs)])


STEPS: dict[str, tuple[str, int, int, int | None, dict[str, Any]]] = {  # base, pairs, words, rows of a chunk
    "one pass": ("bert", 64, 40, None, {}),
    "one pass, checkpointing": ("qwen3", 96, 40, None, {"checkpointing": True}),
    "cached, a small batch": ("bert", 64, 40, 16, {}),
    "cached, a large batch of short rows": ("bert", 500, 4, 16, {}),
    "cached, a narrow head": ("qwen3", 160, 40, 16, {"late": LateBlock(head="linear", dim=8)}),
}


@pytest.mark.parametrize("case", STEPS)
def test_the_peak_is_near_to_the_most_that_a_step_holds(case, tiny_models):
    kind, pairs, length, chunk, options = STEPS[case]
    cached = chunk is not None
    objective = ObjectiveBlock(batch=pairs if cached else None, chunk_rows=chunk)
    sizes = {} if cached else {"per_device_train_batch_size": pairs}
    encoder, recipe = made(tiny_models(kind), LORA, objective=objective, **options, **sizes)
    rows = batch(encoder, pairs, length, chunk)
    forward = lambda chunk: encoder(dict(chunk))  # noqa: E731

    def run() -> None:
        if not cached:
            plain(forward, rows, objective)
            return
        chunks = [*rows.queries, *rows.documents]
        loss = lambda both: step(objective).loss(both, rows)  # noqa: E731
        cached_backward(forward, chunks, loss, lambda surrogate, last: surrogate.backward(), keep=pairs <= 128)

    found = peak_bytes(run)
    widths = [side[0]["input_ids"].shape[1] for side in (rows.queries, rows.documents)]
    expected = memory_requirement(subject(recipe, False, *widths), Launch("single", "NO"), 1)
    held = expected.states.weights + expected.states.optimiser  # there before, or made by no step yet
    assert found / NEAR < expected.peak - held < found * NEAR


# States, rows, traffic -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adamw_holds_two_moments_in_the_weights_own_dtype(dtype):
    layer = torch.nn.Linear(40, 30, bias=False, dtype=dtype)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 40, dtype=dtype)).sum().backward()
    optimizer.step()
    moments = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    expected = states(Weights(0, 1200, 0, 1200 * dtype.itemsize), Engine())
    assert expected.optimiser == sum(t.nbytes for t in moments) == 2 * expected.gradients == 2 * expected.weights


def test_bytes_of_a_trained_number_are_those_that_the_launch_files_name():
    """16 in one process, 20 with DDP, 4 + 16 / W with ZeRO-2 (its gradient waits in a bucket), 20 / W with ZeRO-3."""
    trained = 8 * 10**6
    weights = Weights(0, trained, 0, 4 * trained)

    def each(**engine: Any) -> float:
        found = states(weights, Engine(bucket=0, live=0, **engine))
        return (found.total + found.step) / trained

    assert each() == 16 and each(world=8) == 20
    assert each(kind="zero", stage=2, world=8) == 2 + (2 + 16) / 8
    assert each(kind="zero", stage=3, world=8) == 20 / 8
    assert each(kind="zero", stage=3, world=8, offload_optimiser=True) == 2 / 8
    assert states(weights, Engine("fsdp", 8, wrapped=True)).total == 16 * trained / 8  # no block, so nothing is whole


def test_offloaded_states_are_in_main_memory_and_nowhere_else():
    weights = Weights(10**6, 10**5, 2 * 10**6, 4 * 10**5)
    gpu = states(weights, Engine("zero", 4, 3))
    ram = states(weights, Engine("zero", 4, 3, offload_optimiser=True, offload_weights=True))
    assert ram.weights == ram.gradients == ram.optimiser == 0 and ram.gathered == gpu.gathered
    assert ram.ram == gpu.weights + gpu.gradients + gpu.optimiser + gpu.step


@pytest.mark.parametrize("length", [1, 256, 257, 1 << 15, (1 << 15) + 1])
def test_winners_take_as_many_bytes_as_the_tiles_give_them(length):
    rows = Rows(2, 2, 3, query_tokens=5, document_tokens=length, pooled=8, width=4)
    places = _places([length] * 3, 2 * 5, torch.device("meta"))
    assert loss_embeddings(rows)["places"] == places.nbytes


def test_embeddings_are_those_of_rows_tokens_and_widths():
    """Written out for 2 queries of 3 tokens and 4 documents of 5, on each of 8 ranks."""
    rows = Rows(2, 2, 4, 3, 5, pooled=16, width=8, token_size=2, group=8)
    pooled, tokens = torch.zeros(2 + 4, 16), torch.zeros(2 * 3 + 4 * 5, 8)
    assert own_embeddings(rows) == pooled.nbytes + tokens.nbytes
    found = loss_embeddings(rows)
    assert found["rounded"] == tokens.bfloat16().nbytes
    assert found["gathered"] == torch.zeros(8 * 4, 16).nbytes + torch.zeros(8 * 4 * 5, 8).bfloat16().nbytes
    assert found["gradients"] - found["gathered"] == torch.zeros(2, 16).nbytes + torch.zeros(2 * 3, 8).bfloat16().nbytes


def test_alone_nothing_is_gathered_and_a_side_that_is_not_read_is_not_held():
    rows = Rows(2, 2, 4, 3, 5, pooled=16, width=8, uses_tokens=False)
    found = loss_embeddings(rows)
    assert found["gathered"] == found["rounded"] == found["places"] == 0
    assert found["gradients"] == 4 * 16 * (2 + 4)


def test_sharded_weights_cross_in_every_forward_and_backward():
    """8 chunks, each forward twice and backward once: 24 times 7/8 of 2 bytes a weight."""
    weights = Weights(1000, 0, 2000, 0)
    assert weights_volume(weights, Engine("zero", 8, 3), forwards=16) == 24 * 1000 * 2 * 7 / 8
    assert weights_volume(weights, Engine("zero", 8, 2), forwards=16) == 0
