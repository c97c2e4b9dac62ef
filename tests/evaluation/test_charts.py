"""The report's figures."""

from __future__ import annotations

from smart_train.evaluation.report import charts


def test_charts_have_a_panel_for_every_comparison(outcome):
    # matplotlib names what it draws as paths in comments
    assert charts.differences_figure(outcome).count("queries, sorted") == 6
    histograms = charts.score_histograms_figure(outcome)
    assert histograms.startswith("<?xml") and "relevant" in charts.metrics_figure(outcome) + histograms


def test_a_difference_whose_interval_holds_0_is_neither_green_nor_red(outcome, monkeypatch):
    for low, high, coloured in ((-0.1, 0.1, False), (0.0, 0.1, False), (0.01, 0.1, True), (-0.2, -0.1, True)):
        found = {"value": (low + high) / 2, "low": low, "high": high, "p": 0.5}
        monkeypatch.setattr(charts, "paired", lambda *_, found=found: found)
        drawn = charts.differences_figure(outcome).lower()
        assert (charts.BETTER.lower() in drawn or charts.WORSE.lower() in drawn) == coloured
        assert ("may be chance" in drawn) != coloured
