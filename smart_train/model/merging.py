"""LoRA as weights: added to the layers it belongs to, and several adapters as one.

Knows: peft's layers, safetensors' names.  Does not know: heads, folders, scores.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from smart_train.model.adapters import NAME, remove_lora
from smart_train.model.files import AdapterError
from smart_train.model.quantised import dequantise

logger = logging.getLogger(__name__)


@dataclass
class Rounding:
    """What became of the update where weights have fewer digits than it: the share of its length that was lost."""

    lost: float
    dtype: str


@torch.no_grad()
def merge_lora(model: Any) -> Rounding:
    """W + scale x B A in place of every adapted layer's W; afterwards the model has no LoRA.

    The sum is taken in float32 and rounded once.  In bfloat16 (8 bits) that rounding is as large as a small update:
    the vectors then equal the adapter's to about 1e-2, not 1e-5, and ``lost`` says how much of the update is gone.
    A base in 4 bits becomes the weights that these stand for first: the sum is what was trained, at the usual size.
    Raises AdapterError for weights quantised otherwise, and for one that a second layer shares: it would change, too.
    """
    layers: dict[str, Any] = {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    for name, layer in layers.items():
        if owners[id(layer.get_base_layer().weight)] > 1:
            raise AdapterError(
                f"{name}: its weight is shared with another layer (tied), which has no such LoRA, so that a sum would "
                "change both; publish the adapter itself"
            )
    dequantise(model)
    lost = whole = 0.0
    for layer in layers.values():
        weight = layer.get_base_layer().weight
        update = layer.get_delta_weight(NAME).float()
        wanted = weight.float() + update
        weight.copy_(wanted)  # rounded here, where the weight has fewer digits
        lost += float((weight.float() - wanted).square().sum())
        whole += float(update.square().sum())
    remove_lora(model)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return Rounding((lost / whole) ** 0.5 if whole else 0.0, dtype)


def weighted_lora(parts: Sequence[tuple[dict[str, Tensor], float, float]]) -> tuple[dict[str, Tensor], int]:
    """Several adapters' tensors -> one adapter's whose update is exactly the weighted sum of theirs, and its rank.

    parts: (tensors by peft's names, alpha / r, weight) of each, with the same layers.  Ranks are put one behind the
    other: A = [A1; A2 ...], B = [w1 s1 B1, w2 s2 B2 ...], so that B A = sum of w s B A with alpha = r.  Averaging A and
    B themselves would give other products (B1 A2 among them).
    Raises AdapterError where the layers or their widths differ.
    """
    names = parts[0][0].keys()
    for tensors, _, _ in parts[1:]:
        other = sorted(names ^ tensors.keys())
        if other:
            what = f"{len(other)} tensors are in only one of them ({other[0]} ...)"
            raise AdapterError(f"the adapters adapt different layers: {what}; only adapters of the same targets merge")
    merged: dict[str, Tensor] = {}
    for name in sorted(names):
        down = "lora_A" in name
        pieces = [t[name].float() if down else t[name].float() * (weight * scale) for t, scale, weight in parts]
        if len({piece.shape[1 if down else 0] for piece in pieces}) > 1:
            raise AdapterError(f"{name}: {[tuple(p.shape) for p in pieces]} do not belong to one layer")
        merged[name] = torch.cat(pieces, dim=0 if down else 1).contiguous()
    ranks = {tensor.shape[0] for name, tensor in merged.items() if "lora_A" in name}
    if len(ranks) != 1:
        raise AdapterError(f"the adapters have different ranks for different layers ({sorted(ranks)} together)")
    return merged, ranks.pop()


def block_list(model: nn.Module, name: str, count: int) -> None:
    """Keeps the first ``count`` blocks of the list of that name."""
    parent, _, child = name.rpartition(".")
    owner = model.get_submodule(parent)
    setattr(owner, child, nn.ModuleList(list(getattr(owner, child))[:count]))
