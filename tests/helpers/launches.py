"""Whole runs in processes of their own: the literal launch commands, and what every run leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from smart_train.models.encoder import SmartEncoder

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"
LAUNCH = ROOT / "launch"
MODES = ("pooled", "late", "hybrid")

# Only what a tiny machine needs: where model and data lie, and how many rows and pixels.
FEW = {
    "training.max_steps": 2,
    "training.use_cpu": "true",
    "training.dataloader_num_workers": 0,
    "training.logging_steps": 1,
    "data.dev": 4,
    "data.test": 6,
    "evaluation.bootstrap": 20,
}
FOUR = {"training.per_device_train_batch_size": 4}
CACHED = {"objective.batch": 4, "objective.chunk_rows": 3}  # two chunks a side
PAGES = {"model.min_pixels": 1024, "model.max_pixels": 16384}


def program(name: str) -> str:
    """A launcher of this environment: accelerate, deepspeed, torchrun."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.is_file() else str(shutil.which(name))


def words(overrides: dict[str, object]) -> list[str]:
    return [f"{key}={value}" for key, value in overrides.items()]


def environment(**more: str) -> dict[str, str]:
    """What a launch is run in; nothing of a launch around this one."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "SLURM_", "FSDP_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    own = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**kept, "PATH": path, **own, **more}


def run(command: list[str], timeout: float = 600, **more: str) -> str:
    """Runs a command at the repository's root and returns what it printed; a failure shows its end."""
    done = subprocess.run(
        command, cwd=ROOT, env=environment(**more), capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def launch(recipe: Path, output: Path, **overrides: object) -> str:
    """``accelerate launch RECIPE key=value ...``"""
    return run([program("accelerate"), "launch", str(recipe), *words({**FEW, **overrides, "output": output})])


def log_of(output: Path) -> list[dict]:
    """The whole lines of a log, which its run may be writing to."""
    lines = (output / "log.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def check_run(output: Path, printed: str, terms: set[str]) -> SmartEncoder:
    """What every run leaves: figures of both rows, two logged steps, a picture, the recipe, and an adapter that a
    fresh object loads."""
    figures = json.loads((output / "metrics.json").read_text())
    for row in ("base", "trained"):
        for mode in MODES:
            value = figures[row][mode]["ndcg@10"]
            assert 0 <= value["low"] <= value["value"] <= value["high"] <= 1
            assert f"{value['value']:.3f}" in printed
    steps = {line["step"]: line for line in log_of(output) if "loss" in line}
    assert sorted(steps) == [1, 2]
    for line in steps.values():
        assert {name.removeprefix("loss/") for name in line if name.startswith("loss/")} == terms
        assert all(line[f"loss/{term}"] > 0 for term in terms)
    assert any("dev/hybrid/ndcg@10" in line for line in log_of(output))
    assert (output / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert yaml.safe_load((output / "recipe.yaml").read_text())["training"]["max_steps"] == 2
    assert str(output / "metrics.json") in printed and str(output / "adapter") in printed
    assert json.loads((output / "adapter" / "verified.json").read_text())["rows"] > 0
    return SmartEncoder.from_pretrained(output / "adapter", device="cpu")


FINE = {0, 3}  # 3 = done, with findings or files that were skipped


def shell(words: list[str], folder: Path, **variables: str) -> str | None:
    """None where the command ended as it should, else what it said."""
    done = subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True, timeout=900, check=False)
    return (
        None
        if done.returncode in FINE
        else f"exit status {done.returncode}\n{done.stdout[-1500:]}\n{done.stderr[-2500:]}"
    )
