"""What others get from a folder of ours: plain peft, plain sentence-transformers and MultiVectorEncoder, in a process
that can't import this package, give the vectors of the encoder in memory to 1e-5."""

from __future__ import annotations

import json
from pathlib import Path

import alone
import numpy as np
import pytest
import tiny
import torch

from smart_train.config.schema import AdapterBlock, LateBlock
from smart_train.models.encoder import SmartEncoder
from smart_train.publishing.exporter import export

POOLINGS = {"minilm": "mean", "modernbert": "cls", "qwen3": "lasttoken"}  # the first has real weights
BOTH = ("minilm", "qwen3")  # these are exported as well
QUERIES = ["what is on the chart", "violin"]

SCRIPT = """
import json
import numpy as np
root, plan = sys.argv[1], json.loads(sys.argv[2])
found = {}
import torch
from peft import PeftModel
from transformers import AutoModel, AutoTokenizer
for kind, base in plan["bases"].items():
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), f"{root}/{kind}").eval()
    inputs = AutoTokenizer.from_pretrained(base)(plan["queries"][0], return_tensors="pt")
    with torch.no_grad():
        found[f"peft/{kind}"] = model(**inputs).last_hidden_state[0].numpy()
assert "sentence_transformers" not in sys.modules
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
for name in plan["plain"]:
    model = SentenceTransformer(f"{root}/{name}", device="cpu")
    found[f"plain/{name}"] = model.encode_document(plan["texts"])
    found[f"plain/{name}/queries"] = model.encode_query(plan["queries"])
for name in plan["multi"]:
    model = MultiVectorEncoder(f"{root}/{name}", device="cpu")
    found[f"multi/{name}"] = np.concatenate(model.encode_document(plan["texts"], convert_to_numpy=True))
    found[f"multi/{name}/queries"] = np.concatenate(model.encode_query(plan["queries"], convert_to_numpy=True))
    queries, documents = model.encode_query(plan["queries"]), model.encode_document(plan["texts"])
    found[f"multi/{name}/scores"] = model.similarity(queries, documents).numpy()
np.savez(f"{root}/found.npz", **found)
print(json.dumps(sorted(name for name in sys.modules if name.startswith("smart_train"))))
"""


def trained(base: Path, late: LateBlock) -> SmartEncoder:
    """Updates of the size that training makes: about a tenth of the weights they are added to."""
    encoder = SmartEncoder(str(base), late=late, adapter=AdapterBlock(r=4, alpha=8), device="cpu")
    generator = torch.Generator().manual_seed(7)
    for name, parameter in encoder.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * parameter.shape[1] ** -0.25 * torch.randn(parameter.shape, generator=generator)
        elif parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return encoder


@pytest.fixture(scope="module")
def trips(tiny_models, real_base, tmp_path_factory):
    """(expected arrays, arrays of the process without this package) under the same names."""
    root = tmp_path_factory.mktemp("trips")
    bases = {kind: real_base if kind == "minilm" else tiny_models(kind) for kind in POOLINGS}
    late = LateBlock(head="layernorm_linear", dim=12)
    expected: dict[str, np.ndarray] = {}
    plan = {
        "bases": {kind: str(base) for kind, base in bases.items()},
        "texts": tiny.TEXTS,
        "queries": QUERIES,
        "plain": [*POOLINGS, *(f"merged {kind}" for kind in BOTH)],
        "multi": [f"multi {kind}" for kind in BOTH],
    }
    for kind, base in bases.items():
        encoder = trained(base, late)
        encoder.save_pretrained(root / kind)
        inputs = encoder.tokenizer(QUERIES[0], return_tensors="pt")
        with torch.no_grad():
            expected[f"peft/{kind}"] = encoder.backbone(**inputs).last_hidden_state[0].numpy()
        documents, queries = encoder.encode_documents(tiny.TEXTS), encoder.encode_queries(QUERIES)
        for name in (kind, f"merged {kind}"):
            expected[f"plain/{name}"], expected[f"plain/{name}/queries"] = documents.pooled, queries.pooled
        expected[f"multi/multi {kind}"], expected[f"multi/multi {kind}/queries"] = (
            documents.tokens.values,
            queries.tokens.values,
        )
        expected[f"multi/multi {kind}/scores"] = encoder.score(queries, documents, mode="late")
        if kind in BOTH:
            export(root / kind, "merged", root / f"merged {kind}")
            export(root / kind, "multi-vector", root / f"multi {kind}")
    told = alone.run_alone(SCRIPT, root, str(root), json.dumps(plan))
    assert json.loads(told.splitlines()[-1]) == []
    return expected, np.load(root / "found.npz"), root


def same(trips, name: str) -> None:
    expected, found, _ = trips
    np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


@pytest.mark.parametrize("kind", POOLINGS)
def test_plain_peft_on_the_plain_base_gives_the_same_states(kind, trips):
    same(trips, f"peft/{kind}")


@pytest.mark.parametrize("kind", POOLINGS)
def test_plain_sentence_transformers_pools_as_the_base_does_and_gives_the_same_vectors(kind, trips):
    expected, found, root = trips
    assert json.loads((root / kind / "1_Pooling" / "config.json").read_text())["pooling_mode"] == POOLINGS[kind]
    same(trips, f"plain/{kind}")
    same(trips, f"plain/{kind}/queries")
    assert np.abs(found[f"plain/{kind}"][0] - found[f"plain/{kind}"][1]).max() > 0.05  # not one vector for all


@pytest.mark.parametrize("kind", BOTH)
def test_merged_weights_give_the_same_pooled_vectors_without_adapter_and_base(kind, trips):
    same(trips, f"plain/merged {kind}")
    same(trips, f"plain/merged {kind}/queries")


@pytest.mark.parametrize("kind", BOTH)
def test_a_multi_vector_encoder_gives_the_same_tokens_and_late_scores(kind, trips):
    for what in ("", "/queries", "/scores"):
        same(trips, f"multi/multi {kind}{what}")
