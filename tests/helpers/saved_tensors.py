"""What torch keeps for a backward, and the most it holds: the reference of the formulas of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile


def saved_bytes(model: nn.Module, run: Callable[[], Any], autocast: bool = False) -> int:
    """Bytes of the storages that ``run()`` saves for its backward, each once, without the model's own parameters and
    buffers.  Activation checkpoints' inputs are among them; what is computed again is not."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    seen: dict[int, tuple[int, Tensor]] = {}  # the tensor stays alive, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen.setdefault(storage.data_ptr(), (storage.nbytes(), tensor))
        return tensor

    half = torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), half:
        kept = run()  # alive until all is counted
    total = sum(size for size, _ in seen.values())
    del kept
    return total


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most bytes that ``run()`` holds at once on the CPU beside what was there before, by torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    held = most = 0
    for event in found.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most
