"""A recipe's sizes: what a rank draws, what the data can fill, and in which pieces a forward runs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks

from smart_train.config.schema import ObjectiveBlock
from smart_train.data.collection import Collection, Document
from smart_train.training.arguments import training_arguments
from smart_train.training.batch_size import check_pages, chunk_rows, with_batch_share


@pytest.mark.parametrize(("world", "share"), [(1, 64), (4, 16), (64, 1)])
def test_a_rank_draws_its_share_of_the_batch(world, share, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    given = {"learning_rate": 1.0}
    assert with_batch_share(given, ObjectiveBlock(batch=64)) == {
        "learning_rate": 1.0,
        "per_device_train_batch_size": share,
    }
    assert with_batch_share(given, ObjectiveBlock()) == given == {"learning_rate": 1.0}


@pytest.mark.parametrize(("batch", "fix"), [(10, "write 8 or"), (3, "write 4 or")])
def test_a_batch_that_cannot_be_shared_is_refused(batch, fix, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=f"objective.batch: is {batch}, which 4 processes cannot share evenly; {fix}"):
        with_batch_share({}, ObjectiveBlock(batch=batch))


def settled() -> dict[str, Any]:
    """What DeepSpeed is told, where the recipe leaves it to the trainer."""
    config = {name: "auto" for name in ("train_micro_batch_size_per_gpu", "train_batch_size")}
    given = {
        "use_cpu": True,
        "gradient_accumulation_steps": 2,
        "deepspeed": config | {"zero_optimization": {"stage": 2}},
    }
    with tempfile.TemporaryDirectory() as folder:
        args = training_arguments(with_batch_share(given, ObjectiveBlock(batch=64)), Path(folder))
    found: dict[str, Any] = args.hf_deepspeed_config.config  # type: ignore[attr-defined]
    return {name: found[name] for name in config}


@pytest.mark.slow
def test_deepspeed_hears_of_the_batch(tmp_path):
    assert run_ranks(1, settled, timeout=300.0) == [{"train_micro_batch_size_per_gpu": 64, "train_batch_size": 128}]


@pytest.mark.parametrize(("file", "page", "fine"), [(None, None, False), ("a.pdf", None, False), ("a.pdf", 0, True)])
def test_neighbouring_pages_need_pages(file, page, fine):
    documents = [Document("d0", "a text"), Document("d1", "a page", file=file, page=page)]
    mine = Collection("mine", {one.id: one for one in documents}, {}, {})
    check_pages(ObjectiveBlock(), mine)
    if fine:
        check_pages(ObjectiveBlock(neighbour_pages=0), mine)
        return
    with pytest.raises(ValueError, match=r"neighbour_pages: is 0, but no document of mine names its file and its page"):
        check_pages(ObjectiveBlock(neighbour_pages=0), mine)


@pytest.mark.parametrize(
    ("given", "rows"),
    [({}, None), ({"batch": 64}, 32), ({"batch": 64, "chunk_rows": 8}, 8), ({"batch": 64, "chunk_tokens": 99}, None)],
)
def test_a_large_batch_runs_in_chunks_whose_size_is_known(given, rows):
    assert chunk_rows(ObjectiveBlock(**given)) == rows
