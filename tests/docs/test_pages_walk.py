"""Every command of README and docs/ is run, page by page and in the page's order, in a folder that holds what a reader
would have by then; models are tiny or MiniLM, runs take two steps, the Hub is one on loopback.

``pages.ELSEWHERE`` says which commands another test runs instead.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import fakehub
import pages
import pdfs
import pytest
import tiny_data
from launches import CACHED, FEW, FOUR, PAGES, environment, shell, words
from pages import ELSEWHERE, ROOT, Command, recipe_of, stand_in
from ranks import free_port

pytestmark = pytest.mark.slow

SMALL = {"data.test_documents": 30, "data.dev_documents": 30, "model.document_tokens": 32}


@pytest.fixture(scope="module")
def desk(tmp_path_factory, tiny_qwen3, tiny_qwen3vl) -> Path:
    """What a reader has: recipes and launch files, documents, what ingest made of them, a finished run."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ("recipes", "launch"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "recipes" / "text_lora.yaml", folder / "mine.yaml")
    (folder / "documents").mkdir()
    for name in pdfs.MODULES[:7]:
        pdfs.manual(folder / "documents" / f"{name}.pdf", name)
    (folder / "FOLDER").symlink_to("documents")
    tiny_data.write_page_rows(folder).rename(folder / "pages.parquet")
    tiny_data.write_triples(folder / "triples.jsonl")
    (folder / "pairs").mkdir()
    tiny_data.write_triples(folder / "pairs" / "train.jsonl")
    tiny_data.draw_page(3).save(folder / "page.png")
    leaf = "Photosynthesis is the process by which green plants convert sunlight into chemical energy."
    (folder / "leaf.txt").write_text(leaf)
    (folder / "models").mkdir()
    (folder / "models" / "text").symlink_to(tiny_qwen3)
    (folder / "models" / "pages").symlink_to(tiny_qwen3vl)
    ingest = ["smart-train", "ingest", "documents", "--dev", "0.15", "--test", "0.3"]
    assert not shell([*ingest, "--out", "data/mine", "--no-images"], folder, **environment())
    shutil.copytree(folder / "data" / "mine", folder / "data" / "text")
    assert not shell([*ingest, "--out", "data/pages", "--pixels", "40000"], folder, **environment())
    shown = Command("here", 0, ("accelerate", "launch", "recipes/quickstart.yaml", "data.path=data/mine"))
    assert not shell(runnable(shown), folder, **environment())
    shutil.copytree(folder / "runs" / "quickstart", folder / "runs" / "mine")
    shutil.copytree(folder / "runs" / "quickstart", folder / "runs" / "demo-pdf" / "run")
    return folder


def small(recipe: str, given: set[str]) -> dict[str, object]:
    """Overrides that let a recipe run here, but those that the page gives itself."""
    name = "text_lora" if recipe == "mine.yaml" else Path(recipe).stem
    rows = {"data.path": "triples.jsonl", "data.subset": "null", "data.query": "query", "data.document": "positive"}
    if recipe == "mine.yaml":
        rows["output"] = "runs/of-mine"  # runs/mine is of MiniLM, as the other commands of a page have it
    if name == "text_lora":
        own = {"model.base": "models/text", "data.negatives": 2, **CACHED, **({} if "data.path" in given else rows)}
    elif name == "quickstart":
        own = {**SMALL, **FOUR, **({} if "data.path" in given else {"data.limit": 200})}
    else:
        own = {"model.base": "models/pages", **PAGES, **({"late.dim": 32, **FOUR} if "head" in name else CACHED)}
        own |= {} if "data.path" in given else {"data.path": "pages.parquet"}
    return {key: value for key, value in {**FEW, **own}.items() if key not in given}


def runnable(command: Command) -> list[str]:
    """The command as it is run here: stand-ins for names, few steps, two processes."""
    said = [stand_in(word) for word in command.words]
    recipe = recipe_of(command)
    if recipe is not None:
        recipe = (stand_in(recipe[0]), recipe[1])
    else:
        # The tiny tokenizer ends at 512 tokens, and a whole page has more.
        return [*said, "--max-pixels", "16384"] if "models/pages" in said else said
    if said[1] == "doctor":
        return [*said[:3], *words(small(recipe[0], set())), *said[3:]]
    pages_of = "visdoc" in recipe[0]
    said = [word.replace("data/mine", "data/pages") if pages_of else word for word in said]
    said = [re.sub(r"^training\.max_steps=.*", "training.max_steps=2", word) for word in said]
    given = {word.partition("=")[0] for word in recipe[1]}
    more = (
        []
        if said[0] != "accelerate" or "--multi_gpu" not in said and "--config_file" not in said
        else ["--main_process_port", "0"]
    )
    if "--num_processes" in said:
        said[said.index("--num_processes") + 1] = "2"
    elif "--config_file" in said and "single" not in str(command):
        more += ["--num_processes", "2"]
    if said[0] == "deepspeed":
        more = ["--num_gpus", "2", "--master_port", str(free_port())]
    begin = 2 if said[0] == "accelerate" else 1
    return [*said[:begin], *more, *said[begin:], *words(small(recipe[0], given))]


@pytest.fixture
def hub(tmp_path) -> Iterator[fakehub.FakeHub]:
    with fakehub.FakeHub() as served:
        yield served


def on_hub(hub: fakehub.FakeHub, home: Path, **variables: str) -> dict[str, str]:
    """The environment of a command that reaches the Hub on loopback."""
    variables = {**environment(), **variables}
    kept = {name: value for name, value in variables.items() if name != "HF_HUB_OFFLINE"}
    return {**kept, **hub.environment(home / "home"), "PATH": variables["PATH"]}


@pytest.mark.parametrize("page", [page for page in pages.PAGES if pages.commands(page)], ids=lambda page: page.name)
def test_every_command_of_a_page_runs(page, desk, hub, tmp_path):
    folder, failed = tmp_path / "desk", []
    shutil.copytree(desk, folder, symlinks=True)
    for command in pages.commands(page):
        shown = shlex.join(command.words)
        if any(re.search(pattern, shown) for pattern in ELSEWHERE):
            continue
        variables = environment(**dict(command.variables), PROCESSES="2")
        if re.search(r"\bme/", shown):
            variables = on_hub(hub, tmp_path, **variables)
        if shown.startswith("smart-train new "):  # it leaves alone what is there
            (folder / f"{command.words[2]}.yaml").unlink(missing_ok=True)
        trouble = shell(runnable(command), folder, **variables)
        if trouble:
            failed.append(f"{command}\n  as {shlex.join(runnable(command))}\n{trouble}")
    assert not failed, "\n\n".join(failed)


FILES = "extending.md"  # its blocks are files that import each other: tests/docs/test_extending.py


@pytest.mark.parametrize(
    "page",
    [page for page in pages.PAGES if pages.python_blocks(page) and page.name != FILES],
    ids=lambda page: page.name,
)
def test_every_python_block_of_a_page_runs(page, desk, hub, tmp_path):
    """Block after block in one process."""
    folder = tmp_path / "desk"
    shutil.copytree(desk, folder, symlinks=True)
    files, source = pages.program(page)
    for name, content in files.items():
        (folder / name).write_text(content)
    variables = on_hub(hub, tmp_path) if "me/" in source else environment()
    trouble = shell(["python", "-c", source], folder, **variables)
    assert not trouble, f"{page.name}\n{trouble}"
