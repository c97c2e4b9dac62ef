"""Compute the memory that a recipe requires under a launch file, by part of one rank, and whether it fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from smart_train.planning import estimates
from smart_train.planning.estimates import Engine, Rows, States
from smart_train.planning.launch_files import Launch
from smart_train.planning.memory_model import MemoryModel
from smart_train.training.trainer import KEEP_LAST_GRAPH

CONTEXT = 1 << 30  # bytes of a GPU beside our tensors: CUDA's context, its libraries, NCCL's buffers; an assumption
CLOSE = 0.9  # share of the memory above which it may not fit: allocators leave gaps, activations are estimates
Verdict = Literal["fits", "close", "does not fit", "unknown"]


@dataclass(frozen=True)
class MemoryRequirement:
    """Bytes of one rank under one launch file.

    activations (with the widest moment of a block), embeddings, logits: each at its largest; peak: the largest sum,
    states and context included (with gradient caching activations and logits hardly overlap)
    ram: of one machine, offloaded; gathers, traffic: received in a step, embeddings and weights
    """

    launch: str
    engine: Engine
    gpus: int
    ranks: int
    states: States
    activations: int
    embeddings: int
    logits: int
    peak: int
    ram: int
    gathers: int
    traffic: int
    notes: tuple[str, ...]

    def verdict(self, memory: int | None, ram: int | None = None) -> Verdict:
        """Return whether it fits. memory: bytes of a GPU; ram: of a machine, for offloading; None = not known"""
        if memory is None:
            return "unknown"
        share = max(self.peak / memory, self.ram / ram if ram else 0.0)
        return "does not fit" if share > 1 else "close" if share > CLOSE else "fits"


def memory_requirement(model: MemoryModel, launch: Launch, gpus: int) -> MemoryRequirement:
    """Compute the bytes of one rank under a launch file. gpus: of one machine"""
    ranks, engine = launch.ranks(gpus), launch.engine(gpus, model.half, model.base.hidden)
    rows, states = model.rows(ranks), estimates.states(model.weights, engine)
    tiles = 0 if model.on_cpu or not rows.uses_tokens else estimates.TILES
    parts = estimates.loss_embeddings(rows)
    embeddings = sum(parts.values()) + tiles
    kept, besides = model.activations(engine, ranks)
    logits, left = _logits(model, rows)
    # while the loss is computed; while MaxSim goes backward; while the own rows' gradients are made of what it gave
    computed, maxsim = embeddings - parts["gradients"] - parts["sorting"] + logits, embeddings + left
    at_loss = max(computed, maxsim, 2 * parts["own"] + parts["gradients"])
    if not model.cached or (rows.pairs <= KEEP_LAST_GRAPH and engine.kind == "ddp"):
        at_loss += kept  # the graph of what goes backward first
    backward = estimates.own_embeddings(rows) + kept + besides
    context = 0 if model.on_cpu else CONTEXT
    return MemoryRequirement(
        launch=launch.name,
        engine=engine,
        gpus=gpus,
        ranks=ranks,
        states=states,
        activations=kept + besides,
        embeddings=embeddings,
        logits=logits,
        peak=states.total + context + max(at_loss, backward, states.step),
        ram=states.ram * launch.ranks_per_machine(gpus),
        gathers=_gathers(model, rows),
        traffic=estimates.weights_volume(model.weights, engine, _forwards(model, rows)) if ranks > 1 else 0,
        notes=tuple(_notes(model, launch, engine, ranks, gpus)),
    )


def _logits(model: MemoryModel, rows: Rows) -> tuple[int, int]:
    cuts = len(model.recipe.model.matryoshka), len(model.recipe.late.matryoshka)
    scores, terms = model.joint.matrices(*cuts)
    return estimates.logits(rows, max(1, scores), terms)


def _gathers(model: MemoryModel, rows: Rows) -> int:
    joint = model.joint
    cuts = {"pooled": len(model.recipe.model.matryoshka), "late": len(model.recipe.late.matryoshka)}
    exchanging = [term for term in joint.terms if "labels.all_ranks" in term.reads]
    return estimates.gather_volume(
        rows,
        columns=sum(1 + cuts.get(term.matryoshka or "", 0) for term in exchanging),
        once="labels.query_repeats" in joint.reads,
        trained_pooled=model.recipe.adapter.kind != "frozen",
    )


def _forwards(model: MemoryModel, rows: Rows) -> int:
    """Return the number of forwards of a step, of one rank."""
    chunks = sum(-(-count // model.chunk(*side)) for count, *side in model.inputs(rows))
    return chunks * (2 if model.cached else 1)


def _notes(model: MemoryModel, launch: Launch, engine: Engine, ranks: int, gpus: int) -> Iterator[str]:
    """Yield what would stop the run, or make it differ from the table."""
    batch, group = model.recipe.objective.batch, model.recipe.objective.gather_group
    if launch.kind == "MULTI_CPU":
        yield "accelerate starts one process for MULTI_CPU, whatever num_processes says; take launch/cpu.yaml"
    if model.on_cpu and engine.kind == "fsdp":
        yield "accelerate has FSDP on accelerators only: on a CPU this is DDP"
    if launch.processes and launch.processes > gpus * launch.machines and not model.on_cpu:
        yield f"it starts {launch.processes} processes, and there are {gpus * launch.machines} GPUs"
    if batch and batch % ranks:
        yield f"objective.batch {batch} cannot be shared by {ranks} ranks; write a multiple of {ranks}"
    if group and model.recipe.objective.gather and ranks % group:
        yield f"objective.gather_group {group} does not divide {ranks} ranks"
    if model.recipe.model.quantisation != "none" and (engine.kind == "fsdp" or engine.stage == 3):
        yield "it shards weights, and quantised ones cannot be sharded; use DDP or ZeRO-2"
    if engine.kind == "zero" and not model.half and model.stored_half:
        yield "DeepSpeed refuses half-precision weights unless training.bf16 is true; set it, or model.dtype: float32"
