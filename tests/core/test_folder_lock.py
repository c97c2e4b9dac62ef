"""One process owns a folder: a live owner's is refused, a dead owner's is taken over, whoever it was."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from smart_train.core import folder_lock
from smart_train.core.errors import FolderInUse, SettingError
from smart_train.core.folder_lock import DEAD_AFTER, NAME, FolderLock, new_folder, own

ROOT = Path(__file__).parents[2]
OWN = """
import sys, time
from pathlib import Path
from smart_train.core.folder_lock import FolderLock
FolderLock(Path(sys.argv[1])).acquire()
print("mine", flush=True)
time.sleep(600)
"""
RACE = """
import sys, time
from pathlib import Path
from smart_train.core.errors import FolderInUse
from smart_train.core.folder_lock import FolderLock
folder = Path(sys.argv[1])
while not (folder.parent / "go").exists():
    time.sleep(0.001)
try:
    FolderLock(folder).acquire()
    print("mine", flush=True)
except FolderInUse:
    print("refused", flush=True)
sys.stdin.read()
"""


def start(program: str, folder: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdin=pipe, stdout=pipe, text=True, env=environment
    )


@pytest.fixture
def owner(tmp_path):
    process = start(OWN, tmp_path / "run")
    assert process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.wait()


def other_host(folder: Path, silent: float) -> None:
    """A lock as another machine leaves it, whose last sign of life is so many seconds old."""
    folder.mkdir()
    row = {"id": "x", "pid": os.getpid(), "born": 1, "host": "node7", "machine": "another boot", "started": "then"}
    (folder / NAME).write_text(json.dumps(row))
    os.utime(folder / NAME, (time.time() - silent,) * 2)


def test_a_live_owner_is_named_and_keeps_its_folder(owner, tmp_path):
    with pytest.raises(FolderInUse, match=rf"run is in use by process {owner.pid} on .*; wait for it") as refused:
        FolderLock(tmp_path / "run").acquire()
    assert refused.value.status == 2
    assert json.loads((tmp_path / "run" / NAME).read_text())["pid"] == owner.pid


def test_a_stopped_owner_still_owns_however_long_it_is_silent(owner, tmp_path):
    os.kill(owner.pid, signal.SIGSTOP)
    os.utime(tmp_path / "run" / NAME, (time.time() - 10 * DEAD_AFTER,) * 2)
    with pytest.raises(FolderInUse):
        FolderLock(tmp_path / "run").acquire()


def test_a_killed_owner_s_folder_is_taken_over_at_once_and_said_so(owner, tmp_path, caplog):
    owner.kill()
    owner.wait()
    with caplog.at_level(logging.WARNING), FolderLock(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / NAME).read_text())["pid"] == os.getpid()
    assert f"from process {owner.pid} on" in caplog.text and "has ended without giving it up" in caplog.text
    assert not (tmp_path / "run" / NAME).exists()


def test_a_pid_that_another_process_has_now_is_no_owner(tmp_path):
    lock = FolderLock(tmp_path)
    (tmp_path / NAME).write_text(json.dumps({**lock.owner, "id": "x", "born": 1}))
    with lock:
        assert json.loads((tmp_path / NAME).read_text())["id"] == lock.owner["id"]


@pytest.mark.parametrize("silent", [0, DEAD_AFTER / 2])
def test_an_owner_on_another_host_lives_while_it_shows_signs_of_life(tmp_path, silent):
    other_host(tmp_path / "run", silent)
    with pytest.raises(FolderInUse, match="on node7, started then"):
        FolderLock(tmp_path / "run").acquire()


def test_an_owner_on_another_host_is_dead_without_a_heartbeat(tmp_path, caplog):
    other_host(tmp_path / "run", DEAD_AFTER + 60)
    with caplog.at_level(logging.WARNING), FolderLock(tmp_path / "run"):
        pass
    assert "on node7, started then: it has shown no sign of life for 2" in caplog.text


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"pid": "x"}'])
def test_a_damaged_lock_is_decided_by_its_age(tmp_path, content):
    (tmp_path / NAME).write_text(content)
    with pytest.raises(FolderInUse):
        FolderLock(tmp_path).acquire()
    os.utime(tmp_path / NAME, (time.time() - DEAD_AFTER - 60,) * 2)
    with FolderLock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_the_owner_shows_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "BEAT", 0.02)
    with FolderLock(tmp_path):
        os.utime(tmp_path / NAME, (0, 0))
        until = time.monotonic() + 20
        while (tmp_path / NAME).stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.02)
        assert time.time() - (tmp_path / NAME).stat().st_mtime < 60


def test_what_another_process_took_over_is_not_removed(tmp_path):
    with FolderLock(tmp_path):
        (tmp_path / NAME).write_text('{"id": "other"}')
    assert (tmp_path / NAME).exists()


def test_a_moved_folder_leaves_its_lock_behind(tmp_path):
    run = tmp_path / "run"
    with FolderLock(run) as lock:
        (run / "weights").write_text("1")
        lock.move_folder(tmp_path / "run.1")
        assert [path.name for path in run.iterdir()] == [NAME]
        assert [path.name for path in (tmp_path / "run.1").iterdir()] == ["weights"]


@pytest.mark.parametrize("stale", [False, True], ids=["free", "dead owner"])
def test_of_several_that_start_together_one_wins(tmp_path, stale):
    if stale:
        other_host(tmp_path / "run", DEAD_AFTER + 60)
    processes = [start(RACE, tmp_path / "run") for _ in range(5)]
    time.sleep(0.5)
    (tmp_path / "go").touch()
    try:
        ends = [process.stdout.readline().strip() for process in processes]
        assert sorted(ends) == ["mine", *["refused"] * 4]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match="output: nothing can be written to .*file/run"):
        FolderLock(tmp_path / "file" / "run").acquire()


# -- own, new_folder


def test_a_folder_below_one_that_is_owned_is_owned_already(tmp_path):
    with own(tmp_path / "run"), own(tmp_path / "run"), own(tmp_path / "run" / "checkpoints"):
        assert not (tmp_path / "run" / "checkpoints").exists()
        with pytest.raises(FolderInUse, match=f"by process {os.getpid()} on "):
            FolderLock(tmp_path / "run").acquire()
    assert not (tmp_path / "run").exists()  # nothing was written to it, so nothing is left


def test_two_threads_of_one_process_are_two_owners(tmp_path):
    refused = []

    def second() -> None:
        try:
            with own(tmp_path):
                pass
        except FolderInUse as error:
            refused.append(str(error))

    with own(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(refused) == 1


def test_a_new_folder_is_whole_or_not_there(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ZeroDivisionError), new_folder(out) as part:
        (part / "half").write_text("x")
        assert not out.exists()
        with pytest.raises(FolderInUse), new_folder(out):
            pass
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    (tmp_path / ".out.part" / "out").mkdir(parents=True)  # of a killed process
    (tmp_path / ".out.part" / "out" / "old").write_text("x")
    out.mkdir()
    with new_folder(out) as part:
        (part / "whole").write_text("x")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["out", "out/whole"]


@pytest.mark.parametrize("dead", [False, True])
def test_a_full_disk_leaves_no_lock_without_an_owner(dead, tmp_path):
    """Half of a file names nobody, and would be respected until it had been silent for minutes."""
    if dead:
        (tmp_path / NAME).write_text('{"pid": 1, "host": "another"}')
        os.utime(tmp_path / NAME, (time.time() - 10 * DEAD_AFTER,) * 2)
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        with pytest.raises(SettingError, match="nothing can be written to .*File too large"):
            FolderLock(tmp_path).acquire()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
    assert list(tmp_path.iterdir()) == []
    with own(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
