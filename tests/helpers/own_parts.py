"""A head and token filters as another package would write them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smart_train.models.token_filters import TokenizerInfo


class TwoLayerHead(nn.Module):
    """Linear, GELU, linear; and a buffer, which is saved with the parameters."""

    def __init__(self, hidden_size: int, token_width: int, *, inner: int = 8) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden_size, inner)
        self.outer = nn.Linear(inner, token_width)
        self.register_buffer("scale", torch.ones(token_width))

    def forward(self, states: Tensor) -> Tensor:
        return self.outer(nn.functional.gelu(self.inner(states))) * self.scale


class WideHead(TwoLayerHead):
    """Returns one dimension too many."""

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.pad(super().forward(states), (0, 1))


class NoArguments:
    """Wrong: a head is made with the hidden size and the token width."""


class NoModule:
    def __init__(self, hidden_size: int, token_width: int) -> None:
        pass


def every_second(input_ids: Tensor, attention_mask: Tensor, info: TokenizerInfo, *, first: int = 0) -> Tensor:
    """Keep every second position."""
    keep = torch.zeros_like(input_ids, dtype=torch.bool)
    keep[:, first::2] = True
    return keep


class NotTheseWords:
    """Leave out words by their ids."""

    def __init__(self, words: list[str]) -> None:
        self.words = words

    def dropped_ids(self, info: TokenizerInfo) -> list[int]:
        return info.tokenizer.convert_tokens_to_ids(self.words)


def mask_itself(input_ids: Tensor, attention_mask: Tensor, info: TokenizerInfo) -> Tensor:
    """Wrong: whole numbers."""
    return attention_mask


def one_row(input_ids: Tensor, attention_mask: Tensor, info: TokenizerInfo) -> Tensor:
    """Wrong: of another shape."""
    return attention_mask[0].bool()
