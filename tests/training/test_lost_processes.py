"""A launch that asks accelerate for several processes and gets one, without a warning, is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from launches import environment, program, words

from smart_train.checks import launch
from smart_train.checks.launch import check_launch, lost_processes
from smart_train.config.schema import Recipe

ASKED = {
    "--cpu": ["--cpu", "--num_processes", "2"],
    "a module": ["--cpu", "--num_processes", "4", "-m"],
    "half precision": ["--cpu", "--num_processes", "2", "--mixed_precision", "bf16"],
    "two machines": ["--cpu", "--num_machines", "2", "--main_process_ip", "10.0.0.1", "--main_process_port", "29500"],
    "no GPU in the machine": ["--num_processes", "2"],
}
ONE = {"one process": ["--cpu", "--num_processes", "1"], "nothing said": ["--cpu"]}


def launched(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that accelerate's launcher gives its one process for these arguments."""
    names = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK")
    for name in [name for name in os.environ if name.startswith("ACCELERATE_") or name in names]:
        monkeypatch.delenv(name)
    options, _, _ = _validate_launch_command(launch_command_parser().parse_args([*arguments, "script.py"]))
    _, variables = prepare_simple_launcher_cmd_env(options)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch, "_launcher_words", lambda: [*arguments, "script.py"])


@pytest.mark.parametrize("arguments", ASKED.values(), ids=ASKED)
def test_several_that_became_one_are_refused(arguments, monkeypatch):
    launched(arguments, monkeypatch)
    assert lost_processes()
    problems = [str(problem.what) for problem in check_launch(Recipe())]
    assert any("asked for several processes and started one" in what for what in problems)


@pytest.mark.parametrize("arguments", ONE.values(), ids=ONE)
def test_one_that_was_asked_for_trains(arguments, monkeypatch):
    launched(arguments, monkeypatch)
    assert not lost_processes() and not list(check_launch(Recipe()))


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_processes_that_know_of_each_other_are_not_lost(name, monkeypatch):
    launched(ASKED["--cpu"], monkeypatch)
    monkeypatch.setenv(name, "2")
    assert not lost_processes()


CLUSTER = {  # MASTER_ADDR is there, though nobody asked for several
    "one process": ["--cpu", "--num_processes", "1"],
    "nothing said": ["--cpu"],
    "one machine": ["--cpu", "--num_machines", "1", "--main_process_ip", "10.0.0.1"],
    "a module": ["--num_processes", "1", "-m"],
    "its own words after the script": ["--cpu", "script.py", "--num_processes", "8"],
}


@pytest.mark.parametrize("arguments", CLUSTER.values(), ids=CLUSTER)
def test_a_cluster_that_exports_a_master_address_trains_in_the_one_process_that_was_asked_for(arguments, monkeypatch):
    launched(arguments, monkeypatch)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    assert not lost_processes() and not list(check_launch(Recipe()))


@pytest.mark.parametrize("arguments", ASKED.values(), ids=ASKED)
def test_a_cluster_that_exports_a_master_address_hides_no_lost_process(arguments, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    launched(arguments, monkeypatch)
    assert lost_processes()


def test_the_number_of_a_launch_file_counts(tmp_path, monkeypatch):
    file = tmp_path / "launch.yaml"
    file.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n"
    )
    launched(["--config_file", str(file)], monkeypatch)
    assert lost_processes()
    monkeypatch.setattr(launch, "_launcher_words", lambda: ["--config_file", str(file), "--num_processes", "1", "x.py"])
    assert not lost_processes()


def test_a_launcher_that_cannot_be_seen_leaves_the_decision_to_the_address(monkeypatch):
    launched(CLUSTER["one process"], monkeypatch)
    monkeypatch.setattr(launch, "_launcher_words", lambda: None)
    assert not lost_processes()
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    assert lost_processes()


@pytest.mark.parametrize(
    "how", [["-m", "accelerate.commands.launch"], ["-m", "accelerate.commands.accelerate_cli", "launch"]]
)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.slow
def test_the_launchers_own_words_are_found(how, count, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from smart_train.checks.launch import lost_processes\nprint('lost', lost_processes())\n")
    command = [sys.executable, *how, "--cpu", "--num_processes", str(count), str(script), "--num_processes", "7"]
    variables = {**environment(), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=variables, capture_output=True, text=True, timeout=300, check=True
    )
    assert f"lost {count > 1}" in done.stdout


@pytest.mark.parametrize("multi_cpu", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["--cpu", "MULTI_CPU"])
def test_the_launch_itself_ends_with_a_sentence_and_trains_nothing(multi_cpu, tmp_path, tiny_bert, triples_file):
    recipe, file = tmp_path / "recipe.yaml", tmp_path / "launch.yaml"
    recipe.write_text(f"model:\n  base: {tiny_bert}\ndata:\n  path: {triples_file}\n  dev: 2\n  test: 2\n")
    file.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n"
    )
    how = ["--config_file", str(file)] if multi_cpu else ["--cpu", "--num_processes", "2"]
    few = words({"training.max_steps": 1, "output": tmp_path / "run"})
    command = [program("accelerate"), "launch", *how, "-m", "smart_train", "train", str(recipe), *few]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, cwd=root, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode != 0 and not (tmp_path / "run").exists()
    assert "the launch: accelerate was asked for several processes and started one" in done.stderr
    assert "launch/cpu.yaml" in done.stderr
