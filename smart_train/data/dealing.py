"""Pairs dealt to batches in which no document comes twice: how many batches there can be, and which pair goes where.

Knows: numbers.  Does not know: collections, epochs, ranks.
Letters: P pairs, U different documents, K batches, G pairs of a batch.  ``kin`` [P] int64 numbers the documents of the
pairs; pairs with one number never share a batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def most(counts: Ints, least: int) -> int:
    """The largest K for which K batches of ``least`` pairs each can be filled; 0 where not one can.

    counts: [U], pairs of each document.  K batches hold at most K pairs of a document, so sum(min(count, K)) must
    reach K x ``least``; ``deal`` shows that this is enough.  A smaller K is possible wherever a larger one is, since
    min(count, K) / K only falls as K grows.
    """
    low, high = 0, int(counts.sum()) // least
    while low < high:
        middle = (low + high + 1) // 2
        if int(np.minimum(counts, middle).sum()) >= middle * least:
            low = middle
        else:
            high = middle - 1
    return low


def occurrence(kin: Ints) -> Ints:
    """[P]: how many pairs of the same document stand before each."""
    order = np.argsort(kin, kind="stable")
    new = np.r_[True, kin[order][1:] != kin[order][:-1]][: len(kin)]
    place = np.arange(len(kin), dtype=np.int64)
    out = np.empty_like(place)
    out[order] = place - place[new][np.cumsum(new) - 1]
    return out


def choose(kin: Ints, batches: int, size: int, rng: np.random.Generator) -> Ints:
    """Places of a random P' <= batches x size pairs, in random order, at most ``batches`` of a document."""
    shuffled = rng.permutation(len(kin))
    return shuffled[occurrence(kin[shuffled]) < batches][: batches * size]


def deal(kin: Ints, batches: int, rng: np.random.Generator) -> list[Ints]:
    """Places [P] divided among the batches at random; sizes differ by at most one, and no batch has a document twice.

    No document may have more than ``batches`` pairs.  Documents come in random order, each with its pairs together,
    and every round deals one pair to each batch, in a random order of the batches.  A document met by the end of one
    round goes on in the next, whose order begins with batches that do not have it yet; it has at most K pairs, so
    there are enough of those.  O(P log P).
    """
    if not len(kin):
        return [np.empty(0, dtype=np.int64) for _ in range(batches)]
    rank = rng.permutation(int(kin.max()) + 1)[kin]
    order = np.lexsort((rng.random(len(kin)), rank))
    run = rank[order]
    rounds = -(-len(kin) // batches)
    table = rng.permuted(np.tile(np.arange(batches, dtype=np.int64), (rounds, 1)), axis=1)
    for number in range(1, rounds):
        border = number * batches
        document = run[border]
        if run[border - 1] == document:
            begin, end = np.searchsorted(run, document), np.searchsorted(run, document, side="right")
            had = table[number - 1, batches - (border - begin) :]
            free = table[number][~np.isin(table[number], had)][: end - border]
            table[number] = np.r_[free, table[number][~np.isin(table[number], free)]]
    batch = table.reshape(-1)[: len(kin)]
    return np.split(order[np.argsort(batch, kind="stable")], np.cumsum(np.bincount(batch, minlength=batches))[:-1])


def alike(parts: list[Ints], kin: Ints, lengths: Ints) -> list[Ints]:
    """The same pairs in parts of the same sizes, each of documents of like length; still no document twice in one.

    A document with a pair for every part that is left is taken at once, else there would be too few parts for it; the
    rest is taken from the shortest on.  The largest parts come first, so there is always room for the former.
    """
    pool = np.concatenate(parts)
    pool = pool[np.argsort(lengths[pool], kind="stable")]
    made = []
    for done, size in enumerate(sorted(map(len, parts), reverse=True)):
        _, group, counts = np.unique(kin[pool], return_inverse=True, return_counts=True)
        first = occurrence(kin[pool]) == 0
        must = first & (counts[group] == len(parts) - done)
        taken = must.copy()
        taken[np.flatnonzero(first & ~must)[: size - int(must.sum())]] = True
        made.append(pool[taken])
        pool = pool[~taken]
    return made


def shares(weights: NDArray[np.float64], total: int) -> Ints:
    """Whole numbers in proportion to the weights (largest remainder), none of them 0; they add up to ``total``, or to
    more where that takes many of them."""
    exact = weights / weights.sum() * total
    found = np.maximum(1, np.floor(exact)).astype(np.int64)
    for place in np.argsort(np.floor(exact) - exact, kind="stable")[: max(0, total - int(found.sum()))]:
        found[place] += 1
    return found
