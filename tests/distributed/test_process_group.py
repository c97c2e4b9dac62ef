"""One process group: values by rank, a failure on one rank on all of them, and one process alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch.distributed as dist
from ranks import run_ranks

from smart_train.core.errors import EvaluationError, RankError
from smart_train.distributed.process_group import CollectError, ProcessGroup, launched_group


def test_one_process_is_a_group_of_itself():
    with launched_group() as group:
        assert (group.rank, group.world_size, group.is_main) == (0, 1, True)
    assert group.exchange(3) == [3] and group.broadcast("x") == "x" and not group.any(False)
    assert group.collect(lambda: 4) == [4]
    with pytest.raises(CollectError, match="^ValueError: no$") as error:
        group.collect(fail)
    assert isinstance(error.value.__cause__, ValueError)
    with pytest.raises(EvaluationError, match="^not measured$"), group.propagate_failures():
        raise EvaluationError("not measured")


def fail() -> None:
    raise ValueError("no")


def meet() -> dict[str, Any]:
    rank = dist.get_rank()
    group = ProcessGroup()
    found: dict[str, Any] = {
        "exchange": group.exchange(10 + rank),
        "any": (group.any(rank == 1), group.any(False)),
        "broadcast": group.broadcast({"from": rank}),
        "collect": group.collect(lambda: rank),
        "single": ProcessGroup.single().exchange(rank),
    }
    for name, own in (("ValueError", ValueError("no")), ("EvaluationError", EvaluationError("not measured"))):
        group = ProcessGroup()
        try:
            with group.propagate_failures():
                if rank == 1:
                    raise own
                group.exchange()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    try:
        ProcessGroup().collect(fail if rank else lambda: rank)
    except RankError as error:
        found["collect failed"] = str(error)
    found["waited"] = group.waited > 0
    return found


def test_two_ranks_exchange_values_and_failures():
    first, second = run_ranks(2, meet)
    assert first["exchange"] == second["exchange"] == [10, 11]
    assert first["any"] == second["any"] == (True, False)
    assert first["broadcast"] == second["broadcast"] == {"from": 0}
    assert first["collect"] == second["collect"] == [0, 1]
    assert (first["single"], second["single"]) == ([0], [1])
    assert (first["ValueError"], second["ValueError"]) == ("RankError: rank 1 failed: ValueError: no", "ValueError: no")
    assert first["EvaluationError"] == second["EvaluationError"] == "EvaluationError: not measured"
    assert first["collect failed"] == second["collect failed"] == "rank 1: ValueError: no"
    assert first["waited"]  # the other rank failed before it came to an exchange
