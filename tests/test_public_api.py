"""The names that ``import smart_train`` offers: all of them exist, and none is imported before it is used."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import smart_train


def test_importing_the_package_imports_nothing_heavy():
    heavy = {"torch", "numpy", "transformers", "importlib.metadata"}
    code = f"import smart_train, sys; print(sorted({heavy} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", smart_train.__all__)
def test_every_public_name_exists(name):
    assert getattr(smart_train, name) is not None and name in dir(smart_train)


def test_the_version_is_the_installed_packages_and_other_names_are_refused():
    assert smart_train.__version__ == version("smart-train")
    with pytest.raises(AttributeError, match="module 'smart_train' has no attribute 'Trainer'"):
        smart_train.Trainer  # noqa: B018
