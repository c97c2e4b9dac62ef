"""What a run and its adapter's folder have recorded, read for the card.

Knows: the files of both.  Does not know: what a card says.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from smart_train.model.files import SETTINGS, VERIFIED
from smart_train.model.sealing import parts
from smart_train.publishing.card import Told
from smart_train.publishing.errors import PublishError
from smart_train.publishing.facts import MODES, read_log
from smart_train.publishing.files import FACTS, read_json
from smart_train.publishing.licence import base_licence
from smart_train.publishing.private import Files, header

FIGURES = ("metrics.json", "evaluation.json", FACTS)


def recorded(
    files: Files, place: Path, folder: Path, run: Path | None, repo: str, license: str | None, examples: str
) -> Told:
    """files: what goes up, with smart_train.json as others may read it; place: the folder that does

    folder: the adapter's that ``place`` was made of, or the same; run: None for an adapter without one
    Raises PublishError where a file is no JSON.
    """
    from smart_train.recipe import stored

    settings = read_json(place / SETTINGS)
    there = {name: run / name for name in (*FIGURES, "recipe.yaml", "log.jsonl") if run and (run / name).is_file()}
    modules = read_json(place / "modules.json") if "modules.json" in files else []
    pooled = next((module["path"] for module in modules if module["type"].endswith(".Pooling")), None)
    public = files[SETTINGS]
    figures = {name: read_json(path) for name, path in there.items() if name in FIGURES}
    if "metrics.json" in figures:
        _check_figures(figures["metrics.json"], there["metrics.json"])
    return Told(
        repo,
        settings=json.loads(public) if isinstance(public, bytes) else settings,
        verified=read_json(place / VERIFIED),
        licence=license,
        base_licence=base_licence(settings),
        modules=modules,
        pooling=read_json(place / pooled / "config.json") if pooled is not None else None,
        figures=figures,
        log=read_log(_lines(there["log.jsonl"])) if "log.jsonl" in there else {},
        recipe=stored(there["recipe.yaml"]) if "recipe.yaml" in there else {},
        trained=_trained(folder),
        picture="curve.png" in files,
        examples=examples,
    )


def _check_figures(metrics: Any, path: Path) -> None:
    """Raises PublishError where metrics.json is not rows of modes of nDCGs with intervals, as every run writes it."""
    for row, modes in metrics.items() if isinstance(metrics, dict) else [("of the file", None)]:
        for mode in MODES:
            measures = modes.get(mode) if isinstance(modes, dict) else None
            found = [one for name, one in measures.items() if name.startswith("ndcg@")] if measures else []
            if not found or not all(isinstance(one, dict) and {"value", "low", "high"} <= one.keys() for one in found):
                what = f"{path}: the row {row} has no {mode} nDCG with an interval"
                raise PublishError(f"{what}; it was not written by a run: move it away, or evaluate again")


def _trained(folder: Path) -> int:
    """How many numbers were trained; 0 = not known, for whole weights that an adapter was added to."""
    if read_json(folder / SETTINGS).get("export"):
        return 0
    return sum(_numbers(path) for path in parts(folder)[0] if path.suffix == ".safetensors")


def _lines(log: Path) -> list[dict[str, Any]]:
    """A run that was killed may have left the last line by half; any other line must be one."""
    lines = log.read_text(encoding="utf8").splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise PublishError(f"{log}, line {number} is no JSON; delete it, or move the log away") from None
    return [line for line in found if line]


def _numbers(path: Path) -> int:
    """Numbers in a safetensors file, from its header."""
    tensors = (value for name, value in header(path.name, path).items() if name != "__metadata__")
    return sum(math.prod(tensor["shape"]) for tensor in tensors)
