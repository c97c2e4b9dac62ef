"""Alignment, uniformity and hubness against plain loops in float64, and against scipy's skewness."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from smart_train.core.errors import EvaluationError
from smart_train.probing import layer_probe as diagnostics
from smart_train.probing.layer_probe import alignment, hubness, occurrences, uniformity


def unit(rows: int, width: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(rows, width))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def squared(x: np.ndarray, y: np.ndarray) -> float:
    return sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True))


def test_alignment_is_the_mean_squared_distance_of_pairs():
    queries, documents = unit(7, 5, 0), unit(7, 5, 1)
    by_hand = sum(squared(q, x) for q, x in zip(queries, documents, strict=True)) / 7
    assert alignment((queries * documents).sum(1)) == pytest.approx(by_hand, abs=1e-12)
    assert alignment([1.0, 1.0]) == 0.0 and alignment([0.0]) == 2.0
    with pytest.raises(EvaluationError, match="no relevant query-document pair"):
        alignment([])


def test_alignment_of_late_scores_is_the_mean_distance_to_the_nearest_token():
    queries = [unit(n, 6, n) for n in (1, 3, 2)]
    documents = [unit(n, 6, n + 40) for n in (4, 2, 5)]
    scores, distances = [], []
    for q, x in zip(queries, documents, strict=True):
        scores.append(np.mean([max(float(t @ u) for u in x) for t in q]))
        distances.append(np.mean([min(squared(t, u) for u in x) for t in q]))
    assert alignment(scores) == pytest.approx(float(np.mean(distances)), abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(2, 8), st.integers(0, 10**6), st.integers(1, 9))
def test_uniformity_is_that_of_a_plain_loop_whatever_the_blocks(rows, width, seed, block):
    vectors = unit(rows, width, seed)
    pairs = [(i, j) for i in range(rows) for j in range(rows) if i != j]
    by_hand = math.log(sum(math.exp(-2 * squared(vectors[i], vectors[j])) for i, j in pairs) / len(pairs))
    before, diagnostics.BLOCK = diagnostics.BLOCK, block
    try:
        assert uniformity(vectors.astype(np.float32)) == pytest.approx(by_hand, abs=1e-6)
        assert uniformity(vectors) == pytest.approx(by_hand, abs=1e-12)
    finally:
        diagnostics.BLOCK = before


def test_uniformity_is_0_in_one_point_and_lower_the_wider_vectors_lie_apart():
    assert uniformity(np.tile(unit(1, 4, 0), (5, 1))) == pytest.approx(0.0, abs=1e-12)
    assert uniformity(np.eye(6)) == pytest.approx(-4.0)  # all at right angles: squared distance 2
    narrow = unit(20, 6, 1) + 3 * np.ones(6)
    narrow /= np.linalg.norm(narrow, axis=1, keepdims=True)
    assert uniformity(unit(20, 6, 1)) < uniformity(narrow) < 0
    with pytest.raises(EvaluationError, match="there are 1 documents"):
        uniformity(np.ones((1, 3)))


def test_occurrences_count_the_queries_that_find_a_document_among_the_first_k():
    rankings = {"a": [("x", 3.0), ("y", 2.0), ("z", 1.0)], "b": [("y", 1.0), ("x", 0.5)], "c": [("y", 1.0)]}
    assert occurrences(rankings, ["x", "y", "z", "w"], k=1).tolist() == [1, 2, 0, 0]
    assert occurrences(rankings, ["x", "y", "z", "w"], k=2).tolist() == [2, 3, 0, 0]
    assert occurrences(rankings, ["w", "z", "y", "x"]).tolist() == [0, 1, 3, 2]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=2, max_size=60).filter(lambda counts: len(set(counts)) > 1))
def test_hubness_is_the_skewness_of_a_plain_loop_and_of_scipy(counts):
    found = hubness(np.array(counts))
    mean = sum(counts) / len(counts)
    second = sum((n - mean) ** 2 for n in counts) / len(counts)
    third = sum((n - mean) ** 3 for n in counts) / len(counts)
    assert found["skewness"] == pytest.approx(third / second**1.5, rel=1e-9, abs=1e-9)
    assert found["skewness"] == pytest.approx(float(scipy.stats.skew(counts)), rel=1e-6, abs=1e-6)
    assert found["largest"] == max(counts) and found["never"] == counts.count(0) / len(counts)


def test_equal_counts_have_no_skewness():
    assert hubness(np.array([3, 3, 3])) == {"skewness": None, "largest": 3.0, "never": 0.0}
