"""Faults on two real ranks: one rank's is everybody's, in the same step and with the same words; and data
that are too few for the ranks train all the same, or are refused before."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cached_ranks import collection, encoder_of
from ranks import run_ranks
from steps import JOINT
from torch import Tensor
from transformers import TrainerCallback

from smart_train.core.errors import Preempted, TrainingStopped
from smart_train.data.batch_sampler import pair_groups
from smart_train.data.collate import Collator, Pairs
from smart_train.data.collection import Collection
from smart_train.distributed import signals
from smart_train.distributed.signals import stoppable
from smart_train.models.encoder import SmartEncoder
from smart_train.training.arguments import training_arguments
from smart_train.training.checkpoint import list_steps
from smart_train.training.dataloader import plan_batches
from smart_train.training.final_save import save_trained
from smart_train.training.trainer import SmartTrainer

OPTIONS: dict[str, Any] = {
    "max_steps": 4,
    "per_device_train_batch_size": 3,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
}


def trainer_of(
    folder: str, out: str, data: Collection, skip: int = 0, cached: bool = False, **training
) -> SmartTrainer:
    """As a run makes it: planned batches."""
    encoder = encoder_of(folder, {"r": 4}, head=False)
    args = training_arguments({**OPTIONS, **training}, Path(out))
    pairs = Pairs(data)
    collate = Collator(data, encoder.preprocess, length_groups=2, chunk_rows=2)
    objective = replace(JOINT, skip_nonfinite=skip)
    log = Path(out) / "log.jsonl"
    return SmartTrainer(
        encoder,
        args,
        pairs,
        objective=objective,
        data_collator=collate,
        run_dir=log.parent,
        gradient_caching=cached,
        pair_groups=pair_groups(data, pairs.rows),
    )


class Kept(TrainerCallback):
    """Trained weights and the optimizer's memory after every step."""

    def __init__(self, trainer: SmartTrainer) -> None:
        self.trainer, self.found = trainer, []
        trainer.add_callback(self)

    def on_train_begin(self, *args, **kwargs) -> None:
        self.on_step_end()

    def on_step_end(self, *args, **kwargs) -> None:
        memory = self.trainer.optimizer.state_dict()["state"].values()
        state = [v.clone() for one in memory for v in one.values() if isinstance(v, Tensor)]
        self.found.append(([p.detach().clone() for p in self.trainer.encoder.parameters() if p.requires_grad], state))


def spoil(trainer: SmartTrainer, call: int) -> list[list[tuple[str, str]]]:
    """The first query's vector of rank 1 is NaN in that call of the loss; returns the rows of rank 1's batches."""
    made: list[list[tuple[str, str]]] = []
    compute = trainer.step.loss

    def loss(both, batch):
        made.append(batch.rows)
        if dist.get_rank() == 1 and len(made) - 1 == call:
            with torch.no_grad():
                both.pooled[0] = torch.nan
        return compute(both, batch)

    trainer.step.loss = loss
    return made


def nan_on_rank_1(folder: str, out: str) -> dict[str, Any]:
    """What each rank is told of a NaN, plain and cached."""
    found: dict[str, Any] = {}
    for cached in (False, True):
        trainer = trainer_of(folder, f"{out}/nan {cached}", collection(), cached=cached)
        rows = spoil(trainer, 1)
        try:
            trainer.train()
        except TrainingStopped as error:
            found["cached" if cached else "plain"] = (str(error), trainer.state.global_step, rows[1])
    return found


def left_out(folder: str, out: str) -> dict[str, Any]:
    """Weights and moments by step, where rank 1 has a NaN in a batch of step 2; by kind of step."""
    found = {}
    for name, cached, accumulation, call in (
        ("plain", False, 1, 1),
        ("cached", True, 1, 1),
        ("plain, first of two", False, 2, 2),
        ("plain, second of two", False, 2, 3),
        ("cached, first of two", True, 2, 2),
        ("cached, second of two", True, 2, 3),
    ):
        options = {"gradient_accumulation_steps": accumulation}
        trainer = trainer_of(folder, f"{out}/{name}", collection(), skip=1, cached=cached, **options)
        spoil(trainer, call)
        kept = Kept(trainer)
        trainer.train()
        found[name] = kept.found
    return found


class Signalled(TrainerCallback):
    """Rank 1 alone gets a SIGTERM while it makes step 2."""

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if dist.get_rank() == 1 and state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            while not signals.received():
                time.sleep(0.01)


def signal_on_rank_1(folder: str, out: str) -> tuple[str, bool]:
    trainer = trainer_of(folder, f"{out}/signal", collection())
    trainer.add_callback(Signalled())
    with stoppable():
        try:
            trainer.train()
        except Preempted as error:
            return str(error), (Path(f"{out}/signal") / "stopped.json").is_file()
    return "", False


def few(count: int) -> Collection:
    whole = collection()
    queries = {f"q{n}": whole.queries[f"q{n}"] for n in range(count)}
    corpus = {f"d{n}": whole.corpus[f"d{n}"] for n in range(count)}
    return Collection("few", corpus, queries, {name: whole.qrels[name] for name in queries})


def sources(sizes: list[int]) -> Collection:
    """Sources of so many pairs each."""
    found = few(sum(sizes))
    names = [name for number, size in enumerate(sizes) for name in [f"source {number}"] * size]
    found.corpus = {id: replace(d, source=name) for (id, d), name in zip(found.corpus.items(), names, strict=True)}
    return found


def edges(folder: str, out: str) -> dict[str, Any]:
    """(steps, rows of this rank by step, finite weights) or the error, by how few data there are for two ranks."""
    found: dict[str, Any] = {}
    cases = {
        "fewer pairs than ranks": (few(1), False, None),
        "fewer pairs than ranks, dropped": (few(1), True, None),
        "one pair a rank": (few(2), False, None),
        "an uneven last batch": (few(11), False, None),
        "a source smaller than the world": (sources([1, 13]), False, "source"),
        "a source smaller than the world, dropped": (sources([1, 13]), True, "source"),
    }
    for name, (data, drop, source) in cases.items():
        options = {"dataloader_drop_last": drop, "num_train_epochs": 1, "max_steps": -1}
        try:
            trainer = trainer_of(folder, f"{out}/{name}", data, **options)
            trainer.pair_groups = pair_groups(data, Pairs(data).rows, source)
            made, collate = [], trainer.data_collator
            trainer.data_collator = lambda rows, made=made, collate=collate: made.append(list(rows)) or collate(rows)
            trainer.train()
            fine = all(bool(p.isfinite().all()) for p in trainer.encoder.parameters())
            found[name] = (
                trainer.state.global_step,
                made,
                fine,
                plan_batches(trainer.pair_groups, trainer.args).summary(),
            )
        except ValueError as error:
            found[name] = str(error)
        dist.barrier()
    return found


def full_on_rank_0(folder: str, out: str) -> dict[str, Any]:
    """Where rank 0 saves, when its disk does not take the output; rank 1 writes nothing, and its checkpoints fail."""
    trainer = trainer_of(folder, f"{out}/full", collection(), save_strategy="steps", save_steps=1)
    rank, save = dist.get_rank(), trainer._save_rng_state

    def save_rng_state(output_dir: str) -> None:
        if rank == 1 and trainer.state.global_step == 2:
            raise OSError(28, "No space left on device")
        save(output_dir)

    trainer._save_rng_state = save_rng_state
    trainer.train()
    write = SmartEncoder.save_pretrained

    def save_pretrained(self: SmartEncoder, target: Path, **options: Any) -> None:
        if rank == 0 and target.is_relative_to(f"{out}/full"):
            raise OSError(28, "No space left on device")
        write(self, target, **options)

    tempfile.tempdir = f"{out}/second {rank}"
    Path(tempfile.tempdir).mkdir()
    SmartEncoder.save_pretrained = save_pretrained
    try:
        place = save_trained(trainer, Path(out) / "full" / "adapter")
    finally:
        SmartEncoder.save_pretrained = write
    return {"lost": trainer.checkpoints.lost, "steps": list_steps(Path(out) / "full" / "checkpoints"), "place": place}


def on_two_ranks(folder: str, out: str) -> dict[str, Any]:
    return {
        "nan": nan_on_rank_1(folder, out),
        "left out": left_out(folder, out),
        "signal": signal_on_rank_1(folder, out),
        "edges": edges(folder, out),
        "full": full_on_rank_0(folder, out),
    }


@pytest.fixture(scope="module")
def two(tiny_models, tmp_path_factory):
    return run_ranks(2, on_two_ranks, str(tiny_models("qwen3")), str(tmp_path_factory.mktemp("two")), timeout=300.0)


@pytest.mark.parametrize("kind", ["plain", "cached"])
def test_a_nan_on_one_rank_stops_all_with_that_ranks_story(kind, two):
    """Its document reaches every rank's softmax, so every loss is NaN; the rank whose rows are is the one named."""
    (message, steps, _), (other, other_steps, rows) = two[0]["nan"][kind], two[1]["nan"][kind]
    assert message == other and steps == other_steps == 1
    assert message.startswith("step 2: on rank 1 the loss is nan (") and "on rank 0" not in message
    query = next(row for row in rows if f"{row[0]} -> {row[1]}" in message)
    assert "1 of 6 rows are not finite, of 3 pairs (the pairs with them are: " in message and query in rows


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


@pytest.mark.parametrize(
    "kind",
    [f"{how}{which}" for how in ("plain", "cached") for which in ("", ", first of two", ", second of two")],
)
def test_a_step_that_is_left_out_leaves_no_trace_on_any_rank(kind, two):
    ours, theirs = two[0]["left out"][kind], two[1]["left out"][kind]
    assert len(ours) == len(theirs) == 5
    for (weights, memory), (other_weights, other_memory) in zip(ours, theirs, strict=True):
        assert same(weights, other_weights) and same(memory, other_memory)
    assert same(*(ours[step][0] for step in (1, 2))) and same(*(ours[step][1] for step in (1, 2)))
    for step in (1, 3, 4):
        assert not same(ours[step - 1][0], ours[step][0]), f"step {step} trains"


def test_a_signal_to_one_rank_stops_all_after_the_same_step(two):
    for message, there in (two[0]["signal"], two[1]["signal"]):
        assert message.startswith("SIGTERM: stopped after step 2, which is saved in ") and there
        assert message.endswith("checkpoint-2; resume with trainer.train(resume_from_checkpoint=True)")


def test_a_full_disk_of_one_rank_is_the_same_to_all_and_nobody_waits(two):
    ours, theirs = two[0]["full"], two[1]["full"]
    assert ours["lost"] == theirs["lost"] == [2] and ours["steps"] == [3, 4]  # save_total_limit keeps two
    assert ours["place"] == theirs["place"] and "second 0" in str(ours["place"])
    assert (ours["place"] / "smart_train.json").is_file()


def test_data_too_few_for_the_ranks_are_refused_or_trained_on_all_of_them(two):
    ranks = [rank["edges"] for rank in two]
    for name in ("fewer pairs than ranks", "fewer pairs than ranks, dropped"):
        assert ranks[0][name] == ranks[1][name]
        assert "1 training pairs do not fill one batch" in ranks[0][name] and "write fewer" in ranks[0][name]
    for name, pairs in (("one pair a rank", 2), ("an uneven last batch", 11), ("a source smaller than the world", 13)):
        steps, finite = {rank[name][0] for rank in ranks}, [rank[name][2] for rank in ranks]
        drawn = [tuple(row) for rank in ranks for batch in rank[name][1] for row in batch]
        assert len(steps) == 1 and steps.pop() >= 1 and all(finite)
        assert all(len(batch) >= 1 for rank in ranks for batch in rank[name][1]), "no rank without a row"
        assert len(drawn) == len(set(drawn)) == pairs
    small = [rank["a source smaller than the world, dropped"] for rank in ranks]
    assert len({one[0] for one in small}) == 1 and all(len(batch) == 3 for one in small for batch in one[1])
    assert any("1 of 14 pairs" in line for line in ranks[0]["a source smaller than the world"][3])
