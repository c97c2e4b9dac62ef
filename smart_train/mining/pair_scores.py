"""Score (query, document) pairs with a reranker or a teacher, such as a cross-encoder's ``predict``.

Scores are kept in a file, call by call, so that a ``mine`` that was stopped does not pay for them twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

from smart_train.core.errors import ExtensionResultError
from smart_train.core.progress_log import ProgressLog
from smart_train.data.collection import Collection

logger = logging.getLogger(__name__)

Scored = list[tuple[str, dict[str, float]]]  # of one call: (query id, {document id: score})
PAIRS = 2048  # pairs of one call, at the least; a query's own are never divided


class PairScorer(Protocol):
    """Scores pairs of a query text and a document; higher means more relevant.

    A document is what ``Document.content`` gives: a text, a PIL image, or {"text": ..., "image": ...}. The result is
    one finite number a pair, in order: a list, an array or a tensor. ``CrossEncoder(...).predict`` fits for texts. An
    object that has ``prepare(collection)`` gets the whole corpus before its first pair.
    """

    def __call__(self, pairs: list[tuple[str, Any]], /) -> Any: ...


def prepare(scorer: PairScorer, collection: Collection) -> None:
    """Let a scorer that has ``prepare(collection)`` read the corpus before its first pair."""
    ready = getattr(scorer, "prepare", None)
    if callable(ready):
        ready(collection)


class KeptScores:
    """The scores of a stopped call, in a file: a line for the key, and one for each batch, each after its SHA-256.

    A line that was cut off or damaged, and all behind it, count as not there.
    key: what the scores depend on, beside the scorer: the data, and how documents were chosen
    """

    def __init__(self, path: Path, key: str, scorer: PairScorer) -> None:
        self.path, self.end = path, 0  # end: of the lines that are used, in bytes
        made = getattr(scorer, "func", scorer)  # of a partial
        kind: Any = made if hasattr(made, "__qualname__") else type(made)
        self.key = [key, f"{kind.__module__}.{kind.__qualname__}", repr(getattr(scorer, "keywords", {}))]

    def batches(self) -> Iterator[Scored]:
        """Yield the batches in their order; one that another is asked for after counts as used."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream):
                digest, _, content = line.partition(b" ")
                if hashlib.sha256(content).hexdigest().encode() != digest:
                    return
                stored = json.loads(content)
                if number:
                    yield [(query, scores) for query, scores in stored]
                elif stored != self.key:
                    logger.info("%s belongs to other data, options or models: pairs are scored anew", self.path)
                    return
                self.end += len(line)

    def append(self, scored: Scored) -> None:
        """Write a batch behind those that were used, and wait until the disk has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("r+b" if self.path.exists() else "wb") as stream:
            stream.truncate(self.end)
            stream.seek(self.end)
            for entry in [scored] if self.end else [self.key, scored]:
                content = json.dumps(entry).encode() + b"\n"
                stream.write(hashlib.sha256(content).hexdigest().encode() + b" " + content)
            stream.flush()
            os.fsync(stream.fileno())
            self.end = stream.tell()


def score_pairs(
    scorer: PairScorer,
    collection: Collection,
    documents: Iterable[tuple[str, Sequence[str]]],
    what: str,
    total: int,
    kept: KeptScores | None = None,
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield (query id, {document id: score}) for each query and its documents, PAIRS pairs or more a call.

    documents: (query id, ids of the documents to score with it)
    what: names the scorer in errors and log lines, "the reranker"; total: number of queries, for the log
    kept: where scores are kept, and taken from if this scorer gives the first query's pairs the same ones
    Raises ExtensionResultError, with the query id, if the scorer does not return one finite number a pair.
    """
    prepare(scorer, collection)
    source, done = iter(documents), 0
    for stored in kept.batches() if kept is not None else ():
        given = list(islice(source, len(stored)))
        same = [(query, list(ids)) for query, ids in given] == [(query, list(scores)) for query, scores in stored]
        if not same or (not done and not _agrees(scorer, collection, stored[0], what)):
            logger.info("%s: other pairs, or %s scores otherwise now: scored anew from here", kept and kept.path, what)
            source = chain(given, source)
            break
        yield from stored
        done += len(stored)
    if done:
        logger.info("%s: scores of %d of %d queries are kept from a call that was stopped", what, done, total)
    log = ProgressLog(f"queries scored by {what}", total, done)
    waiting: list[tuple[str, Sequence[str]]] = []
    for query, ids in chain(source, [("", ())]):  # the last closes the rest
        if query:
            waiting.append((query, ids))
        if waiting and (not query or sum(len(each) for _, each in waiting) >= PAIRS):
            scored = list(_score(scorer, collection, waiting, what))
            if kept is not None:
                kept.append(scored)
            yield from scored
            log.add(len(waiting))
            waiting = []


def _agrees(scorer: PairScorer, collection: Collection, stored: tuple[str, dict[str, float]], what: str) -> bool:
    """Whether the scorer is the one that gave these scores, up to the rounding of another batch."""
    query, scores = stored
    [(_, again)] = _score(scorer, collection, [(query, list(scores))], what)
    return all(math.isclose(again[d], score, rel_tol=1e-2, abs_tol=1e-2) for d, score in scores.items())


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


def positives_in_corpus(collection: Collection, query: str) -> list[str]:
    """Return the ids of a query's positives that the corpus has, sorted."""
    return sorted(d for d in collection.relevant(query) if d in collection.corpus)


def teacher_scores(
    collection: Collection,
    negatives: Mapping[str, Sequence[str]],
    teacher: PairScorer,
    kept: KeptScores | None = None,
) -> dict[str, dict[str, float]]:
    """Score each query's positives and negatives with a teacher: {query id: {document id: score}}.

    negatives: query id -> document ids, those to score beside the query's positives; kept: as of ``score_pairs``
    Raises ExtensionResultError as ``score_pairs`` does.
    """

    def documents() -> Iterator[tuple[str, list[str]]]:
        for query, ids in negatives.items():
            yield query, list(dict.fromkeys([*positives_in_corpus(collection, query), *ids]))

    return dict(score_pairs(teacher, collection, documents(), "the teacher", len(negatives), kept))
