"""YAML of unknown origin: read in bounded time and memory, or one sentence, by everything that reads it."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from smart_train.config.recipe import read, stored
from smart_train.config.typed_values import RecipeError
from smart_train.core.bounded_yaml import MAX_VALUES, load_yaml
from smart_train.core.errors import LaunchError
from smart_train.planning.launch_files import read_deepspeed, read_launch
from smart_train.publishing.run_record import licence_in_card

ROOT = Path(__file__).parents[2]


def bomb(levels: int = 9, width: int = 9) -> str:
    """Lists of aliases of lists: width ** (levels + 1) values in half a kilobyte."""
    lines = [f"n0: &n0 [{', '.join(['x'] * width)}]"]
    lines += [f"n{i}: &n{i} [{', '.join([f'*n{i - 1}'] * width)}]" for i in range(1, levels + 1)]
    return "\n".join(lines) + "\n"


def mappings(levels: int = 9, width: int = 9) -> str:
    lines = ["n0: &n0 {x: 1}"]
    for i in range(1, levels + 1):
        lines.append(f"n{i}: &n{i} {{{', '.join(f'k{n}: *n{i - 1}' for n in range(width))}}}")
    return "\n".join(lines) + "\n"


def merges(levels: int = 9, width: int = 9) -> str:
    lines = ["n0: &n0 {x: 1}"]
    lines += [f"n{i}: &n{i} {{<<: [{', '.join([f'*n{i - 1}'] * width)}]}}" for i in range(1, levels + 1)]
    return "\n".join(lines) + "\n"


HOSTILE = {  # text -> what the sentence says
    "aliases of lists": (bomb(), f"its aliases stand for more than {MAX_VALUES:,} values"),
    "aliases of blocks": (mappings(), f"its aliases stand for more than {MAX_VALUES:,} values"),
    "merged aliases": (merges(), f"its aliases stand for more than {MAX_VALUES:,} values"),
    "deep lists": ("model: " + "[" * 5000 + "]" * 5000, "more than 50 levels deep"),
    "deep blocks": ("model: " + "{a: " * 5000 + "}" * 5000, "more than 50 levels deep"),
    "deep dashes": ("- " * 5000 + "x", "more than 50 levels deep"),
    "a month 13": ("name: 2024-13-45", "'2024-13-45' cannot be read as a timestamp"),
    "an hour 99": ("name: 2024-01-01T99:99:99Z", "cannot be read as a timestamp"),
    "5,000 digits": ("data: {dev: " + "9" * 5000 + "}", "cannot be read as an int"),
    "no int": ("name: !!int x", "'x' cannot be read as an int"),
    "no float": ("name: !!float x", "'x' cannot be read as a float"),
    "no bool": ("name: !!bool maybe", "'maybe' cannot be read as a bool"),
    "no timestamp": ("name: !!timestamp x", "'x' cannot be read as a timestamp"),
    "no base64": ("name: !!binary a", "failed to decode base64 data"),
    "no character": ('name: "\\U00110000"', "range"),
    "Python": ("name: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
}
ODD = {
    "a null byte": ('name: "a\\0b"', r"the text holds '\\x00'"),
    "half a character": ('name: "\\ud800"', r"the text holds '\\ud800'"),
    "hex": ("data: {dev: 0x" + "f" * 10000 + "}", "has 10002 digits"),
    "4,000 digits": ("training: {learning_rate: " + "9" * 4000 + "}", "has 4000 digits"),
    "negative": ("training: {seed: -" + "9" * 40 + "}", "has 41 digits"),
}


@pytest.mark.parametrize(("text", "told"), HOSTILE.values(), ids=HOSTILE)
def test_the_loader_raises_yaml_s_own_error_soon(text, told):
    begun = time.monotonic()
    with pytest.raises(yaml.YAMLError, match=told):
        load_yaml(text)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(("text", "told"), {**HOSTILE, **ODD}.values(), ids=[*HOSTILE, *ODD])
def test_a_recipe_is_refused_with_its_line(text, told, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(f"# a comment\n{text}\n")
    if "<<" not in text:  # a recipe has no merge keys
        with pytest.raises(RecipeError, match=rf"recipe.yaml, line \d+: .*{told}"):
            read(file)
    if text in [hostile for hostile, _ in HOSTILE.values()]:
        with pytest.raises(RecipeError, match=told):
            stored(file)


@pytest.mark.parametrize("name", ["deep lists", "a month 13", "5,000 digits", "no bool", "no character", *ODD])
def test_an_override_is_refused_in_a_line_that_can_be_read(name, tmp_path):
    text, told = {**HOSTILE, **ODD}[name]
    file = tmp_path / "recipe.yaml"
    file.write_text("name: mine\n")
    key, _, value = text.partition(": ")
    with pytest.raises(RecipeError, match=told) as refused:
        read(file, [f"{key}={value}"])
    assert "command line" in str(refused.value) and len(str(refused.value)) < 600


@pytest.mark.parametrize(("text", "told"), HOSTILE.values(), ids=HOSTILE)
def test_a_launch_file_is_refused(text, told, tmp_path):
    (tmp_path / "launch.yaml").write_text(text)
    with pytest.raises(LaunchError, match=told):
        read_launch(tmp_path / "launch.yaml")


@pytest.mark.parametrize("content", [b"[" * 100000, b"{" * 3, b"\xff\xfe", b"[]"])
def test_a_deepspeed_file_is_refused(content, tmp_path):
    (tmp_path / "zero.json").write_bytes(content)
    with pytest.raises(LaunchError, match=r"zero.json: .*; (correct|save|take)"):
        read_deepspeed(tmp_path / "zero.json")


@pytest.mark.parametrize(("text", "told"), HOSTILE.values(), ids=HOSTILE)
def test_the_card_of_a_hostile_base_has_no_licence(text, told):
    assert licence_in_card(f"---\n{text}\nlicense: mit\n---\n") is None


def test_a_bomb_takes_no_memory():
    """In a process of its own, whose peak is its own: 450 MB before."""
    program = "import resource, sys; from smart_train.core.bounded_yaml import load_yaml\n"
    program += "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
    program += "try: load_yaml(sys.stdin.read())\nexcept Exception as error: print(type(error).__name__)\n"
    program += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=bomb(),
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (30, 30)),
    )
    error, grown = done.stdout.split()
    assert error == "ComposerError" and int(grown) < 20_000  # KiB


def test_what_aliases_are_for_is_read_and_a_long_file_is_no_bomb():
    assert load_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": 2},
        "c": [{"x": 1}, {"x": 1}],
    }
    assert len(load_yaml("[" + "1, " * (MAX_VALUES + 10) + "1]")) == MAX_VALUES + 11
    assert load_yaml(bomb(3)) and load_yaml("[" * 40 + "]" * 40) is not None
