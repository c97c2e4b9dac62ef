"""Help texts: an option with a default names it, a number names its unit or what it counts."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from smart_train.cli.main import build_parser


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
def test_every_option_has_a_help_text(name):
    assert OPTIONS[name].help


def test_the_commands_have_options_with_defaults_at_all():
    assert len(OPTIONS) > 80 and sum(map(with_default, OPTIONS.values())) > 25
