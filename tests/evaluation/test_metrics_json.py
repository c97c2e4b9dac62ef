"""The table, the picture and the files, on evaluations whose figures are made up and known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from smart_train.config.schema import HybridBlock
from smart_train.core.errors import EvaluationError
from smart_train.evaluation.metrics import paired
from smart_train.evaluation.report.charts import STYLES, plot_training_log, read_log
from smart_train.evaluation.report.metric_tables import table
from smart_train.evaluation.report.metrics_json import differences, write_metrics
from smart_train.evaluation.retrieval import Evaluation


def evaluation(shift: float, names: tuple[str, ...] = ("ndcg@10", "recall@10"), queries: int = 20) -> Evaluation:
    per_query = {
        mode: {name: {f"q{i}": 0.5 + shift + bonus + 0.01 * (i % 2) for i in range(queries)} for name in names}
        for mode, bonus in (("pooled", 0.0), ("late", 0.03), ("hybrid", 0.05))
    }
    metrics = {
        mode: {name: {"value": sum(v.values()) / queries, "low": 0.4, "high": 0.7} for name, v in measures.items()}
        for mode, measures in per_query.items()
    }
    return Evaluation(metrics, per_query, queries, 50, [], 12.5, 0.02, {"scores": 0.1}, HybridBlock(late=2.0), 200, 1)


def test_the_table_has_a_line_a_row_and_a_column_a_mode():
    rows = {"base": evaluation(0.0), "trained": evaluation(0.1)}
    lines = table({row: one.metrics for row, one in rows.items()}, differences(rows)).splitlines()
    assert lines[0].split("   ")[0] == "nDCG@10 (95 % interval)"
    assert lines[0].split()[-3:] == ["pooled", "late", "hybrid"]
    assert lines[1].split("  ")[0] == "base"
    assert [cell.strip()[:5] for cell in lines[1].split("  ") if cell][1:] == ["0.505", "0.535", "0.555"]
    assert lines[2].startswith("trained") and "0.655 [0.40, 0.70]" in lines[2]
    for column in ("pooled", "late", "hybrid"):  # each column's figures stand under its name
        at = lines[0].index(column)
        assert all(line[at - 1] == " " and line[at].isdigit() for line in lines[1:3])
    assert lines[3] == ""
    assert [line.split("   ")[0] for line in lines[4:]] == [
        "base hybrid - base pooled",
        "trained hybrid - trained pooled",
        "trained hybrid - base hybrid",
    ]
    assert "+0.100 [+0.100, +0.100]" in lines[6]


def test_another_depth_is_shown_where_ten_was_not_measured():
    metrics = {"base": evaluation(0.0, ("ndcg@1", "ndcg@5", "mrr@20")).metrics}
    assert table(metrics).startswith("nDCG@5 (95 % interval)")
    assert table(metrics, metric="ndcg@1").startswith("nDCG@1 (95 % interval)")


def test_differences_are_paired_over_the_same_queries():
    rows = {"base": evaluation(0.0), "trained": evaluation(0.1)}
    found = differences(rows)
    a, b = rows["trained"].per_query["hybrid"]["ndcg@10"], rows["base"].per_query["hybrid"]["ndcg@10"]
    assert found["trained hybrid - base hybrid"] == paired(a, b, 200, 1)
    assert list(differences({"base": rows["base"]})) == ["base hybrid - base pooled"]
    with pytest.raises(EvaluationError, match="same queries"):
        differences({"base": evaluation(0.0, queries=19), "trained": rows["trained"]})


def test_metrics_json_has_rows_modes_and_measures_and_nothing_else(tmp_path):
    rows = {"base": evaluation(0.0), "trained": evaluation(0.1)}
    write_metrics(tmp_path / "new" / "metrics.json", rows, seconds=3.5)
    metrics = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert list(metrics) == ["base", "trained"]
    for row, modes in metrics.items():
        assert set(modes) == {"pooled", "late", "hybrid"}
        assert modes == rows[row].metrics
        assert all(set(span) == {"value", "low", "high"} for measures in modes.values() for span in measures.values())
    rest = json.loads((tmp_path / "new" / "evaluation.json").read_text())
    assert rest["seconds"] == 3.5
    assert rest["differences"] == differences(rows)
    assert rest["rows"]["base"]["hybrid"]["late"] == 2.0
    assert rest["rows"]["base"]["mb_per_document"] == 0.02
    assert set(rest["rows"]["base"]["per_query"]["late"]) == {"ndcg@10"}


def log_lines(steps: int, dev: bool = True) -> list[dict]:
    lines: list[dict] = [
        {"step": s, "loss/pooled": 2 / s, "loss/late": 1.5 / s, "lr": 0.1} for s in range(1, steps + 1)
    ]
    if dev:
        lines += [{"step": s, "dev/pooled/ndcg@10": 0.6, "dev/hybrid/ndcg@10": 0.7 + s / 1000} for s in (0, steps)]
    return lines


def write(path, lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def colours(path) -> set[str]:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    return {"#" + bytes(pixel).hex().upper() for pixel in np.unique(pixels, axis=0)}


def test_the_picture_shows_the_series_that_are_there_and_no_other(tmp_path):
    plot_training_log(write(tmp_path / "log.jsonl", log_lines(60)), tmp_path / "deep" / "both.png", "a run")
    plot_training_log(write(tmp_path / "short.jsonl", log_lines(5, dev=False)), tmp_path / "loss.png")
    both, loss = (Image.open(path).size for path in (tmp_path / "deep" / "both.png", tmp_path / "loss.png"))
    assert both[0] == 2 * loss[0] and both[0] >= 1200  # two panels, one panel
    drawn = colours(tmp_path / "deep" / "both.png")
    assert {STYLES[mode]["color"] for mode in ("pooled", "late", "hybrid")} <= drawn
    assert STYLES["hybrid"]["color"] not in colours(tmp_path / "loss.png")


def test_a_log_is_read_by_step_and_a_step_logged_again_counts_as_logged_last(tmp_path):
    lines = [
        {"step": 2, "loss/late": 5.0},
        {"step": 1, "loss/late": 7.0},
        "",
        {"step": 2, "loss/late": 4.0, "note": "x"},
    ]
    assert read_log(write(tmp_path / "log.jsonl", lines)) == {"loss/late": [(1, 7.0), (2, 4.0)]}


@pytest.mark.parametrize("broken", ['{"step": 1', "[1, 2]", "3", '{"loss/late": 1.0}'])
def test_a_broken_line_of_the_log_is_named(tmp_path, broken):
    log = write(tmp_path / "log.jsonl", [{"step": 1, "loss/late": 1.0}, broken])
    with pytest.raises(EvaluationError, match="log.jsonl, line 2: not a JSON object with a"):
        plot_training_log(log, tmp_path / "x.png")


def test_a_log_without_losses_and_measures_is_an_error_and_no_empty_picture(tmp_path):
    with pytest.raises(EvaluationError, match="nothing to draw"):
        plot_training_log(write(tmp_path / "log.jsonl", [{"step": 1, "lr": 0.1}]), tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
