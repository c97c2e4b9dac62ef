"""The benchmark of scale on two real processes: what their sockets receive and their memory grows by beside formulas,
and docs/scaling.md against them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from ranks import run_ranks

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "benchmarks"))

import scaling  # noqa: E402
import scaling_paper  # noqa: E402
import scaling_ranks  # noqa: E402

CASES = [
    scaling.Case("joint", 8, 16, 500, 256, 1024),
    scaling.Case("bfloat16", 6, 16, 300, 256, 320, half=True, what=("volume",)),
    scaling.Case("pooled", 64, 4, 4, 2048, 8, late=False, what=("volume",)),
]


@pytest.fixture(scope="module")
def lines() -> dict[tuple[str, str], scaling.Line]:
    """(what, case) -> measured, formula and their ratio."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in scaling.EXACT.items():
            patch.setenv(name, value)
        found = list(zip(*run_ranks(2, scaling_ranks.measure, CASES, timeout=120.0), strict=True))
    every = [one for case, ranks in zip(CASES, found, strict=True) for one in scaling.lines(case, 2, list(ranks))]
    return {(one["what"], one["case"]): one for one in every}


@pytest.mark.parametrize("case", [case.name for case in CASES])
def test_what_a_run_logs_is_what_its_sockets_receive(lines, case):
    assert lines["bytes, counted", case]["ratio"] == 1.0
    assert lines["bytes out, wire", case]["ratio"] == pytest.approx(1.0, abs=0.02)
    assert lines["bytes back, wire", case]["ratio"] == pytest.approx(2.0, abs=0.02)  # gloo: an all-reduce; a ring: 1


def test_resident_memory_grows_by_what_the_formula_says(lines):
    """And some 10 MB of what allocators and gloo keep, whatever the case."""
    found = lines["memory, resident", "joint"]
    assert found["formula"] > 60e6
    assert 0.95 * found["formula"] < found["measured"] < found["formula"] + 25e6


@pytest.mark.parametrize("table", scaling_paper.TABLES)
def test_the_page_has_the_tables_that_the_formulas_give(table):
    page = (HERE.parents[1] / "docs" / "scaling.md").read_text(encoding="utf8")
    assert "\n".join(table()) in page


def test_a_group_of_the_largest_size_is_cheap_and_one_more_is_not():
    """Written out for d = 320 between machines: bytes against the backbone's time."""
    model = scaling_paper.PAGE
    largest = scaling_paper.largest_group(model, 320, scaling_paper.BETWEEN)

    def share(group: int) -> float:
        received = scaling.gather_volume(scaling_paper.share_of(model, 64, group, 320))
        return received / scaling_paper.BETWEEN / (64 * model.operations / scaling_paper.RATE)

    assert share(largest) <= scaling_paper.SMALL < share(largest + 1)
