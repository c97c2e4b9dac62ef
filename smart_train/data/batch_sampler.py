"""Pairs dealt to batches in which no document comes twice: how many batches there can be, and which pair goes where.

Letters: P pairs, U different documents, K batches, G pairs of a batch.  ``kin`` [P] int64 numbers the documents of the
pairs; pairs with one number never share a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from smart_train.core.errors import DataError
from smart_train.core.modality import length
from smart_train.data.collection import Collection, Document, first_few, hash_id

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


# Which pairs share a batch: one source per batch, no document twice in a step, the same order after a resume.

logger = logging.getLogger(__name__)

ALL, SMALL = "all pairs", "small sources together"  # names of sources that are none


@dataclass(frozen=True)
class Kin:
    """What is known of P pairs before they are drawn.

    documents: [P]; pairs with one number show the same document, by id or by content, and never share a batch
    sources: source -> places of its pairs; the pairs of a batch are of one source
    lengths: [P], characters of the document; 0 for an image, which is not opened here
    weights: source -> how often it is drawn; 1 where it is not named, and 0 leaves it out
    temperature: T; a source of n batches is drawn in proportion to weight x n ** (1 / T).  1 = every pair once an
        epoch; towards infinity = every source alike
    window: so many batches of a source are sorted by length together; 1 = no length grouping
    """

    documents: Ints
    sources: Mapping[str, Ints]
    lengths: Ints
    weights: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 1.0
    window: int = 1


def kin(
    collection: Collection,
    pairs: Sequence[tuple[str, str]],
    source: str | None = None,
    weights: Mapping[str, float] | None = None,
    temperature: float = 1.0,
    window: int = 1,
) -> Kin:
    """The Kin of pairs of query id and document id.

    source: None = all pairs are of one; "file" = the file of the document; anything else = its ``Document.source``
    Raises DataError where no document has such a source, ValueError for weights of sources that are not there.
    """
    names = {name for _, name in pairs}
    documents = {name: collection.corpus[name] for name in names}
    shown = {name: _shown(document) for name, document in documents.items()}
    number = {content: n for n, content in enumerate(dict.fromkeys(shown[name] for _, name in pairs))}
    long = {name: length(one.text) if one.image is None and one.text else 0 for name, one in documents.items()}
    found: dict[str, list[int]] = {}
    for place, (_, name) in enumerate(pairs):
        one = documents[name]
        own = ALL if source is None else one.file if source == "file" else one.source
        found.setdefault("" if own is None else own, []).append(place)
    if found.keys() == {""}:
        what = f"no document has a source (data.source is {source})"
        raise DataError(f"{collection.name}: {what}; write data.source: null")
    for name in (weights or {}).keys() - found.keys():
        near = get_close_matches(name, found, 1) or [first_few(list(found))]
        raise ValueError(f"data.source_weights: there is no source {name!r} in the training pairs; write {near[0]}")
    return Kin(
        np.array([number[shown[name]] for _, name in pairs], dtype=np.int64),
        {name: np.array(places, dtype=np.int64) for name, places in found.items()},
        np.array([long[name] for _, name in pairs], dtype=np.int64),
        dict(weights or {}),
        temperature,
        window,
    )


def _shown(document: Document) -> tuple[str, ...]:
    """Equal for documents that are known to show the same without decoding anything."""
    if document.image is None:
        return ("text", document.text or "")
    if document.hash is not None:
        return ("hash", document.hash)
    return (
        ("path", str(document.image), document.text or "") if isinstance(document.image, str) else ("id", document.id)
    )


@dataclass(frozen=True)
class Share:
    """One source of a run: its pairs, how many batches a round through them has, and how many are drawn an epoch."""

    name: str
    places: Ints
    batches: int
    epoch: int
    left: int  # pairs of a round that have no place in it


class Batches(Sampler[list[int]]):
    """A torch batch sampler: lists of places, each rank's in turn, as accelerate's BatchSamplerShard takes them.

    size: pairs of a batch, all ranks together; ranks: how many share it
    drop_last: every batch is full, and pairs that fill none wait for another epoch, drawn anew; else every pair is in
        some batch of the epoch, batches are of nearly one size, and smaller where a document has very many pairs

    A round goes through a source once.  Weights and temperature say how many of its batches an epoch takes: the next
    ones, so that a round may last several epochs, or an epoch have several rounds.  Sources that cannot fill a batch
    share batches.  The number of batches is the same in every epoch.
    Raises ValueError where not one batch can be filled.
    """

    batch_size = None  # of varying size, says this to accelerate, which would else fill up or drop short ones

    def __init__(self, kin: Kin, size: int, ranks: int = 1, seed: int = 0, drop_last: bool = True) -> None:
        if size < 1 or ranks < 1 or size % ranks:
            raise ValueError(f"a batch of {size} pairs cannot be shared evenly by {ranks} ranks; write a multiple")
        self.kin, self.size, self.ranks, self.seed, self.drop_last = kin, size, ranks, seed, drop_last
        self.epoch = 0
        self.shares = self._shares()

    def __len__(self) -> int:
        return self.ranks * sum(share.epoch for share in self.shares)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.plan(self.epoch):
            for rank in range(self.ranks):
                yield batch[rank :: self.ranks]

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def plan(self, epoch: int) -> list[list[int]]:
        """The batches of all ranks together, in order; within a batch the shorter documents come first."""
        found = [batch for share in self.shares for batch in self._drawn(share, epoch)]
        found = [found[place] for place in self._rng("order", epoch).permutation(len(found))]
        return [batch[np.argsort(self.kin.lengths[batch], kind="stable")].tolist() for batch in found]

    def told(self) -> list[str]:
        """For the log: batches, and what has no place in them."""
        pairs, left = sum(len(share.places) for share in self.shares), sum(share.left for share in self.shares)
        what = "pairs" if self.drop_last else "pairs at most"
        lines = [f"{len(self) // self.ranks} batches an epoch, of {self.size} {what}, of {pairs} pairs"]
        if left:
            why = "they do not fill a batch, or their document is in every batch already"
            lines.append(f"{left} of {pairs} pairs wait for another epoch each time: {why}")
        absent = [name for name, weight in self.kin.weights.items() if not weight]
        if absent:
            lines.append(f"{sum(len(self.kin.sources[name]) for name in absent)} pairs of weight 0 are not drawn")
        if len(self.shares) > 1:
            rows = [f"{s.name or 'no source'} {s.epoch} of {s.batches} batches" for s in self.shares]
            lines.append(f"{len(rows)} sources, batches an epoch of those they have: {first_few(rows, 12)}")
        return lines

    # -- how many

    def _shares(self) -> list[Share]:
        rooms = {name: self._room(places) for name, places in self._sources().items()}
        rooms = {name: (places, batches) for name, (places, batches) in rooms.items() if batches or name == SMALL}
        full = [(name, batches) for name, (_, batches) in rooms.items() if batches]
        if not full:
            pairs = sum(map(len, self.kin.sources.values()))
            raise ValueError(
                f"{pairs} training pairs do not fill one batch of {self.size} (objective.batch, or "
                "per_device_train_batch_size x processes), in which no document comes twice: not one step; write fewer"
            )
        weights = [self.kin.weights.get(name, 1.0) * batches ** (1 / self.kin.temperature) for name, batches in full]
        drawn = shares(np.array(weights), sum(batches for _, batches in full))
        epoch = {name: int(count) for (name, _), count in zip(full, drawn, strict=True)}
        return [
            Share(name, places, batches, epoch.get(name, 0), len(places) - self._placed(places, batches))
            for name, (places, batches) in rooms.items()
        ]

    def _sources(self) -> dict[str, Ints]:
        """Those of weight above 0; those too small for a batch of their own as one."""
        weights = self.kin.weights
        found = {name: places for name, places in self.kin.sources.items() if weights.get(name, 1.0)}
        small = [name for name, places in found.items() if not most(self._counts(places), self.size)]
        if len(found) == 1 or not small:
            return found
        named = [name for name in small if name in weights]
        if named:
            what = f"do not fill a batch of {self.size} pairs, so their share cannot be chosen"
            raise ValueError(f"data.source_weights: {first_few(named)} {what}; leave them out, or write 0")
        together = {SMALL: np.sort(np.concatenate([found.pop(name) for name in small]))}
        return {**found, **together}

    def _room(self, places: Ints) -> tuple[Ints, int]:
        counts = self._counts(places)
        if self.drop_last:
            return places, most(counts, self.size)
        wanted = max(-(-len(places) // self.size), int(counts.max()))
        least = min(self.size, max(2, self.ranks))  # every rank has a row, and every row a negative
        return places, min(wanted, most(counts, least))

    def _placed(self, places: Ints, batches: int) -> int:
        return min(int(np.minimum(self._counts(places), batches).sum()), batches * self.size)

    def _counts(self, places: Ints) -> Ints:
        return np.unique(self.kin.documents[places], return_counts=True)[1].astype(np.int64)

    # -- which

    def _drawn(self, share: Share, epoch: int) -> list[Ints]:
        """The next batches of a source, of as many rounds as they take."""
        begin, end = epoch * share.epoch, (epoch + 1) * share.epoch
        found: list[Ints] = []
        for number in range(begin // max(1, share.batches), -(-end // max(1, share.batches))):
            start = number * share.batches
            found += self._round(share, number)[max(0, begin - start) : end - start]
        return found

    def _round(self, share: Share, number: int) -> list[Ints]:
        rng = self._rng(share.name, number)
        _, documents = np.unique(self.kin.documents[share.places], return_inverse=True)
        chosen = choose(documents, share.batches, self.size, rng)
        parts = deal(documents[chosen], share.batches, rng)
        if self.kin.window > 1:
            lengths = self.kin.lengths[share.places][chosen]
            groups = (parts[i : i + self.kin.window] for i in range(0, len(parts), self.kin.window))
            parts = [part for group in groups for part in alike(group, documents[chosen], lengths)]
            parts = [parts[place] for place in rng.permutation(len(parts))]
        return [share.places[chosen[part]] for part in parts]

    def _rng(self, what: str, number: int) -> np.random.Generator:
        return np.random.default_rng(hash_id(f"{self.seed}\n{number}\n{what}") % 2**64)
