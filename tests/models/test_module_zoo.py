"""Bases with every module and option that sentence-transformers saves: adapted, saved, verified, and read by plain
sentence-transformers in a process without this package, its own prompts and its own similarity; or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import alone
import numpy as np
import pytest
import tiny
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Router
from sentence_transformers.sentence_transformer.modules import (
    Dropout,
    LayerNorm,
    Normalize,
    Pooling,
    StaticEmbedding,
)

from smart_train.core.errors import AdapterError, BaseNotFound
from smart_train.models.encoder import SmartEncoder
from smart_train.models.verification import verify

QUERIES = ["what is on the chart", "violin"]
PROMPTS = {"query": "find the page: ", "document": "page: "}
SCRIPT = """
import json
import numpy as np
from sentence_transformers import SentenceTransformer
root, plan = sys.argv[1], json.loads(sys.argv[2])
found = {}
for name in plan["names"]:
    model = SentenceTransformer(f"{root}/{name}/adapter", device="cpu")
    queries, documents = model.encode_query(plan["queries"]), model.encode_document(plan["documents"])
    found[f"{name}/queries"], found[f"{name}/documents"] = queries, documents
    found[f"{name}/scores"] = model.similarity(queries, documents).numpy()
np.savez(f"{root}/found.npz", **found)
"""


def dense(st, width: int = 24) -> Dense:
    return Dense(st[0].get_embedding_dimension(), width)


MEMBERS = {  # name -> (kind of transformer, modules behind it, options of SentenceTransformer)
    "dense": ("bert", lambda st: [Pooling(32, "mean"), dense(st), Normalize()], {}),
    "two dense, as EmbeddingGemma": (
        "bert",
        lambda st: [Pooling(32, "mean"), Dense(32, 48, bias=False), Dense(48, 32, bias=False), Normalize()],
        {},
    ),
    "layer norm": ("bert", lambda st: [Pooling(32, "mean"), LayerNorm(32)], {}),
    "dropout": ("bert", lambda st: [Pooling(32, "cls"), Dropout(0.5)], {}),
    "two poolings": ("bert", lambda st: [Pooling(32, ["cls", "mean"]), Normalize()], {}),
    "two poolings and dense": ("bert", lambda st: [Pooling(32, ["mean", "max"]), Dense(64, 16)], {}),
    "dot without normalize": ("bert", lambda st: [Pooling(32, "mean")], {"similarity_fn_name": "dot"}),
    "euclidean": ("qwen3", lambda st: [Pooling(32, "lasttoken")], {"similarity_fn_name": "euclidean"}),
    "manhattan": ("modernbert", lambda st: [Pooling(32, "cls")], {"similarity_fn_name": "manhattan"}),
    "truncate_dim": ("bert", lambda st: [Pooling(32, "mean"), Normalize()], {"truncate_dim": 8}),
    "dot, cut": ("bert", lambda st: [Pooling(32, "max")], {"truncate_dim": 8, "similarity_fn_name": "dot"}),
    "prompts": ("bert", lambda st: [Pooling(32, "mean"), Normalize()], {"prompts": PROMPTS}),
    "default prompt": (
        "bert",
        lambda st: [Pooling(32, "mean")],
        {"prompts": {"all": "text: "}, "default_prompt_name": "all"},
    ),
    "prompts that are not pooled": (
        "bert",
        lambda st: [Pooling(32, "mean", include_prompt=False)],
        {"prompts": PROMPTS},
    ),
}


def base_of(name: str, tiny_models, folder: Path) -> Path:
    kind, behind, options = MEMBERS[name]
    torch.manual_seed(3)
    transformer = SentenceTransformer(str(tiny_models(kind)), device="cpu")
    whole = SentenceTransformer(modules=[transformer[0], *behind(transformer)], device="cpu", **options)
    whole.save(str(folder), create_model_card=False)
    return folder


def adapted(base: Path, kind: str) -> SmartEncoder:
    """Updates of the size that training makes."""
    encoder = SmartEncoder(str(base), adapter={"kind": kind, **({"r": 4} if kind == "lora" else {})}, device="cpu")
    generator = torch.Generator().manual_seed(7)
    for name, parameter in encoder.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * parameter.shape[1] ** -0.25 * torch.randn(parameter.shape, generator=generator)
        elif parameter.requires_grad:
            parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)
    return encoder


@pytest.fixture(scope="module", params=["lora", "full"])
def zoo(request, tiny_models, tmp_path_factory):
    """(expected arrays, arrays of the process without this package) under the same names."""
    root, expected = tmp_path_factory.mktemp("zoo"), {}
    for name in MEMBERS:
        encoder = adapted(base_of(name, tiny_models, root / name / "base"), request.param)
        encoder.save_pretrained(root / name / "adapter")
        verify(encoder, root / name / "adapter", QUERIES, tiny.TEXTS)
        queries, documents = encoder.encode_queries(QUERIES), encoder.encode_documents(tiny.TEXTS)
        assert documents.pooled.shape[1] == encoder.pooled_width
        expected[f"{name}/queries"], expected[f"{name}/documents"] = queries.pooled, documents.pooled
        expected[f"{name}/scores"] = encoder.score(queries, documents, mode="pooled")
    plan = {"names": list(MEMBERS), "queries": QUERIES, "documents": tiny.TEXTS}
    alone.run_alone(SCRIPT, root, str(root), json.dumps(plan))
    return expected, np.load(root / "found.npz")


@pytest.mark.parametrize("name", MEMBERS)
def test_plain_sentence_transformers_reads_and_ranks_the_same(name, zoo):
    expected, found = zoo
    for side in ("queries", "documents"):
        theirs = found[f"{name}/{side}"]
        theirs = theirs / np.linalg.norm(theirs, axis=1, keepdims=True)
        np.testing.assert_allclose(theirs, expected[f"{name}/{side}"], atol=1e-5)
    np.testing.assert_allclose(found[f"{name}/scores"], expected[f"{name}/scores"], atol=1e-5)


def test_a_similarity_that_is_replaced_is_logged(tiny_models, tmp_path, caplog):
    caplog.set_level("INFO")
    SmartEncoder(str(base_of("dot, cut", tiny_models, tmp_path / "base")), device="cpu")
    assert "by cosine, in place of the base's similarity_fn_name dot" in caplog.text
    assert "keep all their numbers, in place of the base's truncate_dim 8" in caplog.text


@pytest.mark.parametrize("values", [{"similarity_fn_name": "dot"}, {"truncate_dim": 8}])
def test_a_folder_that_others_would_rank_otherwise_is_not_verified(values, tiny_bert, tmp_path):
    encoder = adapted(tiny_bert, "lora")
    path = encoder.save_pretrained(tmp_path / "adapter") / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(AdapterError, match="plain sentence-transformers would rank otherwise; save the folder again"):
        verify(encoder, path.parent, QUERIES, tiny.TEXTS)


def static(st):
    return [StaticEmbedding(st.tokenizer, embedding_dim=32)]


def router(st):
    return [Router.for_query_document([st[0], Pooling(32, "mean")], [st[0], Pooling(32, "cls")])]


REFUSED = {"StaticEmbedding": static, "Router": router}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_transformer_is_refused_by_name(name, tiny_bert, tmp_path):
    st = SentenceTransformer(str(tiny_bert), device="cpu")
    SentenceTransformer(modules=REFUSED[name](st), device="cpu").save(str(tmp_path / "base"), create_model_card=False)
    with pytest.raises(BaseNotFound, match=f"{name}.*choose a transformer embedder"):
        SmartEncoder(str(tmp_path / "base"), device="cpu")
