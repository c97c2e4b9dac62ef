"""bfloat16 under engines that cast the weights: embeddings stay float32, what is saved are the float32 weights, and the
reloaded folder is compared as a half-precision one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import equality
import pytest
import tiny_data
import torch
import torch.distributed as dist
from ranks import run_ranks
from safetensors.torch import load_file

from smart_train.models.verification import verify


def trained(base: str, out: str, engine: str) -> dict[str, Any]:
    """Saved after an evaluation, which leaves FSDP2's outermost weights whole, in bfloat16."""
    often = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 2}
    with equality.fsdp_on_cpu(engine == "FSDP2"):
        trainer = equality.trainer_of(base, Path(out), engine, cached=False, bf16=True, **often)
        trainer.evaluator = lambda encoder: {"pooled/ndcg@10": float(len(encoder.encode_documents(["a b c"]).pooled))}
        types, loss = set(), trainer.step.loss
        trainer.step.loss = lambda both, batch: types.add(str(both.pooled.dtype)) or loss(both, batch)
        trainer.train()
        main = trainer.is_world_process_zero()
        sides = ["a query"], [tiny_data.passage(3)]
        trainer.save_model(f"{out}/adapter")
        dist.barrier()
        report = verify(trainer.encoder, Path(out) / "adapter", *sides, main=main, half=trainer.engine.half)
        return {"types": types, "tolerance": report.get("tolerance")}


@pytest.mark.parametrize(
    "engine", [pytest.param(engine, marks=pytest.mark.slow) for engine in ("FSDP2", "DeepSpeed ZeRO-2")]
)
def test_weights_in_half_precision_leave_embeddings_and_files_in_float32(engine, tiny_bert, tmp_path):
    first, second = run_ranks(2, trained, str(tiny_bert), str(tmp_path), engine, timeout=200)
    assert first["types"] == second["types"] == {"torch.float32"} and first["tolerance"] == 5e-2
    head = load_file(tmp_path / "adapter" / "late_head.safetensors")
    assert {tensor.dtype for tensor in head.values()} == {torch.float32}
    if engine == "FSDP2":  # DeepSpeed's own weights are bfloat16
        assert any(not torch.equal(tensor.bfloat16().float(), tensor) for tensor in head.values())
