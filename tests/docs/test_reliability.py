"""docs/reliability.md shows the figures that were recorded, and they are those that the page claims."""

from __future__ import annotations

import json
import sys

from pages import ROOT

sys.path.append(str(ROOT / "tests" / "hostile"))

import inputs  # noqa: E402
import kill_moments  # noqa: E402
import tables  # noqa: E402
import throw_inputs  # noqa: E402


def test_the_page_has_the_recorded_figures():
    text = tables.PAGE.read_text()
    assert tables.page(text) == text, "run tests/hostile/tables.py"


def test_every_kind_was_tried_in_full_and_nothing_bad_was_seen():
    counts = json.loads((ROOT / "tests/hostile/counts.json").read_text())
    assert {kind: row["tried"] for kind, row in counts.items()} == {kind: n for kind, (_, n) in inputs.KINDS.items()}
    assert {row[bad] for row in counts.values() for bad in throw_inputs.BAD} == {0}


def test_every_command_was_killed_at_twenty_moments_and_ended_the_same():
    record = json.loads((ROOT / "tests/hostile/kill_moments.json").read_text())
    assert tuple(record) == kill_moments.COMMANDS
    for found in record.values():
        assert len(found["trials"]) >= 20
        assert all(one["same"] for one in found["trials"])
