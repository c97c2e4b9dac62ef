"""A collection in Arrow files on disk, with the interface of one in memory: nothing per row lives in Python.

A ``Store`` is what one table was converted to (readers/row_cache.py writes it). Inside, documents and queries are row
numbers; ids are texts at the border, found through a sorted array of their hashes. A ``StoredCollection`` is a store,
or a part of one: the rows of its queries and a mask of its documents. All arrays are memory-mapped or numpy, so that
data workers share them, forked or spawned.

    documents-00000.arrow ...       entries: id, text, image, file, page, source, length, the 128-bit key of the id, and
                                    ``shown``, the hash of what it shows (identity.py); title and hash where there are;
                                    image_row and image_bytes of an image that stays in its table
    queries-00000.arrow ...         entries: id, text, length, key, shown
    documents.i8, queries.i8        [N], [Q]: row -> entry
    NAME.hashes.u8, NAME.rows.i4    the first 64 bits of every key, sorted, and the rows they belong to
    documents.count.i8              N, where further rows follow that are only judged: the corpus lacks them
    RELATION.offsets.i8 ...         qrels, negatives, teacher: of each query the rows of its documents, and their values
    negatives.positive.f8, negatives.miner.i4, miners.json      of each query, where negatives were mined
    parts.json                      the folders of documents and queries, where several splits share them
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from itertools import islice
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from smart_train.core.atomic_io import replacing
from smart_train.core.errors import DataError
from smart_train.data.arrow_shards import BLOCK, Ints, Shards
from smart_train.data.collection import Collection, Document, HardNegatives, first_few
from smart_train.data.tables import ImageColumn, StoredImage, whole_number

FIELDS = ("id", "text", "image", "file", "page", "title", "hash", "source")  # of a document, as its arguments
CELLS = (*FIELDS, "image_row", "image_bytes")  # of what a document is made of: its image may be in a table
RELATIONS = ("qrels", "negatives", "teacher")
NONE = -1  # in place of a row: there is none
PART = 1 << 20  # rows that are looked at together
RECENT = 512  # documents, or queries' relations, that a process keeps after they were asked for
REMEMBERED = 1 << 14  # ids whose rows a process remembers: 2 MB
SORTED_AT_ONCE = 100_000  # ids that ``fingerprint`` sorts at once

V = TypeVar("V")


def image_cells(image: Any) -> tuple[str | None, int | None, int | None]:
    """Return what a store keeps of a document's image: its path ("" = bytes in a table), and its row and size there."""
    if isinstance(image, StoredImage):
        return str(image.file or ""), image.row, image.size_in_bytes
    return None if image is None else str(image), None, None


def id_key(id: str) -> tuple[int, int]:
    """Return the 128-bit key of an id (BLAKE2b): two of 50 million are equal with a chance of about 4e-24."""
    raw = blake2b(id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return int.from_bytes(raw[:8], "big"), int.from_bytes(raw[8:], "big")


def id_keys(ids: Iterable[str]) -> NDArray[np.uint64]:
    """Return the keys of ids, [N, 2]; see ``id_key``."""
    raw = b"".join(blake2b(id.encode("utf-8", "surrogatepass"), digest_size=16).digest() for id in ids)
    return np.frombuffer(raw, ">u8").astype(np.uint64).reshape(-1, 2)


@dataclass(frozen=True)
class Relation:
    """The documents of every query, row after row: those of query q are ``documents[offsets[q]:offsets[q + 1]]``.

    offsets: [Q + 1]; documents: [E] rows of documents; values: [E], grades or scores; None = there are none
    """

    offsets: Ints
    documents: Ints
    values: NDArray[Any] | None = None

    def of(self, query: int) -> slice:
        return slice(int(self.offsets[query]), int(self.offsets[query + 1]))


class Names:
    """The ids of documents, or of queries: row -> id, and id -> row.

    folder: has the arrays; entries: the folders of the entries, one after another
    count: rows of the corpus; those behind it are only judged
    """

    def __init__(self, folder: Path, name: str, entries: Sequence[Path] = ()) -> None:
        folders = list(dict.fromkeys(entries)) or [folder]
        self.entries = Shards([file for one in folders for file in sorted(one.glob(f"{name}-*.arrow"))])
        self.rows = load_array(folder, name)
        self._found: dict[str, int] = {}  # a batch looks for the same ids again and again
        self.hashes, self.places = load_array(folder, f"{name}.hashes"), load_array(folder, f"{name}.rows")
        known = (folder / f"{name}.count.i8").is_file()
        self.count = int(load_array(folder, f"{name}.count")[0]) if known else len(self.rows)
        self._by_value: tuple[Ints, Ints] | None = None  # hashes of whole numbers, sorted, and their rows

    def __len__(self) -> int:
        return len(self.rows)

    def find(self, id: object) -> int | None:
        """Return the row of an id; None where there is none."""
        found = self._found.get(id)  # type: ignore[call-overload]
        if found is None and isinstance(id, str) and (found := self._search(id)) is not None:
            self.remember([id], [found])
        return found

    def remember(self, ids: Sequence[str], rows: Sequence[int]) -> None:
        """Keep the rows of ids that were read by row, since they are looked for next."""
        if len(self._found) >= REMEMBERED:
            self._found.clear()
        self._found.update(zip(ids, rows, strict=True))

    def _search(self, id: str) -> int | None:
        hashed = np.uint64(id_key(id)[0])
        place = int(np.searchsorted(self.hashes, hashed))
        while place < len(self.hashes) and self.hashes[place] == hashed:  # the text decides, should two hashes be equal
            row = int(self.places[place])
            if self.value(row, "id") == id:
                return row
            place += 1
        return None

    def find_all(self, ids: Sequence[str]) -> Ints:
        """Return the rows of ids, NONE where there is none; whole numbers are also found by value, as by ``Ids``."""
        distinct: dict[str, int] = {}
        places = [distinct.setdefault(id, len(distinct)) for id in ids]
        names = list(distinct)
        hashed = id_keys(names)[:, 0]
        rows = np.full(len(names), NONE, np.int64)
        if len(self.hashes):
            at = np.searchsorted(self.hashes, hashed)
            at[at == len(self.hashes)] = 0
            hit = np.flatnonzero(self.hashes[at] == hashed)
            rows[hit] = self.places[at[hit]]
            for place, id in zip(hit.tolist(), self.values(rows[hit], "id"), strict=True):
                if id != names[place]:  # two hashes are equal: the text decides
                    own = self._search(names[place])
                    rows[place] = NONE if own is None else own
        for place in np.flatnonzero(rows == NONE).tolist():
            if (number := whole_number(names[place])) is not None:
                rows[place] = self._find_value(number)
        return rows[places] if places else rows

    def _find_value(self, number: int) -> int:
        """Return the row of the only id that is this number; NONE where there are none or several."""
        if self._by_value is None:
            hashes, rows = array("Q"), array("q")
            for row, (id,) in enumerate(self.blocks(np.arange(self.count), "id")):
                if (one := whole_number(id)) is not None:
                    hashes.append(id_key(str(one))[0])
                    rows.append(row)
            order = np.argsort(np.frombuffer(hashes, np.uint64), kind="stable")
            self._by_value = np.frombuffer(hashes, np.uint64)[order], np.frombuffer(rows, np.int64)[order]
        hashed = np.uint64(id_key(str(number))[0])
        begin, end = (int(np.searchsorted(self._by_value[0], hashed, side)) for side in ("left", "right"))  # type: ignore[call-overload]
        return int(self._by_value[1][begin]) if end == begin + 1 else NONE

    def value(self, row: int, column: str) -> Any:
        return self.entries.value(int(self.rows[row]), column)

    def numbers(self, rows: Ints, column: str) -> NDArray[np.int64]:
        return self.entries.numbers(self.rows[rows], column)

    def is_blank(self, rows: Ints) -> NDArray[np.bool_]:
        """Return whether documents have neither text nor image."""
        blank = self.numbers(rows, "length") == 0
        short = np.flatnonzero(blank)  # of an image, too, the length is 0
        blank[short] = [image is None for image in self.values(rows[short], "image")]
        return blank

    def row(self, row: int, columns: Iterable[str]) -> list[Any]:
        return self.entries.row(int(self.rows[row]), columns)

    def values(self, rows: Ints, column: str) -> list[Any]:
        return self.entries.values(self.rows[rows], column)

    def blocks(self, rows: Ints, *columns: str) -> Iterator[tuple[Any, ...]]:
        for begin in range(0, len(rows), PART):
            yield from self.entries.blocks(self.rows[rows[begin : begin + PART]], *columns)


class Store:
    """A converted table, opened; see the head of this module for its files.

    images: where the images are that stayed in their table
    """

    def __init__(self, folder: Path, images: ImageColumn | None = None) -> None:
        self.folder, self.images = folder, images
        self.documents, self.queries = (_names(folder, name) for name in ("documents", "queries"))
        self.relations = {name: _relation(folder, name) for name in RELATIONS}
        self.relations["positives"] = _positives(self.relations["qrels"], self.documents.count)
        self._near: tuple[Mapping[str, int], Ints, Ints] | None = None  # of whom; rows, sorted, and their hashes

    def shown(self, rows: Ints, near: Mapping[str, int]) -> NDArray[np.int64]:
        """Return the hash of what each document shows.  near: see ``Collection.near``"""
        found = self.documents.numbers(rows, "shown")
        if not near:
            return found
        if self._near is None or self._near[0] is not near:
            own = self.documents.find_all(list(near))
            hashes = np.fromiter(near.values(), np.int64, len(near))[own != NONE]
            order = np.argsort(own[own != NONE])
            self._near = near, own[own != NONE][order], hashes[order]
        _, known, hashes = self._near
        at = np.minimum(np.searchsorted(known, rows), len(known) - 1)
        return np.where(known[at] == rows, hashes[at], found) if len(known) else found

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.folder, self.images)


def _names(folder: Path, name: str) -> Names:
    parts = folder / "parts.json"
    if not parts.is_file():
        return Names(folder, name)
    shared = folder.parent / json.loads(parts.read_text("utf-8"))[name]  # has the arrays too, unless the store does
    return Names(folder if (folder / f"{name}.i8").is_file() else shared, name, [shared, folder])


def select_names(source: Names, folder: Path, name: str, rows: Ints) -> None:
    """Write the arrays of only these rows of ``source``, in this order."""
    entries, hashes, places = source.rows[rows], source.hashes, source.places
    new = np.full(len(source), NONE, np.int32)
    new[rows] = np.arange(len(rows))
    found = new[places]
    kept = found != NONE
    for what, values in (("", entries), (".hashes", hashes[kept]), (".rows", found[kept])):
        save_array(folder, f"{name}{what}", np.asarray(values))


def _positives(qrels: Relation, count: int) -> Relation:
    """Return only documents of the corpus of a grade above 0.  count: documents of the corpus"""
    assert qrels.values is not None
    kept = np.empty(len(qrels.documents), np.bool_)
    for begin in range(0, len(kept), PART):
        some = slice(begin, begin + PART)
        kept[some] = (qrels.values[some] > 0) & (qrels.documents[some] < count)
    if kept.all():
        return Relation(qrels.offsets, qrels.documents)
    return Relation(np.r_[0, np.cumsum(kept)][qrels.offsets], qrels.documents[kept])


TYPES = {"i8": np.int64, "u8": np.uint64, "i4": np.int32, "i1": np.int8, "f8": np.float64}


def save_array(folder: Path, name: str, values: NDArray[Any], append: bool = False) -> None:
    """Write an array to NAME.TYPE, or at the end of it; a file is the numbers and nothing else."""
    with (folder / f"{name}.{values.dtype.str[1:]}").open("ab" if append else "wb") as stream:
        values.tofile(stream)


def load_array(folder: Path, name: str) -> NDArray[Any]:
    """Map an array that ``save_array`` wrote. Raises DataError where there is none."""
    for end, kind in TYPES.items():
        file = folder / f"{name}.{end}"
        if file.is_file():
            return np.asarray(np.memmap(file, kind, "r")) if file.stat().st_size else np.empty(0, kind)
    raise DataError(f"{folder} lacks {name}: delete the folder, it is written anew")


def _relation(folder: Path, name: str) -> Relation:
    # negatives have scores where they were mined
    there = name != "negatives" or (folder / "negatives.positive.f8").is_file()
    values = load_array(folder, f"{name}.values") if there else None
    return Relation(load_array(folder, f"{name}.offsets"), load_array(folder, f"{name}.documents"), values)


@dataclass(frozen=True)
class Part:
    """Which rows of a store a collection has.

    queries: their rows, in order; documents: [N] bool; count: how many are True.  None = all
    """

    store: Store
    queries: Ints | None = None
    documents: NDArray[np.bool_] | None = None
    asked: NDArray[np.bool_] | None = field(default=None, compare=False)  # [Q], the queries as a mask

    @classmethod
    def of(cls, store: Store, queries: Ints | None, documents: NDArray[np.bool_] | None) -> Part:
        asked = None
        if queries is not None:
            asked = np.zeros(len(store.queries), dtype=np.bool_)
            asked[queries] = True
        return cls(store, queries, documents, asked)

    def query(self, id: object) -> int | None:
        row = self.store.queries.find(id)
        return row if row is None or self.asked is None or self.asked[row] else None

    def document(self, id: object) -> int | None:
        row = self.store.documents.find(id)
        if row is None or row >= self.store.documents.count:
            return None
        return row if self.documents is None or self.documents[row] else None

    def is_whole(self) -> bool:
        return self.queries is None and self.documents is None

    @property
    def query_rows(self) -> Ints:
        return np.arange(len(self.store.queries)) if self.queries is None else self.queries

    def document_parts(self) -> Iterator[Ints]:
        """Yield the rows of the documents, in order, some at a time."""
        for begin in range(0, self.store.documents.count, PART):
            end = min(begin + PART, self.store.documents.count)
            if self.documents is None:
                yield np.arange(begin, end)
            else:
                yield begin + np.flatnonzero(self.documents[begin:end])

    def related(self, name: str, query: int) -> tuple[Ints, NDArray[Any] | None]:
        """Return the documents of a query that are in this part, and their values."""
        relation = self.store.relations[name]
        at = relation.of(query)
        documents = np.asarray(relation.documents[at])
        values = None if relation.values is None else np.asarray(relation.values[at])
        if self.documents is None:
            return documents, values
        kept = self.documents[documents]
        return documents[kept], None if values is None else values[kept]

    def counts(self, name: str) -> Ints:
        """Return how many related documents each query has, in the order of the queries."""
        _, counts = self.pairs(name, with_documents=False)
        return counts

    def pairs(self, name: str, with_documents: bool = True) -> tuple[Ints, Ints]:
        """Return (documents [E] of all queries, one query after another; how many each query has [Q])."""
        relation = self.store.relations[name]
        if self.is_whole():
            documents = relation.documents if with_documents else np.empty(0, np.int32)
            return documents, np.diff(relation.offsets)
        counts, found = np.zeros(len(self.query_rows), np.int32), []
        for begin in range(0, len(counts), PART):
            documents, _, sizes = self.gather(name, self.query_rows[begin : begin + PART])
            counts[begin : begin + PART] = sizes
            if with_documents:
                found.append(documents)
        return np.concatenate(found) if found else np.empty(0, np.int32), counts

    def gather(self, name: str, rows: Ints) -> tuple[Ints, NDArray[Any] | None, Ints]:
        """Return (documents of these queries, one query after another; their values; how many each query has)."""
        relation = self.store.relations[name]
        starts, sizes = relation.offsets[rows], relation.offsets[rows + 1] - relation.offsets[rows]
        ends = np.cumsum(sizes)
        at = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(starts - (ends - sizes), sizes)
        if self.documents is not None:
            kept = self.documents[relation.documents[at]]
            sizes = np.bincount(np.repeat(np.arange(len(rows)), sizes)[kept], minlength=len(rows))
            at = at[kept]
        return relation.documents[at], None if relation.values is None else relation.values[at], sizes


# Mappings ------------------------------------------------------------------------------------------------------------


class _Items(ItemsView[str, V]):
    def __iter__(self) -> Iterator[tuple[str, V]]:
        yield from self._mapping.pairs()  # type: ignore[attr-defined]


class _Values(ValuesView[V]):
    def __iter__(self) -> Iterator[V]:
        for _, value in self._mapping.pairs():  # type: ignore[attr-defined]
            yield value


class _Stored(Mapping[str, V]):
    """A read-only mapping whose values are made when they are asked for; ``pairs`` makes all, in order."""

    def __init__(self, part: Part) -> None:
        self.part = part

    def pairs(self) -> Iterator[tuple[str, V]]:
        raise NotImplementedError

    def items(self) -> ItemsView[str, V]:
        return _Items(self)

    def values(self) -> ValuesView[V]:
        return _Values(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} entries in {self.part.store.folder}>"


class StoredCorpus(_Stored[Document]):
    """Document id -> Document."""

    def __init__(self, part: Part) -> None:
        super().__init__(part)
        self._recent: dict[int, Document] = {}  # collating a batch asks for each of its documents several times

    def __getitem__(self, id: str) -> Document:
        row = self.part.document(id)
        if row is None:
            raise KeyError(id)
        found = self._recent.get(row)
        if found is None:
            found = self._document(self.part.store.documents.row(row, CELLS))
            _keep(self._recent, row, found)
        return found

    def __contains__(self, id: object) -> bool:
        return self.part.document(id) is not None

    def __len__(self) -> int:
        count = self.part.store.documents.count
        return count if self.part.documents is None else int(self.part.documents[:count].sum())

    def __iter__(self) -> Iterator[str]:
        for rows in self.part.document_parts():
            for (id,) in self.part.store.documents.blocks(rows, "id"):
                yield id

    def pairs(self) -> Iterator[tuple[str, Document]]:
        for rows in self.part.document_parts():
            for cells in self.part.store.documents.blocks(rows, *CELLS):
                yield cells[0], self._document(cells)

    def _document(self, cells: Sequence[Any]) -> Document:
        *fields, row, size = cells
        if row is not None:
            assert self.part.store.images is not None
            fields[2] = self.part.store.images.image(row, fields[2], size)
        return Document(*fields)


def _keep(recent: dict[int, V], row: int, value: V) -> None:
    if len(recent) >= RECENT:
        recent.clear()
    recent[row] = value


class StoredQueries(_Stored[str]):
    """Query id -> text."""

    def __getitem__(self, id: str) -> str:
        row = self.part.query(id)
        if row is None:
            raise KeyError(id)
        text: str = self.part.store.queries.value(row, "text")
        return text

    def __contains__(self, id: object) -> bool:
        return self.part.query(id) is not None

    def __len__(self) -> int:
        return len(self.part.store.queries) if self.part.queries is None else len(self.part.queries)

    def __iter__(self) -> Iterator[str]:
        for (id,) in self.part.store.queries.blocks(self.part.query_rows, "id"):
            yield id

    def pairs(self) -> Iterator[tuple[str, str]]:
        yield from self.part.store.queries.blocks(self.part.query_rows, "id", "text")


class StoredRelation(_Stored[V]):
    """Query id -> its related documents, for the queries that have one; of the qrels, for every query."""

    def __init__(self, part: Part, name: str, make: Any, every: bool = False, valued: bool = True) -> None:
        super().__init__(part)
        self.name, self.make, self.every, self.valued = name, make, every, valued
        self._recent: dict[int, V | None] = {}  # collating a batch asks for each of its queries several times

    def _value(self, row: int) -> V | None:
        if row in self._recent:
            return self._recent[row]
        documents, values = self.part.related(self.name, row)
        values = values if self.valued else None
        made: V | None = None
        if len(documents) or self.every:
            names = self.part.store.documents
            ids = names.values(documents, "id")
            if len(ids) <= BLOCK:
                names.remember(ids, documents.tolist())
            made = self.make(ids if values is None else zip(ids, values.tolist(), strict=True))
        if len(documents) <= BLOCK:
            _keep(self._recent, row, made)
        return made

    def __getitem__(self, id: str) -> V:
        row = self.part.query(id)
        value = None if row is None else self._value(row)
        if value is None:
            raise KeyError(id)
        return value

    def __contains__(self, id: object) -> bool:
        row = self.part.query(id)
        return row is not None and (self.every or len(self.part.related(self.name, row)[0]) > 0)

    def __len__(self) -> int:
        counts = self.part.counts(self.name)
        return len(counts) if self.every else int((counts > 0).sum())

    def __iter__(self) -> Iterator[str]:
        rows = self.part.query_rows
        kept = rows if self.every else rows[self.part.counts(self.name) > 0]
        for (id,) in self.part.store.queries.blocks(kept, "id"):
            yield id

    def pairs(self) -> Iterator[tuple[str, V]]:
        yield from self.of_rows(self.part.query_rows)

    def of_rows(self, queries: Ints) -> Iterator[tuple[str, V]]:
        """Yield the ids and values of these queries, many at a time."""
        names = self.part.store
        for begin in range(0, len(queries), BLOCK):
            rows = queries[begin : begin + BLOCK]
            documents, values, sizes = self.part.gather(self.name, rows)
            values = values if self.valued else None
            ids = names.documents.values(documents, "id")
            cells: list[Any] = ids if values is None else list(zip(ids, values.tolist(), strict=True))
            end = 0
            for id, size in zip(names.queries.values(rows, "id"), sizes.tolist(), strict=True):
                begun, end = end, end + size
                if size or self.every:
                    yield id, self.make(cells[begun:end])


class StoredMined(_Stored[HardNegatives]):
    """Query id -> its negatives with the miner's scores, for the queries whose negatives name a miner or scores."""

    def __init__(self, part: Part) -> None:
        super().__init__(part)
        folder = part.store.folder
        self.positive, self.miner = load_array(folder, "negatives.positive"), load_array(folder, "negatives.miner")
        self.miners: list[str] = json.loads((folder / "miners.json").read_text("utf-8"))

    def _value(self, row: int) -> HardNegatives | None:
        documents, values = self.part.related("negatives", row)
        assert values is not None
        scores = () if np.isnan(values).any() else tuple(values.tolist())
        miner = "" if self.miner[row] < 0 else self.miners[self.miner[row]]
        if not (scores or miner):
            return None
        best = float(self.positive[row])
        ids = tuple(self.part.store.documents.values(documents, "id"))
        return HardNegatives(ids, scores, None if best != best else best, miner)

    def __getitem__(self, id: str) -> HardNegatives:
        row = self.part.query(id)
        value = None if row is None else self._value(row)
        if value is None:
            raise KeyError(id)
        return value

    def __iter__(self) -> Iterator[str]:
        return (id for id, _ in self.pairs())

    def __len__(self) -> int:
        return sum(1 for _ in self.pairs())

    def pairs(self) -> Iterator[tuple[str, HardNegatives]]:
        for row in self.part.query_rows.tolist():
            if (value := self._value(row)) is not None:
                yield self.part.store.queries.value(row, "id"), value


class PairRows(Sequence[tuple[str, str]]):
    """Pairs of ids, held as row numbers.

    queries, documents: [P] rows of the store
    """

    def __init__(self, store: Store, queries: Ints, documents: Ints) -> None:
        self.store, self.queries, self.documents = store, queries, documents

    def __len__(self) -> int:
        return len(self.documents)

    @overload
    def __getitem__(self, index: int) -> tuple[str, str]: ...
    @overload
    def __getitem__(self, index: slice) -> PairRows: ...
    def __getitem__(self, index: int | slice) -> tuple[str, str] | PairRows:
        if isinstance(index, slice):
            return PairRows(self.store, self.queries[index], self.documents[index])
        rows = int(self.queries[index]), int(self.documents[index])
        names = self.store.queries, self.store.documents
        query, document = (one.value(row, "id") for one, row in zip(names, rows, strict=True))
        names[0].remember([query], rows[:1])
        names[1].remember([document], rows[1:])
        return query, document

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for begin in range(0, len(self), BLOCK):
            some = slice(begin, begin + BLOCK)
            queries = self.store.queries.values(self.queries[some], "id")
            yield from zip(queries, self.store.documents.values(self.documents[some], "id"), strict=True)


# The collection ------------------------------------------------------------------------------------------------------


class StoredCollection(Collection):
    """A collection whose rows are in a store. Its mappings are read-only; ``negatives`` may be replaced whole."""

    def __init__(self, name: str, part: Part) -> None:
        corpus: Any = StoredCorpus(part)
        queries: Any = StoredQueries(part)
        qrels: Any = StoredRelation(part, "qrels", dict, every=True)
        negatives: Any = StoredRelation(part, "negatives", list, valued=False)
        teacher: Any = StoredRelation(part, "teacher", dict)
        mined = part.store.relations["negatives"].values is not None
        scored: Any = StoredMined(part) if mined else {}
        has_teacher = len(part.store.relations["teacher"].documents) > 0
        super().__init__(name, corpus, queries, qrels, negatives, teacher if has_teacher else {}, scored)
        self.part = part

    @classmethod
    def open(cls, folder: Path, name: str, images: ImageColumn | None = None) -> StoredCollection:
        return cls(name, Part(Store(folder, images)))

    def pairs(self) -> PairRows:
        documents, counts = self.part.pairs("positives")
        queries = np.repeat(self.part.query_rows.astype(np.int32), counts)
        return PairRows(self.part.store, queries, documents)

    def select(self, query_ids: Iterable[str], document_ids: Iterable[str] | None = None) -> Collection:
        queries = [(id, self.part.query(id)) for id in dict.fromkeys(query_ids)]
        documents = None
        if document_ids is not None:
            documents = np.zeros(len(self.part.store.documents), np.bool_)
            for id in document_ids:
                row = self.part.document(id)
                if row is None:
                    raise KeyError(id)
                documents[row] = True
        for id, query in queries:
            if query is None:
                raise KeyError(id)
        return self.select_rows(np.array([row for _, row in queries], dtype=np.int32), documents)

    def mask(self, documents: Ints) -> NDArray[np.bool_]:
        """Return these rows of documents as ``select_rows`` takes them."""
        found = np.zeros(len(self.part.store.documents), np.bool_)
        found[documents] = True
        return found

    def select_rows(self, queries: Ints, documents: NDArray[np.bool_] | None) -> StoredCollection:
        """Return these queries, in this order, with the documents of a mask [N] (None = all of this collection)."""
        kept = self.part.documents if documents is None else documents
        found = StoredCollection(self.name, Part.of(self.part.store, queries, kept))
        found.near = self.near
        if not isinstance(self.negatives, StoredRelation):  # mined anew, and held in memory
            ids, corpus = set(found.queries), found.corpus
            found.negatives = {q: [d for d in row if d in corpus] for q, row in self.negatives.items() if q in ids}
        return found

    def count_files(self) -> int:
        return len({file for rows in self.part.document_parts() for file in self._distinct(rows, "file")} - {None})

    def count_pages(self) -> int:
        return sum(self._distinct_count(rows, "image") for rows in self.part.document_parts())

    def names_pages(self) -> bool:
        return any(
            file is not None and page is not None
            for rows in self.part.document_parts()
            for file, page in self.part.store.documents.blocks(rows, "file", "page")
        )

    def count_related(self, name: Literal["negatives", "teacher"]) -> tuple[int, int]:
        held = getattr(self, name)
        if not isinstance(held, StoredRelation):
            return super().count_related(name)
        counts = self.part.counts(name)
        return int(counts.sum()), int((counts > 0).sum())

    def _distinct(self, rows: Ints, column: str) -> set[Any]:
        names = self.part.store.documents
        return {one for _, cells in names.entries.arrow(names.rows[rows], column) for one in cells.unique().to_pylist()}

    def _distinct_count(self, rows: Ints, column: str) -> int:
        names = self.part.store.documents
        return sum(len(cells) - cells.null_count for _, cells in names.entries.arrow(names.rows[rows], column))

    def problems(self) -> list[str]:
        """As of a collection in memory. Negatives and scores cannot dangle: what is unknown is left out when they are
        written."""
        store, teacher = self.part.store, self.part.store.relations["teacher"].values
        blank = store.queries.numbers(self.part.query_rows, "length") == 0
        problems = {"queries that are empty": self._ids_where(blank)}
        problems["queries without a judgement"] = self._ids_where(self.part.counts("qrels") == 0)
        if store.documents.count < len(store.documents):
            judged = self.part.pairs("qrels")[0]
            missing = judged[judged >= store.documents.count]
            missing = missing[np.sort(np.unique(missing, return_index=True)[1])]
            problems["judged documents missing in the corpus"] = store.documents.values(missing, "id")
        if teacher is not None and not np.isfinite(teacher).all():
            infinite = [not np.isfinite(list(row.values())).all() for row in self.teacher.values()]
            problems["queries with a teacher's score that is not finite"] = [
                id for id, bad in zip(self.teacher, infinite, strict=True) if bad
            ]
        problems["documents that are empty"] = [
            id
            for rows in self.part.document_parts()
            for id in store.documents.values(rows[store.documents.is_blank(rows)], "id")
        ]
        return [f"{len(ids)} {what}: {first_few(ids)}" for what, ids in problems.items() if ids]

    def _ids_where(self, mask: NDArray[np.bool_]) -> list[str]:
        return self.part.store.queries.values(self.part.query_rows[mask], "id")

    def fingerprint(self) -> str:
        """As of a collection in memory; kept beside the store, since ten million rows take minutes."""
        asked = sha256()
        for rows in (self.part.queries, self.part.documents):
            asked.update(b"all" if rows is None else np.ascontiguousarray(np.sort(rows)).tobytes())
        own = isinstance(self.negatives, StoredRelation)
        file = self.part.store.folder / f"fingerprint-{asked.hexdigest()[:32]}.txt"
        if own and file.is_file():
            return file.read_text("ascii")
        found = self._fingerprint()
        if own:
            with replacing(file) as part:
                part.write_text(found, "ascii")
        return found

    def _fingerprint(self) -> str:
        total, store = sha256(), self.part.store
        for rows in _by_id(store.documents, np.concatenate([*self.part.document_parts(), np.empty(0, np.int64)])):
            # as ``json.dumps`` writes each list, which takes three times as long
            total.update(
                "".join(
                    f"[{_json(id)}, {_json(text)}, {'false' if image is None else 'true'}, {_json(file)}, "
                    f"{'null' if page is None else page}]"
                    for id, text, image, file, page in store.documents.blocks(rows, *FIELDS[:5])
                ).encode("ascii")
            )
        queries = list(_by_id(store.queries, self.part.query_rows))
        _update(total, (list(row) for rows in queries for row in store.queries.blocks(rows, "id", "text")))
        _update(total, ([id, sorted(judged.items())] for id, judged in self._in_order(queries, "qrels")))
        if isinstance(self.negatives, StoredRelation):
            _update(total, ([id, row] for id, row in self._in_order(queries, "negatives")))
        else:
            _update(total, (list(pair) for pair in sorted((q, n) for q, n in self.negatives.items() if n)))
        if self.teacher:
            _update(total, ([id, sorted(row.items())] for id, row in self._in_order(queries, "teacher")))
        return total.hexdigest()

    def _in_order(self, queries: Iterable[Ints], name: str) -> Iterator[tuple[str, Any]]:
        held = getattr(self, name)
        for rows in queries:
            yield from held.of_rows(rows)


def _update(total: Any, values: Iterable[Any]) -> None:
    """Update a hash with the JSON of a list, of which some entries are made at a time."""
    rest, begun = iter(values), False
    total.update(b"[")
    while some := list(islice(rest, BLOCK)):
        total.update(b", " * begun + json.dumps(some)[1:-1].encode("ascii"))
        begun = True
    total.update(b"]")


def _json(value: str | None) -> str:
    return "null" if value is None else encode_basestring_ascii(value)


def same_words(collection: StoredCollection) -> list[Ints]:
    """Return the rows of queries of the same words under several ids, one array for each words, in their order."""
    rows = collection.part.query_rows
    shown = collection.part.store.queries.numbers(rows, "shown")
    order = np.argsort(shown, kind="stable")
    begins = np.flatnonzero(np.r_[True, np.diff(shown[order]) != 0]) if len(rows) else np.empty(0, np.int64)
    sizes = np.diff(np.r_[begins, len(rows)])
    return [rows[order[at : at + size]] for at, size in zip(begins[sizes > 1], sizes[sizes > 1], strict=True)]


def _by_id(names: Names, rows: Ints) -> Iterator[Ints]:
    """Yield the rows in the order of their ids, some at a time: a sample of the ids says where to divide them."""
    if len(rows) <= SORTED_AT_ONCE:
        bounds: list[str] = []
    else:
        sample = sorted(names.values(rows[:: max(1, len(rows) // 10_000)], "id"))
        bounds = sample[:: max(1, len(sample) * SORTED_AT_ONCE // len(rows))]
    bucket = np.empty(len(rows), np.int32)
    for place, (id,) in enumerate(names.blocks(rows, "id")) if bounds else ():
        bucket[place] = bisect_right(bounds, id)
    for number in range(len(bounds) + 1):
        some = rows[bucket == number] if bounds else rows
        ids = names.values(some, "id")
        yield some[sorted(range(len(ids)), key=ids.__getitem__)] if len(some) else some
