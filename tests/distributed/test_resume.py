"""Checkpoints of several ranks over gloo: a resumed run is the uninterrupted one bit for bit under every engine, a rank
that cannot write costs all of them that checkpoint alone, and launches that cannot go on are told why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from equality import fsdp_on_cpu
from ranks import run_ranks
from resumed import HEAD, differences, left, log_of, root, trainer_of

from smart_train.core.errors import CheckpointError
from smart_train.training import checkpoint as files

OPTIONS: dict[str, Any] = {
    "max_steps": 7,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": None,
    "logging_steps": 3,
    "dropout": 0.1,
    "late": HEAD,
    "negatives": 1,
    "window": 2,
}
CACHED = {"cached": True, "chunk_rows": 2, "gradient_accumulation_steps": 2}


def config(stage: int) -> dict[str, Any]:
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    zero = {"stage": stage}
    return {**dict.fromkeys(auto, "auto"), "zero_optimization": zero, "zero_allow_untested_optimizer": True}


def all_of(base: str, out: str, engine: str) -> dict[str, Any]:
    stage = int(engine[-1]) if engine.startswith("DeepSpeed") else None
    options = {**OPTIONS, "deepspeed": config(stage) if stage else None}
    with fsdp_on_cpu(engine == "FSDP2"):
        return {
            "plain": resumed_on_ranks(base, Path(out) / "plain", options, 3),
            "cached": resumed_on_ranks(base, Path(out) / "cached", {**options, **CACHED, "max_steps": 4}, 2),
            "best": best_on_ranks(base, Path(out) / "best", options),
            "failed": failed_on_ranks(base, Path(out) / "failed", options),
            "refused": refused_on_ranks(base, Path(out) / "plain", options),
        }


def meet() -> bool:
    """Waits for the other rank; whether this is the first."""
    dist.barrier()
    return dist.get_rank() == 0


def resumed_on_ranks(base: str, out: Path, options: dict[str, Any], step: int) -> dict[str, Any]:
    """Places where a run that is resumed after ``step`` differs from the uninterrupted one."""
    whole = trainer_of(Path(base), out / "whole", **options)
    whole.train()
    if meet():
        shutil.copytree(out / "whole", out / "resumed")
    meet()
    trainer = trainer_of(Path(base), out / "resumed", **options)
    trainer.train(resume_from_checkpoint=str(root(trainer) / f"checkpoint-{step}"))
    meet()
    last = f"checkpoints/checkpoint-{options['max_steps']}"
    trained = {name for name, p in trainer.encoder.named_parameters() if p.requires_grad}
    lines = [[line for line in log_of(out / run) if "loss" in line] for run in ("resumed", "whole")]
    return {
        "differences": differences(left(out / "resumed" / last), left(out / "whole" / last)),
        "lines": differences(*lines),
        "steps": [line["step"] for line in lines[0]],
        "frozen": frozen_of(out / "whole" / last, trained),
        "facts": files.read_manifest(out / "whole" / last),
    }


def frozen_of(checkpoint: Path, trained: set[str]) -> list[str]:
    """Weight files besides adapter and head, and tensors of DeepSpeed's files that do not train."""
    names = {file.name for file in checkpoint.rglob("*.safetensors")} | {f.name for f in checkpoint.rglob("*.bin")}
    found = sorted(names - {"adapter_model.safetensors", "late_head.safetensors"})
    for file in checkpoint.rglob("*model_states.pt"):
        stored = torch.load(file, weights_only=False)
        found += [name for name in stored["module"] if name not in trained and "position_ids" not in name]
        found += list(stored.get("frozen_param_fragments") or [])
    return found


def best_on_ranks(base: str, out: Path, options: dict[str, Any]) -> tuple[list[str], list[int]]:
    """Tensors in memory that are not the best checkpoint's after training, and the checkpoints that are left."""
    scores = {1: 0.2, 2: 0.9, 3: 0.4}
    trainer: Any = None

    def figures(_: Any) -> dict[str, float]:
        value = scores[trainer.state.global_step]
        return {"pooled/ndcg@10": value, "hybrid/ndcg@10": value}

    chosen = {"metric_for_best_model": "pooled/ndcg@10", "load_best_model_at_end": True, "eval_strategy": "steps"}
    options = {**options, **chosen, "eval_steps": 1, "max_steps": 3, "save_total_limit": 1, "evaluator": figures}
    trainer = trainer_of(Path(base), out, **options)
    trainer.train()
    trainer.save_model(str(out / "final"))
    meet()
    best = root(trainer) / "checkpoint-2"
    names = ("adapter_model.safetensors", "late_head.safetensors")
    other = [name for name in names if (out / "final" / name).read_bytes() != (best / name).read_bytes()]
    return other, files.list_steps(root(trainer))


def failed_on_ranks(base: str, out: Path, options: dict[str, Any]) -> dict[str, Any]:
    """One rank's disk is full at step 3, first where it writes alone, then within an engine's own writer."""
    found: dict[str, Any] = {}
    for what in ("_save_rng_state", "engine"):
        trainer = trainer_of(Path(base), out / what, **{**options, "max_steps": 4})
        spoil(trainer, what)
        warnings: list[str] = []
        trainer.checkpoints._warn = warnings.extend
        trainer.train()
        meet()
        found[what] = {
            "warnings": warnings,
            "lost": trainer.checkpoints.lost,
            "steps": files.list_steps(root(trainer)),
            "parts": [path.name for path in root(trainer).glob("*.part")],
        }
        meet()
    return found


def spoil(trainer: Any, what: str) -> None:
    """Under FSDP the first rank writes the whole optimizer, after all have handed it their shares."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    save = trainer._save_optimizer_and_scheduler

    def of_engine(folder: str) -> None:
        engine, writes = trainer.model_wrapped, dist.get_rank() == (0 if trainer.engine.fsdp else 1)
        own = torch.save
        if trainer.state.global_step == 3 and writes:
            if trainer.engine.deepspeed:
                engine.checkpoint_engine.save = full
            elif trainer.engine.fsdp:
                torch.save = full
            else:
                full()
        try:
            save(folder)
        finally:
            torch.save = own

    if what == "engine":
        trainer._save_optimizer_and_scheduler = of_engine
    elif dist.get_rank() == 1:
        own = trainer._save_rng_state
        trainer._save_rng_state = lambda folder: full() if trainer.state.global_step == 3 else own(folder)


def refused_on_ranks(base: str, out: Path, options: dict[str, Any]) -> dict[str, str]:
    """What is said of a checkpoint that lacks a rank's file, and of one that three processes wrote."""
    found = {}
    folder = out / "resumed" / "checkpoints" / "checkpoint-7"
    facts = files.read_manifest(folder)
    for what, file in (("processes", folder / files.MANIFEST), ("rng", folder / "rng_state_1.pth")):
        if meet():
            if what == "rng":
                file.unlink()
            else:
                changed = {**facts, "processes": 3}
                file.write_text(json.dumps({**changed, "checksum": files._checksum(changed)}))
        meet()
        try:
            trainer_of(Path(base), out / "resumed", **{**options, "max_steps": 8}).train(
                resume_from_checkpoint=str(folder)
            )
            found[what] = "went on"
        except CheckpointError as error:
            found[what] = str(error)
    return found


@pytest.mark.parametrize(
    "engine",
    ["DDP", *(pytest.param(e, marks=pytest.mark.slow) for e in ("DeepSpeed ZeRO-2", "DeepSpeed ZeRO-3", "FSDP2"))],
)
def test_two_ranks_go_on_as_they_would_have(engine, tiny_bert, tmp_path):
    ranks = run_ranks(2, all_of, str(tiny_bert), str(tmp_path), engine, timeout=400.0)
    for found in ranks:
        for case, logged in (("plain", [1, 3, 6]), ("cached", [1, 3])):
            one = found[case]
            assert not one["differences"] and not one["lines"] and one["steps"] == logged
            assert one["facts"]["engine"] == engine and one["facts"]["processes"] == 2
            assert not one["frozen"]
        assert found["best"] == ([], [2, 3])
        for what in ("_save_rng_state", "engine"):
            failed = found["failed"][what]
            full, other = (0, 1) if (what, engine) == ("engine", "FSDP2") else (1, 0)
            (warning,) = (one for one in failed["warnings"] if "could not be written" in one)
            assert f"rank {full}: the disk is full" in warning and f"rank {other}" not in warning
            assert "checkpoint-2 is complete" in warning
            assert (failed["lost"], failed["steps"], failed["parts"]) == ([3], [1, 2, 4], [])
    for told in (found["refused"] for found in ranks):
        if engine.startswith("DeepSpeed"):
            assert "each with its share of the optimizer, and 2 were launched; launch 3" in told["processes"]
        else:
            assert told["processes"] == "went on"
        assert "rng_state_1.pth is missing" in told["rng"]
