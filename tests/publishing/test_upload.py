"""Uploads that break off: publishing again continues them; a commit is whole or not there.
Every command is a process of its own against a Hub on loopback, which counts what it is sent."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import fakehub
import pytest
from published import ROOT, command, line, state

LARGE = ("adapter_model.safetensors", "late_head.safetensors", "curve.png")


def words(run: Path, *more: str) -> tuple[str, ...]:
    return ("publish", str(run), "--repo", "me/mine", *more)


def until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def puts(hub: fakehub.FakeHub) -> list[str]:
    return [call for call in hub.calls if call.startswith("PUT")]


def test_an_upload_that_was_killed_goes_on_with_what_is_missing(hub, run_copy, tmp_path):
    before = state(run_copy)
    hub.hold(1)  # the first large file is taken; the others hang, as on a slow line
    environment = hub.environment(tmp_path / "home", PYTHONPATH=str(ROOT))
    with subprocess.Popen(line(*words(run_copy)), env=environment, cwd=tmp_path, stdout=subprocess.PIPE) as begun:
        until(lambda: len(puts(hub)) == len(LARGE) and sum(hub.stored.values()) == 1)
        begun.kill()
    hub.release()
    assert state(run_copy) == before and len(hub.repos["model", "me/mine"].commits) == 1  # nothing half made
    there, asked = set(hub.stored), len(puts(hub))
    done = command(hub, tmp_path / "home", *words(run_copy))
    assert done.returncode == 0, done.stderr
    again = {call.rpartition("/")[2] for call in puts(hub)[asked:]}
    assert len(again) == len(LARGE) - 1 and not again & there
    assert set(hub.stored.values()) == {1} and len(hub.stored) == len(LARGE)
    assert set(LARGE) <= set(hub.files("me/mine"))
    assert [path for path in run_copy.rglob("*") if str(path) not in before and path.is_file()] == []


def test_a_connection_that_breaks_in_the_middle_of_a_file_is_told_and_only_that_file_sent_again(
    hub, run_copy, tmp_path
):
    hub.fail("PUT", "/_lfs/", 0, half=True, times=1)
    done = command(hub, tmp_path / "home", *words(run_copy))
    assert done.returncode == 0, done.stderr
    assert "Retrying in 1s [Retry 1/5]" in done.stderr, "huggingface_hub repeats what sends files"
    assert "http://" not in done.stdout.replace(f"published: {hub.url}", "") + done.stderr, "addresses are signed"
    assert set(hub.stored.values()) == {1} and len(puts(hub)) == len(LARGE) + 1


CALLS = {"create": "/repos/create", "info": "/api/models/me/mine$", "commit": "/commit/", "metadata": "/validate-yaml"}


@pytest.mark.parametrize("name", [c if c == "commit" else pytest.param(c, marks=pytest.mark.slow) for c in CALLS])
def test_a_request_that_fails_ends_in_one_sentence_and_publishing_again_does_the_rest(name, hub, run_copy, tmp_path):
    hub.fail("POST GET", CALLS[name], 503, times=1)
    done = command(hub, tmp_path / "home", *words(run_copy))
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "the Hub answered with status 503" in done.stderr and "publish again later" in done.stderr
    done = command(hub, tmp_path / "home", *words(run_copy))
    assert done.returncode == 0, done.stderr
    assert len(hub.repos["model", "me/mine"].commits) == 2 and set(hub.stored.values()) == {1}


@pytest.mark.slow
def test_requests_that_send_files_are_repeated_by_the_hubs_client(hub, run_copy, tmp_path):
    for path in ("/objects/batch", "/preupload/"):
        hub.fail("POST", path, 503, times=1, headers={"Retry-After": "0"})
    hub.fail("PUT", "/_lfs/", 500, times=1, headers={"Retry-After": "0"})
    done = command(hub, tmp_path / "home", *words(run_copy))
    assert done.returncode == 0, done.stderr
    assert len(hub.repos["model", "me/mine"].commits) == 2 and set(hub.stored.values()) == {1}


@pytest.mark.slow
def test_the_time_that_the_hub_asks_to_wait_is_told_and_not_waited(hub, run_copy, tmp_path):
    hub.fail("POST", "/commit/", 429, headers={"Retry-After": "3600"})
    done = command(hub, tmp_path / "home", *words(run_copy))
    assert done.returncode == 1 and "(429); publish again in 3600 s" in done.stderr
    assert sum("/commit/" in call for call in hub.calls) == 1


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, run_copy, tmp_path):
    hub.fail("POST", "/commit/", 0, late=True, times=1)
    done = command(hub, tmp_path / "home", *words(run_copy, "--tag", "v1"))
    assert done.returncode == 1 and "the connection to the Hub failed; publish again when it is back" in done.stderr
    done = command(hub, tmp_path / "home", *words(run_copy, "--tag", "v1"))
    repo = hub.repos["model", "me/mine"]
    assert done.returncode == 0 and "holds all of this already" in done.stdout
    assert len(repo.commits) == 2 and repo.tags == {"v1": repo.commits[-1][0]}


@pytest.mark.slow
def test_what_someone_else_committed_meanwhile_is_not_touched(hub, run_copy, tmp_path):
    hub.hold(0)  # large files hang, after the repository was looked at
    environment = hub.environment(tmp_path / "home", PYTHONPATH=str(ROOT))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(line(*words(run_copy)), env=environment, cwd=tmp_path, **pipes) as begun:  # type: ignore
        until(lambda: puts(hub))
        hub.put("me/mine", {".gitattributes": b"", "notes.md": b"theirs"})
        hub.release()
        _, told = begun.communicate(timeout=60)
    assert begun.returncode == 1 and "someone else changed the repository meanwhile" in told
    assert hub.files("me/mine")["notes.md"] == b"theirs" and len(hub.repos["model", "me/mine"].commits) == 2


@pytest.mark.slow
def test_what_is_there_already_is_not_committed_again(hub, run_copy, tmp_path):
    for _ in range(2):
        done = command(hub, tmp_path / "home", *words(run_copy))
        assert done.returncode == 0, done.stderr
    repo = hub.repos["model", "me/mine"]
    assert len(repo.commits) == 2 and f"holds all of this already, in commit {repo.commits[-1][0]}" in done.stdout
    assert set(hub.stored.values()) == {1} and sum("/commit/" in call for call in hub.calls) == 1


@pytest.mark.slow
def test_a_tag_that_could_not_be_set_is_set_by_publishing_again(hub, run_copy, tmp_path):
    hub.fail("POST", "/tag/", 500, times=1)
    done = command(hub, tmp_path / "home", *words(run_copy, "--tag", "v1"))
    assert done.returncode == 1 and "the Hub answered with status 500" in done.stderr
    repo = hub.repos["model", "me/mine"]
    assert len(repo.commits) == 2 and repo.tags == {}
    done = command(hub, tmp_path / "home", *words(run_copy, "--tag", "v1"))
    assert done.returncode == 0 and repo.tags == {"v1": repo.commits[-1][0]} and len(repo.commits) == 2


@pytest.mark.slow
def test_a_line_that_stays_broken_ends_in_one_sentence(hub, run_copy, tmp_path):
    hub.fail("PUT", "/_lfs/", 0, half=True)
    done = command(hub, tmp_path / "home", *words(run_copy))
    assert done.returncode == 1
    assert "the connection to the Hub failed; publish again when it is back" in done.stderr.splitlines()[-1]
    assert "[Retry 5/5]" in done.stderr and len(hub.repos["model", "me/mine"].commits) == 1
