"""The processes of a run as the rooms outside of training meet them: who I am, how many we are, what the others have.

Knows: torch.distributed.  Does not know: models, data, what is exchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist


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


def joined() -> bool:
    return dist.is_available() and dist.is_initialized()
