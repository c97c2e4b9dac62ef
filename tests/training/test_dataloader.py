"""The trainer on planned batches: it sees the plan's rows, and a run resumed anywhere is the uninterrupted one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from steps import lines, texts, weights

from smart_train.config.schema import AdapterBlock, DataBlock
from smart_train.data.batch_sampler import pair_groups
from smart_train.data.collection import Collection
from smart_train.data.readers import row_cache
from smart_train.data.readers.base import find_reader
from smart_train.data.stored_collection import StoredCollection
from smart_train.training.dataloader import plan_batches
from smart_train.training.trainer import SmartTrainer

LORA = AdapterBlock(r=4)


@pytest.fixture
def planning(make):
    """planning(**arguments) -> a trainer on planned batches, which keeps the rows of every batch in ``seen``."""

    def build(**options) -> SmartTrainer:
        trainer = make("qwen3", LORA, **options)
        trainer.pair_groups = pair_groups(texts(False), trainer.train_dataset.rows, window=2)
        trainer.seen, collate = [], trainer.data_collator
        trainer.data_collator = lambda rows: trainer.seen.append(rows) or collate(rows)
        return trainer

    return build


def test_a_run_trains_on_the_planned_batches_epoch_after_epoch(planning):
    trainer = planning(max_steps=9, per_device_train_batch_size=8)
    trainer.train()
    rows, batches = trainer.train_dataset.rows, plan_batches(trainer.pair_groups, trainer.args)
    expected = [[rows[place] for place in batch] for epoch in range(3) for batch in batches.plan(epoch)]
    assert [sorted(batch) for batch in trainer.seen[:9]] == [sorted(batch) for batch in expected[:9]]
    assert len(batches) == 3 and trainer.state.epoch == 3


def test_the_seed_of_the_data_is_its_own(planning):
    first, second, other = (planning(max_steps=1, data_seed=seed, seed=seed or 42) for seed in (7, None, 8))
    plans = [plan_batches(trainer.pair_groups, trainer.args).plan(0) for trainer in (first, second, other)]
    assert plans[0] == plan_batches(first.pair_groups, planning(data_seed=7, seed=1).args).plan(0)
    assert plans[0] != plans[1] != plans[2]


@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize("step", [2, 4, 5])
def test_a_run_resumed_in_the_middle_of_an_epoch_is_the_uninterrupted_one(step, drop, planning):
    """Epochs of 3 steps with 2 or 3 batches accumulated in each: after 2, 4 and 5 steps an epoch is not over."""
    options = {
        "max_steps": 7,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 3,
        "dataloader_drop_last": drop,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": None,
        "lr_scheduler_type": "linear",
    }
    whole = planning(folder="whole", **options)
    whole.train()
    assert whole.state.epoch == pytest.approx(7 / 3, abs=0.2)
    torch.manual_seed(5)
    resumed = planning(folder="resumed", **options)
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / f"checkpoint-{step}"))
    batches = len(plan_batches(whole.pair_groups, whole.args))
    done = step // 3 * batches + step % 3 * 3
    assert resumed.seen == whole.seen[done:]
    expected, found = weights(whole.encoder), weights(resumed.encoder)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=0, msg=name)
    ours, theirs = ({line["step"]: line["loss/late"] for line in lines(t) if "loss" in line} for t in (resumed, whole))
    assert ours == pytest.approx({n: theirs[n] for n in range(step + 1, 8)}, abs=1e-5)


def test_workers_make_the_same_batches(planning, make):
    """Of two of them, in order; what they have seen stays with them, so the losses are compared."""
    runs = []
    for workers in (0, 2):
        trainer = planning(max_steps=4, dataloader_num_workers=workers, folder=f"workers{workers}")
        trainer.train()
        runs.append([line["loss"] for line in lines(trainer) if "loss" in line])
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("option", "value"),
    [("split_batches", True), ("dispatch_batches", True), ("even_batches", False), ("use_seedable_sampler", False)],
)
def test_accelerate_does_not_divide_what_was_planned(option, value, planning):
    trainer = planning(accelerator_config={option: value})
    with pytest.raises(ValueError, match=f"{option} would cut or draw batches"):
        trainer.train()


def test_training_on_a_collection_on_disk_is_training_on_one_in_memory(make, tmp_path, monkeypatch):
    """The same batches in the same order, read by data workers, and so the same weights."""
    data = [{"query": f"ask {n}", "positive": f"text {n}", "negative": f"text {n + 3}"} for n in range(24)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in data), "utf8")
    trained = []
    for small in (1 << 30, 0):
        monkeypatch.setattr(row_cache, "SMALL_BYTES", small)
        monkeypatch.setattr(row_cache, "cache_folder", lambda: tmp_path / "cache")
        collection = find_reader(DataBlock(path=str(tmp_path / "rows.jsonl"))).read("train")
        workers = 0 if small else 2
        options = {"max_steps": 4, "per_device_train_batch_size": 8, "dataloader_num_workers": workers}
        trainer = make("qwen3", LORA, collection=collection, negatives=1, folder=f"run-{small}", **options)
        trainer.pair_groups = pair_groups(collection, trainer.train_dataset.rows)
        trainer.train()
        trained.append((type(collection), weights(trainer.encoder)))
    assert [kind for kind, _ in trained] == [Collection, StoredCollection]
    first, second = (each for _, each in trained)
    assert all(torch.equal(first[name], second[name]) for name in first)
