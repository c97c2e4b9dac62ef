"""What was published, as others have it: every program of a card runs as it stands and gives our vectors; revisions;
downloads that fail, break off, find no room.  One child process lives through all of it (publish_story.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import fakehub
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


class Story:
    def __init__(self, out: Path, hub: fakehub.FakeHub, log: str) -> None:
        self.vectors, self.told = dict(np.load(out / "vectors.npz")), json.loads((out / "told.json").read_text())
        self.hub, self.log = hub, log

    def kinds(self, name: str) -> list[str]:
        return [block["kind"] for block in self.told[f"{name}/blocks"]]

    def off(self, a: str, b: str) -> float:
        """Largest difference of two sets of vectors."""
        one, other = self.vectors[a], self.vectors[b]
        return float(np.abs(one - other).max()) if one.shape == other.shape else float("inf")


pytestmark = pytest.mark.slow  # the story takes 100 s; test_upload, test_publish and test_round_trips are quick


@pytest.fixture(scope="module")
def story(tiny_bert, beir_folder, tmp_path_factory) -> Story:
    out = tmp_path_factory.mktemp("published")
    with fakehub.FakeHub() as hub:
        hub.put("me/base", {**_files(tiny_bert), "README.md": b"---\nlicense: mit\n---\n"})
        command = [
            sys.executable,
            str(ROOT / "tests" / "helpers" / "publish_story.py"),
            str(tiny_bert),
            str(out),
            str(beir_folder),
        ]
        environment = hub.environment(out / "home", PYTHONPATH=f"{ROOT}:{ROOT / 'tests/helpers'}", OMP_NUM_THREADS="1")
        done = subprocess.run(command, env=environment, cwd=out, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-4000:]
        return Story(out, hub, done.stdout + done.stderr)


def _files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


WAYS = {  # adapter -> what its card's blocks give, in order
    "package": ["pooled", "pooled", "pooled", "evaluate", "export", "tokens"],
    "hosted": ["pooled", "pooled", "pooled", "evaluate", "export", "tokens"],
    "local": ["pooled", "pooled", "pooled", "evaluate", "export", "tokens"],
    "frozen": ["pooled", "pooled", "evaluate"],
    "full": ["pooled", "pooled", "pooled", "evaluate"],
    "merged": ["pooled", "pooled", "pooled", "evaluate"],
    "multi-vector": ["tokens"],
}


@pytest.mark.parametrize("name", WAYS)
def test_every_program_of_a_card_runs_and_gives_the_vectors_that_were_verified(name, story):
    assert story.kinds(name) == WAYS[name]
    made = "hosted" if name in ("merged", "multi-vector") else name
    for number, kind in enumerate(story.kinds(name)):
        if kind in ("pooled", "tokens"):
            assert story.off(f"{made}/{kind}", f"{name}/{number}/{kind}") < 1e-5, (number, kind)


def test_the_programs_tell_scores_and_figures(story):
    said = [block["said"] for block in story.told["hosted/blocks"]]
    assert "tensor([[" in said[0] and "tensor([[" in said[1] and "torch.Size([2, 32])" in said[2]
    assert "nDCG@" in said[3] and "pooled" in said[3]


def test_the_licence_of_a_base_on_the_hub_is_in_the_card(story):
    card = story.hub.files("me/hosted")["README.md"].decode()
    assert "of the base: mit" in card and "base_model: me/base" in card and "base_model_relation: adapter" in card
    assert "of the base: apache-2.0" in story.hub.files("me/package")["README.md"].decode()


def test_an_export_goes_up_as_what_it_is_and_leaves_nothing_here(story):
    merged, late = (story.hub.files(f"me/{kind}") for kind in ("merged", "multi-vector"))
    for files in (merged, late):
        assert "model.safetensors" in files and "adapter_model.safetensors" not in files
        assert "base_model_relation: finetune" in files["README.md"].decode()
    assert (
        "| Trained | LoRA, r = 4, alpha = 32 and a head (layernorm_linear); added to the"
        in merged["README.md"].decode()
    )
    assert "MultiVectorEncoder" in late["README.md"].decode() and "SmartEncoder" not in late["README.md"].decode()
    assert story.told["left"] == []


def test_whole_weights_of_a_private_base_are_used_without_it(story):
    card = story.hub.files("me/full")["README.md"].decode()
    assert "FOLDER OF THE BASE" not in card and '--model "me/full" --adapter me/full' in card


def test_a_revision_is_loaded_by_its_commit_and_by_its_tag(story):
    first, second = story.told["commits"]
    assert story.hub.repos["model", "me/package"].tags == {"v1": first, "v2": second} and first != second
    for view in ("pooled", "tokens"):
        assert story.off(f"first by commit/{view}", f"package/made/{view}") < 1e-5
        assert story.off(f"first by tag/{view}", f"package/made/{view}") < 1e-5
        assert story.off(f"newest/{view}", f"packaged/made/{view}") < 1e-5
    assert story.off("newest/pooled", "package/made/pooled") > 1e-4


MESSAGES = {
    "401": "me/again: the Hub does not accept your token; make a new one and run: hf auth login (or correct HF_TOKEN)",
    "503": "me/again at revision COMMIT: the Hub answered with status 503; try again later",
    "429": "me/again at revision COMMIT: the Hub asks for fewer requests (429); try again in 7 s",
    "gated file": "me/again at revision COMMIT: access to this repository is given on request; ask for it on its page "
    "on the Hub, then run: hf auth login",
    "full": "me/again at revision COMMIT: the disk of the Hub's cache is full; free space there, or set HF_HOME to a "
    "folder on a larger disk, and load again: the download resumes",
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_download_that_fails_is_one_sentence(name, story):
    told, commit = story.told[name], story.hub.repos["model", "me/again"].commits[-1][0]
    assert told["message"] == MESSAGES[name].replace("COMMIT", commit)
    assert told["class"] == "BaseNotFound" and not told["shown"]


def test_a_download_that_broke_off_goes_on_and_is_whole(story):
    for view in ("pooled", "tokens"):
        assert story.off(f"again/{view}", f"package/made/{view}") < 1e-5
    assert story.told["half files taken for whole"] == []


def test_what_is_read_from_the_cache_because_the_hub_is_away_is_told(story):
    commit = story.hub.repos["model", "me/again"].commits[-1][0]
    assert story.told["from the cache"] == commit
    assert f"me/again is read from the local cache, at commit {commit}, which may not be the newest" in story.log
