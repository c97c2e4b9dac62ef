"""Runs to publish, made without training; and the command against a Hub on loopback, in a process of its own."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import fakehub
import tiny

from smart_train.config.recipe import save
from smart_train.config.schema import AdapterBlock, DataBlock, LateBlock, ModelBlock, Recipe
from smart_train.models.encoder import SmartEncoder
from smart_train.models.verification import verify

ROOT = Path(__file__).resolve().parents[2]
ROW = {
    mode: {
        "ndcg@10": {"value": 0.5, "low": 0.41, "high": 0.59},
        "ndcg@1": {"value": 0.3, "low": 0.2, "high": 0.4},
        "recall@5": {"value": 0.6, "low": 0.5, "high": 0.7},
        "recall@10": {"value": 0.7, "low": 0.6, "high": 0.8},
        "mrr@10": {"value": 0.4, "low": 0.3, "high": 0.5},
    }
    for mode in ("pooled", "late", "hybrid")
}
COUNTS = {"queries": 300, "documents": 2000, "mb_per_document": 0.071}
DIFFERENCE = {"trained hybrid - base hybrid": {"value": 0.031, "low": 0.011, "high": 0.05, "p": 0.002}}
FACTS = {
    "data": {
        "kind": "local",
        "name": "secret data",
        "splits": {
            "train": {"queries": 1500, "documents": 800, "pairs": 1600, "files": 40, "negatives": 4800},
            "test": {"queries": 300, "documents": 2000, "pairs": 310, "files": 50},
        },
    },
    "machine": {"device": "A CPU", "kind": "cpu", "processes": 2, "engine": "DDP", "cores": 4},
}
LOG = [
    {"step": 1, "seconds": 10.0, "memory/gib": 1.25, "epoch": 0.5},
    {"step": 2, "seconds": 60.5, "epoch": 1.0},
    {"step": 2, "seconds": 3.0, "memory/gib": 1.5, "epoch": 1.0},  # gone on with
    {"step": 4, "seconds": 62.0, "epoch": 2.0},
]


def made(folder: Path, base: str, kind: str = "lora", seed: int = 0, **late: Any) -> Path:
    """A saved and verified adapter with a head, every trained tensor moved."""
    import torch

    block, adapter = LateBlock(head="linear", dim=12, **late), AdapterBlock(kind=kind, r=4)  # type: ignore[arg-type]
    encoder = SmartEncoder(base, late=block, adapter=adapter, device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    encoder.save_pretrained(folder)
    verify(encoder, folder, ["a query"], tiny.TEXTS)
    return folder


def finished(folder: Path, base: Path) -> Path:
    """FOLDER/mine as train.py leaves a run's folder, and what other tools leave beside an adapter."""
    from PIL import Image

    run = folder / "mine"
    made(run / "adapter", str(base))
    data = DataBlock(path=str(run / "secret data"))
    recipe = Recipe(model=ModelBlock(base=str(base), query_prompt="/ find: "), data=data, output=str(run))
    save(recipe, run)
    (run / "metrics.json").write_text(json.dumps({"base": ROW, "trained": ROW}))
    rows = {"base": COUNTS, "trained": COUNTS}
    (run / "evaluation.json").write_text(json.dumps({"rows": rows, "differences": DIFFERENCE}))
    (run / "facts.json").write_text(json.dumps(FACTS))
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LOG))
    Image.new("RGB", (8, 8), "white").save(run / "curve.png")
    for left in ("adapter/training_args.bin", "adapter/checkpoint-2/model.safetensors", "adapter/notes.txt"):
        (run / left).parent.mkdir(exist_ok=True)
        (run / left).write_bytes(b"not for others")
    return run


def line(*words: str) -> list[str]:
    return [sys.executable, "-m", "smart_train", *words]


def command(
    hub: fakehub.FakeHub, home: Path, *words: str, token: str | None = fakehub.TOKEN, **more: str
) -> subprocess.CompletedProcess[str]:
    environment = hub.environment(home, token, PYTHONPATH=str(ROOT), **more)
    return subprocess.run(line(*words), env=environment, cwd=home.parent, capture_output=True, text=True, timeout=300)


def state(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
