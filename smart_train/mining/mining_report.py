"""Report a mining pass: counts, and how near the negatives' scores come to their positives'."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smart_train.evaluation.report.charts import STYLES

BINS, WIDTH = 50, 0.025  # ratios from 0 to 1.25; those outside count in the first or last bin
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass
class Ratios:
    """Scores as shares of the score of their query's best positive.

    candidates: a histogram (BINS of WIDTH) of all candidates within the range; mined: the ratio of every negative
    skipped: queries whose positive scores 0 or less, so that there is no share of it
    """

    candidates: list[int] = field(default_factory=lambda: [0] * BINS)
    mined: array[float] = field(default_factory=lambda: array("f"))
    skipped: int = 0

    def add(self, positive: float, candidates: Iterable[float], mined: Iterable[float]) -> None:
        if positive <= 0:
            self.skipped += 1
            return
        for score in candidates:
            self.candidates[_bin(score / positive)] += 1
        self.mined.extend(score / positive for score in mined)

    def histogram(self) -> list[int]:
        """Return the histogram of the negatives' ratios."""
        counts = [0] * BINS
        for ratio in self.mined:
            counts[_bin(ratio)] += 1
        return counts

    def quantiles(self) -> dict[str, float]:
        """Return {"0.5": median, ...} of the negatives' ratios, each one that occurs; {} where there are none."""
        ordered = sorted(self.mined)
        return {str(q): round(ordered[round(q * (len(ordered) - 1))], 4) for q in QUANTILES} if ordered else {}


def _bin(ratio: float) -> int:
    return min(BINS - 1, max(0, int(ratio / WIDTH)))


def write_report(path: Path, ratios: Ratios, counts: Mapping[str, int], **about: Any) -> None:
    """Write a JSON file: ``about``, the counts, and the ratios' quantiles and histograms."""
    shares = {
        "quantiles": ratios.quantiles(),
        "bin_width": WIDTH,
        "candidates": ratios.candidates,
        "mined": ratios.histogram(),
        "queries_whose_answer_scores_0_or_less": ratios.skipped,
    }
    content = {**about, "counts": dict(sorted(counts.items())), "ratios": shares}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def draw(path: Path, ratios: Ratios, score: str, max_relative: float | None, title: str = "") -> None:
    """Draw a PNG of two histograms of the ratios: all candidates within the range, and the negatives among them.

    score: pooled, late, hybrid, or reranker
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.7), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display
    axes = figure.subplots()
    edges = [WIDTH * number for number in range(BINS + 1)]
    taken = ratios.histogram()
    for counts, label, style in (
        (ratios.candidates, "candidates within the range", {"color": "#999999", "alpha": 0.45, "fill": True}),
        (taken, "mined negatives", {"color": STYLES[score]["color"] if score in STYLES else "black", "linewidth": 2}),
    ):
        total = sum(counts)
        axes.stairs([count / max(1, total) for count in counts], edges, label=f"{label} ({total:,})", **style)
    if max_relative is not None:
        axes.axvline(max_relative, color="black", linestyle=":", linewidth=1.2, label=f"max_relative {max_relative:g}")
    axes.axvline(1.0, color="#bbbbbb", linewidth=0.8)
    used = [number for number in range(BINS) if ratios.candidates[number] or taken[number]] or [0, BINS - 1]
    axes.set_xlim(edges[used[0]] - WIDTH, max(edges[used[-1] + 1], 1.0) + WIDTH)
    axes.set_xlabel(f"{score} score, as a share of the best positive's")
    axes.set_ylabel("share of pairs")
    axes.set_title(title or "hard negatives", loc="left", fontsize=10.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(framealpha=0.9, edgecolor="none", fontsize=8.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
