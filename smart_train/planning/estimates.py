"""Estimate the bytes of a training step by formula: weights, gradients, optimiser, embeddings, logits, traffic.

Each docstring says what is exact.  Allocators add to all of it: gaps of a twentieth to a tenth are usual.

Letters as in docs/objective.md: B queries and N documents of a rank, Q and T tokens of a row, D pooled width, d token
width, W ranks, g ranks that gather together.  Sizes are bytes of a number: 4 = float32, 2 = bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FLOAT = 4
BUCKET = 500_000_000  # numbers: DeepSpeed's reduce_bucket_size by default
LIVE = 1_000_000_000  # numbers: its stage3_max_live_parameters
TILES = 2 * (1 << 27)  # bytes: MaxSim's tile of similarities on a GPU, and its maxima and places on the way
WINNERS, WINNER = 1 << 19, 30  # places that MaxSim's backward sorts at once, and bytes of each


# Weights, gradients, optimiser ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """Parameters of an encoder.

    frozen, trained: how many; frozen_bytes, trained_bytes: as they are held before any engine; block: those of the
    largest transformer block; outside: those in no block
    """

    frozen: int
    trained: int
    frozen_bytes: int
    trained_bytes: int
    block: int = 0
    outside: int = 0

    @property
    def all(self) -> int:
        return self.frozen + self.trained


@dataclass(frozen=True)
class Engine:
    """Layout of weights and optimiser states on W ranks.

    kind: ddp (or one process), zero = DeepSpeed with its stage, fsdp = fully_shard (FSDP2)
    half: the run trains in bfloat16 or float16; bucket, overlap, live: DeepSpeed's reduce_bucket_size, overlap_comm and
    stage3_max_live_parameters (numbers, not bytes); wrapped: fsdp: every block is a unit of its own
    offload_optimiser, offload_weights: these lie in RAM
    """

    kind: Literal["ddp", "zero", "fsdp"] = "ddp"
    world: int = 1
    stage: int = 0
    half: bool = True
    bucket: int = BUCKET
    overlap: bool = False
    live: int = LIVE
    wrapped: bool = True
    offload_optimiser: bool = False
    offload_weights: bool = False

    @property
    def sharded(self) -> bool:
        """Return whether weights are gathered in every forward."""
        return self.kind == "fsdp" or (self.kind == "zero" and self.stage == 3)


@dataclass(frozen=True)
class States:
    """Bytes of one rank.  gathered: whole copies of sharded weights while they are used, and an engine's buckets;
    step: what the optimiser's step adds, when no activation is there; ram: what is offloaded, in main memory."""

    weights: int
    gathered: int
    gradients: int
    optimiser: int
    step: int = 0
    ram: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gathered + self.gradients + self.optimiser


def states(weights: Weights, engine: Engine) -> States:
    """Compute the bytes of a rank between forward and step, with AdamW.  F, T: frozen and trained parameters.

    one process  F and T as they are, gradients T, moments 2 T, all in T's own dtype (LoRA and head: float32): 16 bytes
                 a trained number in float32
    DDP          the same, and gradients once more: the reducer's buckets (gradient_as_bucket_view is off)
    ZeRO         casts every weight to the run's half precision (s = 2; 4 in float32), keeps a float32 master copy and
                 both moments of T, 12 T / W (the master also where s = 4, as it is cloned); gradients s T (stage 1) or
                 s T / W; one reduce bucket, two with overlap.  Stage 3: s (F + T) / W, up to ``live`` numbers whole.
                 In the step, gradients once more in float32, 4 T / W
    FSDP2        trained weights in float32 (accelerate casts them up where the run is in half precision), everything
                 / W: gradients T, moments 2 T; whole: two blocks, the one in use and the next, and what is in no block
    Exact but for ``gathered``, which is the most.  Left out: paddings, and weights so small that ZeRO-3 keeps them
    whole (stage3_param_persistence_threshold).
    """
    if engine.kind == "zero":
        return _zero(weights, engine)
    if engine.kind == "fsdp":
        return _fsdp(weights, engine)
    gradients = weights.trained_bytes * (2 if engine.world > 1 else 1)
    return States(weights.frozen_bytes + weights.trained_bytes, 0, gradients, 2 * weights.trained_bytes)


def _zero(weights: Weights, engine: Engine) -> States:
    size, ranks = 2 if engine.half else FLOAT, engine.world
    held = size * weights.all
    buckets = size * engine.bucket * (2 if engine.overlap and engine.stage == 2 else 1)
    gradients = size * weights.trained // (ranks if engine.stage >= 2 else 1)
    optimiser = 3 * FLOAT * weights.trained // (ranks if engine.stage >= 1 else 1)
    step = FLOAT * weights.trained // ranks
    gathered, ram = buckets, 0
    if engine.stage == 3:
        gathered += min(held, size * engine.live)
        held //= ranks
    if engine.offload_optimiser:  # gradients wait beside the states for the step there
        ram += optimiser + gradients + step
        optimiser = gradients = step = 0
    if engine.offload_weights and engine.stage == 3:
        ram, held = ram + held, 0
    return States(held, gathered, gradients, optimiser, step, ram)


def _fsdp(weights: Weights, engine: Engine) -> States:
    trained = FLOAT * weights.trained if engine.half else weights.trained_bytes
    held, gradients, optimiser = (n // engine.world for n in (weights.frozen_bytes + trained, trained, 2 * trained))
    size = 2 if engine.half else FLOAT
    gathered = size * (min(weights.all, 2 * weights.block + weights.outside) if engine.wrapped else weights.all)
    if engine.offload_weights:
        return States(0, gathered, 0, 0, ram=held + gradients + optimiser)
    return States(held, gathered, gradients, optimiser)


# The objective -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """One rank's share of a step.  pairs P, queries B, documents N (hard negatives included), their tokens Q and T each
    (longest), widths D and d, token_size: bytes of a token's number when it is compared; group g: ranks that gather
    together; uses_pooled, uses_tokens: which side the loss reads at all."""

    pairs: int
    queries: int
    documents: int
    query_tokens: int
    document_tokens: int
    pooled: int
    width: int
    token_size: int = 4
    group: int = 1
    uses_pooled: bool = True
    uses_tokens: bool = True

    @property
    def tokens(self) -> tuple[int, int]:
        """Of all queries, of all documents."""
        return self.queries * self.query_tokens, self.documents * self.document_tokens


def own_embeddings(rows: Rows) -> int:
    """Bytes of a rank's embeddings as the encoder gives them, float32: pooled [B + N, D], tokens [B Q + N T, d].
    Their gradient is as much again."""
    return FLOAT * ((rows.queries + rows.documents) * rows.pooled + sum(rows.tokens) * rows.width)


def loss_embeddings(rows: Rows) -> dict[str, int]:
    """Bytes of embeddings by part; exact for equal rows.  While the loss is computed all but the last two are there,
    while MaxSim goes backward all of them.

    own        ``own_embeddings``
    rounded    tokens once more in their comparing dtype, where that is not float32
    gathered   documents of the group, [g N, D] float32 and [g N T, d], where g > 1
    places     MaxSim's winners [g N, B Q]: 1 byte to T = 256, 2 to 32,768, else 4 (of the torch tiles)
    gradients  of what MaxSim reads: all queries' and gathered documents' tokens, and pooled vectors
    sorting    30 bytes of each winner that is sorted at once, 2**19 at most
    """
    queries, documents = rows.tokens
    rounded = rows.token_size * (queries + documents) * rows.width if rows.token_size != FLOAT else 0
    pooled = FLOAT * rows.group * rows.documents * rows.pooled * rows.uses_pooled
    tokens = rows.token_size * rows.group * documents * rows.width * rows.uses_tokens
    of_queries = FLOAT * rows.queries * rows.pooled * rows.uses_pooled
    of_queries += rows.token_size * queries * rows.width * rows.uses_tokens
    place = 1 if rows.document_tokens <= 1 << 8 else 2 if rows.document_tokens <= 1 << 15 else 4
    winners = rows.group * rows.documents * queries * rows.uses_tokens
    return {
        "own": own_embeddings(rows),
        "rounded": rounded,
        "gathered": pooled + tokens if rows.group > 1 else 0,
        "places": place * winners,
        "gradients": pooled + tokens + of_queries,
        "sorting": WINNER * min(winners, WINNERS),
    }


def logits(rows: Rows, scores: int, terms: Sequence[tuple[float, float]]) -> tuple[int, int]:
    """Return (most at once, kept for the backward) bytes of matrices [P, g N]: every score (pooled, late, hybrid), and
    of the terms one at its most while the others are kept; then all of them kept.

    terms: of every call of a term, what LossTerm.matrices declares. It is counted there, not derived: an estimate.
    """
    kept = sum(held for _, held in terms)
    most = max((most - held for most, held in terms), default=0.0)
    matrix = FLOAT * rows.pairs * rows.group * rows.documents
    return int(matrix * (scores + kept + most)), int(matrix * (scores + kept))


def gather_volume(rows: Rows, columns: int = 0, once: bool = False, trained_pooled: bool = True) -> int:
    """Bytes that a rank receives in a step's gathers and their backward; exact for equal rows, as ``gather/MiB`` logs.

    (g - 1) blocks each way: pooled 4 N D, tokens s N T d, lengths 8 N, a header of 64 bytes, keys 32 N with a header of
    8; back the same of pooled and tokens, summed in float32.  columns: terms with ``symmetric``, 4 g N each way.
    once: query ids 8 B with a header of 8 (``symmetric`` and sigmoid).  trained_pooled: whether pooled vectors get a
    gradient (a frozen backbone's do not).
    """
    pooled = FLOAT * rows.documents * rows.pooled * rows.uses_pooled
    tokens = rows.tokens[1] * rows.width * rows.uses_tokens
    out = pooled + rows.token_size * tokens + 64 + 8 + 4 * 8 * rows.documents
    out += 8 * rows.documents * rows.uses_tokens
    back = pooled * trained_pooled + FLOAT * tokens
    out += 2 * columns * FLOAT * rows.group * rows.documents + (8 + 8 * rows.queries) * once
    return (rows.group - 1) * (out + back)


def weights_volume(weights: Weights, engine: Engine, forwards: int = 1) -> int:
    """Bytes that a rank receives for weights and their gradients in a step; ring collectives.

    DDP: an all-reduce, 2 (W - 1) / W of the gradients.  ZeRO-2: reduce-scatter of gradients, all-gather of the trained
    weights, each (W - 1) / W.  ZeRO-3, FSDP: (W - 1) / W of all weights for every forward and every backward, frozen
    ones too; gradients once a backward.  forwards: of a step and rank: one a chunk, two with gradient caching.
    """
    size, share = 2 if engine.half else FLOAT, (engine.world - 1) / engine.world
    if engine.sharded:
        backwards = max(1, forwards // 2)
        return int(share * size * (weights.all * (forwards + backwards) + weights.trained * backwards))
    if engine.kind == "zero":
        return int(share * size * 2 * weights.trained)
    return int(share * 2 * weights.trained_bytes)


# Activations: bytes that towers of transformer blocks keep between forward and backward -------------------------------


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


def transient(tower: Tower, precision: Precision, tokens: int, length: int, checkpointing: bool = False) -> int:
    """Bytes of the widest moment of a forward or backward beside what is kept; an estimate.

    Forward the MLP's branches, its input and output; backward their gradients, which are as many; with activation
    checkpointing a whole block, too, as it is computed again.
    """
    again = saved_block(tower, precision, tokens, length) if checkpointing and tower.first < tower.layers else 0
    return again + tokens * precision.compute * (tower.inner * (3 if tower.gated else 2) + 2 * tower.hidden)


def readout(
    hidden: int, width: int, head: str, precision: Precision, tokens: int, backbone: bool = True, layers: int = 1
) -> int:
    """Bytes kept behind the blocks: the final norm's input and the pooling's product (4 h and a state, where the
    backbone is trained), every layer of a mix (4 h), the head's inputs (4 h each for layer norm and linear; 4 more
    of them for the gated MLP of the usual inner width), what is normalised (4 d)."""
    # A head of another package is counted like layernorm_linear: what it keeps is not known.
    inputs = {"none": 0, "linear": 1, "gated_residual": 5}.get(head, 2) + (layers if layers > 1 else 0)
    of_backbone = (FLOAT + precision.state) * hidden if backbone else 0
    return tokens * (of_backbone + FLOAT * hidden * inputs + FLOAT * width)
