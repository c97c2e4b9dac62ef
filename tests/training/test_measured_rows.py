"""The base's figures are written as they are made, and a next start uses them where what they depend on is equal."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml

from smart_train.checks.mining import data_of
from smart_train.config.recipe import read
from smart_train.config.schema import Component, EvaluationBlock, LateBlock, ModelBlock
from smart_train.data.load import load
from smart_train.training import run as run_module
from smart_train.training.measured_rows import FILE, dependencies


class Ended(Exception):
    """A failure after the base was measured."""


def fail(*args, **options):
    raise Ended


@pytest.fixture
def start(tmp_path, tiny_bert, triples_file, monkeypatch):
    """start(key=value ...) runs a recipe until the trainer would be made; returns the base row that it would report."""
    recipe = {
        "output": str(tmp_path / "run"),
        "model": {"base": str(tiny_bert)},
        "data": {"path": str(triples_file), "dev": 3, "test": 3},
        "training": {"max_steps": 1, "per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True},
        "evaluation": {"bootstrap": 20, "k": [1, 10]},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    rows = []
    measure = run_module._base_row
    monkeypatch.setattr(run_module, "make_trainer", fail)
    monkeypatch.setattr(run_module, "_base_row", lambda *args: rows.append(measure(*args)) or rows[-1])

    def begin(*words: str):
        with pytest.raises(Ended):
            run_module.run(read(tmp_path / "recipe.yaml", list(words)))
        return rows[-1] if rows else None

    return begin


def test_a_run_that_failed_after_the_base_was_measured_is_started_again_without_its_model(
    start, tmp_path, monkeypatch, caplog
):
    first = start()
    monkeypatch.setattr(run_module, "untrained_encoder", fail)
    with caplog.at_level(logging.INFO):
        again = start()
    assert asdict(again) == asdict(first)
    assert (tmp_path / "run.1").is_dir(), "the failed run is kept"
    told = [line for line in caplog.messages if "is used again: nothing that it depends on has changed" in line]
    assert len(told) == 1 and str(tmp_path / "run.1" / FILE) in told[0]
    assert asdict(start("training.learning_rate=0.1", "objective.late.weight=2", "adapter.r=2")) == asdict(first)


def test_a_calibration_is_kept_where_the_ranking_after_it_fails(start, monkeypatch):
    whole = start("evaluation.seed=1")  # another seed: nothing of it is used below
    with monkeypatch.context() as patched:
        patched.setattr(run_module, "evaluate", fail)
        start()
    monkeypatch.setattr(run_module, "calibrate", fail)
    assert start().hybrid == whole.hybrid


@pytest.mark.parametrize("text", ["", "{", "[]", '{"depends_on": 1}'])
def test_a_file_that_is_none_of_ours_is_written_anew(start, tmp_path, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FILE).write_text(text)
    start()
    assert "base" in json.loads((tmp_path / "run" / FILE).read_text())


# -- what the figures depend on


@pytest.fixture
def depends(tmp_path, tiny_bert, triples_file):
    """depends(base=..., edit=...) -> what a row depends on, with one thing changed."""
    base, rows = tmp_path / "base", tmp_path / "rows.jsonl"
    shutil.copytree(tiny_bert, base)
    shutil.copyfile(triples_file, rows)
    (tmp_path / "recipe.yaml").write_text(f"data: {{path: {rows}, dev: 3, test: 3}}\n")

    def describe(model=None, late=None, evaluation=None, device="cpu"):
        _, dev, test = load(data_of(read(tmp_path / "recipe.yaml")), teacher=False)
        return dependencies(
            ModelBlock(base=str(base), **(model or {})),
            LateBlock(**(late or {})),
            replace(EvaluationBlock(), **(evaluation or {})),
            {"dev": dev, "test": test},
            torch.device(device),
        )

    describe.base, describe.rows = base, rows
    return describe


CHANGED = {
    "query prompt": {"model": {"query_prompt": "query: "}},
    "document tokens": {"model": {"document_tokens": 8}},
    "precision": {"model": {"dtype": "bfloat16"}},
    "pooling": {"model": {"pooling": "cls"}},
    "layer": {"late": {"layer": 1}},
    "filter": {"late": {"drop": ["punctuation"]}},
    "cut-offs": {"evaluation": {"k": [3]}},
    "resamples": {"evaluation": {"bootstrap": 7}},
    "calibration": {"evaluation": {"calibrate": False}},
}
SAME = {
    "dropout": {"model": {"dropout": 0.3}},
    "patience": {"evaluation": {"patience": 2}},
    "widths that are trained": {"model": {"matryoshka": [8]}},
}


@pytest.mark.parametrize("changed", CHANGED.values(), ids=CHANGED)
def test_another_setting_that_changes_the_row_is_another_row(depends, changed):
    assert depends(**changed) != depends()


@pytest.mark.parametrize("changed", SAME.values(), ids=SAME)
def test_a_setting_of_the_training_changes_no_row_of_the_base(depends, changed):
    assert depends(**changed) == depends()


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_other_files_of_the_base_and_other_data_are_another_row(depends):
    seen = [depends()]
    weights = next(depends.base.rglob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    seen.append(depends())
    (depends.base / "modules.json").write_text((depends.base / "modules.json").read_text() + "\n")
    seen.append(depends())
    edit(depends.rows, "stands between", "lies between")
    seen.append(depends())
    edit(depends.rows, "what stands", "what is")
    seen.append(depends())
    assert all(a != b for n, a in enumerate(seen) for b in seen[:n])


def test_a_filter_of_somebody_elses_code_is_never_taken_for_the_same(depends):
    assert depends(late={"keep": [Component("own_parts:Longer")]}) is None
