"""model.pooling: the mode that pools, in our encoder, in plain sentence-transformers and in the settings."""

from __future__ import annotations

import json
import logging
import shutil
from typing import get_args

import numpy as np
import pytest
import tiny
import torch
from adapters import trained
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import Pooling

from smart_train.checks.recipe import check
from smart_train.config.recipe import read
from smart_train.config.schema import AdapterBlock, LateBlock, ModelBlock, PoolingMode
from smart_train.config.typed_values import RecipeError
from smart_train.core.errors import AdapterError
from smart_train.models.base_config import read_base
from smart_train.models.encoder import SmartEncoder
from smart_train.models.pooling import set_pooling
from smart_train.models.safe_loading import SETTINGS
from smart_train.models.verification import verify
from smart_train.training.callbacks.first_step import check_trainable


def test_the_modes_of_a_recipe_are_those_of_sentence_transformers():
    assert set(get_args(PoolingMode)) == set(Pooling.POOLING_MODES)


@pytest.mark.parametrize("mode", get_args(PoolingMode))
def test_the_pooled_vector_is_what_sentence_transformers_pools(mode, tiny_modernbert):
    encoder = SmartEncoder(str(tiny_modernbert), model=ModelBlock(pooling=mode), device="cpu")
    plain = SentenceTransformer(str(tiny_modernbert), device="cpu")
    own = plain[1]
    plain[1] = Pooling(own.embedding_dimension, mode)
    expected = plain.encode(tiny.TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode_documents(tiny.TEXTS).pooled, expected, atol=2e-6)
    assert encoder.pooling == mode


def test_the_pooled_token_is_left_out_of_the_tokens_for_the_mode_in_force(tiny_qwen3):
    """Its own mode pools the last token; with the mean every token counts but the special ones."""
    text = "a chart"
    counts = {}
    for mode in ("lasttoken", "mean", "cls"):
        encoder = SmartEncoder(str(tiny_qwen3), model=ModelBlock(pooling=mode), device="cpu")
        counts[mode] = int(encoder.encode_documents([text]).tokens.lengths)
    assert counts["cls"] == counts["mean"] - 1 == counts["lasttoken"] - 1  # <|endoftext|> is a special token anyway


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_an_adapter_carries_its_pooling_into_plain_sentence_transformers(kind, tiny_modernbert, tmp_path):
    encoder = trained(tiny_modernbert, AdapterBlock(kind=kind, r=4), LateBlock(), pooling="mean")
    encoder.save_pretrained(tmp_path)
    verify(encoder, tmp_path, ["a query"], tiny.TEXTS)
    ours = encoder.encode_documents(tiny.TEXTS).pooled
    fresh = SmartEncoder.from_pretrained(tmp_path, device="cpu")
    assert (fresh.pooling, fresh.settings.pooling) == ("mean", "mean")
    torch.testing.assert_close(fresh.encode_documents(tiny.TEXTS).pooled, ours, atol=1e-6, rtol=0)
    plain = SentenceTransformer(str(tmp_path), device="cpu").encode(tiny.TEXTS)
    np.testing.assert_allclose(plain, ours.numpy(), atol=2e-6)
    settings = json.loads((tmp_path / SETTINGS).read_text())
    assert settings["model"]["pooling"] == settings["processing"]["pooling"] == "mean"


def test_a_base_that_pools_otherwise_than_in_training_is_refused(tiny_modernbert, tmp_path):
    base = shutil.copytree(tiny_modernbert, tmp_path / "base")
    folder = trained(base, AdapterBlock(r=4)).save_pretrained(tmp_path / "adapter")
    config = base / "1_Pooling" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "pooling_mode": "max"}))
    with pytest.raises(AdapterError, match="pooling was cls, is max"):
        SmartEncoder.from_pretrained(folder, device="cpu")


def test_an_adapter_of_version_0_1_has_no_pooling_to_compare_and_loads(tiny_bert, tmp_path):
    encoder = trained(tiny_bert, AdapterBlock(r=4), LateBlock(head="linear", dim=8, drop=["punctuation"]))
    folder = encoder.save_pretrained(tmp_path)
    settings = json.loads((folder / SETTINGS).read_text())
    del settings["processing"]["pooling"], settings["model"]["pooling"], settings["late"]["keep"]
    (folder / SETTINGS).write_text(json.dumps(settings))
    ours = encoder.encode_documents(["the chart, with its name."])
    found = SmartEncoder.from_pretrained(folder, device="cpu").encode_documents(["the chart, with its name."])
    torch.testing.assert_close(found.pooled, ours.pooled, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.tokens.values, ours.tokens.values, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("chosen", "told"), [(None, "mean pooling (the base's own)"), ("max", "max pooling (model.")])
def test_the_log_names_the_pooling(chosen, told, tiny_bert, caplog):
    caplog.set_level(logging.INFO)
    SmartEncoder(str(tiny_bert), model=ModelBlock(pooling=chosen), device="cpu")
    assert caplog.text.count(" pooling (") == 1 and told in caplog.text


def test_a_base_without_modules_is_said_to_take_sentence_transformers_default(tiny_bert, tmp_path, caplog):
    base = shutil.copytree(tiny_bert, tmp_path / "plain")
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        (base / name).unlink(missing_ok=True)
    caplog.set_level(logging.INFO)
    SmartEncoder(str(base), device="cpu")
    assert "mean pooling (sentence-transformers' default: the base has no modules.json)" in caplog.text


# -- what cannot be


@pytest.fixture
def projected(tiny_bert, tmp_path) -> str:
    """cls and mean together, 64 wide, through a Dense module to 16."""
    model = SentenceTransformer(str(tiny_bert), device="cpu")
    modules = [model[0], Pooling(32, ("cls", "mean")), Dense(64, 16)]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "projected"), create_model_card=False)
    return str(tmp_path / "projected")


def test_several_modes_of_a_base_are_verified_like_one(projected, tmp_path):
    encoder = trained(projected, AdapterBlock(r=4))
    assert check_trainable(encoder, encoder.adapter)["backbone"] == 0  # LoRA leaves the Dense module as it is
    assert encoder.pooling == "cls+mean"
    encoder.save_pretrained(tmp_path / "adapter")
    verify(encoder, tmp_path / "adapter", ["a query"], tiny.TEXTS)


def test_a_width_that_a_dense_module_does_not_take_is_refused(projected):
    base = read_base(projected)
    assert (base.pooling, base.projected, base.pooled) == (("cls", "mean"), True, 16)
    with pytest.raises(ValueError, match="max, 32 wide, but the Dense module .* takes 64; remove it"):
        set_pooling(SentenceTransformer(projected, device="cpu"), "max")


RECIPE = """\
model:
  base: {base}
  pooling: {mode}
data:
  path: {data}
"""


def recipe_of(tmp_path, **values) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE.format(**values))
    return str(path)


def test_a_recipe_is_told_before_a_model_is_loaded(projected, tiny_bert, triples_file, tmp_path):
    with pytest.raises(RecipeError, match="line 3: model.pooling: is max, but the Dense module .* takes cls . mean"):
        check(read(recipe_of(tmp_path, base=projected, mode="max", data=triples_file)))
    with pytest.raises(RecipeError, match="line 3: model.pooling: must be one of cls, max, .*nearest is mean"):
        read(recipe_of(tmp_path, base=tiny_bert, mode="meen", data=triples_file))
    assert check(read(recipe_of(tmp_path, base=tiny_bert, mode="max", data=triples_file))).pooled == 32


def test_a_folder_whose_modules_pool_otherwise_than_its_settings_say_is_refused(tiny_bert, tmp_path):
    folder = trained(tiny_bert, AdapterBlock(r=4), pooling="max").save_pretrained(tmp_path)
    config = folder / "1_Pooling" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "pooling_mode": "mean"}))
    with pytest.raises(AdapterError, match="with max pooling, found .* with mean; plain sentence-transformers would"):
        SmartEncoder.from_pretrained(folder, device="cpu")
