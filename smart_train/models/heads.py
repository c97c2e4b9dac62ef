"""Token heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smart_train.config.schema import LateBlock


class LateHead(nn.Module):
    """t = normalise(head(mix(norm(h)))), for the kept tokens only.

    late: the recipe's block; layers: resolved numbers; width: hidden size.
    With no head, one layer and no learned mix it has no parameter, and reading is training-free.
    Heads: "linear" = Linear(hidden -> d, no bias); "layernorm_linear" = LayerNorm before it (the reference's adapter).
    """

    def __init__(self, late: LateBlock, layers: list[int], width: int) -> None:
        super().__init__()
        self.dim = late.dim
        self.mix = nn.Parameter(torch.zeros(len(layers))) if len(layers) > 1 else None  # softmax(0) = the plain mean
        self.norm = nn.LayerNorm(width) if late.head == "layernorm_linear" else None
        self.linear = nn.Linear(width, late.dim or width, bias=False) if late.head != "none" else None
        if self.linear is not None:
            # Training starts from the training-free cosines: exactly (identity), or nearly (a random isometry of
            # the kept dimensions); the usual Gaussian start would throw the base's geometry away.
            square = self.linear.in_features == self.linear.out_features
            (nn.init.eye_ if square else nn.init.orthogonal_)(self.linear.weight)

    def forward(self, states: list[Tensor]) -> Tensor:
        """states: one [kept tokens, hidden] per layer, normed already -> [kept tokens, d], L2-normalised float32."""
        hidden = states[0]
        if self.mix is not None:
            weights = self.mix.float().softmax(0)
            hidden = sum((w * s.float() for w, s in zip(weights, states, strict=True)), torch.zeros(()).to(hidden))
        if self.norm is not None:
            hidden = self.norm(hidden.to(self.norm.weight.dtype))
        if self.linear is not None:
            hidden = self.linear(hidden.to(self.linear.weight.dtype))
        elif self.dim is not None:
            hidden = hidden[..., : self.dim]
        return F.normalize(hidden.float(), dim=-1)
