"""What made an evaluation's vectors and figures, as JSON: written beside them, and compared before they are used again.

Knows: an encoder's settings and weights, this machine, versions.  Does not know: figures, how anything is measured.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch

from smart_train.data.records import Collection
from smart_train.model.adapters import lora_parameters
from smart_train.model.encoder import SmartEncoder
from smart_train.model.settings import modules_of, settings_of
from smart_train.processes import cores
from smart_train.recipe import versions

VERSIONS = ("smart-train", "torch", "transformers", "sentence-transformers", "peft")


def facts_of(encoder: SmartEncoder) -> dict[str, Any]:
    """Everything that changes a document's vectors: base, commit or fingerprint, layer, norm, head, prompts, limits,
    pixels, dtype, pooling, trained weights; not the hybrid's weights, which only change scores."""
    settings = settings_of(encoder)
    for name in ("versions", "format"):
        settings.pop(name, None)
    settings["late"].pop("hybrid", None)
    settings["late"].pop("matryoshka", None)
    for name in ("trust_remote_code", "dropout", "attention", "matryoshka", "query_tokens", "query_prompt", "base"):
        settings["model"].pop(name, None)
    if settings["fingerprint"] or settings["commit"]:
        settings.pop("base")  # the same weights, wherever they lie now
    weights = hashlib.sha256()
    trained = {**lora_parameters(encoder.backbone), **encoder.head.state_dict()}
    if encoder.adapter is not None and encoder.adapter.kind == "full":
        trained |= dict(encoder.backbone.named_parameters())
    for name in sorted(trained):
        weights.update(name.encode() + trained[name].detach().float().cpu().numpy().tobytes())
    widths = {"pooled": encoder.pooled_width, "tokens": encoder.token_width}
    settings["modules"] = modules_of(encoder)
    return {**settings, "trained": weights.hexdigest() if trained else None, "widths": widths, "tokens": "float16"}


def used() -> dict[str, str]:
    """Package -> version, of those that make vectors."""
    found = versions()
    return {name: found[name] for name in VERSIONS if name in found}


def about_model(encoder: SmartEncoder) -> dict[str, Any]:
    late = encoder.late
    return {
        "commit": encoder.commit,
        "layer": late.layer,
        "head": late.head,
        "token_width": encoder.token_width,
        "pooled_width": encoder.pooled_width,
        "query_prompt": encoder.prompt("query"),
        "document_prompt": encoder.prompt("document"),
        "query_tokens": encoder.settings.query_tokens,
        "document_tokens": encoder.settings.document_tokens,
        "hybrid": asdict(late.hybrid),
    }


def about_data(collection: Collection, split: str, kinds: str, hashes: dict[str, str]) -> dict[str, Any]:
    """kinds: the column that kinds of queries were read from; hashes: of the three tables (evaluation/baseline.py)."""
    return {
        "name": collection.name,
        "split": split,
        "documents": len(collection.corpus),
        "queries": len(collection.queries),
        "kinds": kinds,
        "hashes": hashes,
    }


def about_run(encoder: SmartEncoder, processes: int) -> dict[str, Any]:
    """Date, machine and versions."""
    machine = {"device": str(encoder.device), "processes": processes, "threads": torch.get_num_threads()}
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": {**machine, "cores": cores()},
        "versions": used(),
    }
