"""tools/size.py, on a made-up package whose numbers are counted by hand."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = {
    "__init__.py": '"""A package."""\n',
    "alone.py": """
        '''Two lines
        of docstring.'''
        import os

        # a comment

        PATH = os.sep  # a comment beside code counts as code
        TEXT = '''three

        lines'''
    """,
    "bread/__init__.py": "",
    "bread/dough.py": """
        from __future__ import annotations

        from typing import TYPE_CHECKING

        if TYPE_CHECKING:
            from kitchen.bread import oven


        def knead(oven: oven.Oven) -> None:
            '''Nothing but a docstring.'''
    """,
    "bread/oven.py": """
        class Oven:
            def bake(self):
                from .dough import knead

                return knead
    """,
    "soup/__init__.py": "from ..bread import dough\n",
    "soup/oven.py": "import kitchen.alone, json\nfrom kitchen.alone import TEXT\n",
}


@pytest.fixture
def kitchen(tmp_path):
    folder = tmp_path / "kitchen"
    for name, text in PACKAGE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def size():
    spec = importlib.util.spec_from_file_location("size", ROOT / "tools" / "size.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["size"] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["size"]


def test_lines_are_counted_as_by_hand(size, kitchen):
    modules = size.read_package(kitchen)
    counted = {name: (module.code, module.docs) for name, module in modules.items()}
    assert counted == {
        "kitchen": (0, 1),
        "kitchen.alone": (5, 3),  # import, PATH, and three lines of TEXT, one of them blank
        "kitchen.bread": (0, 0),
        "kitchen.bread.dough": (5, 1),
        "kitchen.bread.oven": (4, 0),
        "kitchen.soup": (1, 0),
        "kitchen.soup.oven": (2, 0),
    }


def test_imports_count_wherever_they_stand(size, kitchen):
    modules = size.read_package(kitchen)
    assert {name: module.imports for name, module in modules.items() if module.imports} == {
        "kitchen.bread.dough": {"kitchen.bread.oven"},  # for type checking
        "kitchen.bread.oven": {"kitchen.bread.dough"},  # in a function, relative
        "kitchen.soup": {"kitchen.bread.dough"},  # a module by from-import, relative, from a package
        "kitchen.soup.oven": {"kitchen.alone"},  # twice the same, once as a name out of it
    }
    assert size.import_circles(modules) == [["kitchen.bread.dough", "kitchen.bread.oven"]]
    assert size.repeated_names(modules) == {"oven": ["kitchen.bread.oven", "kitchen.soup.oven"]}


def test_the_table(kitchen):
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "size.py", kitchen], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "        modules  code lines  docs  one user",
        "(root)        2           5   44%         1",  # 4 of 9 lines; alone.py has one user
        "bread         3           9   10%         1",  # oven.py has one, dough.py two
        "soup          2           3    0%         0",
        "total         7          17   23%         2",
        "",
        "import circles: 1, the largest of 2 modules",
        "  kitchen.bread.dough <-> kitchen.bread.oven",
        "file names that occur more than once: 1",
        "  oven: kitchen.bread.oven, kitchen.soup.oven",
    ]


def test_a_folder_without_init_is_refused(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "tools" / "size.py", tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert "it has no __init__.py" in done.stderr


def test_this_package_has_no_circle_and_nothing_but_doors_at_its_root(size):
    modules = size.read_package(ROOT / "smart_train")
    assert {name for name, module in modules.items() if module.folder == "(root)"} <= {
        "smart_train",
        "smart_train.__main__",
    }
