"""Train any single-vector embedder as a pooled and a late-interaction retriever at once, from one forward pass.

``smart_train.SmartEncoder`` is all that most programs need; it is imported when it is asked for, so that the command
line and recipes' checks start without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smart_train.models.encoder import SmartEncoder

__all__ = ["SmartEncoder"]


def __getattr__(name: str) -> Any:
    if name == "SmartEncoder":
        from smart_train.models.encoder import SmartEncoder

        return SmartEncoder
    raise AttributeError(f"module 'smart_train' has no attribute {name!r}")
