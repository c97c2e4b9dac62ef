"""Every adapter that would load and do the wrong thing is refused: another base, other keys, sizes or settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from adapters import rewrite, trained
from safetensors.torch import load_file

from smart_train.config.schema import AdapterBlock, LateBlock
from smart_train.models.encoder import SmartEncoder
from smart_train.models.lora import AdapterError
from smart_train.models.safe_loading import HEAD, SETTINGS

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def saved(tiny_bert, tmp_path) -> Path:
    """A sound folder: bert, LoRA and a head; each test below breaks it in one way."""
    encoder = trained(tiny_bert, AdapterBlock(r=4), LateBlock(layer=[2, -1], head="layernorm_linear", dim=12))
    return encoder.save_pretrained(tmp_path / "saved")


def refused(folder: Path, *words: str, **options) -> None:
    with pytest.raises(AdapterError) as error:
        SmartEncoder.from_pretrained(folder, device="cpu", **options)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_the_sound_folder_loads(saved):
    SmartEncoder.from_pretrained(saved, device="cpu")


def test_other_weights_of_the_same_architecture_are_refused(saved, tmp_path):
    other = tmp_path / "other"
    tiny.bert(other)
    weights = other / "model" / "model.safetensors"
    rewrite(weights, lambda tensors: {n: t + 1e-3 if "layer.0" in n else t for n, t in tensors.items()})
    refused(saved, "fingerprint", str(other / "model"), base=str(other / "model"))


@pytest.mark.parametrize("kind", ["modernbert", "qwen3vl"])
def test_another_architecture_is_refused(kind, saved, tiny_models):
    refused(saved, "architecture", "BertModel", base=str(tiny_models(kind)))


def test_a_base_that_changed_under_the_adapter_is_refused(saved, tiny_bert, tmp_path):
    moved = tmp_path / "base"
    shutil.copytree(tiny_bert, moved)
    encoder = trained(moved, AdapterBlock(r=4))
    encoder.save_pretrained(tmp_path / "adapter")
    rewrite(moved / "model.safetensors", lambda tensors: {n: t * 1.01 for n, t in tensors.items()})
    refused(tmp_path / "adapter", "fingerprint")


def test_a_base_that_formats_its_inputs_otherwise_is_refused(tiny_qwen3, tmp_path):
    base = Path(shutil.copytree(tiny_qwen3, tmp_path / "base"))
    folder = trained(base, AdapterBlock(r=2)).save_pretrained(tmp_path / "out")
    SmartEncoder.from_pretrained(folder, device="cpu")
    settings = base / "tokenizer_config.json"
    before = json.loads(settings.read_text())
    settings.write_text(json.dumps(before | {"padding_side": "right" if before["padding_side"] == "left" else "left"}))
    refused(folder, "padding_side was", "formats its inputs otherwise")
    settings.write_text(json.dumps(before | {"model_max_length": 17}))
    refused(folder, "max_tokens was", "is 17")


def test_code_of_the_bases_repository_runs_only_where_the_caller_says_so(saved):
    settings = json.loads((saved / SETTINGS).read_text())
    settings["model"]["trust_remote_code"] = True
    (saved / SETTINGS).write_text(json.dumps(settings))
    refused(saved, "trust_remote_code=True")
    assert SmartEncoder.from_pretrained(saved, device="cpu", trust_remote_code=True).settings.trust_remote_code


def test_the_attention_of_the_machine_it_was_trained_on_is_not_asked_for_elsewhere(saved):
    settings = json.loads((saved / SETTINGS).read_text())
    settings["model"]["attention"] = "flash_attention_2"
    (saved / SETTINGS).write_text(json.dumps(settings))
    assert SmartEncoder.from_pretrained(saved, device="cpu").settings.attention is None


def test_a_folder_without_settings_is_no_adapter_and_no_base(saved, tiny_bert):
    (saved / SETTINGS).unlink()
    refused(saved, SETTINGS)
    refused(tiny_bert, SETTINGS, base=str(tiny_bert))


def test_a_missing_adapter_key_is_refused_by_name(saved):
    gone = sorted(load_file(saved / WEIGHTS))[0]
    rewrite(saved / WEIGHTS, lambda tensors: {n: t for n, t in tensors.items() if n != gone})
    refused(saved, WEIGHTS, "1 of", gone.removeprefix("base_model.model."))


@pytest.mark.parametrize("prefix", ["base_model.model.model.", "module.base_model.model.", "default."])
def test_renamed_key_prefixes_are_refused(prefix, saved):
    """They load elsewhere with a warning at most, and leave LoRA at its start."""
    rewrite(
        saved / WEIGHTS, lambda tensors: {prefix + n.removeprefix("base_model.model."): t for n, t in tensors.items()}
    )
    refused(saved, "are missing", "nothing was loaded")


def test_an_adapter_of_zeros_is_refused(saved):
    rewrite(saved / WEIGHTS, lambda tensors: {n: t * 0 if "lora_B" in n else t for n, t in tensors.items()})
    refused(saved, "LoRA B", "zero")


def test_an_adapter_of_another_rank_is_refused(saved):
    rewrite(saved / WEIGHTS, lambda tensors: {n: t[:2] if "lora_A" in n else t for n, t in tensors.items()})
    refused(saved, "has rank 2")


def test_an_empty_tensor_is_refused(saved):
    rewrite(saved / WEIGHTS, lambda tensors: {n: t[:0] if "lora_A" in n else t for n, t in tensors.items()})
    refused(saved, "has rank 0")


def test_a_missing_adapter_file_is_refused(saved):
    (saved / WEIGHTS).unlink()
    refused(saved, "no adapter there")


def test_a_missing_head_is_refused_and_never_drawn_at_random(saved):
    (saved / HEAD).unlink()
    refused(saved, HEAD, "missing")


OTHER_HEADS = {
    "wrong size": (
        lambda t: {**t, "linear.weight": t["linear.weight"][:6]},
        "make linear.weight [12, 32], late_head.safetensors has [6, 32]",
    ),
    "no mix": (lambda t: {name: one for name, one in t.items() if name != "mix"}, "the head belongs to other settings"),
    "a key too many": (lambda t: {**t, "linear.bias": torch.zeros(12)}, "the head belongs to other settings"),
    "empty tensors": (lambda t: {name: one[:0] for name, one in t.items()}, "late.layer has 2 layers"),
}


@pytest.mark.parametrize(("change", "told"), OTHER_HEADS.values(), ids=OTHER_HEADS)
def test_a_head_of_other_settings_is_refused(change, told, saved):
    rewrite(saved / HEAD, lambda tensors: {n: t.clone() for n, t in change(tensors).items()})
    refused(saved, HEAD, told)


def test_a_newer_format_is_refused(saved):
    settings = json.loads((saved / SETTINGS).read_text())
    (saved / SETTINGS).write_text(json.dumps({**settings, "format": 99}))
    refused(saved, "format 99")
