"""A recipe that names a head and token filters of another package: trained, verified, reloaded, and resumed."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from smart_train.checks.recipe import check
from smart_train.config.recipe import read
from smart_train.core.errors import AdapterError
from smart_train.models.encoder import SmartEncoder
from smart_train.models.safe_loading import HEAD
from smart_train.training.run import run

NAMES = ["own_parts:TwoLayerHead", "own_parts:every_second"]


@pytest.fixture
def start(tmp_path, tiny_bert, beir_folder):
    recipe = {
        "name": "own",
        "output": str(tmp_path / "run"),
        "model": {"base": str(tiny_bert), "pooling": "max"},
        "late": {
            "layer": [1, -1],
            "dim": 5,
            "head": {"type": NAMES[0], "inner": 6},
            "keep": [{"type": NAMES[1], "first": 1}, "no_punctuation"],
        },
        "adapter": {"r": 4},
        "data": {"path": str(beir_folder), "dev": 4},
        "training": {
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.01,
            "use_cpu": True,
            "disable_tqdm": True,
            "logging_steps": 1,
            "save_steps": 1,
            "save_strategy": "steps",
        },
        "evaluation": {"bootstrap": 2, "k": [10], "during": False},
    }
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(recipe))

    def begin(*overrides: str):
        chosen = read(path, list(overrides))
        check(chosen)
        run(chosen)
        return tmp_path / "run"

    return begin


def test_own_parts_are_trained_saved_reloaded_and_resumed(start, tmp_path):
    output = start()
    verified = json.loads((output / "adapter" / "verified.json").read_text())
    assert verified["largest_token_difference"] <= 1e-5 and HEAD in verified["files"]
    with pytest.raises(AdapterError, match="late.head is 'own_parts:TwoLayerHead'.*trust_extensions"):
        SmartEncoder.from_pretrained(output / "adapter", device="cpu")
    trained = SmartEncoder.from_pretrained(output / "adapter", device="cpu", trust_extensions=NAMES)
    assert trained.pooling == "max" and trained.token_width == 5
    whole = load_file(output / "adapter" / HEAD)
    assert whole["inner.weight"].shape == (6, 32) and whole["scale"].shape == (5,) and "mix" in whole
    checkpoint = tmp_path / "checkpoint-1"
    (output / "checkpoints" / "checkpoint-1").rename(checkpoint)
    again = start(f"training.resume_from_checkpoint={checkpoint}")
    for name, tensor in load_file(again / "adapter" / HEAD).items():
        torch.testing.assert_close(tensor, whole[name])
