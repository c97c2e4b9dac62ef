"""Pairs packed into batches: as many full ones as there can be, no document twice in one, and by chance otherwise."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from smart_train.data.batch_sampler import apportion, choose_pairs, max_batches, occurrence, pack, pack_by_length


def drawn(seed: int) -> tuple[np.ndarray, int, np.random.Generator]:
    """(documents of up to 40 pairs, some with many of them, a batch size, the generator)."""
    rng = np.random.default_rng(seed)
    documents = rng.integers(0, rng.integers(1, 16), rng.integers(1, 41)) // rng.integers(1, 4)
    return np.unique(documents, return_inverse=True)[1].astype(np.int64), int(rng.integers(1, 8)), rng


def can_be_filled(counts: np.ndarray, batches: int, size: int) -> bool:
    """A document's pairs flow into different batches, of which each takes ``size``: Ford and Fulkerson decide."""
    first, last = len(counts) + 1, len(counts) + batches + 1
    flow = np.zeros((last + 1, last + 1), dtype=np.int32)
    flow[0, 1:first], flow[1:first, first:last], flow[first:last, last] = counts, 1, size
    return maximum_flow(csr_array(flow), 0, last).flow_value == batches * size


@pytest.mark.parametrize("seed", range(40))
def test_there_are_as_many_full_batches_as_any_division_could_have(seed):
    documents, size, _ = drawn(seed)
    counts = np.bincount(documents)
    possible = [n for n in range(1, len(documents) // size + 1) if can_be_filled(counts, n, size)]
    assert max_batches(counts, size) == max(possible, default=0)


def test_what_is_packed_is_whole_and_no_batch_has_a_document_twice():
    straddled = 0
    for seed in range(400):
        documents, size, rng = drawn(seed)
        batches = max_batches(np.bincount(documents), size)
        if not batches:
            continue
        chosen = choose_pairs(documents, batches, size, rng)
        assert len(set(chosen.tolist())) == batches * size
        parts = [chosen[part] for part in pack(documents[chosen], batches, rng)]
        assert sorted(np.concatenate(parts)) == sorted(chosen)
        assert all(len(set(documents[part])) == len(part) == size for part in parts)
        straddled += batches > 1 and size > 1 and np.bincount(documents[chosen]).max() > 1
    assert straddled > 100, "documents with several pairs were packed"


def test_batches_that_take_every_pair_differ_by_one_at_most():
    for seed in range(200):
        documents, size, rng = drawn(seed)
        batches = max(-(-len(documents) // size), int(np.bincount(documents).max()))
        parts = pack(documents, batches, rng)
        assert len(parts) == batches and sorted(np.concatenate(parts)) == list(range(len(documents)))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert all(len(set(documents[part])) == len(part) for part in parts)


@pytest.mark.parametrize("each", [1, 2])
def test_which_pairs_meet_is_chance(each):
    """12 pairs of 12 / ``each`` documents in 4 batches of 3: pairs of two documents meet as often as any others."""
    documents, times, rng = np.arange(12) // each, 6000, np.random.default_rng(0)
    met = Counter(
        pair for _ in range(times) for part in pack(documents, 4, rng) for pair in combinations(sorted(part), 2)
    )
    strangers = [pair for pair in combinations(range(12), 2) if documents[pair[0]] != documents[pair[1]]]
    assert set(met) == set(strangers)
    expected = times * 4 * 3 / len(strangers)  # 4 batches, in each 3 ways to take 2 of 3
    assert max(abs(met[pair] - expected) for pair in strangers) < 5 * expected**0.5


def test_batches_of_like_length_hold_the_same_pairs():
    for seed in range(200):
        documents, size, rng = drawn(seed)
        batches = max(-(-len(documents) // size), int(np.bincount(documents).max()))
        lengths = rng.integers(0, 50, len(documents))
        before = pack(documents, batches, rng)
        after = pack_by_length(before, documents, lengths)
        assert sorted(np.concatenate(after)) == list(range(len(documents)))
        assert sorted(map(len, after)) == sorted(map(len, before))
        assert all(len(set(documents[part])) == len(part) for part in after)


def test_batches_of_like_length_are_the_sorted_pairs_cut():
    lengths = np.random.default_rng(0).permutation(24)
    parts = pack_by_length(pack(np.arange(24), 4, np.random.default_rng(1)), np.arange(24), lengths)
    assert [sorted(lengths[part].tolist()) for part in parts] == [list(range(i, i + 6)) for i in range(0, 24, 6)]


def test_occurrences_count_from_the_front():
    assert occurrence(np.array([3, 1, 3, 3, 1, 0])).tolist() == [0, 0, 1, 2, 1, 0]
    assert occurrence(np.array([], dtype=np.int64)).tolist() == []


@pytest.mark.parametrize(
    ("weights", "total", "expected"),
    [([1, 1, 2], 8, [2, 2, 4]), ([1, 1, 1], 8, [3, 3, 2]), ([1, 100], 10, [1, 9]), ([1, 1, 1], 2, [1, 1, 1])],
)
def test_shares_are_whole_and_none_is_nothing(weights, total, expected):
    assert apportion(np.array(weights, dtype=np.float64), total).tolist() == expected
