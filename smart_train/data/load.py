"""A recipe's data block -> train, dev and test collections, or what is wrong with it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from smart_train.config.schema import DataBlock
from smart_train.config.typed_values import Problem
from smart_train.core.errors import DataError
from smart_train.data import hard_negatives as attached
from smart_train.data.collection import Collection, split
from smart_train.data.column_aliases import CORPUS_IDS, QUERY_IDS, column
from smart_train.data.ids import hash_id
from smart_train.data.qrels import judgement_rows
from smart_train.data.readers import beir
from smart_train.data.readers import hub_datasets as hub
from smart_train.data.readers import mbeir as pools
from smart_train.data.readers import page_annotations as by_page
from smart_train.data.readers.pydocs import read_pydocs
from smart_train.data.readers.rows import choose_columns, read_rows
from smart_train.data.sources import DEV, TEST, DataProblem, Source, find
from smart_train.data.split import cap
from smart_train.data.tables import StoredTable, Table, TextTable, columns_of, open_files

__all__ = ["check_data", "has_test", "image_column", "load", "no_scores"]

logger = logging.getLogger(__name__)

TEACHER_KEY = "objective.teacher.weight"  # of the recipe, which is all that this room knows of the objective
TEACHER_FIX = "write 0, or give the data a teacher's scores (docs/data.md)"
SEED = 0  # of the split: the same sides for every training seed, so that runs can be compared


def load(data: DataBlock, teacher: bool = False) -> tuple[Collection, Collection, Collection]:
    """(train, dev, test) of a recipe's data; see docs/data.md for every shape that is read.

    teacher: another model's scores are needed, so that it is a problem where no query to train on has one.

    Dev and test are the data's own splits (dev, validation, valid or val; test) where it has them, and are otherwise
    held out of ``data.split`` by whole files (``records.split``); ``dev: 0`` means none.  Of an own dev split, a
    whole number ``data.dev`` takes that many queries.  ``data.limit`` counts pairs of ``data.split`` before anything
    is held out, in their order (pydocs: a fixed sample over all packages); the query of a retrieval collection that
    reaches it keeps all of its judgements, so that none of its known answers turns into a negative.
    Raises DataError where ``check_data`` would name a problem, and for rows that cannot be read.
    """
    source = find(data)
    if source.kind == "pydocs":
        if teacher:
            raise DataProblem(TEACHER_KEY, f"is on, but {no_scores(data)}", TEACHER_FIX)
        return _hold_out(_sample(read_pydocs(), data.limit), data, data.dev, data.test)
    train = read_split(source, data, data.split)
    if source.kind == "beir" and data.limit is not None:
        train = train.select(dict.fromkeys(q for q, _ in train.pairs()[: data.limit]))
    if data.negatives and not any(train.negatives.values()):
        what = f"is {data.negatives}, but no query of {data.path} has a negative"
        raise DataProblem("data.negatives", what, "write data.negatives: 0, or mine negatives first")
    if teacher and not any(train.teacher.values()):
        raise DataProblem(TEACHER_KEY, f"is on, but no query of {data.path} has a score", TEACHER_FIX)
    own = {side: _own(source, data, names) for side, names in (("dev", DEV), ("test", TEST))}
    whole = dataclasses.replace(data, limit=None)
    test = read_split(source, whole, own["test"]) if own["test"] else None
    dev = read_split(source, whole, own["dev"]) if own["dev"] and data.dev else None
    if dev and isinstance(data.dev, int):
        dev = dev.select(sorted(dev.queries, key=lambda q: (hash_id(f"{SEED}\n{q}"), q))[: data.dev])
    train, dev_part, test_part = _hold_out(train, data, 0 if dev else data.dev, 0 if test else data.test)
    sides = (
        train,
        _capped(dev, data.dev_documents) if dev else dev_part,
        _capped(test, data.test_documents) if test else test_part,
    )
    for side, name in zip(sides, ("train", "dev", "test"), strict=True):
        side.name = f"{short_name(data)}/{name}"
    _tell_shared(*sides, corpus=source.kind in ("beir", "pool"))
    return sides


def check_data(data: DataBlock, teacher: bool = False) -> list[Problem]:
    """What is wrong with ``data`` as far as it can be told without reading the rows and without any model.

    teacher: as in ``load``
    """
    try:
        source = find(data)
        problems = list(_check_source(source, data))
        if teacher and not problems and (why := no_scores(data)):
            problems.append(Problem(TEACHER_KEY, f"is on, but {why}", TEACHER_FIX))
        return problems
    except DataProblem as error:
        return [error.problem]
    except DataError as error:
        return [Problem("data.path", str(error), "repair the data, or name other data in data.path")]


def _check_source(source: Source, data: DataBlock) -> Iterator[Problem]:
    if source.kind == "pydocs":
        yield from _no_negatives(data, "docstrings have no hard negatives")
    elif data.split not in source.splits:
        there = ", ".join(sorted(source.splits)) or "none"
        near = get_close_matches(data.split, source.splits, 1)
        what = f"{data.path} has no split {data.split!r}; there is {there}"
        yield Problem("data.split", what, f"write data.split: {near[0] if near else 'one of these'}")
    elif source.kind != "pool":
        yield from _check_beir(source, data) if source.kind == "beir" else _check_rows(source, data)


def has_test(data: DataBlock) -> bool:
    """Whether the data brings a test split of its own; raises as ``find`` does."""
    source = find(data)
    return source.kind != "pydocs" and _own(source, data, TEST) is not None


def no_scores(data: DataBlock) -> str | None:
    """Why the data has no scores of another model, as far as it can be told without reading the rows; None where it
    may have some.  Raises as ``find`` does."""
    source = find(data)
    if source.kind == "pydocs":
        return "docstrings have no scores"
    if source.kind == "beir":
        there, name = _has(source, data, attached.TEACHER)
        return None if there else f"{data.path} has no {name}"
    columns = [] if source.kind == "pool" else row_columns(source, data)
    if source.kind == "pool" or by_page.fits(columns, data):
        return f"{data.path} has no scores"
    chosen, _ = choose_columns(columns, data)
    return f"{data.path} has no column of scores" if columns and chosen and not chosen.scores else None


def _has(source: Source, data: DataBlock, name: str) -> tuple[bool, str]:
    """Whether a retrieval collection has ``negatives`` or ``teacher``, and what they would be called there."""
    if source.place == "local":
        return attached.has(Path(data.path), name), f"{name}.jsonl"
    return name in hub.configs(data.path, data.revision), f"configuration {name}"


def _check_beir(source: Source, data: DataBlock) -> Iterator[Problem]:
    there, wanted = _has(source, data, attached.NEGATIVES)
    if not there:
        yield from _no_negatives(data, f"{data.path} has no {wanted}")
    if source.place == "hub":
        return
    folder = Path(data.path)
    corpus, queries = columns_of(beir.part(folder, "corpus")), columns_of(beir.part(folder, "queries"))
    for key, name in (("document", data.document), ("image", data.image)):
        if name and name not in corpus:
            what = f"the corpus of {data.path} has no column {name!r}; it has {', '.join(corpus)}"
            yield Problem(f"data.{key}", what, f"write data.{key}: one of these, or null")
    needed = ((corpus, CORPUS_IDS, "corpus"), (queries, QUERY_IDS, "queries"))
    for columns, names, part in needed:
        if column(columns, names) is None:
            what = f"the {part} of {data.path} has no id column ({', '.join(names)}); it has {', '.join(columns)}"
            yield Problem("data.path", what, f"rename its id column to {names[0]}")


def _check_rows(source: Source, data: DataBlock) -> Iterator[Problem]:
    columns = row_columns(source, data)
    if by_page.fits(columns, data):
        yield from _no_negatives(data, f"{data.path} is a table of pages, and names none")
    elif columns:  # a Hub dataset need not describe its columns; then reading tells
        yield from choose_columns(columns, data)[1]


def _no_negatives(data: DataBlock, why: str) -> Iterator[Problem]:
    if data.negatives:
        yield Problem("data.negatives", f"is {data.negatives}, but {why}", "write data.negatives: 0")


def _own(source: Source, data: DataBlock, names: tuple[str, ...]) -> str | None:
    """The data's own split of one of these names, other than the one trained on."""
    return next((n for n in names if n in source.splits and n != data.split), None)


# ---------------------------------------------------------------------------------------------- sides


def _hold_out(
    collection: Collection, data: DataBlock, dev: float | int, test: float | int
) -> tuple[Collection, Collection, Collection]:
    if not dev and not test:
        return collection, Collection("dev", {}, {}, {}), Collection("test", {}, {}, {})
    return split(collection, dev, test, SEED, data.test_documents, data.dev_documents)


def _capped(collection: Collection, most: int | None) -> Collection:
    kept = cap(collection, collection.queries, list(collection.corpus), most, SEED)
    return collection if len(kept) == len(collection.corpus) else _keep(collection, kept)


def _keep(collection: Collection, documents: list[str]) -> Collection:
    """Only these documents to rank; judgements of documents that the corpus never had stay, as they were read."""
    part = collection.select(collection.queries, documents)
    for query, judged in collection.qrels.items():
        part.qrels[query].update({d: g for d, g in judged.items() if d not in collection.corpus})
    return part


def _sample(collection: Collection, limit: int | None) -> Collection:
    if limit is None or limit >= len(collection.queries):
        return collection
    queries = sorted(collection.queries, key=lambda q: (hash_id(q), q))[:limit]
    queries = sorted(queries)
    return collection.select(queries, [d for q in queries for d in collection.qrels[q]])


def _tell_shared(train: Collection, dev: Collection, test: Collection, corpus: bool) -> None:
    """Warns of what is trained on and ranked too.  corpus: the splits are of one corpus, so only queries count."""
    trained = set(train.queries.values())
    for side in (dev, test):
        queries = sum(query in train.queries or text in trained for query, text in side.queries.items())
        documents = 0 if corpus else len(side.corpus.keys() & train.corpus.keys())
        if documents or queries:
            logger.warning(
                "%s shares %s%d queries with %s: what is trained on is ranked too, and its figures are better than "
                "they should be",
                side.name,
                "" if corpus else f"{documents} documents and ",
                queries,
                train.name,
            )


# One split of what was found at ``data.path``, read by the reader of its kind.


def short_name(data: DataBlock) -> str:
    """A local path's last part, or the Hub id."""
    return Path(data.path).name if Path(data.path).exists() else data.path


def read_split(source: Source, data: DataBlock, split: str) -> Collection:
    """The collection of one split; raises DataProblem where there is no such split, DataError for bad rows."""
    name = short_name(data)
    if split not in source.splits:
        there = ", ".join(sorted(source.splits)) or "none"
        raise DataProblem("data.split", f"{data.path} has no split {split!r}; there is {there}", "name one of these")
    if source.kind == "pool":
        return pools.read(Path(data.path), split, data, name)
    if source.kind == "rows":
        table = open_rows(source, data, split)
        pages = isinstance(table, TextTable) and by_page.fits(table.columns, data)
        return by_page.read(table, data, name) if pages else read_rows(table, data, name)  # type: ignore[arg-type]
    if source.place == "local":
        return beir.read(Path(data.path), split, data.document, data.image, name)
    tables = hub.retrieval_tables(data.path, split, data.revision, data.subset)
    judged = list(judgement_rows(tables["qrels"]))
    found = beir.collect(name, tables["corpus"], tables["queries"], judged, data.document, data.image)
    more = [hub.attached_tables(data.path, kind, data.revision) for kind in (attached.NEGATIVES, attached.TEACHER)]
    attached.attach(found, *more)
    return found


def open_rows(source: Source, data: DataBlock, split: str) -> Table:
    """The table of one split."""
    found = source.splits[split]
    if isinstance(found, list):
        return open_files(found)
    if isinstance(found, Path):
        import datasets

        return StoredTable(datasets.load_from_disk(str(found)), str(found), found)
    return hub.table(data.path, data.subset, split, data.revision)


def row_columns(source: Source, data: DataBlock) -> list[str]:
    """The columns of the split that is trained on; [] where a Hub dataset does not describe them."""
    found = source.splits[data.split]
    if source.place == "hub":
        return hub.columns(data.path, data.subset, data.revision)
    return columns_of(found) if isinstance(found, list) else open_rows(source, data, data.split).columns


def image_column(data: DataBlock) -> str | None:
    """The column whose images would be encoded, given or found; None where there is none, or where a Hub dataset does
    not describe its columns.  Raises as ``find`` does."""
    source = find(data)
    if source.kind == "pydocs":
        return None
    if source.kind == "pool":
        pool = TextTable(pools.files(Path(data.path))[1])
        key = "img_path" if data.image is None else data.image
        return key if key and any(row.get(key) for _, row in pool) else None
    if source.kind == "beir":
        columns = corpus_columns(source, data)
        return (column(columns, ("image",)) if data.image is None else data.image) or None
    columns = row_columns(source, data)
    if by_page.fits(columns, data):
        table = open_rows(source, data, data.split)
        return by_page.image_column(table, data) if isinstance(table, TextTable) else None
    chosen, _ = choose_columns(columns, data)
    return chosen.image if chosen else None


def corpus_columns(source: Source, data: DataBlock) -> list[str]:
    """The columns of a retrieval collection's corpus."""
    if source.place == "hub":
        return hub.columns(data.path, hub.prefixed("corpus", data.subset), data.revision)
    return columns_of(beir.part(Path(data.path), "corpus"))
