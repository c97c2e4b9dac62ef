"""What a recipe needs under a launch file, part by part, in bytes of one rank; and whether that fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from smart_train.planning import estimates
from smart_train.planning.estimates import Engine, Rows, States
from smart_train.planning.launch_files import Launch
from smart_train.planning.memory_model import Subject
from smart_train.training.trainer import KEEP_LAST_GRAPH

CONTEXT = 1 << 30  # bytes of a GPU beside our tensors: CUDA's context, its libraries, NCCL's buffers; an assumption
CLOSE = 0.9  # share of the memory from which "fits" is too much said: allocators leave gaps, activations are estimates
Verdict = Literal["fits", "close", "does not fit", "unknown"]


@dataclass(frozen=True)
class Need:
    """Bytes of one rank under one launch file.

    activations (with the widest moment of a block), embeddings, logits: each at its most; peak: the most at once,
    states and context included (with gradient caching activations and logits are hardly there together)
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
        """memory: bytes of a GPU; ram: of the machine, for what is offloaded; None = not known."""
        if memory is None:
            return "unknown"
        share = max(self.peak / memory, self.ram / ram if ram else 0.0)
        return "does not fit" if share > 1 else "close" if share > CLOSE else "fits"


def need(subject: Subject, launch: Launch, gpus: int) -> Need:
    """gpus: of one machine."""
    ranks, engine = launch.ranks(gpus), launch.engine(gpus, subject.half, subject.base.hidden)
    rows, states = subject.rows(ranks), estimates.states(subject.weights, engine)
    tiles = 0 if subject.on_cpu or not rows.uses_tokens else estimates.TILES
    parts = estimates.loss_embeddings(rows)
    embeddings = sum(parts.values()) + tiles
    kept, besides = subject.activations(engine, ranks)
    logits, left = _logits(subject, rows)
    # while the loss is computed; while MaxSim goes backward; while the own rows' gradients are made of what it gave
    computed, maxsim = embeddings - parts["gradients"] - parts["sorting"] + logits, embeddings + left
    at_loss = max(computed, maxsim, 2 * parts["own"] + parts["gradients"])
    if not subject.cached or (rows.pairs <= KEEP_LAST_GRAPH and engine.kind == "ddp"):
        at_loss += kept  # the graph of what goes backward first
    backward = estimates.own_embeddings(rows) + kept + besides
    context = 0 if subject.on_cpu else CONTEXT
    return Need(
        launch=launch.name,
        engine=engine,
        gpus=gpus,
        ranks=ranks,
        states=states,
        activations=kept + besides,
        embeddings=embeddings,
        logits=logits,
        peak=states.total + context + max(at_loss, backward, states.step),
        ram=states.ram * launch.each(gpus),
        gathers=_gathers(subject, rows),
        traffic=estimates.weights_volume(subject.weights, engine, _forwards(subject, rows)) if ranks > 1 else 0,
        notes=tuple(_notes(subject, launch, engine, ranks, gpus)),
    )


def _logits(subject: Subject, rows: Rows) -> tuple[int, int]:
    cuts = len(subject.recipe.model.matryoshka), len(subject.recipe.late.matryoshka)
    scores, terms = subject.joint.matrices(*cuts)
    return estimates.logits(rows, max(1, scores), terms)


def _gathers(subject: Subject, rows: Rows) -> int:
    joint = subject.joint
    cuts = {"pooled": len(subject.recipe.model.matryoshka), "late": len(subject.recipe.late.matryoshka)}
    exchanging = [term for term in joint.terms if "labels.all_ranks" in term.reads]
    return estimates.gather_volume(
        rows,
        columns=sum(1 + cuts.get(term.matryoshka or "", 0) for term in exchanging),
        once="labels.query_repeats" in joint.reads,
        trained_pooled=subject.recipe.adapter.kind != "frozen",
    )


def _forwards(subject: Subject, rows: Rows) -> int:
    """Of a step and rank."""
    chunks = sum(-(-count // subject.chunk(*side)) for count, *side in subject.sides(rows))
    return chunks * (2 if subject.cached else 1)


def _notes(subject: Subject, launch: Launch, engine: Engine, ranks: int, gpus: int) -> Iterator[str]:
    """What would stop the run, or make it another one than the table says."""
    batch, group = subject.recipe.objective.batch, subject.recipe.objective.gather_group
    if launch.kind == "MULTI_CPU":
        yield "accelerate starts one process for MULTI_CPU, whatever num_processes says; take launch/cpu.yaml"
    if subject.on_cpu and engine.kind == "fsdp":
        yield "accelerate has FSDP on accelerators only: on a CPU this is DDP"
    if launch.processes and launch.processes > gpus * launch.machines and not subject.on_cpu:
        yield f"it starts {launch.processes} processes, and there are {gpus * launch.machines} GPUs"
    if batch and batch % ranks:
        yield f"objective.batch {batch} cannot be shared by {ranks} ranks; write a multiple of {ranks}"
    if group and subject.recipe.objective.gather and ranks % group:
        yield f"objective.gather_group {group} does not divide {ranks} ranks"
    if subject.recipe.model.quantisation != "none" and (engine.kind == "fsdp" or engine.stage == 3):
        yield "it cuts weights up, and those of model.quantisation can't be; take DDP or ZeRO-2"
    if engine.kind == "zero" and not subject.half and subject.stored_half:
        yield "DeepSpeed refuses half-precision weights unless training.bf16 is true; set it, or model.dtype: float32"
