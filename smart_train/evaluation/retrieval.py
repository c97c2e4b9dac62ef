"""Evaluate an encoder on a collection: nDCG, recall, MRR and success of its pooled, late and hybrid rankings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from smart_train.config.schema import HybridBlock
from smart_train.core.embeddings import Embeddings
from smart_train.core.progress_log import timed
from smart_train.data.readers.python_rows import as_collection
from smart_train.distributed.process_group import ProcessGroup
from smart_train.evaluation.encode import Encoded, encode
from smart_train.evaluation.metrics import Interval, Ranking, interval, measure
from smart_train.evaluation.protocols import Encoder
from smart_train.evaluation.ranking import rank_views
from smart_train.evaluation.score_histograms import ScoreObserver
from smart_train.evaluation.scoring import MODES, Tile, checked, tiles, view
from smart_train.evaluation.sharding import Share


@dataclass
class Evaluation:
    """Metrics of an encoder on a collection: ``metrics`` is a row of metrics.json, the rest is in evaluation.json."""

    metrics: dict[str, dict[str, Interval]]  # mode -> "ndcg@10" -> {"value", "low", "high"}
    per_query: dict[str, dict[str, dict[str, float]]]  # mode -> "ndcg@10" -> query id -> value
    queries: int  # with a relevant document in the corpus: the ones averaged over
    documents: int
    unanswered: list[str]  # queries without a document judged relevant: in no average
    tokens_per_document: float
    mb_per_document: float  # megabytes (1e6 bytes) an index needs for its tokens and its pooled vector, both float16
    seconds: dict[str, float]  # of queries and documents (encoding) and scores; of the slowest rank
    hybrid: HybridBlock  # the weights and constants of the hybrid score
    bootstrap: int = 1000
    seed: int = 0
    themselves: int = 0  # queries that are also documents, and are left out of their own ranking
    stored: int = 0  # documents whose vectors a store had before: not in seconds["documents"]


def evaluate(
    encoder: Encoder,
    collection: Any,
    *,
    k: Sequence[int] = (1, 5, 10),
    batch_size: int = 32,
    bootstrap: int = 1000,
    seed: int = 0,
    progress: bool = False,
    group: ProcessGroup | None = None,
) -> Evaluation:
    """Encode a collection once, and measure the pooled, late and hybrid rankings of its corpus.

    A portion of documents is encoded, ranked and freed before the next: memory does not grow with the corpus.

    encoder: a SmartEncoder, or any object with ``encode_queries``, ``encode_documents`` and ``late.hybrid``
    collection: a Collection, or rows as ``SmartTrainer`` takes them
    k: cut-offs of nDCG, recall, MRR and success; bootstrap, seed: of the 95 % intervals over queries
    group: the ranks that share the work. Every rank calls this with the same arguments and gets the Evaluation of one
        process. Each ranks all queries against its own documents; ranks exchange the queries' embeddings and, a block
        of queries at a time, their top documents.

    Raises EvaluationError if no query has a relevant document, and for embeddings that are not finite, by id. What
    fails on one rank is raised on all, as EvaluationError or RankError.

    >>> rows = [{"query": "what is a zebra", "positive": "a striped animal"}, ...]  # doctest: +SKIP
    >>> evaluate(encoder, rows).metrics["hybrid"]["ndcg@10"]["value"]  # doctest: +SKIP
    """
    collection = as_collection(collection)
    encoded = encode(encoder, collection, batch_size=batch_size, progress=progress, keep=False, group=group)
    return evaluate_encoded(
        encoded,
        collection.qrels,
        encoder.late.hybrid,
        k=k,
        bootstrap=bootstrap,
        seed=seed,
        device=getattr(encoder, "device", None),
    )


def evaluate_encoded(
    encoded: Encoded,
    qrels: Mapping[str, Mapping[str, int]],
    hybrid: HybridBlock,
    *,
    k: Sequence[int] = (1, 5, 10),
    bootstrap: int = 1000,
    seed: int = 0,
    device: torch.device | str | None = None,
    observer: ScoreObserver | None = None,
) -> Evaluation:
    """Evaluate a collection that is encoded already, for example with several hybrid weights; as ``evaluate``.

    observer: gets the rankings, and every score if it counts them (score_histograms.py)
    """
    share = encoded.share or Share(encoded.document_ids)
    with share.group.propagate_failures():
        size = _IndexSize()
        rankings, seconds = _ranked(encoded, share, size, hybrid, max(k), device, observer)
        ranks = share.group.exchange((size.counts, seconds))
    documents, tokens, numbers = (sum(counts[at] for counts, _ in ranks) for at in range(3))
    judged = {query: qrels[query] for query in encoded.query_ids}
    per_query = {mode: measure(judged, rankings[mode], k) for mode in MODES}
    return Evaluation(
        metrics={
            mode: {name: interval(values, bootstrap, seed) for name, values in measures.items()}
            for mode, measures in per_query.items()
        },
        per_query=per_query,
        queries=len(encoded.query_ids),
        documents=documents,
        unanswered=encoded.unanswered,
        tokens_per_document=tokens / documents,
        mb_per_document=2 * numbers / 1e6 / documents,
        seconds={name: max(each[name] for _, each in ranks) for name in seconds},
        hybrid=hybrid,
        bootstrap=bootstrap,
        seed=seed,
        themselves=len(encoded.identical_ids),
        stored=encoded.stored,
    )


def _ranked(
    encoded: Encoded,
    share: Share,
    size: _IndexSize,
    hybrid: HybridBlock,
    top: int,
    device: torch.device | str | None,
    observer: ScoreObserver | None,
) -> tuple[dict[str, dict[str, Ranking]], dict[str, float]]:
    """Return (mode -> query id -> documents, seconds). The seconds of scores are without those of encoding in between,
    of waiting for other ranks, and of the observer."""
    elapsed = {"scores": 0.0}
    before, waited = encoded.seconds.get("documents", 0.0), share.group.waited
    documents: Iterable[Embeddings] = size.count(encoded.documents)
    scored: Iterable[Tile] | None = None
    if observer is not None and observer.count:
        all_tiles = tiles(encoded.queries, checked(documents, encoded.document_ids), device=device)
        scored = observer.watch(all_tiles, encoded)
    with timed(elapsed, "scores"):
        rankings = rank_views(
            encoded.queries,
            documents,
            encoded.query_ids,
            encoded.document_ids,
            {mode: view(mode, hybrid) for mode in MODES},
            top=max(top, observer.top if observer is not None else 1),
            device=device,
            scored=scored,
            identical_ids=encoded.identical_ids,
            share=share,
        )
    seconds = dict(encoded.seconds)
    in_between = seconds.get("documents", 0.0) - before + share.group.waited - waited
    seconds["scores"] = elapsed["scores"] - in_between
    if observer is not None:
        seconds["scores"] -= observer.seconds
        observer.rankings = rankings
        observer.join(share)
    return rankings, seconds


class _IndexSize:
    """Count what an index would hold, while portions of documents are ranked."""

    def __init__(self) -> None:
        self.documents = self.tokens = self.numbers = 0

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.documents, self.tokens, self.numbers

    def count(self, portions: Iterable[Embeddings]) -> Iterator[Embeddings]:
        for portion in portions:
            self.documents += len(portion)
            self.tokens += int(portion.tokens.lengths.sum())
            self.numbers += portion.tokens.values.numel() + portion.pooled.numel()
            yield portion
