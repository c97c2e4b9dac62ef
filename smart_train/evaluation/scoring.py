"""Score queries against documents, in blocks: the pooled, late and hybrid scores that rankings are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smart_train.config.schema import HybridBlock
from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.core.errors import EvaluationError, Setting
from smart_train.losses.similarity import hybrid_scores, hybrid_weights, late_scores, pooled_scores

MODES = ("pooled", "late", "hybrid")
BLOCK = 1 << 24  # float32 values of a document block: 64 MiB, about 500 short texts or 10 pages of 2048-wide tokens
QUERY_TOKENS = 4096  # of a query block: the maxima of one tile stay below a document block's size
NOISE = 1e-6  # cosines nearer than this are equal: float32 sums in another order differ by a few 1e-7

Tile = tuple[slice, slice, Tensor, Tensor]
"""(query rows, document rows, pooled scores, late scores)"""
Documents = Embeddings | Iterable[Embeddings]
"""N rows at once, or in portions, each of which is used once and then freed."""


@dataclass(frozen=True)
class View:
    """One way to score documents.

    score: (pooled, late), both [B, N] -> [B, N]; noise: scores nearer than this are equal
    slope: how much the score grows with the late score, 0 or more; None = unknown, or it falls
    """

    score: Callable[[Tensor, Tensor], Tensor]
    noise: float = NOISE
    slope: float | None = None


def view(mode: str, hybrid: HybridBlock) -> View:
    """Return the view of a mode. Raises EvaluationError if it is not pooled, late or hybrid."""
    if mode == "pooled":
        return View(lambda pooled, late: pooled, slope=0.0)
    if mode == "late":
        return View(lambda pooled, late: late, slope=1.0)
    if mode == "hybrid":
        by_pooled, slope = hybrid_weights(hybrid)
        if hybrid.scaling == "standardised":
            by_pooled, slope = by_pooled / hybrid.pooled_std, slope / hybrid.late_std
        noise = NOISE * max(1.0, abs(by_pooled) + abs(slope))
        return View(lambda pooled, late: hybrid_scores(pooled, late, hybrid), noise, slope if slope >= 0 else None)
    raise EvaluationError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")


LateOf = Callable[[slice, Embeddings, Embeddings, Tensor], Tensor]
"""(query rows, their embeddings, embeddings of some documents, pooled scores) -> late scores [B, N]"""


def exact_late_scores(rows: slice, queries: Embeddings, documents: Embeddings, pooled: Tensor) -> Tensor:
    """Return exact late scores; the default of ``tiles``."""
    return late_scores(queries.tokens, documents.tokens)


def tiles(
    queries: Embeddings,
    documents: Documents,
    block: int = BLOCK,
    device: torch.device | str | None = None,
    late_of: LateOf = exact_late_scores,
) -> Iterator[Tile]:
    """Yield (query rows, document rows, pooled, late) tile by tile, both scores [rows, columns] in float32.

    All queries are scored against one block of documents before the next, so that documents are moved and cast once.

    late_of: computes a tile's late scores when the tile is requested, so after the tiles before it were used
    """
    device = torch.device(device) if device is not None else queries.pooled.device
    blocks, query_starts = list(query_blocks(queries)), _starts(queries)
    begun = 0
    for portion in _portions(documents):
        starts = _starts(portion)
        for some in _slices(portion.tokens.lengths, max(1, block // portion.tokens.width)):
            part, columns = _part(portion, some, starts, device), slice(begun + some.start, begun + some.stop)
            for rows in blocks:
                block_of_queries = _part(queries, rows, query_starts, device)
                pooled = pooled_scores(block_of_queries.pooled, part.pooled)
                yield rows, columns, pooled, late_of(rows, block_of_queries, part, pooled)
        begun += len(portion)


def _portions(documents: Documents) -> Iterable[Embeddings]:
    return [documents] if isinstance(documents, Embeddings) else documents


def checked(documents: Documents, document_ids: Sequence[str]) -> Iterator[Embeddings]:
    """Yield the portions, each checked against its ids; raises EvaluationError as ``check`` does."""
    begun = 0
    for portion in _portions(documents):
        check(portion, document_ids[begun : begun + len(portion)], "document")
        begun += len(portion)
        yield portion
    if begun < len(document_ids):
        raise EvaluationError(f"{begun} document embeddings, but {len(document_ids)} document ids")


def query_blocks(queries: Embeddings) -> Iterator[slice]:
    """Return the blocks of query rows that ``tiles`` goes through, QUERY_TOKENS tokens each."""
    return _slices(queries.tokens.lengths, QUERY_TOKENS)


def _slices(lengths: Tensor, tokens: int) -> Iterator[slice]:
    """Yield consecutive rows with at most ``tokens`` tokens together; a longer row is alone."""
    begin = held = 0
    for row, length in enumerate(lengths.tolist()):
        if row > begin and held + length > tokens:
            yield slice(begin, row)
            begin, held = row, 0
        held += length
    if len(lengths):
        yield slice(begin, len(lengths))


def _starts(embeddings: Embeddings) -> Tensor:
    """Return [rows + 1], where each row's tokens start: summed once, not once for every block of a large corpus."""
    lengths = embeddings.tokens.lengths.cpu()
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def _part(embeddings: Embeddings, rows: slice, starts: Tensor, device: torch.device) -> Embeddings:
    """Return consecutive rows in float32 on the device, without a copy where they already are."""
    lengths = embeddings.tokens.lengths
    begin = int(starts[rows.start])
    count = int(starts[rows.stop]) - begin
    values = embeddings.tokens.values[begin : begin + count]
    dtype = torch.promote_types(values.dtype, torch.float32)
    return Embeddings(
        embeddings.pooled[rows].to(device, dtype), Tokens(values.to(device, dtype), lengths[rows].to(device))
    )


def check(embeddings: Embeddings, ids: Sequence[str], what: str) -> None:
    """Raise EvaluationError if ids are not one a row or not unique, and for values that are not finite, by id."""
    if len(ids) != len(embeddings):
        raise EvaluationError(f"{len(embeddings)} {what} embeddings, but {len(ids)} {what} ids")
    check_ids(ids, what)
    embeddings.tokens.check()
    # a sum is finite where its parts are, and needs no mask of the corpus' size
    tokens = ~embeddings.tokens.values.sum(1, dtype=torch.float32).isfinite().cpu()
    bad = ~embeddings.pooled.sum(1, dtype=torch.float32).isfinite().cpu()
    if tokens.any():
        owner = torch.repeat_interleave(torch.arange(len(ids)), embeddings.tokens.lengths.cpu())
        bad[owner[tokens]] = True
    if bad.any():
        rows = bad.nonzero().flatten().tolist()
        raise EvaluationError(
            f"the embedding of {what} {ids[rows[0]]!r} is not finite (NaN or infinity), and {len(rows) - 1} more of "
            f"the {len(ids)} at hand: a diverged run, or an overflow in float16; load the base in "
            "float32 or bfloat16 (",
            Setting("model.dtype"),
            ")",
        )


def check_ids(ids: Sequence[str], what: str) -> None:
    """Raise EvaluationError where an id is there twice."""
    if len(set(ids)) != len(ids):
        twice = next(id for id, count in Counter(ids).items() if count > 1)
        raise EvaluationError(f"the {what} id {twice!r} is there twice; ids must be unique")
