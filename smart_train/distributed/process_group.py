"""The processes of a run: rank, world size, and exchange of values."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import torch.distributed as dist

from smart_train.core.environment import world
from smart_train.core.errors import EvaluationError, PeerError


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


# The other ranks of an evaluation: what they must offer, where they meet, and how one's failure is everybody's.


class Peers(Protocol):
    """The ranks that share an evaluation, seen from one of them; every rank has the same collection and encoder.

    together: every rank must run as many forwards, of the same kind (text, image, both), in the same order, since the
        weights are sharded (ZeRO-3, FSDP) and each forward is a collective
    """

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    @property
    def together(self) -> bool: ...

    def exchange(self, value: Any) -> list[Any]:
        """Every rank's value, by rank; a collective.  Values are tensors on the CPU and plain objects around them."""
        ...


class Alone:
    """One process."""

    rank, world, together = 0, 1, False

    def exchange(self, value: Any) -> list[Any]:
        return [value]


@dataclass(frozen=True)
class Failure:
    """What crosses ranks in place of a value; an exception itself may not survive pickling."""

    rank: int
    measured: bool  # an EvaluationError, which says on every rank what it says on its own
    text: str

    def error(self) -> Exception:
        return EvaluationError(self.text) if self.measured else PeerError(f"rank {self.rank} failed: {self.text}")


class Meetings:
    """The meetings of one evaluation.

    first: whether this rank is the one that tells people (bars, log lines)
    waited: seconds spent in meetings, mostly waiting for the slowest rank
    """

    def __init__(self, peers: Peers | None = None) -> None:
        self._peers: Peers = peers or Alone()
        self.rank, self.world, self.together = self._peers.rank, self._peers.world, self._peers.together
        self.first = self.rank == 0
        self.waited = 0.0
        self._open = True  # whether the others expect this rank at another meeting

    def meet(self, value: Any = None) -> list[Any]:
        """Every rank's value, by rank.  Where ranks failed, raises what the first of them told."""
        self._open = False  # until it is through: a broken exchange can't be told in another one
        begun = time.perf_counter()
        found = self._peers.exchange(value)
        self.waited += time.perf_counter() - begun
        for each in found:
            if isinstance(each, Failure):
                raise each.error()
        self._open = True
        return found

    @contextmanager
    def telling(self) -> Iterator[None]:
        """A block that ends with a meeting, or is followed by one: what fails in it is raised on every rank."""
        try:
            yield
        except Exception as error:
            if self._open:
                self._open = False
                measured = isinstance(error, EvaluationError)
                text = str(error) if measured else f"{type(error).__name__}: {error}"
                try:
                    self._peers.exchange(Failure(self.rank, measured, text))
                except Exception as broken:  # the error that began it is the one to show
                    error.add_note(f"The other ranks could not be told: {type(broken).__name__}: {broken}")
            raise

    @contextmanager
    def silent(self) -> Iterator[None]:
        """A block whose failure can't be told: the others are in the middle of another collective, a forward."""
        self._open = False
        yield
        self._open = True
