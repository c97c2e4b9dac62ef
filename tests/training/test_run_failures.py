"""Real launches in which a rank fails, is killed, meets a NaN, or the launcher gets a SIGTERM: all ends, soon, nothing
stays behind, and what happened is told first.

Of the launches two are in every run of the tests, the others are slow.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from launches import LAUNCH, environment, log_of, program, words
from ranks import free_port

from smart_train.cli.main import main
from smart_train.core.errors import Preempted

FAULTY = Path(__file__).parents[1] / "helpers" / "faulty.py"
LAUNCHERS: dict[str, list[str]] = {
    "python": [sys.executable],
    "accelerate, one process": ["accelerate", "launch"],
    "accelerate": ["accelerate", "launch", "--config_file", str(LAUNCH / "cpu.yaml"), "--main_process_port", "0"],
    "torchrun": ["torchrun", "--standalone", "--nproc_per_node", "2"],
    "deepspeed": ["deepspeed", "--num_gpus", "2"],  # and a free port
}


@dataclass
class Ended:
    """A launch that has ended: what it printed, its status, seconds since the fault."""

    output: Path
    printed: str
    status: int
    seconds: float


@pytest.fixture
def run(tmp_path, tiny_bert, triples_file):
    """run(launcher, fault, signal=...) -> Ended, after looking that no process of it is left."""

    def launch(launcher: str, fault: str, number: int | None = None, **overrides: Any) -> Ended:
        recipe, output, mark = tmp_path / "recipe.yaml", tmp_path / "run", uuid.uuid4().hex
        recipe.write_text(f"model:\n  base: {tiny_bert}\ndata:\n  path: {triples_file}\n")
        few: dict[str, object] = {
            "training.max_steps": 200,
            "training.per_device_train_batch_size": 2,
            "training.save_strategy": "no",
            "training.logging_steps": 1,
            "training.use_cpu": "true",
            "data.dev": 2,
            "data.test": 2,
            "evaluation.before": "false",
            "evaluation.after": "false",
            "output": output,
            **overrides,
        }
        first, *others = LAUNCHERS[launcher]
        others += ["--master_port", str(free_port())] if launcher == "deepspeed" else []
        command = [first if first == sys.executable else program(first), *others, str(FAULTY), "train", str(recipe)]
        variables = environment(FAULT=fault, FAULT_FILE=str(tmp_path / "fault"), FAULT_MARK=mark)
        with (tmp_path / "printed").open("w") as stream:
            process = subprocess.Popen(
                [*command, *words(few)], env=variables, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                if number is not None:
                    _wait_for_step(output, 2, process)
                    (tmp_path / "fault").write_text(str(time.time()))
                    process.send_signal(number)
                status = process.wait(200)
                end = time.monotonic() + 50
                while (left := _left(mark)) and time.monotonic() < end:
                    time.sleep(0.2)
                seconds = time.time() - float((tmp_path / "fault").read_text())
            finally:
                for pid in _left(mark):
                    os.kill(pid, signal.SIGKILL)
        printed = re.sub(r"(?m)^\[rank\d\]: ", "", (tmp_path / "printed").read_text())  # torch's, of tracebacks
        assert not left, f"processes are left behind: {left}\n{printed[-3000:]}"
        return Ended(output, printed, status, seconds)

    return launch


def _wait_for_step(output: Path, step: int, process: subprocess.Popen) -> None:
    end = time.monotonic() + 150
    while time.monotonic() < end and process.poll() is None:
        if (output / "log.jsonl").is_file() and any(line["step"] >= step for line in log_of(output)):
            return
        time.sleep(0.1)
    raise AssertionError(f"no step {step}; status {process.poll()}")


def _left(mark: str) -> list[int]:
    """Processes of the launch, by what is in their environment; the dead that nobody has fetched do not count."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def told_first(printed: str, error: str) -> bool:
    """Whether no other error is printed before this one."""
    at = printed.find(error)
    others = ("Traceback", "Error:", "stopped, because another rank ended", "FAILED")
    before = printed[: max(0, at)].rsplit("Traceback", 1)[0] if "Traceback" in printed[:at] else printed[:at]
    return at >= 0 and not any(word in before for word in others)


# -- a rank fails


def check_failed(ended: Ended) -> None:
    assert ended.status not in (0, 75) and ended.seconds < 60, ended.printed[-3000:]
    assert not (ended.output / "stopped.json").exists()


def check_exception(ended: Ended) -> None:
    check_failed(ended)
    assert told_first(ended.printed, "ZeroDivisionError: a bug on one rank\n(rank 1 of 2)"), ended.printed
    assert ended.printed.count("raise ZeroDivisionError") == 1, "one traceback"
    assert ended.printed.count("Traceback (most recent call last)") <= 2, "the launcher's own, besides"


def test_an_exception_on_one_rank_ends_all_and_is_told_first(run):
    ended = run("accelerate", "exception:1:3")
    check_exception(ended)
    root = ended.printed.split("Root Cause")[1]
    assert "rank      : 1" in root and "ZeroDivisionError: a bug on one rank (its traceback is above)" in root


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_an_exception_on_one_rank_ends_all_whatever_launched_them(launcher, run):
    check_exception(run(launcher, "exception:1:3"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun", "deepspeed"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_all(rank, launcher, run):
    ended = run(launcher, f"kill:{rank}:3")
    check_failed(ended)
    if launcher != "deepspeed":  # which says "return code = -9" of its command alone
        assert "Signal 9 (SIGKILL)" in ended.printed.split("Root Cause")[1]
        assert f"rank      : {rank} " in ended.printed.split("Root Cause")[1]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["accelerate", "deepspeed"])
def test_a_nan_on_one_rank_ends_all_with_its_story(launcher, run):
    ended = run(launcher, "nan:1:3")
    check_failed(ended)
    assert told_first(ended.printed, "step 3: on rank 1 the loss is nan (")
    assert "of 2 pairs (query -> document: " in ended.printed and ended.printed.count("\nstep 3: on rank 1") == 1


# -- a signal


def check_stopped(ended: Ended, name: str = "SIGTERM") -> None:
    told = json.loads((ended.output / "stopped.json").read_text())
    saved = Path(told["checkpoint"])
    assert told["signal"] == name and told["step"] >= 2 and saved.name == f"checkpoint-{told['step']}"
    assert (saved / "trainer_state.json").is_file() and (saved / "adapter_model.safetensors").is_file()
    assert max(line["step"] for line in log_of(ended.output)) == told["step"], "nothing was trained after it"
    assert f"{name}: stopped after step {told['step']}" in ended.printed
    assert not (ended.output / "adapter").exists(), "nothing follows a training that was stopped"
    assert ended.seconds < 30, "the time that launchers give"


def test_a_launcher_that_gets_sigterm_leaves_a_checkpoint_and_a_way_to_go_on(run):
    ended = run("accelerate", "slow:0:0", signal.SIGTERM)
    check_stopped(ended)
    assert ended.status != 0


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["python", "accelerate, one process", "torchrun"])
def test_sigterm_whatever_launched_it(launcher, run):
    workers = {"training.dataloader_num_workers": 1}
    ended = run(launcher, "slow:0:0", signal.SIGTERM, **workers)
    check_stopped(ended)
    if launcher == "python":
        assert ended.status == 75


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on(run, tmp_path):
    ended = run("python", "slow:0:0", signal.SIGTERM)
    told = json.loads((ended.output / "stopped.json").read_text())
    on = {"training.max_steps": told["step"] + 2, "training.resume_from_checkpoint": told["checkpoint"]}
    again = run("python", "none:9:9", **on)
    assert again.status == 0 and not (again.output / "stopped.json").exists()
    assert max(line["step"] for line in log_of(again.output)) == told["step"] + 2


# -- statuses


def test_statuses_of_a_stopped_and_of_a_failed_run(monkeypatch, capsys, tmp_path, tiny_bert, triples_file):
    import types

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model:\n  base: {tiny_bert}\ndata:\n  path: {triples_file}\n")
    errors: list[Exception] = [
        Preempted("SIGTERM: stopped after step 3"),
        ZeroDivisionError("a bug"),
        RuntimeError("[pair.cc:534] Connection closed by peer [10.0.0.2]:1234"),
    ]

    def fail(*_: object) -> None:
        raise errors[0]

    monkeypatch.setitem(sys.modules, "smart_train.training.run", types.SimpleNamespace(run=fail))
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert main(["train", str(recipe)]) == 75
    assert capsys.readouterr().err == "SIGTERM: stopped after step 3\n" and not (tmp_path / "error.json").exists()
    del errors[0]
    with pytest.raises(ZeroDivisionError):
        main(["train", str(recipe)])
    message = json.loads((tmp_path / "error.json").read_text())["message"]
    assert message["message"] == "rank 0 of 1: ZeroDivisionError: a bug (its traceback is above)"
    (tmp_path / "error.json").unlink()
    del errors[0]
    waited: list[float] = []
    passed_on: list[str] = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setattr("smart_train.cli.main.report_to_other_machines", passed_on.append)
    monkeypatch.setattr("smart_train.cli.main.end_process_after", lambda seconds: None)
    launched = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match="closed by peer"):
        main(["train", str(recipe)])
    assert capsys.readouterr().err.startswith("stopped, because another rank ended ([pair.cc:534] Connection closed")
    assert waited == [30] and not (tmp_path / "error.json").exists(), "the launcher names the rank that failed"
    (told,) = passed_on  # for other machines: the rank that was killed could write nothing
    assert told.startswith("rank 0 lost a rank, which could report nothing itself: [pair.cc:534] Connection closed")
