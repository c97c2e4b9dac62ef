"""Split a collection on disk as ``split.split`` splits one in memory, with arrays of row numbers in place of ids.

The splits have the same queries, in the same order, and the same documents; documents stay in the order of the data.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smart_train.core.atomic_io import replacing
from smart_train.data.arrow_shards import Ints
from smart_train.data.collection import hash_id
from smart_train.data.stored_collection import NONE, PART, StoredCollection, load_array

logger = logging.getLogger(__name__)

TARGETS = ("test", "dev", "train")  # a document's split is a number of these; of two that name it, the higher has it


def unnamed_target(
    seed: int, name: str, shares: Mapping[str, float], counts: Mapping[str, int], limit: Mapping[str, int | None]
) -> str:
    """Return the split of a group of documents that no query names: it fills up test, then dev, else goes by hash.

    shares: of all queries; counts: documents there so far; limit: documents to rank, None = no such number
    """
    for target in ("test", "dev"):
        if shares[target] and counts[target] < (limit[target] or 0):
            return target
    drawn = (hash_id(f"{seed}\nside\n{name}") % 2**32) / 2**32
    if drawn < shares["test"] and limit["test"] is None:
        return "test"
    if shares["test"] <= drawn < shares["test"] + shares["dev"] and limit["dev"] is None:
        return "dev"
    return "train"


@dataclass
class Groups:
    """Groups of files that stay together because they answer the same query; a document without a file is its own.

    files: names; a document without one is in the unit len(files) + its row
    unit: [N] the group of every document, called by one of its units
    names: [G] the groups that have queries; query: [Q] the place there of every query, NONE = it has no positive
    """

    files: list[str]
    unit: Ints
    names: Ints
    query: Ints

    def place(self, units: Ints) -> Ints:
        """Return the places of groups that have queries, NONE for others."""
        at = np.searchsorted(self.names, units)
        at[at == len(self.names)] = 0
        return np.where(self.names[at] == units, at, NONE) if len(self.names) else np.full(len(units), NONE)


def find_groups(collection: StoredCollection) -> Groups:
    """Return the groups, by a union-find over the few units that a query has more than one of."""
    store, qrels = collection.part.store, collection.part.store.relations["positives"]
    files: dict[str, int] = {}
    documents = store.documents
    unit = np.full(documents.count, NONE, np.int32)
    for begin in range(0, len(unit), PART) if _has_files(collection) else ():
        rows = np.arange(begin, min(begin + PART, len(unit)))
        own = (file for (file,) in documents.blocks(rows, "file"))
        unit[rows] = [NONE if file is None else files.setdefault(file, len(files)) for file in own]
    alone = unit == NONE
    unit[alone] = len(files) + np.flatnonzero(alone)
    nothing: Ints = np.empty(0, np.int32)
    groups = Groups(list(files), unit, nothing, nothing)

    parent: dict[int, int] = {}
    names: dict[int, str] = {}

    def find(one: int) -> int:
        while parent.setdefault(one, one) != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    has = np.diff(qrels.offsets) > 0
    home = np.full(len(has), NONE, np.int32)
    for begin in range(0, len(has), PART):
        here = slice(begin, begin + PART)
        offsets = qrels.offsets[begin : begin + PART + 1]
        of = unit[qrels.documents[offsets[0] : offsets[-1]]]
        sizes = np.diff(offsets)
        home[here][has[here]] = of[(offsets[:-1] - offsets[0])[has[here]]]
        first = np.repeat(home[here], sizes)
        for pair in np.unique(np.stack([first, of])[:, first != of], axis=1).T.tolist():
            names.update((one, _name(collection, groups, one)) for one in pair if one not in names)
            low, high = sorted((find(pair[0]), find(pair[1])), key=names.__getitem__)
            parent[high] = low
    for pair in _copies(collection, unit, home):
        names.update((one, _name(collection, groups, one)) for one in pair if one not in names)
        low, high = sorted((find(pair[0]), find(pair[1])), key=names.__getitem__)
        parent[high] = low
    if parent:
        joined = np.array(sorted(parent))
        roots = np.array([find(one) for one in joined.tolist()])
        for values in (unit, home):
            at = np.searchsorted(joined, values)
            at[at == len(joined)] = 0
            values[:] = np.where(joined[at] == values, roots[at], values)
    names_of, query = np.unique(home[has], return_inverse=True)
    groups.names = names_of
    groups.query = np.full(len(has), NONE, np.int32)
    groups.query[has] = query
    return groups


def _copies(collection: StoredCollection, unit: Ints, home: Ints) -> Iterator[list[int]]:
    """Yield pairs of units that hold answers which show the same, or answer queries of the same words."""
    store = collection.part.store
    answers = np.unique(store.relations["positives"].documents)
    shown = store.shown(answers, collection.near)
    asked = np.flatnonzero(home != NONE)
    for hashes, units in ((shown, unit[answers]), (store.queries.numbers(asked, "shown"), home[asked])):
        order = np.argsort(hashes, kind="stable")
        same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
        pairs = np.stack([units[order[same]], units[order[same + 1]]])
        yield from pairs[:, pairs[0] != pairs[1]].T.tolist()


def _has_files(collection: StoredCollection) -> bool:
    entries = collection.part.store.documents.entries
    return any(
        batch.column("file").null_count < batch.num_rows for batch in entries.batches if "file" in batch.schema.names
    )


def _name(collection: StoredCollection, groups: Groups, unit: int) -> str:
    """Return what ``split.file_groups`` calls a group."""
    if unit < len(groups.files):
        return f"file:{groups.files[unit]}"
    return f"document:{collection.part.store.documents.value(unit - len(groups.files), 'id')}"


def _names(collection: StoredCollection, groups: Groups, units: Ints) -> Iterator[str]:
    count = len(groups.files)
    for begin in range(0, len(units), PART):
        some = units[begin : begin + PART]
        ids = (id for (id,) in collection.part.store.documents.blocks(some[some >= count] - count, "id"))
        for unit in some.tolist():
            yield f"file:{groups.files[unit]}" if unit < count else f"document:{next(ids)}"


class StoredSplit:
    """One split of a collection, which ``split.split`` makes: groups by number, sizes, and what is chosen of them."""

    def __init__(self, collection: StoredCollection, seed: int) -> None:
        self.collection, self.seed, self.store = collection, seed, collection.part.store
        self.groups = find_groups(collection)
        names = self.groups.names
        hashes = (hash_id(f"{seed}\n{name}") for name in _names(collection, self.groups, names))
        self.order = np.argsort(np.fromiter(hashes, np.int64, len(names)), kind="stable")
        query = self.groups.query
        self.queries = np.bincount(query[query != NONE], minlength=len(names))
        self.documents = np.zeros(len(names), np.int64)
        self.spare = 0  # groups without a query
        for begin in range(0, len(self.groups.unit), PART):
            place = self.groups.place(self.groups.unit[begin : begin + PART])
            self.spare += int((place == NONE).sum())
            np.add.at(self.documents, place[place != NONE], 1)
        lost = int((query == NONE).sum())
        if lost:
            logger.warning("%s: %d queries have no relevant document and are in no split", collection.name, lost)

    def name(self, groups: Ints, place: int) -> str:
        return _name(self.collection, self.groups, int(self.groups.names[groups[place]]))

    def rows(self, chosen: Sequence[int] | Ints) -> Ints:
        """Return the queries of groups, in the order of the groups."""
        rank = np.full(len(self.groups.names) + 1, NONE, np.int32)  # the last is that of queries without a group
        rank[np.asarray(chosen, dtype=np.int64)] = np.arange(len(chosen))
        of = rank[self.groups.query]
        rows = np.flatnonzero(of != NONE)
        return rows[np.argsort(of[rows], kind="stable")].astype(np.int32)

    def by_hash(self, rows: Ints, most: int) -> Ints:
        ids = [id for (id,) in self.store.queries.blocks(rows, "id")]
        order = sorted(range(len(ids)), key=lambda place: (hash_id(f"{self.seed}\n{ids[place]}"), ids[place]))
        return rows[order[:most]]

    def sides(self, chosen: dict[str, Any], queries: dict[str, Ints], limit: dict[str, int | None]) -> NDArray[np.int8]:
        """Return [N] the split of every document: of its group, else that of the queries that name it, else by hash."""
        own = np.full(len(self.groups.names) + 1, NONE, np.int8)
        for number, target in enumerate(TARGETS):
            own[np.asarray(chosen[target], dtype=np.int64)] = number
        side = np.empty(len(self.groups.unit), np.int8)
        free = np.empty(len(side), np.bool_)
        for begin in range(0, len(side), PART):
            place = self.groups.place(self.groups.unit[begin : begin + PART])
            side[begin : begin + PART], free[begin : begin + PART] = own[place], place == NONE
        named = np.full(len(side), NONE, np.int8)
        for number, target in enumerate(TARGETS):
            for begin in range(0, len(queries[target]), PART):
                part = self.collection.select_rows(queries[target][begin : begin + PART], None).part
                documents, _ = part.pairs("negatives")
                named[documents] = number
        count = len(self.groups.files)
        in_file = np.flatnonzero(free & (self.groups.unit < count))
        best = np.full(count, NONE, np.int8)
        np.maximum.at(best, self.groups.unit[in_file], named[in_file])
        named[in_file] = best[self.groups.unit[in_file]]
        side[free] = named[free]
        self._place_unnamed(side, free, queries, limit)
        return side

    def _place_unnamed(
        self, side: NDArray[np.int8], free: NDArray[np.bool_], queries: dict[str, Ints], limit: dict[str, int | None]
    ) -> None:
        """Distribute the groups that no query names, as ``split._place`` does, in place."""
        unnamed = free & (side == NONE)
        if not unnamed.any():
            return
        # Groups that dev and test have already count where these are to be filled up.
        units, sizes = np.unique(self.groups.unit[free & (side != TARGETS.index("train"))], return_counts=True)
        first = np.full(len(units), NONE, np.int8)
        rows = np.flatnonzero(free & (side != TARGETS.index("train")))
        first[np.searchsorted(units, self.groups.unit[rows])] = side[rows]
        names = list(_names(self.collection, self.groups, units))
        counts = {s: int(((side == TARGETS.index(s)) & ~free).sum()) for s in ("test", "dev")}
        total = sum(map(len, queries.values()))
        shares = {target: len(queries[target]) / total for target in ("test", "dev")}
        found = first.copy()
        for at in sorted(range(len(units)), key=lambda at: (hash_id(f"{self.seed}\n{names[at]}"), names[at])):
            target = TARGETS[first[at]] if first[at] != NONE else ""
            if not target:
                target = unnamed_target(self.seed, names[at], shares, counts, limit)
                found[at] = TARGETS.index(target)
            if target in counts:
                counts[target] += int(sizes[at])
        rows = np.flatnonzero(unnamed)
        side[rows] = found[np.searchsorted(units, self.groups.unit[rows])]


def cap_rows(collection: StoredCollection, queries: Ints, most: int | None, seed: int) -> NDArray[np.bool_] | None:
    """Return a mask of the documents that ``split.cap`` keeps for these queries; None = all.

    queries: rows; the mask is one for ``select_rows``
    """
    rows = np.concatenate([*collection.part.document_parts(), np.empty(0, np.int64)])
    if most is None or len(rows) <= most:
        return None
    urgency = np.full(len(collection.part.store.documents), 2, np.int8)
    for name, value in (("negatives", 1), ("positives", 0)):
        for begin in range(0, len(queries), PART):
            part = collection.select_rows(queries[begin : begin + PART], None).part
            urgency[part.pairs(name)[0]] = value
    ids = (id for (id,) in collection.part.store.documents.blocks(rows, "id"))
    hashes = np.fromiter((hash_id(f"{seed}\n{id}") for id in ids), np.int64, len(rows))
    order = np.lexsort((hashes, urgency[rows]))
    return collection.mask(rows[order[: max(most, int((urgency[rows] == 0).sum()))]])


# Kept beside the store: the hashes of ten million groups take a minute


def _file(collection: StoredCollection, key: str, what: str, end: str) -> Path:
    return collection.part.store.folder / f"split-{sha256(key.encode()).hexdigest()[:16]}.{what}.{end}"


def save_split(collection: StoredCollection, key: str, queries: dict[str, Ints], side: NDArray[np.int8]) -> None:
    """Keep what ``key`` gives: the queries of every target, and the target of every document.

    Every rank may do so at once; a file is replaced whole, so that one that another rank has mapped stays as it is.
    """
    arrays = {target: (rows.astype(np.int32), "i4") for target, rows in queries.items()} | {"side": (side, "i1")}
    for what, (values, end) in arrays.items():  # the sides come last, and say that all are there
        with replacing(_file(collection, key, what, end), f".{os.getpid()}") as part:
            values.tofile(part)


def load_split(collection: StoredCollection, key: str) -> tuple[dict[str, Ints], NDArray[np.int8]] | None:
    """Return what was kept for ``key``; None where nothing was."""
    if not _file(collection, key, "side", "i1").is_file():
        return None
    name = _file(collection, key, "side", "i1").name.removesuffix(".side.i1")
    folder = collection.part.store.folder
    return {target: load_array(folder, f"{name}.{target}") for target in TARGETS}, load_array(folder, f"{name}.side")
