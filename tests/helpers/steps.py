"""What the tests of cached steps share: settings of the loss by name, small collections, and gradients by parameter."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import tiny_data
from torch import Tensor, nn

from smart_train.config.schema import (
    Component,
    CompressionBlock,
    HybridBlock,
    ObjectiveBlock,
    ReductionBlock,
    SelfDistillationBlock,
    TeacherBlock,
    TermBlock,
)
from smart_train.core.embeddings import Batch, Embeddings, Features
from smart_train.data.collection import Collection, Document
from smart_train.training.loss_step import LossStep
from smart_train.training.trainer import SmartTrainer

ON, OFF = TermBlock(1.0, 0.05), TermBlock(0.0, 0.05)
JOINT = ObjectiveBlock(ON, ON, OFF)
OBJECTIVES: dict[str, ObjectiveBlock] = {
    "joint": JOINT,
    "pooled": ObjectiveBlock(ON, OFF, OFF),
    "late": ObjectiveBlock(OFF, TermBlock(1.0, 0.03), OFF),
    "hybrid": ObjectiveBlock(OFF, OFF, TermBlock(1.0, 0.1)),
    "all three": ObjectiveBlock(ON, TermBlock(0.5, 0.03), TermBlock(2.0, 0.1)),
    "symmetric": replace(JOINT, symmetric=True),
    "hardness": replace(JOINT, hardness=2.0),
    "false negatives": replace(JOINT, false_negatives=0.9),
    "margin": replace(JOINT, margin=0.1),
    "graded": replace(JOINT, graded=True),
    "sigmoid": replace(JOINT, loss="sigmoid"),
    "self-distillation": replace(JOINT, self_distillation=SelfDistillationBlock(0.5, 0.05)),
    "ensemble": replace(JOINT, self_distillation=SelfDistillationBlock(0.5, 0.05, 0.1, "bge_m3", teacher=0.3)),
    "teacher, each view": replace(JOINT, teacher=TeacherBlock(0.7, 0.05, score="each", normalise="zscore")),
    "soft": replace(JOINT, reduction=ReductionBlock("soft", 0.1)),
    "top two": replace(JOINT, reduction=ReductionBlock("topk", k=2)),
    "compressed": replace(JOINT, compression=CompressionBlock([2], "kmeans", [8])),
    "teacher, kl": replace(JOINT, teacher=TeacherBlock(0.7, 0.05)),
    "teacher, margins": replace(JOINT, teacher=TeacherBlock(0.7, 1.0, "margin_mse", score="late")),
    "regularised": replace(JOINT, diversity=0.3, overlap=0.2),
    "a term of one's own": replace(JOINT, terms=[Component("own_terms:HardestNegative", {"margin": 0.3})]),
    "neighbouring pages": replace(JOINT, neighbour_pages=1),
    "scheduled": replace(JOINT, schedule={"late.weight": [[0.0, 0.2], [1.0, 1.0]], "diversity": [[0.0, 0.1]]}),
}
"""Every named setting of the loss."""

TRAINING = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
}
"""A short, quiet run."""


def texts(teacher: bool = True) -> Collection:
    """24 queries and passages; every fourth query has a second answer of grade 2, every second a hard negative."""
    corpus = {f"d{n}": Document(f"d{n}", tiny_data.passage(n)) for n in range(24)}
    queries = {f"q{n}": f"what stands beside the {tiny_data.TOPICS[n]}" for n in range(24)}
    qrels = {f"q{n}": {f"d{n}": 1} | ({f"d{(n + 1) % 24}": 2} if n % 4 == 0 else {}) for n in range(24)}
    found = Collection("texts", corpus, queries, qrels, {f"q{n}": [f"d{(n + 3) % 24}"] for n in range(0, 24, 2)})
    if teacher:
        found.teacher = {f"q{n}": {f"d{m}": 0.9 - 0.03 * abs(n - m) for m in range(24)} for n in range(24)}
    return found


def pages() -> Collection:
    """12 pages of unequal size, the last four with a text beside them."""
    corpus = {f"d{n}": Document(f"d{n}", image=tiny_data.draw_page(n)) for n in range(8)}
    corpus |= {f"d{n}": Document(f"d{n}", tiny_data.passage(n), tiny_data.draw_page(n)) for n in range(8, 12)}
    queries = {f"q{n}": f"the page about {tiny_data.TOPICS[n]}" for n in range(12)}
    return Collection("pages", corpus, queries, {f"q{n}": {f"d{n}": 1} for n in range(12)})


def step(objective: ObjectiveBlock, progress: float = 0.3) -> LossStep:
    made = LossStep(objective, HybridBlock())
    made.progress = progress
    return made


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def lines(trainer: SmartTrainer) -> list[dict]:
    """What a trainer has logged."""
    path = Path(trainer.args.output_dir).parent / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def taken(model: nn.Module) -> dict[str, Tensor]:
    """The gradients of what trains, which are then set to None."""
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def plain(model: Callable[[Features], Embeddings], batch: Batch, objective: ObjectiveBlock) -> Tensor:
    """One graph over all chunks, backward; returns the loss."""
    both = Embeddings.cat(model(chunk) for chunk in [*batch.queries, *batch.documents])
    loss = step(objective).loss(both, batch).total
    loss.backward()
    return loss.detach()


def assert_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    """Of the same tensors; every entry to ``tolerance``, or that share of the largest gradient if that is above 1."""
    assert found.keys() == expected.keys() and len(expected) > 0
    scale = max(float(g.abs().max()) for g in expected.values())
    assert scale > 1e-2, "nothing to compare"
    worst = max(expected, key=lambda name: float((found[name] - expected[name]).abs().max()))
    off = float((found[worst] - expected[worst]).abs().max()) / max(1.0, scale)
    assert off <= tolerance, f"{worst}: off by {off:.1e}, largest gradient {scale:.1e}"
