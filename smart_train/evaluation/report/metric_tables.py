"""Format evaluations as text tables for a terminal, and as CSV files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smart_train.core.spreadsheet import write_csv
from smart_train.evaluation.bm25 import NAME as BM25
from smart_train.evaluation.metrics import Interval
from smart_train.evaluation.report.outcome import Outcome
from smart_train.evaluation.scoring import MODES

SHOWN = 10  # groups in a table; evaluation.json and the report have more
CELL = 21


Metrics = Mapping[str, Mapping[str, Mapping[str, Interval]]]
"""Row ("base", "trained") -> mode -> "ndcg@10" -> {"value", "low", "high"}: the shape of metrics.json."""


def metric_label(metric: str) -> str:
    """Return a metric's name as people write it: nDCG@10, recall@10, MRR@10, success@10."""
    return metric.replace("ndcg", "nDCG").replace("mrr", "MRR")


def table(metrics: Metrics, differences: Mapping[str, Mapping[str, float]] | None = None, metric: str = "") -> str:
    """Return the table of a training run: one line a row, one column a mode, then the paired differences.

    metric: None = nDCG@10 if it was measured, else the nDCG with the largest cut-off
    """
    metric = metric or headline_metric(metrics)
    head = f"{metric.replace('ndcg', 'nDCG')} (95 % interval)"
    labels = [head, *metrics, *(differences or {})]
    width = max(map(len, labels)) + 3
    lines = [head.ljust(width) + "".join(mode.ljust(21) for mode in MODES).rstrip()]
    for row, modes in metrics.items():
        cells = [_cell(modes[mode][metric]).ljust(21) for mode in MODES]
        lines.append((row.ljust(width) + "".join(cells)).rstrip())
    if differences:
        lines.append("")
    for label, found in (differences or {}).items():
        span = f"[{found['low']:+.3f}, {found['high']:+.3f}]"
        lines.append(f"{label.ljust(width)}{found['value']:+.3f} {span}   p = {found['p']:.3f}")
    return "\n".join(lines)


def evaluation_table(outcome: Outcome) -> str:
    """Return what ``smart-train evaluate`` prints: metrics with intervals, differences, groups, sizes and speeds."""
    parts = [_head(outcome), _differences(outcome), _all_metrics(outcome)]
    parts += [_groups(outcome, what) for what in outcome.groups]
    parts.append("\n".join(sizes_and_speeds(outcome)))
    return "\n\n".join(part for part in parts if part)


def _head(outcome: Outcome) -> str:
    """Return one line a row (this model, BM25, the baseline), one column a mode."""
    metric, one = outcome.metric, outcome.evaluation
    rows = [(outcome.row, [_cell(one.metrics[mode][metric]) for mode in MODES])]
    if outcome.bm25 is not None:
        found = outcome.bm25_result
        cell = _cell(found.metrics[metric]) if found else f"absent: {outcome.bm25.absent}"
        if found and found.without:
            cell += f"   ({found.without} documents have no text)"
        rows.append((BM25, [cell]))
    if outcome.baseline is not None:
        means = [outcome.baseline.per_query[mode].get(metric, {}) for mode in MODES]
        cells = [f"{sum(mean.values()) / len(mean):.3f}" if mean else "" for mean in means]
        rows.append((outcome.baseline.name, cells))
    return _grid(f"{metric_label(metric)} (95 % interval)", MODES, rows)


def _differences(outcome: Outcome) -> str:
    found = {**outcome.mode_differences(), **outcome.baseline_differences()}
    width = max(map(len, found)) + 3
    lines = [f"paired differences in {metric_label(outcome.metric)} over {outcome.evaluation.queries} queries"]
    for label, one in found.items():
        lines.append(f"{label.ljust(width)}{signed(one)}   p = {one['p']:.3f}")
    return "\n".join(lines)


def _all_metrics(outcome: Outcome) -> str:
    columns, names = outcome.columns(), outcome.metric_names()
    rows = [(metric_label(name), [f"{each[name]['value']:.3f}" for each in columns.values()]) for name in names]
    return _grid("all metrics", list(columns), rows, 10)


def _groups(outcome: Outcome, what: str) -> str:
    found = outcome.groups[what]
    columns = list(next(iter(found.values())).values)
    rows = [
        (f"{_short(name)} ({group.queries})", [_cell(group.values[column]) for column in columns])
        for name, group in list(found.items())[:SHOWN]
    ]
    more = f"\n... and {len(found) - SHOWN} more, in evaluation.json" if len(found) > SHOWN else ""
    return _grid(f"{metric_label(outcome.metric)} by {what} (queries)", columns, rows) + more


def sizes_and_speeds(outcome: Outcome) -> list[str]:
    """Return sentences about sizes and speeds."""
    one, speed = outcome.evaluation, outcome.speed()
    lines = [
        f"{one.queries} queries, {one.documents} documents, {one.tokens_per_document:.1f} tokens and "
        f"{one.mb_per_document:.3g} MB a document (tokens and pooled vector, float16)"
    ]
    if one.unanswered:
        lines.append(f"{len(one.unanswered)} queries have no document judged relevant and are in no average")
    if speed["documents_encoded"]:
        lines.append(
            f"encoding: {_per(speed['documents_encoded'], 'documents')}, "
            f"{_per(speed['document_tokens_encoded'], 'tokens')}, {_per(speed['queries_encoded'], 'queries')}"
            + (f"; {one.stored} documents were stored before" if one.stored else "")
        )
    else:
        lines.append("encoding: every document's vectors were stored before")
    lines.append(
        f"scoring: {_per(speed['queries_scored'], 'queries')} against all {one.documents} documents, all three modes"
    )
    return lines


def headline_metric(metrics: Metrics) -> str:
    """Return the metric of the tables: nDCG@10, else the nDCG with the largest cut-off."""
    measured = {name for modes in metrics.values() for names in modes.values() for name in names}
    depths = sorted(int(name.removeprefix("ndcg@")) for name in measured if name.startswith("ndcg@"))
    return "ndcg@10" if 10 in depths else f"ndcg@{depths[-1]}"


def signed(one: Mapping[str, float]) -> str:
    """Format a difference with its sign and its confidence interval."""
    return f"{one['value']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"


def _per(rate: float | None, what: str) -> str:
    if rate is None:
        return f"no {what}"
    return f"{rate:,.0f} {what}/s" if rate >= 10 else f"{rate:.2g} {what}/s"


def _cell(found: Interval) -> str:
    return f"{found['value']:.3f} [{found['low']:.2f}, {found['high']:.2f}]"


def _short(name: str, most: int = 44) -> str:
    return name if len(name) <= most else f"...{name[-most + 3 :]}"


def _grid(head: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], cell: int = CELL) -> str:
    width = max(len(label) for label in (head, *(label for label, _ in rows))) + 3
    lines = [head.ljust(width) + "".join(column.ljust(cell) for column in columns).rstrip()]
    for label, cells in rows:
        lines.append((label.ljust(width) + "".join(text.ljust(cell) for text in cells)).rstrip())
    return "\n".join(lines)


def write_metrics_csv(path: Path, outcome: Outcome) -> None:
    """Write row, mode, measure, value, low, high: one line a value; BM25's row and mode are both called bm25."""
    rows = []
    for mode, measures in outcome.columns().items():
        row = outcome.row if mode in MODES else mode
        rows += [[row, mode, name, one["value"], one["low"], one["high"]] for name, one in measures.items()]
    write_csv(path, ["row", "mode", "measure", "value", "low", "high"], rows)


def write_query_csv(path: Path, outcome: Outcome) -> None:
    """Write one line a query: its text, file and kind, and for each column every metric and the rank of the first
    relevant document (empty = not among those that were kept)."""
    columns, names = outcome.columns(), outcome.metric_names()
    values = {name: outcome.values(name) for name in names}
    head = ["query", "text", "file", "kind", "relevant"]
    head += [f"{mode} {name}" for mode in columns for name in (*names, "rank")]
    rows = []
    for query in values[names[0]]["pooled"]:
        relevant = sum(grade > 0 for grade in outcome.qrels[query].values())
        row: list[Any] = [query, outcome.queries[query], outcome.files.get(query), outcome.kinds.get(query), relevant]
        for mode in columns:
            row += [values[name][mode][query] for name in names]
            row.append(outcome.first_relevant(mode, query))
        rows.append(row)
    write_csv(path, head, rows)
