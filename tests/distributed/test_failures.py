"""Which errors are another rank's end, what the launcher's summary says, and how a rank ends that hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from smart_train.distributed.failures import end_process_after, is_caused_by_other_rank, summary, write_error_file

ROOT = Path(__file__).parents[2]
ECHOES = [
    RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4321"),
    RuntimeError("Application timeout caused pair closure"),
    RuntimeError("NCCL communicator was aborted on rank 3"),
    ConnectionResetError("[Errno 104] Connection reset by peer"),
    BrokenPipeError("[Errno 32] Broken pipe"),
    dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp"),
    dist.DistNetworkError("the server socket has failed"),
]
OWN = [
    ZeroDivisionError("connection closed by peer"),  # somebody's bug, whatever it says
    RuntimeError("CUDA out of memory"),
    ValueError("broken pipe"),
    OSError(28, "No space left on device"),
    KeyError("rank"),
]


@pytest.mark.parametrize("error", ECHOES, ids=lambda e: str(e)[:30])
def test_a_connection_that_broke_is_another_ranks_end(error, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert is_caused_by_other_rank(error)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not is_caused_by_other_rank(error), "alone there is no other rank"


@pytest.mark.parametrize("error", OWN, ids=lambda e: type(e).__name__)
def test_any_other_error_is_a_ranks_own(error, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not is_caused_by_other_rank(error)


def test_the_launchers_file_has_the_first_word(monkeypatch, tmp_path):
    """In the form that torchrun's summary reads."""
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    told = summary(ValueError("a page that is not there"))
    write_error_file(told)
    write_error_file("what followed from it")
    assert told == "rank 1 of 4: ValueError: a page that is not there (its traceback is above)"
    failure = ProcessFailure(local_rank=1, pid=1, exitcode=1, error_file=str(file))
    assert failure.message["message"] == told and abs(failure.timestamp - time.time()) < 60
    assert json.loads(file.read_text())["message"]["extraInfo"]["py_callstack"] == told


def test_without_a_launcher_nothing_is_written(monkeypatch, tmp_path):
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    write_error_file("told")
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_does_not_end_by_itself_is_ended():
    """One that waits for a collective which nobody joins any more; alone, a process is left in peace."""
    code = "from smart_train.distributed.failures import end_process_after; end_process_after(0.2); "
    for ranks, seconds, status in (("2", 50, 1), ("1", 1, 7)):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "WORLD_SIZE": ranks}
        program = f"{code}import time; time.sleep({seconds}); raise SystemExit(7)"
        assert subprocess.run([sys.executable, "-c", program], env=environment, timeout=60).returncode == status
    assert end_process_after(60) is None
