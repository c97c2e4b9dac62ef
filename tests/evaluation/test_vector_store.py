"""A store gives back what it was given, mapped; whatever would mix two encoders' vectors is refused by name."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.core.errors import EvaluationError
from smart_train.evaluation import vector_store as module
from smart_train.evaluation.vector_store import VectorStore, flatten

FACTS = {"late": {"layer": -1, "head": "none"}, "fingerprint": "abc", "model": {"document_prompt": ""}}


def rows(count: int, seed: int = 0) -> Embeddings:
    torch.manual_seed(seed)
    lengths = torch.randint(1, 6, (count,))
    values = torch.nn.functional.normalize(torch.randn(int(lengths.sum()), 8), dim=1).half()
    return Embeddings(torch.nn.functional.normalize(torch.randn(count, 4), dim=1), Tokens(values, lengths))


def test_a_shard_comes_back_bit_for_bit_and_is_mapped_not_copied(tmp_path):
    store = VectorStore(tmp_path / "s", FACTS, {"versions": {"torch": "1"}})
    store.open()
    given = rows(5)
    name = store.write(["k1", "k2", "k3", "k4", "k5"], given, 1.5)
    again = VectorStore(tmp_path / "s", FACTS)
    again.open()
    (shard,) = again.shards()
    assert (shard.name, shard.keys, shard.seconds) == (name, ("k1", "k2", "k3", "k4", "k5"), 1.5)
    found = again.read(name)
    assert torch.equal(found.pooled, given.pooled) and found.pooled.dtype == torch.float32
    assert torch.equal(found.tokens.values, given.tokens.values) and found.tokens.values.dtype == torch.float16
    assert found.tokens.lengths.tolist() == given.tokens.lengths.tolist()
    maps = (tmp_path / "s" / "shards" / f"{name}.safetensors").resolve()
    with open("/proc/self/maps") as mapped:
        assert str(maps) in mapped.read()
    assert json.loads((tmp_path / "s" / "store.json").read_text())["facts"] == FACTS


def test_another_encoders_store_is_refused_and_every_difference_is_named(tmp_path):
    VectorStore(tmp_path / "s", FACTS).open()
    other = {"late": {"layer": 3, "head": "none"}, "fingerprint": "abd", "model": {"document_prompt": ""}, "new": 1}
    with pytest.raises(EvaluationError) as error:
        VectorStore(tmp_path / "s", other).open()
    told = str(error.value)
    assert "late.layer was -1, is 3" in told and "fingerprint was 'abc', is 'abd'" in told
    assert "new was None, is 1" in told and "late.head" not in told and str(tmp_path / "s") in told


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not a store's description"),
        ('{"format": 2, "facts": {}}', "format 2, this version reads 1"),
        ("[]", "not"),
    ],
)
def test_a_description_that_is_none_is_told(tmp_path, content, told):
    (tmp_path / "store.json").write_text(content)
    with pytest.raises(EvaluationError, match=told):
        VectorStore(tmp_path, FACTS).open()


def test_a_folder_with_other_files_is_not_written_into(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(EvaluationError, match=r"is not empty and has no store.json"):
        VectorStore(tmp_path, FACTS).open()
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_half_written_files_of_a_killed_process_are_removed_and_a_torn_shard_is_named(tmp_path):
    store = VectorStore(tmp_path / "s", FACTS)
    store.open()
    name = store.write(["k"], rows(1), 0.0)
    path = tmp_path / "s" / "shards" / f"{name}.safetensors"
    shutil.copy(path, path.with_name("x.safetensors.123.part"))
    VectorStore(tmp_path / "s", FACTS).open()
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    path.write_bytes(path.read_bytes()[:-7])
    for look in (store.shards, lambda: store.read(name)):
        with pytest.raises(EvaluationError, match=f"{name}.safetensors: not a readable shard.*delete it"):
            look()


def test_a_place_where_no_folder_can_be_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(EvaluationError, match="no folder for the vectors can be made there.*name another"):
            VectorStore(place, FACTS).open()


def test_a_full_disk_is_told_and_what_was_stored_stays(tmp_path, monkeypatch, caplog):
    store = VectorStore(tmp_path / "s", FACTS)
    store.open()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1000))
    store.write(["k"], rows(1), 0.0, left=1_000_000)
    assert "GB are still to come" in caplog.text

    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(EvaluationError, match="No space left.*make room and run it again"):
        store.write(["l"], rows(1), 0.0)
    assert [shard.keys for shard in store.shards()] == [("k",)]


def test_nested_facts_are_flattened():
    assert flatten({"a": {"b": 1, "c": [2]}, "d": None}) == {"a.b": 1, "a.c": [2], "d": None}
