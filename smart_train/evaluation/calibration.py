"""Calibrate the hybrid score on a dev split: its late weight, and the means and deviations of both scores."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nsmallest
from typing import Any

import torch

from smart_train.config.schema import HybridBlock
from smart_train.core.errors import EvaluationError
from smart_train.data.collection import hash_id
from smart_train.data.readers.python_rows import as_collection
from smart_train.distributed.process_group import ProcessGroup
from smart_train.evaluation.encode import Encoded, encode
from smart_train.evaluation.metrics import interval, measure
from smart_train.evaluation.protocols import Collection, Document, Encoder
from smart_train.evaluation.ranking import rank_views
from smart_train.evaluation.scoring import Tile, check, checked, tiles, view
from smart_train.evaluation.sharding import Share

logger = logging.getLogger(__name__)

KEPT = 1 << 25  # query-document pairs whose two scores are kept (256 MiB) and not computed a second time
QUERIES, DOCUMENTS = 1000, 10_000  # most that are calibrated on; nDCG is then known to about 0.025
GRID = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # late weights to try first
LOWEST, HIGHEST = 2**-6, 2.0**7  # beyond them the other score only breaks ties
ENOUGH = (
    0.001  # of nDCG: a tenth of a point is noise on any dev split; a smaller weight changes the pooled ranking less
)


def calibrate(
    encoder: Encoder,
    collection: Any,
    *,
    grid: Sequence[float] | None = None,
    cut: int = 10,
    batch_size: int = 32,
    progress: bool = False,
    group: ProcessGroup | None = None,
    queries: int = QUERIES,
    documents: int = DOCUMENTS,
) -> tuple[HybridBlock, list[dict[str, float]]]:
    """Fit the late weight and the constants of the encoder's hybrid score on a collection, usually the dev split.

    collection: a Collection, or rows as ``SmartTrainer`` takes them
    grid: late weights to try, with ``hybrid.pooled`` as it is; None = GRID, continued beyond an end at which the best
        weight lies, at most from LOWEST to HIGHEST
    cut: the weight is chosen by nDCG@cut
    queries, documents: most of them that are used; of a larger collection a ``sample``, so that memory, which holds
        all token vectors of these documents, does not grow with it
    group: the ranks that share the work, as in ``evaluate``; each keeps its own documents' embeddings
    returns: a new HybridBlock, and the metric of each weight: {"late", "value", "low", "high"}

    >>> encoder.late.hybrid, tried = calibrate(encoder, dev)  # doctest: +SKIP
    >>> encoder.save_settings("runs/mine/adapter")  # doctest: +SKIP
    """
    collection = sample(as_collection(collection), queries, documents)
    encoded = encode(encoder, collection, batch_size=batch_size, progress=progress, group=group)
    hybrid, metrics = calibrate_encoded(
        encoded, collection.qrels, encoder.late.hybrid, grid=grid, cut=cut, device=getattr(encoder, "device", None)
    )
    if edge := at_edge(hybrid.late):
        logger.info("hybrid score: %s", edge)
    return hybrid, metrics


@dataclass
class _Sample:
    corpus: Mapping[str, Document]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]


def sample(collection: Collection, queries: int, documents: int) -> Collection:
    """Return at most so many queries and documents, by the hashes of their ids; the same collection where it has fewer.

    Documents that are relevant to these queries stay, even beyond the number. Of fewer documents a relevant one ranks
    higher, for every weight alike; means and deviations are those of a random sample.
    """
    corpus, chosen = collection.corpus, collection.queries
    if len(chosen) <= queries and len(corpus) <= documents:
        return collection
    if len(chosen) > queries:
        answered = (query for query in chosen if any(grade > 0 for grade in collection.qrels.get(query, {}).values()))
        chosen = {query: chosen[query] for query in nsmallest(queries, answered, key=hash_id)}
    kept: Mapping[str, Document] = corpus
    if len(corpus) > documents:
        judged = (pair for query in chosen for pair in collection.qrels.get(query, {}).items())
        names = {document for document, grade in judged if grade > 0 and document in corpus}
        others = (document for document in corpus if document not in names)
        names |= set(nsmallest(max(0, documents - len(names)), others, key=hash_id))
        kept = {document: corpus[document] for document in corpus if document in names}
    logger.info(
        "calibrating on a sample: %d of %d queries and %d of %d documents",
        *(len(chosen), len(collection.queries), len(kept), len(corpus)),
    )
    return _Sample(kept, chosen, collection.qrels)


def calibrate_encoded(
    encoded: Encoded,
    qrels: Mapping[str, Mapping[str, int]],
    hybrid: HybridBlock,
    *,
    grid: Sequence[float] | None = None,
    cut: int = 10,
    device: torch.device | str | None = None,
) -> tuple[HybridBlock, list[dict[str, float]]]:
    """Fit the hybrid score on a collection that is encoded already, with a list of documents; as ``calibrate``.

    The constants are the mean and standard deviation of each score over all queries x documents. The weight is the
    smallest whose mean nDCG comes within ENOUGH of the best, with the block's own scaling. A query that is also a
    document is left out of its own ranking; its one score among thousands stays in the constants.
    """
    share = encoded.share or Share(encoded.document_ids)
    with share.group.propagate_failures():
        check(encoded.queries, encoded.query_ids, "query")
        documents = checked(encoded.documents, encoded.document_ids)
        all_tiles: Iterable[Tile] = tiles(encoded.queries, documents, device=device)
        scored: list[Tile] | None = None
        if len(encoded.query_ids) * len(encoded.document_ids) <= KEPT:
            all_tiles = scored = list(all_tiles)
        fitted = standardised(hybrid, share.group.exchange(score_sums(all_tiles)))
        judged = {query: qrels[query] for query in encoded.query_ids}
        metrics: list[dict[str, float]] = []
        weights = list(GRID if grid is None else grid)
        while weights:
            rankings = rank_views(
                encoded.queries,
                encoded.documents,
                encoded.query_ids,
                encoded.document_ids,
                {str(weight): view("hybrid", replace(fitted, late=weight)) for weight in weights},
                top=cut,
                device=device,
                scored=scored,
                identical_ids=encoded.identical_ids,
                share=share,
            )
            for weight in weights:
                values = measure(judged, rankings[str(weight)], [cut])[f"ndcg@{cut}"]
                metrics.append({"late": weight, **interval(values)})
            metrics.sort(key=lambda metric: metric["late"])
            weights = _continued(metrics) if grid is None else []
    return replace(fitted, late=_smallest_best(metrics)), metrics


def _smallest_best(metrics: Sequence[Mapping[str, float]]) -> float:
    best = max(metric["value"] for metric in metrics)
    return next(metric["late"] for metric in metrics if metric["value"] >= best - ENOUGH)


def _continued(metrics: Sequence[Mapping[str, float]]) -> list[float]:
    """Return the next weight to try beyond the end at which the best one lies; [] inside, and at LOWEST and HIGHEST.

    metrics: sorted by weight. At the lower end the values must still rise towards it: where the late score does not
    matter any more, every smaller weight has the same value, and would be chosen.
    """
    first, second, last = metrics[0], metrics[1], metrics[-1]
    chosen = _smallest_best(metrics)
    if chosen == last["late"] < HIGHEST:
        return [2 * last["late"]]
    if chosen == first["late"] > LOWEST and first["value"] > second["value"] + ENOUGH:
        return [first["late"] / 2]
    return []


def at_edge(weight: float) -> str | None:
    """Return a sentence about a calibrated weight at an end of what calibration tries; None for any other.

    >>> at_edge(2.0)
    >>> at_edge(128.0)
    'the late weight 128 is the largest that calibration tries: the pooled score adds little'
    """
    if weight not in (LOWEST, HIGHEST):
        return None
    end, other = ("largest", "pooled") if weight == HIGHEST else ("smallest", "late")
    return f"the late weight {weight:g} is the {end} that calibration tries: the {other} score adds little"


Sums = tuple[int, float, float, float, float]
"""Number of pairs; sum and sum of squares of their pooled scores, then of their late scores."""


def score_sums(scored: Iterable[Tile]) -> Sums:
    """Sum the scores of tiles that cover all pairs once, in float64."""
    count, sums = 0, [0.0] * 4
    for _, _, *both in scored:
        count += both[0].numel()
        for at, scores in enumerate(both):
            sums[2 * at] += float(scores.double().sum())
            sums[2 * at + 1] += float(scores.double().square().sum())
    return count, sums[0], sums[1], sums[2], sums[3]


def standardised(hybrid: HybridBlock, sums: Sequence[Sums]) -> HybridBlock:
    """Return the block with the mean and standard deviation of each score, from the sums of all ranks.

    Raises EvaluationError if one of the scores does not vary.
    """
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
