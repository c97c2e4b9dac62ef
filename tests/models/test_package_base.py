"""An adapter over a model that an installed package carries, copied to a machine where the package lies elsewhere."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from smart_train.models.encoder import SmartEncoder

BASE = "package:carried_model/model"
TEXTS = ["a chart of revenue", "violin lantern"]


@pytest.fixture
def carried(tiny_bert, tmp_path, monkeypatch):
    """carried(name) installs the package in a folder of that name, in place of where it was."""
    places = []

    def install(name: str) -> Path:
        for old in places:
            shutil.rmtree(old)
            sys.path.remove(str(old))
        shutil.copytree(tiny_bert, tmp_path / name / "carried_model" / "model")
        (tmp_path / name / "carried_model" / "__init__.py").write_text("")
        monkeypatch.syspath_prepend(str(tmp_path / name))
        places[:] = [tmp_path / name]
        sys.modules.pop("carried_model", None)
        return tmp_path / name

    return install


@pytest.mark.parametrize("kind", ["lora", "frozen", "full"])
def test_a_copied_adapter_finds_its_package_wherever_that_is_installed(kind, carried, tmp_path, caplog):
    was = carried("machine_a")
    encoder = SmartEncoder(BASE, adapter={"kind": kind}, late={"head": "linear", "dim": 8}, device="cpu")
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad and ("lora_B" in name or "head" in name):
            torch.nn.init.normal_(parameter)
    encoder.save_pretrained(tmp_path / "adapter")
    expected = encoder.encode_documents(TEXTS)
    copy = Path(shutil.copytree(tmp_path / "adapter", tmp_path / "elsewhere" / "adapter"))
    shutil.rmtree(tmp_path / "adapter")
    carried("machine_b")
    assert not was.exists()
    found = SmartEncoder.from_pretrained(copy, device="cpu").encode_documents(TEXTS)
    torch.testing.assert_close(found.pooled, expected.pooled, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.tokens.values, expected.tokens.values, atol=1e-6, rtol=0)
    assert json.loads((copy / "smart_train.json").read_text())["base"] == BASE
    told = "is not on this machine: plain sentence-transformers and peft cannot load this folder"
    assert (told in caplog.text) == (kind == "lora")
