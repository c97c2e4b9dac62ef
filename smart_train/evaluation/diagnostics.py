"""What a layer's geometry is like, beside what it finds: alignment, uniformity, hubness.

Knows: scores, vectors, rankings.  Does not know: encoders, layers, collections.

Nothing is chosen by them.  Alignment and uniformity are Wang and Isola's (ICML 2020, "Understanding
contrastive representation learning through alignment and uniformity on the hypersphere"), hubness is Radovanovic,
Nanopoulos and Ivanovic's (JMLR 2010, "Hubs in space").  All sums are float64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from smart_train.evaluation.metrics import EvaluationError, Ranking

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
