"""Every layer's tokens from one forward, side by side in one row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from smart_train.config.schema import LateBlock
from smart_train.models.encoder import SmartEncoder
from smart_train.models.heads import LateHead
from smart_train.models.hidden_states import find_blocks, resolve_layers


class SideBySide(nn.Module):
    """A head without parameters that reads each layer by itself: Matryoshka cut and length 1, layer after layer."""

    def __init__(self, late: LateBlock, width: int) -> None:
        super().__init__()
        self.one = LateHead(replace(late, layer=-1), [-1], width)

    def forward(self, states: list[Tensor]) -> Tensor:
        """states: L of [kept tokens, hidden], normed already -> [kept tokens, L * d] float32, each d of length 1."""
        return torch.cat([self.one([state]) for state in states], dim=-1)


def fixed(encoder: SmartEncoder) -> bool:
    """Whether a head or a learned mix was trained on the layers that the encoder reads: it can't read others."""
    return bool(encoder.head.state_dict())


@contextmanager
def every_layer(encoder: SmartEncoder) -> Iterator[list[int]]:
    """While the block runs, ``encoder`` gives tokens L * d wide: those of all layers from one forward.

    yields: their numbers, 0 (embeddings) to -1 (last), in the order in which they stand side by side.  Columns
        l*d .. (l+1)*d are the tokens that ``late.layer`` = l would give, its norm, cut and stand-ins included
    Costs L times the memory of a layer's tokens; pooled vectors and the choice of tokens stay as they are.
    Raises ValueError where ``fixed``, where the model's blocks are not found, and where its final norm is unknown.
    """
    if fixed(encoder):
        raise ValueError(f"its head was trained on layer {encoder.late.layer} and can't read others")
    layers = [*range(len(find_blocks(encoder.backbone)[1])), -1]
    before = encoder.layers, encoder.final_norm, encoder.head
    norm = encoder.norm_for(layers)
    encoder.layers, encoder.final_norm = layers, norm
    encoder.head = SideBySide(encoder.late, encoder.hidden_size)  # type: ignore[assignment]
    try:
        yield layers
    finally:
        encoder.layers, encoder.final_norm, encoder.head = before


def read_layer(encoder: SmartEncoder, layer: int) -> None:
    """Has ``encoder`` give the tokens of another layer from now on.  Raises ValueError as ``every_layer`` does."""
    if layer == encoder.late.layer:
        return
    if fixed(encoder):
        raise ValueError(f"its head was trained on layer {encoder.late.layer} and can't read layer {layer}")
    layers = resolve_layers(layer, len(find_blocks(encoder.backbone)[1]))
    encoder.late = replace(encoder.late, layer=layer)  # the block may be somebody else's, too
    encoder.layers, encoder.final_norm = layers, encoder.norm_for(layers)
