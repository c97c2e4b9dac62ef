"""Convert large retrieval collections (a corpus, queries, judgements) to ``Store``s on disk, once.

The corpus and the queries are converted each in a folder of its own, which all splits share; they are written as
shards, so that a stopped conversion resumes after the last one (``row_cache.ShardedPass``). What a split judges is
arrays of numbers in a third folder: 12 bytes of memory a judgement while they are made. What is read, left out and
reported is what reading into memory reads, leaves out and reports (readers/beir.py).
"""

from __future__ import annotations

import json
import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smart_train.core.errors import DataError
from smart_train.core.progress_log import ProgressLog
from smart_train.data.arrow_shards import Shards
from smart_train.data.collection import Document, first_few
from smart_train.data.identity import content_hash, stored_hash
from smart_train.data.readers import row_cache
from smart_train.data.readers.row_cache import ShardedPass, codes_of, convert, highest, keep_first
from smart_train.data.stored_collection import (
    NONE,
    PART,
    Names,
    StoredCollection,
    image_cells,
    save_array,
    select_names,
)
from smart_train.data.tables import ImageColumn, read_score

logger = logging.getLogger(__name__)

VERSION = 2
BATCH = 50_000  # judgements, or rows of negatives, whose ids are looked up together
FEW = 5  # ids that a report names

# What reports say, of a collection in memory as of one on disk; each is preceded by a number.
TEXTLESS = "judged queries have no text and are left out"
MISSING = "judged documents are missing in the corpus (they stay in the qrels and lower recall)"
EMPTY_DOCUMENTS = "documents are empty"
EMPTY_QUERIES = "queries are empty"
TWICE = "pairs are judged twice with different grades; the higher counts"
LOST_NEGATIVES = "negatives are missing in the corpus and are left out"
LOST_SCORES = "scores are of documents missing in the corpus and are left out"
TWO_CONTENTS = "is there before, with another content; ids must be unique"
SCORED_BEFORE = "has a line before; write its scores in one line"
TWO_TEXTS = "is there before, with another text; ids must be unique"

Ints = NDArray[Any]
Judgement = tuple[str, str, str, int]  # where, query id, document id, grade


@dataclass(frozen=True)
class Rows:
    """Rows of one kind, which can be read anew.

    read: yields them; about: what they depend on, as JSON can hold it; total: about how many there are
    """

    read: Callable[[], Iterable[Any]]
    about: Any
    total: int = 0


@dataclass(frozen=True)
class Sources:
    """The parts of a collection.

    documents: (where, Document); queries: (where, id, text); judged: Judgement; negatives: (where, query id,
    HardNegatives), of a query the last one counts; teacher: (where, query id, document id -> score as it is written)
    """

    name: str
    documents: Rows
    queries: Rows
    judged: Rows
    negatives: Rows = field(default_factory=lambda: Rows(tuple, None))
    teacher: Rows = field(default_factory=lambda: Rows(tuple, None))


def open_stored(sources: Sources, images: ImageColumn | None = None) -> StoredCollection:
    """Return the collection, converted before or now; raises as reading it into memory does.

    images: where the images of documents are that stay in their table
    """
    name = sources.name
    documents = _Entries("documents", f"{name}: corpus", sources.documents)
    queries = _Entries("queries", f"{name}: queries", sources.queries)
    corpus, counted = convert({"version": VERSION, "documents": sources.documents.about}, documents.name, documents.run)
    asked, _ = convert({"version": VERSION, "queries": sources.queries.about}, queries.name, queries.run)
    about = {"version": VERSION, "documents": corpus.name, "queries": asked.name, "judged": sources.judged.about}
    about |= {"negatives": sources.negatives.about, "teacher": sources.teacher.about}
    split, found = convert(about, f"{name}: judgements", _Split(sources, corpus, asked).run)
    report = {**found["report"], EMPTY_DOCUMENTS: counted["blank"]}
    for what in (TEXTLESS, MISSING, EMPTY_DOCUMENTS, EMPTY_QUERIES):
        count, first = report[what]
        if count:
            logger.warning("%s: %d %s: %s", name, count, what, _few(first, count))
    for what in (TWICE, LOST_NEGATIVES, LOST_SCORES):
        if found["counts"][what]:
            logger.warning("%s: %d %s", name, found["counts"][what], what)
    return StoredCollection.open(split, name, images)


def _few(first: list[str], count: int) -> str:
    return first_few([*first, *[""] * (count - len(first))])


# Documents and queries -----------------------------------------------------------------------------------------------


class _Shard:
    """Documents or queries between two writes, one of every row."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.cells: list[tuple[Any, ...]] = []
        self.rows = self.text = 0

    def add(self, row: Any) -> None:
        self.rows += 1
        if self.kind == "queries":
            _, id, text = row
            self.cells.append((id, text, len(text), content_hash(text if text.strip() else f"id {id}")))
        else:
            one: Document = row[1]
            text, (image, *where) = one.text or "", image_cells(one.image)
            more = (one.file, one.page, one.title, one.hash, *where)
            self.cells.append((one.id, one.text, image, *more, len(text) if image is None else 0, stored_hash(one)))
        self.text += len(text)

    def full(self) -> bool:
        return self.rows >= row_cache.SHARD_ROWS or self.text >= row_cache.SHARD_TEXT

    def write(self, folder: Path, number: int) -> dict[str, Any]:
        import pyarrow as pa

        types: dict[str, Any] = {"id": pa.string(), "text": pa.large_string()}
        if self.kind == "documents":
            types |= {"image": pa.string(), "file": pa.string(), "page": pa.int64()}
            types |= {"title": pa.large_string(), "hash": pa.string()}
            types |= dict.fromkeys(("image_row", "image_bytes"), pa.int64())
        types |= {"length": pa.int64(), "shown": pa.int64()}
        row_cache.write_entries(folder / f"{self.kind}-{number:06d}.arrow", types, self.cells)
        return {"rows": self.rows}


@dataclass
class _Entries:
    """Converts the documents or the queries.  kind: "documents" or "queries" """

    kind: str
    name: str
    source: Rows

    def run(self, folder: Path) -> dict[str, Any]:
        read = lambda before: islice(iter(self.source.read()), before, None)  # noqa: E731
        done = ShardedPass(folder, self.name, read, lambda: _Shard(self.kind), self.source.total).run()
        shards = Shards([folder / f"{self.kind}-{number:06d}.arrow" for number in range(len(done))])
        row, count = row_cache.number_entries(folder, self.kind, shards, shards.starts[:-1])
        names = Names(folder, self.kind)
        if count < len(shards):
            self._check_twice(shards, row, names)
        blank, first = 0, list[str]()
        for begin in range(0, count if self.kind == "documents" else 0, PART):
            rows = np.arange(begin, min(begin + PART, count))
            rows = rows[names.is_blank(rows)]
            blank += len(rows)
            first += names.values(rows[: FEW - len(first)], "id")
        return {"blank": [blank, first]}

    def _check_twice(self, shards: Shards, row: Ints, names: Names) -> None:
        """Raise DataError, naming the row, for an id that is there again with another content."""
        what = ("text", "page") if self.kind == "documents" else ("text",)
        for begin in range(0, len(shards), PART):
            at = np.arange(begin, min(begin + PART, len(shards)))
            first = names.rows[row[at]]
            again = first != at
            both = zip(shards.blocks(at[again], *what), shards.blocks(first[again], *what), strict=True)
            for place, (one, other) in zip(at[again].tolist(), both, strict=True):
                if one != other:
                    where, *found = next(islice(iter(self.source.read()), place, None))
                    if self.kind == "documents":
                        raise DataError(f"{where}: the id {found[0].id!r} {TWO_CONTENTS}")
                    raise DataError(f"{where}: the query id {found[0]!r} {TWO_TEXTS}")


# One split -----------------------------------------------------------------------------------------------------------


@dataclass
class _Split:
    """Converts what a split judges."""

    sources: Sources
    corpus: Path
    asked: Path

    def run(self, folder: Path) -> dict[str, Any]:
        for file in folder.iterdir():  # of a conversion that was stopped
            if file.name != "lock":
                file.unlink()
        documents, queries = Names(self.corpus, "documents"), Names(self.asked, "queries")
        query, document, grade, textless, missing = self._judgements(documents, queries)
        order = keep_first(query) if len(query) else np.empty(0, np.int64)
        kept = query[order]  # the queries in the order of their first judgement
        select_names(queries, folder, "queries", kept)
        (folder / "parts.json").write_text(json.dumps({"documents": self.corpus.name, "queries": self.asked.name}))
        _add_missing(folder, documents, list(missing))
        new = np.full(len(queries), NONE, np.int32)
        new[kept] = np.arange(len(kept))
        query = new[query]
        by_query = np.argsort(query, kind="stable")
        query, document, grade = query[by_query], document[by_query], grade[by_query]
        codes = codes_of(query, document, len(documents) + len(missing))
        twice = _count_other_grades(codes, grade)
        best, first = highest(codes, grade), keep_first(codes)
        _write_relation(folder, "qrels", len(kept), query[first], document[first], best[first])
        own = Names(folder, "queries", [self.asked])
        blank = np.flatnonzero(own.numbers(np.arange(len(own)), "length") == 0)
        lost_negatives = self._negatives(folder, documents, own)
        lost_scores = self._teacher(folder, documents, own)
        report = {
            TEXTLESS: [len(textless), list(islice(textless, FEW))],
            MISSING: [len(missing), sorted(missing)[:FEW]],
            EMPTY_QUERIES: [len(blank), own.values(blank[:FEW], "id")],
        }
        return {"report": report, "counts": {TWICE: twice, LOST_NEGATIVES: lost_negatives, LOST_SCORES: lost_scores}}

    def _judgements(self, documents: Names, queries: Names) -> tuple[Ints, Ints, Ints, dict[str, None], dict[str, int]]:
        """Return rows of queries and documents [E], grades [E], queries without a text, and documents that the corpus
        lacks -> how many lacked before: they are numbered after those that it has."""
        found = (array("i"), array("i"), array("i"))
        textless: dict[str, None] = {}
        missing: dict[str, int] = {}
        pace = ProgressLog(f"{self.sources.name}: judgements read", self.sources.judged.total, every=10.0)
        for some in _batches(self.sources.judged.read()):
            asked = queries.find_all([one[1] for one in some])
            shown = documents.find_all([one[2] for one in some])
            for place in np.flatnonzero(asked == NONE).tolist():
                textless[some[place][1]] = None
            known = asked != NONE
            for place in np.flatnonzero(known & (shown == NONE)).tolist():
                shown[place] = len(documents) + missing.setdefault(some[place][2], len(missing))
            for into, values in zip(found, (asked, shown, np.array([one[3] for one in some])), strict=True):
                into.frombytes(values[known].astype(np.int32).tobytes())
            pace.add(len(some))
        query, document, grade = (np.frombuffer(values, np.int32) for values in found)
        return query, document, grade, textless, missing

    def _negatives(self, folder: Path, documents: Names, queries: Names) -> int:
        """Write the negatives; return how many the corpus lacks."""
        last = np.full(len(queries), NONE, np.int64)  # of each query the place of its row
        sizes, shown, scores = array("q"), array("i"), array("d")
        positive, miner, miners = array("d"), array("i"), dict[str, int]()
        lost, mined_any = 0, False
        for some in _batches(self.sources.negatives.read(), BATCH // 10):
            asked = queries.find_all([one[1] for one in some])
            some = [one for one, row in zip(some, asked.tolist(), strict=True) if row != NONE]
            rows = documents.find_all([d for _, _, mined in some for d in mined.documents])
            end = 0
            for (_, _, mined), row in zip(some, asked[asked != NONE].tolist(), strict=True):
                begin, end = end, end + len(mined.documents)
                own = rows[begin:end]
                there = own != NONE
                lost += int((~there).sum())
                last[row] = len(sizes)
                sizes.append(int(there.sum()))
                shown.extend(own[there].tolist())
                scores.extend(np.array(mined.scores or [np.nan] * len(own))[there].tolist())
                positive.append(np.nan if mined.positive is None else mined.positive)
                miner.append(miners.setdefault(mined.miner, len(miners)) if mined.miner else NONE)
                mined_any |= bool(mined.scores or mined.miner)
        query = np.flatnonzero(last != NONE)
        row = last[query]
        size = np.frombuffer(sizes, np.int64)
        begins, size = (np.cumsum(size) - size)[row], size[row]
        at = np.arange(int(size.sum())) + np.repeat(begins - (np.cumsum(size) - size), size)
        values = np.frombuffer(scores, np.float64)[at] if mined_any else None
        owner = np.repeat(query, size)
        _write_relation(folder, "negatives", len(queries), owner, np.frombuffer(shown, np.int32)[at], values)
        if mined_any:
            for name, given, kind in (("positive", positive, np.float64), ("miner", miner, np.int32)):
                every = np.full(len(queries), np.nan if kind is np.float64 else NONE, kind)
                every[query] = np.array(given, kind)[row]
                save_array(folder, f"negatives.{name}", every)
            (folder / "miners.json").write_text(json.dumps(list(miners)), "utf-8")
        return lost

    def _teacher(self, folder: Path, documents: Names, queries: Names) -> int:
        """Write the teacher's scores; return how many are of documents that the corpus lacks."""
        seen = np.zeros(len(queries), np.bool_)
        owner, shown, scores = array("i"), array("i"), array("d")
        lost = 0
        for some in _batches(self.sources.teacher.read(), BATCH // 10):
            asked = queries.find_all([one[1] for one in some])
            rows = documents.find_all([d for _, _, given in some for d in given])
            end = 0
            for (where, _, given), row in zip(some, asked.tolist(), strict=True):
                begin, end = end, end + len(given)
                if row == NONE:
                    continue
                if seen[row]:
                    id = queries.value(row, "id")
                    raise DataError(f"{where}: the query {id!r} {SCORED_BEFORE}")
                seen[row] = True
                read = scored(given, where)
                there = {d: read[n] for n, d in enumerate(rows[begin:end].tolist()) if d != NONE}
                lost += len(given) - len(there)
                owner.extend([row] * len(there))
                shown.extend(there)
                scores.extend(there.values())
        query = np.frombuffer(owner, np.int32)
        order = np.argsort(query, kind="stable")
        values = np.frombuffer(scores, np.float64)[order]
        _write_relation(folder, "teacher", len(queries), query[order], np.frombuffer(shown, np.int32)[order], values)
        return lost


def scored(given: Mapping[str, Any], where: str) -> list[float]:
    """Return the scores of a row of teacher scores; raises DataError for what is no finite number."""
    return [read_score(score, f"{where}: {document}") for document, score in given.items()]


def _batches(rows: Iterable[Any], size: int = BATCH) -> Iterator[list[Any]]:
    rest = iter(rows)
    while some := list(islice(rest, size)):
        yield some


def _add_missing(folder: Path, documents: Names, missing: Sequence[str]) -> None:
    """Write the documents that are judged and not in the corpus as rows behind its own."""
    if not missing:
        return
    import pyarrow as pa

    types = {"id": pa.string(), "text": pa.large_string(), "length": pa.int64()}
    cells = [(id, None, 0) for id in missing]
    row_cache.append_entries(folder, documents, "documents", "missing", types, cells)
    save_array(folder, "documents.count", np.array([len(documents)], np.int64))


def _count_other_grades(codes: Ints, grades: Ints) -> int:
    """Return how often a pair comes again with another grade than the highest so far."""
    found, place, counts = np.unique(codes, return_inverse=True, return_counts=True)
    best: dict[int, int] = {}
    count = 0
    several = counts[place] > 1
    for pair, grade in zip(place[several].tolist(), grades[several].tolist(), strict=True):
        count += best.get(pair, grade) != grade
        best[pair] = max(grade, best.get(pair, grade))
    return count


def _write_relation(folder: Path, name: str, queries: int, query: Ints, document: Ints, values: Ints | None) -> None:
    """Write the documents of each query.  query: sorted"""
    offsets = np.zeros(queries + 1, np.int64)
    np.cumsum(np.bincount(query, minlength=queries), out=offsets[1:])
    save_array(folder, f"{name}.offsets", offsets)
    save_array(folder, f"{name}.documents", document.astype(np.int32))
    if values is not None:
        save_array(folder, f"{name}.values", values)
