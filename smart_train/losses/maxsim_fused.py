"""Compute MaxSim with the fused CUDA kernels of ``late-interaction-kernels`` (optional extra ``kernels``).

The kernel takes packed tokens and offsets, scores all B x N pairs, returns sums over query tokens in float32 (the mean
is taken here) and gives both sides gradients. By its source (0.4.5) it cannot do the following, which the torch tiles
do instead: float32 tokens, which it would round to float16; offsets of 32 bits and more; widths whose smallest block is
larger than a multiprocessor's shared memory; gradients that are the same in every run (it adds them atomically). Each
reason is logged once.
"""

from __future__ import annotations

import functools
import importlib
import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smart_train.core.extras import how_to_install
from smart_train.losses.maxsim_torch import Rows

logger = logging.getLogger(__name__)
LIBRARY = "late_interaction_kernels"
OFFSETS = 1 << 31  # the kernel computes offsets in 32 bits
SCRATCH = 8 << 10  # bytes of shared memory that the compiler keeps for itself
_logged: set[str] = set()


def usable(queries: Tensor, documents: Tensor, query_rows: Rows, rows: Rows) -> bool:
    """Return whether ``score`` can take these tokens. On CUDA each reason why not is logged, once a process; elsewhere
    it never can, and nothing is logged."""
    shared = shared_memory(queries.device)
    if shared is None:
        return False
    reason = _reason(queries, documents, query_rows, rows, shared)
    if reason is not None and reason not in _logged:
        _logged.add(reason)
        logger.warning("MaxSim runs as torch tiles, not as fused kernels: %s", reason)
    return reason is None


def score(queries: Tensor, documents: Tensor, query_rows: Rows, rows: Rows) -> Tensor:
    """Compute late scores: queries [sum Q, d], documents [sum T, d], one half-precision dtype -> [B, N] float32.

    Differentiable. Similarities are float32 (products of half-precision numbers are exact in it); a NaN among the
    tokens may be left out of a maximum here.
    """
    if not torch.is_grad_enabled():
        queries, documents = queries.detach(), documents.detach()  # or it would keep the places for a backward
    offsets = [F.pad(side.lengths.cumsum(0), (1, 0)).to(torch.int32) for side in (query_rows, rows)]
    sums: Tensor = _library().maxsim_varlen(
        queries.contiguous(), documents.contiguous(), *offsets, max(query_rows.sizes), max(rows.sizes)
    )
    return sums / query_rows.lengths.unsqueeze(1)


@functools.cache
def _library() -> Any:
    """The library, or None where it or the Triton it compiles with is not installed."""
    try:
        importlib.import_module("triton")
        return importlib.import_module(LIBRARY)
    except ImportError:
        return None


@functools.cache
def shared_memory(device: torch.device) -> int | None:
    """Return the bytes of shared memory that a block may have on a supported GPU (Nvidia, Ampere or newer), or None."""
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    properties = torch.cuda.get_device_properties(device)
    if properties.major < 8:
        return None
    return int(getattr(properties, "shared_memory_per_block_optin", 48 << 10))


def _reason(queries: Tensor, documents: Tensor, query_rows: Rows, rows: Rows, shared: int) -> str | None:
    """Return why the kernels cannot take this call; None if they can."""
    if _library() is None:
        return f"late-interaction-kernels is not installed ({how_to_install(LIBRARY)})"
    if queries.dtype not in (torch.float16, torch.bfloat16):
        return f"they would round {str(queries.dtype).removeprefix('torch.')} tokens to float16"
    widest = _widest(shared)
    if queries.shape[1] > widest:
        return f"tokens are {queries.shape[1]} wide, and this GPU's shared memory takes {widest}"
    places = len(query_rows.sizes) * len(rows.sizes) * max(query_rows.sizes)
    if max(places, queries.numel(), documents.numel()) >= OFFSETS:
        return "a batch of this size needs more than their 32-bit offsets"
    gradient = torch.is_grad_enabled() and (queries.requires_grad or documents.requires_grad)
    if gradient and torch.are_deterministic_algorithms_enabled():
        return "deterministic algorithms are on, and their gradients are added in any order"
    return None


def _widest(shared: int) -> int:
    """The widest tokens whose smallest configuration fits: blocks of 16 query and 16 document tokens, two stages, two
    bytes a number, and 16 x 16 similarities of four bytes; widths count as the next power of two."""
    numbers = (shared - SCRATCH - 16 * 16 * 4) // (2 * 2 * (16 + 16))
    return 1 << (numbers.bit_length() - 1) if numbers > 0 else 0
