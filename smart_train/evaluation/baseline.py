"""Compare an evaluation with an earlier one of the same queries, read from its folder, by paired differences."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smart_train.core.bounded_json import load_json
from smart_train.core.errors import EvaluationError, Setting
from smart_train.evaluation.metrics import paired
from smart_train.evaluation.protocols import Collection
from smart_train.evaluation.retrieval import Evaluation
from smart_train.evaluation.scoring import MODES

FILE = "evaluation.json"
TABLES = {
    "queries": "the texts of its queries",
    "qrels": "its judgements",
    "corpus": "the documents that were ranked",
}
Differences = dict[str, dict[str, dict[str, float]]]
"""Mode -> "ndcg@10" -> {"value", "low", "high", "p"}."""


@dataclass
class Baseline:
    """An earlier evaluation.

    folder: its name; row: which of its rows; per_query: mode -> "ndcg@10" -> query id -> value
    tables: what ``table_hashes`` gave; {} for an evaluation of an old version, which did not store them
    """

    folder: str
    row: str
    per_query: dict[str, dict[str, dict[str, float]]]
    tables: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.folder} ({self.row})"


def table_hashes(collection: Collection) -> dict[str, str]:
    """Return a hash of each table, whatever the order of its rows; metrics are comparable by query if all are equal.

    queries: ids and texts; qrels: ids and grades; corpus: the documents' ids
    """
    queries = (f"{query}\n{text}" for query, text in collection.queries.items())
    judged = (f"{q}\n{d}\n{grade}" for q, row in collection.qrels.items() for d, grade in row.items())
    return {"queries": _hash(queries), "qrels": _hash(judged), "corpus": _hash(collection.corpus)}


def _hash(rows: Iterable[str]) -> str:
    total = 0
    for row in rows:  # a sum does not depend on the order, and needs none of the rows twice
        total += int.from_bytes(hashlib.blake2b(row.encode("utf-8", "surrogatepass"), digest_size=16).digest(), "big")
    return f"{total % (1 << 128):032x}"


def read_baseline(folder: str | Path, row: str | None = None) -> Baseline:
    """Read an evaluation from the folder of an earlier evaluation or training.

    row: "base" or "trained"; None = the last one, which is the trained encoder in a run's folder
    Raises EvaluationError if there is no evaluation, or none with that row.
    """
    path = Path(folder).expanduser() / FILE
    if not path.is_file():
        raise EvaluationError(f"{folder}: there is no {FILE}; name the folder of an evaluation or of a run")
    try:
        found = load_json(path.read_text(encoding="utf-8"))
        rows: dict[str, Any] = found["rows"]
        chosen = row if row is not None else list(rows)[-1]
        if chosen not in rows:
            raise EvaluationError(f"{path}: there is no row {chosen!r}; it has {', '.join(rows)}")
        per_query = {mode: dict(rows[chosen]["per_query"][mode]) for mode in MODES}
        tables = dict(found.get("data", {}).get("hashes", {}))  # older versions stored none
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        if isinstance(error, EvaluationError):
            raise
        raise EvaluationError(
            f"{path}: no evaluation can be read from it ({error!r}); evaluate that model again"
        ) from error
    return Baseline(Path(folder).resolve().name, chosen, per_query, tables)


def check_baseline(
    baseline: Baseline, evaluated: Mapping[str, Any], tables: Mapping[str, str], k: Iterable[int]
) -> None:
    """Raise EvaluationError, naming what differs, if the two cannot be compared query by query.

    evaluated: has the ids of the evaluation's queries; tables: ``table_hashes`` of its collection; k: its cut-offs
    """
    have = baseline.per_query["pooled"]
    if not any(f"ndcg@{cut}" in have for cut in k):
        there = ", ".join(have) or "no nDCG"
        raise EvaluationError(f"{baseline.name} has {there}; add one of its cut-offs to ", Setting("evaluation.k"))
    theirs = next(iter(baseline.per_query["pooled"].values()), {})
    odd = sorted(theirs.keys() ^ evaluated.keys())
    if odd:
        here = sum(query in evaluated for query in odd)
        raise EvaluationError(
            f"{baseline.name} was measured on other queries: {len(odd) - here} are only there, {here} only here, "
            f"such as {odd[0]!r}; a paired test needs the same, so evaluate both models on the same data and split"
        )
    other = [TABLES[name] for name in TABLES if baseline.tables.get(name, tables[name]) != tables[name]]
    if other:
        raise EvaluationError(
            f"{baseline.name} has the same query ids, but other data: {', '.join(other)} differ; "
            "evaluate both models on the same data"
        )


def compare(evaluation: Evaluation, baseline: Baseline) -> Differences:
    """Return the paired differences, evaluation - baseline, of every nDCG that both have (see ``check_baseline``)."""
    found: Differences = {}
    for mode in MODES:
        ours, theirs = evaluation.per_query[mode], baseline.per_query[mode]
        found[mode] = {
            name: paired(ours[name], theirs[name], evaluation.bootstrap, evaluation.seed)
            for name in ours
            if name.startswith("ndcg@") and name in theirs
        }
    return found
