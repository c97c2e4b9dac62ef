"""Components in recipes: a short name, package.module:Class, or {type: NAME, option: value}."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from smart_train.checks.bounds import component
from smart_train.config.recipe import plain
from smart_train.config.schema import Component, Where
from smart_train.config.typed_values import Problem, _block
from smart_train.core.errors import ExtensionError, written
from smart_train.core.registry import Registry


@dataclass
class Block:
    head: Component = Component("none")
    terms: list[Component] = field(default_factory=list)
    miner: Component | None = None


class Part:
    def __init__(self, width: int, scale: float = 1.0) -> None:
        self.width, self.scale = width, scale


PARTS = Registry("part", "smart_train.test_parts", {"part": f"{__name__}:Part"})


def block(values: dict) -> tuple[Block, list[str]]:
    problems: list[Problem] = []
    made = _block(Block, values, "late.", problems, {})
    return made, [written(problem.message(Where("FILE"))) for problem in problems]


def test_a_component_is_written_three_ways_and_read_back_as_written():
    values = {"head": "linear", "terms": ["a.b:C", {"type": "late", "weight": 2}], "miner": {"type": "mine"}}
    made, problems = block(values)
    assert not problems
    assert made == Block(Component("linear"), [Component("a.b:C"), Component("late", {"weight": 2})], Component("mine"))
    assert plain(made) == {**values, "miner": "mine"}
    assert block(plain(made))[0] == made
    assert block({})[0] == Block()


@pytest.mark.parametrize("value", [3, {"weight": 2}, {"type": 3}, "", ["linear"], None])
def test_what_names_no_component_is_refused_with_the_way_to_write_it(value):
    made, problems = block({"head": value})
    assert made == Block()
    assert len(problems) == 1
    assert "FILE: late.head: must be a name, package.module:Class or {type: NAME, option: value}, got " in problems[0]


def test_a_list_of_components_names_the_way_to_write_one():
    expected = "FILE: late.terms: must be a list of names, package.module:Class or {type: NAME, option: value}, got "
    assert block({"terms": [3]})[1][0].startswith(expected)


def test_create_gives_arguments_and_options():
    made = PARTS.create("part", {"scale": 2.0}, 8)
    assert (made.width, made.scale) == (8, 2.0)
    with pytest.raises(
        ExtensionError, match=r"the part 'part' does not accept its options .*'size'.*; its options are scale"
    ):
        PARTS.create("part", {"size": 2}, 8)


def test_a_check_names_the_key_and_what_to_write():
    assert list(component("late.head", Component("part", {"scale": 2}), PARTS)) == []
    unknown = list(component("late.head", Component("prat"), PARTS))
    assert unknown == [Problem("late.head", "there is no part 'prat'", "write part, or write package.module:Name")]
    options = list(component("late.head", Component("part", {"size": 2}), PARTS))
    assert options[0].fix == "its options are width, scale"
