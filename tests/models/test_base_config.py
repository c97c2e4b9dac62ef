"""Bases whose files disagree with each other, or that are no bases: composed by the minimum, or refused by name, before
anything is trained.  References are plain sentence-transformers on one text at a time, and the tokenizer alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, Qwen3Config, RobertaConfig, RobertaModel

from smart_train.config.schema import AdapterBlock, ModelBlock, Recipe
from smart_train.core.errors import BaseNotFound, DataError, SettingError
from smart_train.models.base_config import language_model_advice, read_base
from smart_train.models.encoder import SmartEncoder
from smart_train.models.preprocessing import position_count
from smart_train.planning.memory_model import MemoryModel

LONG = "chart " * 300


@pytest.fixture
def edited(tiny_models, tmp_path):
    """edited(kind, file={key: value}, ...) -> a copy of a tiny base with other values in its JSON files."""

    def build(kind: str, **files: dict) -> Path:
        folder = Path(shutil.copytree(tiny_models(kind), tmp_path / "base"))
        for name, values in files.items():
            path = next(folder.glob("*_Pooling/config.json")) if name == "pooling" else folder / f"{name}.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
        return folder

    return build


def roberta(folder: Path) -> Path:
    """Positions are counted from behind the padding token, and no file has a length: 40 rows are 38 positions."""
    tokenizer = tiny.word_tokenizer("<s>", "</s>", "<pad>", "<mask>", "<unk>")
    tokenizer.model_max_length = int(1e30)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
        pad_token_id=1,
    )
    return tiny.save(folder, tiny.shake(RobertaModel(config)), tokenizer, "mean")


# -- padding


LEFT = {"padding_side": "left"}


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
def test_an_encoder_that_pads_where_its_positions_begin_is_refused(pooling, edited):
    folder = edited("bert", tokenizer_config=LEFT, pooling={"pooling_mode": pooling})
    plain = SentenceTransformer(str(folder), device="cpu")
    alone = plain.encode(["violin"], convert_to_tensor=True)
    beside = plain.encode(["violin", LONG], convert_to_tensor=True)[:1]
    assert (alone - beside).norm() > 1e-2, "as sentence-transformers has it"
    found = rf"the vector of a text changes by .*pads on the left, its pooling is {pooling}; correct padding_side"
    with pytest.raises(BaseNotFound, match=found):
        SmartEncoder(str(folder), device="cpu")


@pytest.mark.parametrize("kind", ["modernbert", "qwen3"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["cls", "lasttoken"])
def test_rotary_positions_may_be_padded_on_either_side(pooling, side, kind, edited):
    folder = edited(kind, tokenizer_config={"padding_side": side}, pooling={"pooling_mode": pooling})
    encoder = SmartEncoder(str(folder), device="cpu")
    assert encoder.cut_rows == {"query": 0, "document": 0} and not encoder.training
    alone, beside = encoder.encode_documents(["violin"]), encoder.encode_documents(["violin", LONG])
    torch.testing.assert_close(alone.pooled, beside.pooled[:1], atol=1e-5, rtol=0)


# -- lengths


OVER = {"sentence_bert_config": {"max_seq_length": 256}, "tokenizer_config": {"model_max_length": 256}}


@pytest.mark.parametrize("which", ["max_seq_length", "document_length", "roberta"])
def test_limits_above_the_positions_are_lowered_to_them(which, edited, tmp_path, caplog):
    if which == "roberta":
        folder, positions = roberta(tmp_path), 38
    else:
        own = OVER if which == "max_seq_length" else {"sentence_bert_config": {"document_length": 256}}
        folder, positions = edited("bert", **own), 128
    with pytest.raises((RuntimeError, IndexError)):
        SentenceTransformer(str(folder), device="cpu").encode_document([LONG])
    encoder = SmartEncoder(str(folder), device="cpu")
    assert f"the model has {positions} positions; texts are cut at {positions} tokens" in caplog.text
    assert position_count(encoder.backbone) == read_base(str(folder)).positions == positions
    found = encoder.encode_documents([LONG])
    words = " ".join(["chart"] * (positions - 2))  # and a start and an end token
    torch.testing.assert_close(found.pooled, encoder.encode_documents([words]).pooled, atol=1e-6, rtol=0)
    assert encoder.reading_limit("document") == positions


def test_rotary_positions_have_no_table_to_run_out_of(tiny_models):
    assert position_count(SmartEncoder(str(tiny_models("qwen3")), device="cpu").backbone) is None


def test_a_recipe_limit_above_the_positions_is_refused(tiny_bert):
    with pytest.raises(SettingError, match="model.document_tokens: is 129, above the 128 positions"):
        SmartEncoder(str(tiny_bert), model={"document_tokens": 129}, device="cpu")


@pytest.mark.parametrize(
    ("model", "data", "expected"),
    [(None, None, 20), (None, 64, 20), (None, 12, 12), (64, None, 64), (64, 32, 32), (16, 32, 16)],
)
def test_training_is_never_longer_than_reading(model, data, expected, edited):
    """The base reads 20 tokens; the doctor counts the same."""
    short = {"sentence_bert_config": {"max_seq_length": 20}, "tokenizer_config": {"model_max_length": 20}}
    folder = edited("bert", **short)
    encoder = SmartEncoder(str(folder), model={"document_tokens": model}, device="cpu")
    trained = encoder.preprocess([LONG], "document", data)["input_ids"].shape[1]
    read = encoder.preprocess([LONG], "document")["input_ids"].shape[1]
    assert trained == expected and read == (model or 20) and trained <= read == encoder.reading_limit("document")
    recipe = Recipe(model=ModelBlock(base=str(folder), document_tokens=model), adapter=AdapterBlock(r=4))
    recipe.data.document_tokens = data
    assert MemoryModel(recipe, read_base(str(folder)), images=False, on_cpu=True).lengths.document == expected


# -- empty texts


@pytest.fixture
def bare(edited) -> Path:
    """A decoder whose tokenizer adds no token to a text."""
    return edited("qwen3", tokenizer={"post_processor": None})


@pytest.mark.parametrize("rows", [[""], ["", "chart"], ["chart", "", LONG], [{"text": ""}], ["", ""]])
def test_a_text_without_a_token_is_refused_in_any_batch(rows, bare):
    encoder = SmartEncoder(str(bare), model={"document_prompt": "", "query_prompt": ""}, device="cpu")
    for role, encode in (("document", encoder.encode_documents), ("query", encoder.encode_queries)):
        with pytest.raises(DataError, match=rf"the text '.*' gets no token that is pooled.*set model.{role}_prompt"):
            encode(rows)


@pytest.mark.parametrize(
    ("prompt", "limit", "rows"),
    [
        ("page: ", None, [""]),
        ("page: ", None, ["", "chart"]),
        ("page: ", None, ["chart", ""]),
        ("find the page about: ", 3, ["chart"]),  # cut at the limit, nothing of the text is left
        ("page: ", None, [{"text": ""}, "chart"]),
    ],
)
def test_a_text_of_which_the_pooling_leaves_nothing_is_refused(prompt, limit, rows, bare):
    """Its mean would be over no token: a vector of zeros, and scores of 0."""
    path = bare / "1_Pooling" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pooling_mode": "mean", "include_prompt": False}))
    with pytest.raises(DataError, match="gets no token that is pooled.*or raise the limit"):
        encoder = SmartEncoder(str(bare), model={"document_prompt": prompt, "document_tokens": limit}, device="cpu")
        encoder.encode_documents(rows)


def test_a_prompt_is_text_enough(bare, tiny_models):
    prompted = SmartEncoder(str(bare), model={"document_prompt": "page: "}, device="cpu")
    own = SmartEncoder(str(bare), model={"document_prompt": ""}, device="cpu")
    found = prompted.encode_documents(["", "chart"]).pooled[:1]
    torch.testing.assert_close(found, own.encode_documents(["page: "]).pooled, atol=1e-6, rtol=0)
    closed = SmartEncoder(str(tiny_models("qwen3")), device="cpu")  # its tokenizer ends a text with a token
    torch.testing.assert_close(closed.encode_documents([""]).pooled.norm(dim=-1), torch.ones(1))


# -- adapters in the place of a base


def saved(kind: str, base: Path, folder: Path) -> Path:
    late = {"head": "linear", "dim": 8} if kind == "frozen" else None
    encoder = SmartEncoder(str(base), adapter={"kind": kind}, late=late, device="cpu")
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return encoder.save_pretrained(folder)


@pytest.mark.parametrize("kind", ["lora", "frozen"])
def test_an_adapter_given_as_base_is_named_with_its_base(kind, tiny_bert, tmp_path):
    folder = saved(kind, tiny_bert, tmp_path / "adapter")
    named = rf"holds an adapter of {tiny_bert}, not a base; .*{tiny_bert}.*smart-train export .* --as merged"
    calls = [
        lambda: read_base(str(folder)),
        lambda: SmartEncoder(str(folder), device="cpu"),
        lambda: SmartEncoder(str(folder), lora={"r": 2}, device="cpu"),
    ]
    for call in calls:
        with pytest.raises(BaseNotFound, match=named):
            call()
    assert SmartEncoder.from_pretrained(folder, device="cpu").adapter.kind == kind


def test_an_adapter_of_peft_is_no_base_to_train_on(tiny_bert, tmp_path):
    base = AutoModel.from_pretrained(tiny_bert)
    base.name_or_path = "their/base"
    get_peft_model(base, LoraConfig(r=2, target_modules=["query"])).save_pretrained(tmp_path / "peft")
    for call in (
        lambda: read_base(str(tmp_path / "peft")),
        lambda: SmartEncoder(str(tmp_path / "peft"), lora={"r": 2}, device="cpu"),
    ):
        with pytest.raises(
            BaseNotFound, match=r"adapter of their/base, not a base; .*merge it into its base with peft"
        ):
            call()


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", "null"])
def test_an_adapter_whose_settings_are_broken_is_an_adapter_still(text, tmp_path):
    (tmp_path / "smart_train.json").write_text(text)
    with pytest.raises(BaseNotFound, match="holds an adapter of a base that smart_train.json does not name"):
        read_base(str(tmp_path))


def test_whole_weights_are_a_base(tiny_bert, tmp_path):
    folder = saved("full", tiny_bert, tmp_path / "full")
    own = SmartEncoder(str(tiny_bert), device="cpu").encode_documents(["chart"]).pooled
    found = SmartEncoder(str(folder), lora={"r": 2}, device="cpu").encode_documents(["chart"]).pooled
    torch.testing.assert_close(found, own, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("architecture", "modules", "found"),
    [("Qwen3ForCausalLM", False, True), ("Qwen3ForCausalLM", True, False), ("Qwen3Model", False, False)],
)
def test_a_language_model_that_was_never_an_embedder_is_recognised(architecture, modules, found, tmp_path):
    config = Qwen3Config(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, head_dim=8
    )
    config.architectures = [architecture]
    config.save_pretrained(tmp_path)
    if modules:
        kind = "sentence_transformers.models.Transformer"
        (tmp_path / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": kind}]))
    assert read_base(str(tmp_path)).language_model == found
    assert f"smart-train last-token-base {tmp_path} " in language_model_advice(str(tmp_path))
