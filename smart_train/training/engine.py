"""Describe the engine that accelerate launched (DDP, DeepSpeed, FSDP or none) for training steps and checkpoints.

``Engine`` runs a step chunk by chunk.  ``full_state_dict`` and ``collected`` give whole weights where the engine has
sharded them, for saving.  ``save_optimizer`` and ``load_optimizer`` keep FSDP2's optimizer in one file: what
transformers writes in its place holds the frozen weights as well.
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
from smart_train.core.environment import world
from smart_train.core.errors import TrainingStopped
from smart_train.models.encoder import SmartEncoder
from smart_train.models.hidden_states import is_vision
from smart_train.models.microbatches import rows_of


class Engine:
    """The engine that accelerate launched, as a step of several chunks sees it.

    deepspeed, fsdp: which it is (neither = DDP or one process)
    sharded: weights are collected in every forward
    by_kind: ranks must run as many chunks with images, and as many without, not only as many in all
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
        """Return the numbers of the chunks in the order to run them.

        Some come twice where this rank has fewer chunks than another and the engine needs as many from every rank.  (In
        a plain pass only a sharded forward does; in a cached step each backward is a reduction under DeepSpeed.)
        Raises TrainingStopped, on every rank, where one rank has no image chunk, or no text chunk, to repeat.
        """
        if not (self.sharded or (self.deepspeed and cached)) or self.accelerator.num_processes == 1:
            return list(range(len(chunks)))
        kinds = ["pixel_values" in chunk if self.by_kind else False for chunk in chunks]
        counts = [kinds.count(False), kinds.count(True)]
        most, least = self._extremes(counts)
        for what, high, low in zip(("text", "image"), most, least, strict=True):
            if high and not low:
                raise TrainingStopped(
                    f"one rank's batch has {high} {what} chunks and another's has none, which {self.name} cannot run "
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
        """Return whether weights are in half precision outside steps too; under DDP autocast is on in steps only."""
        return (self.deepspeed or self.fsdp) and self.accelerator.mixed_precision != "no"

    @property
    def name(self) -> str:
        """Return the engine's name, for the log, messages and checkpoint.json."""
        if self.deepspeed:
            return f"DeepSpeed ZeRO-{self.stage}"
        if self.fsdp:
            return "FSDP2" if self.accelerator.is_fsdp2 else "FSDP"
        return "DDP" if self.accelerator.num_processes > 1 else "one process, no engine"

    def describe(self) -> list[str]:
        """Return log lines: processes, device and engine, and where that is not what was launched."""
        count, device = self.accelerator.num_processes, self.accelerator.device.type
        device = "CPU" if device == "cpu" else device
        lines = [f"{count} processes on {device}, {self.name}" if count > 1 else f"1 process on {device}{self._alone}"]
        if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and not self.fsdp:
            lines.append(
                "FSDP was launched, but accelerate supports it on several accelerators only (not on a CPU, nor with "
                f"one process): this run is {self.name}, and every process holds all weights"
            )
        if self.deepspeed and self.head:
            lines.append(
                "max_grad_norm: DeepSpeed clips the gradients of the head and of the rest by one common norm; other "
                "engines clip each by its own"
            )
        return lines

    @property
    def _alone(self) -> str:
        return f", {self.name}" if self.deepspeed or self.fsdp else ", not distributed"

    @contextmanager
    def around(self, model: nn.Module, last: bool) -> Iterator[None]:
        """Run the forward and backward of one chunk of a cached step within this block: gradients cross ranks, and
        DeepSpeed steps, with the last chunk only, and only if it ends the accumulation as well."""
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
        """Run a scalar's backward through the engine or the fp16 scaler.  It is divided by the accumulation already."""
        if self.deepspeed:
            options["scale_wrt_gas"] = False
        self.accelerator.backward(value, **options)


def _keep_dtype(plugin: Any) -> None:
    """Keep FSDP2 from rounding what a forward returns to the half precision of its weights: the embeddings have length
    1 in float32."""
    policy = plugin.mixed_precision_policy
    if getattr(policy, "output_dtype", None) is not None:
        plugin.mixed_precision_policy = replace(policy, output_dtype=None)


def is_sharded(args: TrainingArguments) -> bool:
    """Return whether the launch's engine will shard the weights (ZeRO-3, FSDP); known before there is an engine."""
    fsdp = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" or bool(getattr(args, "fsdp", None))
    return is_deepspeed_zero3_enabled() or (fsdp and args.device.type != "cpu" and args.world_size > 1)


def uses_engine(args: TrainingArguments) -> bool:
    """Return whether DeepSpeed or FSDP was asked for, in the arguments or by the launch."""
    launched = any(os.environ.get(f"ACCELERATE_USE_{n}", "").lower() == "true" for n in ("DEEPSPEED", "FSDP"))
    return launched or bool(args.deepspeed) or bool(args.fsdp)


def check_quantised(args: TrainingArguments, quantisation: str) -> None:
    """Raise TrainingStopped where an engine would shard weights of 4 bits, which it takes for numbers."""
    if quantisation != "none" and is_sharded(args):
        raise TrainingStopped(
            f"model.quantisation {quantisation} with ZeRO-3 or FSDP: weights in 4 bits cannot be sharded; launch with "
            "DDP or ZeRO-2, which they are small enough for, or write model.quantisation: none"
        )


def prepare_deepspeed(deepspeed: bool) -> None:
    """Prepare DeepSpeed's start; call it before TrainingArguments are made.

    On a machine without GPUs, DeepSpeed would compile its own exchange through shared memory for a minute and a half,
    and end where there is no compiler, though gloo does the same.  And every process would warn in every step of the
    names by which it calls torch's collectives.

    deepspeed: whether the recipe names a DeepSpeed configuration; otherwise the launcher may
    """
    if not (deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"):
        return
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    if not torch.cuda.is_available():
        from deepspeed.ops import __compatible_ops__

        __compatible_ops__["deepspeed_shm_comm"] = False


def restore_order(both: Embeddings, order: Sequence[int], chunks: Sequence[Features]) -> Embeddings:
    """Return rows that came in the order of a plan in the order of the chunks, without repetitions."""
    if list(order) == list(range(len(chunks))):
        return both
    starts: dict[int, int] = {}
    at = 0
    for number in order:
        starts.setdefault(number, at)
        at += rows_of(chunks[number])
    return both.select([starts[n] + row for n in range(len(chunks)) for row in range(rows_of(chunks[n]))])


def check_launched(args: TrainingArguments) -> None:
    """Raise TrainingStopped where the processes of a launch do not know of each other: each would train by itself."""
    if world() != args.world_size:
        raise TrainingStopped(
            f"{world()} processes were launched, but this one sees {args.world_size}: each would train by itself; "
            "on a CPU, write training.use_cpu=true, and launch with launch/cpu.yaml (MULTI_CPU starts one)"
        )


# -- whole weights


@contextmanager
def full_state_dict(encoder: SmartEncoder, keep: bool) -> Iterator[dict[str, Tensor]]:
    """Collect the trained parameters by name, whole, on the CPU (every parameter, where all are trained).

    Within the block, the modules after the transformer (pooling, dense layers) are whole in place, so that they can be
    saved.  Every rank must enter the block, since each tensor is collected from all of them, one at a time: it takes
    the memory of the trained weights once.  keep: False on ranks that write nothing; their dictionary is empty.
    """
    reshard(encoder)
    full = encoder.adapter is not None and encoder.adapter.kind == "full"
    state: dict[str, Tensor] = {}
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad or (full and name.startswith("st.0.")):
            with collected(parameter) as tensor:
                if keep:
                    state[name] = tensor.detach().to("cpu", copy=True)
    if full and keep:
        state |= {n: b.detach().cpu() for n, b in encoder.named_buffers() if n in encoder.state_dict()}
    later = [
        (module, name)
        for module in list(encoder.st)[1:]
        for module in module.modules()
        for name in _own_parameters(module)
    ]
    kept = {place: place[0]._parameters[place[1]] for place in later}
    try:
        for module, name in later:
            with collected(kept[module, name]) as tensor:
                module._parameters[name] = nn.Parameter(tensor.detach().to("cpu", copy=True), requires_grad=False)
        yield state
    finally:
        for (module, name), share in kept.items():
            module._parameters[name] = share


def _own_parameters(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters(recurse=False)]


@contextmanager
def collected(parameter: nn.Parameter | None) -> Iterator[Tensor]:
    """Collect one parameter for the length of the block; every rank must enter it."""
    assert parameter is not None
    if isinstance(parameter, DTensor):
        yield full_tensor(parameter)
        return
    gathering = nullcontext()
    if hasattr(parameter, "ds_id"):
        from deepspeed.runtime.zero import GatheredParameters

        gathering = GatheredParameters([parameter])
    with gathering, torch.no_grad():
        yield parameter


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a sharded tensor whole, others as they are; every rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


# -- FSDP2


def save_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, file: Path, write: bool) -> None:
    """Save the optimizer's states by parameter name, collected on rank 0 in main memory; every rank must call it.

    write: whether this rank writes the file.  Any number of processes can load it.
    """
    reshard(model)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    found = get_optimizer_state_dict(model, optimizer, options=options)
    if write:
        torch.save(found, file)


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Load an optimizer: every rank reads the file and keeps its share."""
    stored: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    options = StateDictOptions(full_state_dict=True, ignore_frozen_params=True)
    set_optimizer_state_dict(model, optimizer, stored, options=options)


def reshard(model: nn.Module) -> None:
    """Free the whole weights that a forward without a backward leaves behind, in the dtype they compute in, so that
    what is read or written next are the shares.  Does nothing without FSDP."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
