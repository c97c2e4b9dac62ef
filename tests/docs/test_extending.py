"""docs/extending.md: every example is taken from the page as it stands, and trains, saves, reloads and verifies.

A block whose first line is ``# NAME.py`` is that file; ``# add to mine.yaml`` are keys that go into the page's recipe;
a file whose name begins with ``train_`` or ``encode_`` is a program. Models are tiny, runs take two steps.
"""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from launches import FEW, environment, program, shell, words
from pages import ROOT
from tiny_data import write_lines, write_triples

from smart_train import SmartEncoder
from smart_train.cli.main import main
from smart_train.config.schema import DataBlock
from smart_train.data.readers.base import find_reader

PAGE = ROOT / "docs" / "extending.md"
BOOT = 'from smart_train.recipe import boot; boot(__file__, __name__); r"""\n---\n'
BASE = "sentence-transformers/all-MiniLM-L6-v2"
HEAD = "my_head:GatedHead"
FILTER = "my_filter:first_tokens"


def blocks() -> list[tuple[str, str, str]]:
    """(section, first line, source) of every block that names its file."""
    found, section = [], ""
    for match in re.finditer(r"^## (.*)$|^```(?:python|yaml)\n# (.*)\n((?:.*\n)*?)```$", PAGE.read_text(), re.M):
        if match[1]:
            section = match[1]
        elif match[2].endswith((".py", ".yaml")):
            found.append((section, match[2], match[3]))
    return found


FILES = {name: source for _, name, source in blocks() if name.endswith(".py")}
RECIPE = next(yaml.safe_load(source) for _, name, source in blocks() if name == "mine.yaml")
ADDED = {section: yaml.safe_load(source) for section, name, source in blocks() if name == "add to mine.yaml"}
PROGRAMS = [name for name in FILES if name.startswith(("train_", "encode_"))]


def merged(*parts: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return result


@pytest.fixture
def desk(tmp_path, tiny_bert, monkeypatch) -> Path:
    """The reader's folder: the modules of the page, pairs, and questions in the page's made-up format."""
    for name, source in FILES.items():
        (tmp_path / name).write_text(source.replace(BASE, str(tiny_bert)).replace("max_steps=100", "max_steps=2"))
    triples = [json.loads(line) for line in write_triples(tmp_path / "triples.jsonl").read_text().splitlines()]
    rows = [{"query": row["query"], "positive": row["positive"]} for row in triples]
    write_lines(tmp_path / "pairs.jsonl", rows)
    text = "\n\n".join(f"? {row['query']}\n{row['positive']}" for row in rows)
    (tmp_path / "animals.questions").write_text(text + "\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def launch(desk: Path, base: Path, added: dict[str, Any], *flags: str) -> SmartEncoder:
    """Run the page's recipe with more keys through ``accelerate launch mine.yaml``; return the reloaded adapter."""
    recipe = merged(RECIPE, added)
    (desk / "mine.yaml").write_text(BOOT + yaml.safe_dump(recipe) + '# """\n')
    small = {**FEW, "model.base": base, "training.per_device_train_batch_size": 4}
    done = shell([program("accelerate"), "launch", *flags, "mine.yaml", *words(small)], desk, **environment())
    assert done is None, done
    adapter = desk / "runs" / "mine" / "adapter"
    assert json.loads((adapter / "verified.json").read_text())["rows"] > 0
    names = [HEAD, FILTER] if "late" in added else []
    return SmartEncoder.from_pretrained(adapter, device="cpu", trust_extensions=names)


def last_line(desk: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (desk / "runs" / "mine" / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line][-1]


def check_parts(desk: Path, encoder: SmartEncoder, sections: set[str]) -> None:
    """What each example leaves behind when it has really been used."""
    if "A token head" in sections:
        assert encoder.token_width == 16 and type(encoder.head.projection).__name__ == "GatedHead"
        gate = encoder.head.projection.gate
        assert (gate != 0.5).any() and (gate - 0.5).abs().max() < 0.1  # the start of the recipe, trained for two steps
    if "A token filter" in sections:
        assert int(encoder.encode_documents(["a zebra is like a horse but it has stripes"]).tokens.lengths[0]) <= 8
    if "A loss term" in sections:
        line = last_line(desk)
        assert line["loss/agreement"] > 0 and "agreement/difference" in line
    if "A data reader" in sections:
        facts = json.loads((desk / "runs" / "mine" / "facts.json").read_text())
        assert facts["data"]["name"] == "animals.questions"
    if "A callback" in sections:
        assert (desk / "step.txt").read_text() == "2"


def test_the_page_has_an_example_of_everything():
    sections = ["A token head", "A token filter", "A data reader", "A loss term", "A callback"]
    assert list(ADDED) == sections
    assert len(PROGRAMS) == 6
    for section in sections:
        sources = [source for where, name, source in blocks() if where == section and name not in PROGRAMS]
        assert max(len(source.splitlines()) for source in sources) <= 30


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_of_the_page_runs(name, desk, monkeypatch):
    """In this process, since a start of Python costs more than the two steps."""
    monkeypatch.syspath_prepend(str(desk))
    if name == "encode_with_my_head.py":
        trained = runpy.run_path("train_with_my_head.py", run_name="__main__")["model"]
    run = runpy.run_path(name, run_name="__main__")
    if "trainer" in run:
        assert run["trainer"].state.global_step == 2
    part = name.removesuffix(".py").rpartition("_")[2]
    if name == "encode_with_my_head.py":
        ours = trained.encode_queries(["what is a zebra"])
        theirs = run["model"].encode_queries(["what is a zebra"])
        torch.testing.assert_close(theirs.tokens.values, ours.tokens.values, rtol=0, atol=1e-6)
        assert theirs.tokens.values.shape[1] == 16
    elif part == "filter":
        assert run["documents"].tokens.lengths.tolist() == [7]  # of eight tokens, the first is [CLS]
    elif part == "callback":
        assert (desk / "step.txt").read_text() == "2"
    else:
        names = [HEAD] if part == "head" else []
        again = SmartEncoder.from_pretrained(desk / "runs" / part / "adapter", device="cpu", trust_extensions=names)
        ours, theirs = run["model"].encode_queries(["a zebra"]), again.encode_queries(["a zebra"])
        torch.testing.assert_close(theirs.pooled, ours.pooled, rtol=0, atol=1e-6)


def test_the_loss_term_of_the_first_task_is_its_formula(desk, monkeypatch):
    """Two queries, three documents: by hand."""
    monkeypatch.syspath_prepend(str(desk))
    from best_wrong import BestWrongPage

    scores = SimpleNamespace(late=torch.tensor([[0.9, 0.7, 0.2], [0.3, 0.6, 0.55]]))
    pairs = {"query": torch.tensor([0, 1]), "document": torch.tensor([0, 1])}
    negatives = torch.tensor([[False, True, True], [False, False, True]])  # document 0 is no negative of query 1
    labels = SimpleNamespace(**pairs, negatives=negatives, mean=lambda costs: costs.mean())
    cost, metrics = BestWrongPage(margin=0.15).forward(scores, labels, None)
    assert cost.item() == pytest.approx((0 + (0.15 - 0.6 + 0.55)) / 2)
    assert metrics["violated"] == 0.5


def test_the_reader_of_the_second_task_reads_its_format(desk, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(desk))
    (desk / "plants").mkdir()
    for split in ("train", "test"):
        lines = [f"@ {split}1 where does it grow", f"+ in the {split} hills", "- on the moon", "- in the sea"]
        (desk / "plants" / f"{split}.log").write_text("\n".join(lines) + "\n")
    assert main(["data", "check", "plants", "--format", "plant_reader:PlantReader"]) in (0, 3)
    assert "judged in test 1, train 1" in capsys.readouterr().out
    reader = find_reader(DataBlock(path="plants", format="plant_reader:PlantReader"))
    read = reader.read("train")
    assert reader.splits() == ["test", "train"]
    assert [(q, read.corpus[d].text) for q, d in read.pairs()] == [("train1", "in the train hills")]
    assert [read.corpus[d].text for d in read.negatives["train1"]] == ["on the moon", "in the sea"]


def test_all_of_them_at_once_on_two_ranks(desk, tiny_bert):
    """One launch costs as much as all else here, so one recipe has every example of the page."""
    two = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    everything = merged(*ADDED.values())
    everything["objective"]["terms"].append({"type": "best_wrong:BestWrongPage", "weight": 0.5, "margin": 0.05})
    encoder = launch(desk, tiny_bert, everything, *two)
    check_parts(desk, encoder, set(ADDED))
    assert 0 <= last_line(desk)["best_wrong/violated"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("section", list(ADDED))
def test_each_of_them_alone(section, desk, tiny_bert):
    names = {"A token head": [HEAD], "A token filter": [FILTER]}.get(section, [])
    assert bool(names) == ("late" in ADDED[section])
    check_parts(desk, launch(desk, tiny_bert, ADDED[section]), {section})


@pytest.mark.slow
@pytest.mark.parametrize("section", list(ADDED))
def test_each_of_them_on_two_ranks(section, desk, tiny_bert):
    two = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    check_parts(desk, launch(desk, tiny_bert, ADDED[section], *two), {section})


def test_an_adapter_with_an_extension_is_refused_without_trust(desk, monkeypatch):
    monkeypatch.syspath_prepend(str(desk))
    runpy.run_path("train_with_my_head.py", run_name="__main__")
    del sys.modules["my_head"]
    with pytest.raises(ValueError, match="my_head:GatedHead"):
        SmartEncoder.from_pretrained(desk / "runs" / "head" / "adapter", device="cpu")
    assert "my_head" not in sys.modules


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PROGRAMS if name.startswith("train_")])
def test_every_training_program_runs_on_two_ranks(name, desk):
    """``accelerate launch PROGRAM.py``; without GPUs the processes meet over gloo."""
    two = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    variables = environment(ACCELERATE_USE_CPU="true")
    done = shell([program("accelerate"), "launch", *two, name], desk, **variables)
    assert done is None, done
    part = name.removesuffix(".py").rpartition("_")[2]
    if part == "callback":
        assert (desk / "step.txt").read_text() == "2"
    else:
        names = [HEAD] if part == "head" else []
        again = SmartEncoder.from_pretrained(desk / "runs" / part / "adapter", device="cpu", trust_extensions=names)
        assert again.encode_queries(["a zebra"]).pooled.isfinite().all()
    lines = (desk / "runs" / part / "log.jsonl").read_text().splitlines()
    assert any("gather/MiB" in json.loads(line) for line in lines)  # the ranks exchanged embeddings
