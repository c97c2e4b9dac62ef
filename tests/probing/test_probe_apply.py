"""A recommendation in an adapter's folder, or as a folder of its own: what loads is what was chosen, and proved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import TEXTS

from smart_train.config.schema import AdapterBlock, HybridBlock, LateBlock
from smart_train.models.encoder import SmartEncoder
from smart_train.models.lora import AdapterError
from smart_train.models.safe_loading import digests
from smart_train.models.verification import verify
from smart_train.probing.probe_run import as_folder, to_adapter
from smart_train.publishing.publisher import PublishError, check_verified

QUERIES, DOCUMENTS = TEXTS[:3], TEXTS[2:]
HYBRID = HybridBlock(1.0, 2.0, "standardised", 0.3, 0.1, 0.5, 0.05)
CHOSEN = LateBlock(layer=1, hybrid=HYBRID)


def adapter(base: Path, folder: Path, late: LateBlock | None = None, proved: bool = True) -> Path:
    encoder = SmartEncoder(str(base), late=late, adapter=AdapterBlock(r=4), device="cpu")
    torch.manual_seed(0)
    for name, weight in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    encoder.save_pretrained(folder)
    if proved:
        verify(encoder, folder, QUERIES, DOCUMENTS)
    return folder


def same(folder: Path, other: SmartEncoder) -> bool:
    loaded = SmartEncoder.from_pretrained(folder, device="cpu")
    ours, theirs = loaded.encode_documents(TEXTS), other.encode_documents(TEXTS)
    assert float((ours.pooled - theirs.pooled).abs().max()) < 1e-6
    assert float((ours.tokens.values - theirs.tokens.values).abs().max()) < 1e-6
    return loaded.late.hybrid == other.late.hybrid and loaded.late.layer == other.late.layer


def test_without_an_adapter_it_is_a_folder_of_settings_that_loads_and_is_verified(tmp_path, tiny_qwen3):
    encoder = SmartEncoder(str(tiny_qwen3), device="cpu")
    last = encoder.encode_documents(TEXTS)
    folder = as_folder(encoder, CHOSEN, tmp_path / "encoder", QUERIES, DOCUMENTS)
    assert sorted(path.name for path in folder.iterdir()) == ["smart_train.json", "verified.json"]
    expected = SmartEncoder(str(tiny_qwen3), late=CHOSEN, device="cpu")
    assert same(folder, expected)
    loaded = SmartEncoder.from_pretrained(folder, device="cpu")
    tokens = loaded.encode_documents(TEXTS).tokens.values
    assert float((tokens - last.tokens.values).abs().max()) > 0.1  # another layer, through the final norm
    assert torch.allclose(loaded.score(QUERIES, DOCUMENTS), expected.score(QUERIES, DOCUMENTS), atol=1e-4)
    verified = json.loads((folder / "verified.json").read_text())
    assert verified["largest_token_difference"] <= 1e-5 and verified["rows"] == len(QUERIES) + len(DOCUMENTS)
    check_verified(folder)
    as_folder(expected, LateBlock(layer=2, hybrid=HYBRID), folder, QUERIES, DOCUMENTS)  # probed again: replaced
    assert same(folder, SmartEncoder(str(tiny_qwen3), late=LateBlock(layer=2, hybrid=HYBRID), device="cpu"))


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, tiny_bert):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(AdapterError, match="holds other files"):
        as_folder(SmartEncoder(str(tiny_bert), device="cpu"), CHOSEN, tmp_path, QUERIES, DOCUMENTS)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_adapter_gets_layer_and_weights_and_keeps_everything_else(tmp_path, tiny_bert):
    folder = adapter(tiny_bert, tmp_path / "adapter")
    before, weights = json.loads((folder / "smart_train.json").read_text()), digests(folder)
    encoder = SmartEncoder.from_pretrained(folder, device="cpu")
    assert to_adapter(encoder, CHOSEN, folder, QUERIES, DOCUMENTS)
    after = json.loads((folder / "smart_train.json").read_text())
    assert after["late"].pop("layer") == 1 and after["late"].pop("hybrid")["late"] == 2.0
    del before["late"]["layer"], before["late"]["hybrid"]
    assert after == before and digests(folder) == weights
    assert same(folder, SmartEncoder.from_pretrained(folder, layer=1, device="cpu"))
    assert SmartEncoder.from_pretrained(folder, device="cpu").late.hybrid == HYBRID
    check_verified(folder)


def test_an_adapter_that_was_never_verified_does_not_become_so(tmp_path, tiny_bert):
    folder = adapter(tiny_bert, tmp_path / "adapter", proved=False)
    assert not to_adapter(SmartEncoder.from_pretrained(folder, device="cpu"), CHOSEN, folder, QUERIES, DOCUMENTS)
    assert json.loads((folder / "smart_train.json").read_text())["late"]["layer"] == 1
    with pytest.raises(PublishError, match="never verified"):
        check_verified(folder)


def test_an_adapter_whose_weights_changed_since_is_refused_and_left_as_it_was(tmp_path, tiny_bert):
    folder = adapter(tiny_bert, tmp_path / "adapter")
    other = adapter(tiny_bert, tmp_path / "other", LateBlock(layer=2))
    encoder = SmartEncoder.from_pretrained(folder, device="cpu")
    file = folder / "adapter_model.safetensors"
    from safetensors.torch import load_file, save_file

    save_file({name: tensor * 2 for name, tensor in load_file(other / file.name).items()}, file, {"format": "pt"})
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(AdapterError, match=r"is not what was verified: adapter_model.safetensors \(changed\)"):
        to_adapter(encoder, CHOSEN, folder, QUERIES, DOCUMENTS)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_where_the_reloaded_folder_gives_other_vectors_it_is_as_it_was(tmp_path, tiny_bert):
    folder = adapter(tiny_bert, tmp_path / "adapter")
    encoder = SmartEncoder.from_pretrained(folder, device="cpu")
    with torch.no_grad():
        next(p for n, p in encoder.named_parameters() if "lora_B" in n).add_(0.1)  # not what lies there
    before = {name: (folder / name).read_bytes() for name in ("smart_train.json", "verified.json")}
    with pytest.raises(AdapterError, match="vectors differ"):
        to_adapter(encoder, CHOSEN, folder, QUERIES, DOCUMENTS)
    assert before == {name: (folder / name).read_bytes() for name in before}
    check_verified(folder)


def test_a_base_that_has_moved_is_named(tmp_path, tiny_bert):
    base = shutil.copytree(tiny_bert, tmp_path / "base")
    folder = adapter(base, tmp_path / "adapter")
    moved = base.rename(tmp_path / "elsewhere")
    encoder = SmartEncoder.from_pretrained(folder, base=str(moved), device="cpu")
    assert to_adapter(encoder, CHOSEN, folder, QUERIES, DOCUMENTS, base=str(moved))
    settings = json.loads((folder / "smart_train.json").read_text())
    assert settings["late"]["layer"] == 1 and settings["base"] == str(base)


def test_a_head_keeps_its_layer_and_gets_its_weights(tmp_path, tiny_bert):
    folder = adapter(tiny_bert, tmp_path / "adapter", LateBlock(layer=2, head="linear", dim=8))
    encoder = SmartEncoder.from_pretrained(folder, device="cpu")
    assert to_adapter(encoder, LateBlock(layer=2, hybrid=HYBRID), folder, QUERIES, DOCUMENTS)
    loaded = SmartEncoder.from_pretrained(folder, device="cpu")
    assert (loaded.late.layer, loaded.late.head.type, loaded.late.hybrid) == (2, "linear", HYBRID)
    with pytest.raises(ValueError, match="on which its head was trained: it can't read layer 1"):
        to_adapter(loaded, CHOSEN, folder, QUERIES, DOCUMENTS)
    assert SmartEncoder.from_pretrained(folder, device="cpu").late.layer == 2
