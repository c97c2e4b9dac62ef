"""Batches over two real ranks, through accelerate's loader: every rank its own rows, no document on both, and a
run that is resumed in a later epoch goes on with that epoch's rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from accelerate import Accelerator
from cached_ranks import trainer_of
from ranks import run_ranks

from smart_train.data.batch_sampler import PairBatchSampler, pair_groups
from smart_train.data.collate import Pairs
from smart_train.data.collection import Collection, Document
from smart_train.training.arguments import training_arguments
from smart_train.training.dataloader import plan_batches, train_loader

OPTIONS = {"max_steps": 7, "save_strategy": "steps", "save_steps": 1, "save_total_limit": None, "disable_tqdm": True}


def asked() -> Collection:
    """Of 20 documents two show the same; every third answers three queries: 34 pairs."""
    corpus = {f"d{n}": Document(f"d{n}", f"text {n % 19}") for n in range(20)}
    queries = {f"q{n}.{k}": "what" for n in range(20) for k in range(1 if n % 3 else 3)}
    return Collection("asked", corpus, queries, {q: {"d" + q[1:].split(".")[0]: 1} for q in queries})


def rows_of(values: list[Any]) -> list[Any]:
    """A collator that leaves rows as they are, as plain tuples: accelerate makes nested rows anew by their type."""
    return [tuple(value) for value in values]


def loaded(out: str, drop: bool) -> list[list[list[tuple[str, str]]]]:
    """This rank's rows, by epoch and step."""
    options = {"per_device_train_batch_size": 3, "dataloader_drop_last": drop, "use_cpu": True}
    args = training_arguments(options, Path(out))
    pairs = Pairs(asked())
    batches = plan_batches(pair_groups(asked(), pairs.rows), args)
    loader = train_loader(pairs, batches, rows_of, args, Accelerator(cpu=True))
    assert type(loader).__name__ == "DataLoaderShard" and len(loader) * 2 == len(batches)
    found = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        found.append([[tuple(row) for row in batch] for batch in loader])
    return found


def trained(folder: str, out: str) -> dict[str, Any]:
    """Rows that this rank trained on: in one run, and in those resumed after 2 and after 5 steps (4 are an epoch)."""
    found = {}
    for name, start in (("whole", None), ("resumed 2", 2), ("resumed 5", 5)):
        trainer = trainer_of(folder, f"{out}/{name}", {"kind": "lora", "r": 4}, cached=False, **OPTIONS)
        trainer.pair_groups = pair_groups(trainer.data_collator.collate.collection, trainer.train_dataset.rows)
        seen, collate = [], trainer.data_collator
        trainer.data_collator = lambda rows, seen=seen, collate=collate: seen.append(rows) or collate(rows)
        trainer.args.per_device_train_batch_size = trainer._train_batch_size = 2
        trainer.train(resume_from_checkpoint=f"{out}/whole/checkpoints/checkpoint-{start}" if start else None)
        found[name] = seen
        dist.barrier()
    found["epoch"] = len(plan_batches(trainer.pair_groups, trainer.args)) // 2
    return found


def on_ranks(folder: str, out: str) -> dict[str, Any]:
    return {
        "dropped": loaded(f"{out}/loaded", True),
        "kept": loaded(f"{out}/loaded", False),
        "trained": trained(folder, f"{out}/trained"),
    }


@pytest.fixture(scope="module")
def ranks(tiny_models, tmp_path_factory):
    return run_ranks(2, on_ranks, str(tiny_models("qwen3")), str(tmp_path_factory.mktemp("batches")), timeout=300.0)


@pytest.mark.parametrize("kind", ["dropped", "kept"])
def test_ranks_have_each_their_own_rows_and_share_no_document(kind, ranks):
    made, corpus = asked(), asked().corpus
    orders = set()
    for first, second in zip(ranks[0][kind], ranks[1][kind], strict=True):
        for mine, others in zip(first, second, strict=True):
            shown = [corpus[document].text for _, document in [*mine, *others]]
            assert len(set(shown)) == len(shown) and mine and others
            assert kind == "kept" or len(mine) == len(others) == 3
        rows = [row for batch in [*first, *second] for row in batch]
        assert len(set(rows)) == len(rows) == (34 if kind == "kept" else 30)
        assert set(rows) <= set(made.pairs())
        orders.add(tuple(rows))
    assert len(orders) == 3, "every epoch has an order of its own"


def test_one_rank_would_have_had_the_same_batches(ranks):
    made = asked()
    alone = PairBatchSampler(pair_groups(made, made.pairs()), 6, 1, seed=42)
    for epoch, (first, second) in enumerate(zip(ranks[0]["dropped"], ranks[1]["dropped"], strict=True)):
        both = [sorted(mine + others) for mine, others in zip(first, second, strict=True)]
        assert both == [sorted(made.pairs()[place] for place in batch) for batch in alone.plan(epoch)]


@pytest.mark.parametrize("done", [2, 5])
def test_a_resumed_rank_goes_on_with_the_rows_it_would_have_had(done, ranks):
    """After 5 steps the second epoch has begun: accelerate alone would draw the first one's order again."""
    for rank in ranks:
        whole, resumed = rank["trained"]["whole"], rank["trained"][f"resumed {done}"]
        assert rank["trained"]["epoch"] == 4 and len(whole) >= 7 and resumed[: 7 - done] == whole[done:7]
    assert ranks[0]["trained"]["whole"] != ranks[1]["trained"]["whole"]
