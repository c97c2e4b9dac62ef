"""FSDP2's optimizer to and from one file, whole (what transformers writes in its place has the frozen weights, too);
and its weights back in shares.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from smart_train.core.embeddings import Embeddings, Features
from smart_train.core.errors import TrainingStopped
from smart_train.models.encoder import SmartEncoder
from smart_train.models.hidden_states import is_vision
from smart_train.models.microbatches import rows_of


def save_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, file: Path, write: bool) -> None:
    """States by parameter name, collected on rank 0, in its main memory; every rank must call it.

    write: on the rank that writes.  Any number of processes can go on from the file.
    """
    resharded(model)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    found = get_optimizer_state_dict(model, optimizer, options=options)
    if write:
        torch.save(found, file)


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Every rank reads the file and keeps its share."""
    stored: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    options = StateDictOptions(full_state_dict=True, ignore_frozen_params=True)
    set_optimizer_state_dict(model, optimizer, stored, options=options)


def resharded(model: nn.Module) -> None:
    """Lets go of what a forward without a backward leaves whole (the outermost weights, in the dtype they compute in):
    what is read or written next are the shares.  Does nothing without FSDP."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


# Whole weights out of an engine that has cut them up: what is saved.


@contextmanager
def whole(encoder: SmartEncoder, keep: bool) -> Iterator[dict[str, Tensor]]:
    """The trained parameters by name, whole, on the CPU (every parameter, where all are trained); and while the block
    lasts, the modules after the transformer (pooling, dense layers) are whole in place, so that they can be saved.

    keep: on ranks that write nothing it is False and the dictionary is empty; but all ranks must come here, as each
    tensor is collected from all of them.  One is whole at a time: memory is the trained weights', once.
    """
    resharded(encoder)
    full = encoder.adapter is not None and encoder.adapter.kind == "full"
    state: dict[str, Tensor] = {}
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad or (full and name.startswith("st.0.")):
            with collected(parameter) as tensor:
                if keep:
                    state[name] = tensor.detach().to("cpu", copy=True)
    if full and keep:
        state |= {n: b.detach().cpu() for n, b in encoder.named_buffers() if n in encoder.state_dict()}
    later = [(module, name) for module in list(encoder.st)[1:] for module in module.modules() for name in own(module)]
    kept = {place: place[0]._parameters[place[1]] for place in later}
    try:
        for module, name in later:
            with collected(kept[module, name]) as tensor:
                module._parameters[name] = nn.Parameter(tensor.detach().to("cpu", copy=True), requires_grad=False)
        yield state
    finally:
        for (module, name), share in kept.items():
            module._parameters[name] = share


def own(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters(recurse=False)]


@contextmanager
def collected(parameter: nn.Parameter | None) -> Iterator[Tensor]:
    """One parameter, whole for the length of the block; every rank must come here."""
    assert parameter is not None
    if isinstance(parameter, DTensor):
        yield full(parameter)
        return
    gathering = nullcontext()
    if hasattr(parameter, "ds_id"):
        from deepspeed.runtime.zero import GatheredParameters

        gathering = GatheredParameters([parameter])
    with gathering, torch.no_grad():
        yield parameter


def full(tensor: Tensor) -> Tensor:
    """FSDP's tensors whole, others as they are; every rank must come here."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


# What the engines around a model ask of a step that runs it chunk by chunk: DDP, DeepSpeed, FSDP, or none.


class Engine:
    """The engine that accelerate launched, as a chunked step sees it.

    deepspeed, fsdp: which it is (neither = DDP or one process); sharded: weights are collected in every forward
    by_kind: chunks with and without images must agree among ranks one by one, not in number only
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module) -> None:
        self.accelerator = accelerator
        kind = accelerator.distributed_type
        self.deepspeed = kind == DistributedType.DEEPSPEED
        self.fsdp = kind == DistributedType.FSDP
        if self.fsdp:
            _keep_dtype(accelerator.state.fsdp_plugin)
        plugin = accelerator.state.deepspeed_plugin if self.deepspeed else None
        self.sharded = self.fsdp or (plugin is not None and plugin.zero_stage == 3)
        self.stage = plugin.zero_stage if plugin is not None else None
        # A trained vision tower has gradients to reduce in the backward of an image chunk only.
        vision = any(is_vision(name) for name, p in model.named_parameters() if p.requires_grad)
        self.by_kind = self.sharded or vision
        self.head = any(name.startswith("head.") for name, p in model.named_parameters() if p.requires_grad)

    def plan(self, chunks: Sequence[Features], cached: bool) -> list[int]:
        """Numbers of the chunks in the order of running; some twice, where this rank has fewer than another and the
        engine wants as many of everyone.  (In one plain pass only a sharded forward does; each backward of a cached
        step is a reduction under DeepSpeed.)

        Raises TrainingStopped, on every rank, where one has no image chunk, or no text chunk, to repeat.
        """
        if not (self.sharded or (self.deepspeed and cached)) or self.accelerator.num_processes == 1:
            return list(range(len(chunks)))
        kinds = ["pixel_values" in chunk if self.by_kind else False for chunk in chunks]
        counts = [kinds.count(False), kinds.count(True)]
        most, least = self._extremes(counts)
        for what, high, low in zip(("text", "image"), most, least, strict=True):
            if high and not low:
                raise TrainingStopped(
                    f"one rank's batch has {high} chunks of {what} and another's none, which {self.name} can't run "
                    "together; train on one kind of documents, or launch with DDP (--multi_gpu) instead"
                )
        order: list[int] = []
        for kind, high in zip((False, True), most, strict=True):
            own = [number for number, found in enumerate(kinds) if found == kind]
            order += own + own[-1:] * (high - len(own))
        return order

    def _extremes(self, counts: list[int]) -> tuple[list[int], list[int]]:
        table = torch.tensor([counts, [-count for count in counts]], device=self.accelerator.device)
        dist.all_reduce(table, op=dist.ReduceOp.MAX)
        most, least = table.tolist()
        return most, [-count for count in least]

    @property
    def half(self) -> bool:
        """Whether weights compute in half precision outside of a step, too; under DDP autocast is a step's alone."""
        return (self.deepspeed or self.fsdp) and self.accelerator.mixed_precision != "no"

    @property
    def name(self) -> str:
        """Which engine it is, for the log and for messages."""
        if self.deepspeed:
            return f"DeepSpeed ZeRO-{self.stage}"
        if self.fsdp:
            return "FSDP2" if self.accelerator.is_fsdp2 else "FSDP"
        return "DDP" if self.accelerator.num_processes > 1 else "one process, no engine"

    def told(self) -> list[str]:
        """For the log: how many processes, of which engine; and where that is not what was asked for."""
        lines = [f"{self.accelerator.num_processes} processes, {self.name}, {self.accelerator.device.type}"]
        if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and not self.fsdp:
            lines.append(
                "FSDP was asked for, but accelerate has it on accelerators only (not on a CPU, nor with one process): "
                f"this run is {self.name}, and every process holds all weights"
            )
        if self.deepspeed and self.head:
            what = "gradients of the head and of the rest by one norm of both; other engines clip each by its own"
            lines.append(f"max_grad_norm: DeepSpeed clips the {what}")
        return lines

    @contextmanager
    def around(self, model: nn.Module, last: bool) -> Iterator[None]:
        """Around the forward and backward of one chunk of a cached step: gradients cross ranks, and DeepSpeed steps,
        with the last only, and there only if the accumulation has come to its end, too."""
        state, synced = self.accelerator.gradient_state, self.accelerator.sync_gradients
        # DeepSpeed has its boundary.  FSDP2's no_sync ends in "sync", which an accumulation around must not hear.
        local = not last and not self.deepspeed and (synced or not self.accelerator.is_fsdp2)
        state._set_sync_gradients(last and synced)
        try:
            with self.accelerator.no_sync(model) if local else nullcontext():
                yield
        finally:
            state._set_sync_gradients(synced)

    def backward(self, value: Tensor, **options: Any) -> None:
        """A scalar's backward, through the engine or the fp16 scaler; the value has its share of the accumulation."""
        if self.deepspeed:
            options["scale_wrt_gas"] = False
        self.accelerator.backward(value, **options)


def _keep_dtype(plugin: Any) -> None:
    """accelerate has FSDP2 round whatever a forward returns to the half precision of its weights: the embeddings, whose
    lengths are 1 in float32."""
    policy = plugin.mixed_precision_policy
    if getattr(policy, "output_dtype", None) is not None:
        plugin.mixed_precision_policy = replace(policy, output_dtype=None)


def is_sharded(args: TrainingArguments) -> bool:
    """Whether the launch's engine will cut the weights up (ZeRO-3, FSDP); known before there is an engine."""
    fsdp = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" or bool(getattr(args, "fsdp", None))
    return is_deepspeed_zero3_enabled() or (fsdp and args.device.type != "cpu" and args.world_size > 1)


def check_quantised(args: TrainingArguments, quantisation: str) -> None:
    """Raises TrainingStopped where an engine would cut up weights of 4 bits: it takes them for numbers."""
    if quantisation != "none" and is_sharded(args):
        raise TrainingStopped(
            f"model.quantisation {quantisation} with ZeRO-3 or FSDP: weights in 4 bits can't be cut up; launch with "
            "DDP or ZeRO-2, which they are small enough for, or write model.quantisation: none"
        )


def ready(deepspeed: bool) -> None:
    """Before DeepSpeed starts: on a machine without GPUs it would compile its own exchange through shared memory for a
    minute and a half, and end where there is no compiler, though gloo does it as well; and every process would warn in
    every step of the names that it calls torch's collectives by.

    deepspeed: whether the recipe names a configuration of it; else the launcher says so
    """
    if not (deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"):
        return
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    if not torch.cuda.is_available():
        from deepspeed.ops import __compatible_ops__

        __compatible_ops__["deepspeed_shm_comm"] = False


def in_order(both: Embeddings, order: Sequence[int], chunks: Sequence[Features]) -> Embeddings:
    """Rows as they came out of a plan, in the order of the chunks, repetitions left out."""
    if list(order) == list(range(len(chunks))):
        return both
    starts: dict[int, int] = {}
    at = 0
    for number in order:
        starts.setdefault(number, at)
        at += rows_of(chunks[number])
    return both.select([starts[n] + row for n in range(len(chunks)) for row in range(rows_of(chunks[n]))])
