"""What a rank of scaling.py measures: bytes that its sockets receive, bytes that torch holds, CPU seconds.

Embeddings are drawn, as the encoder would give them: what is measured comes behind the backbone, by the function that
training calls (training/loss_step.py).  ``steps`` runs a real encoder under DDP.
"""

from __future__ import annotations

import ctypes
import gc
import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from saved_tensors import peak_bytes

from smart_train.config.schema import AdapterBlock, HybridBlock, LateBlock, ModelBlock, ObjectiveBlock, TermBlock
from smart_train.core.embeddings import Batch, Embeddings, KnownPositives, Tokens
from smart_train.distributed import gather
from smart_train.training.loss_step import LossStep

RECEIVED = 128  # bytes into Linux's struct tcp_info: tcpi_bytes_received, 64 bits


@dataclass(frozen=True)
class Case:
    """One rank's share of a step: B pairs with as many documents, Q and T tokens a row, widths D and d.

    half: tokens are gathered and compared in bfloat16; late: False = pooled vectors alone; group: as gather_group
    what: volume, memory, time; slices: bytes that cross at once, as distributed/gather.py's SLICE
    """

    name: str
    pairs: int
    query: int
    document: int
    pooled: int
    width: int
    half: bool = False
    late: bool = True
    group: int | None = None
    what: tuple[str, ...] = ("volume", "memory")
    slices: int = 1 << 20  # rows are a hundredth of a large run's, and so are the buffers beside them
    repeats: int = 3

    @property
    def objective(self) -> ObjectiveBlock:
        return ObjectiveBlock(late=TermBlock(1.0 if self.late else 0.0), gather_group=self.group)


# Counters ------------------------------------------------------------------------------------------------------------


def received() -> int:
    """Bytes that this process's TCP connections have received so far: what gloo really moves, its headers included."""
    return sum(_received(int(entry.name)) for entry in list(Path("/proc/self/fd").iterdir()))


def _received(number: int) -> int:
    """Of one open file; 0 where it is no TCP connection, or gone since."""
    with suppress(OSError):
        copied = os.dup(number)  # closing it closes nothing of gloo's
        try:
            one = socket.socket(fileno=copied)
        except OSError:
            os.close(copied)
            return 0
        with one:
            found = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, RECEIVED + 8)
        return int(struct.unpack_from("=Q", found, RECEIVED)[0]) if len(found) == RECEIVED + 8 else 0
    return 0


def resident() -> int:
    """Bytes of the highest resident memory since it was last reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def resident_peak(run: Callable[[], Any]) -> int:
    """Bytes of resident memory that ``run`` adds at most, gloo's own buffers included."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier runs freed and the C library kept would be used again, uncounted
    Path("/proc/self/clear_refs").write_text("5")
    before = resident()
    run()
    return resident() - before


# A step behind the backbone ------------------------------------------------------------------------------------------


def drawn(rows: int, length: int, case: Case, seed: int) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    pooled = F.normalize(torch.randn(rows, case.pooled, generator=generator), dim=-1)
    values = F.normalize(torch.randn(rows * length, case.width, generator=generator), dim=-1)
    return Embeddings(pooled, Tokens(values, torch.full((rows,), length)))


def leaves(case: Case, documents: int) -> Embeddings:
    """The queries' rows, then the documents', as the encoder gives them."""
    sides = drawn(case.pairs, case.query, case, 1), drawn(documents, case.document, case, 2 + dist.get_rank())
    both = Embeddings.cat(sides)
    both.pooled.requires_grad_()
    both.tokens.values.requires_grad_()
    return both


def labels(pairs: int, documents: int, rank: int) -> Batch:
    """Every query has the answer of its number, and all documents differ."""
    own = torch.arange(documents) + 1_000_000 * rank
    keys = torch.stack([own + 1, own + 1, torch.zeros_like(own), -torch.ones_like(own)], 1)
    known = KnownPositives(keys[:pairs], torch.ones(pairs), torch.ones(pairs, dtype=torch.int64))
    positives = torch.arange(pairs).unsqueeze(1).expand(pairs, 2).contiguous()
    return Batch([], [], own[:pairs], keys, known, positives)


def made(case: Case, alone: int = 0) -> Callable[[], Any]:
    """What runs one step: forward of the loss and backward.  alone: nothing is gathered, and there are so many
    documents here."""
    objective = replace(case.objective, gather=not alone)
    step = LossStep(objective, HybridBlock(), dtype=torch.bfloat16 if case.half else None)
    documents = alone or case.pairs
    both, batch = leaves(case, documents), labels(case.pairs, documents, dist.get_rank())

    def run() -> LossStep:
        both.pooled.grad = both.tokens.values.grad = None  # so that its memory is counted anew
        step.loss(both, batch).total.backward()
        return step

    return run


def measure(cases: list[Case]) -> list[dict[str, Any]]:
    """One dict a case; every rank goes through them at the same time."""
    found = []
    for case in cases:
        gather.SLICE = case.slices
        run = made(case)
        run()  # what is allocated once
        one: dict[str, Any] = {}
        if "volume" in case.what:
            one |= _volume(case, run)
        if "memory" in case.what:
            dist.barrier()
            one["torch"] = peak_bytes(made(case))
            run = made(case)  # without gradients of an earlier run
            dist.barrier()
            one["resident"] = resident_peak(run)
        if "time" in case.what:
            one["whole"] = _seconds(run, case.repeats)
            group = case.group or dist.get_world_size()
            one["loss"] = _seconds(made(case, alone=group * case.pairs), case.repeats)
        found.append(one)
        dist.barrier()
    return found


def _volume(case: Case, run: Callable[[], LossStep]) -> dict[str, int]:
    """counted: as the log's gather/MiB; wire: of the sockets, with what ``shares`` and the barrier send."""
    dist.barrier()
    run().gather.take_bytes()
    dist.barrier()
    before = received()
    counted = run().gather.take_bytes()
    dist.barrier()
    wire = received() - before
    return {"counted": counted, "wire": wire, "forward": _forward_wire(case)}


def _forward_wire(case: Case) -> int:
    """The same of the gathers alone, without a backward."""
    step = LossStep(case.objective, HybridBlock(), dtype=torch.bfloat16 if case.half else None)
    both, batch = leaves(case, case.pairs), labels(case.pairs, case.pairs, dist.get_rank())
    dist.barrier()
    before = received()
    step.loss(both, batch)
    dist.barrier()
    return received() - before


def _seconds(run: Callable[[], Any], repeats: int) -> float:
    """CPU seconds of this process, gloo's threads included; the median."""
    run()
    spent = []
    for _ in range(repeats):
        dist.barrier()
        begun = time.process_time()
        run()
        spent.append(time.process_time() - begun)
    return median(spent)


# A step with its backbone --------------------------------------------------------------------------------------------


def steps(base: str, sizes: list[int], lengths: tuple[int, int], repeats: int) -> dict[str, Any]:
    """CPU seconds of forward, gather, loss and backward for each number of pairs; bytes of gradients that crossed, and
    of the weights that have them."""
    from torch.nn.parallel import DistributedDataParallel

    from smart_train.models.encoder import SmartEncoder

    model = ModelBlock(attention="eager", dropout=0.0)
    encoder = SmartEncoder(base, model=model, late=LateBlock(), adapter=AdapterBlock(), device="cpu").train()
    trained = sum(p.numel() * p.element_size() for p in encoder.parameters() if p.requires_grad)
    several = dist.get_world_size() > 1
    wrapped: Any = DistributedDataParallel(encoder) if several else encoder
    step, found = LossStep(ObjectiveBlock(), HybridBlock()), {}
    for pairs in sizes:
        batch = labels(pairs, pairs, dist.get_rank())
        chunks = [features(pairs, length) for length in lengths]

        def run(chunks=chunks, batch=batch) -> None:
            step.loss(wrapped([dict(chunk) for chunk in chunks]), batch).total.backward()

        found[pairs] = _seconds(run, repeats)
    step.gather.take_bytes()
    dist.barrier()
    before = received()
    run()
    dist.barrier()
    crossed = received() - before
    return {"seconds": found, "trained": trained, "wire": crossed, "gathered": step.gather.take_bytes()}


def features(rows: int, length: int) -> dict[str, Any]:
    """Token numbers of whole words, no padding."""
    generator = torch.Generator().manual_seed(length + dist.get_rank())
    ids = torch.randint(2000, 20000, (rows, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
