"""Verification has plain sentence-transformers read the folder, in a process without this package: its own prompts and
its own similarity; what others would get must be what was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from smart_train.core import child_process
from smart_train.core.child_process import ChildFailed
from smart_train.core.errors import AdapterError
from smart_train.models import plain_reader, verification
from smart_train.models.encoder import SmartEncoder
from smart_train.models.verification import changed_files, read_plainly, verify

QUERIES = ["what is on the chart", "violin"]
INPUTS = [("query", QUERIES), ("document", tiny.TEXTS)]


@pytest.fixture
def switched_on(monkeypatch):
    monkeypatch.delenv("SMART_TRAIN_READ_PLAINLY")


@pytest.fixture
def here(switched_on, monkeypatch):
    """The reader answers in this process; what it was asked is returned."""
    asked, real = [], child_process.ask

    def ask(script, request, seconds, memory=0):
        if script != verification.READER:  # a tokenizer's trial
            return real(script, request, seconds, memory)
        asked.append((request, seconds))
        return plain_reader.answer(request)

    monkeypatch.setattr(child_process, "ask", ask)
    return asked


def saved(base: Path, folder: Path, **options) -> SmartEncoder:
    encoder = SmartEncoder(str(base), lora={"r": 4}, device="cpu", **options)
    generator = torch.Generator().manual_seed(7)
    for name, parameter in encoder.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    encoder.save_pretrained(folder)
    return encoder


def test_a_process_without_this_package_reads_what_was_saved(tiny_bert, tmp_path, switched_on):
    """The real thing: a fresh process, which costs its imports."""
    encoder = saved(tiny_bert, tmp_path / "adapter", model={"query_prompt": "find: "})
    report = verify(encoder, tmp_path / "adapter", QUERIES, tiny.TEXTS)
    assert report["plain"]["rows"] == 7 and report["plain"]["largest_pooled_difference"] < 1e-5
    assert changed_files(tmp_path / "adapter") == {}
    assert json.loads((tmp_path / "adapter" / "verified.json").read_text())["plain"] == report["plain"]


def prompts(folder: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prompts": {"query": "other words: ", "document": ""}}))


def limit(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 5}))
    path = folder / "sentence_bert_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_seq_length": 5}))


def words(folder: Path) -> None:
    path = folder / "tokenizer.json"
    text = path.read_text()
    path.write_text(text.replace('"chart": 119', '"chart": 118').replace('"lowercase": true', '"lowercase": false'))


def weights(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({name: 1.1 * tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})


def pooled_words(folder: Path) -> None:
    """The prompt's tokens are left out of the mean."""
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = "other"
    shutil.copytree(folder / "1_Pooling", folder / "other")
    path = folder / "other" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "include_prompt": False}))
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize("change", [prompts, limit, words, weights, pooled_words])
def test_what_others_would_read_otherwise_is_refused(change, tiny_bert, tmp_path, here):
    saved(tiny_bert, tmp_path / "adapter", model={"query_prompt": "find: "})
    encoder = SmartEncoder.from_pretrained(tmp_path / "adapter", device="cpu")
    assert read_plainly(encoder, tmp_path / "adapter", INPUTS)["plain"]["largest_pooled_difference"] < 1e-5
    change(tmp_path / "adapter")
    with pytest.raises(AdapterError, match="read by plain sentence-transformers, a (query|document)'s pooled vectors"):
        read_plainly(encoder, tmp_path / "adapter", INPUTS)


@pytest.mark.parametrize("similarity", ["euclidean", "manhattan", "dot"])
def test_a_similarity_that_ranks_otherwise_is_refused(similarity, tmp_path):
    """Of unit vectors the three rank alike, so the scores are put there."""
    ours = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.3, 0.30001]])
    verification._check_nearest(tmp_path, ours, torch.tensor([[-1.0, -9.0, -2.0], [0.0, 1.0, 0.0]]), 1e-4)
    with pytest.raises(AdapterError, match="for 1 of 2 queries plain sentence-transformers.*another nearest document"):
        verification._check_nearest(tmp_path, ours, torch.tensor([[-3.0, -9.0, -2.0], [0.0, 1.0, 0.0]]), 1e-4)


@pytest.mark.parametrize("error", [ChildFailed("it had not ended after 3 s", late=True), ChildFailed("OSError: gone")])
def test_a_reader_that_fails_or_hangs_is_told_with_its_reason(error, tiny_bert, tmp_path, switched_on, monkeypatch):
    encoder = saved(tiny_bert, tmp_path / "adapter")

    def ask(script, *_words):
        if script == verification.READER:
            raise error

    monkeypatch.setattr(child_process, "ask", ask)
    message = rf"plain sentence-transformers cannot read it in a process without this package \({error.reason}\);"
    with pytest.raises(AdapterError, match=message):
        verify(encoder, tmp_path / "adapter", QUERIES, tiny.TEXTS)
    assert not (tmp_path / "adapter" / "verified.json").exists()


def test_a_base_that_has_moved_is_read_where_it_is(tiny_bert, tmp_path, here):
    shutil.copytree(tiny_bert, tmp_path / "base")
    encoder = saved(tmp_path / "base", tmp_path / "adapter")
    shutil.move(tmp_path / "base", tmp_path / "elsewhere" / "base")
    found = verify(encoder, tmp_path / "adapter", QUERIES, tiny.TEXTS, base=str(tmp_path / "elsewhere" / "base"))
    assert found["plain"]["largest_pooled_difference"] < 1e-5


def test_what_was_not_compared_is_said(tiny_bert, tmp_path, caplog):
    encoder = saved(tiny_bert, tmp_path / "adapter")
    assert "is off" in verify(encoder, tmp_path / "adapter", QUERIES, tiny.TEXTS)["plain"]
    assert "was not read by plain sentence-transformers: SMART_TRAIN_READ_PLAINLY is off" in caplog.text


def test_texts_that_only_we_cut_are_not_compared(tiny_qwen3vl, tmp_path, here, monkeypatch):
    """Plain sentence-transformers has no limit before a chat template."""
    encoder = saved(tiny_qwen3vl, tmp_path / "adapter", model={"document_tokens": 6})
    monkeypatch.setattr(verification, "ImagesOnly", type(None))  # in this process the processor loads
    monkeypatch.setattr(plain_reader, "answer", lambda request: _answer(encoder, request))
    report = read_plainly(encoder, tmp_path / "adapter", [("query", QUERIES), ("document", tiny.TEXTS)])
    assert report["plain"]["rows"] == 2 + sum(len(encoder.tokenizer(text)["input_ids"]) <= 6 for text in tiny.TEXTS)


def _answer(encoder: SmartEncoder, request) -> dict[str, np.ndarray]:
    sides = {role: encoder.encode(contents, role).pooled for role, contents in request["contents"].items()}
    return {**{k: v.numpy() for k, v in sides.items()}, "scores": (sides["query"] @ sides["document"].T).numpy()}
