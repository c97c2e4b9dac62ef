"""FSDP2's optimizer to and from one file, whole (what transformers writes in its place has the frozen weights, too);
and its weights back in shares.

Knows: torch's distributed state dicts.  Does not know: checkpoints' folders, accelerate, encoders.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule


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
