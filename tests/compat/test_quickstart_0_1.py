"""The quickstart gives the figures that version 0.1 gave in the same environment: the move changed no number.

``quickstart_metrics_0_1.json`` is the metrics.json of 0.1 with two threads and the versions of constraints.txt, and
``quickstart_data_0_1.json`` the fingerprints of its splits. The corpus is the documentation of the installed packages,
so another environment trains on other data: the test then compares the base row alone if the test split is the same,
and nothing otherwise, and says so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launches import RECIPES, program, run

BEFORE = Path(__file__).with_name("quickstart_metrics_0_1.json")
DATA = Path(__file__).with_name("quickstart_data_0_1.json")
TOLERANCE = {"base": 1e-6, "trained": 1e-4}


def numbers(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", float(value)


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line for every number of a row that is missing, or off by more than the row's tolerance."""
    lines = []
    for row, tolerance in TOLERANCE.items():
        found = dict(numbers(now[row]))
        for name, value in numbers(before[row]):
            if name not in found:
                lines.append(f"{row}/{name}: {value} before, missing now")
            elif abs(found[name] - value) > tolerance:
                lines.append(f"{row}/{name}: {value} before, {found[name]} now ({found[name] - value:+.2g})")
    return lines


def test_the_comparison_sees_what_it_must():
    before = json.loads(BEFORE.read_text())
    assert len(list(numbers(before["base"]))) > 100
    assert differences(before, before) == []
    now = json.loads(BEFORE.read_text())
    now["base"]["late"]["ndcg@10"]["value"] += 2e-6
    now["trained"]["late"]["ndcg@10"]["value"] += 5e-5
    now["trained"]["pooled"]["mrr@10"]["low"] += 2e-4
    del now["trained"]["hybrid"]["ndcg@1"]["high"]
    assert [line.partition(":")[0] for line in differences(before, now)] == [
        "base/late/ndcg@10/value",
        "trained/pooled/mrr@10/low",
        "trained/hybrid/ndcg@1/high",
    ]


@pytest.mark.slow
def test_the_quickstart_gives_the_figures_of_0_1(tmp_path):
    """Takes about 8 minutes on two cores."""
    threads = str(min(2, os.cpu_count() or 1))
    command = [program("accelerate"), "launch", str(RECIPES / "quickstart.yaml"), f"output={tmp_path / 'run'}"]
    run(command, timeout=3600, OMP_NUM_THREADS=threads)
    now = json.loads((tmp_path / "run" / "metrics.json").read_text())
    before, data = json.loads(DATA.read_text()), json.loads((tmp_path / "run" / "versions.json").read_text())["data"]
    if data["test"] != before["test"]:
        pytest.skip("other Python packages are installed here, so the quickstart's test split is another one")
    found = differences(json.loads(BEFORE.read_text()), now)
    if data != before:
        found = [line for line in found if line.startswith("base/")]
    assert not found, "\n" + "\n".join(found)
    if data != before:
        pytest.skip("the base row is the same; other packages are installed, so the training split is another one")
