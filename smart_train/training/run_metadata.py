"""Write facts.json: what data a run was trained on and on which machine, for readers of its folder and the model card.

    "data": where they came from, counts of each split;  "machine": device, processes, engine

Nothing in it is private but the name of the data's folder: no path, no text, no host name.
"""

from __future__ import annotations

import json
import logging
import platform
from pathlib import Path
from typing import Any

import torch

from smart_train.config.schema import DataBlock, Recipe
from smart_train.core.atomic_io import replacing
from smart_train.core.environment import cores
from smart_train.data.collection import Collection
from smart_train.data.streaming import WITHOUT, RowStream
from smart_train.training.trainer import SmartTrainer

logger = logging.getLogger(__name__)

FACTS = "facts.json"
ALWAYS = ("queries", "documents", "pairs")


def log_counts(splits: dict[str, Collection | RowStream]) -> None:
    """Log one line for each split.  splits: "train", "dev", "test" -> collection."""
    for name, split in splits.items():
        if isinstance(split, RowStream):
            rows = "rows" if split.rows is None else f"{split.rows:,} rows"
            logger.info("%s: %s are read while training; %s", name, rows, WITHOUT)
            logger.info("%s: %s", name, split.columns.describe(split.table.columns))
            continue
        found = counts(split)
        logger.info("%s: %d queries, %d documents, %d pairs", name, *(found[key] for key in ALWAYS))


def write_run_metadata(
    output: Path, recipe: Recipe, splits: dict[str, Collection | RowStream], trainer: SmartTrainer
) -> Path:
    """Write OUTPUT/facts.json and return its path."""
    counted = {
        name: ({} if split.rows is None else {"rows": split.rows}) if isinstance(split, RowStream) else counts(split)
        for name, split in splits.items()
    }
    content = {"data": {**source_of(recipe.data), "splits": counted}, "machine": machine_of(trainer)}
    with replacing(output / FACTS) as part:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf8")
    return output / FACTS


def counts(split: Collection) -> dict[str, int]:
    """Count queries, documents, pages (documents with an image), files, pairs (a query and a relevant document),
    negatives, queries with negatives, and queries with a teacher's scores.  Zeros are left out, except for queries,
    documents and pairs."""
    always = {"queries": len(split.queries), "documents": len(split.corpus), "pairs": len(split.pairs())}
    negatives, with_negatives = split.count_related("negatives")
    sometimes = {
        "pages": split.count_pages(),
        "files": split.count_files(),
        "negatives": negatives,
        "queries_with_negatives": with_negatives,
        "queries_with_scores": split.count_related("teacher")[1],
    }
    return {**always, **{name: number for name, number in sometimes.items() if number}}


def source_of(data: DataBlock) -> dict[str, Any]:
    """Return {"kind": "pydocs", "local" or "hub", "name"}: of a folder its last name only, of a Hub dataset its id."""
    if data.path == "pydocs":
        return {"kind": "pydocs", "name": "pydocs"}
    path = Path(data.path).expanduser()
    if path.exists():
        return {"kind": "local", "name": path.resolve().name}
    rest = {"revision": data.revision, "subset": data.subset}
    return {"kind": "hub", "name": data.path, **{key: value for key, value in rest.items() if value is not None}}


def machine_of(trainer: SmartTrainer) -> dict[str, Any]:
    """Return {"device", "processes", "engine", "cores"}: the device of rank 0, by its product name."""
    device: torch.device = trainer.args.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "kind": device.type,
        "processes": trainer.accelerator.num_processes,
        "engine": trainer.engine.name,
        "cores": cores(),
    }


def _processor() -> str:
    """Return the CPU's name from the kernel, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
    except OSError:
        return platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
