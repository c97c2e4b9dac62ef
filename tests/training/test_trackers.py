"""wandb, TensorBoard and trackio, for real and offline: what the JSONL log has, under the same names."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from steps import lines
from transformers.integrations import TensorBoardCallback, WandbCallback

from smart_train.config.schema import AdapterBlock

RECIPE = {"name": "a-run-of-mine", "objective": {"late": {"temperature": 0.0173}}}
NAMES = {"loss", "loss/pooled", "loss/late", "speed/pairs_per_second", "memory/gib", "dev/hybrid/ndcg@10", "best/value"}


@pytest.fixture
def tracked(make, monkeypatch, tmp_path):
    """tracked(*names) trains two steps with these trackers; the trainer and the run's folder."""
    for name in ("WANDB_DIR", "WANDB_PROJECT", "TENSORBOARD_LOGGING_DIR", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")

    def train(*names: str):
        figures = iter([0.4, 0.5])
        options = {"eval_strategy": "steps", "eval_steps": 1, "report_to": list(names)}
        trainer = make("bert", AdapterBlock(r=4), evaluator=lambda e: {"hybrid/ndcg@10": next(figures)}, about=RECIPE,
                       **options)  # fmt: skip
        trainer.train()
        return trainer, tmp_path / "run"

    return train


def test_wandb_and_tensorboard_have_the_logs_lines_under_its_names_and_the_recipe(tracked):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer, folder = tracked("wandb", "tensorboard")
    kinds = {type(callback) for callback in trainer.callback_handler.callbacks}
    assert not kinds & {WandbCallback, TensorBoardCallback}

    events = accumulator.EventAccumulator(str(folder / "tensorboard" / "a-run-of-mine"))
    events.Reload()
    written: dict[str, list[tuple[int, float]]] = {}
    for line in lines(trainer):
        for name in line.keys() - {"step", "seconds"}:
            written.setdefault(name, []).append((line["step"], line[name]))
    assert written.keys() >= NAMES and set(events.Tags()["scalars"]) == set(written)
    for name, points in written.items():
        found = {(event.step, event.value) for event in events.Scalars(name)}
        # values of one step are sorted before they are near: what is near has no order
        assert sorted(found) == [(step, pytest.approx(value)) for step, value in sorted(set(points))], name
    assert events.Tags()["tensors"] == ["recipe/text_summary"]

    pytest.importorskip("wandb").finish()  # its own process writes the file: until now it may be begun and no more
    (file,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    stored = file.read_bytes()
    for name in NAMES | {"a-run-of-mine", "smart-train", "0.0173"}:
        assert name.encode() in stored, name
    assert b"train/loss" not in stored and b"eval/" not in stored and b"eval_" not in stored


def test_trackio_has_the_logs_lines_under_its_names(tracked, monkeypatch, tmp_path):
    pytest.importorskip("trackio")
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio", raising=True)
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio", raising=False)
    trainer, _ = tracked("trackio")
    (file,) = Path(tmp_path / "trackio").glob("*.db")
    rows = sqlite3.connect(file).execute("select run_name, step, metrics from metrics").fetchall()
    assert {row[0] for row in rows} == {"a-run-of-mine"}
    found = [{"step": step, **json.loads(metrics)} for _, step, metrics in rows]
    expected = [{k: v for k, v in line.items() if k != "seconds"} for line in lines(trainer)]
    assert found == expected


def test_without_report_to_no_tracker_writes(tracked):
    trainer, folder = tracked()
    assert {path.name for path in folder.iterdir()} <= {"log.jsonl", "checkpoints"}
