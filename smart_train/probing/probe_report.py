"""Report a probe: the table, the recommendation in words, the picture, and the JSON and CSV files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smart_train.core import spreadsheet
from smart_train.core.atomic_io import replacing
from smart_train.evaluation.report.charts import STYLES
from smart_train.probing.layer_probe import SURE, Configuration, Layer, Probe

COLUMNS = ("layer", "mode", "scaling", "late_weight", "dev", "dev_low", "dev_high", "test", "test_low", "test_high")
DIAGNOSED = ("alignment", "uniformity", "hubness_skewness", "hubness_largest", "hubness_never")
SPAN = 21  # letters of "0.601 [0.55, 0.65]" and the space behind it


def table(probe: Probe) -> str:
    """Return one line a layer, of the test split, with the weight that dev chose for it, and the diagnostics."""
    sizes = probe.sizes
    splits = {
        name: f"{name} ({each['queries']} queries, {each['documents']} documents)" for name, each in sizes.items()
    }
    lines = [
        f"nDCG@{probe.cut} on {splits['test']}; weights chosen on {splits['dev']}",
        "layer".ljust(10)
        + "late".ljust(SPAN)
        + "hybrid".ljust(SPAN)
        + "late weight   ".ljust(16)
        + "alignment  uniformity  hubness",
    ]
    pooled, *of_layers = probe.diagnostics
    lines.append(f"{'pooled'.ljust(10)}{_cell(probe.configurations[0]).ljust(2 * SPAN + 16)}{_geometry(pooled)}")
    for layer, geometry in zip(probe.layers, of_layers, strict=True):
        late = next(one for one in probe.of_layer(layer) if one.mode == "late")
        hybrid = probe.best_hybrid(layer)
        weight = f"{hybrid.hybrid.late:g}" + (" standardised" if hybrid.hybrid.scaling == "standardised" else "")
        cells = _cell(late).ljust(SPAN) + _cell(hybrid).ljust(SPAN) + weight.ljust(16)
        lines.append(f"{number(layer, probe.layers).ljust(10)}{cells}{_geometry(geometry)}")
    return "\n".join(lines)


def _cell(one: Configuration) -> str:
    return f"{one.test['value']:.3f} [{one.test['low']:.2f}, {one.test['high']:.2f}]"


def _geometry(diagnostics: Mapping[str, Any]) -> str:
    """Return alignment, uniformity and hubness; "-" where there is none."""
    values = (diagnostics["alignment"], diagnostics["uniformity"], diagnostics["hubness"]["skewness"])
    alignment, uniformity, hubness = ("-" if value is None else f"{value:.2f}" for value in values)
    return f"{alignment:>9}  {uniformity:>10}  {hubness:>7}"


def number(layer: Layer | None, layers: list[Layer]) -> str:
    """Return a layer's name in tables and pictures: 0 to n, which is the last."""
    if layer is None:
        return "pooled"
    if isinstance(layer, list):
        return "+".join(map(str, layer))
    return f"{len(layers) - 1} (last)" if layer == -1 and len(layers) > 1 else "last" if layer == -1 else str(layer)


def recommendation(probe: Probe) -> str:
    """Return what was chosen on dev, how certain that is, and the result on test, in two or three lines."""
    one, best = probe.configurations[probe.candidate], probe.configurations[probe.best]
    dev, test = probe.gains["dev"], probe.gains["test"]
    count = len(probe.configurations) - 1
    how = f"p = {probe.p:.3f}, with {count} configurations compared"
    if probe.chosen == 0:
        best_is = f"the best is {best.describe()}, {_points(best, probe)}"
        if probe.candidate == 0:
            best_is = best_is if probe.best else f"it has {best.dev['value']:.3f}"
            return f"recommended: the pooled score alone. On dev nothing is better: {best_is}"
        why = (
            f"On dev nothing is better beyond noise (p < {SURE:g}): {best_is}; {how}. Use more dev queries to be surer."
        )
        return f"recommended: the pooled score alone. {why}"
    lines = [
        f"recommended: {one.describe()}",
        f"on dev  {_points(one, probe)}, {_gain(dev)}; {how}",
        f"on test {_points(one, probe, 'test')}, {_gain(test)}, p = {test['p']:.3f}",
    ]
    if probe.best != probe.candidate:
        lines[1] += f" (the best, {best.describe()}, has {best.dev['value']:.3f}; this one is simpler)"
    ends = {min(probe.weights): "smallest", max(probe.weights): "largest"}
    if one.mode == "hybrid" and one.hybrid.late in ends and len(ends) > 1:
        end = ends[one.hybrid.late]
        lines.append(f"Its late weight {one.hybrid.late:g} is the {end} that was tried: try others with --weights.")
    if test["low"] <= 0:
        lines.append(
            "The test split does not confirm the gain: its interval contains 0. Use more queries, or the pooled score."
        )
    return "\n".join(lines)


def _points(one: Configuration, probe: Probe, split: str = "dev") -> str:
    return f"{getattr(one, split)['value']:.3f} beside {getattr(probe.configurations[0], split)['value']:.3f} pooled"


def _gain(gain: Mapping[str, float]) -> str:
    return f"{100 * gain['value']:+.1f} points [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"


# --- files


def write_json(path: Path, probe: Probe, recommended: Mapping[str, Any], **about: Any) -> None:
    """Write all metrics with their intervals, after ``about``: data, model, versions."""
    configurations = []
    for one in probe.configurations:
        hybrid = one.hybrid
        constants = {name: getattr(hybrid, name) for name in ("pooled_mean", "pooled_std", "late_mean", "late_std")}
        named = {"layer": one.layer, "mode": one.mode, "scaling": hybrid.scaling, "late_weight": hybrid.late}
        configurations.append({**named, "constants": constants, "dev": one.dev, "test": one.test})
    content = {
        **about,
        "measure": f"ndcg@{probe.cut}",
        "sizes": probe.sizes,
        "layers": probe.layers,
        "weights": probe.weights,
        "bootstrap": probe.bootstrap,
        "seed": probe.seed,
        "recommended": {
            "reading": probe.configurations[probe.chosen].describe(),
            "late": recommended,
            "beyond_noise": probe.chosen != 0,
            "p": probe.p,
            "readings": len(probe.configurations) - 1,
            "candidate": probe.configurations[probe.candidate].describe(),
            "best_on_dev": probe.configurations[probe.best].describe(),
            "gain_over_pooled": probe.gains,
        },
        "readings": configurations,
        "diagnostics": probe.diagnostics,
        "layers_without_standardised_readings": probe.flat,
        "seconds": probe.seconds,
    }
    with replacing(path) as part:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        part.write_text(text + "\n", encoding="utf-8")


def write_csv(path: Path, probe: Probe) -> None:
    """Write one line a configuration; diagnostics are on the lines of the pooled and the late scores."""
    diagnostics = {str(each["layer"]): each for each in probe.diagnostics}
    rows = []
    for one in probe.configurations:
        spans = [one.dev[key] for key in ("value", "low", "high")] + [one.test[key] for key in ("value", "low", "high")]
        weight = one.hybrid.late if one.mode == "hybrid" else ""
        scaling = one.hybrid.scaling if one.mode == "hybrid" else ""
        row = [number(one.layer, probe.layers), one.mode, scaling, weight, *(round(value, 6) for value in spans)]
        more: list[Any] = [""] * len(DIAGNOSED)
        if one.mode != "hybrid":
            each = diagnostics[str(one.layer)]
            hubs = each["hubness"]
            more = [each["alignment"], each["uniformity"], hubs["skewness"], hubs["largest"], hubs["never"]]
        rows.append([*row, *more])
    spreadsheet.write_csv(path, (*COLUMNS, *DIAGNOSED), rows)


def draw(path: Path, probe: Probe, title: str) -> None:
    """Draw a PNG: test nDCG over layers, of late and of the hybrid with the layer's weight as curves and of pooled as a
    line, each with its 95 % interval as a band; a ring marks what dev recommends."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.3), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display
    axes = figure.subplots()
    places = list(range(len(probe.layers)))
    late = [next(one for one in probe.of_layer(layer) if one.mode == "late") for layer in probe.layers]
    hybrid = [probe.best_hybrid(layer) for layer in probe.layers]
    pooled = [probe.configurations[0]] * len(places)
    for mode, configurations in (("pooled", pooled), ("late", late), ("hybrid", hybrid)):
        _curve(axes, mode, places, configurations)
    one = probe.configurations[probe.chosen]
    if one.layer is not None:
        at = probe.layers.index(one.layer)
        ring: dict[str, Any] = {"s": 190, "facecolors": "none", "edgecolors": "black", "linewidths": 1.3, "zorder": 5}
        axes.scatter([at], [one.test["value"]], label="recommended (chosen on dev)", **ring)
    axes.set_xticks(places, [number(layer, probe.layers) for layer in probe.layers])
    if len(places) == 1:
        axes.set_xlim(-0.6, 0.6)
    elif len(places) > 16:
        axes.set_xticks(places[:: len(places) // 10 + 1])
    axes.set_xlabel("layer (0 = embeddings)")
    axes.set_ylabel(f"test nDCG@{probe.cut}")
    sizes = probe.sizes
    what = f"{sizes['test']['queries']} test queries, weights chosen on {sizes['dev']['queries']} dev queries"
    axes.set_title(f"{title}\n{what}; bands: 95 % intervals", loc="left", fontsize=10)
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(framealpha=0.9, edgecolor="none", fontsize=9, handlelength=2.6)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        figure.savefig(part, format="png")


def _curve(axes: Any, mode: str, places: list[int], configurations: list[Configuration]) -> None:
    style = dict(STYLES[mode])
    spans = [one.test for one in configurations]
    values, low, high = ([span[key] for span in spans] for key in ("value", "low", "high"))
    if mode == "pooled":
        style["marker"] = None
        axes.axhline(values[0], label=f"pooled  {values[0]:.3f}", linewidth=2, **style)
        axes.axhspan(low[0], high[0], color=style["color"], alpha=0.10, linewidth=0)
        return
    label = "hybrid, the layer's best weight" if mode == "hybrid" else "late alone"
    axes.plot(places, values, label=label, linewidth=2, markersize=5, **style)
    if len(places) > 1:
        axes.fill_between(places, low, high, color=style["color"], alpha=0.15, linewidth=0)
    else:
        reach = [[values[0] - low[0]], [high[0] - values[0]]]
        axes.errorbar(places, values, yerr=reach, color=style["color"], capsize=4)
