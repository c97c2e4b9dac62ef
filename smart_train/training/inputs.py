"""How batches come to a step: as Trainer's inputs, moved at once or chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from smart_train.core.embeddings import Batch, Features

Rows = list[tuple[str, str]]


@dataclass
class Held:
    """A Batch that stays where it is: accelerate moves whatever has a ``to``, and a step of a large batch moves one
    chunk after another (the pixels of 1,024 pages are 18 GB)."""

    batch: Batch


def held(found: Batch | Held) -> Batch:
    return found.batch if isinstance(found, Held) else found


@dataclass
class Inputs:
    """A Batch as Trainer's inputs, a dict; a class, because a spawned data worker gets it pickled."""

    collate: Callable[[Rows], Batch]
    hold: bool = False

    def __call__(self, rows: Rows) -> dict[str, Any]:
        batch = self.collate(rows)
        return {"batch": Held(batch) if self.hold else batch}


@dataclass
class Moved(Sequence[Features]):
    """Chunks that go to the device when they are asked for."""

    chunks: list[Features]
    device: torch.device

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: Any) -> Any:
        chunk = self.chunks[number]
        return {k: v.to(self.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in chunk.items()}
