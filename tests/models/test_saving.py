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
from adapters import rewrite, trained
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from smart_train.config.schema import AdapterBlock, HybridBlock, LateBlock
from smart_train.models.encoder import SmartEncoder
from smart_train.models.lora import AdapterError
from smart_train.models.processors import images_without_torchvision
from smart_train.models.safe_loading import HEAD, SETTINGS
from smart_train.models.verification import verify

WEIGHTS = "adapter_model.safetensors"
HYBRID = HybridBlock(0.5, 2.0, "standardised", 0.4, 0.1, 0.6, 0.2)
QUERIES = ["what is on the chart", "violin"]


def contents_of(kind: str) -> list:
    pages = [tiny_data.draw_page(0), {"text": "a chart", "image": tiny_data.draw_page(5)}]
    return [*pages, "a chart", ""] if kind == "qwen3vl" else [*tiny.TEXTS, ""]


MIXED_HEAD = {"layer": [1, -1], "head": "layernorm_linear", "dim": 12, "matryoshka": [4]}
CASES = {
    "lora, no head": (AdapterBlock(r=4, alpha=8), {}),
    "lora, mixed layers and a head": (AdapterBlock(r=4, layers=[2, 3]), MIXED_HEAD),
    "lora with a gated head": (AdapterBlock(r=4), {"head": {"type": "gated_residual", "inner": 20}, "dim": 12}),
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
from smart_train.models.encoder import SmartEncoder
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
