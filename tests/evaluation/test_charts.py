"""The report's pictures."""

from __future__ import annotations

from smart_train.evaluation.report.summary import html as charts


def test_charts_have_a_panel_for_every_comparison(outcome):
    assert charts.deltas(outcome).count("queries, sorted") == 6  # matplotlib names what it draws as paths in comments
    assert charts.spreads(outcome).startswith("<?xml") and "relevant" in charts.measures(outcome) + charts.spreads(
        outcome
    )
