"""Two real runs into one output: the second is refused, and a killed run's folder is taken over and says so."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from killed import Command
from launches import words


@pytest.fixture
def start(tmp_path, tiny_bert, triples_file):
    """start(name, key=value ...) -> the process of a run into OUTPUT, whose print is in a file of that name."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model:\n  base: {tiny_bert}\ndata:\n  path: {triples_file}\n  dev: 2\n  test: 2\n")
    started: list[Command] = []

    def begin(name: str, **overrides: object) -> Command:
        few: dict[str, object] = {
            "training.per_device_train_batch_size": 2,
            "training.save_strategy": "no",
            "training.logging_steps": 1,
            "training.use_cpu": "true",
            "evaluation.before": "false",
            "evaluation.after": "false",
            "output": tmp_path / "run",
            **overrides,
        }
        started.append(Command(["train", str(recipe), *words(few)], tmp_path / name))
        return started[-1]

    yield begin
    for process in started:
        if process.wait(0) is None:
            process.kill()


def steps(output: Path) -> int:
    file = output / "log.jsonl"
    return len(file.read_text().splitlines()) if file.is_file() else 0


def test_one_run_at_a_time_writes_to_an_output(start, tmp_path):
    output = tmp_path / "run"
    first = start("first", **{"training.max_steps": 100000})
    until = time.monotonic() + 200
    while not steps(output):
        assert time.monotonic() < until and first.wait(0) is None, first.printed.read_text()
        time.sleep(0.1)
    second = start("second", **{"training.max_steps": 1})
    assert second.wait(200) == 2
    refused = f"{output} is in use by process {first.process.pid} on "
    assert refused in second.printed.read_text() and "Traceback" not in second.printed.read_text()
    made, until = steps(output), time.monotonic() + 60
    while steps(output) <= made:  # the first goes on, where it was
        assert time.monotonic() < until and first.wait(0) is None, first.printed.read_text()
        time.sleep(0.1)
    assert not (tmp_path / "run.1").exists()

    first.kill()
    third = start("third", **{"training.max_steps": 1})
    assert third.wait(200) == 0, third.printed.read_text()
    assert f"took over {output} from process {first.process.pid} on " in third.printed.read_text()
    assert (tmp_path / "run.1" / "log.jsonl").is_file()  # what the killed run wrote was moved, not overwritten
    assert json.loads((output / "adapter" / "verified.json").read_text())
    assert not (output / "owner.json").exists() and not (tmp_path / "run.1" / "owner.json").exists()
