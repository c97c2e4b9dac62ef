"""Evaluate an encoder on a collection: nDCG, recall, MRR and success of its pooled, late and hybrid rankings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from smart_train.config.schema import HybridBlock
from smart_train.core.embeddings import Embeddings
from smart_train.distributed.process_group import ProcessGroup
from smart_train.evaluation.encode import Encoded, encode
from smart_train.evaluation.metrics import Interval, Ranking, interval, measure
from smart_train.evaluation.progress import timed
from smart_train.evaluation.protocols import Collection, Encoder
from smart_train.evaluation.ranking import rank_views
from smart_train.evaluation.score_histograms import Observer
from smart_train.evaluation.scoring import MODES, Tile, checked, tiles, view
from smart_train.evaluation.sharding import Share


@dataclass
class Evaluation:
    """What was measured: ``metrics`` is one row of metrics.json, the rest goes to evaluation.json."""

    metrics: dict[str, dict[str, Interval]]  # mode -> "ndcg@10" -> {"value", "low", "high"}
    per_query: dict[str, dict[str, dict[str, float]]]  # mode -> "ndcg@10" -> query id -> value
    queries: int  # with a relevant document in the corpus: the ones averaged over
    documents: int
    unanswered: list[str]
    tokens_per_document: float
    mb_per_document: float  # megabytes (1e6 bytes) an index needs for its tokens and its pooled vector, both float16
    seconds: dict[str, float]  # queries, documents (encoding), scores; of several ranks, the slowest one's
    hybrid: HybridBlock  # the weights and constants of the hybrid score
    bootstrap: int = 1000
    seed: int = 0
    themselves: int = 0  # queries that are also documents, and are left out of their own ranking
    stored: int = 0  # documents whose vectors a store had from before: no part of seconds["documents"]


def evaluate(
    encoder: Encoder,
    collection: Collection,
    *,
    k: Sequence[int] = (1, 5, 10),
    batch_size: int = 32,
    bootstrap: int = 1000,
    seed: int = 0,
    progress: bool = False,
    group: ProcessGroup | None = None,
) -> Evaluation:
    """Encodes the collection once and measures the pooled, late and hybrid rankings of its corpus.

    A portion of documents is encoded, ranked and let go before the next: memory does not grow with the corpus.

    k: cut-offs of nDCG, recall, MRR and success; bootstrap, seed: of the 95 % intervals over queries
    group: the ranks to share the work with: every rank calls this with the same arguments and gets the same Evaluation,
        that of one process.  Each ranks all queries against its own documents; what crosses is the queries' embeddings
        and, a block of queries at a time, the best of every rank.
    Raises EvaluationError where no query has a relevant document, and for embeddings that are not finite, by id; what
    fails on one rank is raised on all, as EvaluationError or RankError.
    """
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
    observer: Observer | None = None,
) -> Evaluation:
    """As ``evaluate`` for a collection that is embedded already (to compare several hybrid weights, say).

    observer: is shown every score, and gets the rankings (see observed.py)
    """
    share = encoded.share or Share(encoded.document_ids)
    with share.group.propagate_failures():
        size = _Size()
        rankings, seconds = _ranked(encoded, share, size, hybrid, max(k), device, observer)
        found = share.group.exchange((size.counts, seconds))
    documents, tokens, numbers = (sum(counts[at] for counts, _ in found) for at in range(3))
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
        seconds={name: max(each[name] for _, each in found) for name in seconds},
        hybrid=hybrid,
        bootstrap=bootstrap,
        seed=seed,
        themselves=len(encoded.identical_ids),
        stored=encoded.stored,
    )


def _ranked(
    encoded: Encoded,
    share: Share,
    size: _Size,
    hybrid: HybridBlock,
    top: int,
    device: torch.device | str | None,
    observer: Observer | None,
) -> tuple[dict[str, dict[str, Ranking]], dict[str, float]]:
    """(mode -> query id -> documents, seconds): the scores' seconds are without those of encoding on the way, of
    waiting for other ranks, and of looking."""
    passed = {"scores": 0.0}
    before, waited = encoded.seconds.get("documents", 0.0), share.group.waited
    documents: Iterable[Embeddings] = size.of(encoded.documents)
    scored: Iterable[Tile] | None = None
    if observer is not None and observer.count:
        every = tiles(encoded.queries, checked(documents, encoded.document_ids), device=device)
        scored = observer.watch(every, encoded)
    with timed(passed, "scores"):
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
    on_the_way = seconds.get("documents", 0.0) - before + share.group.waited - waited
    seconds["scores"] = passed["scores"] - on_the_way
    if observer is not None:
        seconds["scores"] -= observer.seconds
        observer.rankings = rankings
        observer.join(share)
    return rankings, seconds


class _Size:
    """Counts what an index would hold, as the portions go by."""

    def __init__(self) -> None:
        self.documents = self.tokens = self.numbers = 0

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.documents, self.tokens, self.numbers

    def of(self, portions: Iterable[Embeddings]) -> Iterator[Embeddings]:
        for portion in portions:
            self.documents += len(portion)
            self.tokens += int(portion.tokens.lengths.sum())
            self.numbers += portion.tokens.values.numel() + portion.pooled.numel()
            yield portion
