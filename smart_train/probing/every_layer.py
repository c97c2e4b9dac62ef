"""Read the token vectors of every layer from one forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from smart_train.config.schema import LateBlock
from smart_train.core.errors import SettingError
from smart_train.models.encoder import SmartEncoder
from smart_train.models.heads import LateHead
from smart_train.models.hidden_states import find_blocks, resolve_layers


class ConcatenatedLayers(nn.Module):
    """A head without parameters that gives each layer's vectors, cut and normalised, concatenated."""

    def __init__(self, late: LateBlock, width: int) -> None:
        super().__init__()
        self.one = LateHead(replace(late, layer=-1), [-1], width)

    def forward(self, states: list[Tensor]) -> Tensor:
        """states: L of [kept tokens, hidden], normed already -> [kept tokens, L * d] float32, each d of length 1."""
        return torch.cat([self.one([state]) for state in states], dim=-1)


def reads_fixed_layers(encoder: SmartEncoder) -> bool:
    """Return whether a head or a learned mix was trained on the encoder's layers, so that it cannot read others."""
    return bool(encoder.head.state_dict())


@contextmanager
def every_layer(encoder: SmartEncoder) -> Iterator[list[int]]:
    """Inside this block, ``encoder`` gives token vectors L * d wide: those of all L layers from one forward.

    yields: the layers' numbers, 0 (embeddings) to -1 (last), in the order of the columns.  Columns l*d to (l+1)*d are
        the vectors that ``late.layer`` = l would give, with its norm, cut, and stand-ins for empty rows
    It costs L times the memory of a layer's tokens; pooled vectors and the choice of tokens do not change.
    Raises SettingError where ``reads_fixed_layers``, and where the model's blocks or its final norm cannot be found.
    """
    if reads_fixed_layers(encoder):
        what = f"is {encoder.late.layer}, on which its head was trained: it can't read others"
        raise SettingError("late.layer", what, "probe the base without the adapter")
    layers = [*range(len(find_blocks(encoder.backbone)[1])), -1]
    before = encoder.layers, encoder.final_norm, encoder.head
    norm = encoder.norm_for(layers)
    encoder.layers, encoder.final_norm = layers, norm
    encoder.head = ConcatenatedLayers(encoder.late, encoder.hidden_size)  # type: ignore[assignment]
    try:
        yield layers
    finally:
        encoder.layers, encoder.final_norm, encoder.head = before


def read_layer(encoder: SmartEncoder, layer: int) -> None:
    """Have ``encoder`` read another layer from now on.  Raises SettingError as ``every_layer`` does."""
    if layer == encoder.late.layer:
        return
    if reads_fixed_layers(encoder):
        what = f"is {encoder.late.layer}, on which its head was trained: it can't read layer {layer}"
        raise SettingError("late.layer", what, "leave it as it is")
    layers = resolve_layers(layer, len(find_blocks(encoder.backbone)[1]))
    encoder.late = replace(encoder.late, layer=layer)  # other encoders may share the block
    encoder.layers, encoder.final_norm = layers, encoder.norm_for(layers)
