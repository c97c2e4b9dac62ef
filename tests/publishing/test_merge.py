"""Several adapters as one, head included: equal to the dense sum, scored beside its parts, or refused with reasons."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from sentence_transformers import SentenceTransformer

from smart_train.cli.main import main
from smart_train.config.schema import AdapterBlock, HybridBlock, LateBlock, ModelBlock
from smart_train.core.errors import PublishError
from smart_train.models.encoder import SmartEncoder
from smart_train.models.safe_loading import SETTINGS, VERIFIED
from smart_train.publishing.merger import merge

HEAD = {"head": "layernorm_linear", "dim": 12}


def saved(base: Path, folder: Path, seed: int, adapter: AdapterBlock | None = None, **late) -> Path:
    block, model = LateBlock(**{**HEAD, **late}), ModelBlock()
    encoder = SmartEncoder(str(base), model=model, late=block, adapter=adapter or AdapterBlock(r=4), device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            drawn = 0.05 * torch.randn(parameter.shape, generator=generator)
            parameter.data = drawn if "lora_" in name else parameter.data + drawn
    return encoder.save_pretrained(folder)


@pytest.fixture(scope="module")
def parts(tiny_bert, tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("parts")
    hybrid = HybridBlock(1.0, 3.0, "standardised", 0.1, 0.2, 0.3, 0.4)
    one = saved(tiny_bert, root / "one", 1, hybrid=hybrid)
    return [one, saved(tiny_bert, root / "two", 2, AdapterBlock(r=2, alpha=6))]


def test_the_vectors_are_those_of_the_dense_sum_and_the_mean_head(parts, tiny_bert, tmp_path):
    """Of an encoder whose weights are W + sum of w s B A, computed in float64."""
    weights = [0.75, 0.25]
    folder = merge(parts, weights, tmp_path / "merged")
    expected = SmartEncoder(str(tiny_bert), late=LateBlock(**HEAD), device="cpu")
    encoders = [SmartEncoder.from_pretrained(part, device="cpu") for part in parts]
    for name, module in expected.backbone.named_modules():
        if isinstance(module, torch.nn.Linear) and "pooler" not in name:
            total = module.weight.double()
            for encoder, weight in zip(encoders, weights, strict=True):
                lora = encoder.backbone.get_submodule(name)
                scale = encoder.adapter.alpha / encoder.adapter.r
                total += (
                    weight * scale * lora.lora_B["default"].weight.double() @ lora.lora_A["default"].weight.double()
                )
            module.weight.data = total.float()
    states = [encoder.head.state_dict() for encoder in encoders]
    expected.head.load_state_dict({n: 0.75 * states[0][n] + 0.25 * states[1][n] for n in states[0]})
    wanted = expected.encode_documents(tiny.TEXTS)
    merged = SmartEncoder.from_pretrained(folder, device="cpu")
    found = merged.encode_documents(tiny.TEXTS)
    torch.testing.assert_close(found.pooled, wanted.pooled, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.tokens.values, wanted.tokens.values, atol=1e-5, rtol=0)
    assert (merged.adapter.r, merged.adapter.alpha) == (6, 6)
    plain = SentenceTransformer(str(folder), device="cpu").encode_document(tiny.TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(plain, wanted.pooled, atol=1e-5, rtol=0)


def test_the_hybrid_of_neither_is_taken_and_that_is_said(parts, tmp_path, caplog):
    caplog.set_level("INFO", "smart_train")
    folder = merge(parts, [0.5, 0.5], tmp_path / "merged")
    assert SmartEncoder.from_pretrained(folder, device="cpu").late.hybrid == HybridBlock()
    assert "constants differ and were dropped" in caplog.text
    same = merge([parts[0], parts[0]], [0.5, 0.5], tmp_path / "same")
    assert SmartEncoder.from_pretrained(same, device="cpu").late.hybrid.late == 3.0
    told = json.loads((folder / SETTINGS).read_text())["export"]
    assert told["kind"] == "merge" and [one["weight"] for one in told["adapters"]] == [0.5, 0.5]
    assert (folder / VERIFIED).is_file()


def test_heads_alone_can_be_averaged(tiny_bert, tmp_path):
    frozen = AdapterBlock(kind="frozen")
    both = [saved(tiny_bert, tmp_path / name, seed, frozen) for name, seed in (("one", 1), ("two", 2))]
    merged = SmartEncoder.from_pretrained(merge(both, [0.5, 0.5], tmp_path / "merged"), device="cpu")
    heads = [SmartEncoder.from_pretrained(one, device="cpu").head.state_dict() for one in both]
    for name, tensor in merged.head.state_dict().items():
        torch.testing.assert_close(tensor, (heads[0][name] + heads[1][name]) / 2)


def test_heads_of_other_seeds_are_told(tiny_bert, tmp_path, caplog):
    """A narrow head starts as a random isometry: two of them have little in common."""
    torch.manual_seed(1)
    one = saved(tiny_bert, tmp_path / "one", 1, dim=8)
    torch.manual_seed(2)
    merge([one, saved(tiny_bert, tmp_path / "two", 1, dim=8)], [0.5, 0.5], tmp_path / "merged")
    assert "drawn from different seeds" in caplog.text


def other_base(base: Path, root: Path) -> Path:
    (root / "base").mkdir()
    folder = tiny.bert(root / "base")
    from safetensors.torch import load_file, save_file

    tensors = {name: tensor * 1.01 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return saved(folder, root / "other", 3)


REFUSED = {
    "another base": (other_base, [0.5, 0.5], "fingerprint is"),
    "another layer": (lambda b, r: saved(b, r / "other", 3, layer=2), [0.5, 0.5], "late.layer is -1 and 2"),
    "another head": (lambda b, r: saved(b, r / "other", 3, dim=8), [0.5, 0.5], "late.dim is 12 and 8"),
    "other targets": (
        lambda b, r: saved(b, r / "other", 3, AdapterBlock(r=4, targets=["query"])),
        [0.5, 0.5],
        "adapt different layers",
    ),
    "full weights": (lambda b, r: saved(b, r / "other", 3, AdapterBlock(kind="full")), [0.5, 0.5], "full weights"),
    "a head and LoRA": (lambda b, r: saved(b, r / "other", 3, AdapterBlock(kind="frozen")), [0.5, 0.5], "adapter.kind"),
    "a plain base": (lambda b, r: b, [0.5, 0.5], "no adapter"),
    "weights that add a head up": (
        lambda b, r: saved(b, r / "other", 3),
        [1.0, 1.0],
        "sum to 2, and heads are averaged",
    ),
    "a weight missing": (lambda b, r: saved(b, r / "other", 3), [1.0], "a weight each"),
}


def test_a_base_that_has_moved_is_named_and_told_as_it_was(tiny_bert, tmp_path):
    """As that of a published adapter, of which only the name is told."""
    base = shutil.copytree(tiny_bert, tmp_path / "theirs")
    parts = [saved(base, tmp_path / name, 1) for name in ("one", "two")]
    moved = shutil.move(base, tmp_path / "mine")
    folder = merge(parts, [0.5, 0.5], tmp_path / "merged", base=str(moved))
    settings = [json.loads((place / SETTINGS).read_text()) for place in (parts[0], folder)]
    assert settings[0]["base"] == settings[1]["base"] == str(base)
    assert settings[0]["fingerprint"] == settings[1]["fingerprint"]
    one, both = (SmartEncoder.from_pretrained(place, base=str(moved), device="cpu") for place in (parts[0], folder))
    assert torch.allclose(one.encode_documents(tiny.TEXTS).pooled, both.encode_documents(tiny.TEXTS).pooled, atol=1e-5)


def test_weights_that_are_no_numbers_are_refused(parts, tmp_path):
    with pytest.raises(PublishError, match="the weights are nan, 1.0: give finite numbers"):
        merge(parts, [float("nan"), 1.0], tmp_path / "merged")


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_belong_together_is_refused_and_leaves_nothing(what, parts, tiny_bert, tmp_path):
    make, weights, told = REFUSED[what]
    other = make(tiny_bert, tmp_path)
    with pytest.raises(PublishError, match=told):
        merge([parts[0], other], weights, tmp_path / "merged")
    assert not [path for path in tmp_path.iterdir() if "merged" in path.name]


def test_the_command_speaks_of_its_flags_and_leaves_no_folder_where_it_failed(parts, tmp_path, capsys):
    out = tmp_path / "merged"
    words = ["merge", *map(str, parts), "--out", str(out)]
    assert main([*words, "--weights", "1", "2"]) == 1 and not out.exists()
    assert main([*words, "--data", str(tmp_path / "nowhere")]) == 2 and not out.exists()
    told = capsys.readouterr().err
    assert "the weights sum to 3" in told and "--data: there is no file or folder" in told
    published = shutil.copytree(parts[0], tmp_path / "published")
    for name, key in ((SETTINGS, "base"), ("adapter_config.json", "base_model_name_or_path")):
        path = published / name
        path.write_text(json.dumps({**json.loads(path.read_text()), key: "local:theirs"}))
    assert main(["export", str(published), "--as", "merged", "--out", str(out)]) == 2
    assert "if you have it, give --base FOLDER" in capsys.readouterr().err


def test_the_command_scores_what_it_merged_beside_its_parts(parts, beir_folder, tmp_path, capsys):
    words = ["merge", *map(str, parts), "--weights", "0.5", "0.5", "--out", str(tmp_path / "out")]
    assert main([*words, "--data", str(beir_folder)]) == 0
    told = capsys.readouterr().out
    assert "dev and test:" in told and "hybrid fitted on" in told
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(metrics) == {"1 one", "2 two", "merged"}
    assert 0 < metrics["merged"]["hybrid"]["ndcg@10"]["value"] <= 1
    merged = SmartEncoder.from_pretrained(tmp_path / "out" / "adapter", device="cpu")
    assert merged.late.hybrid.scaling == "standardised" and merged.late.hybrid.late_std != 1.0
    assert main(words) == 2 and "already exists and was not changed" in capsys.readouterr().err
