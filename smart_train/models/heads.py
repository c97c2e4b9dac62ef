"""Token heads: hidden states [n, H] in, token vectors [n, d] out.

A head is any ``torch.nn.Module`` of this form; ``late.head`` names it (a short name, or ``package.module:Class``):

    class MyHead(nn.Module):
        def __init__(self, hidden_size: int, token_width: int, **options): ...
        def forward(self, states: Tensor) -> Tensor: ...  # [n, H] -> [n, d], d = token_width

n is the number of kept tokens of all rows together, H the hidden size, d ``late.dim`` (H where that is null).  The
states come normed, mixed over the layers of ``late.layer``, and in the dtype of the head's parameters; the vectors are
L2-normalised afterwards.  What a head learns belongs in its parameters (and persistent buffers): they are saved in
``late_head.safetensors``, its name and options in ``smart_train.json``.  See docs/extending.md for an example.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smart_train.config.schema import Component, LateBlock
from smart_train.core.errors import ExtensionError, ExtensionResultError
from smart_train.core.registry import Registry

HEADS = Registry(
    "head",
    "smart_train.heads",
    {
        "none": "smart_train.models.heads:FirstDimensions",
        "linear": "smart_train.models.heads:LinearHead",
        "layernorm_linear": "smart_train.models.heads:LayerNormLinearHead",
        "gated_residual": "smart_train.models.heads:GatedResidualHead",
    },
)
MIX = "mix"  # name of the layer weights, in memory and in the saved file
INNER = "projection."  # what PyTorch puts before the names of the head's own parameters; the saved file does without


class FirstDimensions(nn.Module):
    """Keep the first ``token_width`` dimensions; nothing is learned, so that reading is training-free.

    >>> FirstDimensions(hidden_size=4, token_width=2)(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    tensor([[1., 2.]])
    """

    def __init__(self, hidden_size: int, token_width: int) -> None:
        super().__init__()
        self.token_width = token_width

    def forward(self, states: Tensor) -> Tensor:
        """[n, H] -> [n, d]"""
        return states[..., : self.token_width]


class LinearHead(nn.Module):
    """Project with a matrix, without bias.

    >>> LinearHead(hidden_size=3, token_width=3)(torch.tensor([[1.0, 2.0, 3.0]])).tolist()
    [[1.0, 2.0, 3.0]]
    """

    def __init__(self, hidden_size: int, token_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, token_width, bias=False)
        _start_near_identity(self.linear)

    def forward(self, states: Tensor) -> Tensor:
        """[n, H] -> [n, d]"""
        projected: Tensor = self.linear(states)
        return projected


class LayerNormLinearHead(nn.Module):
    """Normalise each state with a LayerNorm, then project with a matrix (the adapter of SMART, arXiv 2605.24938)."""

    def __init__(self, hidden_size: int, token_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.linear = nn.Linear(hidden_size, token_width, bias=False)
        _start_near_identity(self.linear)

    def forward(self, states: Tensor) -> Tensor:
        """[n, H] -> [n, d]"""
        projected: Tensor = self.linear(self.norm(states))
        return projected


class GatedResidualHead(nn.Module):
    """Project with a matrix, and add a gated MLP (projection heads of multi-vector models, arXiv 2510.12327).

        z = W2( silu(W1 h) * V h ) + Wr h

    inner: rows of W1 and V; None = the hidden size. Parameters: H d + 2 H inner + inner d.
    W2 starts at 0, and Wr as the matrix of ``LinearHead``: before the first step the head is that linear head.

    >>> head = GatedResidualHead(hidden_size=3, token_width=3, inner=8)
    >>> head(torch.tensor([[1.0, 2.0, 3.0]])).tolist()
    [[1.0, 2.0, 3.0]]
    """

    def __init__(self, hidden_size: int, token_width: int, inner: int | None = None) -> None:
        super().__init__()
        inner = hidden_size if inner is None else inner
        if not isinstance(inner, int) or isinstance(inner, bool) or inner < 1:
            what = f"inner of the head gated_residual is {inner!r}, no whole number of 1 or more"
            raise ExtensionError(what, "write the width of its inner layer, or leave it out")
        self.gate = nn.Linear(hidden_size, inner, bias=False)
        self.up = nn.Linear(hidden_size, inner, bias=False)
        self.down = nn.Linear(inner, token_width, bias=False)
        self.linear = nn.Linear(hidden_size, token_width, bias=False)
        nn.init.zeros_(self.down.weight)
        _start_near_identity(self.linear)

    def forward(self, states: Tensor) -> Tensor:
        """[n, H] -> [n, d]"""
        projected: Tensor = self.linear(states) + self.down(F.silu(self.gate(states)) * self.up(states))
        return projected


def _start_near_identity(linear: nn.Linear) -> None:
    """Start from the training-free cosines: exactly (identity), or nearly (a random isometry of the kept dimensions).

    The usual Gaussian start would throw the base's geometry away.
    """
    square = linear.in_features == linear.out_features
    (nn.init.eye_ if square else nn.init.orthogonal_)(linear.weight)


def make_head(head: Component, hidden_size: int, token_width: int) -> nn.Module:
    """Make the head that ``late.head`` names.

    Raises ExtensionError where there is none of that name, where it does not accept its options, and where it is not a
    torch module.

    >>> make_head(Component("linear"), hidden_size=8, token_width=4)
    LinearHead(
      (linear): Linear(in_features=8, out_features=4, bias=False)
    )
    """
    made = HEADS.create(head.type, head.options, hidden_size, token_width)
    if not isinstance(made, nn.Module):
        raise ExtensionError(
            f"the head {head.type!r} is not a torch.nn.Module", "derive its class from torch.nn.Module"
        )
    if MIX in dict([*made.named_parameters(), *made.named_buffers()]):
        raise ExtensionError(
            f"the head {head.type!r} has a tensor named {MIX!r}, as the layer weights are", "rename it"
        )
    return made


def tensor_shapes(head: Component, hidden_size: int, token_width: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a built-in head's tensors, as its file has them; nothing is allocated.

    Raises ExtensionError where the head does not accept its options.

    >>> tensor_shapes(Component("gated_residual", {"inner": 9}), hidden_size=4, token_width=2)["down.weight"]
    (2, 9)
    """
    with torch.device("meta"):
        made = make_head(head, hidden_size, token_width)
    return {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}


class LateHead(nn.Module):
    """Token vectors from hidden states: normalise(head(mix(states))).

    late: the recipe's block; layers: resolved layer numbers; hidden_size: H
    Several layers are averaged with learned weights, a softmax of ``mix`` that starts as the plain mean.
    """

    def __init__(self, late: LateBlock, layers: list[int], hidden_size: int) -> None:
        super().__init__()
        self.name, self.token_width = late.head.type, late.dim or hidden_size
        self.mix = nn.Parameter(torch.zeros(len(layers))) if len(layers) > 1 else None
        self.projection = make_head(late.head, hidden_size, self.token_width)

    def forward(self, states: list[Tensor]) -> Tensor:
        """states: one [n, H] per layer, normed already -> [n, d], L2-normalised float32.

        Raises ExtensionResultError where the head returns another shape.
        """
        hidden = states[0]
        if self.mix is not None:
            weights = self.mix.float().softmax(0)
            hidden = sum((w * s.float() for w, s in zip(weights, states, strict=True)), torch.zeros(()).to(hidden))
        dtype = next((p.dtype for p in self.projection.parameters() if p.is_floating_point()), hidden.dtype)
        vectors = self.projection(hidden.to(dtype))
        expected = (len(hidden), self.token_width)
        if not isinstance(vectors, Tensor) or tuple(vectors.shape) != expected:
            got = list(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
            what = f"the head {self.name!r} returned {got} for states {list(hidden.shape)}"
            raise ExtensionResultError(what, f"return a tensor {list(expected)}: a vector of late.dim for each state")
        return F.normalize(vectors.float(), dim=-1)


def file_name(parameter: str) -> str:
    """Name of a tensor of ``LateHead`` in the saved file.

    >>> file_name("mix"), file_name("projection.linear.weight")
    ('mix', 'linear.weight')
    """
    return parameter.removeprefix(INNER)


def parameter_name(stored: str) -> str:
    """Name in ``LateHead`` of a tensor of the saved file; undoes ``file_name``.

    >>> parameter_name("mix"), parameter_name("linear.weight")
    ('mix', 'projection.linear.weight')
    """
    return stored if stored == MIX else INNER + stored
