"""Help texts: an option with a default names it, a number names its unit or what it counts."""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import smart_train
from smart_train.cli.main import build_parser

ROOT = Path(__file__).resolve().parents[2]


def options(parser: argparse.ArgumentParser, command: str = "") -> Iterator[tuple[str, argparse.Action]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from options(inner, f"{command} {name}".strip())
        elif action.option_strings and action.nargs != 0:
            yield f"{command} {action.option_strings[0]}", action


OPTIONS = dict(options(build_parser()))


def with_default(action: argparse.Action) -> bool:
    return action.default is not None and action.default is not False and action.default not in ([], ())


@pytest.mark.parametrize("name", [name for name, action in OPTIONS.items() if with_default(action)])
def test_an_option_with_a_default_names_it(name):
    action = OPTIONS[name]
    words = action.default if isinstance(action.default, list | tuple) else [action.default]
    default = " ".join(map(str, words))
    assert f"(default: {default}" in (action.help or "") % {**vars(action), "prog": ""}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_a_help_text_and_one_that_may_be_left_out_its_default(name):
    action = OPTIONS[name]
    assert action.help and (action.required or action.help.count("(default: ") == 1)


def test_new_lists_every_template():
    shown = OPTIONS["new --from"].help
    assert all(path.stem in shown for path in (ROOT / "recipes").glob("*.yaml"))


def test_the_commands_have_options_with_defaults_at_all():
    assert len(OPTIONS) > 80 and sum(map(with_default, OPTIONS.values())) > 25


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_the_completion_of_a_shell_has_every_command_and_its_options(shell, capsys):
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(["--print-completion", shell])
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    for word in ("doctor", "last-token-base", "launch-files", "max-relative", "allow-secrets"):
        assert word in printed


def test_every_exit_status_is_in_the_help_text_and_on_its_page():
    shown = build_parser().format_help().partition("exit status:")[2].split("\n")
    numbers = [line.split()[0] for line in shown if line.strip()]
    assert numbers == ["0", "1", "2", "3", "75", "130"]
    page = (ROOT / "docs" / "install.md").read_text()
    assert re.findall(r"^\| (\d+) \|", page, re.M) == numbers


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"smart-train {smart_train.__version__}\n"
    assert smart_train.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.parametrize("name", [name for name in OPTIONS if name.endswith(" --out")])
def test_no_command_has_only_the_old_spelling_of_output(name):
    raise AssertionError(f"{name}: write --output first")
