"""Whole weights out of an engine that has cut them up: what is saved.

    ZeRO-3   every parameter is one rank's share of it, flat; empty to who looks
    FSDP2    every parameter is a DTensor

Knows: DeepSpeed's and torch's shards, the encoder's parts.  Does not know: files, training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from smart_train.model.encoder import SmartEncoder
from smart_train.training.fsdp import resharded


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
