"""Score (query, document) pairs with a reranker or a teacher, such as a cross-encoder's ``predict``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from smart_train.core.errors import ExtensionResultError
from smart_train.core.progress_log import ProgressLog
from smart_train.data.collection import Collection

PAIRS = 2048  # pairs of one call, at the least; a query's own are never divided


class PairScorer(Protocol):
    """Scores pairs of a query text and a document; higher means more relevant.

    A document is what ``Document.content`` gives: a text, a PIL image, or {"text": ..., "image": ...}. The result is
    one finite number a pair, in order: a list, an array or a tensor. ``CrossEncoder(...).predict`` fits for texts.
    """

    def __call__(self, pairs: list[tuple[str, Any]], /) -> Any: ...


def score_pairs(
    scorer: PairScorer, collection: Collection, documents: Iterable[tuple[str, Sequence[str]]], what: str, total: int
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield (query id, {document id: score}) for each query and its documents, PAIRS pairs or more a call.

    documents: (query id, ids of the documents to score with it)
    what: names the scorer in errors and log lines, "the reranker"; total: number of queries, for the log
    Raises ExtensionResultError, with the query id, if the scorer does not return one finite number a pair.
    """
    log = ProgressLog(f"queries scored by {what}", total)
    waiting: list[tuple[str, Sequence[str]]] = []
    for query, ids in documents:
        waiting.append((query, ids))
        if sum(len(each) for _, each in waiting) >= PAIRS:
            yield from _score(scorer, collection, waiting, what)
            log.add(len(waiting))
            waiting = []
    yield from _score(scorer, collection, waiting, what)


def _score(
    scorer: PairScorer, collection: Collection, documents: list[tuple[str, Sequence[str]]], what: str
) -> Iterator[tuple[str, dict[str, float]]]:
    contents: dict[str, Any] = {}  # a page that several queries share is decoded once a call
    pairs: list[tuple[str, Any]] = []
    for query, ids in documents:
        for document in ids:
            if document not in contents:
                contents[document] = collection.corpus[document].content()
            pairs.append((collection.queries[query], contents[document]))
    scores = _numbers(scorer(pairs), len(pairs), documents[0][0], what) if pairs else []
    begin = 0
    for query, ids in documents:
        own = dict(zip(ids, scores[begin : begin + len(ids)], strict=True))
        begin += len(ids)
        for document, score in own.items():
            if not math.isfinite(score):
                raise ExtensionResultError(
                    f"{what} gave the query {query!r} and the document {document!r} the score {score}",
                    "return a finite number for each pair",
                )
        yield query, own


def _numbers(result: Any, count: int, query: str, what: str) -> list[float]:
    """Return the scorer's result as ``count`` floats."""
    fix = f"return one number a pair: {count} here, the first for the query {query!r}"
    try:
        values = result.tolist() if hasattr(result, "tolist") else list(result)
        scores = [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise ExtensionResultError(
            f"{what} returned a {type(result).__name__} that is not a list of numbers ({error})", fix
        ) from error
    if len(scores) != count:
        raise ExtensionResultError(f"{what} returned {len(scores)} scores for {count} pairs", fix)
    return scores


def teacher_scores(
    collection: Collection, negatives: Mapping[str, Sequence[str]], teacher: PairScorer
) -> dict[str, dict[str, float]]:
    """Score each query's positives and negatives with a teacher: {query id: {document id: score}}.

    negatives: query id -> document ids, those to score beside the query's positives
    Raises ExtensionResultError as ``score_pairs`` does.
    """

    def documents() -> Iterator[tuple[str, list[str]]]:
        for query, ids in negatives.items():
            positives = sorted(d for d in collection.relevant(query) if d in collection.corpus)
            yield query, list(dict.fromkeys([*positives, *ids]))

    return dict(score_pairs(teacher, collection, documents(), "the teacher", len(negatives)))
