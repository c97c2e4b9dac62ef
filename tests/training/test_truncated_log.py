"""A log that goes on has every step once, whatever a killed run wrote after its last checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smart_train.training.checkpoint import truncate_log


def written(path: Path, steps: list[int], end: str = "") -> int:
    """The log's bytes without ``end``."""
    path.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in steps))
    size = path.stat().st_size
    with path.open("a") as stream:
        stream.write(end)
    return size


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_lines_after_the_checkpoint_are_taken_out_and_counted(tmp_path):
    log = tmp_path / "log.jsonl"
    size = written(log, [1, 2, 3], '{"step": 4}\n{"step": 5}\n{"st')
    (told,) = truncate_log(log, size, 3)
    assert steps(log) == [1, 2, 3] and "3 lines after the checkpoint of step 3" in told and str(log) in told
    assert truncate_log(log, size, 3) == [], "there is nothing left to take out"


def test_a_line_of_the_same_step_that_came_after_the_save_goes_too(tmp_path):
    log = tmp_path / "log.jsonl"
    size = written(log, [1, 2], '{"step": 2, "train_loss": 0.5}\n')
    assert len(truncate_log(log, size, 2)) == 1 and steps(log) == [1, 2]


@pytest.mark.parametrize("size", [0, 10, 10**6])
def test_a_log_that_is_not_as_long_as_it_was_keeps_whole_lines_up_to_that_step(size, tmp_path):
    log = tmp_path / "log.jsonl"
    written(log, [1, 2, 3, 4], "no json\n")
    truncate_log(log, size, 3)
    assert steps(log) == ([1, 2, 3] if size > 100 else [])


def test_a_run_without_a_log_is_told_nothing(tmp_path):
    assert truncate_log(tmp_path / "log.jsonl", 5, 3) == []
