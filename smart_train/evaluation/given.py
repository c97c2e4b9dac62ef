"""Ranks the documents that each query is given and no others: reranking tasks, questions with options, near misses.

Knows: embeddings, views, and which documents a query is given.  Does not know: encoders, qrels, benchmarks.

The corpus goes by in portions, as in ranking.py.  Memory is one portion, a score of each kind for every given pair,
and the scores of a portion's queries x documents.  Where queries are given nearly the same documents a portion is
scored as a whole; where each has its own, only what was given is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from smart_train.embeddings import Embeddings
from smart_train.evaluation.best import Best
from smart_train.evaluation.metrics import EvaluationError, Ranking
from smart_train.evaluation.ranking import View, check, checked, tiles

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
