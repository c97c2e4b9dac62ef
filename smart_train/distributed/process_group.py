"""Exchange values between the processes of a launch, and raise one rank's failure on all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from smart_train.core.environment import world
from smart_train.core.errors import EvaluationError, RankError


def describe(error: BaseException) -> str:
    """Return ``TypeName: message`` on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


class ProcessGroup:
    """All processes of a launch, or one process where nothing was launched.

    ``ProcessGroup()`` reads rank and world size from torch.distributed; ``ProcessGroup.single()`` is this process
    alone, whatever was launched.  Making one is free: make a new one for each evaluation, mining or stage.  A group
    that raised a failure must not be used again, since nobody knows which exchange the other ranks are at.

    Args:
        lockstep: every rank must run the same number of forwards, of the same kind (text, image, both) and in the same
            order, since the weights are sharded (ZeRO-3, FSDP) and each forward collects them.
        rank, world_size: default to those of torch.distributed.

    Attributes:
        waited: seconds spent in ``exchange``, which is mostly waiting for the slowest rank.

    >>> ProcessGroup.single().exchange("value")
    ['value']
    """

    def __init__(self, lockstep: bool = False, rank: int | None = None, world_size: int | None = None) -> None:
        self.lockstep = lockstep
        self.rank = rank if rank is not None else dist.get_rank() if is_initialized() else 0
        self.world_size = world_size if world_size is not None else dist.get_world_size() if is_initialized() else 1
        self.waited = 0.0
        self._expected = True  # whether the other ranks expect this one at another exchange

    @classmethod
    def single(cls) -> ProcessGroup:
        """Return a group of this process alone."""
        return cls(rank=0, world_size=1)

    @property
    def is_main(self) -> bool:
        """Return whether this rank writes files, log lines and progress bars."""
        return self.rank == 0

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return every rank's value, by rank.  Values are pickled, so they should be small or few."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def exchange(self, value: Any = None) -> list[Any]:
        """Return every rank's value, by rank; every rank must call it.

        Raises:
            EvaluationError, RankError: a rank left a ``propagate_failures`` block with an error; the first such rank's.
        """
        self._expected = False  # until it is through: a broken exchange cannot be reported by another one
        begun = time.perf_counter()
        values = self.all_gather_object(value)
        self.waited += time.perf_counter() - begun
        for each in values:
            if isinstance(each, _Failure):
                raise each.error()
        self._expected = True
        return values

    def any(self, flag: bool) -> bool:
        """Return whether the flag is true on any rank; every rank must call it."""
        return any(self.exchange(flag))

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank; every rank must call it."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            dist.barrier()

    def collect(self, function: Callable[[], Any], message: Callable[[Exception], str] = describe) -> list[Any]:
        """Call ``function`` on every rank and return every rank's result, by rank.

        A rank whose function fails still takes part in the exchange, so that no rank waits for it.

        Raises:
            CollectError: on every rank, with the message of each rank that failed.
        """
        result: Any = None
        failure: Exception | None = None
        try:
            result = function()
        except Exception as error:
            failure = error
        outcomes = self.exchange((result, None if failure is None else message(failure)))
        failures = {rank: text for rank, (_, text) in enumerate(outcomes) if text is not None}
        if failures:
            raise CollectError(failures, self.world_size) from failure
        return [result for result, _ in outcomes]

    @contextmanager
    def propagate_failures(self) -> Iterator[None]:
        """Raise on every rank what fails on one of them within this block.

        The block must end with an ``exchange`` or be followed by one: that is where the other ranks meet the failure.
        """
        try:
            yield
        except Exception as error:
            if self._expected:
                self._expected = False
                same = isinstance(error, EvaluationError)
                failure = _Failure(self.rank, same, str(error) if same else f"{type(error).__name__}: {error}")
                try:
                    self.all_gather_object(failure)
                except Exception as broken:  # the first error is the one to show
                    error.add_note(f"The other ranks could not be told: {type(broken).__name__}: {broken}")
            raise

    @contextmanager
    def inside_collective(self) -> Iterator[None]:
        """Mark a block in which the other ranks wait in another collective (a forward of sharded weights): a failure in
        it cannot be reported by an exchange, and is raised on this rank alone."""
        self._expected = False
        yield
        self._expected = True


class CollectError(RankError):
    """Some ranks failed in ``ProcessGroup.collect``.  failures: rank -> message."""

    def __init__(self, failures: dict[int, str], world_size: int) -> None:
        self.failures = failures
        super().__init__("; ".join(f"rank {r}: {text}" if world_size > 1 else text for r, text in failures.items()))


@dataclass(frozen=True)
class _Failure:
    """What crosses ranks in place of a value; an exception itself may not survive pickling.

    same: it is an EvaluationError, which is the same error on every rank
    """

    rank: int
    same: bool
    text: str

    def error(self) -> Exception:
        return EvaluationError(self.text) if self.same else RankError(f"rank {self.rank} failed: {self.text}")


@contextmanager
def launched_group() -> Iterator[ProcessGroup]:
    """Join the processes of a launch (accelerate, torchrun, --processes) for a block that every rank goes through.

    Yields a group of one process where nothing was launched.  Values lie on the CPU and gloo carries them.  A rank may
    wait long for the slowest one's share of a corpus, so there is next to no time limit: a rank that dies breaks its
    connections, which the others notice at once.
    """
    if is_initialized() or world() == 1:
        yield ProcessGroup()
        return
    dist.init_process_group("gloo", timeout=timedelta(days=30))
    try:
        yield ProcessGroup()
        dist.barrier()  # without it, one end in six aborts a rank that is not through yet
    finally:
        dist.destroy_process_group()


def leave_process_group() -> None:
    """Leave the process group, if there is one, after all ranks are here: without this one run in six aborts after it
    has finished."""
    if is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def is_initialized() -> bool:
    """Return whether torch.distributed has a process group."""
    return dist.is_available() and dist.is_initialized()
