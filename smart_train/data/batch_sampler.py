"""Plan which training pairs share a batch: no document twice in a batch, one source a batch, reproducible after resume.

``PairBatchSampler`` plans the batches of all ranks together, from the seed and the epoch alone.  The functions below it
are the packing: how many batches there can be, and which pair goes where.

Letters: P pairs, U different documents, K batches, G pairs of a batch.  ``documents`` [P] int64 numbers the documents
of the pairs; pairs with one number never share a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from smart_train.core.errors import DataError, SettingError
from smart_train.core.modality import content_size
from smart_train.data.collection import Collection, first_few, hash_id
from smart_train.data.identity import shown_hashes
from smart_train.data.stored_collection import PairRows

Ints = NDArray[np.int64]

ALL, SMALL = "all pairs", "small sources together"  # names of sources that the data does not name


@dataclass(frozen=True)
class PairGroups:
    """Which of P pairs may share a batch, and which should.

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


def pair_groups(
    collection: Collection,
    pairs: Sequence[tuple[str, str]],
    source: str | None = None,
    weights: Mapping[str, float] | None = None,
    temperature: float = 1.0,
    window: int = 1,
) -> PairGroups:
    """Return the PairGroups of (query id, document id) pairs.

    source: None = all pairs are of one; "file" = the file of the document; anything else = its ``Document.source``
    Raises DataError where no document has such a source, SettingError for weights of sources that are not there.

    >>> corpus = {"d1": Document("d1", "one"), "d2": Document("d2", "two"), "d3": Document("d3", "one")}
    >>> data = Collection("demo", corpus, {"q1": "a", "q2": "b"}, {"q1": {"d1": 1, "d2": 1}, "q2": {"d3": 1}})
    >>> pair_groups(data, data.pairs()).documents.tolist()
    [0, 1, 0]
    """
    documents, lengths, sources = (
        _of_stored(pairs, source, collection.near) if isinstance(pairs, PairRows) else _of(collection, pairs, source)
    )
    if sources.keys() == {""}:
        what = f"no document has a source (data.source is {source})"
        raise DataError(f"{collection.name}: {what}; write data.source: null")
    for name in (weights or {}).keys() - sources.keys():
        near = get_close_matches(name, sources, 1) or [first_few(list(sources))]
        what = f"there is no source {name!r} in the training pairs"
        raise SettingError("data.source_weights", what, f"write {near[0]}")
    return PairGroups(documents, sources, lengths, dict(weights or {}), temperature, window)


def _of(
    collection: Collection, pairs: Sequence[tuple[str, str]], source: str | None
) -> tuple[Ints, Ints, dict[str, Ints]]:
    """Return (numbers of the documents, their lengths, source -> places) of pairs of ids."""
    documents = {name: collection.corpus[name] for name in {name for _, name in pairs}}
    shown = zip(documents, shown_hashes(documents.values(), collection.near), strict=True)
    contents: dict[str, int | str] = {name: hash or name for name, hash in shown}
    number = {content: n for n, content in enumerate(dict.fromkeys(contents[name] for _, name in pairs))}
    lengths = {name: content_size(one.text) if one.image is None and one.text else 0 for name, one in documents.items()}
    sources: dict[str, list[int]] = {}
    for place, (_, name) in enumerate(pairs):
        one = documents[name]
        own = ALL if source is None else one.file if source == "file" else one.source
        sources.setdefault("" if own is None else own, []).append(place)
    return (
        np.array([number[contents[name]] for _, name in pairs], dtype=np.int64),
        np.array([lengths[name] for _, name in pairs], dtype=np.int64),
        {name: np.array(places, dtype=np.int64) for name, places in sources.items()},
    )


def _of_stored(pairs: PairRows, source: str | None, near: Mapping[str, int]) -> tuple[Any, Any, dict[str, Any]]:
    """The same of pairs of row numbers."""
    names = pairs.store.documents
    distinct, first, inverse = np.unique(pairs.documents, return_index=True, return_inverse=True)
    # numbered by first appearance, as pairs of ids are
    _, place = np.unique(pairs.store.shown(distinct, near), return_inverse=True)
    earliest = np.full(place.max(initial=-1) + 1, len(pairs), np.int64)
    np.minimum.at(earliest, place, first)
    rank = np.empty(len(earliest), np.int64)
    rank[np.argsort(earliest)] = np.arange(len(earliest))
    number = rank[place]
    lengths = names.entries.numbers(names.rows[distinct], "length")
    if source is None:
        sources: dict[str, Any] = {ALL: np.arange(len(pairs), dtype=np.int32)}
    else:
        codes: dict[str, int] = {}
        own = (name for (name,) in names.blocks(distinct, "file" if source == "file" else "source"))
        code = np.fromiter((codes.setdefault(name or "", len(codes)) for name in own), np.int64, len(distinct))[inverse]
        by_code = np.argsort(code, kind="stable").astype(np.int32)
        ends = np.cumsum(np.bincount(code, minlength=len(codes)))[:-1]
        places = dict(zip(codes, np.split(by_code, ends), strict=True))
        # in the order in which the pairs name them
        sources = dict(sorted(places.items(), key=lambda item: int(item[1][0])))
    # 32 bits each: these arrays stay as long as the training, in every rank
    return number.astype(np.int32)[inverse], lengths.astype(np.int32)[inverse], sources


@dataclass(frozen=True)
class SourcePlan:
    """One source of a run.

    places: its pairs; batches: how many one round through them has; epoch: how many of them an epoch draws
    unplaced: pairs of a round that fit in no batch
    """

    name: str
    places: Ints
    batches: int
    epoch: int
    unplaced: int


class PairBatchSampler(Sampler[list[int]]):
    """A torch batch sampler: lists of places, each rank's in turn, as accelerate's BatchSamplerShard takes them.

    size: pairs of a batch, all ranks together; ranks: how many share it
    drop_last: every batch is full, and pairs that fill none wait for another epoch, drawn anew; else every pair is in
        some batch of the epoch, batches are of nearly one size, and smaller where a document has very many pairs

    A round goes through a source once.  Weights and temperature say how many of its batches an epoch takes: the next
    ones, so that a round may last several epochs, or an epoch have several rounds.  Sources that cannot fill a batch
    share batches.  The number of batches is the same in every epoch.
    Raises SettingError where not one batch can be filled.
    """

    batch_size = None  # says to accelerate that sizes vary; it would otherwise fill up or drop short batches

    def __init__(self, groups: PairGroups, size: int, ranks: int = 1, seed: int = 0, drop_last: bool = True) -> None:
        if size < 1 or ranks < 1 or size % ranks:
            raise ValueError(f"a batch of {size} pairs cannot be shared evenly by {ranks} ranks; write a multiple")
        self.groups, self.size, self.ranks, self.seed, self.drop_last = groups, size, ranks, seed, drop_last
        self.epoch = 0
        self.sources = self._source_plans()

    def __len__(self) -> int:
        return self.ranks * sum(source.epoch for source in self.sources)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._planned(self.epoch):
            own = batch.tolist()
            for rank in range(self.ranks):
                yield own[rank :: self.ranks]

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def plan(self, epoch: int) -> list[list[int]]:
        """Return the batches of all ranks together, in order; within a batch the shorter documents come first."""
        return [batch.tolist() for batch in self._planned(epoch)]

    def _planned(self, epoch: int) -> Iterator[Ints]:
        """Yield the batches of ``plan`` as arrays, so that an epoch of ten million pairs is never a list of numbers."""
        batches = [batch for source in self.sources for batch in self._epoch_batches(source, epoch)]
        for place in self._rng("order", epoch).permutation(len(batches)):
            batch = batches[place]
            yield batch[np.argsort(self.groups.lengths[batch], kind="stable")]

    def summary(self) -> list[str]:
        """Return lines for the log: how many batches there are, and which pairs are in none."""
        pairs = sum(len(source.places) for source in self.sources)
        unplaced = sum(source.unplaced for source in self.sources)
        what = "pairs" if self.drop_last else "pairs at most"
        lines = [f"{len(self) // self.ranks} batches an epoch, of {self.size} {what}, of {pairs} pairs"]
        if unplaced:
            why = "they do not fill a batch, or their document is in every batch already"
            lines.append(f"{unplaced} of {pairs} pairs wait for another epoch each time: {why}")
        absent = [name for name, weight in self.groups.weights.items() if not weight]
        if absent:
            lines.append(f"{sum(len(self.groups.sources[name]) for name in absent)} pairs of weight 0 are not drawn")
        if len(self.sources) > 1:
            rows = [f"{s.name or 'no source'} {s.epoch} of {s.batches} batches" for s in self.sources]
            lines.append(f"{len(rows)} sources, batches an epoch of those they have: {first_few(rows, 12)}")
        return lines

    # How many batches

    def _source_plans(self) -> list[SourcePlan]:
        sources = self._merged_sources()
        batches = {name: self._round_length(places) for name, places in sources.items()}
        full = [name for name in sources if batches[name]]
        if not full:
            pairs = sum(map(len, self.groups.sources.values()))
            what = f"{pairs} training pairs do not fill one batch of {self.size}, in which no document comes twice"
            raise SettingError("objective.batch", what, "write fewer (or a smaller per_device_train_batch_size)")
        weight, temperature = self.groups.weights, self.groups.temperature
        weights = [weight.get(name, 1.0) * batches[name] ** (1 / temperature) for name in full]
        shares = apportion(np.array(weights), sum(batches.values()))
        epoch = {name: int(count) for name, count in zip(full, shares, strict=True)}
        return [
            SourcePlan(
                name, places, batches[name], epoch.get(name, 0), len(places) - self._placed(places, batches[name])
            )
            for name, places in sources.items()
            if batches[name] or name == SMALL
        ]

    def _merged_sources(self) -> dict[str, Ints]:
        """The sources of weight above 0; those too small for a batch of their own are merged into one."""
        weights = self.groups.weights
        sources = {name: places for name, places in self.groups.sources.items() if weights.get(name, 1.0)}
        small = [name for name, places in sources.items() if not max_batches(self._counts(places), self.size)]
        if len(sources) == 1 or not small:
            return sources
        named = [name for name in small if name in weights]
        if named:
            what = f"do not fill a batch of {self.size} pairs, so their share cannot be chosen"
            raise SettingError("data.source_weights", f"{first_few(named)} {what}", "leave them out, or write 0")
        merged = {SMALL: np.sort(np.concatenate([sources.pop(name) for name in small]))}
        return {**sources, **merged}

    def _round_length(self, places: Ints) -> int:
        """Return the number of batches of one round through these pairs."""
        counts = self._counts(places)
        if self.drop_last:
            return max_batches(counts, self.size)
        wanted = max(-(-len(places) // self.size), int(counts.max()))
        least = min(self.size, max(2, self.ranks))  # every rank has a row, and every row a negative
        return min(wanted, max_batches(counts, least))

    def _placed(self, places: Ints, batches: int) -> int:
        return min(int(np.minimum(self._counts(places), batches).sum()), batches * self.size)

    def _counts(self, places: Ints) -> Ints:
        return np.unique(self.groups.documents[places], return_counts=True)[1].astype(np.int64)

    # Which pairs

    def _epoch_batches(self, source: SourcePlan, epoch: int) -> list[Ints]:
        """The next batches of a source, of as many rounds as they take."""
        begin, end = epoch * source.epoch, (epoch + 1) * source.epoch
        batches: list[Ints] = []
        for number in range(begin // max(1, source.batches), -(-end // max(1, source.batches))):
            start = number * source.batches
            batches += self._round(source, number)[max(0, begin - start) : end - start]
        return batches

    def _round(self, source: SourcePlan, number: int) -> list[Ints]:
        rng = self._rng(source.name, number)
        _, documents = np.unique(self.groups.documents[source.places], return_inverse=True)
        chosen = choose_pairs(documents, source.batches, self.size, rng)
        parts = pack(documents[chosen], source.batches, rng)
        window = self.groups.window
        if window > 1:
            lengths = self.groups.lengths[source.places][chosen]
            windows = (parts[i : i + window] for i in range(0, len(parts), window))
            parts = [part for some in windows for part in pack_by_length(some, documents[chosen], lengths)]
            parts = [parts[place] for place in rng.permutation(len(parts))]
        return [source.places[chosen[part]] for part in parts]

    def _rng(self, what: str, number: int) -> np.random.Generator:
        return np.random.default_rng(hash_id(f"{self.seed}\n{number}\n{what}") % 2**64)


# Packing -------------------------------------------------------------------------------------------------------------


def max_batches(counts: Ints, least: int) -> int:
    """Return the largest K for which K batches of ``least`` pairs each can be filled; 0 where not one can.

    counts: [U], pairs of each document.  K batches hold at most K pairs of a document, so sum(min(count, K)) must
    reach K x ``least``; ``pack`` shows that this is enough.  A smaller K is possible wherever a larger one is, since
    min(count, K) / K only falls as K grows.

    >>> max_batches(np.array([3, 1, 1]), 2)
    2
    """
    low, high = 0, int(counts.sum()) // least
    while low < high:
        middle = (low + high + 1) // 2
        if int(np.minimum(counts, middle).sum()) >= middle * least:
            low = middle
        else:
            high = middle - 1
    return low


def occurrence(documents: Ints) -> Ints:
    """Return [P]: how many pairs of the same document stand before each pair.

    >>> occurrence(np.array([7, 8, 7, 7])).tolist()
    [0, 0, 1, 2]
    """
    order = np.argsort(documents, kind="stable")
    new = np.r_[True, documents[order][1:] != documents[order][:-1]][: len(documents)]
    place = np.arange(len(documents), dtype=np.int64)
    out = np.empty_like(place)
    out[order] = place - place[new][np.cumsum(new) - 1]
    return out


def choose_pairs(documents: Ints, batches: int, size: int, rng: np.random.Generator) -> Ints:
    """Return places of a random P' <= batches x size pairs, in random order, at most ``batches`` of a document."""
    shuffled = rng.permutation(len(documents))
    return shuffled[occurrence(documents[shuffled]) < batches][: batches * size]


def pack(documents: Ints, batches: int, rng: np.random.Generator) -> list[Ints]:
    """Divide places [P] among the batches at random; sizes differ by at most one, and no batch has a document twice.

    No document may have more than ``batches`` pairs.  Documents come in random order, each with its pairs together,
    and every round gives one pair to each batch, in a random order of the batches.  A document that a round ends in
    continues in the next, whose order begins with batches that do not have it yet; it has at most K pairs, so there
    are enough of those.  O(P log P).
    """
    if not len(documents):
        return [np.empty(0, dtype=np.int64) for _ in range(batches)]
    rank = rng.permutation(int(documents.max()) + 1)[documents]
    order = np.lexsort((rng.random(len(documents)), rank))
    run = rank[order]
    rounds = -(-len(documents) // batches)
    table = rng.permuted(np.tile(np.arange(batches, dtype=np.int64), (rounds, 1)), axis=1)
    for number in range(1, rounds):
        border = number * batches
        document = run[border]
        if run[border - 1] == document:
            begin, end = np.searchsorted(run, document), np.searchsorted(run, document, side="right")
            had = table[number - 1, batches - (border - begin) :]
            free = table[number][~np.isin(table[number], had)][: end - border]
            table[number] = np.r_[free, table[number][~np.isin(table[number], free)]]
    batch = table.reshape(-1)[: len(documents)]
    return np.split(order[np.argsort(batch, kind="stable")], np.cumsum(np.bincount(batch, minlength=batches))[:-1])


def pack_by_length(parts: list[Ints], documents: Ints, lengths: Ints) -> list[Ints]:
    """Regroup the same pairs into parts of the same sizes, each of like length; still no document twice in one.

    A document with a pair for every part that is left is taken at once, else there would be too few parts for it; the
    rest is taken from the shortest on.  The largest parts come first, so there is always room for the former.
    """
    pool = np.concatenate(parts)
    pool = pool[np.argsort(lengths[pool], kind="stable")]
    regrouped = []
    for done, size in enumerate(sorted(map(len, parts), reverse=True)):
        _, group, counts = np.unique(documents[pool], return_inverse=True, return_counts=True)
        first = occurrence(documents[pool]) == 0
        must = first & (counts[group] == len(parts) - done)
        taken = must.copy()
        taken[np.flatnonzero(first & ~must)[: size - int(must.sum())]] = True
        regrouped.append(pool[taken])
        pool = pool[~taken]
    return regrouped


def apportion(weights: NDArray[np.float64], total: int) -> Ints:
    """Return whole numbers in proportion to the weights (largest remainder), none of them 0.

    They add up to ``total``, or to more where that takes many of them.

    >>> apportion(np.array([3.0, 1.0]), 8).tolist()
    [6, 2]
    """
    exact = weights / weights.sum() * total
    shares = np.maximum(1, np.floor(exact)).astype(np.int64)
    for place in np.argsort(np.floor(exact) - exact, kind="stable")[: max(0, total - int(shares.sum()))]:
        shares[place] += 1
    return shares
