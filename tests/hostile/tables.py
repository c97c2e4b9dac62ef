"""Write the tables of docs/reliability.md from the recorded figures.

python tests/hostile/tables.py     # after throw_inputs.py --json and kill_moments.py --json
"""

from __future__ import annotations

import json
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "reliability.md"
GOOD = ("refused", "told", "right")


def counts_table() -> str:
    counts = json.loads((HERE / "counts.json").read_text())
    rows = [[kind, *(row[name] for name in ("tried", *GOOD)), _other(row)] for kind, row in counts.items()]
    rows.append(["all", *(sum(column) for column in zip(*(row[1:] for row in rows), strict=True))])
    return _table(["kind of input", "tried", *GOOD, "anything else"], rows)


def _other(row: dict[str, int]) -> int:
    return row["tried"] - sum(row[name] for name in GOOD)


def kills_table() -> str:
    record = json.loads((HERE / "kill_moments.json").read_text())
    rows = []
    for command, found in record.items():
        trials = found["trials"]
        same, anew = (sum(one[name] for one in trials) for name in ("same", "anew"))
        rows.append([command, len(trials), same, anew, f"{found['seconds']:.1f}"])
    return _table(["command", "moments", "same result", "of these anew", "seconds uninterrupted"], rows)


def _table(head: list[str], rows: list[list[object]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def page(text: str) -> str:
    """The page with both tables as the figures have them."""
    for name, table in (("counts", counts_table()), ("kill_moments", kills_table())):
        mark = f"<!-- counts: tests/hostile/{name}.json -->\n"
        text = re.sub(rf"({re.escape(mark)})(?:.+\n)+", lambda found, table=table: f"{found[1]}{table}\n", text)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
