"""tools/environment.py decides whether .venv is up to date."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def environment(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("environment", ROOT / "tools" / "environment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in module.SOURCES:
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_requirement_asks_for_another_install(environment, tmp_path, name):
    before = environment.fingerprint()
    assert environment.fingerprint() == before
    with (tmp_path / name).open("a") as file:
        file.write("# one more line\n")
    assert environment.fingerprint() != before


def test_what_make_lint_runs_is_part_of_the_development_install():
    makefile, project = (ROOT / "Makefile").read_text(), (ROOT / "pyproject.toml").read_text()
    constraints = (ROOT / "constraints.txt").read_text()
    for program, package in {"ruff": "ruff", "mypy": "mypy", "lint-imports": "import-linter"}.items():
        assert f"$(BIN)/{program}" in makefile
        assert f'"{package}>=' in project
        assert f"\n{package}==" in constraints
