"""kill -9 at any moment, resume, and the run ends as the one that was never killed: adapter, head, optimizer, schedule,
random states, best metric and log, bit for bit.  And where a run writes, when it goes on with another.

The processes are real, and so are the kills: some come in the middle of a save.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from killed import ROOT, Command, Fork
from resumed import differences, left, log_of, whole_recipe

from smart_train.config.recipe import read
from smart_train.core.errors import NothingToResume, SettingError
from smart_train.training.run_dir import changes, owned_run_dir, resumed_run

STEPS = 10
PATIENCE = 300.0  # seconds for a run, on a machine that others use, too


@pytest.fixture(scope="module")
def recipe(tiny_models, triples_file, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    blocks = whole_recipe(tiny_models("bert"), triples_file, STEPS)
    blocks["evaluation"] = {"before": False, "after": False, "bootstrap": 1, "k": [10]}
    path.write_text(yaml.safe_dump(blocks))
    return path


Start = Callable[[list[str], Path], Fork | Command]


def finished(start: Start, recipe: Path, output: Path, *more: str) -> None:
    words = ["train", str(recipe), f"output={output}", *more]
    process = start(words, output.with_suffix(f".{len(more)}.txt"))
    status = process.wait(PATIENCE)
    if status is None:
        process.kill()
    assert status == 0, process.printed.read_text(errors="replace")[-3000:]


def killed(start: Start, recipe: Path, output: Path, chance: random.Random) -> tuple[int, bool]:
    """Kills a run a random moment after a random step; returns the last logged step and whether a save was cut."""
    after, moment = chance.randint(2, STEPS - 3), chance.uniform(0, 0.2)
    process = start(["train", str(recipe), f"output={output}"], output.with_suffix(".killed.txt"))
    end = time.monotonic() + PATIENCE
    while logged(output) < after:
        assert process.wait(0.002) is None and time.monotonic() < end, process.printed.read_text(errors="replace")
    time.sleep(moment)
    assert process.wait(0) is None, "it was through before the kill"
    process.kill()
    return logged(output), any((output / "checkpoints").glob("*.part"))


def logged(output: Path) -> int:
    """The last whole line's step."""
    log = output / "log.jsonl"
    lines = [line for line in log.read_bytes().splitlines(True) if line.endswith(b"\n")] if log.is_file() else []
    return max((json.loads(line)["step"] for line in lines), default=0)


def compare(output: Path, whole: Path) -> None:
    for name in ("adapter_model.safetensors", "late_head.safetensors"):
        assert (output / "adapter" / name).read_bytes() == (whole / "adapter" / name).read_bytes()
    last = f"checkpoints/checkpoint-{STEPS}"
    assert not differences(left(output / last), left(whole / last))
    assert not list((output / "checkpoints").glob("*.part"))
    ours, theirs = ([line for line in log_of(run) if "train_loss" not in line] for run in (output, whole))
    assert ours == theirs
    assert [line["step"] for line in ours if "loss" in line] == list(range(1, STEPS + 1))


def trials(start: Start, recipe: Path, folder: Path, seeds: range) -> list[tuple[int, bool]]:
    finished(start, recipe, folder / "whole")
    found = []
    for seed in seeds:
        output = folder / f"trial {seed}"
        found.append(killed(start, recipe, output, random.Random(seed)))
        finished(start, recipe, output, "training.resume_from_checkpoint=true")
        compare(output, folder / "whole")
    return found


def test_a_killed_run_that_is_resumed_ends_as_if_it_had_not_been(recipe, tmp_path):
    assert len(trials(Fork, recipe, tmp_path, range(2))) == 2


@pytest.mark.slow
def test_six_kills_of_the_command(recipe, tmp_path):
    found = trials(Command, recipe, tmp_path, range(10, 16))
    assert len({step for step, _ in found}) > 1


@pytest.mark.slow
def test_four_kills_of_two_ranks(recipe, tmp_path):
    cpu = ("--config_file", str(ROOT / "launch" / "cpu.yaml"), "-m")
    trials(lambda words, printed: Command(words, printed, cpu), recipe, tmp_path, range(20, 24))


# -- where a run writes


@pytest.fixture
def resuming(recipe, tmp_path):
    """resuming(value, key=value ...) -> the recipe that goes on from ``value``, and its output folder."""

    def make(value: str, *more: str):
        words = [f"output={tmp_path / 'run'}", f"training.resume_from_checkpoint={value}", *more]
        return read(recipe, words), tmp_path / "run"

    return make


def checkpoint(run: Path, step: int = 2) -> Path:
    folder = run / "checkpoints" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    return folder


def test_a_run_that_goes_on_stays_where_it_is(resuming, tmp_path):
    folder = checkpoint(tmp_path / "run")
    for value in ("true", str(folder)):
        recipe, output = resuming(value)
        with owned_run_dir(output, recipe):
            pass
        assert folder.is_dir() and resumed_run(recipe, output).resolve() == output.resolve()
    assert not (tmp_path / "run.1").exists()


def test_there_must_be_something_to_go_on_from(resuming, tmp_path):
    recipe, output = resuming("true")
    told = r"no run to resume in .*run: it has no checkpoints; correct output"
    with pytest.raises(NothingToResume, match=told), owned_run_dir(output, recipe):
        pass
    recipe, output = resuming(str(tmp_path / "elsewhere" / "checkpoints" / "checkpoint-9"))
    with pytest.raises(NothingToResume, match="there is no folder .*checkpoint-9"), owned_run_dir(output, recipe):
        pass
    assert not output.exists()


def test_another_run_in_the_way_is_moved_and_the_moved_runs_log_goes_on(resuming, tmp_path, caplog):
    """The first attempt was moved to run.1 by a second one that began anew; the first is gone on with."""
    earlier, second = checkpoint(tmp_path / "run.1"), checkpoint(tmp_path / "run", 1)
    (tmp_path / "run.1" / "log.jsonl").write_text('{"step": 1}\n')
    recipe, output = resuming(str(earlier))
    with caplog.at_level(logging.INFO), owned_run_dir(output, recipe):
        pass
    assert (tmp_path / "run.2" / "checkpoints" / second.name).is_dir() and earlier.is_dir()
    assert f"training.resume_from_checkpoint={tmp_path}/run.2/checkpoints/checkpoint-1" in caplog.text
    assert (output / "log.jsonl").read_text() == '{"step": 1}\n'


def test_each_key_that_differs_from_the_run_that_goes_on_is_told(resuming, tmp_path, caplog):
    from smart_train.config.recipe import save

    checkpoint(tmp_path / "run")
    save(resuming("true")[0], tmp_path / "run")
    more = ("training.max_grad_norm=0.5", "objective.late.temperature=0.9", "data.negatives=0", "training.run_name=x")
    recipe, output = resuming("true", *more)
    keys = [key for key, *_ in changes(output / "recipe.yaml", recipe)]
    assert sorted(keys) == ["data.negatives", "objective.late.temperature", "training.max_grad_norm"]
    with owned_run_dir(output, recipe):
        pass
    assert "objective.late.temperature is 0.9, but the run was started with 0.05" in caplog.text
    assert not changes(output / "recipe.yaml", resuming("true")[0])


HELD = {
    "learning_rate": "0.5",
    "head_learning_rate": "0.5",
    "weight_decay": "0.1",
    "adam_beta1": "0.8",
    "adam_epsilon": "1e-3",
    "optim": "sgd",
    "lr_scheduler_type": "linear",
    "lr_scheduler_kwargs": "{num_cycles: 2}",
}


@pytest.mark.parametrize("name", HELD)
def test_a_key_that_the_checkpoint_holds_cannot_change_and_is_named(resuming, tmp_path, name):
    from smart_train.config.recipe import save

    checkpoint(tmp_path / "run")
    save(resuming("true")[0], tmp_path / "run")
    recipe, output = resuming("true", f"training.{name}={HELD[name]}")
    with (
        pytest.raises(SettingError, match=rf"training.{name}.*but the run was started with"),
        owned_run_dir(output, recipe),
    ):
        pass
    assert list(output.iterdir()), "nothing was moved"


def test_a_default_that_is_written_out_is_the_same_value(resuming, tmp_path):
    from smart_train.config.recipe import save
    from smart_train.training.arguments import SmartTrainingArguments
    from smart_train.training.run_dir import HELD as DEFAULTS

    args = SmartTrainingArguments(str(tmp_path), use_cpu=True)
    values = {name: getattr(getattr(args, name), "value", getattr(args, name)) for name in DEFAULTS}
    assert values == {**DEFAULTS, "learning_rate": 1e-4}  # that of LoRA; other kinds of training have their own
    checkpoint(tmp_path / "run")
    save(resuming("true")[0], tmp_path / "run")
    recipe, output = resuming("true", "training.weight_decay=0.0", "training.adam_beta1=0.9")
    with owned_run_dir(output, recipe):
        pass
