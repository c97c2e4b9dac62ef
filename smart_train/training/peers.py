"""The processes of a run as the rooms outside of training meet them: who I am, how many we are, what the others have.

Knows: torch.distributed.  Does not know: models, data, what is exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from smart_train.processes import world


@dataclass(frozen=True)
class Group:
    """All processes of the launch; one process where there is no process group.

    together: every rank must run as many forwards, of the same kind and in the same order, since the weights are
        sharded and each forward collects them (ZeRO-3, FSDP)
    """

    together: bool = False
    rank: int = field(default_factory=lambda: dist.get_rank() if joined() else 0)
    world: int = field(default_factory=lambda: dist.get_world_size() if joined() else 1)

    def exchange(self, value: Any) -> list[Any]:
        """Every rank's value, by rank; all must call it.  Values are pickled: small ones, or few."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def any(self, flag: bool) -> bool:
        """Whether a rank says yes; all must call it."""
        return any(self.exchange(flag))


@contextmanager
def launched() -> Iterator[Group]:
    """The processes of a launch (accelerate, torchrun, or a command's own) that nobody has joined yet, for a block that
    all of them go through; one process where there is no launch.  What is exchanged lies on the CPU: gloo carries it.

    A rank may wait long for the slowest one's share of a corpus, so there is next to no time limit: one that dies
    breaks its connections, and that is noticed at once.
    """
    if joined() or world() == 1:
        yield Group()
        return
    dist.init_process_group("gloo", timeout=timedelta(days=30))
    try:
        yield Group()
        dist.barrier()  # without it, one end in six aborts a rank that is not through yet
    finally:
        dist.destroy_process_group()


def joined() -> bool:
    return dist.is_available() and dist.is_initialized()
