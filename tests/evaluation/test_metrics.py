"""Measures against formulas written out here, intervals against numpy's own words."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smart_train.core.errors import EvaluationError
from smart_train.evaluation.metrics import interval, measure, paired

DOCUMENTS = [f"d{i}" for i in range(8)]
grades = st.dictionaries(st.sampled_from(DOCUMENTS), st.integers(0, 3), max_size=8)
orders = st.permutations(DOCUMENTS).flatmap(lambda order: st.integers(0, 8).map(lambda n: list(order[:n])))


def by_formula(judged: dict[str, int], order: list[str], k: int) -> dict[str, float]:
    gains = [judged.get(document, 0) for document in order[:k]]
    ideal = sorted(judged.values(), reverse=True)[:k]
    discounted = [sum(g / math.log2(rank + 1) for rank, g in enumerate(some, 1)) for some in (gains, ideal)]
    places = [rank for rank, gain in enumerate(gains, 1) if gain > 0]
    relevant = sum(grade > 0 for grade in judged.values())
    return {
        f"ndcg@{k}": discounted[0] / discounted[1],
        f"recall@{k}": len(places) / relevant,
        f"mrr@{k}": 1 / places[0] if places else 0.0,
        f"success@{k}": float(bool(places)),
    }


def ranking(order: list[str], score: float = 1.0) -> list[tuple[str, float]]:
    return [(document, score) for document in order]


@settings(max_examples=150, deadline=None)
@given(grades, orders, st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True))
def test_every_measure_is_its_formula_with_linear_gain(judged, order, cuts):
    found = measure({"q": judged}, {"q": ranking(order)}, cuts)
    if not any(judged.values()):
        assert all(values == {} for values in found.values())
        return
    expected = {name: value for k in cuts for name, value in by_formula(judged, order, k).items()}
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name]["q"] == pytest.approx(value, abs=1e-6), name


def test_equal_scores_keep_the_order_they_were_ranked_in():
    for order in itertools.permutations(["a", "b", "c"]):
        found = measure({"q": {"b": 1}}, {"q": ranking(list(order))}, [1])
        assert found["success@1"]["q"] == float(order[0] == "b")


def test_gain_is_linear_and_not_exponential():
    found = measure({"q": {"a": 3, "b": 1}}, {"q": ranking(["b", "a"])}, [10])["ndcg@10"]["q"]
    assert found == pytest.approx((1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3)), abs=1e-6)
    assert found != pytest.approx((1 + 7 / math.log2(3)) / (7 + 1 / math.log2(3)), abs=1e-3)


def test_a_judged_query_without_a_ranking_is_an_error_that_names_it():
    with pytest.raises(EvaluationError, match="'q2'"):
        measure({"q1": {"a": 1}, "q2": {"a": 1}}, {"q1": ranking(["a"])}, [1])


def test_a_document_ranked_twice_is_an_error():
    with pytest.raises(EvaluationError, match="has a document twice"):
        measure({"q": {"a": 1}}, {"q": ranking(["a", "b", "a"])}, [3])


@pytest.mark.parametrize("cuts", [[], [0], [5, -1]])
def test_cut_offs_below_one_are_an_error(cuts):
    with pytest.raises(EvaluationError, match="cut-offs of 1 or more"):
        measure({"q": {"a": 1}}, {"q": ranking(["a"])}, cuts)


def test_the_interval_is_the_percentile_bootstrap_of_the_mean():
    rng = np.random.default_rng(3)
    values = rng.beta(2, 1, 200)
    found = interval(list(values), bootstrap=4000, seed=1)
    theirs = np.random.default_rng(77)
    means = [theirs.choice(values, len(values)).mean() for _ in range(4000)]
    low, high = np.quantile(means, [0.025, 0.975])
    assert found["value"] == pytest.approx(values.mean())
    assert found["low"] == pytest.approx(low, abs=0.004)
    assert found["high"] == pytest.approx(high, abs=0.004)
    # the textbook width of a mean's interval
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * values.std() / math.sqrt(200), rel=0.1)


def test_an_interval_depends_on_the_seed_and_on_nothing_else(monkeypatch):
    values = {f"q{i}": i % 7 / 7 for i in range(50)}
    first = interval(values, 500, seed=5)
    assert first == interval(dict(reversed(values.items())), 500, seed=5)
    assert first != interval(values, 500, seed=6)
    monkeypatch.setattr("smart_train.evaluation.metrics.RESAMPLED", 123)  # drawn in many portions
    portioned = interval(values, 500, seed=5)
    assert portioned == pytest.approx(first)


def test_nothing_to_average_is_an_error_and_not_a_zero():
    with pytest.raises(EvaluationError, match="no query to average"):
        interval({})
    with pytest.raises(EvaluationError, match="evaluation.bootstrap"):
        interval([1.0], bootstrap=0)


def test_a_paired_difference_is_symmetric():
    rng = np.random.default_rng(0)
    a = {f"q{i}": float(v) for i, v in enumerate(rng.random(40))}
    b = {q: v * 0.9 for q, v in a.items()}
    forth, back = paired(a, b, 800, 2), paired(b, a, 800, 2)
    assert forth["p"] == back["p"]
    assert forth["value"] == pytest.approx(-back["value"])
    assert forth["low"] == pytest.approx(-back["high"])
    assert forth["high"] == pytest.approx(-back["low"])


def test_p_is_that_of_the_exact_sign_flip_test():
    difference = [0.5, -0.1, 0.3, 0.2, 0.4, -0.2, 0.1, 0.3]
    flips = [abs(np.dot(signs, difference)) for signs in itertools.product([1, -1], repeat=8)]
    exact = np.mean([flip >= sum(difference) - 1e-9 for flip in flips])
    found = paired({str(i): d for i, d in enumerate(difference)}, {str(i): 0.0 for i in range(8)}, 20000, 0)
    assert found["p"] == pytest.approx(exact, abs=0.01)


def test_no_difference_has_p_one_and_a_clear_one_a_small_p():
    values = {f"q{i}": i / 30 for i in range(30)}
    assert paired(values, values, 200)["p"] == 1.0
    better = {q: v + 0.2 for q, v in values.items()}
    clear = paired(better, values, 999)
    assert clear["p"] == pytest.approx(1 / 1000)
    assert clear["low"] > 0


def test_a_pair_needs_the_same_queries():
    with pytest.raises(EvaluationError, match="'only'"):
        paired({"q": 1.0, "only": 0.0}, {"q": 1.0})
