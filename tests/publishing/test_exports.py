"""Exports: equal to the adapter for every head, layer and kind of base, or refused with the reason and nothing left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import tiny_data
import torch
from safetensors.torch import load_file
from sentence_transformers import MultiVectorEncoder, SentenceTransformer

from smart_train.cli.main import main
from smart_train.config.schema import AdapterBlock, HybridBlock, LateBlock, ModelBlock
from smart_train.core.errors import PublishError
from smart_train.models.encoder import SmartEncoder
from smart_train.models.lora import AdapterError
from smart_train.models.processors import images_without_torchvision
from smart_train.models.safe_loading import SETTINGS, VERIFIED
from smart_train.publishing.exporter import export

LORA = AdapterBlock(r=4, alpha=8)
QUERIES = ["What is on the chart?", "violin"]


def saved(base: Path, folder: Path, adapter: AdapterBlock = LORA, late: LateBlock | None = None, **model) -> Path:
    """An adapter of which every trained tensor has moved."""
    encoder = SmartEncoder(str(base), model=ModelBlock(**model), late=late, adapter=adapter, device="cpu")
    generator = torch.Generator().manual_seed(3)
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            drawn = 0.1 * torch.randn(parameter.shape, generator=generator)
            parameter.data = drawn if "lora_" in name else parameter.data + drawn
    return encoder.save_pretrained(folder / "adapter")


def tokens_of(folder: Path, contents: list, role: str) -> list[torch.Tensor]:
    with images_without_torchvision():
        plain = MultiVectorEncoder(str(folder), device="cpu")
    encode = plain.encode_query if role == "query" else plain.encode_document
    return encode(contents)


def equal_tokens(adapter: Path, folder: Path, contents: list, role: str = "document") -> None:
    ours = SmartEncoder.from_pretrained(adapter, device="cpu").encode(contents, role).tokens.rows()
    for one, other in zip(ours, tokens_of(folder, contents, role), strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(other, one, atol=1e-5, rtol=0)


# -- merged


@pytest.mark.parametrize("kind", ["lora", "full", "frozen"])
def test_merged_weights_load_without_the_base_and_equal_the_adapter(kind, tmp_path):
    base = tiny.bert(tmp_path / "base")
    hybrid = HybridBlock(0.5, 2.0, "standardised", 0.4, 0.1, 0.6, 0.2)
    late = LateBlock(layer=[1, -1], head="layernorm_linear", dim=12, hybrid=hybrid)
    adapter = saved(base, tmp_path, AdapterBlock(kind=kind, r=4), late, query_prompt="Find: ", query_tokens=20)
    expected = SmartEncoder.from_pretrained(adapter, device="cpu")
    before = expected.encode_queries(tiny.TEXTS), expected.score(QUERIES, tiny.TEXTS)
    folder = export(adapter, "merged", tmp_path / "merged")
    (base / "model.safetensors").unlink()
    found = SmartEncoder.from_pretrained(folder, device="cpu")
    after = found.encode_queries(tiny.TEXTS)
    torch.testing.assert_close(after.pooled, before[0].pooled, atol=1e-5, rtol=0)
    torch.testing.assert_close(after.tokens.values, before[0].tokens.values, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.score(QUERIES, tiny.TEXTS), before[1], atol=1e-5, rtol=1e-5)
    plain = SentenceTransformer(str(folder), device="cpu").encode_query(tiny.TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(plain, before[0].pooled, atol=1e-5, rtol=0)
    assert not list(folder.glob("adapter*")) and not any("lora" in n for n in load_file(folder / "model.safetensors"))


def test_the_folder_says_what_it_was_made_from_and_that_it_was_compared(tiny_bert, tmp_path):
    folder = export(saved(tiny_bert, tmp_path), "merged", tmp_path / "merged")
    settings, verified = json.loads((folder / SETTINGS).read_text()), json.loads((folder / VERIFIED).read_text())
    assert settings["adapter"]["kind"] == "full" and settings["base"] == str(tiny_bert)
    assert settings["export"]["kind"] == "merged" and settings["export"]["adapter"]["r"] == 4
    assert verified["rows"] > 8 and 0 < verified["largest_token_difference"] <= 1e-5 < verified["tolerance"]
    assert set(verified["weights"]) == {"model.safetensors"}
    SmartEncoder.from_pretrained(folder, device="cpu").save_settings(folder)
    assert json.loads((folder / SETTINGS).read_text())["export"] == settings["export"]


def test_pages_too(tiny_qwen3vl, tmp_path):
    adapter = saved(tiny_qwen3vl, tmp_path, late=LateBlock(head="linear", dim=12), max_pixels=64 * 64)
    pages = [tiny_data.draw_page(0), {"text": "a chart", "image": tiny_data.draw_page(5)}]
    before = SmartEncoder.from_pretrained(adapter, device="cpu").encode_documents(pages)
    merged = export(adapter, "merged", tmp_path / "merged")
    after = SmartEncoder.from_pretrained(merged, device="cpu").encode_documents(pages)
    torch.testing.assert_close(after.pooled, before.pooled, atol=1e-5, rtol=0)
    torch.testing.assert_close(after.tokens.values, before.tokens.values, atol=1e-5, rtol=0)
    multi = export(adapter, "multi-vector", tmp_path / "multi")
    for contents in ([pages[0]], [pages[1]], tiny.TEXTS):
        equal_tokens(adapter, multi, contents)
    equal_tokens(adapter, multi, QUERIES, "query")


def test_in_half_precision_rounding_is_told_and_float32_keeps_all_of_it(tiny_bert, tmp_path, caplog):
    adapter = saved(tiny_bert, tmp_path, dtype="bfloat16")
    half = export(adapter, "merged", tmp_path / "half")
    verified = json.loads((half / VERIFIED).read_text())
    assert verified["tolerance"] == 5e-2 and 1e-5 < verified["largest_pooled_difference"] <= 5e-2
    lost = json.loads((half / SETTINGS).read_text())["export"]["update_lost_to_rounding"]
    assert lost > 1e-3 and f"rounding lost {100 * lost:.1f} %" in caplog.text
    assert {t.dtype for t in load_file(half / "model.safetensors").values()} == {torch.bfloat16}
    whole = export(adapter, "merged", tmp_path / "whole", dtype="float32")
    assert json.loads((whole / VERIFIED).read_text())["largest_pooled_difference"] <= 1e-5
    assert json.loads((whole / SETTINGS).read_text())["export"]["update_lost_to_rounding"] < 1e-6


# -- multi-vector

VIEWS = {
    "hidden states": ("qwen3", {}),
    "a Matryoshka cut": ("modernbert", {"dim": 12}),
    "a head": ("bert", {"head": "linear", "dim": 12}),
    "a LayerNorm head": ("modernbert", {"head": "layernorm_linear", "dim": 12}),
    "an early layer of a post-norm model": ("bert", {"layer": 1, "head": "layernorm_linear", "dim": 12}),
    "an early layer through the final norm": ("qwen3", {"layer": 2, "head": "linear", "dim": 12}),
    "no punctuation": ("modernbert", {"layer": 2, "drop": ["punctuation"]}),
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_multi_vector_encoder_has_the_same_tokens(view, tiny_models, tmp_path):
    kind, late = VIEWS[view]
    adapter = saved(tiny_models(kind), tmp_path, late=LateBlock(**late), query_tokens=6, document_tokens=20)
    folder = export(adapter, "multi-vector", tmp_path / "multi")
    equal_tokens(adapter, folder, tiny.TEXTS)
    equal_tokens(adapter, folder, [*QUERIES, "a long, long question of " + "many " * 9 + "words"], "query")
    assert not list(folder.rglob("*.py"))
    types = [module["type"] for module in json.loads((folder / "modules.json").read_text())]
    assert all(name.startswith("sentence_transformers.") for name in types)


def test_limits_that_the_base_brings_along_stay(tiny_bert, tmp_path):
    """None of the queries that an export is compared on is that long."""
    base = shutil.copytree(tiny_bert, tmp_path / "base")
    path = base / "sentence_bert_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "query_length": 16}))
    adapter = saved(base, tmp_path)
    folder = export(adapter, "multi-vector", tmp_path / "multi")
    equal_tokens(adapter, folder, ["a long, long question of " + "many " * 30 + "words"], "query")


def test_blocks_above_an_early_layer_are_not_shipped(tiny_bert, tmp_path):
    folder = export(saved(tiny_bert, tmp_path, late=LateBlock(layer=1)), "multi-vector", tmp_path / "multi")
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 1
    assert not [name for name in load_file(folder / "model.safetensors") if "layer.1." in name or "layer.2." in name]


def test_a_training_free_base_can_be_exported(real_base, tmp_path):
    folder = export(real_base, "multi-vector", tmp_path / "multi")
    ours = SmartEncoder(str(real_base), device="cpu").encode_documents(tiny.TEXTS).tokens.rows()
    for one, other in zip(ours, tokens_of(folder, tiny.TEXTS, "document"), strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=0)
    with pytest.raises(PublishError, match="there is nothing to merge"):
        export(real_base, "merged", tmp_path / "merged")


def test_a_row_without_tokens_is_the_one_difference(tiny_bert, tmp_path):
    """Here its pooled vector stands in; there it has none, and scores 0 against everything."""
    adapter = saved(tiny_bert, tmp_path)
    folder = export(adapter, "multi-vector", tmp_path / "multi", sides=[("document", ["", "a chart"])])
    assert json.loads((folder / VERIFIED).read_text())["rows_without_tokens"] == 1
    assert [len(row) for row in tokens_of(folder, ["", "a chart"], "document")] == [0, 2]


def test_a_multi_vector_folder_is_not_read_as_a_pooled_one(tiny_bert, tmp_path):
    """Plain SentenceTransformer would convert it, with a mean pooling of its own."""
    folder = export(saved(tiny_bert, tmp_path), "multi-vector", tmp_path / "multi")
    with pytest.raises(AdapterError, match="sentence_transformers.MultiVectorEncoder"):
        SmartEncoder.from_pretrained(folder, device="cpu")
    (folder / SETTINGS).unlink()
    with pytest.raises(AdapterError, match="gives no pooled vector"):
        SmartEncoder.from_pretrained(folder, device="cpu")


REFUSED = {
    "a gated head": ("bert", {"head": "gated_residual", "dim": 12}, {}, "no module that does"),
    "a mix of layers": ("bert", {"layer": [1, -1]}, {}, "a mix of 2 layers"),
    "the embeddings": ("bert", {"layer": 0}, {}, "late.layer 0"),
    "no norm where there is one": ("qwen3", {"layer": 2, "norm": "none"}, {}, "late.norm none"),
    "a layer below image features": ("qwen3vl", {"layer": 2}, {}, "deepstack"),
    "text cut before the chat": ("qwen3vl", {}, {"query_tokens": 8}, "pass whole_texts=True"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_module_there_is_refused_and_leaves_nothing(what, tiny_models, tmp_path):
    kind, late, model, told = REFUSED[what]
    adapter = saved(tiny_models(kind), tmp_path, late=LateBlock(**late), **model)
    with pytest.raises(PublishError, match=told):
        export(adapter, "multi-vector", tmp_path / "multi")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_chats_texts_can_be_read_whole_there(tiny_qwen3vl, tmp_path):
    adapter = saved(tiny_qwen3vl, tmp_path, query_tokens=3)
    folder = export(adapter, "multi-vector", tmp_path / "multi", whole_texts=True)
    cut, whole = (SmartEncoder(str(tiny_qwen3vl), device="cpu") for _ in range(2))
    cut.settings.query_tokens = 3
    lengths = [one.encode_queries(QUERIES).tokens.lengths.tolist() for one in (cut, whole)]
    assert lengths[0] != lengths[1] == [len(row) for row in tokens_of(folder, QUERIES, "query")]
    assert json.loads((folder / SETTINGS).read_text())["model"]["query_tokens"] is None


def test_a_pooled_token_of_the_text_itself_is_refused(tiny_models, tmp_path):
    """A decoder whose tokenizer ends no text: what is pooled is the last word."""
    base = tmp_path / "base"
    base.mkdir()
    folder = tiny.qwen3(base)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": None}))
    with pytest.raises(PublishError, match="belongs to the text"):
        export(saved(folder, tmp_path), "multi-vector", tmp_path / "multi")


# -- both


def test_a_folder_that_is_there_is_left_as_it_is(tiny_bert, tmp_path):
    adapter = saved(tiny_bert, tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(PublishError, match="already exists and was not changed"):
        export(adapter, "merged", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("out", [".", ".."])
def test_a_folder_without_a_name_of_its_own_is_refused(out, tiny_bert):
    with pytest.raises(PublishError, match="is no name for a new folder; name another"):
        export(tiny_bert, "multi-vector", out)


def test_an_export_that_differs_is_an_error_and_is_gone(tiny_bert, tmp_path, monkeypatch):
    """As a peft that scales in another way would make it."""
    adapter = saved(tiny_bert, tmp_path)
    from peft.tuners.lora.layer import Linear

    right = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, name: 1.01 * right(self, name))
    for kind in ("merged", "multi-vector"):
        with pytest.raises(PublishError, match="differ by") as error:
            export(adapter, kind, tmp_path / "out")
        assert str(tmp_path / "out") in str(error.value) and ".part" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_the_command_says_how_to_load_what_it_wrote(tiny_bert, tmp_path, capsys):
    adapter, out = saved(tiny_bert, tmp_path), tmp_path / "multi"
    assert main(["export", str(adapter), "--as", "multi-vector", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert f'MultiVectorEncoder("{out}")' in told and "equals the adapter on 9 rows" in told
    equal_tokens(adapter, out, tiny.TEXTS)
    assert main(["export", str(adapter), "--as", "merged", "--out", str(out)]) == 1
    assert "already exists and was not changed" in capsys.readouterr().err
