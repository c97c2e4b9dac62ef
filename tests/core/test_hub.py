"""Encoders from a Hub: the vectors that were saved, also pinned, moved on and offline; and one clear sentence where
something can't be had.  One child process lives through all of it (hub_story.py): its client reads the environment
when it is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import fakehub
import numpy as np
import pytest

from smart_train.core.errors import PublishError
from smart_train.core.hub import commit_files, hub_errors, hub_id, sha256_of

ROOT = Path(__file__).resolve().parents[2]


class Story:
    def __init__(self, out: Path, hub: fakehub.FakeHub, log: str) -> None:
        self.vectors, self.told = np.load(out / "vectors.npz"), json.loads((out / "told.json").read_text())
        self.hub, self.log = hub, log

    def same(self, a: str, b: str, views: tuple[str, ...] = ("pooled", "tokens")) -> bool:
        pairs = [(self.vectors[f"{a}/{view}"], self.vectors[f"{b}/{view}"]) for view in views]
        return all(x.shape == y.shape and float(np.abs(x - y).max()) < 2e-6 for x, y in pairs)

    def message(self, name: str) -> str:
        return self.told[name]["message"]


@pytest.fixture(scope="module")
def story(tiny_bert, tmp_path_factory) -> Story:
    out = tmp_path_factory.mktemp("story")
    with fakehub.FakeHub() as hub:
        for name in ("me/base", "me/plain", "me/mirror"):
            hub.put(name, tiny_bert)
        hub.put("other/gated", tiny_bert, gated=True)
        hub.put("other/private", tiny_bert, private=True)
        hub.put("me/peft", {"adapter_config.json": b'{"peft_type": "LORA", "base_model_name_or_path": "their/base"}'})
        command = [sys.executable, str(ROOT / "tests" / "helpers" / "hub_story.py"), str(tiny_bert), str(out)]
        environment = hub.environment(out / "home", PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
        done = subprocess.run(command, env=environment, cwd=out, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return Story(out, hub, done.stdout + done.stderr)


def test_an_adapter_whose_base_is_on_the_hub_loads_with_the_vectors_it_was_made_with(story):
    assert story.same("first/loaded", "first/made") and story.same("second/loaded", "second/made")
    assert not story.same("first/made", "base A", ("pooled",))
    assert story.same("frozen/loaded", "frozen/made") and story.same("frozen/loaded", "base A", ("pooled",))


def test_an_adapter_whose_base_is_a_folder_loads_where_the_folder_is_named(story):
    assert story.same("local/loaded", "local/made")
    assert not story.same("local/made", "plain/folder", ("pooled",))
    message = story.message("local")
    assert message.startswith("local:model: the base was a folder") and "base=FOLDER" in message


def test_full_weights_need_no_base(story):
    assert story.same("full/loaded", "full/made")


def test_plain_sentence_transformers_gives_the_pooled_vectors_as_the_card_says(story):
    for name in ("first", "local", "full"):
        assert story.same(f"{name}/plain", f"{name}/made", ("pooled",)), name


def test_a_revision_is_the_adapter_of_that_commit(story):
    assert story.same("first/pinned", "first/made")
    assert not story.same("first/made", "second/made", ("pooled",))


def test_the_commit_of_the_base_is_written_down(story):
    written = story.told["settings"]
    assert (written["base"], written["commit"], written["revision"]) == ("me/base", story.told["base A"], None)
    peft = story.told["peft"]
    assert (peft["base_model_name_or_path"], peft["revision"]) == ("me/base", story.told["base A"])
    assert story.told["made on B"] == story.told["base B"] != story.told["base A"]


def test_an_adapter_stays_on_its_commit_when_the_base_moves_on(story):
    assert not story.same("base A", "base B")
    assert story.same("base pinned", "base A")
    for later in ("second/after", "second/named"):
        assert story.same(later, "second/made"), later


def test_an_adapter_refuses_its_base_at_another_commit(story):
    for name in ("commit B", "mirror"):
        assert story.told[name]["class"] == "AdapterError"
        assert f"commit {story.told['base A']}" in story.message(name)
    assert f"me/base has commit {story.told['base B']}" in story.message("commit B")
    assert "me/mirror has commit" in story.message("mirror")


ADAPTERS = {  # what was named as a base -> (the repository, its base, what to do to go on from it)
    "adapter as base": ("me/adapter", "me/base", "smart-train export me/adapter --as merged"),
    "adapter as base, free": ("me/adapter", "me/base", "smart-train export me/adapter --as merged"),
    "adapter as base, read": ("me/adapter", "me/base", "smart-train export me/adapter --as merged"),
    "frozen as base": ("me/frozen", "me/base", "smart-train export me/frozen --as merged"),
    "peft as base": ("me/peft", "their/base", "merge it into its base with peft"),
    "peft as base, read": ("me/peft", "their/base", "merge it into its base with peft"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_on_the_hub_that_is_given_as_base_is_named_with_its_base(name, story):
    repo, base, fix = ADAPTERS[name]
    assert story.told[name]["class"] == "BaseNotFound"
    assert f"{repo}: the repository holds an adapter of {base}, not a base; write model.base: {base}" in story.message(
        name
    )
    assert fix in story.message(name)


def test_a_plain_base_is_a_training_free_encoder(story):
    assert story.same("plain/loaded", "plain/folder")


def test_what_was_loaded_once_loads_without_a_network(story):
    assert story.same("second/offline", "second/made")
    assert story.same("plain/offline", "plain/folder")


LOGIN = "run: hf auth login"
MESSAGES = {
    "missing": f"me/nothing: there is no such model on the Hub, or it is private; correct the id, or {LOGIN}",
    "missing base": f"me/nothing: there is no such model on the Hub, or it is private; correct the id, or {LOGIN}",
    "private": f"other/private: there is no such model on the Hub, or it is private; correct the id, or {LOGIN}",
    "gated": "other/gated at revision COMMIT: access to this repository is given on request; ask for it on its page on "
    f"the Hub, then {LOGIN}",
    "gated base": "other/gated: access to this repository is given on request; ask for it on its page on the Hub, then "
    f"{LOGIN}",
    "revision": "me/adapter at revision v9: the repository has no such revision; correct the revision (model.revision "
    "in a recipe)",
    "path": "there is no folder runs/nothing/adapter; correct the path, or give a Hub id such as "
    "Qwen/Qwen3-Embedding-0.6B",
    "broken": "me/never: the Hub cannot be reached and the model is not in the local cache, so whether it exists is "
    "not known; go online (unset HF_HUB_OFFLINE), or download it elsewhere and copy the cache, or name a local folder",
}
MESSAGES["offline"] = MESSAGES["broken"]


@pytest.mark.parametrize("name", MESSAGES)
def test_what_cannot_be_had_is_told_in_one_sentence_without_the_clients_tracebacks(name, story):
    told = story.told[name]
    commit = story.hub.repos["model", "other/gated"].commits[-1][0]
    assert told["message"] == MESSAGES[name].replace("COMMIT", commit)
    assert told["class"] == "BaseNotFound" and not told["shown"] or name == "path"


def test_a_name_without_an_owner_is_read_as_sentence_transformers_reads_it(tmp_path, monkeypatch):
    assert hub_id("all-MiniLM-L6-v2") == "sentence-transformers/all-MiniLM-L6-v2"
    assert hub_id("bert-base-uncased") == "bert-base-uncased"
    assert hub_id("me/base") == "me/base"
    (tmp_path / "all-MiniLM-L6-v2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub_id("all-MiniLM-L6-v2") is None


def test_errors_that_are_none_of_the_hubs_pass_unchanged():
    with pytest.raises(KeyError, match="shape"), hub_errors("me/base"):
        raise KeyError("shape")


def test_no_code_and_no_pickle_is_downloaded(story):
    fetched = {call.rpartition("/")[2] for call in story.hub.calls if "/resolve/" in call and call.startswith("GET")}
    assert {"smart_train.json", "adapter_model.safetensors", "late_head.safetensors"} <= fetched
    assert not [name for name in fetched if name.endswith((".py", ".bin", ".pt", ".pth", ".pkl"))]


# What is sent is what was checked -----------------------------------------------------------------------------------


class Api:
    """Stands in for HfApi: ``before`` runs while the files are sent."""

    def __init__(self) -> None:
        self.before, self.sent, self.committed = (lambda: None), {}, []

    def preupload_lfs_files(self, repo, additions, **options):
        self.before()
        for one in additions:
            with one.as_file() as stream:
                self.sent[one.path_in_repo] = stream.read()

    def create_commit(self, repo, operations, **options):
        self.committed = [one.path_in_repo for one in operations]
        return SimpleNamespace(oid="c0")


@pytest.fixture
def api(monkeypatch) -> Api:
    found = Api()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: found)
    monkeypatch.setattr("smart_train.core.hub.SNAPSHOT", 100)
    return found


def sent(files: dict, digests: dict) -> str:
    return commit_files("me/x", files, digests, ["old"], message="m", error=PublishError, revision="main")


CHANGES = {  # of a small and of a large file, before and while it is sent
    "another byte": lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "deleted": lambda path: path.unlink(),
    "replaced": lambda path: (path.with_name("new").write_bytes(b"new"), path.with_name("new").replace(path)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("size", [10, 1000], ids=["small", "large"])
@pytest.mark.parametrize("when", ["before", "while it is sent"])
def test_a_file_that_changes_after_it_was_checked_is_not_committed(tmp_path, api, change, size, when):
    path = tmp_path / "weights"
    path.write_bytes(b"a" * size)
    digests = {"weights": sha256_of(path)}
    if when == "before":
        CHANGES[change](path)
    else:
        api.before = lambda: CHANGES[change](path)
    if size == 10 and when != "before":  # it was read already
        assert sent({"weights": path}, digests) == "c0" and api.sent["weights"] == b"a" * 10
        return
    with pytest.raises((PublishError, OSError), match="weights (changed on the disk|can no longer)|weights'"):
        sent({"weights": path}, digests)
    assert api.committed == []


def test_what_is_committed_is_what_was_checked(tmp_path, api):
    path = tmp_path / "weights"
    path.write_bytes(b"a" * 1000)
    assert sent({"weights": path, "card": b"text"}, {"weights": sha256_of(path)}) == "c0"
    assert api.sent == {"weights": b"a" * 1000, "card": b"text"} and api.committed == ["weights", "card", "old"]
