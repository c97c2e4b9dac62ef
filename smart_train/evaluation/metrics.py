"""Compute nDCG, recall, MRR and success of rankings, with confidence intervals and paired tests over queries.

The metrics are those of trec_eval (through pytrec_eval), nDCG with linear gain as MTEB and BEIR report it. The
exponential gain of some toolkits differs by 0.1 to 0.7 points where judgements are graded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytrec_eval

from smart_train.core.errors import EvaluationError

Ranking = list[tuple[str, float]]
"""Documents of one query, best first, with their scores."""
Interval = dict[str, float]

RESAMPLED = 1 << 22  # values drawn at a time: 32 MiB of indices, whatever the number of queries


def measure(
    qrels: Mapping[str, Mapping[str, int]], rankings: Mapping[str, Ranking], k: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Compute the metrics of every query: {"ndcg@10": {query id: value}, "recall@10": ..., "mrr@10": ..., ...}.

    qrels: query id -> document id -> grade (above 0 = relevant); rankings: query id -> documents, best first.
    k: cut-offs

    Queries without a relevant document have no value; every other query of ``qrels`` has one for every metric.
    A ranking counts in the given order: trec_eval would order equal scores by document id, so it gets ranks.

    >>> measure({"q": {"a": 1}}, {"q": [("b", 0.9), ("a", 0.8)]}, [1, 2])["mrr@2"]
    {'q': 0.5}

    ndcg@k: sum over the first k of grade / log2(1 + rank), over the same sum of the best possible order
    recall@k: relevant documents among the first k / all relevant documents of the query
    mrr@k: 1 / rank of the first relevant document, 0 where none is among the first k
    success@k: 1 where one of the first k is relevant, else 0

    Raises EvaluationError for a cut-off below 1, a judged query without a ranking, and a document named twice.
    """
    cuts = sorted(set(k))
    if not cuts or cuts[0] < 1:
        raise EvaluationError(f"evaluation.k is {list(k)}; give cut-offs of 1 or more")
    judged = {query: dict(grades) for query, grades in qrels.items() if any(grade > 0 for grade in grades.values())}
    run = {query: _by_rank(query, rankings, cuts[-1]) for query in judged}
    listed = ",".join(map(str, cuts))
    wanted = {f"ndcg_cut.{listed}", f"recall.{listed}", f"success.{listed}", "recip_rank"}
    found = pytrec_eval.RelevanceEvaluator(judged, wanted).evaluate(run) if judged else {}
    values: dict[str, dict[str, float]] = {}
    for cut in cuts:
        for name, theirs in ((f"ndcg@{cut}", f"ndcg_cut_{cut}"), (f"recall@{cut}", f"recall_{cut}")):
            values[name] = {query: float(found[query][theirs]) for query in judged}
        values[f"mrr@{cut}"] = {query: _reciprocal(found[query]["recip_rank"], cut) for query in judged}
        values[f"success@{cut}"] = {query: float(found[query][f"success_{cut}"]) for query in judged}
    return values


def _by_rank(query: str, rankings: Mapping[str, Ranking], deepest: int) -> dict[str, float]:
    """Return scores that express the order alone: the first document has the highest."""
    if query not in rankings:
        raise EvaluationError(
            f"query {query!r} has judgements but no ranking; rank every judged query, or leave it out"
        )
    ranking = rankings[query][:deepest]
    scores = {document: float(len(ranking) - place) for place, (document, _) in enumerate(ranking)}
    if len(scores) != len(ranking):
        raise EvaluationError(f"the ranking of query {query!r} has a document twice; each may be there once")
    return scores


def _reciprocal(value: float, cut: int) -> float:
    return float(value) if value and round(1 / value) <= cut else 0.0


def interval(
    values: Mapping[str, float] | Sequence[float] | np.ndarray, bootstrap: int = 1000, seed: int = 0
) -> Interval:
    """Return the mean over queries with its 95 % percentile bootstrap interval: {"value", "low", "high"}.

    bootstrap: resamples of the queries (Efron 1979); the same seed gives the same interval on every machine
    Raises EvaluationError if there is no query.
    """
    array = _as_array(values)
    means = _resampled_means(array, bootstrap, seed)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"value": float(array.mean()), "low": float(low), "high": float(high)}


def paired(a: Mapping[str, float], b: Mapping[str, float], bootstrap: int = 1000, seed: int = 0) -> dict[str, float]:
    """Test the mean difference a - b over the same queries: {"value", "low", "high", "p"}.

    a, b: query id -> value
    low, high: 95 % percentile bootstrap over queries; p: two-sided sign-flip randomisation test with ``bootstrap``
    draws (Fisher 1935; Smucker, Allan and Carterette 2007 for retrieval), never below 1 / (draws + 1)
    Raises EvaluationError if the two were not measured on the same queries.
    """
    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        raise EvaluationError(
            f"a paired difference needs the same queries; {len(odd)} are in one of the two only, such as {odd[:3]}"
        )
    difference = _as_array([a[query] - b[query] for query in sorted(a)])
    summary = interval(difference, bootstrap, seed)
    observed = abs(difference.mean())
    rng = np.random.default_rng(seed)
    at_least = 0
    for draws in _portions(bootstrap, len(difference)):
        signs = rng.integers(0, 2, (draws, len(difference)), dtype=np.int8) * 2 - 1
        # a hair below, since the same sum in another order may differ in its last bit
        at_least += int((np.abs(signs @ difference) / len(difference) >= observed - 1e-12).sum())
    return {**summary, "p": (at_least + 1) / (bootstrap + 1)}


def _as_array(values: Mapping[str, float] | Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray([values[q] for q in sorted(values)] if isinstance(values, Mapping) else values, dtype=np.float64)
    if array.size == 0:
        raise EvaluationError("there is no query to average over: none has a relevant document; check the qrels")
    return array


def _resampled_means(array: np.ndarray, bootstrap: int, seed: int) -> np.ndarray:
    if bootstrap < 1:
        raise EvaluationError(f"evaluation.bootstrap is {bootstrap}; give 1 resample or more")
    rng = np.random.default_rng(seed)
    drawn = [
        array[rng.integers(0, len(array), (draws, len(array)))].mean(1) for draws in _portions(bootstrap, len(array))
    ]
    return np.concatenate(drawn)


def _portions(bootstrap: int, queries: int) -> list[int]:
    """Divide ``bootstrap`` draws into portions of at most RESAMPLED values."""
    most = max(1, RESAMPLED // queries)
    return [min(most, bootstrap - begun) for begun in range(0, bootstrap, most)]


# --- metrics of groups of queries

Values = Mapping[str, Mapping[str, float]]
"""Mode (or bm25, or a baseline) -> query id -> value."""


@dataclass
class Group:
    """A group of queries. queries: how many; values: mode -> {"value", "low", "high"} over them."""

    queries: int
    values: dict[str, Interval] = field(default_factory=dict)


def groups(group_of: Mapping[str, str], values: Values, bootstrap: int = 1000, seed: int = 0) -> dict[str, Group]:
    """Average a metric over each group of queries: {group: Group}, the largest group first, then by name.

    group_of: query id -> its group (a file, a kind of query ...); other queries are in no group
    The interval over one query is a point, so look at the number of queries beside it.
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


def group_of_best_document(judged: Mapping[str, int], of_document: Mapping[str, str]) -> str | None:
    """Return the group of a query's best judged document that has a group; of several as good, the first by id."""
    best = sorted((-grade, document) for document, grade in judged.items() if grade > 0 and document in of_document)
    return of_document[best[0][1]] if best else None
