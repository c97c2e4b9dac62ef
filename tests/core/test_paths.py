"""``~`` is the home folder in every place that takes a path: recipes, their overrides, commands, and Python."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import tiny_data

from smart_train.cli.main import _expand_paths, main
from smart_train.config import recipe as recipes
from smart_train.config.schema import DataBlock, Recipe
from smart_train.core.hub import resolve_base
from smart_train.core.paths import expand_home
from smart_train.data import store
from smart_train.data.collection import Collection, Document
from smart_train.data.load import check_data, load
from smart_train.data.readers.beir import read_beir

ROWS = [{"query": f"question {n}", "positive": f"answer {n}"} for n in range(12)]


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "data").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "home"


def test_data_below_home_is_read(home):
    tiny_data.write_lines(home / "data" / "rows.jsonl", ROWS)
    block = DataBlock(path="~/data/rows.jsonl", dev=2, test=2)
    assert check_data(block) == [] and len(load(block)[0].queries) == 8


def test_a_recipe_and_its_overrides_name_the_same_folders(home):
    (home / "r.yaml").write_text("name: mine\noutput: ~/runs/a\nmodel: {base: ~/model}\ndata: {path: ~/data}\n")
    read = recipes.read("~/r.yaml")
    assert (read.output, read.data.path) == (str(home / "runs" / "a"), str(home / "data"))
    assert resolve_base(read.model.base) == str(home / "model")
    read = recipes.read("~/r.yaml", ["output=~/b", "data.path=~/c"])
    assert (read.output, read.data.path) == (str(home / "b"), str(home / "c"))
    assert Recipe(output="~/x").output == str(home / "x") and Recipe().output is None


def test_python_writes_and_reads_below_home(home):
    made = Collection("c", {"d": Document("d", "a text")}, {"q": "a query"}, {"q": {"d": 1}})
    store.write_beir(made, "~/beir")
    store.write(made, "~/parquet", "test")
    assert sorted(one.name for one in home.iterdir()) == ["beir", "data", "parquet"]
    assert read_beir("~/beir").fingerprint() == read_beir("~/parquet").fingerprint() == made.fingerprint()
    assert not list(Path.cwd().iterdir())


def test_commands_take_it_after_an_equals_sign_too(home, capsys):
    copy = {"query": "another", "positive": ROWS[0]["positive"], "id": "copy"}
    tiny_data.write_lines(home / "data" / "rows.jsonl", [*(row | {"id": row["query"]} for row in ROWS), copy])
    main(["data", "check", "~/data/rows.jsonl", "--id", "id", "--fix=~/clean"])
    assert (home / "clean" / "corpus").is_dir() and not list(Path.cwd().iterdir())


def test_texts_that_begin_with_a_tilde_stay_as_they_are(home):
    options = argparse.Namespace(query="~ 5", text="~/x", output=Path("~/x"), data=["~/y", "a=b"], seed=0, out=None)
    _expand_paths(options)
    assert vars(options) == {
        "query": "~ 5", "text": "~/x", "output": home / "x", "data": [str(home / "y"), "a=b"], "seed": 0, "out": None,
    }  # fmt: skip
    assert [expand_home(one) for one in ("", "a/~", "./~", "~nobody-here/x")] == ["", "a/~", "./~", "~nobody-here/x"]
