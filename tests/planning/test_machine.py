"""What is known to go wrong is told where it would go wrong, with what to do, and nowhere else."""

from __future__ import annotations

import importlib.machinery
import re
import shutil
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from smart_train.planning import launch_files as launches
from smart_train.planning.machine import Gpu, Machine, inspect_machine, known_problems

GIB = 1 << 30
FINE = Machine(
    gpus=[Gpu("one", 80 * GIB, 79 * GIB, True, (9, 0))],
    cores=16,
    ram=128 * GIB,
    free_ram=100 * GIB,
    disk=500 * GIB,
    shared=8 * GIB,
    versions={},
    cuda="12.8",
    backends=["nccl", "gloo"],
    kernels={"late-interaction-kernels": True, "flash-attn": False},
    compiler="/usr/bin/g++",
    threads=None,
    trackers={},
    launcher=("", {}),
    driver=True,
)


@pytest.fixture(autouse=True)
def no_torchvision(monkeypatch):
    monkeypatch.setattr("smart_train.planning.machine._vision_broken", lambda: False)


def test_a_machine_in_order_is_told_nothing():
    assert list(known_problems(FINE)) == []
    assert FINE.memory == 80 * GIB
    other = replace(FINE, gpus=[*FINE.gpus, Gpu("small", 24 * GIB, 24 * GIB, True)])
    assert other.memory == 24 * GIB and replace(FINE, gpus=[]).memory is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"cuda": None, "gpus": []}, "torch is a build for CPUs; install torch's CUDA build"),
        ({"gpus": []}, "sees no GPU: the driver is too old for it"),
        ({"gpus": [], "driver": False}, "sees no GPU: no driver was found"),
        ({"gpus": [], "environment": {"CUDA_VISIBLE_DEVICES": ""}}, "CUDA_VISIBLE_DEVICES is ''"),
        ({"gpus": FINE.gpus * 2}, "start runs with accelerate launch"),
        ({"shared": 64 << 20}, "/dev/shm has 64 MiB; .*--shm-size=8g"),
        ({"compiler": None}, "no C.. compiler: DeepSpeed cannot build"),
        ({"backends": ["gloo"]}, "torch has no NCCL"),
        ({"kernels": {"late-interaction-kernels": False}}, "pip install 'smart-train\\[kernels\\]'"),
        ({"environment": {"HF_HUB_OFFLINE": "1"}}, "local cache alone"),
        ({"launcher": ("default.yaml", {})}, "without --config_file reads default.yaml \\(no distributed_type\\)"),
    ],
)
def test_each_trap_is_told_by_itself(changed, said):
    (line,) = known_problems(replace(FINE, **changed))
    assert re.search(said, line), line


def test_accelerates_own_default_file_is_looked_at(monkeypatch, tmp_path):
    """It is what a launch without --config_file obeys, and nobody remembers having written it."""
    import accelerate.commands.config.config_args as theirs

    file = tmp_path / "default.yaml"
    monkeypatch.setattr(theirs, "default_config_file", str(file))
    assert launches.default_file() == ("", {})
    file.write_text(yaml.safe_dump({"distributed_type": "MULTI_CPU", "mixed_precision": "fp16"}))
    lines = list(known_problems(replace(FINE, launcher=launches.default_file())))
    assert len(lines) == 3 and all(str(file) in line for line in lines)
    assert "one process; take --config_file launch/cpu.yaml" in lines[1] and "mixed_precision fp16" in lines[2]
    file.write_text("- no\n- mapping\n")
    assert launches.default_file() == (str(file), {})


def test_a_package_that_is_there_and_cannot_be_imported_is_not_called_there(monkeypatch, tmp_path):
    (tmp_path / "late_interaction_kernels.py").write_text("raise RuntimeError('0 active drivers')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "late_interaction_kernels", raising=False)
    assert inspect_machine(tmp_path).kernels["late-interaction-kernels"] is False
    monkeypatch.setitem(sys.modules, "late_interaction_kernels", _module("late_interaction_kernels"))
    assert inspect_machine(tmp_path).kernels["late-interaction-kernels"] is True


def _module(name: str) -> types.ModuleType:
    found = types.ModuleType(name)
    found.__spec__ = importlib.machinery.ModuleSpec(name, None)
    return found


def test_the_disk_is_that_of_an_output_that_is_not_there_yet(tmp_path):
    found = inspect_machine(tmp_path / "runs" / "mine").disk
    assert found is not None and abs(found - shutil.disk_usage(tmp_path).free) < GIB
    assert inspect_machine(Path("runs")).disk is not None
