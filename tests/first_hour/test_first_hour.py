"""Ten jobs of a first hour, as a reader of the docs would do them: each is a script beside this file.

They run in a folder with a base (``base``), a CSV (``pairs.csv``: question, answer) and a BEIR folder (``beir``), by
relative paths. Two of them are quick; the others take up to three minutes each, and are run by ``make test-all``.
"""

from __future__ import annotations

import csv
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import tiny_data
import torch
from nbclient import NotebookClient

HERE, ROOT = Path(__file__).parent, Path(__file__).resolve().parents[2]
SECONDS = 180


@pytest.fixture
def desk(tmp_path, tiny_bert, beir_folder, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("base").symlink_to(tiny_bert)
    Path("beir").symlink_to(beir_folder)
    with open("pairs.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["question", "answer"])
        writer.writerows([f"what stands beside the {t}", tiny_data.passage(n)] for n, t in enumerate(tiny_data.TOPICS))
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name != "SMART_TRAIN_READ_PLAINLY"}
    path = os.pathsep.join([str(Path(sys.executable).parent), own["PATH"]])
    more = {"PATH": path, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    return {**own, **more, "HF_HUB_OFFLINE": "1"}


def shell(name: str, folder: Path) -> str:
    """Run a script as its reader would; return what it printed."""
    script = ["bash", str(HERE / f"{name}.sh")]
    done = subprocess.run(script, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_a_csv_becomes_an_adapter_in_python(desk):
    found = runpy.run_path(str(HERE / "csv_to_adapter.py"))
    assert found["scores"].shape == (4, 4) and torch.isfinite(found["scores"]).all()
    assert (desk / "runs/csv/adapter/verified.json").is_file()


def test_a_frozen_head_of_32_dimensions(desk):
    found = runpy.run_path(str(HERE / "frozen_head.py"))
    assert found["after"].tokens.values.shape[1] == 32
    assert torch.allclose(found["before"].pooled, found["after"].pooled, atol=1e-5)  # the base's own


@pytest.mark.slow
def test_a_notebook_with_a_loss_and_a_callback_of_ones_own(desk, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cells = (HERE / "own_loss_and_callback.py").read_text().split("# %%\n")[1:]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(desk)}}).execute()
    assert int(notebook.cells[-1].outputs[-1].data["text/plain"]) >= 1


@pytest.mark.slow
def test_negatives_are_mined_for_a_table_with_columns_of_ones_own(desk):
    assert "negatives of" in shell("mine_own_columns", desk)
    assert list((desk / "data/mined/negatives").iterdir()) and metrics(desk / "runs/mined")


@pytest.mark.slow
def test_before_and_after_on_a_beir_folder(desk):
    printed = shell("before_and_after", desk)
    assert "trained hybrid - " in printed and (desk / "results/after/report.html").is_file()


@pytest.mark.slow
def test_a_probe_is_applied(desk):
    assert "recommended: " in shell("probe_and_apply", desk)


@pytest.mark.slow
def test_ctrl_c_and_resume(desk):
    assert "resumed" in shell("ctrl_c_and_resume", desk).lower()
    steps = [json.loads(line)["step"] for line in (desk / "runs/mine/log.jsonl").read_text().splitlines()]
    assert max(steps) == 160 and steps == sorted(steps)  # 40 epochs of 4 batches of 4 pairs, none of them twice


@pytest.mark.slow
def test_two_processes(desk):
    assert "2 processes on CPU, DDP" in shell("two_processes", desk)
    assert (desk / "runs/mine/adapter/verified.json").is_file()


@pytest.mark.slow
def test_others_load_what_was_exported(desk):
    assert "all of them agree" in shell("export_and_load", desk)


@pytest.mark.slow
def test_a_dry_run_of_publishing_shows_the_card(desk):
    printed = shell("publish_dry_run", desk)
    assert "nothing was sent" in printed and "license: apache-2.0" in printed and "| trained |" in printed
