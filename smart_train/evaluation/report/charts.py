"""Draw charts: the training curves of a run, and the figures of the evaluation report."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smart_train.core.bounded_json import load_json
from smart_train.core.errors import EvaluationError
from smart_train.evaluation.bm25 import NAME as BM25
from smart_train.evaluation.metrics import paired
from smart_train.evaluation.report.metric_tables import metric_label
from smart_train.evaluation.report.outcome import Outcome
from smart_train.evaluation.score_histograms import ScoreHistogram
from smart_train.evaluation.scoring import MODES

# Okabe and Ito's colours, which colour-blind readers can tell apart; line styles and markers work in grey, too.
STYLES: dict[str, dict[str, Any]] = {
    "pooled": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    "late": {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    "hybrid": {"color": "#009E73", "linestyle": "-.", "marker": "^"},
    BM25: {"color": "#6B6B6B", "linestyle": ":", "marker": "D"},
}
SMOOTH_FROM = 40  # logged steps; from here on a running mean is drawn over the pale single steps
BETTER, WORSE, OTHERS = "#009E73", "#C0392B", "#B8BDC6"
GRID = {"color": "#E3E6EA", "linewidth": 0.8}


# --- training curves


def read_log(log: str | Path) -> dict[str, list[tuple[float, float]]]:
    """Read a JSONL training log as series: name -> [(step, value)], by step.

    Of a step that was logged twice (by a resumed run) the last line counts.
    Raises EvaluationError for a line that is not a JSON object with a step, by its number.
    """
    series: dict[str, dict[float, float]] = {}
    for number, line in enumerate(Path(log).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = load_json(line)
            step = entry["step"]
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise EvaluationError(f'{log}, line {number}: not a JSON object with a "step" ({error!r})') from error
        for name, value in entry.items():
            if name != "step" and isinstance(value, int | float):
                series.setdefault(name, {})[step] = value
    return {name: sorted(points.items()) for name, points in series.items()}


def plot_training_log(log: str | Path, path: str | Path, title: str = "") -> None:
    """Draw a run's JSONL log as a PNG: the loss terms on the left, the dev split's nDCG on the right, over steps.

    log: one JSON object a line: {"step": 10, "loss/pooled": 1.2, ...} or {"step": 50, "dev/pooled/ndcg@10": 0.6, ...}
    Raises EvaluationError if the log has neither, or a line cannot be read.
    """
    series = read_log(log)
    losses = {mode: series[f"loss/{mode}"] for mode in MODES if f"loss/{mode}" in series}
    measured = [name.rpartition("/")[2] for name in series if name.startswith("dev/") and "/ndcg@" in name]
    metric = "ndcg@10" if "ndcg@10" in measured else max(measured, key=lambda n: int(n[5:]), default="")
    dev = {mode: series[f"dev/{mode}/{metric}"] for mode in MODES if f"dev/{mode}/{metric}" in series}
    panels = [(part, label) for part, label in ((losses, "training loss"), (dev, metric)) if part]
    if not panels:
        raise EvaluationError(f'{log}: nothing to draw; it has no "loss/..." and no "dev/.../ndcg@..." series')
    _draw(panels, Path(path), title)


def _draw(panels: list[tuple[dict[str, list[tuple[float, float]]], str]], path: Path, title: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5.2 * len(panels), 3.7), dpi=150, layout=ConstrainedLayoutEngine(wspace=0.06))
    FigureCanvasAgg(figure)  # draws without a display
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    for axes, (series, label) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        smoothed = [_line(axes, mode, points) for mode, points in series.items()]
        note = " (running mean over single steps)" if any(smoothed) else ""
        axes.set_title(label.replace("ndcg", "dev nDCG") + note, loc="left", fontsize=10.5)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.grid(axis="y", color="#dddddd", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(framealpha=0.9, edgecolor="none", fontsize=9, handlelength=2.6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _line(axes: Any, mode: str, points: list[tuple[float, float]]) -> bool:
    """Draw one series; return whether it was smoothed."""
    steps, values = [p[0] for p in points], [p[1] for p in points]
    style = dict(STYLES[mode])
    smooth = len(points) >= SMOOTH_FROM
    if smooth:
        axes.plot(steps, values, color=style["color"], alpha=0.22, linewidth=1)
        values = _running_mean(values, max(5, len(values) // 20))
    if len(points) > 15:
        style["marker"] = None
    label = f"{mode}  {values[0]:.3f} → {values[-1]:.3f}" if len(points) > 1 else f"{mode}  {values[0]:.3f}"
    axes.plot(steps, values, label=label, linewidth=2, markersize=5, **style)
    return smooth


def _running_mean(values: list[float], reach: int) -> list[float]:
    """Return the mean of the last ``reach`` values at each step."""
    return [sum(part) / len(part) for part in (values[max(0, i + 1 - reach) : i + 1] for i in range(len(values)))]


# --- figures of the evaluation report, as SVG


def metrics_figure(outcome: Outcome) -> str:
    """Draw nDCG at every cut-off and the other metrics at the largest, with intervals: a row each, a mark a column."""
    columns = outcome.columns()
    every = outcome.metric_names()
    names = [name for name in every if name.startswith("ndcg@") or name.endswith(every[-1].partition("@")[2])]
    figure, (axes,) = _figure(1, 8.6, 0.45 + 0.36 * len(names))
    step = 0.62 / max(1, len(columns) - 1)
    for number, (mode, found) in enumerate(columns.items()):
        at = [row + (number - (len(columns) - 1) / 2) * step for row in range(len(names))]
        values = [found[name]["value"] for name in names]
        spans = [[max(0.0, v - found[n]["low"]) for n, v in zip(names, values, strict=True)]]
        spans.append([max(0.0, found[n]["high"] - v) for n, v in zip(names, values, strict=True)])
        axes.errorbar(
            values,
            at,
            xerr=spans,
            fmt=STYLES[mode]["marker"],
            color=STYLES[mode]["color"],
            label=mode,
            markersize=4.5,
            linewidth=1.4,
        )
    axes.set_yticks(range(len(names)), [metric_label(name) for name in names])
    axes.invert_yaxis()
    axes.set_ylim(len(names) - 0.45, -0.55)
    for row in range(1, len(names)):
        axes.axhline(row - 0.5, **GRID)
    axes.set_xlim(right=min(1.02, axes.get_xlim()[1]), left=max(-0.02, axes.get_xlim()[0]))
    axes.grid(axis="x", **GRID)
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(columns), frameon=False)
    return _svg(figure)


def score_histograms_figure(outcome: Outcome) -> str:
    """Draw the density of relevant pairs' scores in front of that of all others, one panel a mode."""
    found = outcome.observer.histograms
    figure, panels = _figure(len(MODES), 10.4, 2.75)
    for axes, mode in zip(panels, MODES, strict=True):
        _score_histogram(axes, mode, found[mode])
    panels[0].set_ylabel("density")
    return _svg(figure)


def _score_histogram(axes: Any, mode: str, histogram: ScoreHistogram) -> None:
    edges = np.linspace(histogram.low, histogram.high, len(histogram.others) + 1)
    others = histogram.others.double().numpy()
    relevant, _ = np.histogram(histogram.relevant.double().numpy(), edges)
    low, high = _visible_range(others + relevant * others.sum() / max(1, relevant.sum()), edges)
    few = max(1, round((high - low) / (edges[1] - edges[0]) / 40))  # some 40 bars are seen
    for counts, colour, label in ((others, OTHERS, "all others"), (relevant, STYLES[mode]["color"], "relevant")):
        joined = np.add.reduceat(counts, np.arange(0, len(counts), few)) / max(1.0, counts.sum())
        ends = np.append(edges[:-1:few], edges[-1])
        axes.stairs(joined / np.diff(ends), ends, fill=True, color=colour, alpha=0.75, label=label)
    axes.set_xlim(low, high)
    axes.set_yticks([])
    share = histogram.separation()
    note = "" if share is None else f"\na relevant pair scores above another in {share:.1%}"
    axes.set_title(f"{mode} score{note}", fontsize=9.5, loc="left")
    axes.set_ylim(top=axes.get_ylim()[1] * 1.18)  # room for the legend
    axes.legend(frameon=False, fontsize=8.5, loc="upper left", handlelength=1.1, ncols=2)


def _visible_range(counts: Any, edges: Any) -> tuple[float, float]:
    """Return the range without a two-thousandth of the scores at each end."""
    share = np.cumsum(counts) / max(1.0, counts.sum())
    first, last = np.searchsorted(share, 0.0005), np.searchsorted(share, 0.9995)
    width = edges[1] - edges[0]
    return float(edges[first] - 3 * width), float(edges[min(last + 1, len(edges) - 1)] + 3 * width)


def differences_figure(outcome: Outcome) -> str:
    """Draw sorted differences by query: late and hybrid to pooled, hybrid to BM25, each mode to the baseline.

    A comparison whose mean's 95 % interval holds 0 is grey: such a difference may be an accident of the queries.
    """
    values = outcome.values(outcome.metric)
    pairs = [(a, b, values[a], values[b]) for a, b in (("late", "pooled"), ("hybrid", "pooled"))]
    if BM25 in values:
        pairs.append(("hybrid", BM25, values["hybrid"], values[BM25]))
    if outcome.baseline is not None:
        theirs = {mode: outcome.baseline.per_query[mode].get(outcome.metric) for mode in MODES}
        pairs += [(mode, "baseline", values[mode], row) for mode, row in theirs.items() if row]
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    figure, panels = _figure(columns, 10.4, 2.5 * rows, rows)
    for axes, (a, b, ours, theirs_) in zip(panels, pairs, strict=False):
        found = paired(ours, theirs_, outcome.evaluation.bootstrap, outcome.evaluation.seed)
        sure = found["low"] > 0 or found["high"] < 0
        _delta(axes, f"{a} - {b}", np.sort([ours[query] - theirs_[query] for query in ours])[::-1], sure)
    for axes in panels[len(pairs) :]:
        axes.set_visible(False)
    panels[0].set_ylabel(f"difference in {metric_label(outcome.metric)}")
    return _svg(figure)


def _delta(axes: Any, title: str, difference: Any, sure: bool) -> None:
    better, worse = int((difference > 1e-9).sum()), int((difference < -1e-9).sum())
    ends = np.arange(len(difference) + 1)
    axes.stairs(np.maximum(difference, 0), ends, fill=True, color=BETTER if sure else OTHERS)
    axes.stairs(np.minimum(difference, 0), ends, fill=True, color=WORSE if sure else OTHERS)
    axes.axhline(0, color="#444444", linewidth=0.8)
    most = max(0.05, float(np.abs(difference).max())) * 1.05
    axes.set_ylim(-most, most)
    axes.set_xlim(0, max(1, len(difference)))
    counts = f"better {better}, same {len(difference) - better - worse}, worse {worse}"
    counts += "" if sure else "; may be chance"
    axes.set_title(f"{title}\n{counts}", fontsize=9.5, loc="left")
    axes.set_xlabel("queries, sorted")
    axes.grid(axis="y", **GRID)


def _figure(columns: int, width: float, height: float, rows: int = 1) -> tuple[Any, Sequence[Any]]:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(wspace=0.05, hspace=0.08))
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8.5)
        axes.set_axisbelow(True)
    return figure, list(panels)


def _svg(figure: Any) -> str:
    """Return the figure as SVG, with text as paths, so that it needs no font."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    stream = io.StringIO()
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "smart_train"}):
        FigureCanvasSVG(figure)
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()
