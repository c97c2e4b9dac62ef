"""Write metrics.json and evaluation.json, with the paired differences between the rows of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from smart_train.core.atomic_io import replacing
from smart_train.evaluation.metrics import paired
from smart_train.evaluation.report.metric_tables import headline_metric
from smart_train.evaluation.retrieval import Evaluation


def differences(evaluations: Mapping[str, Evaluation], metric: str = "") -> dict[str, dict[str, float]]:
    """Return paired differences over the same queries, of each row's hybrid to its pooled, and of the last row's hybrid
    to the first row's: {"trained hybrid - base hybrid": {"value", "low", "high", "p"}}.

    Raises EvaluationError if the rows were not measured on the same queries.
    """
    metric = metric or headline_metric({row: one.metrics for row, one in evaluations.items()})
    pairs = [((row, "hybrid"), (row, "pooled")) for row in evaluations]
    rows = list(evaluations)
    if len(rows) > 1:
        pairs.append(((rows[-1], "hybrid"), (rows[0], "hybrid")))
    found = {}
    for a, b in pairs:
        one = evaluations[a[0]]
        of_a, of_b = (evaluations[row].per_query[mode][metric] for row, mode in (a, b))
        found[f"{' '.join(a)} - {' '.join(b)}"] = paired(of_a, of_b, one.bootstrap, one.seed)
    return found


def write_metrics(path: str | Path, evaluations: Mapping[str, Evaluation], **extra: Any) -> None:
    """Write ``path`` (metrics.json: rows, modes, metrics) and evaluation.json beside it.

    evaluation.json holds the rest: sizes, seconds, megabytes per document, the hybrid's weights and constants, every
    query's nDCG, ``extra``, and the paired differences, unless ``extra`` has them.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, {row: one.metrics for row, one in evaluations.items()})
    rows = {}
    for row, one in evaluations.items():
        rest = asdict(one)
        del rest["metrics"]
        for measures in rest["per_query"].values():
            for name in [name for name in measures if not name.startswith("ndcg@")]:
                del measures[name]
        rows[row] = rest
    if "differences" not in extra:
        extra["differences"] = differences(evaluations)
    _write(path.with_name("evaluation.json"), {**extra, "rows": rows})


def _write(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
