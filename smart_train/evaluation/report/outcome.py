"""Collect the results of evaluating one model: the source of tables, files and the HTML report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from smart_train.evaluation.baseline import Baseline, Differences
from smart_train.evaluation.bm25 import NAME as BM25
from smart_train.evaluation.bm25 import BM25Result
from smart_train.evaluation.metrics import Group, Interval, Ranking, paired
from smart_train.evaluation.retrieval import Evaluation
from smart_train.evaluation.score_histograms import ScoreObserver
from smart_train.evaluation.scoring import MODES

KINDS = ("ndcg", "recall", "mrr", "success")


@dataclass
class Outcome:
    """Results of one model on one split. A column is a mode, or bm25.

    row: "base" or "trained"; about: what was evaluated, as JSON (data, model, settings, versions, machine)
    bm25: None = not requested; baseline, differences: None and {} = no baseline
    groups: "file", "kind", "content" -> group -> its values of ``metric``
    queries: query id -> text of the queries in the averages; qrels: of all queries
    kinds, files: query id -> its kind, its file, where they are known
    """

    row: str
    evaluation: Evaluation
    observer: ScoreObserver
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    about: dict[str, Any] = field(default_factory=dict)
    bm25: BM25Result | None = None
    baseline: Baseline | None = None
    differences: Differences = field(default_factory=dict)
    groups: dict[str, dict[str, Group]] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """Return the headline metric: nDCG@10, else the nDCG with the largest cut-off."""
        depths = sorted(int(name[5:]) for name in self.evaluation.metrics["pooled"] if name.startswith("ndcg@"))
        return "ndcg@10" if 10 in depths else f"ndcg@{depths[-1]}"

    @property
    def bm25_result(self) -> BM25Result | None:
        """BM25's result, if it has metrics."""
        return self.bm25 if self.bm25 is not None and not self.bm25.absent else None

    def columns(self) -> dict[str, dict[str, Interval]]:
        """Return column -> metric -> value with interval; bm25 is there if it has metrics."""
        bm25 = self.bm25_result
        return {**self.evaluation.metrics, **({BM25: bm25.metrics} if bm25 else {})}

    def metric_names(self) -> list[str]:
        """Return the names of the metrics: nDCG at every cut-off, then recall, MRR, success."""
        names = list(self.evaluation.metrics["pooled"])
        return sorted(
            names, key=lambda name: KINDS.index(name.partition("@")[0])
        )  # sorted is stable: cuts stay in order

    def values(self, metric: str) -> dict[str, dict[str, float]]:
        """Return column -> query id -> value of a metric."""
        bm25 = self.bm25_result
        found = {mode: self.evaluation.per_query[mode][metric] for mode in MODES}
        return {**found, **({BM25: bm25.per_query[metric]} if bm25 else {})}

    def rankings(self) -> dict[str, Mapping[str, Ranking]]:
        """Return column -> query id -> documents, best first."""
        bm25 = self.bm25_result
        found: dict[str, Mapping[str, Ranking]] = {mode: self.observer.rankings[mode] for mode in MODES}
        return {**found, **({BM25: bm25.rankings} if bm25 else {})}

    def mode_differences(self) -> dict[str, dict[str, float]]:
        """Return paired differences between columns: {"base late - base pooled": {"value", "low", "high", "p"}}."""
        values, one = self.values(self.metric), self.evaluation
        pairs = [("late", "pooled"), ("hybrid", "pooled"), ("hybrid", "late")]
        pairs += [("hybrid", BM25)] if BM25 in values else []
        labels = {mode: f"{self.row} {mode}" if mode in MODES else mode for mode in values}
        return {f"{labels[a]} - {labels[b]}": paired(values[a], values[b], one.bootstrap, one.seed) for a, b in pairs}

    def baseline_differences(self) -> dict[str, dict[str, float]]:
        """Return paired differences to the baseline: {"base late - NAME (base) late": ...}; {} without one."""
        if self.baseline is None:
            return {}
        name = self.baseline.name
        measured = sorted(self.differences["pooled"], key=lambda metric: int(metric.partition("@")[2]))
        metric = self.metric if self.metric in measured else measured[-1]
        return {f"{self.row} {mode} - {name} {mode}": self.differences[mode][metric] for mode in MODES}

    def first_relevant(self, column: str, query: str) -> int | None:
        """Return the rank of the first relevant document, from 1; None = not among those that were kept."""
        judged = self.qrels[query]
        ranking = self.rankings()[column].get(query, [])
        return next((place for place, (id, _) in enumerate(ranking, 1) if judged.get(id, 0) > 0), None)

    def speed(self) -> dict[str, float | None]:
        """Return what all processes together did in a second; None where there was nothing to do."""
        one = self.evaluation
        encoded = one.documents - one.stored
        scoring = one.seconds["scores"]
        query = one.seconds["queries"] / one.queries + scoring / one.queries
        return {
            "documents_encoded": _rate(encoded, one.seconds["documents"]),
            "document_tokens_encoded": _rate(encoded * one.tokens_per_document, one.seconds["documents"]),
            "queries_encoded": _rate(one.queries, one.seconds["queries"]),
            "queries_scored": _rate(one.queries, scoring),
            "queries": _rate(1, query),
            "pairs_scored": _rate(one.queries * one.documents, scoring),
        }

    def evaluation_json(self) -> dict[str, Any]:
        """Return what evaluation.json holds beside the row itself."""
        found: dict[str, Any] = {
            "differences": {**self.mode_differences(), **self.baseline_differences()},
            **self.about,
        }
        found["speed"] = self.speed()
        found["separation"] = {mode: histogram.separation() for mode, histogram in self.observer.histograms.items()}
        found["bm25"] = self.bm25.to_json() if self.bm25 is not None else None
        if self.baseline is not None:
            found["baseline"] = {
                "folder": self.baseline.folder,
                "row": self.baseline.row,
                "differences": self.differences,
            }
        found["parts"] = {
            what: {name: asdict(group) for name, group in some.items()} for what, some in self.groups.items()
        }
        return found


def _rate(count: float, seconds: float) -> float | None:
    return count / seconds if count and seconds > 0 else None
