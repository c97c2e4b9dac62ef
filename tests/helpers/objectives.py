"""The joint loss of a recipe's objective, in one call."""

from __future__ import annotations

from collections.abc import Sequence

from smart_train.config.schema import HybridBlock, ObjectiveBlock
from smart_train.core.embeddings import Embeddings
from smart_train.losses import Joint, Labels, Loss


def joint_loss(
    queries: Embeddings,
    documents: Embeddings,
    labels: Labels,
    objective: ObjectiveBlock,
    hybrid: HybridBlock,
    pooled_widths: Sequence[int] = (),
    token_widths: Sequence[int] = (),
    progress: float = 0.0,
) -> Loss:
    joint = Joint.from_recipe(objective)
    return joint(queries, documents, labels, hybrid, pooled_widths, token_widths, progress)
