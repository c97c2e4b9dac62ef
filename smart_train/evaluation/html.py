"""One HTML file that needs nothing else: escaping, tables, figures, the page and its style.

Knows: HTML and CSS.  Does not know: what is shown.  No script, no font, no address: it opens on a machine without a
network, and can be sent by mail.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

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


def text(value: object) -> str:
    """Any value as text that HTML leaves alone; surrogates that no encoding takes become question marks."""
    return escape(str(value).encode("utf-8", "replace").decode("utf-8"))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already; heads are not."""
    top = "".join(f"<th>{text(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def svg_figure(svg: str, told: str) -> str:
    """A drawing as an image, so that the ids within several of them cannot meet.  told: for those who cannot see it."""
    raw = base64.b64encode(svg.encode("utf-8")).decode()
    return f'<figure><img alt="{text(told)}" src="data:image/svg+xml;base64,{raw}"></figure>'


def section(title: str, note: str, *parts: str) -> str:
    """title, note: texts; parts: HTML."""
    inner = "".join(parts)
    said = f'<p class="note">{text(note)}</p>' if note else ""
    return f"<section><h2>{text(title)}</h2>{said}{inner}</section>"


def tiles(pairs: Iterable[tuple[str, str]]) -> str:
    """(figure, what it is): large figures in a row."""
    cells = (f'<div class="tile"><b>{text(value)}</b><span>{text(what)}</span></div>' for value, what in pairs)
    return f'<div class="tiles">{"".join(cells)}</div>'


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    return "<dl>" + "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in pairs) + "</dl>"


def page(title: str, subtitle: str, *parts: str, foot: str = "") -> str:
    """The whole file."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<header><h1>{text(title)}</h1><p>{text(subtitle)}</p></header>"
        f"{''.join(parts)}<footer>{text(foot)}</footer></main></body></html>\n"
    )
