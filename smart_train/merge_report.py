"""What was merged, scored beside its parts: the hybrid fitted on a dev split, all of them ranked on the test split.

Knows: encoders' folders, collections, evaluation.  Does not know: how adapters are merged.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smart_train.blocks import HybridBlock
from smart_train.data.records import Collection
from smart_train.evaluation.report import differences, table, write_metrics
from smart_train.evaluation.retrieval import Evaluation, calibrate, evaluate
from smart_train.model.folder import load

logger = logging.getLogger(__name__)

MERGED = "merged"


def rescore(
    folder: Path,
    parts: Mapping[str, str],
    dev: Collection,
    test: Collection,
    into: Path,
    batch_size: int = 32,
    progress: bool = False,
    **options: Any,
) -> str:
    """The table of the merged adapter in ``folder`` and of its parts; the former's hybrid is fitted on ``dev`` first.

    parts: row name -> folder or Hub id; each keeps the hybrid that is stored with it; into: folder for metrics.json and
    evaluation.json; options: go to ``load``
    """
    rows: dict[str, Evaluation] = {}
    usual = HybridBlock()
    for name, source in {**parts, MERGED: str(folder)}.items():
        encoder = load(source, **options)
        if not rows:
            usual = HybridBlock(encoder.late.hybrid.pooled, scaling=encoder.late.hybrid.scaling)  # as its parts score
        if name == MERGED:
            encoder.late.hybrid = usual
            encoder.late.hybrid, _ = calibrate(encoder, dev, batch_size=batch_size, progress=progress)
            encoder.save_settings(folder)
            logger.info("hybrid fitted on %d dev queries: %s", len(dev.queries), encoder.late.hybrid)
        rows[name] = evaluate(encoder, test, batch_size=batch_size, progress=progress)
        del encoder
    found = differences(rows)
    write_metrics(into / "metrics.json", rows, differences=found)
    return table({name: one.metrics for name, one in rows.items()}, found)
