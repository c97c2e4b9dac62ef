"""The cached step inside transformers.Trainer: the same weights and the same log as the plain one, in chunks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from resumed import CLOCKS
from steps import JOINT, OBJECTIVES, lines, pages, weights

from smart_train.config.schema import AdapterBlock, ModelBlock, ObjectiveBlock, TermBlock
from smart_train.core.embeddings import Batch
from smart_train.core.errors import TrainingStopped
from smart_train.training.dataloader import ChunksOnDevice
from smart_train.training.trainer import SmartTrainer

HEAD = {"layer": [2, -1], "head": "layernorm_linear", "dim": 12}
LORA, FULL, FROZEN = AdapterBlock(r=4, dropout=0.2), AdapterBlock(kind="full"), AdapterBlock(kind="frozen")
SGD = {"optim": "sgd", "max_grad_norm": 0.0, "chunk_rows": 2, "model": ModelBlock(dropout=0.2), "negatives": 1}


def both(
    make, kind: str, adapter: AdapterBlock, *positional, changed: dict | None = None, **options
) -> tuple[SmartTrainer, SmartTrainer]:
    """A plain and a cached run of the same recipe, done; ``changed``: what only the cached one has.  One is made and
    trained after the other, since a trainer sets the seed when it is made."""
    made = []
    for cached in (False, True):
        options |= (changed or {}) if cached else {}
        made.append(make(kind, adapter, *positional, cached=cached, folder=f"cached-{cached}", **SGD | options))
        made[-1].train()
        assert made[-1].gradient_caching == cached
    return made[0], made[1]


def assert_same_weights(plain: SmartTrainer, cached: SmartTrainer, tolerance: float = 1e-6) -> None:
    found, expected = weights(cached.encoder), weights(plain.encoder)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=tolerance, rtol=1e-5, msg=name)


RUNS = {
    "lora": ("bert", LORA, {}),
    "lora and head": ("qwen3", LORA, HEAD),
    "full": ("bert", FULL, {}),
    "pages": ("qwen3vl", LORA, HEAD),
}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("case", RUNS)
def test_a_cached_run_is_the_plain_run(case, accumulation, make):
    """Weights after two steps, dropout on: the random generators go on where a plain step leaves them."""
    kind, adapter, late = RUNS[case]
    options = {"gradient_accumulation_steps": accumulation, "learning_rate": 1e-3}
    plain, cached = both(make, kind, adapter, late, **options)
    assert_same_weights(plain, cached)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_log_says_the_same(accumulation, make):
    """The loss, every part of it, the norm of the gradients, and the counts of the batches."""
    kind, adapter, late = RUNS["lora and head"]
    plain, cached = both(make, kind, adapter, late, OBJECTIVES["all three"], gradient_accumulation_steps=accumulation)
    pairs = [*zip(lines(plain), lines(cached), strict=True)]
    assert len(pairs) == 3
    for expected, found in pairs[:2]:
        assert {"loss", "loss/pooled", "loss/late", "loss/hybrid", "grad_norm", "negatives"} <= found.keys()
        assert {"batch/queries", "batch/documents", "batch/negatives", "batch/negatives_missing"} <= found.keys()
        assert found.keys() == expected.keys() and "gather/MiB" not in found
        for name in (name for name in found if not name.startswith(CLOCKS)):
            assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
    assert pairs[0][1]["batch/queries"] == 4


def test_counts_of_a_batch_are_means_over_steps(make):
    trainer = make("bert", LORA, cached=True, negatives=1, logging_steps=4, max_steps=4, logging_first_step=False)
    notes = []
    collate = trainer.data_collator.collate
    trainer.data_collator.collate = lambda rows: notes.append((b := collate(rows)).notes) or b
    trainer.train()
    (line,) = [line for line in lines(trainer) if "loss" in line]
    for name in ("queries", "documents", "negatives_missing"):
        assert line[f"batch/{name}"] == pytest.approx(sum(n[name] for n in notes[:4]) / 4), name
    assert len({n["documents"] for n in notes[:4]}) > 1


def test_activation_checkpointing_and_caching_together_are_the_plain_run(make):
    plain, cached = both(make, "bert", FULL, learning_rate=1e-3, changed={"activation_checkpointing": True})
    assert cached.encoder.backbone.is_gradient_checkpointing and not plain.encoder.backbone.is_gradient_checkpointing
    assert_same_weights(plain, cached)


def test_bf16_runs_stay_as_near_as_bf16_is(make):
    start = weights(make("qwen3", LORA, folder="start").encoder)
    plain, cached = both(make, "qwen3", LORA, bf16=True, learning_rate=1e-3, max_steps=3)
    found, expected = weights(cached.encoder), weights(plain.encoder)
    moved = sum(float((expected[n] - start[n]).square().sum()) for n in expected) ** 0.5
    apart = sum(float((expected[n] - found[n]).square().sum()) for n in expected) ** 0.5
    assert 0 < apart < 0.05 * moved
    losses = [[line["loss"] for line in lines(t) if "loss" in line] for t in (plain, cached)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def forwards(trainer: SmartTrainer) -> list[tuple[bool, int]]:
    """(with a graph, rows) of every forward of the backbone from now on."""
    seen: list[tuple[bool, int]] = []

    def note(module, inputs) -> None:
        seen.append((torch.is_grad_enabled(), len(inputs[0]["input_ids"])))

    trainer.encoder.transformer.register_forward_pre_hook(note)
    return seen


def test_objective_batch_turns_caching_on_and_a_chunk_is_a_forward(make):
    trainer = make("bert", LORA, {}, replace(JOINT, batch=8), per_device_train_batch_size=8, chunk_rows=3, max_steps=1)
    seen = forwards(trainer)
    trainer.train()
    assert trainer.gradient_caching and len(seen) % 2 == 1  # the last chunk keeps its graph, and is not run again
    count = len(seen) // 2 + 1
    assert [rows for _, rows in seen[: count - 1]] == [rows for _, rows in seen[count:]]
    assert [graph for graph, _ in seen] == [False] * (count - 1) + [True] * count
    assert max(rows for _, rows in seen) == 3 and sum(rows for _, rows in seen[:count]) >= 16


@pytest.mark.parametrize("cached", [None, True])
def test_a_frozen_backbone_runs_once(cached, make):
    """Its graph holds the head only: nothing would be saved by a second pass."""
    objective = replace(JOINT, batch=8)
    trainer = make(
        "bert", FROZEN, HEAD, objective, per_device_train_batch_size=8, chunk_rows=4, max_steps=1, cached=cached
    )
    seen, made = forwards(trainer), []
    collate = trainer.data_collator.collate
    trainer.data_collator.collate = lambda rows: made.append(collate(rows)) or made[-1]
    before = weights(trainer.encoder)
    trainer.train()
    rows = sum(rows for _, rows in seen)
    assert not trainer.gradient_caching and rows == sum(
        len(chunk["input_ids"]) for chunk in made[0].queries + made[0].documents
    )
    moved = {n for n, p in weights(trainer.encoder).items() if not torch.equal(p, before[n])}
    assert moved and all(name.startswith("head.") for name in moved)


@pytest.mark.parametrize("adapter", [LORA, FROZEN])
def test_chunks_of_a_large_batch_come_to_the_device_one_by_one(adapter, make, monkeypatch):
    """Whether they run once or twice: each right before its forward, and never the batch as a whole."""
    objective = replace(JOINT, batch=8)
    trainer = make("bert", adapter, HEAD, objective, per_device_train_batch_size=8, chunk_rows=3, max_steps=1)
    events: list[str] = []
    move, whole = ChunksOnDevice.__getitem__, Batch.to

    def moved(self, number):
        found = move(self, number)
        events.append("moved")
        return found

    def at_once(self, *args, **options):
        assert not self.queries and not self.documents
        return whole(self, *args, **options)

    monkeypatch.setattr(ChunksOnDevice, "__getitem__", moved)
    monkeypatch.setattr(Batch, "to", at_once)
    trainer.encoder.transformer.register_forward_hook(lambda *_: events.append("forward"))
    trainer.train()
    assert len(events) >= 12 and events == ["moved", "forward"] * (len(events) // 2)


@pytest.mark.parametrize("negatives", [0, 1])
def test_hard_negatives_are_counted_where_they_are_asked_for(negatives, make):
    trainer = make("bert", LORA, cached=True, negatives=negatives)
    trainer.train()
    for line in [line for line in lines(trainer) if "loss" in line]:
        counts = {name.removeprefix("batch/") for name in line if name.startswith("batch/")}
        assert {"queries", "documents", "also_relevant"} <= counts
        assert {"negatives", "negatives_missing", "negatives_copies"} & counts == (
            {"negatives", "negatives_missing", "negatives_copies"} if negatives else set()
        )


def test_rows_that_were_cut_are_counted_once(make):
    counts = []
    for cached in (False, True):
        options = {**SGD, "model": ModelBlock(document_tokens=8)}
        trainer = make("bert", LORA, cached=cached, folder=f"{cached}", **options)
        trainer.train()
        counts.append(dict(trainer.encoder.cut_rows))
    assert counts[0] == counts[1] and counts[0]["document"] > 0


def test_a_schedule_follows_the_share_of_training_that_is_done(make):
    objective = replace(JOINT, schedule={"late.weight": [[0.0, 0.0], [0.5, 1.0], [1.0, 3.0]]})
    for cached in (False, True):
        trainer = make("bert", LORA, {}, objective, cached=cached, max_steps=4, folder=f"{cached}")
        trainer.train()
        steps = [line for line in lines(trainer) if "loss" in line]
        assert len(steps) == 4
        for line, weight in zip(steps, (0.0, 0.5, 1.0, 2.0), strict=True):
            assert line["loss"] == pytest.approx(line["loss/pooled"] + weight * line["loss/late"], rel=1e-3)


def test_cached_batches_are_made_in_data_workers_too(make):
    trainer = make("qwen3vl", LORA, cached=True, chunk_rows=2, dataloader_num_workers=1)
    trainer.train()
    assert trainer.state.global_step == 2


def test_pages_are_cached_in_chunks_of_their_own_rows(make):
    trainer = make("qwen3vl", LORA, cached=True, chunk_rows=2, per_device_train_batch_size=12, max_steps=1)
    seen = forwards(trainer)
    trainer.train()
    assert max(rows for _, rows in seen) == 2 and sum(rows for _, rows in seen) == 2 * 24 - 2  # but one, twice
    assert len(pages().corpus) == 12


# -- what is refused


def test_a_batch_that_the_ranks_do_not_draw_is_refused(make):
    with pytest.raises(ValueError, match=r"objective.batch: is 16, but 1 processes draw 4 pairs .*per_device"):
        make("bert", LORA, {}, replace(JOINT, batch=16))


@pytest.mark.parametrize("optim", ["lomo", "galore_adamw_layerwise"])
def test_optimizers_that_step_within_a_backward_are_refused(optim, make):
    with pytest.raises(TrainingStopped, match=f"optim {optim} moves the weights during a backward"):
        make("bert", LORA, cached=True, optim=optim)


def test_a_loss_that_is_no_number_stops_before_any_gradient(make):
    trainer = make("bert", LORA, cached=True)
    poisoned = next(p for n, p in trainer.encoder.named_parameters() if "embeddings.LayerNorm.bias" in n)
    with torch.no_grad():
        poisoned.fill_(float("nan"))
    with pytest.raises(TrainingStopped, match=r"step 1: the loss is nan .*lower the learning rate"):
        trainer.train()
    assert all(p.grad is None for p in trainer.encoder.parameters())


def test_a_tensor_that_gets_no_gradient_is_named_under_caching(make):
    """The head of a pooled-only loss: the check looks at gradients in every chunk's backward."""
    pooled = ObjectiveBlock(TermBlock(1.0, 0.05), TermBlock(0.0), TermBlock(0.0))
    with pytest.raises(TrainingStopped, match=r"received no gradient \(head\."):
        make("bert", LORA, HEAD, pooled, cached=True).train()
