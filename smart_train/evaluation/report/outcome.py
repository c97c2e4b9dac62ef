"""All that one evaluation of one model found, side by side: what tables, files and the report are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from smart_train.evaluation.baseline import Baseline, Differences
from smart_train.evaluation.bm25 import NAME as BM25
from smart_train.evaluation.bm25 import Lexical
from smart_train.evaluation.metrics import Group, Interval, Ranking, paired
from smart_train.evaluation.retrieval import Evaluation
from smart_train.evaluation.score_histograms import Observer
from smart_train.evaluation.scoring import MODES

KINDS = ("ndcg", "recall", "mrr", "success")


@dataclass
class Outcome:
    """row: "base" or "trained"; about: what was evaluated, as JSON (data, model, settings, versions, machine)

    lexical: the BM25 row, None = it was not asked for; baseline, differences: None, {} = there is none
    parts: "file", "kind", "content" -> group -> its figures of ``metric``
    queries, qrels: of the queries that were measured, and of those without an answer
    kinds, files: query id -> its kind, its file, where they are known
    """

    row: str
    evaluation: Evaluation
    observer: Observer
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    about: dict[str, Any] = field(default_factory=dict)
    lexical: Lexical | None = None
    baseline: Baseline | None = None
    differences: Differences = field(default_factory=dict)
    parts: dict[str, dict[str, Group]] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """The measure that stands for all: nDCG@10, else the deepest nDCG."""
        depths = sorted(int(name[5:]) for name in self.evaluation.metrics["pooled"] if name.startswith("ndcg@"))
        return "ndcg@10" if 10 in depths else f"ndcg@{depths[-1]}"

    @property
    def found_by_words(self) -> Lexical | None:
        """The BM25 row where there is one with figures."""
        return self.lexical if self.lexical is not None and not self.lexical.absent else None

    def columns(self) -> dict[str, dict[str, Interval]]:
        """pooled, late, hybrid, and bm25 where it was measured -> measure -> figure."""
        words = self.found_by_words
        return {**self.evaluation.metrics, **({BM25: words.metrics} if words else {})}

    def measures(self) -> list[str]:
        """nDCG at every cut-off, then recall, MRR, success."""
        names = list(self.evaluation.metrics["pooled"])
        return sorted(
            names, key=lambda name: KINDS.index(name.partition("@")[0])
        )  # sorted is stable: cuts stay in order

    def values(self, metric: str) -> dict[str, dict[str, float]]:
        """The same columns -> query id -> value."""
        words = self.found_by_words
        found = {mode: self.evaluation.per_query[mode][metric] for mode in MODES}
        return {**found, **({BM25: words.per_query[metric]} if words else {})}

    def rankings(self) -> dict[str, Mapping[str, Ranking]]:
        """The same columns -> query id -> documents, best first."""
        words = self.found_by_words
        found: dict[str, Mapping[str, Ranking]] = {mode: self.observer.rankings[mode] for mode in MODES}
        return {**found, **({BM25: words.rankings} if words else {})}

    def inner(self) -> dict[str, dict[str, float]]:
        """Paired differences between the columns: {"base late - base pooled": {"value", "low", "high", "p"}}."""
        values, one = self.values(self.metric), self.evaluation
        pairs = [("late", "pooled"), ("hybrid", "pooled"), ("hybrid", "late")]
        pairs += [("hybrid", BM25)] if BM25 in values else []
        told = {mode: f"{self.row} {mode}" if mode in MODES else mode for mode in values}
        return {f"{told[a]} - {told[b]}": paired(values[a], values[b], one.bootstrap, one.seed) for a, b in pairs}

    def outer(self) -> dict[str, dict[str, float]]:
        """Paired differences to the baseline: {"base late - NAME (base) late": ...}; {} without one."""
        if self.baseline is None:
            return {}
        name = self.baseline.name
        measured = sorted(self.differences["pooled"], key=lambda metric: int(metric.partition("@")[2]))
        metric = self.metric if self.metric in measured else measured[-1]
        return {f"{self.row} {mode} - {name} {mode}": self.differences[mode][metric] for mode in MODES}

    def first_relevant(self, column: str, query: str) -> int | None:
        """Rank of the first relevant document, from 1; None = not among those that were kept."""
        judged = self.qrels[query]
        ranking = self.rankings()[column].get(query, [])
        return next((place for place, (id, _) in enumerate(ranking, 1) if judged.get(id, 0) > 0), None)

    def speed(self) -> dict[str, float | None]:
        """What was done in a second, of all processes together; None where nothing was."""
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

    def more(self) -> dict[str, Any]:
        """What evaluation.json has besides the row itself."""
        found: dict[str, Any] = {"differences": {**self.inner(), **self.outer()}, **self.about}
        found["speed"] = self.speed()
        found["separation"] = {mode: spread.above() for mode, spread in self.observer.spreads.items()}
        found["bm25"] = self.lexical.told() if self.lexical is not None else None
        if self.baseline is not None:
            found["baseline"] = {
                "folder": self.baseline.folder,
                "row": self.baseline.row,
                "differences": self.differences,
            }
        found["parts"] = {
            what: {name: asdict(group) for name, group in some.items()} for what, some in self.parts.items()
        }
        return found


def _rate(count: float, seconds: float) -> float | None:
    return count / seconds if count and seconds > 0 else None
