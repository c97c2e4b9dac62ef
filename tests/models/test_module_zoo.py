"""Bases with every module and option that sentence-transformers saves: adapted, saved, verified, and read by plain
sentence-transformers in a process without this package, its own prompts and its own similarity; or refused by name."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import shutil
from pathlib import Path

import alone
import numpy as np
import pytest
import sentence_transformers
import tiny
import torch
import torch.nn.functional as F
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Module, Router
from sentence_transformers.sentence_transformer.modules import (
    CNN,
    LSTM,
    BoW,
    Dropout,
    LayerNorm,
    Normalize,
    Pooling,
    StaticEmbedding,
    WeightedLayerPooling,
    WordEmbeddings,
    WordWeights,
)
from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from smart_train.core.errors import AdapterError, BaseNotFound
from smart_train.models import base_loading
from smart_train.models.base_config import REFUSED_MODULES, TAKEN, read_base
from smart_train.models.encoder import SmartEncoder
from smart_train.models.verification import verify
from smart_train.publishing.merger import merge

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


OLD = "transformer in a folder of its own"
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
    OLD: ("bert", lambda st: [Pooling(32, "cls"), dense(st)], {"prompts": PROMPTS}),
    "prompts that are not pooled": (
        "bert",
        lambda st: [Pooling(32, "mean", include_prompt=False)],
        {"prompts": PROMPTS},
    ),
}


def old_layout(folder: Path) -> Path:
    """The transformer's own files in 0_Transformer, as sentence-transformers saved them before 2021."""
    inner, modules = folder / "0_Transformer", json.loads((folder / "modules.json").read_text())
    inner.mkdir()
    for path in [p for p in folder.iterdir() if p.is_file()]:
        if path.name not in ("modules.json", "config_sentence_transformers.json"):
            path.rename(inner / path.name)
    modules[0]["path"] = inner.name
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def base_of(name: str, tiny_models, folder: Path) -> Path:
    kind, behind, options = MEMBERS[name]
    torch.manual_seed(3)
    transformer = SentenceTransformer(str(tiny_models(kind)), device="cpu")
    whole = SentenceTransformer(modules=[transformer[0], *behind(transformer)], device="cpu", **options)
    whole.save(str(folder), create_model_card=False)
    return old_layout(folder) if name == OLD else folder


def adapted(base: Path, kind: str, **options) -> SmartEncoder:
    """Trained for two steps, after updates of the size that a longer training makes."""
    adapter = {"kind": kind, **({"r": 4} if kind == "lora" else {})}
    encoder = SmartEncoder(str(base), adapter=adapter, device="cpu", **options)
    generator = torch.Generator().manual_seed(7)
    for name, parameter in encoder.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * parameter.shape[1] ** -0.25 * torch.randn(parameter.shape, generator=generator)
        elif parameter.requires_grad:
            parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)
    optimizer = torch.optim.AdamW([p for p in encoder.parameters() if p.requires_grad], lr=1e-3)
    encoder.train()
    for _ in range(2):
        queries, documents = (
            encoder(encoder.preprocess(t, r)) for t, r in ((QUERIES, "query"), (tiny.TEXTS, "document"))
        )
        loss = F.cross_entropy(queries.pooled @ documents.pooled.T / 0.05, torch.tensor([2, 4]))
        loss.backward()
        assert any(p.grad is not None and bool(p.grad.any()) for p in encoder.parameters())
        optimizer.step()
        optimizer.zero_grad()
    return encoder.eval()


BOTH = [f"{kind} {name}" for name in MEMBERS for kind in ("lora", "full")]


@pytest.fixture(scope="module")
def zoo(tiny_models, tmp_path_factory):
    """(expected arrays, arrays of one process without this package) under the same names."""
    root, expected = tmp_path_factory.mktemp("zoo"), {}
    for name in BOTH:
        kind, _, member = name.partition(" ")
        encoder = adapted(base_of(member, tiny_models, root / name / "base"), kind)
        encoder.save_pretrained(root / name / "adapter")
        verify(encoder, root / name / "adapter", QUERIES, tiny.TEXTS)
        queries, documents = encoder.encode_queries(QUERIES), encoder.encode_documents(tiny.TEXTS)
        assert documents.pooled.shape[1] == encoder.pooled_width
        expected[f"{name}/queries"], expected[f"{name}/documents"] = queries.pooled, documents.pooled
        expected[f"{name}/scores"] = encoder.score(queries, documents, mode="pooled")
    plan = {"names": BOTH, "queries": QUERIES, "documents": tiny.TEXTS}
    alone.run_alone(SCRIPT, root, str(root), json.dumps(plan))
    return expected, np.load(root / "found.npz")


@pytest.mark.parametrize("name", BOTH)
def test_plain_sentence_transformers_reads_and_ranks_the_same(name, zoo):
    expected, found = zoo
    for side in ("queries", "documents"):
        theirs = found[f"{name}/{side}"]
        theirs = theirs / np.linalg.norm(theirs, axis=1, keepdims=True)
        np.testing.assert_allclose(theirs, expected[f"{name}/{side}"], atol=1e-5)
    np.testing.assert_allclose(found[f"{name}/scores"], expected[f"{name}/scores"], atol=1e-5)


def test_an_adapter_of_an_old_base_loads_where_the_base_has_moved_and_merges(tiny_models, tmp_path, monkeypatch):
    encoder = adapted(base_of(OLD, tiny_models, tmp_path / "base"), "lora")
    encoder.save_pretrained(tmp_path / "adapter")
    verify(encoder, tmp_path / "adapter", QUERIES, tiny.TEXTS)
    shutil.move(tmp_path / "base", tmp_path / "elsewhere" / "base")
    moved = str(tmp_path / "elsewhere" / "base")
    both = merge([tmp_path / "adapter"] * 2, [0.5, 0.5], tmp_path / "merged", base=moved)
    for folder in (tmp_path / "adapter", both):
        again = SmartEncoder.from_pretrained(folder, base=moved, device="cpu")
        expected = encoder.encode_documents(tiny.TEXTS).pooled
        np.testing.assert_allclose(again.encode_documents(tiny.TEXTS).pooled, expected, atol=1e-5)
        assert verify(again, folder, QUERIES, tiny.TEXTS, base=moved)["largest_pooled_difference"] < 1e-5


def test_a_base_whose_inner_folder_no_adapter_can_name_is_refused_before_it_is_loaded(tiny_models, tmp_path):
    base = base_of(OLD, tiny_models, tmp_path / "base")
    (base / "deep").mkdir()
    (base / "0_Transformer").rename(base / "deep" / "0_Transformer")
    path = base / "modules.json"
    path.write_text(path.read_text().replace("0_Transformer", "deep/0_Transformer"))
    with pytest.raises(BaseNotFound, match="lies in the folder deep/0_Transformer, which no LoRA adapter can name"):
        SmartEncoder(str(base), lora={"r": 2}, device="cpu")
    assert SmartEncoder(str(base), adapter={"kind": "full"}, device="cpu").hidden_size == 32


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


# -- refused, by name and with the reason


def vocabulary(st) -> list[str]:
    return list(st.tokenizer.get_vocab())


def words(st) -> WordEmbeddings:
    tokenizer = WhitespaceTokenizer(vocab=["chart", "violin"])
    return WordEmbeddings(tokenizer, np.zeros((2, 8), dtype="float32"))


REFUSED = {  # class -> the modules of a base with it
    "StaticEmbedding": lambda st: [StaticEmbedding(st.tokenizer, embedding_dim=32)],
    "BoW": lambda st: [BoW(vocab=["chart", "violin"])],
    "WordEmbeddings": lambda st: [words(st), Pooling(8, "mean")],
    "WordWeights": lambda st: [st[0], WordWeights(vocabulary(st), {"chart": 2.0}), Pooling(32, "mean")],
    "WeightedLayerPooling": lambda st: [st[0], WeightedLayerPooling(32, num_hidden_layers=3), Pooling(32, "mean")],
    "CNN": lambda st: [st[0], CNN(32, out_channels=8), Pooling(24, "mean")],
    "LSTM": lambda st: [st[0], LSTM(32, 8), Pooling(16, "mean")],
    "Router": lambda st: [Router.for_query_document([st[0], Pooling(32, "mean")], [st[0], Pooling(32, "cls")])],
    "Dense": lambda st: [st[0], Dense(32, 16, module_input_name="token_embeddings"), Pooling(16, "mean")],
    "Normalize": lambda st: [st[0], Normalize(module_input_name="token_embeddings"), Pooling(32, "mean")],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_refused_by_name_before_a_weight_is_loaded(name, tiny_bert, tmp_path, monkeypatch):
    st = SentenceTransformer(str(tiny_bert), device="cpu")
    SentenceTransformer(modules=REFUSED[name](st), device="cpu").save(str(tmp_path / "base"), create_model_card=False)
    monkeypatch.setattr(base_loading, "SentenceTransformer", None)  # not reached
    for read in (read_base, SmartEncoder, lambda place: SmartEncoder(place, lora={"r": 2})):
        with pytest.raises(BaseNotFound, match=f"its module [01] is {name}; it .*choose a transformer embedder"):
            read(str(tmp_path / "base"))


def modules_of_the_installed_version() -> dict[str, str]:
    """Class -> its dotted path, of all modules in the folders of sentence-transformers that a model can be made of."""
    found = {}
    for info in pkgutil.walk_packages(sentence_transformers.__path__, "sentence_transformers."):
        if ".modules" not in info.name:
            continue
        for name, kind in vars(importlib.import_module(info.name)).items():
            ours = inspect.isclass(kind) and issubclass(kind, Module) and kind.__module__ == info.name
            if ours and not inspect.isabstract(kind):
                found[name] = f"{info.name}.{name}"
    return found


KINDS = modules_of_the_installed_version()


def test_every_module_of_the_installed_version_is_taken_or_refused_with_a_reason(tiny_models, tmp_path):
    """A new one fails here until somebody has looked at it."""
    assert KINDS.keys() - {*TAKEN, *REFUSED_MODULES} == set()
    transformer = SentenceTransformer(str(tiny_models("bert")), device="cpu")
    used = {type(module).__name__ for _, behind, _ in MEMBERS.values() for module in behind(transformer)}
    assert {*TAKEN} == used | {"Transformer"}, "each that is taken is trained and compared above"


@pytest.mark.parametrize("name", sorted({*KINDS, "NotYetKnown"} - {*TAKEN}))
@pytest.mark.parametrize("legacy", [False, True])
def test_every_other_module_is_refused_by_the_name_in_its_list(name, legacy, tiny_bert, tmp_path):
    base = Path(shutil.copytree(tiny_bert, tmp_path / "base"))
    modules = json.loads((base / "modules.json").read_text())
    kind = KINDS.get(name, f"sentence_transformers.base.modules.{name}")
    modules[1]["type"] = f"sentence_transformers.models.{name}" if legacy else kind
    (base / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(BaseNotFound, match=f"its module 1 is {name}; (it|this version)"):
        read_base(str(base))


@pytest.mark.parametrize("kind", ["SparseEncoder", "CrossEncoder", "MultiVectorEncoder"])
def test_a_model_of_another_class_is_refused_by_its_class(kind, tiny_bert, tmp_path):
    base = Path(shutil.copytree(tiny_bert, tmp_path / "base"))
    path = base / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": kind}))
    for read in (read_base, SmartEncoder):
        with pytest.raises(BaseNotFound, match=f"is a {kind}, which gives no pooled vector"):
            read(str(base))


# -- encoders of two towers, or of an encoder and a decoder


def raw(model, folder: Path) -> str:
    """A folder of transformers alone, without a list of modules."""
    model.save_pretrained(folder)
    tiny.word_tokenizer("[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]").save_pretrained(folder)
    return str(folder)


SIZE = len(tiny.word_tokenizer("[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]"))
TWO_STACKS = {"vocab_size": SIZE, "d_model": 32, "pad_token_id": 0, "decoder_start_token_id": 0}
T5_SIZES = {**TWO_STACKS, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4}
BART_SIZES = {**TWO_STACKS, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 64}
BART_SIZES |= {
    f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in (("attention_heads", 4), ("ffn_dim", 64))
}


@pytest.mark.parametrize("kind", ["T5", "MT5", "UMT5"])
@pytest.mark.parametrize("layer", [-1, 1])
def test_the_encoder_of_an_encoder_decoder_is_a_base(kind, layer, tmp_path):
    config = getattr(transformers, f"{kind}Config")(**T5_SIZES)
    base = raw(tiny.shake(getattr(transformers, f"{kind}Model")(config)), tmp_path / "base")
    assert read_base(base).layers == 3 and read_base(base).hidden == 32
    encoder = adapted(Path(base), "lora", late={"layer": layer})
    encoder.save_pretrained(tmp_path / "adapter")
    verify(encoder, tmp_path / "adapter", QUERIES, tiny.TEXTS)
    plain = SentenceTransformer(str(tmp_path / "adapter"), device="cpu").encode(tiny.TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(plain, encoder.encode_documents(tiny.TEXTS).pooled, atol=1e-5)


@pytest.mark.parametrize("kind", ["Bart", "MBart"])
def test_an_encoder_decoder_that_is_run_whole_is_refused(kind, tmp_path):
    base = raw(getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**BART_SIZES)), tmp_path)
    for read in (read_base, SmartEncoder):
        with pytest.raises(BaseNotFound, match=f"type '{kind.lower()}' is an encoder and a decoder, run whole"):
            read(base)


def test_a_model_of_two_towers_gives_no_token_states(tmp_path):
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    text = {**tower, "vocab_size": SIZE, "max_position_embeddings": 64}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**tower, "image_size": 32, "patch_size": 16}, projection_dim=16
    )
    base = raw(transformers.CLIPModel(config), tmp_path)
    with pytest.raises(BaseNotFound, match="sentence-transformers cannot load it: .* image processor .*; download or"):
        SmartEncoder(base, device="cpu")
    CLIPImageProcessorPil().save_pretrained(base)
    with pytest.raises(BaseNotFound, match=r"gives no token states \(only sentence_embedding\); choose a transformer"):
        SmartEncoder(base, device="cpu")


# -- a module of somebody's own, by its dotted path

OWN = """
import torch
from sentence_transformers.base.modules import Module

class Shift(Module):
    config_keys = ["by"]
    def __init__(self, by=0.5):
        super().__init__()
        self.by = by
    def forward(self, features):
        features["sentence_embedding"] = features["sentence_embedding"] + self.by
        return features
    def save(self, output_path, *args, **kwargs):
        self.save_config(output_path)
"""


def test_a_module_of_ones_own_is_refused_until_it_is_trusted(tiny_bert, tmp_path, monkeypatch):
    (tmp_path / "own_shift.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    shift = importlib.import_module("own_shift").Shift(2.0)
    st = SentenceTransformer(str(tiny_bert), device="cpu")
    SentenceTransformer(modules=[st[0], Pooling(32, "mean"), shift], device="cpu").save(str(tmp_path / "base"))
    with pytest.raises(BaseNotFound, match=r"a module is of the class own_shift.Shift, which is code from elsewhere"):
        SmartEncoder(str(tmp_path / "base"), device="cpu")
    encoder = adapted(tmp_path / "base", "lora", model={"trust_remote_code": True})
    encoder.save_pretrained(tmp_path / "adapter")
    verify(encoder, tmp_path / "adapter", QUERIES, tiny.TEXTS)
    plain = SentenceTransformer(str(tmp_path / "adapter"), device="cpu", trust_remote_code=True)
    given = plain.encode(tiny.TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(given, encoder.encode_documents(tiny.TEXTS).pooled, atol=1e-5)
    with pytest.raises(AdapterError, match="code"):
        SmartEncoder.from_pretrained(tmp_path / "adapter", device="cpu")
