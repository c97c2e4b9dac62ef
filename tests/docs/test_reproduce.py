"""docs/reproduce.md: its recipe lines are valid for what they train, and its table is what the recipes would make."""

from __future__ import annotations

import shutil

import pages
import pytest
import tiny
import torch
from pages import ROOT, recipe_of
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from smart_train.benchmarks.mmeb_tasks import VISDOC
from smart_train.checks.recipe import check
from smart_train.cli.main import build_parser, main
from smart_train.config.recipe import Recipe, read
from smart_train.core.errors import UsageError
from smart_train.models.encoder import SmartEncoder
from smart_train.models.last_token_base import make_last_token_base

PAGE = ROOT / "docs" / "reproduce.md"
RECIPES = [one for one in pages.commands(PAGE) if recipe_of(one)]
MEASURED = [one for one in pages.commands(PAGE) if one.words[:2] == ("smart-train", "benchmark")]


@pytest.fixture(scope="module")
def plain(tiny_qwen3vl, tmp_path_factory):
    """A vision-language model as it is published: with a language model's head, and no word about pooling."""
    raw, folder = tiny_qwen3vl.parent / "raw", tmp_path_factory.mktemp("instruct") / "model"
    shutil.copytree(raw, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tiny.shake(Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_pretrained(raw)), 3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(plain, tmp_path_factory):
    """What ``smart-train last-token-base`` makes of it."""
    folder = tmp_path_factory.mktemp("made") / "model"
    assert main(["last-token-base", str(plain), "--output", str(folder)]) == 0
    return folder


def recipe(command, base, **more) -> Recipe:
    path, overrides = recipe_of(command)
    own = {"model.base": base, "data.path": more["data"], "data.dev": 4, "training.use_cpu": "true"}
    narrow = {"late.dim": 64} if any(word.startswith("late.dim=") for word in overrides) else {}  # the tiny one's width
    kept = [word for word in overrides if word.split("=")[0] not in {**own, **narrow}]
    return read(ROOT / path, [*kept, *(f"{key}={value}" for key, value in {**own, **narrow}.items())])


@pytest.mark.parametrize("command", RECIPES, ids=str)
def test_every_recipe_of_the_page_is_valid_on_a_small_model_of_its_architecture(command, made, tiny_qwen3vl, page_rows):
    base = tiny_qwen3vl if "visdoc_head" in str(command) else made
    assert check(recipe(command, base, data=page_rows)).vision


def test_the_recipes_are_the_reference_s_settings(made, page_rows):
    found = {}
    for command in RECIPES:
        one = recipe(command, made, data=page_rows)
        found[one.output.removeprefix("runs/reference_")] = one
    assert list(found) == ["head_2b", "head_8b", "pooled", "late", "hybrid", "convert"]
    weights = {
        name: tuple(getattr(one.objective, term).weight for term in ("pooled", "late", "hybrid"))
        for name, one in found.items()
    }
    assert weights["pooled"] == (1, 0, 0) and weights["late"] == (0, 1, 0)
    assert weights["hybrid"] == weights["convert"] == (0, 0, 1)
    assert weights["head_2b"] == weights["head_8b"] == (0, 1, 0)
    for name in ("pooled", "late", "hybrid", "convert"):
        one = found[name]
        assert (one.adapter.kind, one.adapter.r, one.adapter.alpha, one.objective.batch) == ("lora", 128, 256, 512)
        assert {term.temperature for term in (one.objective.pooled, one.objective.late, one.objective.hybrid)} == {0.05}
        assert (one.training["learning_rate"], one.training["num_train_epochs"]) == (1e-4, 1)
        assert one.training.get("weight_decay", 0) == 0 and not one.adapter.vision
    for name in ("head_2b", "head_8b"):
        one = found[name]
        assert (one.adapter.kind, one.late.layer, one.late.head.type) == ("frozen", -1, "layernorm_linear")
        assert (one.objective.late.temperature, one.training["learning_rate"]) == (0.03, 1e-3)
        assert (one.training["weight_decay"], one.training["num_train_epochs"]) == (0.01, 2)
        assert (one.training["per_device_train_batch_size"], one.model.max_pixels) == (64, 1843200)
    for one in found.values():
        assert one.training["lr_scheduler_type"] == "cosine" and one.training["warmup_steps"] == 0.03
        assert one.training["bf16"] and not one.evaluation.calibrate  # hybrid weights stay 1 and 1
        assert (one.late.hybrid.pooled, one.late.hybrid.late, one.late.hybrid.scaling) == (1, 1, "none")
    assert [recipe_of(one)[1][2] for one in RECIPES[:1]] == ["late.dim=2048"]


def test_what_a_run_leaves_is_what_is_measured():
    runs = {word.removeprefix("output=") for one in RECIPES for word in one.words if word.startswith("output=")}
    options = [build_parser().parse_args(list(one.words[1:])) for one in MEASURED]
    assert {one.adapter.removesuffix("/adapter") for one in options if one.adapter} == runs
    assert all(one.mmeb == "data/MMEB-V2" or one.tasks for one in options)
    assert len({one.output for one in options if one.tasks == ["visdoc"]}) == 8
    trained = {one.adapter: one.model for one in options if one.adapter}
    for one in RECIPES:
        path, overrides = recipe_of(one)
        given = dict(word.split("=", 1) for word in overrides)
        base = given.get("model.base") or read(ROOT / path, []).model.base
        assert trained[f"{given['output']}/adapter"] == base  # an adapter is loaded on what it was trained on


def test_the_page_names_every_repository_of_the_visual_documents():
    text = PAGE.read_text(encoding="utf8")
    for repository, _ in VISDOC.values():
        stem = repository.removesuffix("_test_subsampled_beir").removesuffix("_test_beir")
        assert stem.removeprefix("VisRAG-Ret-Test-") in text, repository


def test_a_plain_model_becomes_an_embedder_whose_vector_is_its_last_token_s_state(plain, made):
    encoder = SmartEncoder(str(made), device="cpu")
    features = encoder.preprocess(["the invoice"], "query")
    assert encoder.tokenizer.decode(features["input_ids"][0]).endswith("<|im_start|>assistant\n")
    whole = Qwen3VLForConditionalGeneration.from_pretrained(plain).eval()
    with torch.no_grad():
        states = whole.model(input_ids=features["input_ids"], attention_mask=features["attention_mask"])
    expected = torch.nn.functional.normalize(states.last_hidden_state[0, -1], dim=0)
    assert torch.allclose(encoder.encode_queries(["the invoice"]).pooled[0], expected, atol=1e-5)
    with pytest.raises(UsageError, match="exists already; name a new folder"):
        make_last_token_base(str(plain), made)
