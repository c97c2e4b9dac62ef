"""What a layer's geometry is like, beside what it finds: alignment, uniformity, hubness.

Nothing is chosen by them.  Alignment and uniformity are Wang and Isola's (ICML 2020, "Understanding
contrastive representation learning through alignment and uniformity on the hypersphere"), hubness is Radovanovic,
Nanopoulos and Ivanovic's (JMLR 2010, "Hubs in space").  All sums are float64.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from smart_train.config.schema import HybridBlock
from smart_train.core.errors import EvaluationError
from smart_train.evaluation.calibration import ENOUGH, GRID, score_sums, standardised
from smart_train.evaluation.metrics import Interval, Ranking, interval, measure, paired
from smart_train.evaluation.scoring import View, view
from smart_train.evaluation.topk import TopK
from smart_train.probing.layer_scores import LayerScores, Side

NEAREST = 10  # k of N_k: the documents of a first page of results
BLOCK = 512  # rows of a block of pairs


def alignment(scores: Sequence[float] | np.ndarray) -> float:
    """Mean squared distance of a query to a document that answers it; 0 is best, 2 is at right angles.

        alignment = E ||f(q) - f(x)||^2 = E (2 - 2 s(q, x))        over all pairs (q, x) judged relevant

    scores: [pairs], cosines.  Pooled: s = p_q . p_x.  Tokens: s = s_late, so that the distance is the mean over the
        query's tokens of ||t_qi - t_xj||^2 to the document's nearest token, which is what MaxSim looks at.
    Raises EvaluationError where there is no pair.
    """
    array = np.asarray(scores, dtype=np.float64)
    if array.size == 0:
        raise EvaluationError("there is no pair of a query and an answer in the corpus: alignment has no mean")
    return float((2 - 2 * array).mean())


def uniformity(vectors: np.ndarray) -> float:
    """How evenly vectors lie on the sphere; lower is more even, 0 is all in one point.

        uniformity = log E exp(-2 ||x - y||^2)                     over all pairs of two different rows

    vectors: [n, d] of length 1.  Pooled: a sample of documents.  Tokens: one token of each of those documents, drawn
        alike for every layer, so that no two are of one text and long documents count no more than short ones.
    Raises EvaluationError for fewer than two rows.
    """
    rows = np.asarray(vectors, dtype=np.float64)
    count = len(rows)
    if count < 2:
        raise EvaluationError(f"uniformity needs pairs of documents, and there are {count} documents")
    total = 0.0
    for begin in range(0, count, BLOCK):
        block = rows[begin : begin + BLOCK]
        squared = np.maximum(0.0, (block**2).sum(1)[:, None] + (rows**2).sum(1)[None, :] - 2 * block @ rows.T)
        squared[np.arange(len(block)), np.arange(begin, begin + len(block))] = np.inf  # a row is no pair with itself
        total += float(np.exp(-2 * squared).sum())
    return float(np.log(total / (count * (count - 1))))


def occurrences(rankings: Mapping[str, Ranking], documents: Iterable[str], k: int = NEAREST) -> np.ndarray:
    """N_k of every document, in the order given: for how many queries it is among the first k.  [N] int64"""
    counts = Counter(document for ranking in rankings.values() for document, _ in ranking[:k])
    return np.array([counts[document] for document in documents], dtype=np.int64)


def hubness(counts: np.ndarray) -> dict[str, float | None]:
    """{"skewness", "largest", "never"} of the k-occurrences [N] of a corpus.

        skewness = E (N_k - mean)^3 / std^3                        over all documents of the corpus

    0 = answers are spread evenly on both sides; far above 0 = a few documents (hubs) are found for everything.  None
    where all counts are equal, as in a corpus of at most k documents.
    largest: the greatest N_k; never: share of the documents that no query finds among its first k
    """
    values = np.asarray(counts, dtype=np.float64)
    centred = values - values.mean()
    std = float(np.sqrt((centred**2).mean()))
    skewness = float((centred**3).mean() / std**3) if std > 0 else None
    return {"skewness": skewness, "largest": float(values.max()), "never": float((values == 0).mean())}


# Which layer and which weights, before any training: chosen on the dev split, reported on the test split.

logger = logging.getLogger(__name__)

Layer = int | list[int]
"""As ``late.layer`` is written; a list is a learned mix."""

SURE = 0.05  # chance that no reading is better than the pooled score and the best of them yet looks so
DRAWS = 1000  # at the least, of the test behind that chance: fewer could not tell 0.05 from 0.01
SCALINGS = ("none", "standardised")


@dataclass
class Reading:
    """One way to rank, and what it found.

    layer: None for the pooled score alone; hybrid: weights, scaling and the layer's constants, fitted on dev
    dev, test: nDCG@cut with its interval; values: of each dev and test query, in the order of their sorted ids, so that
        intervals are those of ``evaluate`` to the last digit
    """

    layer: Layer | None
    mode: str
    hybrid: HybridBlock
    dev: Interval
    test: Interval
    values: dict[str, np.ndarray]

    def named(self) -> str:
        if self.mode != "hybrid":
            return self.mode if self.layer is None else f"{self.mode}, {spoken(self.layer)}"
        how = "standardised scores, " if self.hybrid.scaling == "standardised" else ""
        return f"hybrid, {spoken(self.layer)}, {how}late weight {self.hybrid.late:g}"


@dataclass
class Probe:
    """readings: the pooled one first; diagnostics: of the pooled vectors, then of each layer's tokens
    looked_best: the best reading on dev, by its place; chosen: the simplest that comes within ENOUGH of it, or the
    pooled one where that one's gain is not beyond noise; gains: {"dev", "test"} of ``looked_best``'s simplest stand-in
    over the pooled score, paired
    p: chance of such a gain on dev where no reading is better, given that the best of all was looked for
    """

    layers: list[Layer]
    readings: list[Reading]
    diagnostics: list[dict[str, Any]]
    best: int
    candidate: int
    chosen: int
    p: float
    gains: dict[str, dict[str, float]]
    sizes: dict[str, dict[str, int]]
    seconds: dict[str, float]
    cut: int
    weights: list[float]
    bootstrap: int
    seed: int
    flat: list[Layer]  # layers whose scores do not vary: they have no standardised reading

    def of_layer(self, layer: Layer) -> list[Reading]:
        return [one for one in self.readings if one.layer == layer]

    def best_hybrid(self, layer: Layer) -> Reading:
        """The layer's hybrid that dev chooses."""
        own = [one for one in self.of_layer(layer) if one.mode == "hybrid"]
        return own[_choose(own, self.layers)]


def spoken(layer: Layer | None) -> str:
    return "a mix of layers" if isinstance(layer, list) else "last layer" if layer == -1 else f"layer {layer}"


def probe(
    scores: LayerScores,
    layers: Sequence[Layer],
    *,
    weights: Sequence[float] = GRID,
    cut: int = 10,
    bootstrap: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Probe:
    """Measures every reading of every layer on the sides "dev" and "test", and chooses one by dev alone.

    layers: as they stand in the scores; weights: of the late score in hybrids, next to 1 for the pooled one
    cut: of the nDCG that is measured; bootstrap, seed: of the intervals
    A layer whose scores (or whose pooled ones) do not vary on dev has no standardised reading, which is told.
    Raises EvaluationError where no dev query has an answer in the corpus.
    """
    dev, test = scores.sides["dev"], scores.sides["test"]
    readings: list[Reading] = []
    told, flat = [], []
    for at, layer in enumerate(tqdm(layers, desc="ranking layers", leave=False, disable=None if progress else True)):
        fitted = _constants(dev, at)
        if fitted is None:
            flat.append(layer)
        views = _readings(layer, fitted, weights, first=at == 0)
        rankings = {side.name: _rank(side, at, [one for *_, one in views], cut) for side in (dev, test)}
        for place, (of_layer, mode, hybrid, _) in enumerate(views):
            values = {side.name: _values(side, rankings[side.name][place], cut) for side in (dev, test)}
            spans = {name: interval(found, bootstrap, seed) for name, found in values.items()}
            readings.append(Reading(of_layer, mode, hybrid, spans["dev"], spans["test"], values))
            if mode != "hybrid":
                ranked = rankings["dev"][place]
                told.append(_diagnose(scores, dev, ranked, 0 if of_layer is None else 1 + at, of_layer))
    if flat:
        logger.warning("layers %s: a score is the same for all pairs of dev, and is not standardised", flat)
    chosen = _decide(readings, list(layers), max(DRAWS, bootstrap), seed)
    gains = {name: _gain(readings, chosen["candidate"], name, bootstrap, seed) for name in ("dev", "test")}
    sizes = {side.name: {"queries": len(side.query_ids), "documents": len(side.document_ids)} for side in (dev, test)}
    return Probe(
        list(layers), readings, told, **chosen, gains=gains, sizes=sizes, seconds=dict(scores.seconds), cut=cut,
        weights=sorted(weights), bootstrap=bootstrap, seed=seed, flat=flat,
    )  # fmt: skip


def _constants(dev: Side, at: int) -> HybridBlock | None:
    """Means and deviations of the two scores over all dev queries and documents; None where one does not vary."""
    try:
        return standardised(HybridBlock(), [score_sums(dev.blocks(at))])
    except EvaluationError:
        return None


def _readings(
    layer: Layer, fitted: HybridBlock | None, weights: Sequence[float], first: bool
) -> list[tuple[Layer | None, str, HybridBlock, View]]:
    """(layer, mode, hybrid, view): pooled where ``first``, the layer's late score, then its hybrids."""
    constants = fitted or HybridBlock()
    found: list[tuple[Layer | None, str, HybridBlock]] = []
    if first:
        found.append((None, "pooled", replace(constants, pooled=1.0, late=0.0)))
    found.append((layer, "late", replace(constants, pooled=0.0, late=1.0)))
    for scaling in SCALINGS if fitted is not None else SCALINGS[:1]:
        found += [(layer, "hybrid", replace(constants, late=w, scaling=scaling)) for w in sorted(weights)]  # type: ignore[arg-type]
    return [(of, mode, hybrid, view(mode, hybrid)) for of, mode, hybrid in found]


def _rank(side: Side, at: int, views: Sequence[View], cut: int) -> list[dict[str, Ranking]]:
    """The rankings of each view: the same scores, order and ties as ``rank_views`` gives."""
    best = [TopK(max(cut, NEAREST), one.noise, side.identical_ids) for one in views]
    for _, documents, pooled, late in side.blocks(at):
        for one, kept in zip(views, best, strict=True):
            kept.add(one.score(pooled, late), documents.start)
    return [kept.rankings(side.query_ids, side.document_ids) for kept in best]


def _values(side: Side, rankings: Mapping[str, Ranking], cut: int) -> np.ndarray:
    """[B] nDCG@cut, in the order of the sorted query ids."""
    found = measure({query: side.qrels[query] for query in side.query_ids}, rankings, [cut])[f"ndcg@{cut}"]
    return np.array([found[query] for query in sorted(side.query_ids)])


def _diagnose(
    scores: LayerScores, dev: Side, rankings: Mapping[str, Ranking], place: int, layer: Layer | None
) -> dict[str, Any]:
    """Of pooled vectors (place 0) or a layer's tokens (1 + l): alignment and hubness of the dev split's pairs and
    rankings, uniformity of the sample of both splits' documents."""
    vectors = scores.sample.vectors(place)
    counts = occurrences(rankings, dev.document_ids)
    return {
        "layer": layer,
        "alignment": alignment(dev.answers(place)),
        "uniformity": uniformity(vectors) if len(vectors) > 1 else None,
        "hubness": hubness(counts),
    }


# Choosing -------------------------------------------------------------------------------------------------------------


def _decide(readings: Sequence[Reading], layers: list[Layer], draws: int, seed: int) -> dict[str, Any]:
    """By dev alone: the best, the simplest that is as good, and whether that one is better than pooled at all."""
    best = int(np.argmax([one.dev["value"] for one in readings]))
    candidate = _choose(readings, layers)
    p = chance(
        np.stack([one.values["dev"] for one in readings[1:]]), readings[0].values["dev"], candidate - 1, draws, seed
    )
    return {"best": best, "candidate": candidate, "chosen": candidate if p < SURE else 0, "p": p}


def _choose(readings: Sequence[Reading], layers: list[Layer]) -> int:
    """Of those within ENOUGH of the best on dev the simplest: pooled alone; then hybrids, near the last layer before
    far from it, raw before standardised, a small weight (which strays less from pooled) before a large one; then late
    alone."""
    best = max(one.dev["value"] for one in readings)
    places = [at for at, one in enumerate(readings) if one.dev["value"] >= best - ENOUGH]

    def effort(at: int) -> tuple[float, ...]:
        one = readings[at]
        if one.layer is None:
            return (0,)
        away = len(layers) - 1 - layers.index(one.layer)
        late_alone = one.mode == "late"
        return (1, away, late_alone, one.hybrid.scaling == "standardised", one.hybrid.late)

    return min(places, key=effort)


def chance(values: np.ndarray, pooled: np.ndarray, chosen: int, draws: int = DRAWS, seed: int = 0) -> float:
    """How often the best of C readings would gain as much as the chosen one did, if none were better than pooled.

    values: [C, B] of each reading and query; pooled: [B]; chosen: a row of values
    One-sided sign-flip test whose statistic is the maximum over the readings (Westfall and Young 1993) of the mean gain
    in units of the reading's root mean square gain, without which the readings that scatter most (a layer far below the
    last, alone) would set the bar for all: whoever looks at a hundred readings finds one that looks good, and this
    takes that into account.  At least 1 / (draws + 1), and 1 for ``chosen`` = -1, the pooled score itself.
    """
    if chosen < 0:
        return 1.0
    gains = np.asarray(values, dtype=np.float64) - pooled
    scale = np.sqrt((gains**2).mean(1, keepdims=True))  # the same whatever the signs
    gains = gains / np.where(scale > 0, scale, 1.0)
    observed = gains[chosen].mean()
    rng, count, at_least = np.random.default_rng(seed), gains.shape[1], 0
    for begin in range(0, draws, 100):
        signs = rng.integers(0, 2, (min(100, draws - begin), count), dtype=np.int8) * 2.0 - 1
        # a hair below, since the same sum in another order may differ in its last bit
        at_least += int(((signs @ gains.T).max(1) / count >= observed - 1e-12).sum())
    return (at_least + 1) / (draws + 1)


def _gain(readings: Sequence[Reading], at: int, side: str, bootstrap: int, seed: int) -> dict[str, float]:
    a, b = (dict(enumerate(readings[place].values[side].tolist())) for place in (at, 0))
    return paired(a, b, bootstrap, seed)  # type: ignore[arg-type]
