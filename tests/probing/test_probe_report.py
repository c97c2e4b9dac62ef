"""Table and verdict of a probe whose figures are made up and known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from smart_train.config.schema import HybridBlock
from smart_train.evaluation.metrics import interval
from smart_train.probing.layer_probe import Configuration, Probe
from smart_train.probing.probe_report import draw, number, recommendation, table


def reading(layer, mode: str, dev: float, test: float, weight: float = 1.0, scaling: str = "none") -> Configuration:
    values = {side: np.full(20, value) for side, value in (("dev", dev), ("test", test))}
    spans = [interval(values[side], 20) for side in ("dev", "test")]
    return Configuration(layer, mode, HybridBlock(late=weight, scaling=scaling), *spans, values)  # type: ignore[arg-type]


def probe(chosen: int = 2, test_low: float = 0.01, candidate: int | None = None, layers=(0, -1)) -> Probe:
    readings = [reading(None, "pooled", 0.5, 0.51)]
    for at, layer in enumerate(layers):
        readings += [
            reading(layer, "late", 0.40 + 0.1 * at, 0.41 + 0.1 * at),
            reading(layer, "hybrid", 0.55 + 0.01 * at, 0.56 + 0.01 * at, 2.0),
            reading(layer, "hybrid", 0.54, 0.55, 4.0, "standardised"),
        ]
    told = {"alignment": 0.5, "uniformity": -2.0, "hubness": {"skewness": None, "largest": 3.0, "never": 0.5}}
    gains = {
        "dev": {"value": 0.05, "low": 0.02, "high": 0.08, "p": 0.01},
        "test": {"value": 0.04, "low": test_low, "high": 0.07, "p": 0.02},
    }
    sizes = {"dev": {"queries": 20, "documents": 30}, "test": {"queries": 20, "documents": 40}}
    diagnostics = [{"layer": layer, **told} for layer in (None, *layers)]
    places = len(readings) - 2, chosen if candidate is None else candidate, chosen
    return Probe(list(layers), readings, diagnostics, *places, 0.012, gains, sizes, {}, 10, [1, 2, 4, 8], 20, 0, [])


def test_the_table_has_a_line_a_layer_with_the_weight_that_dev_chose():
    head, names, pooled, first, last = table(probe()).splitlines()
    assert head == "nDCG@10 on test (20 queries, 40 documents); weights chosen on dev (20 queries, 30 documents)"
    assert pooled.split()[:2] == ["pooled", "0.510"]
    assert first.split()[:2] == ["0", "0.410"] and "0.560" in first
    assert first.split()[-4:] == ["2", "0.50", "-2.00", "-"]
    assert last.startswith("1 (last)") and "0.510" in last and "0.570" in last
    for column in ("late ", "hybrid ", "late weight"):
        at = names.index(column)
        assert all(line[at - 1] == " " and line[at].isdigit() for line in (first, last))
    assert len({len(line) for line in (names, pooled, first, last)}) == 1  # the last column ends where its name does


def test_the_verdict_tells_what_was_chosen_how_sure_it_is_and_what_test_says():
    lines = recommendation(probe(chosen=2)).splitlines()
    assert lines[0] == "recommended: hybrid, layer 0, late weight 2"
    assert lines[1].startswith("on dev  0.550 beside 0.500 pooled, +5.0 points [+2.0, +8.0]; p = 0.012")
    assert "with 6 configurations compared" in lines[1]
    assert "(the best, hybrid, last layer, late weight 2, has 0.560; this one is simpler)" in lines[1]
    assert lines[2] == "on test 0.560 beside 0.510 pooled, +4.0 points [+1.0, +7.0], p = 0.020"
    assert len(lines) == 3
    assert "standardised scores, late weight 4" in recommendation(probe(chosen=3))


def test_a_gain_that_the_test_split_does_not_confirm_is_told():
    assert "does not confirm the gain" in recommendation(probe(test_low=-0.001)).splitlines()[3]


@pytest.mark.parametrize(("tried", "end"), [([2, 4], "smallest"), ([0.5, 2], "largest"), ([2], None), ([1, 4], None)])
def test_a_weight_at_an_end_of_those_tried_is_told(tried, end):
    told = recommendation(replace(probe(chosen=2), weights=tried))
    assert (f"late weight 2 is the {end} that was tried" in told) == (end is not None)
    assert ("that was tried" in told) == (end is not None)


def test_where_nothing_is_better_the_pooled_score_is_recommended_and_the_best_is_told():
    told = recommendation(probe(chosen=0, candidate=2))
    assert told.startswith("recommended: the pooled score alone. On dev nothing is better beyond noise (p < 0.05)")
    assert "the best is hybrid, last layer, late weight 2, 0.560 beside 0.500 pooled; p = 0.012" in told
    assert "On dev nothing is better: the best is" in recommendation(probe(chosen=0))
    assert recommendation(replace(probe(chosen=0), best=0)).endswith("On dev nothing is better: it has 0.500")


@pytest.mark.parametrize(
    ("layer", "layers", "told"),
    [
        (None, [0, -1], "pooled"),
        (0, [0, -1], "0"),
        (-1, [0, 1, -1], "2 (last)"),
        (2, [2], "2"),
        ([1, -1], [[1, -1]], "1+-1"),
    ],
)
def test_layers_are_named_by_number(layer, layers, told):
    assert number(layer, layers) == told


@pytest.mark.parametrize("layers", [(2,), (0, -1), (*range(40), -1)])
def test_pictures_of_one_layer_and_of_many_are_drawn(tmp_path, layers):
    draw(tmp_path / "probe.png", probe(layers=layers), "a model")
    with Image.open(tmp_path / "probe.png") as image:
        assert image.size == (1080, 645)
