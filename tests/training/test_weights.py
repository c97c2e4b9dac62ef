"""Full fine-tuning of a base stored in half precision is that of the same weights stored in float32, to the last bit:
in training, in what is saved and reloaded, and in a resumed run."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from steps import JOINT, TRAINING, texts
from transformers import AutoModel

from smart_train.config.schema import AdapterBlock, LateBlock, ModelBlock, Recipe
from smart_train.models.base_config import read_base
from smart_train.models.encoder import SmartEncoder
from smart_train.models.verification import verify
from smart_train.planning.memory_model import MemoryModel
from smart_train.training.arguments import training_arguments
from smart_train.training.trainer import SmartTrainer

SMALL = 1e-5  # a step that bfloat16 rounds away for most weights
CASES = {  # how the base is stored, model.dtype, adapter.kind, more of training
    "bfloat16": ("bfloat16", "auto", "full", {}),
    "float16": ("float16", "auto", "full", {}),
    "model.dtype": ("float32", "bfloat16", "full", {}),
    "bf16": ("bfloat16", "auto", "full", {"bf16": True}),
    "lora": ("bfloat16", "auto", "lora", {}),
    "frozen": ("bfloat16", "auto", "frozen", {}),
}


@pytest.fixture
def stored(tiny_models, tmp_path):
    """stored(dtype, rounded) -> folder of a tiny decoder: its weights are rounded to the second, held in the first."""

    def build(dtype: str, rounded: str) -> Path:
        folder = tmp_path / f"{dtype}-{rounded}"
        base = SentenceTransformer(str(tiny_models("qwen3")), device="cpu")
        base.to(getattr(torch, rounded)).to(getattr(torch, dtype)).save(str(folder), create_model_card=False)
        config = json.loads((folder / "config.json").read_text())
        assert config.get("dtype", config.get("torch_dtype")) == dtype
        return folder

    return build


def trainer_of(base: Path, kind: str, run: Path, dtype: str = "auto", **training) -> SmartTrainer:
    torch.manual_seed(0)
    late = LateBlock(head="linear", dim=8) if kind == "frozen" else LateBlock()
    encoder = SmartEncoder(
        str(base), model=ModelBlock(dtype=dtype), late=late, adapter=AdapterBlock(kind=kind, r=4), device="cpu"
    )
    block = {**TRAINING, "learning_rate": SMALL, "max_steps": 2, **training}
    return SmartTrainer(encoder, training_arguments(block, run), texts(teacher=False), objective=JOINT, run_dir=run)


def trained(encoder: SmartEncoder) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in encoder.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("case", CASES)
def test_what_trains_is_float32(case, stored, tmp_path, caplog):
    held, dtype, kind, more = CASES[case]
    with caplog.at_level(logging.INFO):
        trainer = trainer_of(stored(held, held), kind, tmp_path / "run", dtype, **more)
    assert {p.dtype for p in trained(trainer.encoder).values()} == {torch.float32}
    if kind == "full":
        assert {p.dtype for p in trainer.encoder.parameters()} == {torch.float32}
        half = held if dtype == "auto" else dtype
        assert f"is in {half}; the trained weights are float32" in caplog.text
    else:
        assert trainer.encoder.backbone.dtype == torch.bfloat16, "frozen weights stay as they are stored"
        assert "the trained weights are float32" not in caplog.text
    trainer.train()
    assert {p.dtype for state in trainer.optimizer.state.values() for k, p in state.items() if k != "step"} == {
        torch.float32
    }


@pytest.mark.parametrize("case", ["bfloat16", "float16", "bf16"])
def test_a_half_precision_base_trains_as_its_weights_in_float32_do(case, stored, tmp_path):
    held, _, kind, more = CASES[case]
    runs = []
    for dtype in (held, "float32"):
        trainer = trainer_of(stored(dtype, held), kind, tmp_path / dtype, **more)
        start = trained(trainer.encoder)
        trainer.train()
        runs.append((trainer.encoder, start, trained(trainer.encoder)))
    (ours, start, after), (_, _, reference) = runs
    assert after.keys() == reference.keys()
    for name, weight in after.items():
        torch.testing.assert_close(weight, reference[name], atol=0, rtol=0, msg=name)
    blocks = [name for name in after if ".layers." in name]  # words that no text has don't move
    numbers = [torch.cat([some[name].flatten() for name in blocks]) for some in (start, after)]
    moved = (numbers[0] != numbers[1]).float().mean()
    rounded = (numbers[0] != numbers[1].to(getattr(torch, held)).float()).float().mean()
    assert moved > 0.9 and rounded < 0.5, "most of these steps are lost in half precision"


@pytest.mark.parametrize("case", ["bfloat16", "model.dtype"])
def test_what_is_saved_is_what_was_trained(case, stored, tmp_path):
    held, dtype, kind, _ = CASES[case]
    trainer = trainer_of(stored(held, held), kind, tmp_path / "run", dtype)
    trainer.train()
    folder = tmp_path / "adapter"
    trainer.save_model(str(folder))
    queries, documents = ["which page", "harbour"], ["a garden by the river", "copper"]
    assert verify(trainer.encoder, folder, queries, documents)["tolerance"] == 1e-5
    plain = dict(AutoModel.from_pretrained(folder).named_parameters())  # what others load
    ours = dict(trainer.encoder.backbone.named_parameters())
    assert plain.keys() == ours.keys() and all(torch.equal(p, ours[n]) for n, p in plain.items())


def test_a_resumed_run_keeps_every_bit(stored, tmp_path):
    base = stored("bfloat16", "bfloat16")
    saved = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
    once = trainer_of(base, "full", tmp_path / "once", max_steps=3, **saved)
    once.train()
    again = trainer_of(base, "full", tmp_path / "again", max_steps=3, **saved)
    again.train(resume_from_checkpoint=str(next((tmp_path / "once").rglob("checkpoint-1"))))
    expected = trained(once.encoder)
    assert all(torch.equal(p, expected[n]) for n, p in trained(again.encoder).items())


@pytest.mark.parametrize(("kind", "size"), [("full", 4), ("lora", 2)])
def test_doctor_counts_the_dtype_that_trains(kind, size, stored, tmp_path):
    base = stored("bfloat16", "bfloat16")
    recipe = Recipe(model=ModelBlock(base=str(base)), adapter=AdapterBlock(kind=kind, r=4))
    weights = MemoryModel(recipe, read_base(str(base)), images=False, on_cpu=True).weights
    held = trainer_of(base, kind, tmp_path / "run").encoder
    assert weights.trained_bytes == sum(4 * p.numel() for p in held.parameters() if p.requires_grad)
    backbone = [p for n, p in held.named_parameters() if n.startswith("st.") and "lora_" not in n]
    assert {p.element_size() for p in backbone} == {size}
    assert weights.trained_bytes + weights.frozen_bytes == sum(p.numel() * p.element_size() for p in held.parameters())
