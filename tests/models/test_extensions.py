"""Heads and token filters of other packages: used, trained, saved, reloaded; and imported only for who trusts them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import own_parts
import pytest
import tiny
import torch
import torch.nn.functional as F
from adapters import trained

from smart_train.checks.recipe import check
from smart_train.config.recipe import plain, read
from smart_train.config.schema import AdapterBlock, Component, LateBlock
from smart_train.config.typed_values import RecipeError
from smart_train.core.errors import AdapterError, ExtensionError, PublishError
from smart_train.models.encoder import SmartEncoder
from smart_train.models.safe_loading import HEAD, SETTINGS
from smart_train.models.verification import verify
from smart_train.publishing.exporter import export

MINE = {"type": "own_parts:TwoLayerHead", "inner": 6}
SECOND = {"type": "own_parts:every_second", "first": 1}
NAMES = ["own_parts:TwoLayerHead", "own_parts:every_second"]
LATE = {"layer": [1, -1], "head": MINE, "dim": 5, "keep": [SECOND]}


@pytest.fixture(scope="module")
def saved(tiny_bert, tmp_path_factory) -> tuple[SmartEncoder, Path]:
    """Trained by hand, the buffer too."""
    encoder = trained(tiny_bert, AdapterBlock(r=4), LateBlock(**LATE))
    encoder.head.projection.scale += torch.arange(5.0)
    return encoder, encoder.save_pretrained(tmp_path_factory.mktemp("own") / "adapter")


# -- heads


def test_an_own_head_reads_the_mixed_states(saved):
    encoder, _ = saved
    states = [torch.randn(7, 32), torch.randn(7, 32)]
    own = encoder.head.projection
    assert isinstance(own, own_parts.TwoLayerHead) and own.inner.out_features == 6
    weights = encoder.head.mix.softmax(0)
    expected = F.normalize(own(weights[0] * states[0] + weights[1] * states[1]), dim=-1)
    torch.testing.assert_close(encoder.head(states), expected, atol=1e-6, rtol=0)


def test_an_own_head_is_verified_and_reloaded_with_its_options_and_buffers(saved):
    encoder, folder = saved
    report = verify(encoder, folder, ["a query"], tiny.TEXTS)
    assert report["largest_token_difference"] <= 1e-6
    fresh = SmartEncoder.from_pretrained(folder, device="cpu", trust_extensions=NAMES)
    assert fresh.late == encoder.late and fresh.late.head == Component(MINE["type"], {"inner": 6})
    ours, theirs = encoder.encode_documents(tiny.TEXTS), fresh.encode_documents(tiny.TEXTS)
    assert ours.tokens.lengths.tolist() == theirs.tokens.lengths.tolist()
    torch.testing.assert_close(theirs.tokens.values, ours.tokens.values, atol=1e-6, rtol=0)
    assert json.loads((folder / SETTINGS).read_text())["late"]["head"] == MINE


@pytest.mark.parametrize("trusted", [(), ["own_parts:NotTheseWords"], NAMES[:1], NAMES[1:], "own_parts:TwoLayerHead."])
def test_a_folder_that_names_other_packages_is_refused_before_their_code_is_imported(saved, trusted, monkeypatch):
    monkeypatch.delitem(sys.modules, "own_parts")
    with pytest.raises(AdapterError, match=r"late\.(head|keep) is 'own_parts:.*trust_extensions=\[NAME\].*nothing was"):
        SmartEncoder.from_pretrained(saved[1], device="cpu", trust_extensions=trusted)
    if NAMES[0] not in trusted:
        assert "own_parts" not in sys.modules


def test_a_head_that_is_not_installed_is_named(saved, tmp_path):
    folder, name = tmp_path / "adapter", "nobody.here:Head"
    saved[0].save_pretrained(folder)
    settings = json.loads((folder / SETTINGS).read_text())
    settings["late"]["head"] = name
    (folder / SETTINGS).write_text(json.dumps(settings))
    with pytest.raises(AdapterError, match=r"late.head: the head 'nobody.here:Head' cannot be imported"):
        SmartEncoder.from_pretrained(folder, device="cpu", trust_extensions=[name, NAMES[1]])


def test_a_tensor_of_the_head_that_is_missing_is_refused(saved, tmp_path):
    from adapters import rewrite

    saved[0].save_pretrained(tmp_path)
    rewrite(tmp_path / HEAD, lambda tensors: {name: t for name, t in tensors.items() if name != "scale"})
    with pytest.raises(AdapterError, match="the head belongs to other settings"):
        SmartEncoder.from_pretrained(tmp_path, device="cpu", trust_extensions=NAMES)


@pytest.mark.parametrize(
    ("head", "told"),
    [
        ("own_parts:WideHead", r"returned \[\d+, 6\] for states .*; return a tensor \[\d+, 5\]"),
        ("own_parts:NoModule", "is not a torch.nn.Module"),
        ("own_parts:NoArguments", "does not accept the 2 arguments that every head gets; compare it with the example"),
        ("own_parts:Nothing", "own_parts has no Nothing"),
        (
            {"type": "own_parts:TwoLayerHead", "width": 3},
            "does not accept its options .*width.*; its options are inner",
        ),
        ("liner", "there is no head 'liner'; write linear"),
    ],
)
def test_a_head_that_does_not_work_is_named(head, told, tiny_bert):
    with pytest.raises(ExtensionError, match=told):
        SmartEncoder(str(tiny_bert), late=LateBlock(head=head, dim=5), device="cpu").encode_documents(["a chart"])


# -- token filters


@pytest.fixture(scope="module")
def kept_of(tiny_bert):
    def find(*keep, drop=()) -> list[str]:
        encoder = SmartEncoder(str(tiny_bert), late=LateBlock(keep=list(keep), drop=list(drop)), device="cpu")
        features = encoder.preprocess(["the chart, name of the company?"], "document")
        ids = features["input_ids"][0]
        return encoder.tokenizer.convert_ids_to_tokens(ids[encoder.keep(ids[None], features["attention_mask"])[0]])

    return find


def test_filters_are_joined_by_and(kept_of):
    assert kept_of() == ["the", "chart", ",", "name", "of", "the", "company", "?"]
    assert kept_of(SECOND) == ["the", ",", "of", "company"]  # [CLS] stands at 0
    assert kept_of(SECOND, "no_punctuation") == ["the", "of", "company"]
    words = {"type": "own_parts:NotTheseWords", "words": ["the", "of"]}
    assert kept_of(words) == ["chart", ",", "name", "company", "?"]
    assert kept_of(SECOND, words, "no_punctuation") == ["company"]


def test_drop_punctuation_of_older_recipes_is_the_filter_no_punctuation(kept_of):
    assert (
        kept_of(drop=["punctuation"]) == kept_of("no_punctuation") == ["the", "chart", "name", "of", "the", "company"]
    )


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("own_parts:mask_itself", r"returned torch.int64 \[1, 3\]; return a torch.bool tensor \[1, 3\]"),
        ("own_parts:one_row", r"returned torch.bool \[3\]; return a torch.bool tensor \[1, 3\]"),
        ("punctuation", "there is no token filter 'punctuation'; write no_punctuation"),
        ({"type": "own_parts:every_second", "last": 1}, "does not accept its options"),
    ],
)
def test_a_filter_that_does_not_work_is_named(name, told, tiny_bert):
    with pytest.raises(ExtensionError, match=told):
        SmartEncoder(str(tiny_bert), late=LateBlock(keep=[name]), device="cpu").encode_documents(["chart"])


# -- recipes


RECIPE = """\
model:
  base: {base}
late:
  dim: 5
  head: {head}
  keep: {keep}
data:
  path: {data}
"""


def recipe_of(tmp_path, base, data, head="linear", keep="[]") -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE.format(base=base, data=data, head=head, keep=keep))
    return path


def test_a_recipe_names_them_with_their_options_and_reads_back(tmp_path, tiny_bert, triples_file):
    path = recipe_of(tmp_path, tiny_bert, triples_file, json.dumps(MINE), json.dumps([SECOND, "no_punctuation"]))
    recipe = read(path)
    assert recipe.late.head == Component("own_parts:TwoLayerHead", {"inner": 6})
    assert plain(recipe)["late"]["keep"] == [SECOND, "no_punctuation"]
    check(recipe)


@pytest.mark.parametrize(
    ("part", "value", "told"),
    [
        ("head", "liner", "line 5: late.head: there is no head 'liner'; write linear"),
        ("head", "own_parts:Nothing", "line 5: late.head: .*own_parts has no Nothing"),
        ("head", "{type: own_parts:TwoLayerHead, width: 3}", "line 5: late.head: .*; its options are .*inner"),
        ("head", "{type: own_parts:TwoLayerHead, inner: two}", "line 5: late.head: own_parts:TwoLayerHead fails with"),
        ("head", "own_parts:WideHead", r"line 5: late.head: .* returned \[2, 6\]"),
        ("head", "[linear]", "line 5: late.head: must be a name, package.module:Class or {type: NAME, option: value}"),
        ("keep", "[no_punct]", "line 6: late.keep: there is no token filter 'no_punct'; write no_punctuation"),
        ("keep", "[{type: own_parts:every_second, last: 1}]", "line 6: late.keep: .*does not accept its options"),
    ],
)
def test_what_cannot_work_is_told_before_a_model_is_loaded(part, value, told, tmp_path, tiny_bert, triples_file):
    path = recipe_of(tmp_path, tiny_bert, triples_file, **{part: value})
    with pytest.raises(RecipeError, match=told):
        check(read(path))


# -- exports


def test_a_head_that_multi_vector_encoder_has_no_module_for_is_exported_as_merged_alone(saved, tiny_bert, tmp_path):
    encoder, folder = saved
    options = {"device": "cpu", "trust_extensions": NAMES}
    single = trained(tiny_bert, AdapterBlock(r=4), LateBlock(head=MINE, dim=5)).save_pretrained(tmp_path / "single")
    with pytest.raises(PublishError, match="own_parts:TwoLayerHead .*has no module for it; export it as merged"):
        export(single, "multi-vector", tmp_path / "out", **options)
    with pytest.raises(PublishError, match=r"late.head is 'own_parts:TwoLayerHead'.*trust_extensions=\[NAME\]"):
        export(folder, "merged", tmp_path / "out", device="cpu")
    merged = SmartEncoder.from_pretrained(export(folder, "merged", tmp_path / "merged", **options), **options)
    ours, theirs = encoder.encode_documents(tiny.TEXTS), merged.encode_documents(tiny.TEXTS)
    torch.testing.assert_close(theirs.tokens.values, ours.tokens.values, atol=1e-4, rtol=0)


def test_filters_by_id_are_exported_and_others_refused(tiny_bert, tmp_path):
    words = {"type": "own_parts:NotTheseWords", "words": ["the", "of"]}
    by_id = trained(tiny_bert, AdapterBlock(r=4), LateBlock(keep=[words])).save_pretrained(tmp_path / "by_id")
    export(by_id, "multi-vector", tmp_path / "words", device="cpu", trust_extensions=[words["type"]])
    by_place = trained(tiny_bert, AdapterBlock(r=4), LateBlock(keep=[SECOND])).save_pretrained(tmp_path / "by_place")
    with pytest.raises(PublishError, match="late.keep own_parts:every_second looks at more than ids"):
        export(by_place, "multi-vector", tmp_path / "no", device="cpu", trust_extensions=NAMES)
