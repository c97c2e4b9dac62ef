"""``smart-train doctor``: what it prints and what programs get, on this machine and for GPUs that are not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import yaml

from smart_train.cli.main import main
from smart_train.config.recipe import read
from smart_train.config.schema import LateBlock
from smart_train.models.encoder import SmartEncoder
from smart_train.training.callbacks.first_step import check_trainable

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
GIB = 1 << 30


@pytest.fixture(scope="module")
def recipe(tiny_models, triples_file, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("doctor") / "mine.yaml"
    blocks: dict[str, Any] = {
        "model": {"base": str(tiny_models("bert"))},
        "late": {"head": "layernorm_linear", "dim": 16},
        "adapter": {"r": 4},
        "data": {"path": str(triples_file), "dev": 2, "test": 2},
        "objective": {"batch": 32, "chunk_rows": 4},
        "training": {"max_steps": 2},
    }
    path.write_text(yaml.safe_dump(blocks))
    return path


@pytest.fixture
def told(capsys):
    """told(words...) -> what it printed, and by default that the recipe can run."""

    def run(*words: object, status: int = 0) -> str:
        capsys.readouterr()
        assert main(["doctor", *map(str, words)]) == status
        return capsys.readouterr().out

    return run


def rows_of(printed: str) -> dict[str, list[str]]:
    """The table's lines by launch file."""
    names = {path.stem for path in LAUNCH.glob("*.yaml")}
    found = [line.split() for line in printed.splitlines()]
    return {words[0]: words[1:] for words in found if words and words[0] in names}


def test_without_a_recipe_it_tells_the_machine(told):
    """By its own command, as a user types it: nothing of this process is in the way."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "3"}
    done = subprocess.run(
        [sys.executable, "-m", "smart_train", "doctor", "--json"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    machine = json.loads(done.stdout)["machine"]
    assert machine["versions"]["torch"] == torch.__version__
    assert machine["versions"]["accelerate"] == accelerate.__version__
    assert machine["threads"] == "3" and len(machine["gpus"]) == torch.cuda.device_count()
    memory = {line.split(":")[0]: line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines()}
    assert machine["ram"] <= int(memory["MemTotal"]) << 10 and machine["free_ram"] < machine["ram"]
    printed = told()
    assert "recipe" not in printed and f"{len(os.sched_getaffinity(0))} cores" in printed
    for word in ("GPU", "memory", "disk", "torch", "versions", "kernels", "trackers"):
        assert f"\n  {word}" in printed


def test_a_recipe_gets_a_line_for_every_launch_file(told, recipe):
    printed = told(recipe, "--gpus", 4, "--memory", 80)
    rows = rows_of(printed)
    assert rows.keys() == {path.stem for path in LAUNCH.glob("*.yaml")}
    ranks = {name: int(words[0]) for name, words in rows.items()}
    assert ranks["single"] == 1 and ranks["ddp"] == ranks["zero3"] == 4 and ranks["ddp_nodes"] == 8
    assert "4 GPUs of 80.0 GiB" in printed and "32 pairs a loss over all GPUs, gradients cached, 4 rows" in printed
    assert all("fits" in (words[10], words[10].rstrip(";")) for words in rows.values())  # or: fits; 0.1 GiB of RAM
    assert "advice      4 GPUs: --config_file launch/ddp.yaml" in printed


def test_programs_get_the_same_with_sizes_in_bytes(told, recipe, tmp_path):
    """Parameters are those of the encoder that the run would train; weights are its bytes."""
    found = json.loads(told(recipe, "adapter.r=8", "--gpus", 2, "--memory", 80, "--json"))["recipe"]
    made = read(recipe, ["adapter.r=8"])
    late: LateBlock = made.late
    encoder = SmartEncoder(made.model.base, model=made.model, late=late, adapter=made.adapter, device="cpu")
    counts = check_trainable(encoder, made.adapter)
    assert {name: found["parameters"][name] for name in counts} == counts
    needs = {one["launch"]: one for one in found["needs"]}
    held = sum(p.nbytes for p in encoder.parameters())
    trained = sum(p.nbytes for p in encoder.parameters() if p.requires_grad)
    for name in ("single", "ddp"):
        assert needs[name]["states"]["weights"] == held
        assert needs[name]["states"]["optimiser"] == 2 * trained
    assert needs["ddp"]["states"]["gradients"] == 2 * needs["single"]["states"]["gradients"] == 2 * trained
    assert needs["zero3"]["states"]["weights"] == held // 2
    assert {one["verdict"] for one in found["needs"]} == {"fits"} and found["cached"] and found["pairs"] == 32


def test_where_nothing_fits_it_says_what_to_change(told, recipe):
    printed = told(recipe, "objective.batch=4096", "objective.chunk_rows=256", "--gpus", 1, "--memory", 1.5)
    assert "does not fit" in printed
    (line,) = [line for line in printed.splitlines() if "1 GPU: nothing fits as it is; it would with" in line]
    changes = [word for word in line.split(" and ")[-1].split() if "=" in word]
    assert changes
    again = told(recipe, "objective.batch=4096", "objective.chunk_rows=256", *changes, "--gpus", 1, "--memory", 1.5)
    assert "fits" in rows_of(again)["single"]


def test_without_a_gpu_it_says_how_to_ask_for_one(told, recipe):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    printed = told(recipe)
    assert "no GPU here; to see what would fit on some, name their number and memory: --gpus 8 --memory 80" in printed
    assert not rows_of(printed) and "parameters" in printed
    for words in (("--gpus", 8), ("--memory", 80), ("--launch", LAUNCH / "ddp.yaml")):
        assert "ddp" in rows_of(told(recipe, *words))
    assert json.loads(told(recipe, "--json"))["recipe"]["needs"]


def test_a_run_on_cpu_cores_is_held_against_the_machines_memory(told, recipe):
    printed = told(recipe, "training.use_cpu=true")
    rows = rows_of(printed)
    assert "processes on CPU cores" in printed and "ddp_nodes" not in rows
    assert "fits" in rows["cpu"] and "advice      this machine: --config_file launch/" in printed
    assert "accelerate has FSDP on accelerators only: on a CPU this is DDP" in printed


def test_mistakes_are_told_beside_what_can_be_counted(told, recipe):
    printed = told(
        recipe, "data.path=nowhere", "training.metric_for_best_model=hybrid/ndcg@10", "--memory", 80, status=2
    )
    assert "stops here" in printed and "nowhere" in printed and "metric_for_best_model" in printed
    assert rows_of(printed)["ddp"]


def test_a_recipe_without_a_base_is_told_with_its_line(capsys, recipe):
    assert main(["doctor", str(recipe), "model.base=no/where/at-all"]) == 2
    out, err = capsys.readouterr()
    assert "machine" in out and "model.base" in err and "at-all" in err


def test_launch_files_of_ones_own_are_read_and_broken_ones_named(told, recipe, tmp_path, capsys):
    mine, broken = tmp_path / "three.yaml", tmp_path / "broken.yaml"
    mine.write_text("distributed_type: MULTI_GPU\nnum_processes: 3\n")
    broken.write_text("num_processes: 3\n")
    printed = told(recipe, "--launch", mine, "--launch", broken, "--gpus", 3, "--memory", 80)
    assert f"{broken}: it has no distributed_type" in printed
    assert "objective.batch 32 cannot be shared by 3 ranks; write a multiple of 3" in printed
    assert main(["doctor", str(recipe), "--launch", str(broken)]) == 2
    assert "no launch file can be read" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--memory", "none"], ["--memory", "-1"], ["--gpus", "0"]])
def test_numbers_that_are_none_are_refused(words, recipe, capsys):
    with pytest.raises(SystemExit):
        main(["doctor", str(recipe), *words])
    assert words[0] in capsys.readouterr().err
