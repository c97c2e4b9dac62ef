"""tests/benchmarks/gpu.sh, as far as it goes without a GPU: the model that it measures, what it says where it can't,
and (slow) a real run of contenders on a tiny model."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image
from transformers import Qwen3VLModel

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import gpu_model  # noqa: E402
import gpu_step  # noqa: E402


def test_the_measured_model_has_the_parameters_of_a_2b_page_embedder():
    """Qwen3-VL-2B: 1.72 G in the language model, whose embeddings the output shares, 0.41 G in the vision tower."""
    with torch.device("meta"):
        model = Qwen3VLModel(gpu_model.config_2b(tiny.qwen_tokenizer("left")))
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert count == {"visual": 406_957_056, "language_model": 1_720_574_976}


def test_pages_differ_and_are_as_many_tokens_as_the_pixel_budget_lets_through(tmp_path):
    pages = [Image.open(file) for file in gpu_model.pages(tmp_path, 3, small=False)]
    assert {page.width * page.height for page in pages} == {gpu_model.PIXELS_2B[1]}
    assert len({page.tobytes() for page in pages}) == 3
    processor = gpu_model.processor_2b()
    shown = processor(images=pages[:1], text=["<|vision_start|><|image_pad|><|vision_end|>"], truncation=True)
    tokens = list(shown["input_ids"][0])
    assert tokens.count(processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")) == 768


@pytest.mark.parametrize(("given", "status", "says"), [([], 2, "usage"), (["out.json"], 1, "no nvidia-smi")])
def test_the_script_says_what_is_missing_and_installs_nothing(given, status, says, tmp_path):
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(Path("/usr/bin") / name)
    environment = {"PATH": str(tmp_path), "PYTHON": sys.executable}
    done = subprocess.run([str(BENCHMARKS / "gpu.sh"), *given], env=environment, capture_output=True, text=True)
    assert done.returncode == status and says in done.stderr and not done.stdout


@pytest.mark.slow
def test_contenders_train_a_tiny_model_on_a_cpu_and_leave_their_figures(tmp_path):
    names = ["ours joint, cached", "st multi-vector, cached"]
    command = [sys.executable, str(BENCHMARKS / "gpu_step.py"), "--tiny", "--device", "cpu", "--only", *names]
    file = tmp_path / "tiny.json"
    done = subprocess.run([*command, "--json", str(file)], env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(file.read_text())
    assert report["machine"]["packages"]["torch"] == torch.__version__ and report["machine"]["gpu"] is None
    ours, theirs = (report["results"][name] for name in names)
    for row in (ours, theirs):
        assert row["seconds"] > 0 and row["allocated"] > 1 << 20
        assert row["pairs_per_second"] == pytest.approx(row["pairs"] / row["seconds"])
    assert theirs["trained"] - ours["trained"] == 64 * 128  # the same LoRA; theirs puts a projection to 128 behind it


@pytest.mark.slow
def test_a_contender_that_fails_is_told_with_its_error_and_ends_nothing(tmp_path):
    options = argparse.Namespace(tiny=True, device="cpu", pairs=4, chunk=2, steps=3, workers=0)
    found = gpu_step.apart("ours joint", tmp_path, options)  # neither model nor pages are there
    assert "FileNotFoundError" in found["failed"] and len(found["output"]) > 1
    assert "failed: FileNotFoundError" in gpu_step.table({"ours joint": found})
