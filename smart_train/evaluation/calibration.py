"""Calibrate the hybrid score on a dev split: its late weight, and the means and deviations of both scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from smart_train.config.schema import HybridBlock
from smart_train.core.errors import EvaluationError
from smart_train.distributed.process_group import ProcessGroup
from smart_train.evaluation.encode import Encoded, encode
from smart_train.evaluation.metrics import interval, measure
from smart_train.evaluation.protocols import Collection, Encoder
from smart_train.evaluation.ranking import rank_views
from smart_train.evaluation.scoring import Tile, check, checked, tiles, view
from smart_train.evaluation.sharding import Share

KEPT = 1 << 25  # query-document pairs whose two scores are kept (256 MiB) rather than computed a second time
GRID = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # late weights tried, next to the pooled weight as it is
ENOUGH = 0.001  # nDCG: a tenth of a point is noise on any dev split, and a smaller weight strays less from the pooled


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
        encoded, collection.qrels, encoder.late.hybrid, grid=grid, cut=cut, device=getattr(encoder, "device", None)
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
            identical_ids=encoded.identical_ids,
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
