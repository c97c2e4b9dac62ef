"""What a person reads after a run: the table, the picture, and the two JSON files behind them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from smart_train.core.atomic_io import replacing
from smart_train.core.errors import EvaluationError
from smart_train.evaluation.metrics import Interval, paired
from smart_train.evaluation.ranking import MODES
from smart_train.evaluation.retrieval import Evaluation

Metrics = Mapping[str, Mapping[str, Mapping[str, Interval]]]
"""Row ("base", "trained") -> mode -> "ndcg@10" -> {"value", "low", "high"}: the shape of metrics.json."""

# Okabe and Ito's colours, told apart by colour-blind readers; the line styles tell them apart in grey too.
STYLES: dict[str, dict[str, Any]] = {
    "pooled": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    "late": {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    "hybrid": {"color": "#009E73", "linestyle": "-.", "marker": "^"},
}
SMOOTH_FROM = 40  # logged steps; from here on a running mean is drawn over the pale single steps


def table(metrics: Metrics, differences: Mapping[str, Mapping[str, float]] | None = None, metric: str = "") -> str:
    """One line a row, one column a mode: the value and its 95 % interval; below them the paired differences.

    metric: "ndcg@10" where it was measured, else the deepest nDCG
    """
    metric = metric or _headline(metrics)
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


def _headline(metrics: Metrics) -> str:
    measured = {name for modes in metrics.values() for names in modes.values() for name in names}
    depths = sorted(int(name.removeprefix("ndcg@")) for name in measured if name.startswith("ndcg@"))
    return "ndcg@10" if 10 in depths else f"ndcg@{depths[-1]}"


def _cell(found: Interval) -> str:
    return f"{found['value']:.3f} [{found['low']:.2f}, {found['high']:.2f}]"


def differences(evaluations: Mapping[str, Evaluation], metric: str = "") -> dict[str, dict[str, float]]:
    """What the run is about, as paired differences over the same queries: each row's hybrid against its pooled, and
    the last row's hybrid against the first's.  {"trained hybrid - base hybrid": {"value", "low", "high", "p"}}

    Raises EvaluationError where the rows were not measured on the same queries.
    """
    metric = metric or _headline({row: one.metrics for row, one in evaluations.items()})
    pairs = [((row, "hybrid"), (row, "pooled")) for row in evaluations]
    rows = list(evaluations)
    if len(rows) > 1:
        pairs.append(((rows[-1], "hybrid"), (rows[0], "hybrid")))
    found = {}
    for a, b in pairs:
        one = evaluations[a[0]]
        of_a, of_b = (evaluations[row].per_query[mode][metric] for row, mode in (a, b))
        found[f"{' '.join(a)} - {' '.join(b)}"] = paired(of_a, of_b, one.bootstrap, one.seed)
    return found


def write_metrics(path: str | Path, evaluations: Mapping[str, Evaluation], **extra: Any) -> None:
    """Writes ``path`` (metrics.json: rows, modes, measures, nothing else) and evaluation.json beside it.

    evaluation.json holds the rest: sizes, seconds, megabytes per document, the hybrid's weights and constants, the
    paired differences (``extra`` may bring them), every query's nDCG, and ``extra``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, {row: one.metrics for row, one in evaluations.items()})
    rows = {}
    for row, one in evaluations.items():
        rest = asdict(one)
        del rest["metrics"]
        for measures in rest["per_query"].values():
            for name in [name for name in measures if not name.startswith("ndcg@")]:
                del measures[name]
        rows[row] = rest
    if "differences" not in extra:
        extra["differences"] = differences(evaluations)
    _write(path.with_name("evaluation.json"), {**extra, "rows": rows})


def _write(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def read_log(log: str | Path) -> dict[str, list[tuple[float, float]]]:
    """A JSONL training log as series: name -> [(step, value)] by step; a step logged twice (a resumed run) counts as
    it was logged last.  Raises EvaluationError for a line that is no JSON object or has no step, by its number."""
    series: dict[str, dict[float, float]] = {}
    for number, line in enumerate(Path(log).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            step = entry["step"]
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise EvaluationError(f'{log}, line {number}: not a JSON object with a "step" ({error!r})') from error
        for name, value in entry.items():
            if name != "step" and isinstance(value, int | float):
                series.setdefault(name, {})[step] = value
    return {name: sorted(points.items()) for name, points in series.items()}


def plot(log: str | Path, path: str | Path, title: str = "") -> None:
    """Draws a run's JSONL log as a PNG: the loss parts on the left, the dev split's nDCG on the right, over steps.

    log: one JSON object a line: {"step": 10, "loss/pooled": 1.2, ...} or {"step": 50, "dev/pooled/ndcg@10": 0.6, ...}
    Series that are not there are not drawn, nor is a panel without any.
    Raises EvaluationError where the log has neither, or a line can't be read.
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
    """Draws one series; returns whether it was smoothed."""
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
    """Mean of the last ``reach`` values: it never looks ahead of the step it stands at."""
    return [sum(part) / len(part) for part in (values[max(0, i + 1 - reach) : i + 1] for i in range(len(values)))]
