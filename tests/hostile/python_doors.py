"""The doors of the Python API that hostile inputs are thrown at; they return what an independent reader can check."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any

HEAVY = [
    "smart_train.cli.main",
    "smart_train.training.run",
    "smart_train.checks.recipe",
    "smart_train.training.trainer",
    "smart_train.evaluation.evaluator",
    "smart_train.probing.probe_run",
    "smart_train.mining.folder",
    "smart_train.publishing.exporter",
    "smart_train.publishing.merger",
    "smart_train.ingest.ingestion",
    "smart_train.data.hub_transfer",
    "smart_train.data.validate",
    "smart_train.planning.doctor",
    "smart_train.interpretability.drawing",
]


def import_everything() -> None:
    for name in HEAVY:
        importlib.import_module(name)


def check_recipe(path: str, overrides: list[str]) -> dict[str, Any]:
    """What ``train`` does before anything is loaded; return the recipe's values."""
    from smart_train.checks.recipe import check
    from smart_train.config.recipe import plain, read

    recipe = read(path, overrides)
    check(recipe)
    return plain(recipe)


def read_data(**block: Any) -> dict[str, Any]:
    """Every split: pairs of query text and document (its text, and the hash of its image), with their grades."""
    from smart_train.config.schema import DataBlock
    from smart_train.data.load import read_all

    dataset = read_all(DataBlock(**block))

    def document(one: Any) -> list[str | None]:
        if one.image is None:
            return [one.text, None]
        from smart_train.data.store import image_bytes

        return [one.text, hashlib.sha256(image_bytes(one.image)).hexdigest()]

    pairs = [
        [dataset.queries[q], document(dataset.corpus[d]), grade]
        for qrels in dataset.splits.values()
        for q, judged in qrels.items()
        for d, grade in judged.items()
        if q in dataset.queries and d in dataset.corpus
    ]
    return {"pairs": pairs, "documents": len(dataset.corpus)}


TEXTS = ["a harbour in winter", "copper bridge", "the invoice, with its total amount due " * 9]


def encode(model: str, adapter: str | None = None) -> dict[str, Any]:
    """Encode texts with a base or an adapter; of a base, also as plain sentence-transformers does."""
    import numpy as np

    from smart_train.models.encoder import SmartEncoder

    if adapter is not None:
        encoder = SmartEncoder.from_pretrained(adapter, base=model, device="cpu")
    else:
        encoder = SmartEncoder(model, device="cpu")
    ours = encoder.encode_documents(TEXTS).pooled.float().numpy()
    found: dict[str, Any] = {"vectors": (ours / np.linalg.norm(ours, axis=1, keepdims=True)).tolist()}
    if adapter is None:
        found["plain"] = plain(model)
    return found


def plain(folder: str) -> list[list[float]] | str:
    """The texts' vectors as plain sentence-transformers gives them, or what it raises."""
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(folder, device="cpu")
        return model.encode_document(TEXTS, normalize_embeddings=True).tolist()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def encode_contents(model: str, contents: str, side: str) -> dict[str, Any]:
    """Encode Python values (an expression, since JSON has few types); return the shape of the pooled vectors."""
    import numpy as np

    from smart_train.models.encoder import SmartEncoder

    encoder = SmartEncoder(model, device="cpu")
    rows = _evaluated(contents)
    found = (encoder.encode_queries if side == "query" else encoder.encode_documents)(rows)
    pooled = found.pooled.float().numpy()
    return {"shape": list(pooled.shape), "finite": bool(np.isfinite(pooled).all())}


def fit(model: str, rows: str, **training: Any) -> dict[str, Any]:
    """Train a step of the Python API on rows (an expression)."""
    from smart_train import SmartEncoder, SmartTrainer, TrainingArguments, losses

    encoder = SmartEncoder(model, lora={"r": 4}, device="cpu")
    arguments = TrainingArguments("out", **{"max_steps": 1, "use_cpu": True, "report_to": "none", **training})
    loss = losses.Joint(losses.Pooled(), losses.Late(temperature=0.02))
    trainer = SmartTrainer(encoder, arguments, train_dataset=_evaluated(rows), loss=loss)
    return {"loss": trainer.train().training_loss}


def _evaluated(expression: str) -> Any:
    import datetime
    import decimal
    import io
    import math

    import numpy
    import torch
    from PIL import Image

    names = {"Image": Image, "Path": Path, "numpy": numpy, "torch": torch, "math": math, "io": io}
    return eval(expression, {**names, "decimal": decimal, "datetime": datetime})
