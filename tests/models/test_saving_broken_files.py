"""Files that are broken, of another model or of a failed run are refused before the base is loaded, and what was in
memory is as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from smart_train.config.schema import AdapterBlock, LateBlock
from smart_train.core.errors import AdapterError, BaseNotFound
from smart_train.models import encoder
from smart_train.models.encoder import SmartEncoder
from smart_train.models.lora import WEIGHTS, load_lora, load_lora_weights, merge_lora
from smart_train.models.safe_loading import HEAD, SETTINGS
from smart_train.models.saving import load_head
from smart_train.models.verification import verify

FULL = "model.safetensors"


def encoder_of(base: Path, kind: str = "lora", trained: bool = True) -> SmartEncoder:
    adapter = AdapterBlock(kind=kind, r=4)  # type: ignore[arg-type]
    encoder = SmartEncoder(str(base), late=LateBlock(head="linear", dim=12), adapter=adapter, device="cpu")
    for parameter in encoder.parameters():
        if parameter.requires_grad and trained:
            parameter.data += 0.1
    return encoder


@pytest.fixture(scope="module")
def sound(tiny_bert, tmp_path_factory) -> Path:
    return encoder_of(tiny_bert).save_pretrained(tmp_path_factory.mktemp("sound") / "adapter")


@pytest.fixture
def folder(sound, tmp_path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "adapter"))


def rewrite(path: Path, change) -> None:
    tensors = {name: tensor.clone().contiguous() for name, tensor in change(load_file(path)).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def first(change):
    """Changes a file's first tensor."""
    return lambda path: rewrite(path, lambda tensors: {**tensors, min(tensors): change(tensors[min(tensors)])})


def one_number(value: float):
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[1] = value
        return tensor

    return change


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


BROKEN = {
    "cut short": (cut, "is not a whole safetensors file"),
    "empty": (lambda path: path.write_bytes(b""), "is not a whole safetensors file"),
    "whole numbers": (first(lambda t: t.to(torch.int8)), "is int8, expected float32, bfloat16 or float16"),
    "double": (first(torch.Tensor.double), "is float64, expected"),
    "NaN": (first(one_number(float("nan"))), "1 of [0-9]+ numbers of .* are NaN"),
    "infinity": (first(one_number(float("inf"))), "are NaN or infinite"),
}
WRONG = {
    "a key missing": lambda path: rewrite(path, lambda t: {n: v for n, v in t.items() if n != min(t)}),
    "a key renamed": lambda path: rewrite(path, lambda t: {f"module.{n}": v for n, v in t.items()}),
    "a key too many": lambda path: rewrite(path, lambda t: {**t, "more": torch.ones(2)}),
    "another size": first(lambda t: t[:2]),
}


@pytest.mark.parametrize("file", [WEIGHTS, HEAD])
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_told_before_the_base_is_loaded(what, file, folder, monkeypatch):
    spoil, told = BROKEN[what]
    spoil(folder / file)
    monkeypatch.setattr("smart_train.models.encoder.load_base", None)  # loading the base would be another error
    with pytest.raises(AdapterError, match=told) as error:
        SmartEncoder.from_pretrained(folder, device="cpu")
    assert file in str(error.value) and "nothing was loaded" in str(error.value)


@pytest.mark.parametrize("what", [*BROKEN, *WRONG])
def test_an_encoder_is_as_it_was_after_a_refused_load(what, folder, tiny_bert):
    spoil = BROKEN[what][0] if what in BROKEN else WRONG[what]
    spoil(folder / WEIGHTS)
    spoil(folder / HEAD)
    encoder = encoder_of(tiny_bert)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    for refused in (lambda: load_lora_weights(encoder.backbone, folder), lambda: load_head(encoder, folder)):
        with pytest.raises(AdapterError):
            refused()
    after = encoder.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_tensor_that_is_there_twice_is_refused_and_not_chosen(folder):
    rewrite(folder / WEIGHTS, lambda t: {**t, min(t).removeprefix("base_model.model."): t[min(t)] + 1})
    with pytest.raises(AdapterError, match="1 of [0-9]+ tensors are there twice"):
        SmartEncoder.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("what", WRONG)
def test_a_plain_base_has_no_lora_after_a_refused_one(what, folder, tiny_bert):
    WRONG[what](folder / WEIGHTS)
    model = SentenceTransformer(str(tiny_bert), device="cpu")[0].model
    model.embeddings.requires_grad_(False)
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    with pytest.raises(AdapterError, match="nothing was loaded"):
        load_lora(model, folder)
    after = {name: (p.requires_grad, p) for name, p in model.named_parameters()}
    assert before.keys() == after.keys() and not hasattr(model, "peft_config")
    assert all(before[n][0] == after[n][0] and torch.equal(before[n][1], after[n][1]) for n in before)
    assert not model._hf_peft_config_loaded


@pytest.mark.parametrize("what", ["a key missing", "a key renamed", "a key too many"])
def test_whole_weights_with_other_keys_are_refused_and_never_drawn_at_random(what, tiny_bert, tmp_path):
    folder = encoder_of(tiny_bert, "full").save_pretrained(tmp_path / "full")
    SmartEncoder.from_pretrained(folder, device="cpu")
    WRONG[what](folder / FULL)
    with pytest.raises(AdapterError, match=r"of the model's tensors are missing \(.*not this model's"):
        SmartEncoder.from_pretrained(folder, device="cpu")


def test_whole_weights_cut_short_are_refused(tiny_bert, tmp_path):
    folder = encoder_of(tiny_bert, "full").save_pretrained(tmp_path / "full")
    cut(folder / FULL)
    with pytest.raises(AdapterError, match=f"{FULL} is not a whole safetensors file"):
        SmartEncoder.from_pretrained(folder, device="cpu")


SETTINGS_BROKEN = {
    "no JSON": (lambda text: text[:-30], "is not JSON"),
    "no block": (lambda text: text.replace('"late": {', '"earlier": {'), "late missing"),
    "a key of a later version": (lambda text: text.replace('"drop"', '"dropped"'), "late has dropped"),
    "no dtype": (lambda text: text.replace('"dtype": "auto"', '"dtype": "load"'), "model.dtype must be one of"),
}


@pytest.mark.parametrize("what", SETTINGS_BROKEN)
def test_settings_that_are_broken_are_told_by_file_and_key(what, folder):
    change, told = SETTINGS_BROKEN[what]
    text = (folder / SETTINGS).read_text()
    assert change(text) != text
    (folder / SETTINGS).write_text(change(text))
    with pytest.raises(AdapterError, match=told) as error:
        SmartEncoder.from_pretrained(folder, device="cpu")
    assert SETTINGS in str(error.value)


@pytest.mark.parametrize("file", ["modules.json", "1_Pooling/config.json"])
def test_a_folder_that_plain_sentence_transformers_would_pool_otherwise_is_not_verified(
    file, tiny_modernbert, tmp_path
):
    """Without modules.json it takes the mean, and says nothing: this base pools its first token."""
    encoder = encoder_of(tiny_modernbert)
    folder = encoder.save_pretrained(tmp_path / "adapter")
    if file == "modules.json":
        (folder / file).unlink()
    else:
        config = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**config, "pooling_mode": "mean"}))
    plain = SentenceTransformer(str(folder), device="cpu").encode(tiny.TEXTS, convert_to_tensor=True)
    ours = encoder.encode_documents(tiny.TEXTS).pooled
    assert (torch.nn.functional.normalize(plain, dim=-1) - ours).abs().max() > 0.01
    with pytest.raises(AdapterError, match="with cls pooling, found"):
        verify(encoder, folder, ["a query"], tiny.TEXTS)


def test_the_folder_of_a_head_alone_is_none_that_plain_sentence_transformers_reads(tiny_bert, tmp_path):
    """It would have to make up the base."""
    folder = encoder_of(tiny_bert, "frozen").save_pretrained(tmp_path / "frozen")
    with pytest.raises((OSError, ValueError)):
        SentenceTransformer(str(folder), device="cpu")


# Sizes and numbers that a file does not hold ------------------------------------------------------------------------

HUGE = 10**9


def settings(block: str, **values):
    def change(folder: Path) -> None:
        path = folder / SETTINGS
        stored = json.loads(path.read_text())
        place = stored[block] if block else stored
        place.update(values)
        path.write_text(json.dumps(stored))
        if block == "adapter":  # both files that give rank and alpha
            peft = json.loads((folder / "adapter_config.json").read_text())
            both = {"r": place["r"], "lora_alpha": place["alpha"]}
            (folder / "adapter_config.json").write_text(json.dumps({**peft, **both}))

    return change


def config(name: str, **values):
    def change(folder: Path) -> None:
        stored = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**stored, **values}))

    return change


SIZES = {
    "rank": (settings("adapter", r=HUGE), r"adapter\.r is 1,000,000,000, but .*lora_A.* has rank 4"),
    "rank below": (settings("adapter", r=2), r"adapter\.r is 2, but .* has rank 4"),
    "alpha": (settings("adapter", alpha=10**42), "make an update that is infinite in float32"),
    "token width": (settings("late", dim=HUGE), r"late\.dim and hidden_size make linear\.weight \[1000000000, "),
    "hidden size": (settings("", hidden_size=HUGE), r"hidden_size make .*linear\.weight \[12, 1000000000\]"),
    "no hidden size": (settings("", hidden_size=-1), "hidden_size is -1, expected a number above 0"),
    "token width of no head": (
        settings("late", dim=HUGE, head={"type": "none"}),
        r"late\.dim is 1,000,000,000, and head none has",
    ),
    "shorter widths": (settings("late", matryoshka=[HUGE]), r"late\.matryoshka is \[1000000000\], and token vectors"),
    "layer": (settings("late", layer=HUGE), r"smart_train.json: late.layer: is 1000000000, but the model has layers 0"),
    "own head": (
        settings("late", dim=10**12, head={"type": "own_parts:TwoLayerHead"}),
        "late.dim is 1,000,000,000,",
    ),
}


@pytest.mark.parametrize(("change", "told"), SIZES.values(), ids=SIZES)
def test_sizes_in_the_settings_that_the_file_does_not_have_are_refused_before_anything_is_made(
    change, told, folder, monkeypatch
):
    change(folder)
    monkeypatch.setattr(encoder, "load_base", lambda *args: pytest.fail("the base was loaded"))
    with pytest.raises(AdapterError, match=told):
        SmartEncoder.from_pretrained(folder, device="cpu", trust_extensions=["own_parts:TwoLayerHead"])


ODD = (-1, 10**12, 1.5, "x", [], [1], {"a": 1}, True, None)


@pytest.mark.parametrize("key", ["base_model_name_or_path", "lora_dropout", "target_modules", "task_type", "peft_type"])
def test_odd_values_in_adapter_config_are_told_with_the_file(key, folder):
    told = 0
    for value in ODD:
        config("adapter_config.json", **{key: value})(folder)
        try:
            SmartEncoder.from_pretrained(folder, device="cpu")
        except AdapterError as error:
            assert f"{folder}/adapter_" in str(error)
            told += 1
    assert told >= 4, "a rate of dropout may be true, and a task is no part of the vectors"


@pytest.mark.parametrize("content", ["1", '"x"', "[[]]", "[{}]", "NaN", "null", "[" * 100_000])
@pytest.mark.parametrize("name", ["1_Pooling/config.json", "adapter_config.json", "smart_train.json", "modules.json"])
def test_files_of_an_adapter_that_hold_no_block_are_told(name, content, folder):
    (folder / name).write_text(content)
    with pytest.raises(AdapterError, match=str(folder)):
        SmartEncoder.from_pretrained(folder, device="cpu")


WHOLE_SIZES = {
    "hidden size": config("config.json", hidden_size=HUGE),
    "vocabulary": config("config.json", vocab_size=HUGE),
    "feed-forward width": config("config.json", intermediate_size=HUGE),
    "positions": config("config.json", max_position_embeddings=HUGE),
    "layers": config("config.json", num_hidden_layers=HUGE),
    "token types": config("config.json", type_vocab_size=HUGE),
}


@pytest.mark.parametrize("change", WHOLE_SIZES.values(), ids=WHOLE_SIZES)
@pytest.mark.parametrize("kind", ["adapter", "base"])
def test_sizes_in_the_config_of_whole_weights_are_compared_with_them(change, kind, tiny_bert, tmp_path):
    folder = tmp_path / "whole"
    if kind == "adapter":
        encoder_of(tiny_bert, "full").save_pretrained(folder)
    else:
        shutil.copytree(tiny_bert, folder)
    change(folder)
    with pytest.raises(ValueError, match=r"config\.json: \w+ is 1,000,000,000, but the weights beside it have"):
        SmartEncoder.from_pretrained(folder, device="cpu") if kind == "adapter" else SmartEncoder(str(folder))


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), "float32"), (-1e5, "float16"), (3.4e38, "bfloat16")])
def test_a_base_whose_weights_are_no_numbers_in_the_dtype_of_use_is_refused(value, dtype, tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "base")
    large(value)(tmp_path / "base" / FULL)
    with pytest.raises(BaseNotFound, match=f"are NaN or infinite in {dtype}"):
        SmartEncoder(str(tmp_path / "base"), model={"dtype": dtype})


def large(value: float):
    return first(one_number(value))


OVERFLOWS = {
    "infinity in LoRA": (WEIGHTS, large(float("inf"))),
    "minus infinity in LoRA": (WEIGHTS, large(float("-inf"))),
    "NaN in LoRA": (WEIGHTS, large(float("nan"))),
    "infinity in the head": (HEAD, large(float("inf"))),
    "NaN in the head": (HEAD, large(float("nan"))),
}


@pytest.mark.parametrize(("name", "change"), OVERFLOWS.values(), ids=OVERFLOWS)
def test_numbers_that_are_none_are_refused_at_load(name, change, folder):
    change(folder / name)
    with pytest.raises(AdapterError, match=f"{name}.*are NaN or infinite"):
        SmartEncoder.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize(("value", "dtype"), [(float("inf"), "float32"), (float("nan"), "float32"), (1e6, "float16")])
def test_whole_weights_that_are_no_numbers_in_the_dtype_of_use_are_refused(value, dtype, tiny_bert, tmp_path):
    encoder_of(tiny_bert, "full").save_pretrained(tmp_path)
    large(value)(tmp_path / FULL)
    with pytest.raises(AdapterError, match=f"are NaN or infinite in {dtype}"):
        SmartEncoder.from_pretrained(tmp_path, device="cpu", dtype=dtype)


@pytest.mark.parametrize("part", ["lora_A", "lora_B", "head."])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_saved_and_what_was_saved_stays(part, value, tiny_bert, tmp_path):
    encoder = encoder_of(tiny_bert)
    encoder.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    tensor = next(tensor for name, tensor in encoder.named_parameters() if part in name)
    tensor.data.view(-1)[0] = value
    with pytest.raises(AdapterError, match="are NaN or infinite in float32.*nothing was written there"):
        encoder.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_sum_that_is_too_large_for_the_dtype_is_not_merged(tiny_bert):
    encoder = encoder_of(tiny_bert)
    encoder.backbone.half()
    for name, parameter in encoder.backbone.named_parameters():
        if "lora_" in name:
            parameter.data = torch.full_like(parameter.data, 100.0, dtype=torch.float32)
    with pytest.raises(AdapterError, match="are NaN or infinite in float16"):
        merge_lora(encoder.backbone)
