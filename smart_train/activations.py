"""Bytes that towers of transformer blocks keep between forward and backward, by formula.

Knows: numbers.  Does not know: torch, recipes, machines, files.
An estimate: see tests/test_estimates.py for how far it is from the tensors that torch saves.
"""

from __future__ import annotations

from dataclasses import dataclass

from smart_train.estimates import FLOAT


@dataclass(frozen=True)
class Tower:
    """One stack of transformer blocks, and what of it is trained.

    hidden h, query a = heads x their width, key k = key heads x width, inner f = the MLP's width
    gated: the MLP multiplies two branches (SwiGLU, GeGLU); fused: q, k, v come out of one product; qk_norm: q and k are
    normed; rms: norms are RMSNorm, which keeps float32; norms, dropouts: of width h in a block
    first: the first block that a gradient flows through (0 = first; ``layers`` = none does)
    full: the weights themselves are trained; lora: widths of the inputs of all linear layers with LoRA in a block,
    shared: the same where those that read one tensor count once (and the attention's output, kept anyway, not at all)
    ranks: r summed over them
    """

    layers: int
    hidden: int
    query: int
    key: int
    inner: int
    heads: int
    gated: bool = False
    fused: bool = False
    qk_norm: bool = False
    rms: bool = False
    norms: int = 2
    dropouts: int = 0
    first: int = 0
    full: bool = False
    lora: int = 0
    shared: int = 0
    ranks: int = 0


@dataclass(frozen=True)
class Precision:
    """state: bytes of the hidden states between blocks (the base's dtype); compute: of matrix products (2 under
    autocast); casting: inputs are turned into another dtype, once a linear layer; inputs: bytes of what they become
    (0 = compute; 4 for LoRA on a half-precision base without autocast); mask: of a dropout's mask (1 on a
    GPU); matrix: attention keeps its [heads, L, L] (eager, or dropout on a CPU), else a fused kernel."""

    state: int = 4
    compute: int = 4
    casting: bool = False
    inputs: int = 0
    mask: int = 1
    matrix: bool = False


def saved_block(tower: Tower, precision: Precision, tokens: int, length: int) -> int:
    """Bytes that one block keeps for its backward.  tokens: rows x longest row, padding included; length: the latter.

    Per token, with s = compute bytes, n = 4 for RMSNorm and under autocast, else s:
        norms        n h each; q and k norms n (a + k); RMSNorm with its own weight trained: its output once more
        attention    s (2 a + 2 k): q, k, v, output (fused: v holds on to all three, s 2 a more), 4 heads for the
                     softmax's sums; as a matrix: 3 x 4 heads L
        MLP          s f before the activation; gated: s 2 f more, the two factors
        linears      the inputs of those that are trained: s (2 h + f) in all, or with LoRA those that have it, each its
                     own copy where autocast casts; s r for what LoRA's A gives
        dropout      a mask each
    Counted from what torch saves for BERT, ModernBERT, Qwen3 and Qwen3-VL.
    """
    t, s = tower, precision.compute
    n = FLOAT if t.rms or precision.casting else s
    numbers = n * (t.norms * t.hidden + (t.query + t.key if t.qk_norm else 0))
    if t.rms and t.full:
        numbers += precision.state * (t.norms * t.hidden + (t.query + t.key if t.qk_norm else 0))
    numbers += s * (2 * t.query + 2 * t.key + (2 * t.query if t.fused else 0)) + FLOAT * t.heads
    if precision.matrix:
        numbers += 3 * FLOAT * t.heads * length
    numbers += s * t.inner * (3 if t.gated else 1)
    numbers += (precision.inputs or s) * ((t.lora if precision.casting else t.shared) + t.ranks)
    numbers += precision.mask * t.hidden * t.dropouts
    return tokens * numbers


def saved(tower: Tower, precision: Precision, tokens: int, length: int, checkpointing: bool = False) -> int:
    """Bytes that a tower keeps between forward and backward; an estimate.

    Every block from the first that a gradient flows through; with activation checkpointing each block's input instead,
    that of frozen ones included (the checkpoint keeps its arguments).
    """
    if checkpointing:
        return tower.layers * tokens * tower.hidden * precision.state
    return (tower.layers - tower.first) * saved_block(tower, precision, tokens, length)


def besides(tower: Tower, precision: Precision, tokens: int, length: int, checkpointing: bool = False) -> int:
    """Bytes of the widest moment of a forward or backward beside what is kept; an estimate.

    Forward the MLP's branches, its input and output; backward their gradients, which are as many; with activation
    checkpointing a whole block, too, as it is computed again.
    """
    again = saved_block(tower, precision, tokens, length) if checkpointing and tower.first < tower.layers else 0
    return again + tokens * precision.compute * (tower.inner * (3 if tower.gated else 2) + 2 * tower.hidden)


def reading(
    hidden: int, width: int, head: str, precision: Precision, tokens: int, backbone: bool = True, layers: int = 1
) -> int:
    """Bytes kept behind the blocks: the final norm's input and the pooling's product (4 h and a state, where the
    backbone is trained), every layer of a mix (4 h), the head's inputs (4 h each for layer norm and linear), what is
    normalised (4 d)."""
    inputs = {"none": 0, "linear": 1, "layernorm_linear": 2}[head] + (layers if layers > 1 else 0)
    of_backbone = (FLOAT + precision.state) * hidden if backbone else 0
    return tokens * (of_backbone + FLOAT * hidden * inputs + FLOAT * width)
