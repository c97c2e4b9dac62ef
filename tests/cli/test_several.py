"""Several processes of one command: what they are told, and how one's failure is everybody's."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from launches import environment

from smart_train.distributed import local_launch as module
from smart_train.distributed.local_launch import launch_local, remove_option

PYTHON = sys.executable


def test_the_flag_that_starts_them_is_not_passed_on():
    assert remove_option(["evaluate", "x", "--processes", "2", "--k", "5"], "--processes") == [
        "evaluate",
        "x",
        "--k",
        "5",
    ]
    assert remove_option(["--processes=2", "x", "--processes-of-mine"], "--processes") == ["x", "--processes-of-mine"]


def test_each_is_a_rank_of_one_launch_and_all_end_well(monkeypatch, tmp_path):
    code = (
        "import os, sys; names = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'OMP_NUM_THREADS');"
        f"open(os.path.join({str(tmp_path)!r}, os.environ['RANK']), 'w').write(' '.join(os.environ[n] for n in names))"
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "executable", _program(tmp_path, code))
    assert launch_local(2, ["x"]) == 0
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["0 0 2 127.0.0.1 1", "1 1 2 127.0.0.1 1"]


def test_when_one_fails_its_status_is_told_and_the_others_are_ended(monkeypatch, tmp_path):
    code = "import os, sys, time; sys.exit(7) if os.environ['RANK'] == '1' else time.sleep(60)"
    monkeypatch.setattr(sys, "executable", _program(tmp_path, code))
    begun = time.monotonic()
    assert launch_local(3, []) == 7
    assert time.monotonic() - begun < 8
    stubborn = "import os, signal, time; signal.signal(15, signal.SIG_IGN); " + code
    monkeypatch.setattr(sys, "executable", _program(tmp_path, stubborn))
    monkeypatch.setattr(module, "GRACE", 0.5)
    assert launch_local(2, []) == 7


def test_a_terminated_command_takes_its_processes_with_it(tmp_path):
    fake = _program(tmp_path, "import time; time.sleep(60)")
    code = f"import sys; sys.executable = {fake!r}; from smart_train.distributed.local_launch import launch_local; launch_local(2, [])"  # noqa: E501
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment())
    end = time.monotonic() + 30
    while time.monotonic() < end and len(psutil.Process(parent.pid).children()) < 2:
        time.sleep(0.05)
    children = psutil.Process(parent.pid).children()
    assert len(children) == 2
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(20) == 143
    assert psutil.wait_procs(children, 10)[1] == []


def _program(folder: Path, code: str) -> str:
    """Something to run in place of Python, whatever it is given."""
    path = folder / "program"
    (folder / "code.py").write_text(code)
    path.write_text(f'#!/bin/sh\nexec "{PYTHON}" "{folder / "code.py"}"\n')
    path.chmod(0o755)
    return str(path)
