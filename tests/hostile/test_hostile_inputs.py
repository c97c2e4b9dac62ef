"""Hostile inputs at every public door: a sentence, a report of the fault, or the right result; nothing else.

throw_inputs.py says what is counted. The quick part takes some inputs of the doors that cost no model; all of them are
slow, and docs/reliability.md has their counts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.append(str(HERE))

import attempts  # noqa: E402
import throw_inputs  # noqa: E402
from inputs import KINDS, Input  # noqa: E402

QUICK = {
    "values of recipes": 12,
    "bytes of recipes": 6,
    "bytes of tables": 10,
    "cells of tables": 10,
    "images": 2,
    "contents in Python": 4,
}
COUNTS = HERE / "counts.json"


def test_some_hostile_inputs_are_refused_told_or_right(tmp_path):
    with throw_inputs.Doors(tmp_path) as doors:
        place = throw_inputs.make_place(tmp_path, doors.offline, runs=False)
        found = [throw_inputs.throw(kind, seed, place, doors) for kind, many in QUICK.items() for seed in range(many)]
    assert [one for one in found if one["outcome"] in throw_inputs.BAD] == []
    assert {one["outcome"] for one in found} >= {"refused", "right"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_all_hostile_inputs_of_a_kind_are_refused_told_or_right(kind, tmp_path):
    with throw_inputs.Doors(tmp_path) as doors:
        place = throw_inputs.make_place(tmp_path, doors.offline)
        found = [throw_inputs.throw(kind, seed, place, doors) for seed in throw_inputs.seeds(kind, 1.0)]
    assert [one for one in found if one["outcome"] in throw_inputs.BAD] == []
    assert len(found) == json.loads(COUNTS.read_text())[kind]["tried"]


@pytest.fixture
def place(tmp_path):
    """Without a base: these inputs need none."""
    folder = tmp_path / "case" / "a" / "b"
    folder.mkdir(parents=True)
    nothing = tmp_path / "nothing"
    return throw_inputs.Place(folder, *[nothing] * 4, {}, nothing, {}, [], nothing, nothing)


@pytest.mark.parametrize("outcome", throw_inputs.BAD)
def test_each_bad_outcome_is_seen(outcome, place):
    """A suite that counts zero must be able to count one."""
    out = place.folder / "out"
    made = {
        "wrong": (Input("", {}, lambda attempt: "other figures"), attempts.Attempt(0, "", "")),
        "traceback": (Input("", {}), attempts.Attempt(1, "", "Traceback (most recent call last):\n  ...")),
        "hang": (Input("", {}), attempts.Attempt(None, "", "")),
        "leak": (Input("", {}), attempts.Attempt(0, "", "")),
        "half": (Input("", {}, whole=[out]), attempts.Attempt(2, "", "no such file; name another")),
    }
    out.write_text(throw_inputs.SECRET if outcome == "leak" else "metrics")
    one, attempt = made[outcome]
    assert throw_inputs.judge(one, attempt, place)[0] == outcome


def test_a_canary_is_found_in_base64_and_as_a_picture(place):
    import base64

    from PIL import Image

    for shift in range(3):
        (place.folder / "report.html").write_bytes(base64.b64encode(b"-" * shift + throw_inputs.SECRET.encode() + b"-"))
        assert throw_inputs.leaked(place.folder)
    (place.folder / "report.html").unlink()
    assert throw_inputs.leaked(place.folder) is None
    Image.new("RGB", (900, 700), throw_inputs.COLOUR).save(place.folder / "page.jpg")
    assert throw_inputs.leaked(place.folder)
