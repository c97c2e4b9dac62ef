"""Recipes of version 0.1 still mean what they meant: every key reads as before, or an error names its new key.

The files are those that 0.1 shipped, the recipe.yaml that a run of 0.1 left, and one that sets every key.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from launches import CACHED, FOUR, PAGES, check_run, environment, launch, words

from smart_train.checks.recipe import check
from smart_train.config.recipe import RecipeError, plain, read
from smart_train.config.schema import Recipe

FOLDER = Path(__file__).with_name("fixtures") / "recipes_0_1"
FILES = sorted(FOLDER.glob("*.yaml"))
SHIPPED = {"quickstart", "text_lora", "visdoc_head", "visdoc_hybrid", "visdoc_lora"}
# What 0.1's README and pages told a reader to add to a command.
OVERRIDES = [
    ("visdoc_lora", ["data.limit=20000"]),
    ("visdoc_lora", ["data.path=data/mine", "data.format=auto", 'data.document=""']),
    ("visdoc_lora", ["training.learning_rate=2e-4"]),
    ("visdoc_lora", ["training.deepspeed=launch/zero3.json"]),
    ("quickstart", ["training.max_steps=100", "adapter.r=16", "output=runs/longer"]),
    ("quickstart", ["late.layer=[4,-1]", "data.limit=null"]),
    ("quickstart", ["objective.schedule.late.weight=[[0,0],[1,1]]"]),
    ("visdoc_head", ["late.layer=-1", "late.dim=2048", "model.min_pixels=4096", "evaluation.calibrate=false"]),
    ("visdoc_hybrid", ["model.base=models/pages", "objective.pooled.weight=1", "objective.hybrid.weight=0"]),
]


def keys(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested blocks; values that are mappings themselves stay whole."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in ("training", "objective.schedule", "data.source_weights"):
            yield from keys(value, f"{key}.")
        else:
            yield key, value


def meanings(path: Path) -> dict[str, Any]:
    """Dotted key -> value as the file has them, without any code of this package."""
    *_, last = yaml.safe_load_all(path.read_text(encoding="utf8"))
    return dict(keys(last)) | {"training": last.get("training", {})}


def assert_reads_or_names_the_new_key(path: Path, overrides: list[str]) -> Recipe | None:
    """The recipe, or None where every problem is an old key whose message names one that there is now."""
    try:
        return read(path, overrides)
    except RecipeError as error:
        now = dict(keys(plain(Recipe())))
        for problem in error.problems:
            new = re.search(r"write ([\w.]+)", problem.fix)
            assert new and new[1] in now, f"{problem.key} is refused without naming its new key: {error}"
        return None


def test_all_files_are_there():
    assert {path.stem for path in FILES} == SHIPPED | {"every_key", "of_a_run"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_key_reads_as_before(path):
    recipe = assert_reads_or_names_the_new_key(path, [])
    if recipe is None:
        return
    now, before = dict(keys(plain(recipe))), meanings(path)
    for key, value in before.pop("training").items():
        number = isinstance(value, str) and re.fullmatch(r"[\d.]+e-?\d+", value)  # YAML 1.1 reads 1e-4 as text
        assert recipe.training[key] == (float(value) if number else value), f"training.{key}"
    del now["training"]
    for key, value in before.items():
        if isinstance(value, str) and re.fullmatch(r"[\d.]+e-?\d+", value):
            value = float(value)
        assert now[key] == value, key


def test_every_key_of_0_1_is_set_by_a_fixture():
    """every_key.yaml is only worth its name if it has all keys that a run of 0.1 wrote down."""
    written = set(meanings(FOLDER / "of_a_run.yaml"))
    assert written - set(meanings(FOLDER / "every_key.yaml")) == set()
    assert len(written) > 90


@pytest.mark.parametrize(("name", "overrides"), OVERRIDES, ids=lambda part: part if isinstance(part, str) else "")
def test_every_override_of_the_pages_reads(name, overrides):
    recipe = assert_reads_or_names_the_new_key(FOLDER / f"{name}.yaml", overrides)
    if recipe is not None:
        key, _, value = overrides[0].partition("=")
        flat = dict(keys(plain(recipe))) | {f"training.{name}": part for name, part in recipe.training.items()}
        if key in flat:
            assert flat[key] == yaml.safe_load(value) or float(flat[key]) == float(value)


def test_an_unknown_key_is_no_renamed_one():
    with pytest.raises(AssertionError, match="without naming its new key"):
        assert_reads_or_names_the_new_key(FOLDER / "quickstart.yaml", ["colour=blue"])


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_every_shipped_recipe_passes_the_check(name, tiny_models, page_rows, triples_file, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    rows = [f"data.path={triples_file}", "data.subset=null", "data.query=query", "data.document=positive"]
    own = {
        "quickstart": ["data.limit=200"],
        "text_lora": [f"model.base={tiny_models('qwen3')}", "data.negatives=1", *rows],
        "visdoc_head": [f"model.base={tiny_models('qwen3vl')}", f"data.path={page_rows}", "late.dim=32"],
    }
    pages = [f"model.base={tiny_models('qwen3vl')}", f"data.path={page_rows}"]
    small = ["training.use_cpu=true", *(words(PAGES) if name.startswith("visdoc") else [])]
    check(read(FOLDER / f"{name}.yaml", [*own.get(name, pages), *small]))  # raises where anything is wrong


def test_the_first_line_starts_a_run():
    """``python FILE`` reaches the recipe: a wrong override is refused with the file, the key and exit status 2."""
    first, *others = {(FOLDER / f"{name}.yaml").read_text(encoding="utf8").split("\n")[0] for name in SHIPPED}
    assert not others and first == 'from smart_train.recipe import boot; boot(__file__, __name__); r"""'
    command = [sys.executable, FOLDER / "quickstart.yaml", "late.lyer=3"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "late.lyer" in done.stderr and "late.layer" in done.stderr


@pytest.mark.slow
def test_a_recipe_of_0_1_trains(tiny_qwen3, triples_file, tmp_path):
    """Two steps through the literal ``accelerate launch``; the other recipes below, since a launch costs 20 seconds."""
    data = {"data.path": triples_file, "data.subset": "null", "data.query": "query", "data.document": "positive"}
    own = {"model.base": tiny_qwen3, "data.negatives": 2}
    printed = launch(FOLDER / "text_lora.yaml", tmp_path / "run", **own, **CACHED, **data)
    check_run(tmp_path / "run", printed, {"pooled", "late"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "terms"),
    [("visdoc_lora", {"pooled", "late"}), ("visdoc_head", {"late"}), ("visdoc_hybrid", {"hybrid"})],
)
def test_the_page_recipes_of_0_1_train(name, terms, tiny_qwen3vl, page_rows, tmp_path):
    batch = {**FOUR, "late.dim": 32} if name == "visdoc_head" else CACHED
    own = {"model.base": tiny_qwen3vl, "data.path": page_rows, **PAGES, **batch}
    check_run(tmp_path / "run", launch(FOLDER / f"{name}.yaml", tmp_path / "run", **own), terms)
