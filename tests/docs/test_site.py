"""The site of docs/: code fits its column, links and anchors hold, no page asks another server for anything."""

from __future__ import annotations

import re
import subprocess
import sys

import pages
import pytest
from markdown.extensions.toc import slugify
from pages import ROOT

WIDTH = 120  # characters of a line of code, at most
GROWING = "does-it-help.md"  # its measurements are still being made
SITE = (ROOT / "mkdocs.yml").read_text()
CSS = (ROOT / "docs/stylesheets/wide.css").read_text()


def code(text: str) -> list[tuple[int, str]]:
    """(line number, line) of all that is in a fence."""
    found, fenced = [], False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced:
            found.append((number, line))
    return found


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_no_line_of_code_is_longer_than_its_column(page):
    lines = code(page.read_text(encoding="utf8"))
    assert not [f"{number}: {line}" for number, line in lines if len(line) > WIDTH]


@pytest.mark.parametrize("page", [page for page in pages.PAGES if page.name != GROWING], ids=lambda page: page.name)
def test_every_block_of_code_is_fenced_and_names_its_language(page):
    """Indented blocks, and fences without a language, have no colours."""
    text = page.read_text(encoding="utf8")
    opened = re.findall(r"^ *```(.*)$", text, re.M)[::2]
    assert not [language for language in opened if not re.fullmatch(r"\w+", language)]
    outside = re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)
    outside = re.sub(r"^::: .*\n(?: {4}.*\n)+", "", outside, flags=re.M)  # options of the API reference
    assert not re.findall(r"\n\n {4}\S.*", outside)


def test_a_column_of_that_many_characters_fits_a_window_of_1400_pixels():
    """Material's rem is 20 pixels; a monospaced character is 0.602 em wide; one column of 12.1 rem is beside."""
    size = float(re.search(r"pre > code { font-size: ([.\d]+)rem", CSS)[1]) * 20
    assert "toc.integrate" in SITE  # else there is a second column
    margins = 2 * 1.2 * 20 + 2 * 1.1772 * size  # of the page, and of the code block (em)
    assert WIDTH * 0.602 * size + margins <= 1400 - 12.1 * 20


def headings(text: str) -> set[str]:
    plain = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    titles = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for title in re.findall(r"^#+ (.*)$", plain, re.M))
    return {slugify(re.sub(r"[`*]", "", title), "-") for title in titles}


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_every_anchor_that_a_page_links_is_a_heading(page):
    text = page.read_text(encoding="utf8")
    missing = []
    for path, anchor in re.findall(r"\]\(([^)#:\s]*)#([^)]+)\)", text):
        target = page.parent / path if path else page
        if target.suffix == ".md" and anchor not in headings(target.read_text(encoding="utf8")):
            missing.append(f"{path}#{anchor}")
    assert not missing


@pytest.mark.slow
def test_the_site_builds_strictly_and_asks_no_other_server(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    asked = re.compile(
        r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(?:https?:)?//|<link\b(?=[^>]*stylesheet)[^>]*href=\"?(?:https?:)?//"
    )
    built = list(tmp_path.rglob("*.html"))
    assert len(built) > 20
    assert not [page.name for page in built if asked.search(page.read_text(encoding="utf8"))]
    styles = "".join(path.read_text(encoding="utf8") for path in tmp_path.rglob("*.css"))
    assert not re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", styles)
    shown = "".join(page.read_text(encoding="utf8") for page in built)
    assert {"language-bash highlight", "language-yaml highlight", "language-python highlight"} <= set(
        re.findall(r"language-\w+ highlight", shown)
    )
