"""Every file and module of this package that README, docs/, recipes and docstrings name exists."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from pages import ROOT

PACKAGE = ROOT / "smart_train"
SOURCES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file())
FILE = re.compile(rf"(?<![\w./])((?:smart_train/)?(?:{'|'.join(FOLDERS)})/[\w/]*\.py|smart_train/\w+\.py)\b")
DOTTED = re.compile(r"\bsmart_train(?:\.[A-Za-z_]\w*)+")
ENTRY_POINTS = {
    group for path in SOURCES for group in re.findall(r'Registry\(\s*"[^"]+",\s*"(smart_train\.\w+)"', path.read_text())
}
ELSEWHERE = {"smart_train.json"}  # a file of an adapter


def missing(text: str) -> Iterator[str]:
    """Yield the names in a text that lead nowhere."""
    for name in FILE.findall(text):
        if not (ROOT / name).is_file() and not (PACKAGE / name).is_file():
            yield name
    for name in DOTTED.findall(text):
        if name not in ENTRY_POINTS | ELSEWHERE and not exists(name):
            yield name


def exists(dotted: str) -> bool:
    """Is this a module, or a name in one?"""
    path, rest = ROOT, dotted.split(".")
    while rest and (path / rest[0]).is_dir():
        path /= rest.pop(0)
    file = path / f"{rest[0]}.py" if rest and (path / f"{rest[0]}.py").is_file() else path / "__init__.py"
    names = rest[1:] if file.stem != "__init__" else rest
    return file.is_file() and (not names or re.search(rf"\b{names[0]}\b", file.read_text()) is not None)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "recipes").glob("*.yaml"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_page_names_only_files_and_modules_that_exist(page):
    assert list(missing(page.read_text())) == []


def test_so_do_the_sources():
    found = {str(path.relative_to(ROOT)): list(missing(path.read_text())) for path in SOURCES}
    assert {path: names for path, names in found.items() if names} == {}


def test_a_name_that_moved_would_be_noticed():
    text = "see `smart_train/peers.py`, training/room.py, `smart_train.facts` and smart_train.losses.joint.Joined"
    assert sorted(missing(text)) == [
        "smart_train.facts",
        "smart_train.losses.joint.Joined",
        "smart_train/peers.py",
        "training/room.py",
    ]
    assert not list(missing("smart_train.losses.joint.Joint, losses/joint.py, smart_train.SmartEncoder"))
