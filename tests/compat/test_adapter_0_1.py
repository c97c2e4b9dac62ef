"""An adapter that version 0.1 trained and saved loads to the same vectors and scores.

0.1 trained it for six steps on a tiny BERT (``base_0_1``): LoRA, a learned mix of three layers, a LayerNorm and linear
head of width 16, punctuation left out, calibrated hybrid weights. The expected vectors were computed by 0.1, too.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from smart_train import SmartEncoder

FIXTURES = Path(__file__).with_name("fixtures")
ADAPTER, BASE = FIXTURES / "adapter_0_1", FIXTURES / "base_0_1"
QUERIES = ["the amount due", "which garden stands beside the river?"]
DOCUMENTS = [
    "the invoice, with its total amount due",
    "chart",
    "a yearly revenue chart by region; the company's winter report names a harbour, a bridge and a copper engine.",
    "What is the name of the company in the table?",
    "violin lantern mountain",
    "...",
]
EXACT = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / "adapter_0_1_vectors.safetensors")


@pytest.fixture(scope="module")
def encoder() -> SmartEncoder:
    return SmartEncoder.from_pretrained(ADAPTER, base=str(BASE), device="cpu")


@pytest.mark.parametrize("kind", ["query", "document"])
def test_vectors_are_those_of_0_1(encoder, expected, kind):
    encoded = encoder.encode_queries(QUERIES) if kind == "query" else encoder.encode_documents(DOCUMENTS)
    torch.testing.assert_close(encoded.pooled.float(), expected[f"{kind}.pooled"], **EXACT)
    assert torch.as_tensor(encoded.tokens.lengths).tolist() == expected[f"{kind}.lengths"].tolist()
    torch.testing.assert_close(encoded.tokens.values.float(), expected[f"{kind}.tokens"], **EXACT)


@pytest.mark.parametrize("mode", ["pooled", "late", "hybrid"])
def test_scores_are_those_of_0_1(encoder, expected, mode):
    scores = encoder.score(QUERIES, encoder.encode_documents(DOCUMENTS), mode=mode)
    weights = encoder.late.hybrid  # 0.1 added the weighted scores and did not divide by the sum of the weights
    unit = weights.pooled + weights.late if mode == "hybrid" else 1.0
    torch.testing.assert_close(scores * unit, expected[f"scores.{mode}"], rtol=1e-6, atol=1e-6)


def test_every_trained_part_matters(expected, tmp_path):
    """The comparison above would notice a part that is not loaded: with another head, the token vectors differ."""
    folder = Path(shutil.copytree(ADAPTER, tmp_path / "adapter"))
    head = load_file(folder / "late_head.safetensors")
    save_file({name: value + 0.01 for name, value in head.items()}, folder / "late_head.safetensors")
    changed = SmartEncoder.from_pretrained(folder, base=str(BASE), device="cpu").encode_queries(QUERIES)
    assert (changed.tokens.values - expected["query.tokens"]).abs().max() > 1e-3
    untrained = SmartEncoder(str(BASE), device="cpu").encode_queries([f"find: {text}" for text in QUERIES])
    assert (untrained.pooled - expected["query.pooled"]).abs().max() > 1e-3


def test_saved_again_it_stays_the_same(encoder, expected, tmp_path):
    encoder.save_pretrained(tmp_path / "again")
    again = SmartEncoder.from_pretrained(tmp_path / "again", base=str(BASE), device="cpu")
    torch.testing.assert_close(again.encode_queries(QUERIES).tokens.values, expected["query.tokens"], **EXACT)


def test_plain_sentence_transformers_reads_its_pooled_vectors(expected, tmp_path, monkeypatch):
    """Its base is recorded as the relative folder ``base``."""
    (tmp_path / "base").symlink_to(BASE)
    monkeypatch.chdir(tmp_path)
    plain = SentenceTransformer(str(ADAPTER), device="cpu")
    vectors = plain.encode(QUERIES, prompt_name="query", convert_to_tensor=True)
    torch.testing.assert_close(vectors, expected["query.pooled"], **EXACT)
