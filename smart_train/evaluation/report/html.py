"""Write the HTML report of an evaluation: one file that loads nothing from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from smart_train.evaluation.bm25 import NAME as BM25
from smart_train.evaluation.metrics import Group, Interval
from smart_train.evaluation.report.charts import differences_figure, metrics_figure, score_histograms_figure
from smart_train.evaluation.report.failure_cases import FailureCase, ShownDocument
from smart_train.evaluation.report.metric_tables import metric_label, sizes_and_speeds
from smart_train.evaluation.report.outcome import Outcome
from smart_train.evaluation.scoring import MODES

SHOWN = 60  # groups of a table
WHAT = {"file": "file", "kind": "kind of query", "content": "kind of document"}
STYLE = """
:root { --ink: #1c2430; --soft: #5d6878; --line: #e3e6ea; --paper: #ffffff; --wash: #f6f7f9; --good: #00754f;
  --bad: #b03224; --bar: #cfe6dd; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--wash); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 36px 28px 60px; }
header h1 { font-size: 27px; line-height: 1.2; margin: 0 0 4px; }
header p { margin: 0; color: var(--soft); }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 20px 24px 22px;
  margin-top: 20px; }
h2 { font-size: 18px; margin: 0 0 4px; }
h3 { font-size: 15px; margin: 18px 0 6px; }
p.note { color: var(--soft); margin: 0 0 14px; max-width: 82ch; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--line); vertical-align: baseline; }
th { font-weight: 600; color: var(--soft); font-size: 13px; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td:first-child { overflow-wrap: anywhere; }
tr:last-child td { border-bottom: 0; }
td small { color: var(--soft); white-space: nowrap; }
td b { font-weight: 650; }
.good { color: var(--good); } .bad { color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(118px, 1fr)); gap: 12px; margin-top: 20px; }
.tile { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }
.tile b { display: block; font-size: 19px; line-height: 1.3; white-space: nowrap; }
.tile span { color: var(--soft); font-size: 12.5px; line-height: 1.3; display: block; }
figure { margin: 6px 0 0; } figure img { width: 100%; height: auto; display: block; }
.query { border-top: 1px solid var(--line); padding: 18px 0 14px; break-inside: avoid; }
.query:first-of-type { border-top: 0; padding-top: 6px; }
.query h3 { margin: 0 0 2px; font-size: 16px; overflow-wrap: anywhere; }
.query .about { color: var(--soft); font-size: 13px; margin: 0 0 10px; }
.chips { display: flex; flex-wrap: wrap; gap: 6px 8px; margin: 0 0 12px; }
.chip { background: var(--wash); border: 1px solid var(--line); border-radius: 14px; padding: 1px 10px;
  font-size: 13px; }
.sheets { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 14px; }
.sheet { border: 1px solid var(--line); border-radius: 8px; padding: 10px; background: var(--paper); min-width: 0; }
.sheet.relevant { border: 2px solid var(--good); padding: 9px; }
.sheet .head { font-size: 12.5px; font-weight: 650; margin: 0; }
.sheet .place { font-size: 12px; color: var(--soft); margin: 0 0 8px; overflow-wrap: anywhere; }
.sheet img { width: 100%; height: auto; border: 1px solid var(--line); display: block; }
.sheet p.text { font-size: 12.5px; line-height: 1.45; margin: 0; overflow-wrap: anywhere; }
details { margin-top: 12px; } summary { cursor: pointer; color: var(--soft); font-size: 13px; }
details img { width: 100%; max-width: 860px; border: 1px solid var(--line); margin-top: 8px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; margin: 0; font-size: 13.5px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
footer { color: var(--soft); font-size: 13px; margin-top: 22px; }
@media print { body { background: #fff; } main { padding: 0; max-width: none; } section, .tile { border-color: #ccc; } }
"""


def html_report(outcome: Outcome, cases: list[FailureCase]) -> str:
    """Return the report as one self-contained HTML file."""
    about = outcome.about
    data, model = about.get("data", {}), about.get("model", {})
    name = str(data.get("name", "a collection"))
    encoder = str(model.get("base", "")) + (f" with {model['adapter']}" if model.get("adapter") else "")
    parts = [
        _tiles(outcome),
        _metrics(outcome),
        _compared(outcome),
        _score_histograms(outcome),
        section(
            "Query by query",
            "The difference of each query, sorted: how many queries gain or lose, and how much.",
            svg_figure(differences_figure(outcome), "sorted differences of every query, one panel a comparison"),
        ),
        *(_groups(outcome, what, found) for what, found in outcome.groups.items()),
        _failure_cases(outcome, cases),
        _settings(outcome),
    ]
    subtitle = " · ".join(part for part in (encoder, str(about.get("date", ""))) if part)
    foot = "Written by smart-train evaluate. Everything shown is in this file; nothing is loaded from elsewhere."
    return page(f"Retrieval on {name}", subtitle, *(part for part in parts if part), foot=foot)


def _score_histograms(outcome: Outcome) -> str:
    """Return "" if scores were not counted."""
    if not outcome.observer.histograms:
        return ""
    return section(
        "Where relevant documents score",
        "Scores of relevant query-document pairs, in front of those of all other pairs. The further apart they are, "
        "the easier is the ranking; mistakes are made where they overlap.",
        svg_figure(score_histograms_figure(outcome), "densities of relevant and other scores, one panel a mode"),
    )


def _tiles(outcome: Outcome) -> str:
    one, metric = outcome.evaluation, outcome.metric
    pairs = [(f"{one.metrics[mode][metric]['value']:.3f}", f"{metric_label(metric)}, {mode}") for mode in MODES]
    if words := outcome.bm25_result:
        pairs.append((f"{words.metrics[metric]['value']:.3f}", f"{metric_label(metric)}, BM25"))
    pairs += [(f"{one.queries:,}", "queries"), (f"{one.documents:,}", "documents")]
    pairs.append((f"{one.mb_per_document:.3g} MB", "of vectors a document"))
    return tiles(pairs)


def _metrics(outcome: Outcome) -> str:
    columns = outcome.columns()
    rows = []
    for name in outcome.metric_names():
        best = max(found[name]["value"] for found in columns.values())
        rows.append([text(metric_label(name)), *(_cell(found[name], best) for found in columns.values())])
    note = (
        f"Means over {outcome.evaluation.queries} queries with 95 % bootstrap intervals; nDCG with linear gain, as "
        "MTEB and BEIR report it. pooled: one vector a document; late: one a token; hybrid: both scores added."
    )
    if outcome.bm25 is not None and outcome.bm25.absent:
        note += f" There is no BM25 column: {outcome.bm25.absent}."
    elif outcome.bm25 is not None:
        note += " bm25: words alone, without a model."
        if outcome.bm25.without:
            note += f" It cannot find {outcome.bm25.without} documents that have no text."
    return section(
        "Metrics",
        note,
        table(["", *columns], rows),
        svg_figure(metrics_figure(outcome), "every metric with its interval"),
    )


def _cell(found: Interval, best: float | None = None) -> str:
    value = f"{found['value']:.3f}"
    value = f"<b>{value}</b>" if best is not None and found["value"] >= best - 5e-4 else value
    return f"{value} <small>{found['low']:.2f} to {found['high']:.2f}</small>"


def _compared(outcome: Outcome) -> str:
    note = (
        f"Paired over the same queries, in {metric_label(outcome.metric)}; p from a two-sided randomisation test. A "
        "small p says that the difference is unlikely to be an accident of these queries, not that it is large."
    )
    parts = [_differences(outcome.mode_differences())]
    if outcome.baseline is not None:
        parts += [f"<h3>Against {text(outcome.baseline.name)}</h3>", _differences(outcome.baseline_differences())]
    return section("Is the difference real?", note, *parts)


def _differences(found: Mapping[str, Mapping[str, float]]) -> str:
    rows = []
    for label, one in found.items():
        sure = one["low"] > 0 or one["high"] < 0
        tone = ("good" if one["value"] > 0 else "bad") if sure else ""
        span = f"{one['low']:+.3f} to {one['high']:+.3f}"
        p = f"{one['p']:.3f}" if one["p"] >= 0.001 else "&lt; 0.001"
        rows.append([text(label), f'<b class="{tone}">{one["value"]:+.3f}</b>', span, p])
    return table(["", "difference", "95 % interval", "p"], rows)


def _groups(outcome: Outcome, what: str, found: Mapping[str, Group]) -> str:
    columns = list(next(iter(found.values())).values)
    rows = []
    for name, group in list(found.items())[:SHOWN]:
        best = max(one["value"] for one in group.values.values())
        cells = [_cell(group.values[column], best) for column in columns]
        rows.append([text(name), str(group.queries), *cells])
    label = metric_label(outcome.metric)
    note = f"{label} of the queries of each {WHAT.get(what, what)}. Few queries make wide intervals."
    if len(found) > SHOWN:
        note += f" The {SHOWN} largest of {len(found)} are shown; evaluation.json has all."
    return section(f"By {WHAT.get(what, what)}", note, table(["", "queries", *columns], rows))


# --- failure cases


def _failure_cases(outcome: Outcome, cases: list[FailureCase]) -> str:
    if not cases:
        return ""
    note = (
        f"The {len(cases)} queries with the lowest {metric_label(outcome.metric)} of the hybrid score: their relevant "
        "documents, and the documents found instead. A green frame marks a relevant document. Judgements are often "
        "incomplete: check whether a document that was found is relevant, too."
    )
    return section("Queries with the lowest metric", note, *(_query(one, outcome) for one in cases))


def _query(one: FailureCase, outcome: Outcome) -> str:
    about = " · ".join(part for part in (one.kind, one.file, one.query) if part)
    found = {column: len(ranking.get(one.query, ())) for column, ranking in outcome.rankings().items()}
    first_relevant = {
        column: _beyond(column, found[column], outcome.observer.top)
        if rank is None
        else f"first relevant at rank {rank}"
        for column, rank in one.ranks.items()
    }
    chips = "".join(
        f'<span class="chip">{text(column)} {one.values[column]:.3f}: {where}</span>'
        for column, where in first_relevant.items()
    )
    sheets = [_sheet(sheet, "relevant") for sheet in one.wanted]
    sheets += [_sheet(sheet, f"found at {sheet.rank}") for sheet in one.found]
    more = [f"{one.missing} relevant documents are not in the corpus"] if one.missing else []
    more += [f"{one.more} more relevant documents are not shown"] if one.more else []
    return (
        f'<div class="query"><h3>{text(one.text)}</h3><p class="about">{text(about)}</p>'
        f'<div class="chips">{chips}</div><div class="sheets">{"".join(sheets)}</div>'
        + (f'<p class="about">{text("; ".join(more))}</p>' if more else "")
        + "".join(_heatmaps(one))
        + "</div>"
    )


def _beyond(column: str, found: int, kept: int) -> str:
    """Describe a ranking without a relevant document; BM25's ends where no word is shared."""
    few = column == BM25 and found < kept
    return "no relevant one shares a word" if few else f"no relevant one in the first {found}"


def _sheet(sheet: ShownDocument, head: str) -> str:
    score = f", score {sheet.score:.3f}" if sheet.score is not None else ""
    if head == "relevant":
        score = f", rank {sheet.rank}{score}" if sheet.rank is not None else ""
    inner = f'<img alt="" src="{sheet.image}">' if sheet.image else f'<p class="text">{text(sheet.text)}</p>'
    kind = "sheet relevant" if sheet.relevant else "sheet"
    return (
        f'<div class="{kind}"><p class="head">{text(head + score)}</p>'
        f'<p class="place">{text(sheet.place)}</p>{inner}</div>'
    )


def _heatmaps(one: FailureCase) -> Iterator[str]:
    seen: set[str] = set()
    for sheet in (*one.wanted, *one.found):
        if sheet.heatmap and sheet.id not in seen:
            seen.add(sheet.id)
            what = "relevant" if sheet.relevant else f"found at {sheet.rank}"
            label = f"Which parts of {sheet.place} ({what}) match the query's words"
            yield f'<details><summary>{text(label)}</summary><img alt="" src="{sheet.heatmap}"></details>'


# --- how it was measured


def _settings(outcome: Outcome) -> str:
    about: Mapping[str, Any] = outcome.about
    pairs: list[tuple[str, object]] = [("speed and size", "; ".join(sizes_and_speeds(outcome)))]
    for block in ("data", "model", "settings", "machine", "versions"):
        for name, value in about.get(block, {}).items():
            if isinstance(value, Mapping):
                value = ", ".join(f"{key} {each}" for key, each in value.items())
            if value is not None and value is not False and value not in ("", []):  # 0 is a layer, and a seed
                pairs.append((f"{block}: {name.replace('_', ' ')}", value))
    if words := outcome.bm25_result:
        pairs.append(("BM25", ", ".join(f"{key} {value}" for key, value in words.how.items())))
    note = "Equal scores are ordered by a hash of query and document, not by position."
    return section("How this was measured", note, facts(pairs))


# --- pieces of HTML


def text(value: object) -> str:
    """Escape a value for HTML; surrogates that no encoding accepts become question marks."""
    return escape(str(value).encode("utf-8", "replace").decode("utf-8"))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; cells are HTML, heads are plain text."""
    top = "".join(f"<th>{text(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def svg_figure(svg: str, alt: str) -> str:
    """Return a drawing as an image, so that ids within several drawings cannot clash; alt: its description."""
    raw = base64.b64encode(svg.encode("utf-8")).decode()
    return f'<figure><img alt="{text(alt)}" src="data:image/svg+xml;base64,{raw}"></figure>'


def section(title: str, note: str, *parts: str) -> str:
    """Return a section; title and note are plain text, parts are HTML."""
    inner = "".join(parts)
    intro = f'<p class="note">{text(note)}</p>' if note else ""
    return f"<section><h2>{text(title)}</h2>{intro}{inner}</section>"


def tiles(pairs: Iterable[tuple[str, str]]) -> str:
    """Return large numbers in a row, from (number, what it is)."""
    cells = (f'<div class="tile"><b>{text(value)}</b><span>{text(what)}</span></div>' for value, what in pairs)
    return f'<div class="tiles">{"".join(cells)}</div>'


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    return "<dl>" + "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in pairs) + "</dl>"


def page(title: str, subtitle: str, *parts: str, foot: str = "") -> str:
    """Return the whole file."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<header><h1>{text(title)}</h1><p>{text(subtitle)}</p></header>"
        f"{''.join(parts)}<footer>{text(foot)}</footer></main></body></html>\n"
    )
