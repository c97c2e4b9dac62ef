"""Evaluates an encoder on a collection, and calibrates its hybrid score on a dev split."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from smart_train.config.schema import HybridBlock
from smart_train.core.embeddings import Embeddings
from smart_train.core.errors import EvaluationError
from smart_train.distributed.process_group import ProcessGroup
from smart_train.evaluation.encode import Collection, Encoded, Encoder, clock, encode
from smart_train.evaluation.metrics import Interval, Ranking, interval, measure
from smart_train.evaluation.ranking import MODES, Tile, check, checked, rank, rank_all, rank_views, tiles, view
from smart_train.evaluation.report.score_histograms import Observer
from smart_train.evaluation.topk import Share

__all__ = ["Evaluation", "calibrate", "calibrate_encoded", "evaluate", "evaluate_encoded", "rank", "rank_all"]

KEPT = 1 << 25  # query-document pairs whose two scores are kept (256 MiB) rather than computed a second time
GRID = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # late weights tried, next to the pooled weight as it is
ENOUGH = 0.001  # nDCG: a tenth of a point is noise on any dev split, and a smaller weight strays less from the pooled


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
    themselves: int = 0  # queries that stand in the corpus and are left out of their own ranking
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
        encoded, collection.qrels, encoder.late.hybrid, k=k, bootstrap=bootstrap, seed=seed, device=_device(encoder)
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
        themselves=len(encoded.themselves),
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
    with clock(passed, "scores"):
        rankings = rank_views(
            encoded.queries,
            documents,
            encoded.query_ids,
            encoded.document_ids,
            {mode: view(mode, hybrid) for mode in MODES},
            top=max(top, observer.top if observer is not None else 1),
            device=device,
            scored=scored,
            themselves=encoded.themselves,
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


def calibrate(
    encoder: Encoder,
    collection: Collection,
    *,
    grid: Sequence[float] = GRID,
    cut: int = 10,
    batch_size: int = 32,
    progress: bool = False,
    group: ProcessGroup | None = None,
) -> tuple[HybridBlock, list[dict[str, float]]]:
    """The encoder's HybridBlock with its constants and its late weight fitted on a collection (the dev split).

    grid: late weights tried, next to ``hybrid.pooled`` as it is; cut: the nDCG@cut that chooses
    group: the ranks to share the work with, as in ``evaluate``; each keeps its own documents' embeddings
    returns: a new block, and a figure for each weight: {"late", "value", "low", "high"}
    """
    encoded = encode(encoder, collection, batch_size=batch_size, progress=progress, group=group)
    return calibrate_encoded(
        encoded, collection.qrels, encoder.late.hybrid, grid=grid, cut=cut, device=_device(encoder)
    )


def calibrate_encoded(
    encoded: Encoded,
    qrels: Mapping[str, Mapping[str, int]],
    hybrid: HybridBlock,
    *,
    grid: Sequence[float] = GRID,
    cut: int = 10,
    device: torch.device | str | None = None,
) -> tuple[HybridBlock, list[dict[str, float]]]:
    """As ``calibrate`` for a collection that is embedded already.

    The constants are mean and standard deviation of either score over all queries x documents; the weight is the
    smallest whose mean nDCG comes within ENOUGH of the best, at the block's own scaling.  A query that stands in the
    corpus is left out of its own ranking, while its one score among thousands stays in the constants.
    The documents are gone through twice, so they are a list here: what ``encode`` keeps.
    """
    share = encoded.share or Share(encoded.document_ids)
    with share.group.propagate_failures():
        check(encoded.queries, encoded.query_ids, "query")
        documents = checked(encoded.documents, encoded.document_ids)
        every: Iterable[Tile] = tiles(encoded.queries, documents, device=device)
        scored: list[Tile] | None = None
        if len(encoded.query_ids) * len(encoded.document_ids) <= KEPT:
            every = scored = list(every)
        fitted = standardised(hybrid, share.group.exchange(score_sums(every)))
        rankings = rank_views(
            encoded.queries,
            encoded.documents,
            encoded.query_ids,
            encoded.document_ids,
            {str(weight): view("hybrid", replace(fitted, late=weight)) for weight in grid},
            top=cut,
            device=device,
            scored=scored,
            themselves=encoded.themselves,
            share=share,
        )
    judged = {query: qrels[query] for query in encoded.query_ids}
    figures = []
    for weight in sorted(grid):
        values = measure(judged, rankings[str(weight)], [cut])[f"ndcg@{cut}"]
        figures.append({"late": weight, **interval(values)})
    best = max(figure["value"] for figure in figures)
    chosen = next(figure["late"] for figure in figures if figure["value"] >= best - ENOUGH)
    return replace(fitted, late=chosen), figures


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


Sums = tuple[int, float, float, float, float]
"""Number of pairs; sum and sum of squares of their pooled scores, then of their late scores."""


def score_sums(scored: Iterable[Tile]) -> Sums:
    """Of tiles that cover all pairs once; in float64."""
    count, sums = 0, [0.0] * 4
    for _, _, *both in scored:
        count += both[0].numel()
        for at, scores in enumerate(both):
            sums[2 * at] += float(scores.double().sum())
            sums[2 * at + 1] += float(scores.double().square().sum())
    return count, sums[0], sums[1], sums[2], sums[3]


def standardised(hybrid: HybridBlock, sums: Sequence[Sums]) -> HybridBlock:
    """The block with mean and standard deviation of either score, of the sums of all ranks.  Raises EvaluationError
    where one of the scores does not vary."""
    count = sum(each[0] for each in sums)
    moments = []
    for name, at in (("pooled", 1), ("late", 3)):
        mean, squares = (math.fsum(each[place] for each in sums) / count for place in (at, at + 1))
        std = math.sqrt(max(0.0, squares - mean * mean))
        if std < 1e-5:
            raise EvaluationError(
                f"the {name} scores of {count} query-document pairs are all about {mean:.4f}: there is nothing to "
                "standardise; the encoder has collapsed, or the dev split has a single document"
            )
        moments.append((mean, std))
    (pooled_mean, pooled_std), (late_mean, late_std) = moments
    return replace(hybrid, pooled_mean=pooled_mean, pooled_std=pooled_std, late_mean=late_mean, late_std=late_std)


def _device(encoder: Encoder) -> torch.device | None:
    """Where the encoder computes, so that scoring a page corpus uses the GPU too."""
    return getattr(encoder, "device", None)
