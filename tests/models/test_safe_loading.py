"""What is refused before anything is read: code, pickles, links and paths that lead elsewhere; and proof that none ran.

Every folder here would run code or read elsewhere if a loader took it: the code writes a file of that name."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import tiny
import torch

from smart_train.config.schema import AdapterBlock, LateBlock
from smart_train.core.errors import AdapterError
from smart_train.models.encoder import SmartEncoder
from smart_train.models.lora import CONFIG, WEIGHTS
from smart_train.models.safe_loading import HEAD, SETTINGS, check_folder


def encoder_of(base: Path, kind: str = "lora") -> SmartEncoder:
    adapter = AdapterBlock(kind=kind, r=4)  # type: ignore[arg-type]
    encoder = SmartEncoder(str(base), late=LateBlock(head="linear", dim=12), adapter=adapter, device="cpu")
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    return encoder


@pytest.fixture(scope="module")
def sound(tiny_bert, tmp_path_factory) -> Path:
    return encoder_of(tiny_bert).save_pretrained(tmp_path_factory.mktemp("sound") / "adapter")


@pytest.fixture
def folder(sound, tmp_path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "adapter"))


class Mine:
    """Unpickled, it writes the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "ran")


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_module(folder: Path, **changes) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1] |= changes
    (folder / "modules.json").write_text(json.dumps(modules))


def pickled(folder: Path, ran: Path, name: str) -> None:
    (folder / name).write_bytes(pickle.dumps(Mine(ran)))


def coded(folder: Path, ran: Path, name: str = "modeling_mine.py") -> None:
    (folder / name).write_text(f"open({str(ran)!r}, 'w').write('ran')\nclass Module: pass\n")


def foreign_class(folder: Path, ran: Path) -> None:
    (folder.parent / "modeling_mine.py").write_text(f"open({str(ran)!r}, 'w').write('ran')\n")
    edit_module(folder, type="modeling_mine.Module")


def another_models_code(folder: Path, ran: Path) -> None:
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["them/code--tok.Tok", None]})


BAD = {
    "a pickle in place of the weights": (
        lambda f, r: pickled(f, r, "adapter_model.bin"),
        "adapter_model.bin is a pickle",
    ),
    "a pickle in a module's folder": (lambda f, r: pickled(f, r, "1_Pooling/pytorch_model.bin"), "is a pickle"),
    "a head as .pt": (lambda f, r: pickled(f, r, "late_head.pt"), "late_head.pt is a pickle"),
    "Python beside it": (coded, "modeling_mine.py is code"),
    "a class from elsewhere": (foreign_class, "modeling_mine.Module"),
    "a module outside": (lambda f, r: edit_module(f, path="../outside"), "lies outside"),
    "a module at an absolute path": (lambda f, r: edit_module(f, path="/etc"), "lies outside"),
    "a module on another drive": (lambda f, r: edit_module(f, path="C:\\them"), "lies outside"),
    "a tokenizer with code": (another_models_code, "auto_map"),
    "a configuration that trusts itself": (
        lambda f, r: edit(f / "sentence_bert_config.json", model_kwargs={"trust_remote_code": True}),
        "trust_remote_code",
    ),
    "a kernel of the Hub": (
        lambda f, r: edit(f / "sentence_bert_config.json", model_kwargs={"attn_implementation": "them/kernel"}),
        "attn_implementation is 'them/kernel'",
    ),
    "code named in a module's folder": (
        lambda f, r: edit(f / "1_Pooling/config.json", auto_map={"AutoModel": "them/code--m.M"}),
        "1_Pooling/config.json: auto_map",
    ),
    "an adapter in a module's folder": (
        lambda f, r: shutil.copy(f / CONFIG, f / "1_Pooling"),
        "another base and another adapter",
    ),
    "a tokenizer of another place": (
        lambda f, r: edit(f / "sentence_bert_config.json", tokenizer_name_or_path="/them"),
        "tokenizer_name_or_path",
    ),
    "peft that maps to a library": (
        lambda f, r: edit(f / CONFIG, auto_mapping={"base_model_class": "X", "parent_library": "modeling_mine"}),
        "auto_mapping",
    ),
    "peft that imports by name": (
        lambda f, r: edit(f / CONFIG, megatron_config={"a": 1}, megatron_core="modeling_mine"),
        "megatron_",
    ),
    "peft that rewrites the base": (lambda f, r: edit(f / CONFIG, init_lora_weights="pissa"), "init_lora_weights"),
    "peft of another scale": (lambda f, r: edit(f / CONFIG, lora_alpha=64), r"has r, alpha = \(4, 64\), .* \(4, 32\)"),
    "peft of another kind": (lambda f, r: edit(f / CONFIG, peft_type="IA3"), "expected 'LORA'"),
    "peft for another base": (lambda f, r: edit(f / CONFIG, base_model_name_or_path="them/base"), "them/base"),
}


@pytest.mark.parametrize("what", BAD)
def test_it_is_refused_and_no_code_ran(what, folder, tmp_path, monkeypatch):
    spoil, told = BAD[what]
    ran = tmp_path / "ran"
    spoil(folder, ran)
    monkeypatch.syspath_prepend(tmp_path)  # what the folder names could be imported
    with pytest.raises(AdapterError, match=told.replace("\\", ".")):
        SmartEncoder.from_pretrained(folder, device="cpu")
    assert not ran.exists()


@pytest.mark.parametrize("name", [WEIGHTS, HEAD])
def test_a_pickle_under_the_name_of_the_weights_is_refused(name, folder, tmp_path):
    pickled(folder, tmp_path / "ran", name)
    with pytest.raises(AdapterError, match=f"{name} is not a whole safetensors file"):
        SmartEncoder.from_pretrained(folder, device="cpu")
    assert not (tmp_path / "ran").exists()


def test_whole_weights_beside_an_adapter_of_another_base_are_refused(sound, tiny_bert, tmp_path):
    """transformers would take the base that adapter_config.json names in their place."""
    folder = encoder_of(tiny_bert, "full").save_pretrained(tmp_path / "full")
    shutil.copy(sound / CONFIG, folder)
    with pytest.raises(AdapterError, match=rf"{CONFIG} lies there, and {SETTINGS} knows of no LoRA \(full\)"):
        SmartEncoder.from_pretrained(folder, device="cpu")
    (folder / CONFIG).unlink()
    shutil.move(folder / "model.safetensors", folder / "1_Pooling")
    with pytest.raises(AdapterError, match=r"no model\*\.safetensors there"):
        SmartEncoder.from_pretrained(folder, device="cpu")


UNKNOWN = {
    "a head": (lambda f: edit_block(f, "late", head="gated"), "late.head .*gated"),
    "tokens left out": (lambda f: edit_block(f, "late", drop=["numbers"]), "late.drop"),
    "a way of quantising": (lambda f: edit_block(f, "model", quantisation="3bit"), "model.quantisation .*3bit"),
    "a kind of adapter": (lambda f: edit_block(f, "adapter", kind="prefix"), "adapter.kind .*prefix"),
    "a layer": (lambda f: edit_block(f, "late", layer="top"), "late.layer"),
    "no processing": (lambda f: edit(f / SETTINGS, processing=None), "processing is not a block"),
    "a list as peft's file": (lambda f: (f / CONFIG).write_text("[]"), "peft_type is None, expected 'LORA'"),
    "targets that are no expression": (
        lambda f: edit(f / CONFIG, target_modules="("),
        "adapter_config.json: .*nothing",
    ),
    "an index that is none": (lambda f: (f / "model.safetensors.index.json").write_text("[]"), "expected a weight_map"),
}


def edit_block(folder: Path, block: str, **changes) -> None:
    stored = json.loads((folder / SETTINGS).read_text())
    edit(folder / SETTINGS, **{block: {**stored[block], **changes}})


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_this_version_does_not_know_is_refused_and_not_read_as_something_else(what, folder):
    spoil, told = UNKNOWN[what]
    spoil(folder)
    with pytest.raises(AdapterError, match=told):
        SmartEncoder.from_pretrained(folder, device="cpu")


def test_shards_elsewhere_are_refused(folder):
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../../base/model.safetensors"}})
    )
    with pytest.raises(AdapterError, match="the shard '../../base"):
        check_folder(folder)


@pytest.mark.parametrize("name", [WEIGHTS, SETTINGS, "1_Pooling"])
def test_a_link_is_refused_wherever_it_leads(name, folder, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.move(folder / name, moved)
    (folder / name).symlink_to(moved)
    with pytest.raises(AdapterError, match=f"{name} is a link to .*elsewhere"):
        SmartEncoder.from_pretrained(folder, device="cpu")


def cached(folder: Path, root: Path) -> Path:
    """The folder as the Hub's cache keeps it."""
    place = root / "models--me--adapter" / "snapshots" / ("0" * 40)
    (root / "models--me--adapter" / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        blob = root / "models--me--adapter" / "blobs" / f"{number:040d}"
        shutil.copy(path, blob)
        link = place / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        up = "../" * (len(link.relative_to(place).parts) + 1)
        link.symlink_to(f"{up}blobs/{blob.name}")
    return place


def test_links_of_the_hubs_cache_are_its_way_of_keeping_files(folder, tmp_path):
    expected = SmartEncoder.from_pretrained(folder, device="cpu").encode_documents(tiny.TEXTS)
    place = cached(folder, tmp_path / "hub")
    found = SmartEncoder.from_pretrained(place, device="cpu").encode_documents(tiny.TEXTS)
    assert torch.equal(found.tokens.values, expected.tokens.values)
    (place / HEAD).unlink()
    (place / HEAD).symlink_to(folder / HEAD)  # out of the cache
    with pytest.raises(AdapterError, match="is a link"):
        SmartEncoder.from_pretrained(place, device="cpu")


def test_the_folder_itself_may_be_named_by_a_link(folder, tmp_path):
    (tmp_path / "latest").symlink_to(folder)
    SmartEncoder.from_pretrained(tmp_path / "latest", device="cpu")


def test_code_of_a_repository_is_the_callers_to_trust(folder, tmp_path):
    coded(folder, tmp_path / "ran")
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["them/code--tok.Tok", None]})
    check_folder(folder, trust_remote_code=True)
    with pytest.raises(AdapterError):
        check_folder(folder)
    pickled(folder, tmp_path / "ran", "model.bin")
    with pytest.raises(AdapterError, match="model.bin is a pickle"):
        check_folder(folder, trust_remote_code=True)


def test_states_of_a_checkpoint_may_lie_beside_it(folder):
    for name in (
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "rng_state_1.pth",
        "run_state_0.pt",
        "training_args.bin",
    ):
        (folder / name).write_bytes(b"not read")
    (folder / "global_step4").mkdir()
    (folder / "global_step4" / "mp_rank_00_model_states.pt").write_bytes(b"not read")
    SmartEncoder.from_pretrained(folder, device="cpu")


def test_what_is_neither_file_nor_folder_is_not_waited_for(folder):
    os.mkfifo(folder / "config.json")
    with pytest.raises(AdapterError, match="config.json is neither a file nor a folder"):
        SmartEncoder.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_base_that_names_code_that_was_not_used_leaves_none_of_it_in_what_is_saved(kind, tiny_bert, tmp_path):
    """transformers has the class itself; the saved folder would otherwise be refused by who loads it."""
    base = Path(shutil.copytree(tiny_bert, tmp_path / "base"))
    edit(base / "config.json", auto_map={"AutoModel": "them/code--modeling.Model"})
    edit(base / "tokenizer_config.json", auto_map={"AutoTokenizer": ["them/code--tok.Tok", None]})
    encoder = encoder_of(base, kind)
    folder = encoder.save_pretrained(tmp_path / "saved")
    assert not [path.name for path in folder.glob("*.json") if '"auto_map"' in path.read_text()]
    found = SmartEncoder.from_pretrained(folder, device="cpu").encode_documents(tiny.TEXTS)
    torch.testing.assert_close(found.pooled, encoder.encode_documents(tiny.TEXTS).pooled, atol=1e-6, rtol=0)


def test_whole_weights_are_looked_through_as_well(tiny_bert, tmp_path):
    folder = encoder_of(tiny_bert, "full").save_pretrained(tmp_path / "full")
    SmartEncoder.from_pretrained(folder, device="cpu")
    edit(folder / "config.json", auto_map={"AutoModel": "modeling_mine.Model"})
    with pytest.raises(AdapterError, match="auto_map"):
        SmartEncoder.from_pretrained(folder, device="cpu")
