"""What a person reads after MMEB-V2: a row a task, means of the groups, and of all 78.

Knows: tasks' figures.  Does not know: encoders, files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smart_train.evaluation.mmeb_tasks import GROUPS, TASKS
from smart_train.evaluation.ranking import MODES


def summary(done: Mapping[str, Mapping[str, Any]], failed: Mapping[str, str], modes: Sequence[str]) -> dict[str, Any]:
    """{"tasks": {task: {"measure", mode: value}}, "means": {group: {"tasks", "of", mode: mean}}, "failed"}.

    A mean says how many of the group's tasks it is of: only the whole group's is the leaderboard's.
    """
    tasks = {
        name: {"measure": one["measure"], **{mode: one["modes"][mode][one["measure"]]["value"] for mode in modes}}
        for name, one in done.items()
    }
    means: dict[str, dict[str, Any]] = {}
    for group in (*GROUPS, "all"):
        own = [name for name in tasks if group in ("all", TASKS[name].group)]
        if own:
            of = sum(group in ("all", task.group) for task in TASKS.values())
            values = {mode: sum(tasks[name][mode] for name in own) / len(own) for mode in modes}
            means[group] = {"tasks": len(own), "of": of, **values}
    return {"tasks": tasks, "means": means, "failed": dict(failed)}


def mmeb_table(found: Mapping[str, Any]) -> str:
    """In points of 100, as the leaderboard tells them."""
    rows = list(found["tasks"].items())
    modes = [mode for mode in MODES if any(mode in row for _, row in rows)]
    lines = [["task", "measure", *modes]]
    lines += [[name, row["measure"], *(f"{100 * row[mode]:.2f}" for mode in modes)] for name, row in rows]
    for group, mean in found["means"].items():
        told = f"{group}, {mean['tasks']} of {mean['of']} tasks"
        lines.append([told, "mean", *(f"{100 * mean[mode]:.2f}" for mode in modes)])
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
