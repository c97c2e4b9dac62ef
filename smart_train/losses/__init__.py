"""Losses: terms, their weighted sum (``Joint``), and the interface for terms of your own (``LossTerm``)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smart_train.losses.base import BatchEmbeddings, LossTerm, Scores
    from smart_train.losses.contrastive import Contrastive, Hybrid, Late, Pooled
    from smart_train.losses.distillation import SelfDistillation, Teacher
    from smart_train.losses.joint import Joint, Loss
    from smart_train.losses.labels import Labels
    from smart_train.losses.regularizers import Diversity, Overlap

__all__ = [
    "BatchEmbeddings",
    "Contrastive",
    "Diversity",
    "Hybrid",
    "Joint",
    "Labels",
    "Late",
    "Loss",
    "LossTerm",
    "Overlap",
    "Pooled",
    "Scores",
    "SelfDistillation",
    "Teacher",
]

_MODULES = {
    "base": ("BatchEmbeddings", "LossTerm", "Scores"),
    "contrastive": ("Contrastive", "Hybrid", "Late", "Pooled"),
    "distillation": ("SelfDistillation", "Teacher"),
    "joint": ("Joint", "Loss"),
    "labels": ("Labels",),
    "regularizers": ("Diversity", "Overlap"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
