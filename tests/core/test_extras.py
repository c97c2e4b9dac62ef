"""A missing optional package is one sentence that names the extra, before anything slow has run.

A package is put aside as ``None`` in sys.modules: Python then raises ImportError on import, as where it is missing.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from smart_train.checks.launch import check_launch
from smart_train.checks.model import check_quantised
from smart_train.checks.training import check_trackers
from smart_train.cli.main import main
from smart_train.config.schema import AdapterBlock, ModelBlock, Recipe
from smart_train.core.errors import MissingPackage
from smart_train.core.extras import EXTRAS, how_to_install, installed, require
from smart_train.training.arguments import SmartTrainingArguments

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MISSION = {
    "torch", "transformers", "peft", "accelerate", "deepspeed", "datasets", "wandb", "sentence-transformers"
}  # fmt: skip

ZERO = {"zero_optimization": {"stage": 2}}


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[><=; ]", one, maxsplit=1)[0].lower() for one in requirements}


@pytest.fixture
def without(monkeypatch):
    return lambda module: monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize("module", EXTRAS)
def test_every_optional_package_is_in_the_extra_that_the_message_names(module, without):
    listed = names(PROJECT["optional-dependencies"][EXTRAS[module]])
    assert module.replace("_", "-") in listed and module.replace("_", "-") not in names(PROJECT["dependencies"])
    without(module)
    assert not installed(module)
    with pytest.raises(MissingPackage) as caught:
        require(module, "this")
    wanted = f"pip install 'smart-train[{EXTRAS[module]}]'"
    assert str(caught.value) == f"this needs the package {module}, which is not installed: {wanted}"
    assert isinstance(caught.value, ImportError) and caught.value.status == 2


def test_all_brings_what_the_project_is_made_for_and_make_installs_all():
    extras = PROJECT["optional-dependencies"]
    (whole,) = extras["all"]
    parts = re.search(r"\[(.*)\]", whole)[1].split(",")
    assert names(PROJECT["dependencies"]) | names(sum((extras[part] for part in parts), [])) >= MISSION
    assert "smart-train[all," in extras["dev"][0]


@pytest.mark.parametrize(
    ("module", "key", "problems"),
    [
        ("deepspeed", "training.deepspeed", lambda: check_launch(Recipe(training={"deepspeed": ZERO}))),
        ("wandb", "training.report_to", lambda: check_trackers(Recipe(training={"report_to": "wandb"}))),
        ("tensorboard", "training.report_to", lambda: check_trackers(Recipe(training={"report_to": ["tensorboard"]}))),
        (
            "bitsandbytes",
            "model.quantisation",
            lambda: check_quantised(Recipe(model=ModelBlock(quantisation="4bit"), adapter=AdapterBlock())),
        ),
    ],
)
def test_a_recipe_that_needs_it_is_refused_with_the_extra(module, key, problems, without):
    without(module)
    (found,) = [one for one in problems() if one.key == key and how_to_install(module) in str(one.fix)]
    assert found.here  # it may run on another machine


def test_a_launch_with_deepspeed_is_refused_where_it_is_missing(without, monkeypatch):
    without("deepspeed")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    (found,) = [one for one in check_launch(Recipe()) if "not installed" in str(one.what)]
    assert found.fix == "pip install 'smart-train[deepspeed]'"


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("wandb", {"report_to": "wandb"}), ("wandb", {"report_to": ["wandb"]}), ("deepspeed", {"deepspeed": ZERO})],
)
def test_python_says_it_when_the_arguments_are_made(module, arguments, without, tmp_path):
    without(module)
    with pytest.raises(MissingPackage, match=rf"smart-train\[{EXTRAS[module]}\]"):
        SmartTrainingArguments(str(tmp_path), use_cpu=True, **arguments)


def test_a_benchmark_says_it_before_the_model_is_looked_for(without, tmp_path, capsys):
    without("mteb")
    assert main(["benchmark", "--model", "no/model", "--tasks", "SciFact", "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        "a benchmark of MTEB needs the package mteb, which is not installed: pip install 'smart-train[benchmarks]'\n"
    )


BLOCKED = """
import sys
for name in {names!r}:
    sys.modules[name] = None
import importlib, pkgutil, smart_train
for found in pkgutil.walk_packages(smart_train.__path__, "smart_train."):
    if not found.name.endswith(("mteb_models", "__main__")):
        importlib.import_module(found.name)
"""


@pytest.mark.slow
def test_every_module_but_mteb_s_own_is_imported_without_any_extra():
    code = BLOCKED.format(names=[name for name in EXTRAS])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
