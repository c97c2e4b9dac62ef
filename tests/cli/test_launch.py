"""``smart-train launch`` and ``launch-files``: launch files are found, and name DeepSpeed settings that exist."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from smart_train.cli.main import main
from smart_train.planning.launch_files import read_launch, shipped

NAMES = [path.stem for path in shipped()]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working directory without launch/, and a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_gives_a_path_that_works_from_any_folder(name, capsys):
    assert main(["launch", name]) == 0
    path = Path(capsys.readouterr().out.rstrip("\n"))
    assert path.is_absolute() and path.stem == name
    settings = yaml.safe_load(path.read_text())
    original = yaml.safe_load(next(one for one in shipped() if one.stem == name).read_text())
    if "deepspeed_config" in original:
        zero = Path(settings["deepspeed_config"].pop("deepspeed_config_file"))
        assert zero.is_absolute() and zero.name == Path(original["deepspeed_config"].pop("deepspeed_config_file")).name
        assert zero.is_file() and read_launch(path).zero
    assert settings == original


def test_without_a_name_they_are_listed_and_an_unknown_one_is_refused(capsys):
    assert main(["launch"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()] == NAMES and "every GPU holds the whole model" in printed
    assert main(["launch", "zero4"]) == 2
    assert "'zero4'" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_one_sentence(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert main(["launch", "ddp"]) != 0
    out, err = capsys.readouterr()
    assert not out and "XDG_CACHE_HOME" in err


def test_they_are_copied_with_paths_of_the_copy_and_what_is_there_stays(capsys):
    Path("own").mkdir()
    Path("own/ddp.yaml").write_text("mine")
    assert main(["launch-files", "own"]) == 0
    assert "kept as they were: ddp.yaml" in capsys.readouterr().out
    assert Path("own/ddp.yaml").read_text() == "mine"
    assert {path.name for path in Path("own").iterdir()} == {path.name for path in shipped("*")}
    zero = yaml.safe_load(Path("own/zero3.yaml").read_text())["deepspeed_config"]["deepspeed_config_file"]
    assert zero == "own/zero3.json" and Path(zero).is_file()
    assert Path("own/torchrun.sh").stat().st_mode & 0o111
