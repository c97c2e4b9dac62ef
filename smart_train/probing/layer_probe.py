"""Choose a layer, a late weight and a scaling without training: fitted and chosen on dev, reported on test.

The diagnostics of every layer (alignment, uniformity, hubness) are only reported; nothing is chosen by them. Alignment
and uniformity are Wang and Isola's (ICML 2020, "Understanding contrastive representation learning through alignment
and uniformity on the hypersphere"), hubness is Radovanovic, Nanopoulos and Ivanovic's (JMLR 2010, "Hubs in space").
All sums are float64.
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
from smart_train.probing.layer_scores import LayerScores, SplitScores

logger = logging.getLogger(__name__)

Layer = int | list[int]
"""As ``late.layer`` is written; a list is a learned mix."""

SURE = 0.05  # chance at which a gain over the pooled score counts as noise
DRAWS = 1000  # of the test behind that chance, at the least: fewer cannot tell 0.05 from 0.01
SCALINGS = ("none", "standardised")
NEAREST = 10  # k of N_k: the documents of a first page of results
BLOCK = 512  # rows of a block of pairs


@dataclass
class Configuration:
    """One way to rank, and its metric.

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

    def describe(self) -> str:
        if self.mode != "hybrid":
            return self.mode if self.layer is None else f"{self.mode}, {describe_layer(self.layer)}"
        how = "standardised scores, " if self.hybrid.scaling == "standardised" else ""
        return f"hybrid, {describe_layer(self.layer)}, {how}late weight {self.hybrid.late:g}"


@dataclass
class Probe:
    """The result of probing.

    configurations: the pooled one first; diagnostics: of the pooled vectors, then of each layer's tokens
    best: place of the best configuration on dev; candidate: the simplest that comes within ENOUGH of it; chosen: the
        candidate, or the pooled one if the candidate's gain is not beyond noise
    p: chance of the candidate's gain on dev if no configuration is better than pooled, see ``chance``
    gains: {"dev", "test"} of the candidate over the pooled score, paired
    flat: layers whose scores do not vary, which have no standardised configuration
    """

    layers: list[Layer]
    configurations: list[Configuration]
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
    flat: list[Layer]

    def of_layer(self, layer: Layer) -> list[Configuration]:
        return [one for one in self.configurations if one.layer == layer]

    def best_hybrid(self, layer: Layer) -> Configuration:
        """Return the layer's hybrid that dev chooses."""
        own = [one for one in self.of_layer(layer) if one.mode == "hybrid"]
        return own[_choose(own, self.layers)]


def describe_layer(layer: Layer | None) -> str:
    """Name a layer in words."""
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
    """Evaluate every configuration of every layer on the splits "dev" and "test", and choose one by dev alone.

    layers: in the order of the scores; weights: of the late score in hybrids, with 1 for the pooled score
    cut: cut-off of the nDCG; bootstrap, seed: of the intervals
    A layer whose scores (or the pooled scores) do not vary on dev has no standardised configuration, with a warning.
    Raises EvaluationError if no dev query has a relevant document in the corpus.
    """
    dev, test = scores.splits["dev"], scores.splits["test"]
    configurations: list[Configuration] = []
    diagnostics, flat = [], []
    for at, layer in enumerate(tqdm(layers, desc="ranking layers", leave=False, disable=None if progress else True)):
        fitted = _constants(dev, at)
        if fitted is None:
            flat.append(layer)
        views = _configurations(layer, fitted, weights, first=at == 0)
        rankings = {split.name: _rank(split, at, [one for *_, one in views], cut) for split in (dev, test)}
        for place, (of_layer, mode, hybrid, _) in enumerate(views):
            values = {split.name: _values(split, rankings[split.name][place], cut) for split in (dev, test)}
            spans = {name: interval(found, bootstrap, seed) for name, found in values.items()}
            configurations.append(Configuration(of_layer, mode, hybrid, spans["dev"], spans["test"], values))
            if mode != "hybrid":
                ranked = rankings["dev"][place]
                diagnostics.append(_diagnose(scores, dev, ranked, 0 if of_layer is None else 1 + at, of_layer))
    if flat:
        logger.warning("layers %s: a score is the same for all pairs of dev, and is not standardised", flat)
    chosen = _decide(configurations, list(layers), max(DRAWS, bootstrap), seed)
    gains = {name: _gain(configurations, chosen["candidate"], name, bootstrap, seed) for name in ("dev", "test")}
    sizes = {
        split.name: {"queries": len(split.query_ids), "documents": len(split.document_ids)} for split in (dev, test)
    }
    return Probe(
        list(layers),
        configurations,
        diagnostics,
        **chosen,
        gains=gains,
        sizes=sizes,
        seconds=dict(scores.seconds),
        cut=cut,
        weights=sorted(weights),
        bootstrap=bootstrap,
        seed=seed,
        flat=flat,
    )


def _constants(dev: SplitScores, at: int) -> HybridBlock | None:
    """Fit means and deviations of both scores over all dev queries x documents; None if one does not vary."""
    try:
        return standardised(HybridBlock(), [score_sums(dev.blocks(at))])
    except EvaluationError:
        return None


def _configurations(
    layer: Layer, fitted: HybridBlock | None, weights: Sequence[float], first: bool
) -> list[tuple[Layer | None, str, HybridBlock, View]]:
    """Return (layer, mode, hybrid, view) of pooled if ``first``, the layer's late score, and its hybrids."""
    constants = fitted or HybridBlock()
    found: list[tuple[Layer | None, str, HybridBlock]] = []
    if first:
        found.append((None, "pooled", replace(constants, pooled=1.0, late=0.0)))
    found.append((layer, "late", replace(constants, pooled=0.0, late=1.0)))
    for scaling in SCALINGS if fitted is not None else SCALINGS[:1]:
        found += [(layer, "hybrid", replace(constants, late=w, scaling=scaling)) for w in sorted(weights)]  # type: ignore[arg-type]
    return [(of, mode, hybrid, view(mode, hybrid)) for of, mode, hybrid in found]


def _rank(split: SplitScores, at: int, views: Sequence[View], cut: int) -> list[dict[str, Ranking]]:
    """Return the rankings of each view: the scores, order and ties of ``rank_views``."""
    best = [TopK(max(cut, NEAREST), one.noise, split.identical_ids) for one in views]
    for _, documents, pooled, late in split.blocks(at):
        for one, kept in zip(views, best, strict=True):
            kept.add(one.score(pooled, late), documents.start)
    return [kept.rankings(split.query_ids, split.document_ids) for kept in best]


def _values(split: SplitScores, rankings: Mapping[str, Ranking], cut: int) -> np.ndarray:
    """Return nDCG@cut [B], in the order of the sorted query ids."""
    found = measure({query: split.qrels[query] for query in split.query_ids}, rankings, [cut])[f"ndcg@{cut}"]
    return np.array([found[query] for query in sorted(split.query_ids)])


def _diagnose(
    scores: LayerScores, dev: SplitScores, rankings: Mapping[str, Ranking], place: int, layer: Layer | None
) -> dict[str, Any]:
    """Return the diagnostics of pooled vectors (place 0) or a layer's tokens (1 + l): alignment and hubness of the dev
    split's pairs and rankings, uniformity of a sample of both splits' documents."""
    vectors = scores.sample.vectors(place)
    counts = occurrences(rankings, dev.document_ids)
    return {
        "layer": layer,
        "alignment": alignment(dev.relevant_scores(place)),
        "uniformity": uniformity(vectors) if len(vectors) > 1 else None,
        "hubness": hubness(counts),
    }


# --- choosing


def _decide(configurations: Sequence[Configuration], layers: list[Layer], draws: int, seed: int) -> dict[str, Any]:
    """Choose by dev alone: the best, the simplest that is as good, and whether that one is better than pooled."""
    best = int(np.argmax([one.dev["value"] for one in configurations]))
    candidate = _choose(configurations, layers)
    p = chance(
        np.stack([one.values["dev"] for one in configurations[1:]]),
        configurations[0].values["dev"],
        candidate - 1,
        draws,
        seed,
    )
    return {"best": best, "candidate": candidate, "chosen": candidate if p < SURE else 0, "p": p}


def _choose(configurations: Sequence[Configuration], layers: list[Layer]) -> int:
    """Return the simplest of those within ENOUGH of the best on dev: pooled alone; then hybrids, near the last layer
    before far from it, raw before standardised, a small weight (which changes pooled less) before a large one; then
    late alone."""
    best = max(one.dev["value"] for one in configurations)
    places = [at for at, one in enumerate(configurations) if one.dev["value"] >= best - ENOUGH]

    def effort(at: int) -> tuple[float, ...]:
        one = configurations[at]
        if one.layer is None:
            return (0,)
        away = len(layers) - 1 - layers.index(one.layer)
        late_alone = one.mode == "late"
        return (1, away, late_alone, one.hybrid.scaling == "standardised", one.hybrid.late)

    return min(places, key=effort)


def chance(values: np.ndarray, pooled: np.ndarray, chosen: int, draws: int = DRAWS, seed: int = 0) -> float:
    """Return the chance that the best of C configurations gains as much as the chosen one if none beats pooled.

    values: [C, B] by configuration and query; pooled: [B]; chosen: a row of values
    One-sided sign-flip test (Westfall and Young 1993), which accounts for choosing the best of many configurations. Its
    statistic is the maximum over configurations of the mean gain in units of the configuration's root mean square gain;
    without the units, the configurations that vary most (late alone at a low layer) would set the bar for all. At least
    1 / (draws + 1), and 1 for ``chosen`` = -1, the pooled score itself.
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


def _gain(configurations: Sequence[Configuration], at: int, split: str, bootstrap: int, seed: int) -> dict[str, float]:
    a, b = (dict(enumerate(configurations[place].values[split].tolist())) for place in (at, 0))
    return paired(a, b, bootstrap, seed)  # type: ignore[arg-type]


# --- diagnostics


def alignment(scores: Sequence[float] | np.ndarray) -> float:
    """Return the mean squared distance of queries to their relevant documents; 0 is best, 2 is at right angles.

        alignment = E ||f(q) - f(x)||^2 = E (2 - 2 s(q, x))        over all pairs (q, x) judged relevant

    scores: [pairs], cosines.  Pooled: s = p_q . p_x.  Tokens: s = s_late, so that the distance is the mean over the
        query's tokens of ||t_qi - t_xj||^2 to the document's nearest token, which is what MaxSim looks at.
    Raises EvaluationError if there is no pair.
    """
    array = np.asarray(scores, dtype=np.float64)
    if array.size == 0:
        raise EvaluationError(
            "there is no relevant query-document pair in the corpus, so alignment has no mean; check the qrels"
        )
    return float((2 - 2 * array).mean())


def uniformity(vectors: np.ndarray) -> float:
    """Return how evenly vectors lie on the sphere; lower is more even, 0 is all in one point.

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
    """Return N_k [N] int64: for how many queries each document is among the first k, in the order given."""
    counts = Counter(document for ranking in rankings.values() for document, _ in ranking[:k])
    return np.array([counts[document] for document in documents], dtype=np.int64)


def hubness(counts: np.ndarray) -> dict[str, float | None]:
    """Return {"skewness", "largest", "never"} of the k-occurrences [N] of a corpus.

        skewness = E (N_k - mean)^3 / std^3                        over all documents of the corpus

    0 = counts are symmetric around the mean; far above 0 = a few documents (hubs) are found for everything. None if all
    counts are equal, as in a corpus of at most k documents.
    largest: the greatest N_k; never: share of the documents that no query finds among its first k
    """
    values = np.asarray(counts, dtype=np.float64)
    centred = values - values.mean()
    std = float(np.sqrt((centred**2).mean()))
    skewness = float((centred**3).mean() / std**3) if std > 0 else None
    return {"skewness": skewness, "largest": float(values.max()), "never": float((values == 0).mean())}
