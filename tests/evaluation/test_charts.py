"""The report's figures."""

from __future__ import annotations

from smart_train.evaluation.report import charts


def test_charts_have_a_panel_for_every_comparison(outcome):
    # matplotlib names what it draws as paths in comments
    assert charts.differences_figure(outcome).count("queries, sorted") == 6
    histograms = charts.score_histograms_figure(outcome)
    assert histograms.startswith("<?xml") and "relevant" in charts.metrics_figure(outcome) + histograms
