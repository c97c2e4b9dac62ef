"""What torch keeps between forward and backward, counted as it is saved: the reference of activations' formulas.

Knows: torch's hooks for saved tensors.  Does not know: formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


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
