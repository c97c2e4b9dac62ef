"""Publishing as a command, in a process of its own against a Hub on loopback: what goes up, where to, and what is told;
whatever the Hub answers is one clear line, and nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_data
import torch
import yaml
from published import command, made, state

from smart_train.config.recipe import save
from smart_train.config.schema import AdapterBlock, DataBlock, ModelBlock, PublishBlock, Recipe
from smart_train.models.encoder import SmartEncoder
from smart_train.models.safe_loading import HEAD, SETTINGS
from smart_train.publishing.publisher import PublishError
from smart_train.training import run as train

WEIGHTS, PEFT = "adapter_model.safetensors", "adapter_config.json"
PUBLISHED = {SETTINGS, HEAD, WEIGHTS, PEFT, "verified.json", "modules.json", "config_sentence_transformers.json"}
PUBLISHED |= {"1_Pooling/config.json", "2_Normalize/config.json", "sentence_bert_config.json", "tokenizer.json"}
PUBLISHED |= {"tokenizer_config.json", "README.md", "recipe.yaml", "metrics.json", "curve.png"}


# -- what goes up


def test_a_dry_run_lists_every_file_with_its_size_and_sends_nothing(hub, run_copy, tmp_path):
    (run_copy / "adapter" / "notes.txt").write_text("me@host.example")  # left out, so not looked at
    words = ("publish", str(run_copy), "--repo", "me/mine", "--dry-run")
    done = command(hub, tmp_path / "home", *words, token=None)
    assert done.returncode == 0, done.stderr
    files, _, card = done.stdout.partition("README.md, the card:")
    listed = dict(line.split()[::-1] for line in files.splitlines() if len(line.split()) == 2)
    assert set(listed) == PUBLISHED
    assert "library_name: sentence-transformers" in card and "| trained |" in card  # metadata and results
    assert listed[WEIGHTS] == f"{(run_copy / 'adapter' / WEIGHTS).stat().st_size:,}"
    assert all(name in done.stdout for name in ("not published", "training_args.bin", "checkpoint-2", "notes.txt"))
    assert f"bytes in {len(PUBLISHED)} files" in done.stdout
    assert "no secret and no path of this machine was found in them" in done.stdout
    assert "nothing was sent" in done.stdout and hub.calls == []


def test_a_dry_run_tells_all_that_may_not_go_up(hub, run_copy, tmp_path):
    recipe = run_copy / "recipe.yaml"
    more = "wandb_api_key: 0123456789abcdef0123\nnotes: see /home/someone/notes, or ask me@host.example\n"
    recipe.write_text(recipe.read_text() + more)
    done = command(hub, tmp_path / "home", "publish", str(run_copy), "--repo", "me/mine", "--dry-run")
    assert done.returncode == 1
    assert WEIGHTS in done.stdout  # the list comes first
    assert "recipe.yaml, line" in done.stderr and "a user's folder (/home/someone)" in done.stderr
    assert "what is named as a secret (wandb_api_key: 012...)" in done.stderr
    assert "nothing was sent" in done.stderr and "456789abcdef" not in done.stderr + done.stdout


def test_a_run_goes_up_private_and_as_one_commit(hub, run_copy, tmp_path):
    before = state(run_copy)
    done = command(hub, tmp_path / "home", "publish", str(run_copy), "--repo", "me/mine", "--license", "mit")
    assert done.returncode == 0, done.stderr
    repo = hub.repos["model", "me/mine"]
    assert f"published: {hub.url}/me/mine" in done.stdout and f"commit: {repo.commits[-1][0]}" in done.stdout
    assert repo.private and len(repo.commits) == 2  # the empty one and ours
    files = hub.files("me/mine")
    assert set(files) - {".gitattributes"} == PUBLISHED
    for name in (WEIGHTS, HEAD, "tokenizer.json"):
        assert files[name] == (run_copy / "adapter" / name).read_bytes()
    assert state(run_copy) == before
    assert yaml.safe_load(files["README.md"].decode().split("---\n")[1])["license"] == "mit"
    for name, content in files.items():  # the whole of it, weights included
        for private in (str(tmp_path), "pytest-", "secret data/", str(Path.home()) + "/"):
            assert private.encode() not in content, (name, private)


@pytest.mark.slow
def test_publishing_again_replaces_the_adapter_and_leaves_nothing_of_the_old_one(hub, tmp_path, tiny_bert):
    for name, kind in (("lora", "lora"), ("frozen", "frozen")):
        made(tmp_path / name, str(tiny_bert), kind)
        mine = {"picture.svg": b"mine", "figures/scores.json": b"[]"}
        hub.put("me/mine", {**hub.files("me/mine"), **mine}) if hub.repos else None
        done = command(hub, tmp_path / "home", "publish", str(tmp_path / name), "--repo", "me/mine")
        assert done.returncode == 0, done.stderr
    ours = {SETTINGS, HEAD, "verified.json", "README.md"}
    assert set(hub.files("me/mine")) == {".gitattributes", *mine, *ours}


def test_an_adapter_that_is_not_what_was_verified_is_refused_before_the_hub_is_asked(hub, run_copy, tmp_path):
    path = run_copy / "adapter" / "1_Pooling" / "config.json"
    path.write_text(path.read_text().replace("mean", "max"))
    done = command(hub, tmp_path / "home", "publish", str(run_copy), "--repo", "me/mine")
    assert done.returncode == 2 and "is not what was verified: 1_Pooling/config.json (changed)" in done.stderr
    assert hub.calls == []


# -- where to


@pytest.mark.slow
def test_a_branch_a_tag_and_a_message_are_as_they_were_asked_for(hub, run_copy, tmp_path):
    hub.put("me/mine", {".gitattributes": b""}, private=True)
    words = ("publish", str(run_copy), "--repo", "me/mine", "--revision", "try/two", "--tag", "v1")
    done = command(hub, tmp_path / "home", *words, "--commit-message", "Second try")
    assert done.returncode == 0, done.stderr
    repo = hub.repos["model", "me/mine"]
    assert len(repo.commits) == 1 and set(hub.files("me/mine")) == {".gitattributes"}
    sha, files = repo.branches["try/two"][-1]
    assert WEIGHTS in files and repo.tags == {"v1": sha} and f"tag v1: {sha}" in done.stdout
    assert hub.messages[sha] == "Second try"
    again = command(hub, tmp_path / "home", *words)
    assert again.returncode == 0 and f"me/mine holds all of this already, in commit {sha}" in again.stdout
    other = run_copy / "curve.png"
    other.unlink()
    done = command(hub, tmp_path / "home", *words)
    assert done.returncode == 1 and f"already has a tag v1, of commit {sha}" in done.stderr
    assert repo.branches["try/two"][-1][0] == sha


@pytest.mark.slow
def test_names_that_git_would_refuse_are_refused_first(hub, run_copy, tmp_path):
    for flag in ("--tag", "--branch"):
        done = command(hub, tmp_path / "home", "publish", str(run_copy), "--repo", "me/mine", flag, "a..b")
        assert done.returncode == 2 and f"{flag}: 'a..b' cannot name" in done.stderr
    done = command(hub, tmp_path / "home", "publish", str(run_copy), "--repo", "me/mine", "--dtype", "float32")
    assert done.returncode == 2 and "--dtype: only with --export" in done.stderr


def test_a_public_repository_is_not_published_to_unless_it_is_said(hub, run_copy, tmp_path):
    hub.put("me/open", {".gitattributes": b""})
    done = command(hub, tmp_path / "home", "publish", str(run_copy), "--repo", "me/open")
    assert done.returncode == 1 and "everyone can read it" in done.stderr and "--public" in done.stderr
    assert set(hub.files("me/open")) == {".gitattributes"}
    done = command(hub, tmp_path / "home", "publish", str(run_copy), "--repo", "me/open", "--public")
    assert done.returncode == 0 and SETTINGS in hub.files("me/open")


def test_another_model_is_never_overwritten(hub, run_copy, tmp_path):
    hub.put("me/other", {"model.safetensors": b"years of work"}, private=True)
    done = command(hub, tmp_path / "home", "publish", str(run_copy), "--repo", "me/other")
    assert done.returncode == 1 and "holds another model (model.safetensors ...)" in done.stderr
    assert len(hub.repos["model", "me/other"].commits) == 1


# -- what the Hub answers

COMMIT, INFO, GATED = "/commit/main", "/api/models/me/mine", {"code": "GatedRepo"}
ANSWERS = {  # name -> (call, where, how it fails, environment, words of the message)
    "no token": ("", "", {}, {"token": None}, "this machine has none; run: hf auth login"),
    "a token that is not accepted": ("", "", {}, {"token": "hf_old"}, "does not accept your token for this (401)"),
    "401": ("POST", COMMIT, {"status": 401}, {}, "does not accept your token for this (401)"),
    "403": ("POST", COMMIT, {"status": 403, "message": "storage limit reached"}, {}, "(403: storage limit reached)"),
    "gated": ("GET", INFO, {"status": 403, **GATED}, {}, "access to this repository is given on request"),
    "404": ("GET", INFO, {"status": 404}, {}, "no such repository, or your token may not see it (404)"),
    "409": ("POST", COMMIT, {"status": 409}, {}, "someone else changed the repository meanwhile (409)"),
    "412": ("POST", COMMIT, {"status": 412}, {}, "someone else changed the repository meanwhile (412)"),
    "429": ("POST", COMMIT, {"status": 429, "headers": {"Retry-After": "7"}}, {}, "(429); publish again in 7 s"),
    "500": ("POST", "/repos/create", {"status": 500}, {}, "answered with status 500: failed as it was told to"),
    "503": ("POST", COMMIT, {"status": 503}, {}, "the Hub answered with status 503"),
    "a connection that breaks": ("POST", COMMIT, {"status": 0}, {}, "the connection to the Hub failed"),
    "a name that is none": ("", "me/a b", {}, {}, "write it as owner/name"),
    "a name of someone else's": ("", "you/mine", {}, {}, "your token may not write there (403"),
    "a licence that is none": ("", "gpl", {}, {}, 'the Hub answered with status 400: "license" must be one of'),
    "offline": ("", "", {}, {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set; unset it, or publish later"),
}


REFUSED_FIRST = {"no token", "a name that is none", "offline"}  # nothing was asked of the Hub


QUICK = ("401", "503", "no token")  # each is a process of 3 seconds


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in ANSWERS])
def test_what_the_hub_answers_is_one_line_and_loses_nothing(name, hub, run_copy, tmp_path):
    method, where, failure, options, words = ANSWERS[name]
    repo, licence = where if "/" in where and not method else "me/mine", where if where == "gpl" else "mit"
    if method:
        hub.fail(method, where, **failure)
    before = state(run_copy)
    line = ("publish", str(run_copy), "--repo", repo, "--license", licence)
    done = command(hub, tmp_path / "home", *line, **options)
    assert done.returncode == (2 if name in REFUSED_FIRST else 1)
    told = done.stderr.strip().splitlines()
    assert len(told) == 1 and words in told[0], done.stderr
    assert state(run_copy) == before
    there = hub.repos.get(("model", repo))
    assert there is None or [set(files) for _, files in there.commits] == [{".gitattributes"}]


# -- the end of a run


def test_a_run_publishes_its_adapter_at_the_end(hub, tiny_bert, beir_folder, tmp_path):
    """From a base on the Hub to an adapter on the Hub, with one command."""
    base = hub.put("me/base", tiny_bert)
    recipe = Recipe(
        name="small",
        output=str(tmp_path / "run"),
        model=ModelBlock(base="me/base"),
        adapter=AdapterBlock(r=4),
        data=DataBlock(path=str(beir_folder), dev=4),
        training={"max_steps": 2, "per_device_train_batch_size": 4, "report_to": "none", "use_cpu": True},
        publish=PublishBlock(repo="me/trained", license="mit"),
    )
    path = save(recipe, tmp_path / "recipe")
    done = command(hub, tmp_path / "home", "train", str(path), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-3000:]
    files = hub.files("me/trained")
    settings = json.loads(files[SETTINGS])
    assert (settings["base"], settings["commit"]) == ("me/base", base)
    text = files["README.md"].decode()
    assert f"`me/base` at commit `{base}`" in text and f"local:{beir_folder.name}" in text
    assert "| Steps | 2, " in text and "| Engine | one process, no engine |" in text
    assert {"metrics.json", "recipe.yaml", "curve.png", WEIGHTS} <= set(files)
    _same_vectors(tmp_path / "run" / "adapter", files, tiny_bert, tmp_path / "downloaded")


def _same_vectors(folder: Path, files: dict[str, bytes], base: Path, downloaded: Path) -> None:
    for name, content in files.items():
        (downloaded / name).parent.mkdir(parents=True, exist_ok=True)
        (downloaded / name).write_bytes(content)
    queries = [f"what stands beside the {topic}" for topic in tiny_data.TOPICS[:4]]
    ours, theirs = (
        SmartEncoder.from_pretrained(place, base=str(base), device="cpu").encode_queries(queries)
        for place in (folder, downloaded)
    )
    assert torch.equal(ours.pooled, theirs.pooled) and torch.equal(ours.tokens.values, theirs.tokens.values)
    untrained = SmartEncoder(str(base), device="cpu").encode_queries(queries)
    assert float(np.abs(ours.pooled.numpy() - untrained.pooled.numpy()).max()) > 1e-5


def test_a_run_that_could_not_publish_says_so_before_it_trains(tiny_bert, beir_folder, tmp_path):
    data, publish = DataBlock(path=str(beir_folder), dev=4), PublishBlock(repo="me/trained")
    recipe = Recipe(output=str(tmp_path / "run"), model=ModelBlock(base=str(tiny_bert)), data=data, publish=publish)
    with pytest.raises(PublishError, match="HF_HUB_OFFLINE is set"):  # as in every test of this suite
        train.run(recipe)
    assert not (tmp_path / "run").exists()
