"""Ranks documents for queries by pooled, late and hybrid scores, in bounded memory.

The corpus goes by in portions, each in blocks, and of each block only what may still be among the first ``top`` is
kept.  So memory is one portion and B * top, whatever the corpus; and since a score depends on its own query and
document alone, and equal scores are ordered by a hash, a ranking depends neither on the portions and blocks nor on the
order of the corpus, nor on which rank has which documents.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smart_train.config.schema import HybridBlock
from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.core.errors import EvaluationError
from smart_train.evaluation.bf16_prefilter import Narrowing, worthwhile
from smart_train.evaluation.metrics import Ranking
from smart_train.evaluation.topk import Best, Share, tie_hash
from smart_train.losses.similarity import hybrid_scores, late_scores, pooled_scores

__all__ = [
    "MODES",
    "Best",
    "Tile",
    "View",
    "check",
    "checked",
    "rank",
    "rank_all",
    "rank_views",
    "tie_hash",
    "tiles",
    "view",
]

MODES = ("pooled", "late", "hybrid")
BLOCK = 1 << 24  # float32 values of a document block: 64 MiB, about 500 short texts or 10 pages of 2048-wide tokens
QUERY_TOKENS = 4096  # of a query block: the maxima of one tile stay below a document block's size
NOISE = 1e-6  # cosines nearer than this are equal: float32 sums in another order differ by a few 1e-7

Tile = tuple[slice, slice, Tensor, Tensor]
"""(query rows, document rows, pooled scores, late scores)"""
Documents = Embeddings | Iterable[Embeddings]
"""N rows at once, or in portions, each of which is taken once and let go."""


@dataclass(frozen=True)
class View:
    """One way to order documents: the score of (pooled, late), both [B, N], and how near its values count as equal.

    slope: by how much the score grows with the late score, 0 or more; None = not known, or it falls
    """

    score: Callable[[Tensor, Tensor], Tensor]
    noise: float = NOISE
    slope: float | None = None


def view(mode: str, hybrid: HybridBlock) -> View:
    """The View of a mode.  Raises EvaluationError for another word than pooled, late or hybrid."""
    if mode == "pooled":
        return View(lambda pooled, late: pooled, slope=0.0)
    if mode == "late":
        return View(lambda pooled, late: late, slope=1.0)
    if mode == "hybrid":
        by_pooled, slope = hybrid.pooled, hybrid.late
        if hybrid.scaling == "standardised":
            by_pooled, slope = by_pooled / hybrid.pooled_std, slope / hybrid.late_std
        noise = NOISE * max(1.0, abs(by_pooled) + abs(slope))
        return View(lambda pooled, late: hybrid_scores(pooled, late, hybrid), noise, slope if slope >= 0 else None)
    raise EvaluationError(f"mode is one of {', '.join(MODES)}, not {mode!r}")


def rank(
    queries: Embeddings,
    documents: Documents,
    query_ids: Sequence[str],
    document_ids: Sequence[str],
    mode: str = "hybrid",
    hybrid: HybridBlock | None = None,
    *,
    top: int = 100,
    block: int = BLOCK,
    device: torch.device | str | None = None,
) -> dict[str, Ranking]:
    """The first ``top`` documents of every query by one mode; see ``rank_all``."""
    views = {mode: view(mode, hybrid or HybridBlock())}
    return rank_views(queries, documents, query_ids, document_ids, views, top=top, block=block, device=device)[mode]


def rank_all(
    queries: Embeddings,
    documents: Documents,
    query_ids: Sequence[str],
    document_ids: Sequence[str],
    hybrid: HybridBlock | None = None,
    *,
    top: int = 100,
    block: int = BLOCK,
    device: torch.device | str | None = None,
    progress: Callable[[int], object] | None = None,
    themselves: Collection[str] = (),
) -> dict[str, dict[str, Ranking]]:
    """The rankings of all three modes from one pass: {"pooled": {query id: [(document id, score)]}, "late", "hybrid"}.

    queries: B rows, documents: N rows, tokens of any float dtype (float16 storage is scored in float32)
    hybrid: the weights and constants of the hybrid score; top: documents kept per query, best first
    block: float32 values of a document block; it changes memory and speed, never a ranking
    device: where the scores are computed; None = where the embeddings are
    progress: called with the number of query-document pairs after each tile
    themselves: ids of queries whose ranking leaves out the document of the same id

    Scores nearer than NOISE are a tie, ordered by blake2b of (query id, document id).
    Raises EvaluationError for ids that are not one a row or not unique, and, by id, for values that are not finite.
    """
    views = {mode: view(mode, hybrid or HybridBlock()) for mode in MODES}
    return rank_views(
        queries,
        documents,
        query_ids,
        document_ids,
        views,
        top=top,
        block=block,
        device=device,
        progress=progress,
        themselves=themselves,
    )


def rank_views(
    queries: Embeddings,
    documents: Documents,
    query_ids: Sequence[str],
    document_ids: Sequence[str],
    views: Mapping[str, View],
    *,
    top: int,
    block: int = BLOCK,
    device: torch.device | str | None = None,
    progress: Callable[[int], object] | None = None,
    scored: Iterable[Tile] | None = None,
    themselves: Collection[str] = (),
    share: Share | None = None,
) -> dict[str, dict[str, Ranking]]:
    """As ``rank_all`` for any views: each tile's pooled and late scores are computed once and serve them all.

    scored: what ``tiles`` gave, where somebody has kept it; the documents are not looked at then
    share: where the documents are one rank's, for the rankings of all ranks' documents; a collective
    """
    share = share or Share(document_ids)
    check(queries, query_ids, "query")
    _check_ids(document_ids, "document")
    if not len(share.corpus):
        raise EvaluationError("there is no document to rank")
    if top < 1:
        raise EvaluationError(f"top is the number of documents kept per query, 1 or more, got {top}")
    # By block of queries; a rank without documents has the blocks too, since ranks meet once for each.
    best = {
        (rows.start, rows.stop): {name: Best(top, each.noise, themselves) for name, each in views.items()}
        for rows in _slices(queries.tokens.lengths, QUERY_TOKENS)
    }
    on = torch.device(device) if device is not None else queries.pooled.device
    narrow = worthwhile(on) and all(each.slope is not None for each in views.values())
    late_of = Narrowing(views, best) if narrow else _late
    for rows, columns, pooled, late in scored or tiles(queries, checked(documents, document_ids), block, on, late_of):
        for name, each in views.items():
            best[rows.start, rows.stop][name].add(each.score(pooled, late), columns.start)
        if progress is not None:
            progress(pooled.numel())
    rankings: dict[str, dict[str, Ranking]] = {name: {} for name in views}
    for begin, end in list(best):
        of_rows = share.joined(best.pop((begin, end)))
        for name, one in of_rows.items():
            rankings[name].update(one.rankings(query_ids[begin:end], share.corpus))
    return rankings


LateOf = Callable[[slice, Embeddings, Embeddings, Tensor], Tensor]
"""(query rows, their embeddings, some documents', the pooled scores of both) -> late scores [B, N]"""


def _late(rows: slice, asked: Embeddings, part: Embeddings, pooled: Tensor) -> Tensor:
    return late_scores(asked.tokens, part.tokens)


def tiles(
    queries: Embeddings,
    documents: Documents,
    block: int = BLOCK,
    device: torch.device | str | None = None,
    late_of: LateOf = _late,
) -> Iterator[Tile]:
    """(query rows, document rows, pooled, late) of every tile, both scores [rows, columns] float32; all queries of one
    block of documents before the next block, so that documents are moved and widened once.

    late_of: what gives a tile's late scores; it is asked when the tile is, so after those before it were taken.
    """
    device = torch.device(device) if device is not None else queries.pooled.device
    query_blocks = list(_slices(queries.tokens.lengths, QUERY_TOKENS))
    begun = 0
    for portion in _portions(documents):
        for some in _slices(portion.tokens.lengths, max(1, block // portion.tokens.width)):
            part, columns = _part(portion, some, device), slice(begun + some.start, begun + some.stop)
            for rows in query_blocks:
                asked = _part(queries, rows, device)
                pooled = pooled_scores(asked.pooled, part.pooled)
                yield rows, columns, pooled, late_of(rows, asked, part, pooled)
        begun += len(portion)


def _portions(documents: Documents) -> Iterable[Embeddings]:
    return [documents] if isinstance(documents, Embeddings) else documents


def checked(documents: Documents, document_ids: Sequence[str]) -> Iterator[Embeddings]:
    """The portions, each checked against its ids before it is given on; raises EvaluationError as ``check`` does."""
    begun = 0
    for portion in _portions(documents):
        check(portion, document_ids[begun : begun + len(portion)], "document")
        begun += len(portion)
        yield portion
    if begun < len(document_ids):
        raise EvaluationError(f"{begun} document embeddings, but {len(document_ids)} document ids")


def _slices(lengths: Tensor, tokens: int) -> Iterator[slice]:
    """Consecutive rows that hold at most so many tokens together; a longer row stands alone."""
    begin = held = 0
    for row, length in enumerate(lengths.tolist()):
        if row > begin and held + length > tokens:
            yield slice(begin, row)
            begin, held = row, 0
        held += length
    if len(lengths):
        yield slice(begin, len(lengths))


def _part(embeddings: Embeddings, rows: slice, device: torch.device) -> Embeddings:
    """Consecutive rows in float32 on the device; a view where they already are."""
    lengths = embeddings.tokens.lengths
    begin, count = int(lengths[: rows.start].sum()), int(lengths[rows].sum())
    values = embeddings.tokens.values[begin : begin + count]
    dtype = torch.promote_types(values.dtype, torch.float32)
    return Embeddings(
        embeddings.pooled[rows].to(device, dtype), Tokens(values.to(device, dtype), lengths[rows].to(device))
    )


def check(embeddings: Embeddings, ids: Sequence[str], what: str) -> None:
    """Raises EvaluationError for ids that are not one a row or not unique, and, by id, for values not finite."""
    if len(ids) != len(embeddings):
        raise EvaluationError(f"{len(embeddings)} {what} embeddings, but {len(ids)} {what} ids")
    _check_ids(ids, what)
    embeddings.tokens.check()
    owner = torch.repeat_interleave(torch.arange(len(ids)), embeddings.tokens.lengths.cpu())
    # a sum is finite where its parts are, and needs no mask of the corpus' size
    tokens = ~embeddings.tokens.values.sum(1, dtype=torch.float32).isfinite().cpu()
    bad = ~embeddings.pooled.sum(1, dtype=torch.float32).isfinite().cpu()
    bad[owner[tokens]] = True
    if bad.any():
        rows = bad.nonzero().flatten().tolist()
        raise EvaluationError(
            f"the embedding of {what} {ids[rows[0]]!r} is not finite (NaN or infinity), and {len(rows) - 1} more of "
            f"the {len(ids)} at hand: a diverged run, or an overflow in float16; load the base with model.dtype "
            "float32 or bfloat16"
        )


def _check_ids(ids: Sequence[str], what: str) -> None:
    if len(set(ids)) != len(ids):
        twice = next(one for place, one in enumerate(ids) if one in ids[:place])
        raise EvaluationError(f"the {what} id {twice!r} is there twice; ids must be unique")


# The best documents of every query so far, and the scores of named pairs, as tiles of a corpus go by.


class Candidates:
    """The first ``top`` documents of every query but those that a named pair keeps out, and the named pairs' scores.

    pairs: [E, 2] int64, (query row, document row), in any order
    noise: scores nearer than this are equal and ordered by a hash of the ids (see ranking.py)
    """

    def __init__(self, pairs: Tensor, top: int, noise: float) -> None:
        self.top, self.noise = top, noise
        self.order = pairs[:, 1].argsort(stable=True)
        self.rows, self.columns = pairs[self.order].unbind(1)
        self.columns = self.columns.contiguous()
        self.found = torch.full((len(pairs),), float("nan"))
        self.best: dict[tuple[int, int], Best] = {}

    def add(self, rows: slice, columns: slice, scores: Tensor) -> None:
        """Takes the scores [rows, columns] of one tile, and overwrites those of named pairs in it."""
        begin, end = torch.searchsorted(self.columns, torch.tensor([columns.start, columns.stop])).tolist()
        row = self.rows[begin:end]
        here = ((row >= rows.start) & (row < rows.stop)).nonzero().squeeze(1) + begin
        at = (self.rows[here] - rows.start).to(scores.device), (self.columns[here] - columns.start).to(scores.device)
        self.found[here] = scores[at].to(self.found)
        scores[at] = float("-inf")
        best = self.best.setdefault((rows.start, rows.stop), Best(self.top, self.noise))
        if best.scores is not None and best.columns is not None and best.scores.device != scores.device:
            best.scores, best.columns = best.scores.to(scores.device), best.columns.to(scores.device)
        best.add(scores, columns.start)

    def pair_scores(self) -> Tensor:
        """[E] float32, in the order in which the pairs were given; NaN where the document did not go by."""
        scores = torch.empty_like(self.found)
        scores[self.order] = self.found
        return scores

    def ranked(self, query_ids: Sequence[str], document_ids: Sequence[str]) -> Iterator[tuple[str, Ranking]]:
        """(query id, its ranking, best first and without named pairs) of every query; one block at a time in lists."""
        for (begin, end), best in sorted(self.best.items()):
            for query, ranking in best.rankings(query_ids[begin:end], document_ids).items():
                yield query, [pair for pair in ranking if pair[1] != float("-inf")]

    def state(self) -> dict[str, Tensor]:
        """Tensors on the CPU by name, for ``restore``."""
        kept = {"found": self.found}
        for (begin, end), best in self.best.items():
            if best.scores is not None and best.columns is not None:
                kept[f"{begin}:{end}:scores"] = best.scores.cpu().contiguous()
                kept[f"{begin}:{end}:columns"] = best.columns.cpu().contiguous()
        return kept

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes what ``state`` gave for the same pairs.  Raises EvaluationError for that of others."""
        if state["found"].shape != self.found.shape:
            raise EvaluationError(f"the state has {len(state['found'])} pairs, and there are {len(self.found)}")
        self.found = state["found"].clone()
        for name, tensor in state.items():
            if not name.endswith(":scores"):
                continue
            begin, end = (int(part) for part in name.split(":")[:2])
            best = Best(self.top, self.noise)
            best.scores, best.columns = tensor.clone(), state[f"{begin}:{end}:columns"].clone()
            self.best[begin, end] = best


# Ranks the documents that each query is given and no others: reranking tasks, questions with options, near misses.


SPARSE = 0.25  # share of a portion's pairs that were given, below which each query is scored by itself


def rank_given(
    queries: Embeddings,
    documents: Embeddings | Iterable[Embeddings],
    query_ids: Sequence[str],
    document_ids: Sequence[str],
    given: Mapping[str, Sequence[str]],
    views: Mapping[str, View],
    *,
    device: torch.device | str | None = None,
) -> dict[str, dict[str, Ranking]]:
    """{view: {query id: all its given documents, best first}}, ordered as ``rank_views`` orders: ties by hash.

    documents: N rows, at once or in portions, in the order of ``document_ids``; each portion is taken once
    given: query id -> ids of its documents; one that is named twice counts once
    Raises EvaluationError for a query that is given none, or one that is not there, and as ``rank_views`` does.
    """
    check(queries, query_ids, "query")
    pairs = _pairs(query_ids, document_ids, given)
    rows, columns = pairs.t().contiguous()
    pooled, late = torch.empty(len(pairs)), torch.empty(len(pairs))
    begun = 0
    for portion in checked(documents, document_ids):
        ends = torch.tensor([begun, begun + len(portion)])
        begin, end = torch.searchsorted(columns, ends).tolist()
        if end > begin:
            here = slice(begin, end)
            pooled[here], late[here] = _portion(queries, portion, rows[here], columns[here] - begun, device)
        begun += len(portion)
    order = rows.argsort(stable=True)
    sizes = torch.bincount(rows, minlength=len(query_ids)).tolist()
    parts = [each[order].split(sizes) for each in (columns, pooled, late)]
    ranked: dict[str, dict[str, Ranking]] = {name: {} for name in views}
    for query, places, of_pooled, of_late in zip(query_ids, *parts, strict=True):
        for name, one in views.items():
            best = Best(len(places), one.noise)
            best.scores, best.columns = one.score(of_pooled, of_late).unsqueeze(0), places.unsqueeze(0)
            ranked[name].update(best.rankings([query], document_ids))
    return ranked


def _pairs(query_ids: Sequence[str], document_ids: Sequence[str], given: Mapping[str, Sequence[str]]) -> Tensor:
    """[E, 2] int64, (query row, document row), by document and then by query."""
    place = {document: row for row, document in enumerate(document_ids)}
    found: list[tuple[int, int]] = []
    for row, query in enumerate(query_ids):
        own = dict.fromkeys(given.get(query, ()))
        if not own:
            raise EvaluationError(f"query {query!r} is given no document to rank; leave it out")
        absent = next((document for document in own if document not in place), None)
        if absent is not None:
            raise EvaluationError(f"query {query!r} is given the document {absent!r}, which the corpus does not have")
        found += [(place[document], row) for document in own]
    return torch.tensor(sorted(found), dtype=torch.int64).reshape(-1, 2).flip(1)


def _portion(
    queries: Embeddings, portion: Embeddings, rows: Tensor, columns: Tensor, device: torch.device | str | None
) -> tuple[Tensor, Tensor]:
    """The pooled and late scores [E] of these pairs; columns are rows of the portion."""
    device = device if device is not None else queries.pooled.device
    asked, at = rows.unique(return_inverse=True)
    if len(rows) >= SPARSE * len(asked) * len(portion):
        pooled, late = _all(queries.select(asked), portion, device)
        return pooled[at, columns], late[at, columns]
    pooled, late = torch.empty(len(rows)), torch.empty(len(rows))
    for query in asked:
        own = rows == query
        one = _all(queries.select(query.unsqueeze(0)), portion.select(columns[own]), device)
        pooled[own], late[own] = (scores[0] for scores in one)
    return pooled, late


def _all(queries: Embeddings, documents: Embeddings, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Both scores of all pairs, [B, N] on the CPU."""
    pooled, late = torch.empty(len(queries), len(documents)), torch.empty(len(queries), len(documents))
    for rows, columns, *both in tiles(queries, documents, device=device):
        pooled[rows, columns], late[rows, columns] = (scores.cpu() for scores in both)
    return pooled, late
