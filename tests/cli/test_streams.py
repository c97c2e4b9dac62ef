"""Standard output that is closed, full, left by its reader, or too narrow ends no work; in real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launches import environment, words

ROOT = Path(__file__).parents[2]
COMMAND = f"{sys.executable} -m smart_train"
STREAMS = {  # how a shell starts it
    "stdout full": "> /dev/full",
    "both full": "> /dev/full 2>&1",
    "stdout closed": ">&-",
    "all closed": "<&- >&- 2>&-",
    "the reader left": "| true",
    "the reader of both left": "2>&1 | true",
}


def shell(line: str, **more: str) -> subprocess.CompletedProcess:
    line = f"set -o pipefail; sleep 0.2; {line}"
    return subprocess.run(
        ["bash", "-c", line],
        cwd=ROOT,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("streams", STREAMS.values(), ids=STREAMS)
def test_a_command_does_its_work_and_a_lost_output_is_status_1(streams, tmp_path):
    path = tmp_path / "mine.yaml"
    done = shell(f"(sleep 0.3; {COMMAND} new {path}) {streams}")  # the reader has left by then
    assert path.read_text().startswith("from smart_train.recipe import boot")
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert done.returncode == (1 if "full" in streams else 0), done.stderr
    if streams == "> /dev/full":
        told = "standard output cannot be written (No space left on device); the work goes on without it\n"
        assert done.stderr == told


@pytest.mark.parametrize(
    "name",
    ["all closed", *(pytest.param(n, marks=pytest.mark.slow) for n in ("stdout full", "the reader of both left"))],
)
def test_a_training_goes_on_to_its_end(name, tmp_path, tiny_bert, triples_file):
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(f"model:\n  base: {tiny_bert}\ndata:\n  path: {triples_file}\n  dev: 2\n  test: 2\n")
    few: dict[str, object] = {
        "training.max_steps": 2,
        "training.logging_steps": 1,
        "training.per_device_train_batch_size": 2,
        "training.use_cpu": "true",
        "evaluation.before": "false",
        "evaluation.bootstrap": 20,
        "output": output,
    }
    done = shell(f"(sleep 0.3; {COMMAND} train {recipe} {' '.join(words(few))}) {STREAMS[name]}")
    assert done.returncode == 0, done.stderr
    assert json.loads((output / "metrics.json").read_text())["trained"]
    assert json.loads((output / "adapter" / "verified.json").read_text())
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert {1, 2} <= {row.get("step") for row in log}
    for file in output.rglob("*.safetensors"):  # nothing printed got into a file that was opened as number 1 or 2
        assert json.loads(file.read_bytes()[8 : 8 + int.from_bytes(file.read_bytes()[:8], "little")])


def test_a_narrow_encoding_shows_what_it_cannot_print(tmp_path):
    path = tmp_path / "Prüfung.yaml"
    done = shell(f"{COMMAND} new {path}", PYTHONIOENCODING="ascii:strict")
    assert done.returncode == 0 and path.is_file()
    assert r"wrote " in done.stdout and r"Pr\xfcfung.yaml" in done.stdout


def test_a_pipe_that_does_not_block_loses_nothing():
    """More than a pipe holds, to a reader that starts late."""
    program = (
        "import os; os.set_blocking(1, False)\n"
        "from smart_train.cli.streams import output_lost, protect_streams\n"
        "protect_streams()\n"
        "for number in range(40000): print('line', number)\n"
        "assert not output_lost()\n"
    )
    done = shell(f'{sys.executable} -c "{program}" | (sleep 1; cat)')
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"line {number}" for number in range(40000)]


def test_streams_that_a_program_replaced_stay_as_they_are(capsys):
    from smart_train.cli.streams import output_lost, protect_streams

    before = sys.stdout, sys.stderr
    protect_streams()
    assert (sys.stdout, sys.stderr) == before and not output_lost()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_signal_is_obeyed_where_nothing_can_be_printed():
    program = (
        "import os, signal, time\n"
        "from smart_train.distributed.signals import received, stoppable, set_training\n"
        "with stoppable():\n"
        "    set_training(True, 'x')\n"
        "    os.close(2)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    until = time.monotonic() + 20\n"
        "    while not received() and time.monotonic() < until: time.sleep(0.01)\n"
        "    time.sleep(0.2)\n"
        "    import threading\n"
        "    assert received() and 'signals' in [thread.name for thread in threading.enumerate()]\n"
    )
    assert shell(f'{sys.executable} -c "{program}"').returncode == 0
