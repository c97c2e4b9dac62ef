"""Bases are checked as adapters are: what could run code, hang or lead elsewhere is refused before it is read, and a
base whose weights are not all there is refused in place of being filled with random numbers."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertModel

from smart_train.core.errors import BaseNotFound
from smart_train.models import base_loading
from smart_train.models.base_config import read_base
from smart_train.models.encoder import SmartEncoder
from smart_train.models.safe_loading import check_base_folder


@pytest.fixture
def base(tiny_bert, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_bert, tmp_path / "base"))


class Mine:
    """Unpickled, it writes the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "ran")


def unpickles(name: str):
    def spoil(base: Path, ran: Path) -> None:
        (base / name).write_bytes(pickle.dumps(Mine(ran)))

    return spoil


def only_a_pickle(base: Path, ran: Path) -> None:
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Mine(ran)))


def dense_pickle(base: Path, ran: Path) -> None:
    modules = json.loads((base / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (base / "modules.json").write_text(json.dumps(modules))
    (base / "2_Dense").mkdir()
    (base / "2_Dense" / "config.json").write_text('{"in_features": 32, "out_features": 8, "bias": true}')
    (base / "2_Dense" / "pytorch_model.bin").write_bytes(pickle.dumps(Mine(ran)))


def link(name: str, target: str):
    def spoil(base: Path, ran: Path) -> None:
        away = base.parent / "away"
        away.mkdir()
        (away / "config.json").write_text("{}")
        (base / name).unlink(missing_ok=True)
        (base / name).symlink_to(target.format(away=away))

    return spoil


def fifo(name: str):
    def spoil(base: Path, ran: Path) -> None:
        (base / name).unlink(missing_ok=True)
        os.mkfifo(base / name)

    return spoil


def peft(base: Path, ran: Path) -> None:
    (base / "adapter_config.json").write_text('{"base_model_name_or_path": "stranger/other", "peft_type": "LORA"}')


def stored(name: str, **changes):
    def spoil(base: Path, ran: Path) -> None:
        path = base / name
        path.write_text(json.dumps({**(json.loads(path.read_text()) if path.is_file() else {}), **changes}))

    return spoil


def module_class(base: Path, ran: Path) -> None:
    """sentence-transformers imports such a class from a local folder without trust_remote_code."""
    modules = json.loads((base / "modules.json").read_text())
    modules[1] |= {"type": "evil.Evil"}
    (base / "modules.json").write_text(json.dumps(modules))
    (base / "evil.py").write_text(f"open({str(ran)!r}, 'w').write('ran')\nclass Evil:\n    pass\n")


def module_elsewhere(base: Path, ran: Path) -> None:
    modules = json.loads((base / "modules.json").read_text())
    modules[1] |= {"path": "../elsewhere"}
    (base / "modules.json").write_text(json.dumps(modules))


def cut_weights(base: Path, ran: Path) -> None:
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def pickle_as_safetensors(base: Path, ran: Path) -> None:
    (base / "model.safetensors").write_bytes(pickle.dumps(Mine(ran)))


HOSTILE = {
    "weights are a pickle": (only_a_pickle, "pytorch_model.bin is a pickle"),
    "a pickled vocabulary": (unpickles("vocab.pkl"), "vocab.pkl is a pickle"),
    "a pickle of torch": (unpickles("model.pt"), "model.pt is a pickle"),
    "a pickled array": (unpickles("words.npy"), "words.npy is a pickle"),
    "a pickle in a module": (dense_pickle, "2_Dense/pytorch_model.bin is a pickle"),
    "a pickle under another name": (pickle_as_safetensors, "not a whole safetensors file"),
    "weights cut short": (cut_weights, "not a whole safetensors file"),
    "a linked file": (link("tokenizer_config.json", "{away}/config.json"), "is a link to"),
    "a linked folder": (link("extra", "{away}"), "is a link to"),
    "a broken link": (link("extra.json", "{away}/nothing"), "is a link to"),
    "a pipe as configuration": (fifo("config.json"), "config.json is neither a file nor a folder"),
    "a pipe as weights": (fifo("model.safetensors"), "model.safetensors is neither a file nor a folder"),
    "a pipe as list of modules": (fifo("modules.json"), "modules.json is neither a file nor a folder"),
    "an adapter": (peft, "adapter over another base"),
    "a stored permission": (
        stored("sentence_bert_config.json", model_args={"trust_remote_code": True}),
        "trust_remote",
    ),
    "a kernel of the Hub": (stored("config.json", attn_implementation="stranger/kernel"), "attn_implementation"),
    "a class of its own": (module_class, "class evil.Evil"),
    "a module elsewhere": (module_elsewhere, "outside of this folder"),
    "a file that is no JSON": (lambda base, ran: (base / "config.json").write_text("{"), "is not JSON"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_base_is_refused_before_anything_of_it_is_read(base, tmp_path, kind):
    spoil, message = HOSTILE[kind]
    ran = tmp_path / "ran"
    spoil(base, ran)
    for read in (read_base, lambda place: SmartEncoder(place, device="cpu"), SmartEncoder.from_pretrained):
        with pytest.raises(BaseNotFound, match=message) as error:
            read(str(base))
        assert "another base in model.base" in str(error.value)
    assert not ran.exists()


def torch_weights_beside(base: Path) -> None:
    (base / "pytorch_model.bin").write_bytes(b"never read")


def other_formats(base: Path) -> None:
    for name in ("openvino/openvino_model.bin", "onnx/model.onnx", "tf_model.h5", "training_args.bin"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_bytes(b"never read")


def unused_code(base: Path) -> None:
    (base / "modeling_mine.py").write_text("raise SystemExit('this ran')\n")
    stored("config.json", auto_map={"AutoModel": "modeling_mine.Mine"})(base, base)


def a_repository(base: Path) -> None:
    (base / ".git" / "hooks").mkdir(parents=True)
    (base / ".git" / "hooks" / "a.py").write_text("x")


def linked_itself(base: Path) -> None:
    base.rename(base.parent / "elsewhere")
    base.symlink_to(base.parent / "elsewhere")


@pytest.mark.parametrize("add", [torch_weights_beside, other_formats, unused_code, a_repository, linked_itself])
def test_what_models_are_often_stored_with_is_let_be(base, add):
    right = SmartEncoder(str(base), device="cpu").encode_documents(["a harbour"]).pooled
    add(base)
    assert torch.equal(SmartEncoder(str(base), device="cpu").encode_documents(["a harbour"]).pooled, right)


def test_a_snapshot_of_the_hubs_cache_is_a_base(base, tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0", tmp_path / "models--a--b" / "blobs"
    shutil.copytree(base, snapshot)
    blobs.mkdir()
    shutil.move(snapshot / "model.safetensors", blobs / "abc")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    check_base_folder(snapshot)
    assert SmartEncoder(str(snapshot), device="cpu").encode_documents(["a"]).pooled.shape[0] == 1


# Missing tensors ------------------------------------------------------------------------------------------------------


def without(base: Path, *parts: str) -> int:
    path = base / "model.safetensors"
    tensors = load_file(path)
    kept = {name: tensor for name, tensor in tensors.items() if not any(part in name for part in parts)}
    save_file(kept, path, {"format": "pt"})
    return len(tensors) - len(kept)


@pytest.mark.parametrize(
    "part",
    ["word_embeddings", "layer.1.", "attention.self.query.weight", "LayerNorm.bias", "output.dense", "encoder"],
)
def test_missing_tensors_are_refused_and_counted(base, part):
    count = without(base, part)
    assert count > 0
    with pytest.raises(BaseNotFound, match=f"{count} of [0-9]+ of the model's tensors are missing .* random in part"):
        SmartEncoder(str(base), device="cpu")


@pytest.mark.parametrize(
    "kept", [["linear.weight"], ["linear.bias"], [], ["linear.weight", "linear.bias", "extra"], None]
)
def test_a_dense_module_must_be_whole_too(base, kept):
    """kept: the tensors of its file; None = there is no file."""
    modules = json.loads((base / "modules.json").read_text())
    modules.insert(2, {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (base / "modules.json").write_text(json.dumps(modules))
    (base / "2_Dense").mkdir()
    activation = "torch.nn.modules.activation.Tanh"
    config = {"in_features": 32, "out_features": 8, "bias": True, "activation_function": activation}
    (base / "2_Dense" / "config.json").write_text(json.dumps(config))
    whole = {"linear.weight": torch.zeros(8, 32), "linear.bias": torch.zeros(8), "extra": torch.zeros(2)}
    if kept is not None:
        save_file({name: whole[name] for name in kept}, base / "2_Dense" / "model.safetensors")
    with pytest.raises(BaseNotFound, match="sentence-transformers cannot load it: .*; download or copy it again"):
        SmartEncoder(str(base), device="cpu")


def test_renamed_tensors_are_missing_tensors(base):
    path = base / "model.safetensors"
    save_file({f"other.{name}x": tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(BaseNotFound, match="tensors are missing"):
        SmartEncoder(str(base), device="cpu")


def test_a_masked_language_model_without_a_pooler_is_a_base(base):
    """Its pooler is drawn at random, and no vector depends on it."""
    config = BertConfig.from_pretrained(base)
    model = BertForMaskedLM(config)
    model.save_pretrained(base)
    assert not any("pooler" in name for name in load_file(base / "model.safetensors"))
    first, second = (SmartEncoder(str(base), device="cpu").encode_documents(["a harbour"]).pooled for _ in range(2))
    assert torch.equal(first, second)


def test_loading_elsewhere_is_as_it_was(base):
    before = BertModel.from_pretrained
    SmartEncoder(str(base), device="cpu")
    without(base, "layer.1.")
    with pytest.raises(BaseNotFound):
        SmartEncoder(str(base), device="cpu")
    assert BertModel.from_pretrained == before
    assert isinstance(BertModel.from_pretrained(base), BertModel)


PIXELS = {
    "side": ("size", {"height": 10**6, "width": 224}),
    "least pixels": ("min_pixels", 10**12),
    "shortest edge": ("size", {"shortest_edge": 10**12, "longest_edge": 10**13}),
    "crop": ("crop_size", {"height": 224, "width": 10**9}),
    "a number alone": ("size", 10**9),
    "infinite": ("size", {"shortest_edge": float("inf")}),
}


@pytest.mark.parametrize("key", ["patch_size", "merge_size", "temporal_patch_size"])
def test_a_processor_of_other_patches_than_the_model_takes_is_refused(key, tiny_qwen3vl, tmp_path):
    base = Path(shutil.copytree(tiny_qwen3vl, tmp_path / "base"))
    path = base / "processor_config.json"
    stored = json.loads(path.read_text())
    stored["image_processor"][key] = 10**6
    path.write_text(json.dumps(stored))
    with pytest.raises(BaseNotFound, match=f"its image processor's {key} is 1,000,000, and its model's "):
        SmartEncoder(str(base), device="cpu")


ODD_PROCESSOR = [
    *({key: value} for key in ("patch_size", "merge_size", "temporal_patch_size") for value in (None, 1.5, "x", {})),
    *({"size": value} for value in (-1, {"height": 3, "width": 3}, {"shortest_edge": -5, "longest_edge": -5})),
    *({"min_pixels": "x"}, {"max_pixels": []}, {"image_std": [1]}, {"rescale_factor": {}}, {"resample": 10**12}),
]


@pytest.mark.parametrize("values", ODD_PROCESSOR, ids=str)
def test_a_processor_that_reads_no_picture_is_told_with_its_base_at_load(values, tiny_qwen3vl, tmp_path):
    base = Path(shutil.copytree(tiny_qwen3vl, tmp_path / "base"))
    path = base / "processor_config.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "image_processor": {**stored["image_processor"], **values}}))
    with pytest.raises(BaseNotFound, match=str(base)):
        SmartEncoder(str(base), device="cpu")


@pytest.mark.parametrize(("key", "value"), PIXELS.values(), ids=PIXELS)
@pytest.mark.parametrize("family", ["qwen", "other"])
def test_images_larger_than_memory_are_refused_before_the_weights_are_loaded(
    key, value, family, tiny_qwen3vl, tmp_path, monkeypatch
):
    base = Path(shutil.copytree(tiny_qwen3vl, tmp_path / "base"))
    path = base / "processor_config.json"
    stored = json.loads(path.read_text())
    stored["image_processor"][key] = value
    if family == "other":
        del stored["image_processor"]["merge_size"]
    path.write_text(json.dumps(stored))
    monkeypatch.setattr(base_loading, "SentenceTransformer", None)  # not reached
    for read in (read_base, SmartEncoder):
        with pytest.raises(BaseNotFound, match=f"processor_config.json: {key}.* makes images of more than 268,435,456"):
            read(str(base))


ODD_TOKENIZER = [{"model_max_length": -1}, {"model_max_length": 1.5}, {"pad_token": None}, {"padding_side": 7}]


@pytest.mark.parametrize("values", ODD_TOKENIZER, ids=str)
def test_a_tokenizer_that_reads_no_text_is_told_with_its_base(values, base):
    path = base / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(BaseNotFound, match=str(base)):
        SmartEncoder(str(base), device="cpu")


@pytest.mark.parametrize("shape", [[1, 32], [], [10**12], [32, 1]])
def test_weights_whose_header_gives_another_shape_are_told_with_their_base(shape, base):
    path = base / "model.safetensors"
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    name = next(key for key, value in header.items() if key != "__metadata__" and value["shape"] == [32])
    header[name]["shape"] = shape
    changed = json.dumps(header).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + raw[end:])
    with pytest.raises(BaseNotFound, match=str(base)):
        SmartEncoder(str(base), device="cpu")
