"""An outcome as text and as CSV."""

from __future__ import annotations

import csv

from smart_train.evaluation.report.metric_tables import evaluation_table, write_metrics_csv, write_query_csv


def test_the_table_names_every_row_and_its_figures_stand_in_columns(outcome):
    told = evaluation_table(outcome)
    lines = told.splitlines()
    assert lines[0].split()[-3:] == ["pooled", "late", "hybrid"] and lines[0].startswith("nDCG@10 (95 % interval)")
    assert [line.split()[0] for line in lines[1:4]] == ["base", "bm25", "before"]
    assert "base hybrid - before (base) hybrid" in told and "base hybrid - bm25" in told
    head = next(line for line in lines if line.startswith("all metrics"))
    assert head.split()[2:] == ["pooled", "late", "hybrid", "bm25"]
    assert "nDCG@10 by kind (queries)" in told and "kind 1 (10)" in told
    assert "MB a document" in told and "queries/s" in told


def test_csv_files_hold_every_figure_and_every_query(outcome, tmp_path, nasty):
    write_metrics_csv(tmp_path / "m.csv", outcome)
    write_query_csv(tmp_path / "q.csv", outcome)
    rows = list(csv.DictReader((tmp_path / "m.csv").open(encoding="utf-8")))
    assert len(rows) == 4 * 8 and {row["row"] for row in rows} == {"base", "bm25"}
    one = next(row for row in rows if (row["mode"], row["measure"]) == ("late", "mrr@10"))
    assert float(one["value"]) == outcome.evaluation.metrics["late"]["mrr@10"]["value"]
    lines = {row["query"]: row for row in csv.DictReader((tmp_path / "q.csv").open(encoding="utf-8", newline=""))}
    assert len(lines) == 20 and lines["q2"]["text"] == nasty and lines["q3"]["kind"] == "kind 1"
    for query, row in lines.items():
        assert float(row["hybrid ndcg@10"]) == outcome.evaluation.per_query["hybrid"]["ndcg@10"][query]
        first = outcome.first_relevant("bm25", query)
        assert row["bm25 rank"] == ("" if first is None else str(first))
