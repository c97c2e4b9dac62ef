"""The HTML report of an outcome: what to read first on top, then why, then query by query.

Knows: outcomes, worst queries, how tables and figures become HTML.  Does not know: how anything was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from smart_train.evaluation import charts, html
from smart_train.evaluation.bm25 import NAME as BM25
from smart_train.evaluation.groups import Group
from smart_train.evaluation.metrics import Interval
from smart_train.evaluation.outcome import Outcome
from smart_train.evaluation.ranking import MODES
from smart_train.evaluation.tables import shown, sizes
from smart_train.evaluation.worst import Sheet, Worst

SHOWN = 60  # groups of a table
WHAT = {"file": "file", "kind": "kind of query", "content": "kind of document"}


def report(outcome: Outcome, worst: list[Worst]) -> str:
    """One self-contained HTML file."""
    about = outcome.about
    data, model = about.get("data", {}), about.get("model", {})
    name = str(data.get("name", "a collection"))
    told = str(model.get("base", "")) + (f" with {model['adapter']}" if model.get("adapter") else "")
    parts = [
        _tiles(outcome),
        _figures(outcome),
        _compared(outcome),
        _spreads(outcome),
        html.section(
            "Query by query",
            "Each query's difference, sorted: how many are helped, how many are hurt, and by how much.",
            html.svg_figure(charts.deltas(outcome), "sorted differences of every query, a panel a comparison"),
        ),
        *(_groups(outcome, what, found) for what, found in outcome.parts.items()),
        _worst(outcome, worst),
        _how(outcome),
    ]
    subtitle = " · ".join(part for part in (told, str(about.get("date", ""))) if part)
    foot = "Written by smart-train evaluate. Everything shown is in this file; nothing is loaded from elsewhere."
    return html.page(f"Retrieval on {name}", subtitle, *(part for part in parts if part), foot=foot)


def _spreads(outcome: Outcome) -> str:
    """Nothing where scores were not counted (Plan.spreads)."""
    if not outcome.observer.spreads:
        return ""
    return html.section(
        "Where relevant documents score",
        "Scores of relevant query-document pairs before those of all other pairs. The further apart, the easier "
        "the ranking; what overlaps is where mistakes are made.",
        html.svg_figure(charts.spreads(outcome), "densities of relevant and other scores, a panel a mode"),
    )


def _tiles(outcome: Outcome) -> str:
    one, metric = outcome.evaluation, outcome.metric
    pairs = [(f"{one.metrics[mode][metric]['value']:.3f}", f"{shown(metric)}, {mode}") for mode in MODES]
    if words := outcome.found_by_words:
        pairs.append((f"{words.metrics[metric]['value']:.3f}", f"{shown(metric)}, BM25"))
    pairs += [(f"{one.queries:,}", "queries"), (f"{one.documents:,}", "documents")]
    pairs.append((f"{one.mb_per_document:.3g} MB", "of vectors a document"))
    return html.tiles(pairs)


def _figures(outcome: Outcome) -> str:
    columns = outcome.columns()
    rows = []
    for name in outcome.measures():
        best = max(found[name]["value"] for found in columns.values())
        rows.append([html.text(shown(name)), *(_cell(found[name], best) for found in columns.values())])
    note = (
        f"Means over {outcome.evaluation.queries} queries with 95 % bootstrap intervals; nDCG with linear gain, as "
        "MTEB and BEIR report it. pooled: one vector a document; late: one a token; hybrid: both scores added."
    )
    if outcome.lexical is not None and outcome.lexical.absent:
        note += f" There is no BM25 column: {outcome.lexical.absent}."
    elif outcome.lexical is not None:
        note += " bm25: words alone, no model."
        if outcome.lexical.without:
            note += f" It cannot find {outcome.lexical.without} documents that have no text."
    return html.section(
        "How well it finds",
        note,
        html.table(["", *columns], rows),
        html.svg_figure(charts.measures(outcome), "every measure with its interval"),
    )


def _cell(found: Interval, best: float | None = None) -> str:
    value = f"{found['value']:.3f}"
    value = f"<b>{value}</b>" if best is not None and found["value"] >= best - 5e-4 else value
    return f"{value} <small>{found['low']:.2f} to {found['high']:.2f}</small>"


def _compared(outcome: Outcome) -> str:
    note = (
        f"Paired over the same queries, in {shown(outcome.metric)}; p from a two-sided randomisation test. A small p "
        "says that the difference is no accident of these queries, not that it is large."
    )
    parts = [_differences(outcome.inner())]
    if outcome.baseline is not None:
        parts += [f"<h3>Against {html.text(outcome.baseline.name)}</h3>", _differences(outcome.outer())]
    return html.section("Is the difference real?", note, *parts)


def _differences(found: Mapping[str, Mapping[str, float]]) -> str:
    rows = []
    for label, one in found.items():
        sure = one["low"] > 0 or one["high"] < 0
        tone = ("good" if one["value"] > 0 else "bad") if sure else ""
        span = f"{one['low']:+.3f} to {one['high']:+.3f}"
        p = f"{one['p']:.3f}" if one["p"] >= 0.001 else "&lt; 0.001"
        rows.append([html.text(label), f'<b class="{tone}">{one["value"]:+.3f}</b>', span, p])
    return html.table(["", "difference", "95 % interval", "p"], rows)


def _groups(outcome: Outcome, what: str, found: Mapping[str, Group]) -> str:
    columns = list(next(iter(found.values())).values)
    rows = []
    for name, group in list(found.items())[:SHOWN]:
        best = max(one["value"] for one in group.values.values())
        cells = [_cell(group.values[column], best) for column in columns]
        rows.append([html.text(name), str(group.queries), *cells])
    note = f"{shown(outcome.metric)} of the queries of each {WHAT.get(what, what)}. Few queries make wide intervals."
    if len(found) > SHOWN:
        note += f" The {SHOWN} largest of {len(found)} are shown; evaluation.json has all."
    return html.section(f"By {WHAT.get(what, what)}", note, html.table(["", "queries", *columns], rows))


# ---------------------------------------------------------------------------------------------- worst queries


def _worst(outcome: Outcome, worst: list[Worst]) -> str:
    if not worst:
        return ""
    note = (
        f"The {len(worst)} queries with the lowest {shown(outcome.metric)} of the hybrid score: what was asked for, "
        "and what was found instead. A green frame marks a relevant document. Judgements are often incomplete: look "
        "whether what was found answers the query, too."
    )
    return html.section("The worst queries", note, *(_query(one, outcome) for one in worst))


def _query(one: Worst, outcome: Outcome) -> str:
    about = " · ".join(part for part in (one.kind, one.file, one.query) if part)
    found = {column: len(ranking.get(one.query, ())) for column, ranking in outcome.rankings().items()}
    told = {
        column: _beyond(column, found[column], outcome.observer.top)
        if rank is None
        else f"first relevant at rank {rank}"
        for column, rank in one.ranks.items()
    }
    chips = "".join(
        f'<span class="chip">{html.text(column)} {one.values[column]:.3f}: {where}</span>'
        for column, where in told.items()
    )
    sheets = [_sheet(sheet, "asked for") for sheet in one.wanted]
    sheets += [_sheet(sheet, f"found at {sheet.rank}") for sheet in one.found]
    more = [f"{one.missing} relevant documents are not in the corpus"] if one.missing else []
    more += [f"{one.more} more relevant documents are not shown"] if one.more else []
    return (
        f'<div class="query"><h3>{html.text(one.text)}</h3><p class="about">{html.text(about)}</p>'
        f'<div class="chips">{chips}</div><div class="sheets">{"".join(sheets)}</div>'
        + (f'<p class="about">{html.text("; ".join(more))}</p>' if more else "")
        + "".join(_heatmaps(one))
        + "</div>"
    )


def _beyond(column: str, found: int, kept: int) -> str:
    """Of a ranking without a relevant document: BM25's ends where no word is shared."""
    few = column == BM25 and found < kept
    return "no relevant one shares a word" if few else f"no relevant one in the first {found}"


def _sheet(sheet: Sheet, head: str) -> str:
    score = f", score {sheet.score:.3f}" if sheet.score is not None else ""
    if head == "asked for":
        score = f", rank {sheet.rank}{score}" if sheet.rank is not None else ""
    inner = f'<img alt="" src="{sheet.image}">' if sheet.image else f'<p class="text">{html.text(sheet.text)}</p>'
    kind = "sheet relevant" if sheet.relevant else "sheet"
    return (
        f'<div class="{kind}"><p class="head">{html.text(head + score)}</p>'
        f'<p class="place">{html.text(sheet.place)}</p>{inner}</div>'
    )


def _heatmaps(one: Worst) -> Iterator[str]:
    seen: set[str] = set()
    for sheet in (*one.wanted, *one.found):
        if sheet.heatmap and sheet.id not in seen:
            seen.add(sheet.id)
            what = "asked for" if sheet.relevant else f"found at {sheet.rank}"
            told = f"Which parts of {sheet.place} ({what}) the query's words are like"
            yield f'<details><summary>{html.text(told)}</summary><img alt="" src="{sheet.heatmap}"></details>'


# ---------------------------------------------------------------------------------------------- how


def _how(outcome: Outcome) -> str:
    about: Mapping[str, Any] = outcome.about
    pairs: list[tuple[str, object]] = [("speed and size", "; ".join(sizes(outcome)))]
    for block in ("data", "model", "settings", "machine", "versions"):
        for name, value in about.get(block, {}).items():
            if isinstance(value, Mapping):
                value = ", ".join(f"{key} {each}" for key, each in value.items())
            if value is not None and value is not False and value not in ("", []):  # 0 is a layer, and a seed
                pairs.append((f"{block}: {name.replace('_', ' ')}", value))
    if words := outcome.found_by_words:
        pairs.append(("BM25", ", ".join(f"{key} {value}" for key, value in words.how.items())))
    note = "Equal scores are ordered by a hash of query and document, never by position."
    return html.section("How this was measured", note, html.facts(pairs))
