"""What README and docs/ tell a reader to type: every command is one that exists (quick), and runs (slow), page by page
and in the page's order, in a folder that holds what a reader would have; every Python block runs.

A command that cannot run here (it needs a network, a Slurm, GPUs) or that is a suite of its own names the test that
stands in for it.
"""

from __future__ import annotations

import argparse
import re

import pages
import pytest
from pages import ELSEWHERE, NAMES, ROOT, UNRUN, recipe_of

from smart_train.cli.main import build_parser
from smart_train.config.recipe import read
from smart_train.config.typed_values import RecipeError

EVERY = [command for page in pages.PAGES for command in pages.commands(page)]


@pytest.mark.parametrize("command", EVERY, ids=str)
def test_every_command_is_one_that_exists(command, tmp_path):
    """Its program, flags, recipe and keys; what a recipe's data and base would say is left to the walk."""
    name, *rest = command.words
    if name == "smart-train":
        options, unknown = build_parser().parse_known_args(rest)
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


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_every_python_block_compiles(page):
    for number, source in pages.python_blocks(page):
        compile(source, f"{page.name}:{number}", "exec")


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0]) if found else {}


PARSER = build_parser()


def unknown_words(text: str) -> list[str]:
    """The commands (in code) and options (in any sentence) of smart-train that a text names and that are not there."""
    missing = []
    for before, line in re.findall(r"(^|`|.)smart-train +([a-z-][^`\n\"]*)", text, re.M):
        parser, words = PARSER, [word.strip(".,;:()") for word in re.split(r" #| && | \| ", line)[0].split()]
        for word in words:
            if word not in subcommands(parser):
                break
            parser = subcommands(parser)[word]
        if parser is PARSER:
            missing += [words[0]] if before in ("", "`") and not words[0].startswith("-") else []
            continue
        options = [word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)]
        missing += [f"{words[0]} {word}" for word in options if word not in parser._option_string_actions]
    return missing


SOURCES = [*pages.PAGES, *sorted((ROOT / "recipes").glob("*.yaml")), *sorted((ROOT / "launch").iterdir())]
SOURCES += sorted((ROOT / "smart_train").rglob("*.py"))


def test_every_command_and_option_that_a_sentence_names_exists():
    """In pages, recipes, launch files, docstrings and messages."""
    found = {str(path.relative_to(ROOT)): unknown_words(path.read_text(encoding="utf8")) for path in SOURCES}
    assert {path: words for path, words in found.items() if words} == {}


def test_an_invented_option_would_be_noticed():
    text = "use `smart-train mine DATA --modell X`, then `smart-train mend`; `smart-train data check --fix OUT`"
    assert unknown_words(text) == ["mine --modell", "mend"]


def test_an_invented_key_would_be_noticed():
    with pytest.raises(RecipeError, match="training.max_stps"):
        read(ROOT / "recipes/quickstart.yaml", ["training.max_stps=2"])


def test_every_test_that_stands_in_is_there():
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    for name in [*ELSEWHERE.values(), *UNRUN.values()]:
        assert any(f"\ndef {name}(" in source for source in sources), f"no test is called {name}"


def test_the_home_page_and_the_navigation_lead_to_every_page():
    navigation, home = (ROOT / "mkdocs.yml").read_text(), (ROOT / "docs/index.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name in navigation
        assert page.name == "index.md" or f"({page.name})" in home


NAMED = re.compile(r"`((?:smart_train|tests|tools|recipes|launch|docs)/[\w/.-]+\.\w+)(?:::\w+)?`")
LINKED = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_or_links_exists(page):
    text = page.read_text(encoding="utf8")
    missing = [path for path in NAMED.findall(text) if not (ROOT / path).is_file()]
    modules = re.findall(r"`([\w/.-]+/[\w.-]+\.py)`", text)  # from the root, or within the package
    missing += [path for path in modules if not any((ROOT / top / path).is_file() for top in ("", "smart_train"))]
    missing += [path for path in LINKED.findall(text) if not (page.parent / path).exists()]
    assert not missing
