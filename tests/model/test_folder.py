"""Save and reload: the same vectors in a fresh object, a fresh process and plain sentence-transformers; and every
folder that would load and do the wrong thing is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_data
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from smart_train.blocks import AdapterBlock, HybridBlock, LateBlock, ModelBlock
from smart_train.model.adapters import AdapterError
from smart_train.model.encoder import SmartEncoder
from smart_train.model.folder import HEAD, SETTINGS, verify
from smart_train.model.processors import images_without_torchvision

WEIGHTS = "adapter_model.safetensors"
HYBRID = HybridBlock(0.5, 2.0, "standardised", 0.4, 0.1, 0.6, 0.2)
QUERIES = ["what is on the chart", "violin"]


def contents_of(kind: str) -> list:
    pages = [tiny_data.draw_page(0), {"text": "a chart", "image": tiny_data.draw_page(5)}]
    return [*pages, "a chart", ""] if kind == "qwen3vl" else [*tiny.TEXTS, ""]


def trained(base: str | Path, adapter: AdapterBlock, late: LateBlock | None = None, **model) -> SmartEncoder:
    """An encoder whose trained tensors have all moved, as after some steps."""
    encoder = SmartEncoder(str(base), model=ModelBlock(**model), late=late, adapter=adapter, device="cpu")
    generator = torch.Generator().manual_seed(7)
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            step = 0.1 if "lora" in name or "head" in name else 0.02
            parameter.data += step * torch.randn(parameter.shape, generator=generator)
    return encoder


MIXED_HEAD = {"layer": [1, -1], "head": "layernorm_linear", "dim": 12, "matryoshka": [4]}
CASES = {
    "lora, no head": (AdapterBlock(r=4, alpha=8), {}),
    "lora, mixed layers and a head": (AdapterBlock(r=4, layers=[2, 3]), MIXED_HEAD),
    "full": (AdapterBlock(kind="full"), {}),
    "full with a head": (AdapterBlock(kind="full"), {"head": "linear", "dim": 12}),
    "frozen with a head": (AdapterBlock(kind="frozen"), {"layer": 2, "head": "layernorm_linear", "dim": 12}),
}


@pytest.mark.parametrize("kind", ["bert", "qwen3", "qwen3vl", "modernbert"])
@pytest.mark.parametrize("case", CASES)
def test_a_fresh_object_has_the_same_vectors_and_scores(kind, case, tiny_models, tmp_path):
    adapter, late = CASES[case]
    contents = contents_of(kind)
    encoder = trained(tiny_models(kind), adapter, LateBlock(**late, hybrid=HYBRID), query_prompt="Find: ")
    base = SmartEncoder(str(tiny_models(kind)), device="cpu")
    before = encoder.encode_documents(contents)
    encoder.save_pretrained(tmp_path / "saved")
    shutil.move(tmp_path / "saved", tmp_path / "moved")  # a folder holds no path to itself
    fresh = SmartEncoder.from_pretrained(tmp_path / "moved", device="cpu")
    after = fresh.encode_documents(contents)
    torch.testing.assert_close(after.pooled, before.pooled, atol=1e-6, rtol=0)
    assert torch.equal(after.tokens.lengths, before.tokens.lengths)
    torch.testing.assert_close(after.tokens.values, before.tokens.values, atol=1e-6, rtol=0)
    for mode in ("pooled", "late", "hybrid"):
        ours, theirs = (e.score(QUERIES, contents, mode=mode) for e in (fresh, encoder))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    changed = (before.pooled - base.encode_documents(contents).pooled).abs().max()
    assert (changed < 1e-6) if adapter.kind == "frozen" else (changed > 1e-3)


@pytest.mark.parametrize("kind", ["bert", "qwen3", "qwen3vl", "modernbert"])
@pytest.mark.parametrize("case", ["lora, mixed layers and a head", "full"])
def test_plain_sentence_transformers_gives_the_same_pooled_vectors(kind, case, tiny_models, tmp_path):
    """Prompts of the recipe included."""
    encoder = trained(tiny_models(kind), CASES[case][0], LateBlock(**CASES[case][1]), query_prompt="Find: ")
    encoder.save_pretrained(tmp_path)
    with images_without_torchvision():
        plain = SentenceTransformer(str(tmp_path), device="cpu")
    contents = contents_of(kind)
    ours = encoder.encode_documents(contents).pooled.numpy()
    np.testing.assert_allclose(plain.encode_document(contents), ours, atol=2e-6)
    np.testing.assert_allclose(plain.encode_query(QUERIES), encoder.encode_queries(QUERIES).pooled.numpy(), atol=2e-6)


FRESH_PROCESS = """
import sys
import numpy as np
from smart_train.model.encoder import SmartEncoder
for folder in sys.argv[1:]:
    found = SmartEncoder.from_pretrained(folder, device="cpu").encode_queries({texts!r})
    np.savez(folder + "/found.npz", pooled=found.pooled, tokens=found.tokens.values, lengths=found.tokens.lengths)
"""


def test_a_fresh_process_has_the_same_vectors(tiny_models, tmp_path):
    """Processes that can't import this package: test_round_trips.py."""
    made = {}
    for kind in ("bert", "qwen3"):
        encoder = trained(tiny_models(kind), AdapterBlock(r=4), LateBlock(head="linear", dim=12))
        made[kind] = encoder.encode_queries(tiny.TEXTS)
        encoder.save_pretrained(tmp_path / kind)
    script = tmp_path / "fresh.py"
    script.write_text(FRESH_PROCESS.format(texts=tiny.TEXTS))
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(script), *[str(tmp_path / kind) for kind in made]]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for kind, expected in made.items():
        found = np.load(tmp_path / kind / "found.npz")
        np.testing.assert_allclose(found["pooled"], expected.pooled, atol=1e-6)
        np.testing.assert_allclose(found["tokens"], expected.tokens.values, atol=1e-6)
        np.testing.assert_array_equal(found["lengths"], expected.tokens.lengths)


def test_peft_alone_reads_the_adapter(tiny_bert, tmp_path):
    from peft import PeftModel
    from transformers import AutoModel

    encoder = trained(tiny_bert, AdapterBlock(r=4))
    encoder.save_pretrained(tmp_path)
    theirs = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_bert), str(tmp_path)).eval()
    inputs = encoder.tokenizer(["a chart of revenue"], return_tensors="pt")
    with torch.no_grad():
        expected = encoder.eval().backbone(**inputs).last_hidden_state
        torch.testing.assert_close(theirs(**inputs).last_hidden_state, expected, atol=1e-6, rtol=0)


def test_nothing_pickled_is_written(tiny_qwen3vl, tmp_path):
    trained(tiny_qwen3vl, AdapterBlock(r=4), LateBlock(head="linear", dim=8)).save_pretrained(tmp_path)
    kinds = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".safetensors", ".jinja", ".txt", ".md"}
    assert {SETTINGS, HEAD, WEIGHTS, "adapter_config.json", "modules.json"} <= {p.name for p in tmp_path.iterdir()}


def test_a_lora_folder_holds_no_weight_of_the_base(tiny_bert, tmp_path):
    trained(tiny_bert, AdapterBlock(r=4)).save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert all("lora_" in name for name in load_file(tmp_path / WEIGHTS))


def test_everything_that_changes_a_vector_is_written_down(tiny_qwen3, tmp_path):
    late = LateBlock(layer=2, head="linear", dim=12, drop=["punctuation"], hybrid=HYBRID)
    trained(tiny_qwen3, AdapterBlock(r=4), late, query_tokens=20, document_tokens=30).save_pretrained(tmp_path)
    fresh = SmartEncoder.from_pretrained(tmp_path, device="cpu")
    assert fresh.late == late and fresh.late.hybrid == HYBRID
    assert (fresh.settings.query_tokens, fresh.settings.document_tokens) == (20, 30)
    assert fresh.prompt("query") == tiny.PROMPTS["query"] and not fresh.prompt("document")
    written = json.loads((tmp_path / SETTINGS).read_text())
    assert written["model"]["query_prompt"] == tiny.PROMPTS["query"]
    assert written["fingerprint"] and written["architecture"] == "Qwen3Model"


def test_a_pixel_budget_comes_back_with_the_folder(tiny_qwen3vl, tmp_path):
    encoder = trained(tiny_qwen3vl, AdapterBlock(r=4), max_pixels=64 * 64)
    page = tiny_data.draw_page(5)
    expected = encoder.encode_documents([page])
    encoder.save_pretrained(tmp_path)
    found = SmartEncoder.from_pretrained(tmp_path, device="cpu").encode_documents([page])
    assert found.tokens.lengths.tolist() == expected.tokens.lengths.tolist()
    torch.testing.assert_close(found.pooled, expected.pooled, atol=1e-6, rtol=0)
    with images_without_torchvision():
        plain = SentenceTransformer(str(tmp_path), device="cpu").encode([page])
    np.testing.assert_allclose(plain, expected.pooled.numpy(), atol=2e-6)


def test_a_plain_base_folder_is_a_training_free_encoder(tiny_bert):
    encoder = SmartEncoder.from_pretrained(tiny_bert, device="cpu")
    assert encoder.adapter is None
    expected = SmartEncoder(str(tiny_bert), device="cpu").encode_documents(tiny.TEXTS)
    torch.testing.assert_close(encoder.encode_documents(tiny.TEXTS).pooled, expected.pooled, atol=0, rtol=0)


def test_a_base_that_was_moved_can_be_named(tiny_bert, tmp_path):
    encoder = trained(tiny_bert, AdapterBlock(r=4))
    expected = encoder.encode_documents(tiny.TEXTS)
    encoder.save_pretrained(tmp_path / "adapter")
    shutil.copytree(tiny_bert, tmp_path / "elsewhere")
    found = SmartEncoder.from_pretrained(tmp_path / "adapter", base=str(tmp_path / "elsewhere"), device="cpu")
    torch.testing.assert_close(found.encode_documents(tiny.TEXTS).pooled, expected.pooled, atol=1e-6, rtol=0)


# -- refusals


@pytest.fixture
def saved(tiny_bert, tmp_path) -> Path:
    """A sound folder: bert, LoRA and a head; each test below breaks it in one way."""
    encoder = trained(tiny_bert, AdapterBlock(r=4), LateBlock(layer=[2, -1], head="layernorm_linear", dim=12))
    return encoder.save_pretrained(tmp_path / "saved")


def rewrite(path: Path, change) -> None:
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


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
    refused(saved, "(2, ")


def test_an_empty_tensor_is_refused(saved):
    rewrite(saved / WEIGHTS, lambda tensors: {n: t[:0] if "lora_A" in n else t for n, t in tensors.items()})
    refused(saved, "(0, ")


def test_a_missing_adapter_file_is_refused(saved):
    (saved / WEIGHTS).unlink()
    refused(saved, "no adapter there")


def test_a_missing_head_is_refused_and_never_drawn_at_random(saved):
    (saved / HEAD).unlink()
    refused(saved, HEAD, "missing")


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {**tensors, "linear.weight": tensors["linear.weight"][:6]},
        lambda tensors: {n: t for n, t in tensors.items() if n != "mix"},
        lambda tensors: {**tensors, "linear.bias": torch.zeros(12)},
        lambda tensors: {n: t[:0] for n, t in tensors.items()},
    ],
    ids=["wrong size", "no mix", "a key too many", "empty tensors"],
)
def test_a_head_of_other_settings_is_refused(change, saved):
    rewrite(saved / HEAD, lambda tensors: {n: t.clone() for n, t in change(tensors).items()})
    refused(saved, HEAD, "expected")


def test_a_newer_format_is_refused(saved):
    settings = json.loads((saved / SETTINGS).read_text())
    (saved / SETTINGS).write_text(json.dumps({**settings, "format": 99}))
    refused(saved, "format 99")


# -- verify


@pytest.mark.parametrize("kind", ["bert", "qwen3vl"])
def test_verify_reports_the_largest_difference(kind, tiny_models, tmp_path):
    encoder = trained(tiny_models(kind), AdapterBlock(r=4), LateBlock(head="linear", dim=12))
    encoder.save_pretrained(tmp_path)
    report = verify(encoder, tmp_path, QUERIES, contents_of(kind))
    assert report["rows"] == len(QUERIES) + len(contents_of(kind))
    assert max(report["largest_pooled_difference"], report["largest_token_difference"]) <= 1e-6
    assert json.loads((tmp_path / "verified.json").read_text()) == report


@pytest.mark.parametrize("file", [WEIGHTS, HEAD])
def test_verify_fails_where_the_folder_is_not_what_was_trained(file, tiny_bert, tmp_path):
    encoder = trained(tiny_bert, AdapterBlock(r=4), LateBlock(head="linear", dim=12))
    encoder.save_pretrained(tmp_path)
    rewrite(tmp_path / file, lambda tensors: {n: t + 0.05 * torch.randn_like(t) for n, t in tensors.items()})
    with pytest.raises(AdapterError, match="differ by"):
        verify(encoder, tmp_path, QUERIES, tiny.TEXTS)
    assert not (tmp_path / "verified.json").exists()


def test_verify_fails_where_training_moved_nothing(tiny_bert, tmp_path):
    encoder = SmartEncoder(str(tiny_bert), adapter=AdapterBlock(r=4), device="cpu")
    encoder.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="zero"):
        verify(encoder, tmp_path, QUERIES, tiny.TEXTS)
