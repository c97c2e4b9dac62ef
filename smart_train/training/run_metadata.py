"""What a run was of and what it ran on: counted while it ran, for whoever reads its folder, and for the card.

    facts.json   "data": where they came from, counts of each side;  "machine": devices, processes, engine

Nothing in it is private but the name of the data's folder: no path, no text, no host's name.
"""

from __future__ import annotations

import json
import logging
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from smart_train.core.atomic_io import replacing
from smart_train.core.environment import cores

if TYPE_CHECKING:
    from smart_train.config.schema import DataBlock, Recipe
    from smart_train.data.collection import Collection
    from smart_train.training.trainer import SmartTrainer

logger = logging.getLogger(__name__)

FACTS = "facts.json"
ALWAYS = ("queries", "documents", "pairs")


def tell(sides: dict[str, Collection]) -> None:
    """One line of the log for each side.  sides: "train", "dev", "test" -> collection."""
    for name, side in sides.items():
        found = counts(side)
        logger.info("%s: %d queries, %d documents, %d pairs", name, *(found[key] for key in ALWAYS))


def record(output: Path, recipe: Recipe, sides: dict[str, Collection], trainer: SmartTrainer) -> Path:
    """Writes OUTPUT/facts.json and returns its path."""
    counted = {name: counts(side) for name, side in sides.items()}
    content = {"data": {**source_of(recipe.data), "splits": counted}, "machine": machine_of(trainer)}
    with replacing(output / FACTS) as part:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf8")
    return output / FACTS


def counts(side: Collection) -> dict[str, int]:
    """queries; documents (and how many of them are pages, with an image; and of how many files); pairs (a query and a
    relevant document); negatives, and queries that have some; queries with another model's scores.  Zeros left out,
    but for queries, documents and pairs."""
    files = {document.file for document in side.corpus.values() if document.file is not None}
    always = {"queries": len(side.queries), "documents": len(side.corpus), "pairs": len(side.pairs())}
    sometimes = {
        "pages": sum(document.image is not None for document in side.corpus.values()),
        "files": len(files),
        "negatives": sum(len(found) for found in side.negatives.values()),
        "queries_with_negatives": sum(bool(found) for found in side.negatives.values()),
        "queries_with_scores": sum(bool(found) for found in side.teacher.values()),
    }
    return {**always, **{name: number for name, number in sometimes.items() if number}}


def source_of(data: DataBlock) -> dict[str, Any]:
    """{"kind": "pydocs", "local" or "hub", "name"}: of a folder its last name alone, of a Hub dataset its id."""
    if data.path == "pydocs":
        return {"kind": "pydocs", "name": "pydocs"}
    path = Path(data.path).expanduser()
    if path.exists():
        return {"kind": "local", "name": path.resolve().name}
    rest = {"revision": data.revision, "subset": data.subset}
    return {"kind": "hub", "name": data.path, **{key: value for key, value in rest.items() if value is not None}}


def machine_of(trainer: SmartTrainer) -> dict[str, Any]:
    """{"device", "processes", "engine", "cores"}: the device of rank 0, by the name its maker gives it."""
    device: torch.device = trainer.args.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "kind": device.type,
        "processes": trainer.accelerator.num_processes,
        "engine": trainer.engine.name,
        "cores": cores(),
    }


def _processor() -> str:
    """The CPU's name as the kernel tells it, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
    except OSError:
        return platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
