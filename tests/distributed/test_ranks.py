"""The harness of the other distributed tests: a rank that fails, dies or waits for ever is a failure, and says so."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist
from ranks import RankError, run_ranks


def stumble(how: str) -> torch.Tensor:
    if dist.get_rank() == 1:
        if how == "raise":
            raise KeyError("a page that is not there")
        if how == "die":
            os._exit(3)
        if how == "sleep":
            time.sleep(600)
    total = torch.ones(())
    dist.all_reduce(total)
    return total


def test_results_come_by_rank_from_real_processes():
    assert [total.item() for total in run_ranks(2, stumble, "not at all")] == [2.0, 2.0]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raise", "rank 1 of 2:\n(.|\n)*KeyError: 'a page that is not there'"),
        pytest.param("die", "rank 1 of 2:\nthe process died", marks=pytest.mark.slow),
        pytest.param("sleep", "rank 1 of 2 was still running", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_does_not_come_back_is_named(how, said):
    begin = time.monotonic()
    with pytest.raises(RankError, match=said):
        run_ranks(2, stumble, how, timeout=5)
    assert time.monotonic() - begin < 400  # most of it imports, on a busy machine; the rank sleeps for 600
