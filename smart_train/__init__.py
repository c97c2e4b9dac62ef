"""Train any single-vector embedder as a pooled and a late-interaction retriever at once, from one forward pass.

The public API, imported when it is first used, so that the command line and recipe checks start without torch:

>>> from smart_train import SmartEncoder, SmartTrainer, TrainingArguments, losses  # doctest: +SKIP
>>> model = SmartEncoder("sentence-transformers/all-MiniLM-L6-v2", lora={"r": 32})  # doctest: +SKIP
>>> trainer = SmartTrainer(
...     model,
...     TrainingArguments("runs/mine", max_steps=100),
...     train_dataset=[{"query": "what is a zebra", "positive": "a striped animal"}, ...],
...     loss=losses.Joint(losses.Pooled(), losses.Late(temperature=0.02)),
... )  # doctest: +SKIP
>>> trainer.train()  # doctest: +SKIP
>>> model.save_pretrained("runs/mine/adapter")  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smart_train import losses
    from smart_train.core.embeddings import Embeddings, Tokens
    from smart_train.data.collection import Collection
    from smart_train.data.readers.python_rows import as_collection
    from smart_train.data.streaming import RowStream
    from smart_train.evaluation.calibration import calibrate
    from smart_train.evaluation.retrieval import evaluate
    from smart_train.mining.miner import mine
    from smart_train.models.encoder import SmartEncoder
    from smart_train.publishing.publisher import publish
    from smart_train.training.arguments import SmartTrainingArguments as TrainingArguments
    from smart_train.training.run import train
    from smart_train.training.trainer import SmartTrainer

    __version__: str

__all__ = [
    "Collection",
    "Embeddings",
    "RowStream",
    "SmartEncoder",
    "SmartTrainer",
    "Tokens",
    "TrainingArguments",
    "__version__",
    "as_collection",
    "calibrate",
    "evaluate",
    "losses",
    "mine",
    "publish",
    "train",
]

_EXPORTS = {
    "Collection": ("data.collection", "Collection"),
    "Embeddings": ("core.embeddings", "Embeddings"),
    "RowStream": ("data.streaming", "RowStream"),
    "SmartEncoder": ("models.encoder", "SmartEncoder"),
    "SmartTrainer": ("training.trainer", "SmartTrainer"),
    "Tokens": ("core.embeddings", "Tokens"),
    "TrainingArguments": ("training.arguments", "SmartTrainingArguments"),
    "as_collection": ("data.readers.python_rows", "as_collection"),
    "calibrate": ("evaluation.calibration", "calibrate"),
    "evaluate": ("evaluation.retrieval", "evaluate"),
    "mine": ("mining.miner", "mine"),
    "publish": ("publishing.publisher", "publish"),
    "train": ("training.run", "train"),
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        module, attribute = _EXPORTS[name]
        return getattr(import_module(f"{__name__}.{module}"), attribute)
    if name == "losses":
        return import_module(f"{__name__}.losses")
    if name == "__version__":
        return import_module("importlib.metadata").version("smart-train")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
