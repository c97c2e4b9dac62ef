"""Scripts in a process of their own: isolated, and ended when they take too long or too much."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from smart_train.core.child_process import ChildFailed, ask


@pytest.fixture
def script(tmp_path):
    def write(body: str) -> Path:
        path = tmp_path / "script.py"
        path.write_text(f"import os, sys\ndef answer(request):\n    {body}\n")
        return path

    return write


def test_the_answer_comes_back_and_prints_do_not_disturb_it(script):
    assert ask(script("print('noise'); os.write(1, b'more'); return [request, 2 * request]"), 21, 30) == [21, 42]


def test_this_package_cannot_be_imported_there_and_the_libraries_can(script, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    body = (
        "import tokenizers\n    try:\n        import smart_train.core.errors\n    except ImportError:\n        return 1"
    )
    assert ask(script(body), None, 30) == 1


def test_it_takes_no_part_in_a_launch_around_it(script, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "ACCELERATE_USE_FSDP", "FSDP_VERSION"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    found = ask(script("return dict(os.environ)"), None, 30)
    assert not [name for name in found if name.startswith(("RANK", "WORLD", "LOCAL_R", "MASTER", "ACCELERATE", "FSDP"))]
    assert found["CUDA_VISIBLE_DEVICES"] == "7"


def test_one_that_never_ends_is_ended_with_the_processes_it_started(script, tmp_path):
    body = (
        f"import subprocess, time\n    p = subprocess.Popen(['sleep', '600'])\n    open({str(tmp_path / 'pid')!r}, 'w')"
    )
    body += ".write(str(p.pid))\n    time.sleep(600)"
    with pytest.raises(ChildFailed, match=r"had not ended after 1\.5 s") as error:
        ask(script(body), None, 1.5)
    assert error.value.late
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the process that it started lives on")


FAILS = {
    "an exception": ("raise KeyError('shape')", "KeyError: 'shape'"),
    "too much memory": ("return len(bytearray(1 << 31))", "MemoryError"),
    "a silent exit": ("os._exit(3)", "status 3"),
    "a signal": ("os.kill(os.getpid(), 11)", "status -11"),
    "no answer that travels": ("return lambda: 1", "pickle"),
}


@pytest.mark.parametrize("kind", FAILS)
def test_how_it_failed_is_told_in_a_line(kind, script):
    body, message = FAILS[kind]
    with pytest.raises(ChildFailed, match=message) as error:
        ask(script(body), None, 30, memory=1 << 30)
    assert not error.value.late and "\n" not in str(error.value)


def test_nothing_is_left_of_it(script, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", None)
    before = set(os.listdir(tmp_path))
    ask(script("return 1"), None, 30)
    assert set(os.listdir(tmp_path)) - before == {"script.py"}
