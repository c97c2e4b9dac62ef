"""Every command refuses an output that cannot be written before it reads anything, with one sentence and status 2."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from smart_train.cli.main import main
from smart_train.core import output_check
from smart_train.core.output_check import output_problem

READ = ["--model", "nothing", "--output"]
COMMANDS = {  # the output comes last; all the rest does not exist, so it was not looked at
    "evaluate": ["evaluate", "nowhere", *READ],
    "evaluate --store": ["evaluate", "nowhere", "--model", "nothing", "--store"],
    "benchmark": ["benchmark", "--tasks", "x", *READ],
    "probe": ["probe", "nowhere", *READ],
    "mine": ["mine", "nowhere", "--model", "nothing", "--out"],
    "ingest": ["ingest", ".", "--round-trip", "nothing", "--out"],
    "export": ["export", "nowhere", "--as", "merged", "--out"],
    "merge": ["merge", "nowhere", "nothing", "--out"],
    "data check": ["data", "check", "nowhere", "--fix"],
    "data pull": ["data", "pull", "no/where", "--out"],
    "heatmap": ["heatmap", "query", "nowhere", *READ],
    "new": ["new"],
}


PLACES = ["below a file", "dangling link", "long name", "system folder", "device", "long path", "no UTF-8"]


@pytest.fixture
def places(tmp_path) -> dict[str, tuple[Path, str]]:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    return {
        "below a file": (tmp_path / "file" / "a" / "out", "file is a file"),
        "dangling link": (tmp_path / "link" / "out", "gone, which does not exist"),
        "long name": (tmp_path / ("x" * 300), "is longer than 255 bytes"),
        "system folder": (Path("/proc/a/out"), "nothing can be written into /proc ("),
        "device": (Path("/dev/null/out"), "/dev/null is no folder"),
        "long path": (tmp_path.joinpath(*["d" * 200] * 30), "... is longer than 3840 bytes"),
        "no UTF-8": (tmp_path / "a\udcff", "is not UTF-8"),
    }


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_an_output_that_cannot_be_written_is_told_before_anything_is_read(command, place, places, capsys):
    path, told = places[place]
    told = "cannot name a recipe" if (command, place) == (["new"], "no UTF-8") else told
    suffix = {"heatmap": ".png", "new": ".yaml"}.get(command[0], "")
    assert main([*command, f"{path}{suffix}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line and ("; name another " in line and line.startswith(("--", "NAME: "))) or "cannot name" in told


@pytest.mark.parametrize("place", PLACES[:-1])  # a recipe is UTF-8
def test_a_recipe_whose_output_cannot_be_written_is_told_with_its_line(place, places, tmp_path, capsys):
    path, told = places[place]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"output: {path}\nmodel:\n  base: nothing\ndata:\n  path: nowhere\n")
    assert main(["train", str(recipe)]) == 2
    printed = capsys.readouterr().err
    assert "recipe.yaml, line 1: output: " in printed and told in printed


def test_a_disk_without_room_for_a_block_is_told(tmp_path, monkeypatch):
    """An empty file still fits on a full disk."""
    original = output_check.tempfile.TemporaryFile

    def full(**where):
        stream = original(**where)
        device = os.open("/dev/full", os.O_WRONLY)
        os.dup2(device, stream.fileno())
        os.close(device)
        return stream

    monkeypatch.setattr(output_check.tempfile, "TemporaryFile", full)
    told = f"nothing can be written into {tmp_path} (No space left on device)"
    assert output_problem(tmp_path / "out") == told and output_problem(tmp_path / "out.png", file=True) == told


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_permissions_are_obeyed(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "(Permission denied)" in str(output_problem(tmp_path / "closed" / "a" / "b"))


def test_a_folder_that_is_to_be_moved_needs_its_parent(tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setattr(output_check, "_try", lambda folder: "Read-only file system" if folder == tmp_path else None)
    assert output_problem(run, moved=True) is None  # an empty one stays where it is
    (run / "log.jsonl").write_text("")
    assert output_problem(run) is None
    assert output_problem(run, moved=True) == f"nothing can be written into {tmp_path} (Read-only file system)"
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == run)
    assert "is a mount point that is not empty" in str(output_problem(run, moved=True))


def test_what_can_be_written_is_left_as_it_is(tmp_path):
    (tmp_path / "there.png").write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    assert output_problem(tmp_path) is None and output_problem(tmp_path / "new" / "out") is None
    assert output_problem(tmp_path / "new.png", file=True) is None
    assert output_problem(tmp_path / "there.png", file=True) is None
    assert output_problem(tmp_path, file=True) == f"{tmp_path} is a folder"
    assert sorted(tmp_path.rglob("*")) == before
