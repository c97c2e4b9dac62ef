"""The same figures for parts of the queries: those of one file, of one kind, of one kind of document.

Knows: every query's values, which group a query is in.  Does not know: where groups come from, encoders, files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from smart_train.evaluation.metrics import Interval, interval

Values = Mapping[str, Mapping[str, float]]
"""Mode (or bm25, or a baseline's) -> query id -> value."""


@dataclass
class Group:
    """queries: how many; values: mode -> {"value", "low", "high"} over them."""

    queries: int
    values: dict[str, Interval] = field(default_factory=dict)


def groups(group_of: Mapping[str, str], values: Values, bootstrap: int = 1000, seed: int = 0) -> dict[str, Group]:
    """group -> its figures, the largest first, and by name where they are as large.

    group_of: query id -> its group; queries that are not in it are in no group
    An interval over a few queries is wide, and over one it is a point: the number of queries is told beside it.
    """
    members: dict[str, list[str]] = defaultdict(list)
    measured = next(iter(values.values()), {})
    for query in measured:
        if query in group_of:
            members[group_of[query]].append(query)
    return {
        name: Group(
            len(queries),
            {mode: interval({query: row[query] for query in queries}, bootstrap, seed) for mode, row in values.items()},
        )
        for name, queries in sorted(members.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    }


def home(judged: Mapping[str, int], of_document: Mapping[str, str]) -> str | None:
    """The group of a query's best judged document that has one; of several as good, the first by id."""
    best = sorted((-grade, document) for document, grade in judged.items() if grade > 0 and document in of_document)
    return of_document[best[0][1]] if best else None
