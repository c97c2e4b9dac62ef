"""README.md: its program runs, its claims are those of their pages, its links hold on the page of a package, too."""

from __future__ import annotations

import json
import re
import runpy
import tomllib

import pages
import pytest
from pages import ROOT

README = (ROOT / "README.md").read_text(encoding="utf8")
setup = runpy.run_path(str(ROOT / "setup.py"), run_name="setup_of_the_package")


def test_the_ten_lines_train_and_rank(tiny_bert, tmp_path, monkeypatch, capsys):
    """In this process, on a tiny base: CI runs it; with MiniLM it is one of the slow walk."""
    monkeypatch.chdir(tmp_path)
    [(_, source)] = pages.python_blocks(ROOT / "README.md")
    assert len([line for line in source.splitlines() if line.strip()]) <= 11
    exec(source.replace("sentence-transformers/all-MiniLM-L6-v2", str(tiny_bert)), {})
    assert re.search(r"tensor\(\[\[-?[\d.]+, +-?[\d.]+\]\]\)", capsys.readouterr().out)
    log = [json.loads(line) for line in (tmp_path / "runs/first/log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 10
    assert (tmp_path / "runs/first/adapter/adapter_model.safetensors").is_file()


def test_the_answer_on_the_late_view_has_the_figures_of_its_page():
    answer = README.split("<!-- answer: docs/does-it-help.md -->")[1].split("<!-- answer: end -->")[0]
    page = (ROOT / "docs/does-it-help.md").read_text(encoding="utf8").split("\n## ")[0]  # its short answer
    figures = re.findall(r"[+-]?\d+\.\d+", answer)
    assert len(figures) >= 6
    assert [one for one in figures if one not in page] == []


def test_every_column_and_row_of_the_comparison_is_whole():
    table = README.split("## Beside others")[1].split("\n\n")[1].splitlines()
    assert {line.count("|") for line in table} == {11}
    cells = {re.split(r" \| ", line.strip("| "))[0]: line for line in table[2:]}
    assert "[yes][NeMo Automodel]" in cells["same documents masked across GPUs"]
    assert "[yes, with sparse too; text][FlagEmbedding]" in cells["both from one forward pass"]


def test_links_and_pictures_hold_on_the_page_of_a_package():
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    text = setup["absolute"](README, repository)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) > 35
    assert all(link.startswith("https://") for link in links)
    for link in links:
        if link.startswith(repository):
            kind, _, path = link.removeprefix(f"{repository}/").partition("/main/")
            assert kind == ("raw" if path.endswith((".svg", ".png")) else "blob")
            assert (ROOT / path.partition("#")[0]).is_file()


def test_the_address_of_the_project_is_written_once():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert all(url.startswith(urls["Repository"]) for url in urls.values())
    elsewhere = [*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "mkdocs.yml", ROOT / "setup.py"]
    assert not [path.name for path in elsewhere if urls["Repository"] in path.read_text(encoding="utf8")]


@pytest.mark.slow
def test_the_description_of_the_package_is_readme_with_absolute_links(tmp_path, monkeypatch):
    from setuptools import build_meta

    monkeypatch.chdir(ROOT)
    name = build_meta.prepare_metadata_for_build_wheel(str(tmp_path))
    described = (tmp_path / name / "METADATA").read_text(encoding="utf8")
    assert "Description-Content-Type: text/markdown" in described and "Project-URL: Repository, https://" in described
    assert not re.findall(r"\]\((?!https?:|#)[^)]+\)", described)


def test_the_table_is_that_of_the_quickstart_page():
    """Two tables of two runs would contradict each other."""
    texts = [(ROOT / name).read_text(encoding="utf8") for name in ("README.md", "docs/quickstart.md")]
    tables = [re.findall(r"```text\n(nDCG@10.*?)```", text, re.S) for text in texts]
    assert tables[0] == tables[1] and len(tables[0]) == 1
