"""Load a recipe's data: train, dev and test for a run, dev and test for choosing and reporting.

Every format is read through its reader (readers/base.py); what is held out, capped and sampled is decided here, the
same for all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import numpy as np

from smart_train.config.schema import DataBlock
from smart_train.config.typed_values import Problem
from smart_train.core.errors import DataError
from smart_train.data.collection import DEV_SPLITS, TEST_SPLITS, Collection, RetrievalDataset, hash_id
from smart_train.data.identity import asked_by, content_hash, plain, shared_documents
from smart_train.data.near_documents import mark_near
from smart_train.data.readers.base import DataProblem, Reader, find_reader
from smart_train.data.split import cap, halves, split
from smart_train.data.split_stored import cap_rows
from smart_train.data.stored_collection import StoredCollection
from smart_train.data.streaming import KNOWN, RowStream, stream_problems

logger = logging.getLogger(__name__)

TEACHER_KEY = "objective.teacher.weight"
TEACHER_FIX = "write 0, or give the data a teacher's scores (docs/data.md)"
SEED = 0  # of the split: the same for every training seed, so that runs can be compared
HELD_OUT = {"dev": 200, "test": 300, "dev_documents": 400, "test_documents": 1500}  # as recipes/quickstart.yaml


# For a run -----------------------------------------------------------------------------------------------------------


def load(data: DataBlock | Reader, teacher: bool = False) -> tuple[Collection, Collection, Collection]:
    """Return (train, dev, test) of a recipe's data; docs/data.md describes every format.

    data: a recipe's data block, or a reader that was made with one
    teacher: another model's scores are needed, so that it is an error where no query to train on has one

    Dev and test are the data's own splits (dev, validation, valid or val; test) where it has them, and are otherwise
    held out of ``data.split`` by whole files (``split.split``); ``dev: 0`` means none.  Of an own dev split, a whole
    number ``data.dev`` takes that many queries.  ``data.limit`` counts pairs of ``data.split`` before anything is held
    out, in their order (pydocs: a fixed sample over all packages); the query of a retrieval collection that reaches it
    keeps all of its judgements, so that none of its positives turns into a negative.
    Raises DataError where ``check_data`` would name a problem, and for rows that cannot be read.
    """
    reader = _reader(data)
    data = reader.data
    if data.streaming:
        raise DataProblem("data.streaming", f"is true, and this needs {data.path} as a whole", "write it as false here")
    train = read_split(reader, data.split, data.limit)
    if data.negatives and not train.count_related("negatives")[1]:
        what = f"is {data.negatives}, but no query of {data.path} has a negative"
        raise DataProblem("data.negatives", what, "write data.negatives: 0, or mine negatives first")
    if teacher and not train.count_related("teacher")[1]:
        raise DataProblem(TEACHER_KEY, f"is on, but no query of {data.path} has a score", TEACHER_FIX)
    dev, test = _own_splits(reader)
    if data.near_duplicates == "together":
        mark_near(reader.name, [part for part in (train, dev, test) if part is not None])
    train, dev_part, test_part = _hold_out(train, data, 0 if dev else data.dev, 0 if test else data.test)
    splits = (
        train,
        _capped(dev, data.dev_documents) if dev else dev_part,
        _capped(test, data.test_documents) if test else test_part,
    )
    for part, name in zip(splits, ("train", "dev", "test"), strict=True):
        part.name = f"{reader.name}/{name}"
    _warn_of_overlap(*splits, shared_corpus=reader.shared_corpus)
    return splits


def load_streamed(data: DataBlock | Reader) -> tuple[RowStream, Collection, Collection]:
    """Return (train, dev, test) of a recipe's data with ``data.streaming``: dev and test are the data's own splits.

    Raises DataError where ``check_data`` would name a problem.
    """
    reader = _reader(data)
    for problem in _stream_problems(reader):
        raise DataProblem(problem.key, problem.what, problem.fix)
    stream = RowStream(reader.stream_table(reader.data.split), reader.data, f"{reader.name}/train")
    dev, test = (part or Collection("", {}, {}, {}) for part in _own_splits(reader))
    dev, test = _capped(dev, reader.data.dev_documents), _capped(test, reader.data.test_documents)
    dev.name, test.name = f"{reader.name}/dev", f"{reader.name}/test"
    return stream, dev, test


def load_ranked(data: DataBlock | Reader) -> tuple[Collection, Collection]:
    """Return (dev, test) of a recipe's data, streamed or not; raises as ``load``."""
    reader = _reader(data)
    _, dev, test = load_streamed(reader) if reader.data.streaming else load(reader)
    return dev, test


def _own_splits(reader: Reader) -> tuple[Collection | None, Collection | None]:
    """Return the data's own dev and test splits; None where there is none, or it is not wanted."""
    data = reader.data
    own = {name: own_split(reader, names) for name, names in (("dev", DEV_SPLITS), ("test", TEST_SPLITS))}
    test = reader.read(own["test"]) if own["test"] else None
    dev = reader.read(own["dev"]) if own["dev"] and data.dev else None
    if dev and isinstance(data.dev, int):
        dev = dev.select(sorted(dev.queries, key=lambda q: (hash_id(f"{SEED}\n{q}"), q))[: data.dev])
    return dev, test


def read_split(reader: Reader, name: str, limit: int | None = None) -> Collection:
    """Read one split, or its first ``limit`` pairs; raises DataProblem where there is no such split."""
    splits = reader.splits()
    if name not in splits:
        raise DataProblem("data.split", _no_split(reader, name), "name one of these")
    return reader.read(name) if limit is None else reader.read_first(name, limit)


def read_all(data: DataBlock | Reader) -> RetrievalDataset:
    """Read every split of any data that a recipe can read, as one data set."""
    return _reader(data).read_all()


def read_all_with_warnings(data: DataBlock | Reader) -> tuple[RetrievalDataset, list[str]]:
    """Return ``read_all``, and what the reader warns of: what it left out, or took for something else."""
    reader = _reader(data)
    told = _Warnings()
    module = type(reader).__module__
    loggers = [logging.getLogger(name) for name in {READERS_LOG, READERS_LOG if _is_own(module) else module}]
    for one in loggers:
        one.addHandler(told)
    try:
        return reader.read_all(), list(dict.fromkeys(told.lines))
    finally:
        for one in loggers:
            one.removeHandler(told)


READERS_LOG = "smart_train.data"


def _is_own(module: str) -> bool:
    return module.startswith(f"{READERS_LOG}.")


class _Warnings(logging.Handler):
    """Keeps warnings about data; those about this machine's cache and memory are no fault of the data."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.endswith(".machine"):
            self.lines.append(record.getMessage())


def _reader(data: DataBlock | Reader) -> Reader:
    return data if isinstance(data, Reader) else find_reader(data)


def own_split(reader: Reader, names: tuple[str, ...]) -> str | None:
    """Return the data's own split of one of these names, other than the one trained on."""
    splits = reader.splits()
    return next((name for name in names if name in splits and name != reader.data.split), None)


def _no_split(reader: Reader, name: str) -> str:
    return f"{reader.data.path} has no split {name!r}; there is {', '.join(sorted(reader.splits())) or 'none'}"


def _hold_out(
    collection: Collection, data: DataBlock, dev: float | int, test: float | int
) -> tuple[Collection, Collection, Collection]:
    if not dev and not test:
        return collection, Collection("dev", {}, {}, {}), Collection("test", {}, {}, {})
    return split(collection, dev, test, SEED, data.test_documents, data.dev_documents)


def _capped(collection: Collection, most: int | None) -> Collection:
    """At most so many documents to rank."""
    if most is None or len(collection.corpus) <= most:
        return collection
    return _select(collection, list(collection.queries), most)


def _select(collection: Collection, queries: list[str], most: int | None) -> Collection:
    """These queries with at most so many documents; judgements of documents that the corpus never had stay, as they
    were read."""
    if isinstance(collection, StoredCollection):
        rows = np.array([collection.part.query(query) for query in queries], np.int32)
        kept_rows = cap_rows(collection, rows, most, SEED)
        if kept_rows is not None:
            kept_rows[collection.part.store.documents.count :] = True
        return collection.select_rows(rows, kept_rows)
    part = collection.select(queries, cap(collection, queries, list(collection.corpus), most, SEED))
    for query, judged in part.qrels.items():
        judged.update({d: g for d, g in collection.qrels.get(query, {}).items() if d not in collection.corpus})
    return part


def _warn_of_overlap(train: Collection, dev: Collection, test: Collection, shared_corpus: bool) -> None:
    """Warn where training and ranking have queries in common, or documents, unless all splits share one corpus."""
    parts = (dev, test)
    asked = [{query: content_hash(text) for query, text in part.queries.items()} for part in parts]
    trained = asked_by(train, {one for part in asked for one in part.values()})
    any_document = not shared_corpus and (dev.corpus or test.corpus)
    shared = shared_documents(train, parts) if any_document else [set[str](), set[str]()]
    for part, words, shown in zip(parts, asked, shared, strict=True):
        queries, documents = sum(q in train.queries or one in trained for q, one in words.items()), len(shown)
        if documents or queries:
            logger.warning(
                "%s shares %s%d queries with %s: what is trained on is ranked too, and its metrics are better than "
                "they should be; run smart-train data check",
                part.name,
                "" if shared_corpus else f"{documents} documents and ",
                queries,
                train.name,
            )


# Before a run --------------------------------------------------------------------------------------------------------


def check_data(data: DataBlock | Reader, teacher: bool = False) -> list[Problem]:
    """Return what is wrong with ``data``, as far as that is known without reading the rows and without any model.

    teacher: as in ``load``
    """
    try:
        reader = _reader(data)
        problems = list(_check(reader))
        if teacher and not problems and (why := reader.no_scores()):
            problems.append(Problem(TEACHER_KEY, f"is on, but {why}", TEACHER_FIX))
        return problems
    except DataProblem as error:
        return [error.problem]
    except DataError as error:
        return [Problem("data.path", str(error), "repair the data, or name other data in data.path")]


def _check(reader: Reader) -> Iterator[Problem]:
    data, splits = reader.data, reader.splits()
    if data.split not in splits:
        near = get_close_matches(data.split, splits, 1)
        fix = f"write data.split: {near[0] if near else 'one of these'}"
        yield Problem("data.split", _no_split(reader, data.split), fix)
        return
    if data.negatives and (why := reader.no_negatives()):
        yield Problem("data.negatives", f"is {data.negatives}, but {why}", "write data.negatives: 0")
    yield from reader.problems()
    if data.streaming:
        yield from _stream_problems(reader)


def _stream_problems(reader: Reader) -> Iterator[Problem]:
    """Yield why this data cannot be streamed."""
    data = reader.data
    yield from (found := list(stream_problems(data)))
    for key, names, asked in (("dev", DEV_SPLITS, data.dev), ("test", TEST_SPLITS, data.test)):
        if asked and own_split(reader, names) is None:
            what = f"is {asked:g}, but {KNOWN}, so it can hold none out, and {data.path} has no split {names[0]}"
            fix = f"put these queries into a split of their own ({names[0]}.jsonl beside train.jsonl), or write 0"
            yield Problem(f"data.{key}", what, fix)
    try:
        if not found:
            RowStream(reader.stream_table(data.split), replace(data, negatives=0))
    except DataProblem as error:
        yield error.problem


def has_test(data: DataBlock | Reader) -> bool:
    """Return whether the data has a test split of its own. Raises as ``find_reader`` does."""
    return own_split(_reader(data), TEST_SPLITS) is not None


def no_scores(data: DataBlock | Reader) -> str | None:
    """Return why the data has no teacher scores, as far as that is known without reading the rows; None where it may
    have some.  Raises as ``find_reader`` does."""
    return _reader(data).no_scores()


def image_column(data: DataBlock | Reader) -> str | None:
    """Return the column whose images would be encoded; None where there is none, or where a Hub dataset does not
    describe its columns.  Raises as ``find_reader`` does."""
    return _reader(data).image_column()


# For choosing and reporting ------------------------------------------------------------------------------------------


@dataclass
class DevAndTest:
    """Two collections without a query in common; origin: where they come from, for the report."""

    dev: Collection
    test: Collection
    origin: str


def dev_and_test(data: DataBlock, test: str | None = None, dev: str | None = None, recipe: bool = False) -> DevAndTest:
    """Return queries to choose on and queries to report on, from any data that a recipe reads.

    data: its dev and test are whole numbers, the most queries of either, or a share to hold out; 0 = all there are
    test, dev: names of splits; None = those that the data has, by their usual names
    recipe: the block is a recipe's, whose own rules alone hold

    A dev and a test split of the data are read as they are.  Without a dev split, the queries of the other one are
    divided in two halves, by whole files, and both halves search the whole corpus.  Docstrings, and data with training
    pairs alone where ``data`` says what to hold out, are split as a recipe with these values would: what an adapter was
    trained on is then in neither.
    Raises DataError for a split that is not there, rows that can't be read, and queries that can't be divided.
    """
    reader = find_reader(data)
    if recipe:
        return _held_out(reader, data)
    if not reader.has_splits:
        usual: dict[str, Any] = {name: getattr(data, name) or value for name, value in HELD_OUT.items()}
        return _held_out(reader, replace(data, **usual))
    test_name, dev_name = _split_names(reader, test, dev)
    if dev_name is None and test_name not in TEST_SPLITS and (data.dev or data.test):
        if not (data.dev and data.test):
            raise DataError(f"{data.path} has neither a dev nor a test split: say how much to hold out for both")
        return _held_out(reader, replace(data, split=test_name))
    reported = reader.read(test_name)
    if dev_name is None and data.near_duplicates == "together":
        mark_near(reader.name, [reported])
    if dev_name is not None:
        chosen, origin = reader.read(dev_name), f"the data's own splits {dev_name} and {test_name}"
        texts = {plain(text) for text in reported.queries.values()}
        shared = [q for q, text in chosen.queries.items() if q in reported.queries or plain(text) in texts]
        if shared:
            chosen = chosen.select([q for q in chosen.queries if q not in set(shared)])
            origin += f"; {len(shared)} queries of {dev_name} are in {test_name} as well, and are left out of it"
    else:
        left, right, kept = halves(reported)
        chosen, reported = reported.select(left), reported.select(right)
        origin = f"there is no dev split: the queries of {test_name} in two halves, no {kept}'s queries in both"
    return DevAndTest(
        _sampled(chosen, data.dev, data.dev_documents, "dev"),
        _sampled(reported, data.test, data.test_documents, "test"),
        origin,
    )


def _held_out(reader: Reader, data: DataBlock) -> DevAndTest:
    dev, test = load_ranked(replace(data, negatives=0))  # nothing is trained, so no negatives are needed
    for name, part in (("dev", dev), ("test", test)):
        if not part.queries:
            raise DataError(f"{data.path}: no query is held out for {name}; raise data.{name}")
    origin = f"held out of {reader.name} by whole files, as a recipe with these values holds them out"
    return DevAndTest(dev, test, origin)


def _split_names(reader: Reader, test: str | None, dev: str | None) -> tuple[str, str | None]:
    """The split to report on, and the one to choose on, where there is one."""
    data, splits = reader.data, reader.splits()
    there = ", ".join(sorted(splits)) or "none"
    for name in (test, dev):
        if name is not None and name not in splits:
            raise DataProblem("data.split", _no_split(reader, name), "name one of these")
    reported = test or next((name for name in TEST_SPLITS if name in splits), None)
    if reported is None:
        others = [name for name in splits if name not in DEV_SPLITS and name != dev]
        if len(others) > 1:
            what = f"{data.path} has no split test; there is {there}"
            raise DataProblem("data.split", what, "name the one to report on")
        reported = others[0] if others else next(iter(splits), None)
    if reported is None:
        raise DataProblem("data.path", f"{data.path} has no split", "name data with queries and judgements")
    if reported == dev:
        raise DataError(f"the split {dev!r} can't be chosen on and reported on; name two, or one to divide")
    return reported, dev or next((name for name in DEV_SPLITS if name in splits and name != reported), None)


def _sampled(collection: Collection, queries: float | int, documents: int | None, name: str) -> Collection:
    """At most so many queries and documents, by hash; what answers a query stays."""
    own = sorted(collection.queries, key=lambda q: (hash_id(f"{SEED}\n{q}"), q))
    most = round(queries * len(own)) if 0 < queries < 1 else int(queries)
    kept = own[:most] if most else own
    if len(kept) == len(own) and (documents is None or len(collection.corpus) <= documents):
        return collection
    part = _select(collection, sorted(kept), documents)
    part.name = f"{collection.name}/{name}"
    return part
