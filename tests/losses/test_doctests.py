"""The examples in the docstrings of the losses give what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

from smart_train import losses

MODULES = [f"smart_train.losses.{module.name}" for module in pkgutil.iter_modules(losses.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0


def test_what_a_user_calls_has_an_example():
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {test.name for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples}
    expected = {"base.LossTerm", "joint.Joint", "labels.Labels", "contrastive.contrastive", "maxsim.maxsim"}
    assert {f"smart_train.losses.{name}" for name in expected} <= found
