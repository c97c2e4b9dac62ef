"""Rank documents for queries by pooled, late and hybrid scores, in bounded memory.

The corpus is scored in portions and blocks, and only documents that may still be among the top are kept, so memory is
one portion and B * top, whatever the corpus. A score depends on its query and document alone, and equal scores are
ordered by a hash: a ranking depends neither on portions and blocks, nor on the order of the corpus, nor on which rank
has which documents.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from smart_train.config.schema import HybridBlock
from smart_train.core.embeddings import Embeddings
from smart_train.core.errors import EvaluationError
from smart_train.evaluation.bf16_prefilter import BFloat16Prefilter, bf16_is_faster
from smart_train.evaluation.metrics import Ranking
from smart_train.evaluation.scoring import (
    BLOCK,
    MODES,
    Documents,
    Tile,
    View,
    check,
    check_ids,
    checked,
    exact_late_scores,
    query_blocks,
    tiles,
    view,
)
from smart_train.evaluation.sharding import Share
from smart_train.evaluation.topk import TopK

SPARSE = 0.25  # share of a portion's pairs that are candidates, below which each query is scored by itself


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
    """Return the top documents of every query by one mode: {query id: [(document id, score)]}; see ``rank_all``."""
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
    identical_ids: Collection[str] = (),
) -> dict[str, dict[str, Ranking]]:
    """Rank by all three modes in one pass: {"pooled": {query id: [(document id, score)]}, "late": ..., "hybrid": ...}.

    queries: B rows; documents: N rows, at once or in portions; tokens of any float dtype (scored in float32 at least)
    hybrid: weights and constants of the hybrid score; top: documents of a ranking, best first
    block: float32 values of a document block; changes memory and speed, not rankings
    device: where scores are computed; None = where the embeddings are
    progress: called with the number of query-document pairs after each tile
    identical_ids: ids of queries whose ranking leaves out the document of the same id

    Scores nearer than NOISE are ties, ordered by blake2b of (query id, document id).
    Raises EvaluationError if ids are not one a row or not unique, and for values that are not finite, by id.
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
        identical_ids=identical_ids,
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
    identical_ids: Collection[str] = (),
    share: Share | None = None,
) -> dict[str, dict[str, Ranking]]:
    """Rank by any views in one pass, as ``rank_all``; each tile's pooled and late scores are computed once for all.

    scored: the tiles, if they were computed before; ``documents`` is then not used
    share: which of all ranks' documents these are; the rankings are then those of all documents, and every rank must
        call this
    """
    share = share or Share(document_ids)
    check(queries, query_ids, "query")
    check_ids(document_ids, "document")
    if not len(share.corpus):
        raise EvaluationError("there is no document to rank: the corpus is empty")
    if top < 1:
        raise EvaluationError(f"top is the number of documents of a ranking, 1 or more, got {top}")
    # By block of queries; a rank without documents has the blocks too, since ranks exchange results for each.
    best = {
        (rows.start, rows.stop): {
            name: TopK(top, each.noise, identical_ids, query_ids[rows], document_ids) for name, each in views.items()
        }
        for rows in query_blocks(queries)
    }
    on = torch.device(device) if device is not None else queries.pooled.device
    prefilter = bf16_is_faster(on) and all(each.slope is not None for each in views.values())
    if scored is None:
        late_of = BFloat16Prefilter(views, best) if prefilter else exact_late_scores
        scored = tiles(queries, checked(documents, document_ids), block, on, late_of)
    for rows, columns, pooled, late in scored:
        for name, each in views.items():
            best[rows.start, rows.stop][name].add(each.score(pooled, late), columns.start)
        if progress is not None:
            progress(pooled.numel())
    rankings: dict[str, dict[str, Ranking]] = {name: {} for name in views}
    for begin, end in list(best):
        of_rows = share.merged(best.pop((begin, end)))
        for name, one in of_rows.items():
            rankings[name].update(one.rankings(query_ids[begin:end], share.corpus))
    return rankings


def rank_candidates(
    queries: Embeddings,
    documents: Embeddings | Iterable[Embeddings],
    query_ids: Sequence[str],
    document_ids: Sequence[str],
    candidates: Mapping[str, Sequence[str]],
    views: Mapping[str, View],
    *,
    device: torch.device | str | None = None,
) -> dict[str, dict[str, Ranking]]:
    """Rank each query's own candidates, as reranking tasks do: {view: {query id: its candidates, best first}}.

    documents: N rows, at once or in portions, in the order of ``document_ids``; each portion is used once
    candidates: query id -> document ids; a document that is named twice counts once

    Scores and ties are those of ``rank_views``.
    Raises EvaluationError for a query without candidates or with an unknown one, and as ``rank_views`` does.
    """
    check(queries, query_ids, "query")
    pairs = _pairs(query_ids, document_ids, candidates)
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
            best = TopK(len(places), one.noise)
            best.scores, best.columns = one.score(of_pooled, of_late).unsqueeze(0), places.unsqueeze(0)
            ranked[name].update(best.rankings([query], document_ids))
    return ranked


def _pairs(query_ids: Sequence[str], document_ids: Sequence[str], candidates: Mapping[str, Sequence[str]]) -> Tensor:
    """Return [E, 2] int64, (query row, document row), ordered by document and then by query."""
    place = {document: row for row, document in enumerate(document_ids)}
    found: list[tuple[int, int]] = []
    for row, query in enumerate(query_ids):
        own = dict.fromkeys(candidates.get(query, ()))
        if not own:
            raise EvaluationError(f"query {query!r} has no candidates to rank; leave it out")
        absent = next((document for document in own if document not in place), None)
        if absent is not None:
            raise EvaluationError(f"query {query!r} has the candidate {absent!r}, which is not in the corpus")
        found += [(place[document], row) for document in own]
    return torch.tensor(sorted(found), dtype=torch.int64).reshape(-1, 2).flip(1)


def _portion(
    queries: Embeddings, portion: Embeddings, rows: Tensor, columns: Tensor, device: torch.device | str | None
) -> tuple[Tensor, Tensor]:
    """Return the pooled and late scores [E] of these pairs; columns are rows of the portion."""
    device = device if device is not None else queries.pooled.device
    own_rows, at = rows.unique(return_inverse=True)
    if len(rows) >= SPARSE * len(own_rows) * len(portion):
        pooled, late = _all(queries.select(own_rows), portion, device)
        return pooled[at, columns], late[at, columns]
    pooled, late = torch.empty(len(rows)), torch.empty(len(rows))
    for query in own_rows:
        own = rows == query
        one = _all(queries.select(query.unsqueeze(0)), portion.select(columns[own]), device)
        pooled[own], late[own] = (scores[0] for scores in one)
    return pooled, late


def _all(queries: Embeddings, documents: Embeddings, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Return both scores of all pairs, [B, N] each, on the CPU."""
    pooled, late = torch.empty(len(queries), len(documents)), torch.empty(len(queries), len(documents))
    for rows, columns, *both in tiles(queries, documents, device=device):
        pooled[rows, columns], late[rows, columns] = (scores.cpu() for scores in both)
    return pooled, late
