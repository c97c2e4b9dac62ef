"""docs/api.md has every public name, each with an example; the walk of the pages runs the examples."""

from __future__ import annotations

import doctest
import re
import sys

import pytest
from pages import ROOT

import smart_train
from smart_train import losses

PAGE = (ROOT / "docs/api.md").read_text(encoding="utf8")
PUBLIC = [name for name in smart_train.__all__ if name not in ("__version__", "losses")]
NAMES = [f"smart_train.{name}" for name in PUBLIC] + [f"smart_train.losses.{name}" for name in losses.__all__]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_explained_with_an_example(name):
    short = name.rpartition(".")[2]
    section = re.search(rf"^### {short}\n(.*?)(?=^##|\Z)", PAGE, re.M | re.S)
    assert section, f"docs/api.md has no section {short}"
    assert f"::: {name}\n" in section[1] + "\n"
    before = PAGE[: section.start()] + section[1]
    assert re.search(rf"```python\n.*?\b{short}\b.*?```", section[1], re.S) or f"import {short}" in before


def test_nothing_else_is_in_the_reference():
    assert sorted(re.findall(r"^::: (\S+)", PAGE, re.M)) == sorted(NAMES)


def test_entries_of_docstrings_become_lists(monkeypatch):
    pytest.importorskip("griffe")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import docstring_lists

    assert doctest.testmod(docstring_lists).attempted > 0
    assert doctest.testmod(docstring_lists).failed == 0
    assert docstring_lists.with_lists("One.\n\na: b\n    c\n\nRaises: x") == "One.\n\n- `a`: b\n    c\n\nRaises: x"
    sys.modules.pop("docstring_lists", None)


@pytest.mark.slow
def test_the_reference_shows_the_signature_of_every_name(tmp_path):
    import subprocess

    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    shown = (tmp_path / "api/index.html").read_text(encoding="utf8")
    assert [name for name in NAMES if f'id="{name}"' not in shown] == []
    assert "doctest" not in shown
