"""The queries to choose on and the queries to report on, of any data that a recipe reads; never the same ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError
from smart_train.data.collection import Collection
from smart_train.data.ids import hash_id
from smart_train.data.load import load, read_split, short_name
from smart_train.data.sources import DEV, TEST, DataProblem, Source, find
from smart_train.data.split import cap, halves

DOCSTRINGS = {"dev": 200, "test": 300, "dev_documents": 400, "test_documents": 1500}  # as recipes/quickstart.yaml


@dataclass
class DevAndTest:
    """told: where the two come from, in words"""

    dev: Collection
    test: Collection
    told: str


def dev_and_test(data: DataBlock, test: str | None = None, dev: str | None = None, recipe: bool = False) -> DevAndTest:
    """Two collections without a query in common.

    data: its dev and test are whole numbers, the most queries of either side, or a share to hold out; 0 = all there are
    test, dev: names of splits; None = those that the data has, by their usual names
    recipe: the block is a recipe's: its own rules hold, and nothing else is looked at

    A dev and a test split of the data are read as they are.  Without a dev split, the queries of the other one are
    divided in two halves, by whole files, and both halves search the whole corpus.  Docstrings, and data with training
    pairs alone where ``data`` says what to hold out, are split as a recipe with these values would: what an adapter was
    trained on is then on neither side.
    Raises DataError for a split that is not there, rows that can't be read, and queries that can't be divided.
    """
    source = find(data)
    if recipe:
        return _held_out(data)
    if source.kind == "pydocs":
        data = replace(data)
        for name, usual in DOCSTRINGS.items():
            setattr(data, name, getattr(data, name) or usual)
        return _held_out(data)
    names = _names(source, data, test, dev)
    if names[1] is None and names[0] not in TEST and (data.dev or data.test):
        if not (data.dev and data.test):
            raise DataError(f"{data.path} has neither a dev nor a test split: say how much to hold out for both")
        return _held_out(replace(data, split=names[0]))
    whole = _read(source, data, names[0])
    if names[1] is not None:
        chosen_on, told = _read(source, data, names[1]), f"the data's own splits {names[1]} and {names[0]}"
        texts = set(whole.queries.values())
        shared = [q for q, text in chosen_on.queries.items() if q in whole.queries or text in texts]
        if shared:
            chosen_on = chosen_on.select([q for q in chosen_on.queries if q not in set(shared)])
            told += f"; {len(shared)} queries of {names[1]} are in {names[0]} as well, and are left out of it"
    else:
        left, right, kept = halves(whole)
        chosen_on, whole = whole.select(left), whole.select(right)
        told = f"there is no dev split: the queries of {names[0]} in two halves, no {kept}'s queries in both"
    return DevAndTest(
        _capped(chosen_on, data.dev, data.dev_documents, "dev"),
        _capped(whole, data.test, data.test_documents, "test"),
        told,
    )


def _held_out(data: DataBlock) -> DevAndTest:
    _, dev, test = load(replace(data, negatives=0))  # nobody is trained
    for name, side in (("dev", dev), ("test", test)):
        if not side.queries:
            raise DataError(f"{data.path}: no query is held out for {name} (data.{name})")
    told = f"held out of {short_name(data)} by whole files, as a recipe with these values holds them out"
    return DevAndTest(dev, test, told)


def _names(source: Source, data: DataBlock, test: str | None, dev: str | None) -> tuple[str, str | None]:
    """Of the split to report on, and of the one to choose on, where there is one."""
    there = ", ".join(sorted(source.splits)) or "none"
    for name in (test, dev):
        if name is not None and name not in source.splits:
            raise DataProblem("data.split", f"{data.path} has no split {name!r}; there is {there}", "name one of these")
    reported = test or next((name for name in TEST if name in source.splits), None)
    if reported is None:
        others = [name for name in source.splits if name not in DEV and name != dev]
        if len(others) > 1:
            what = f"{data.path} has no split test; there is {there}"
            raise DataProblem("data.split", what, "name the one to report on")
        reported = others[0] if others else next(iter(source.splits), None)
    if reported is None:
        raise DataProblem("data.path", f"{data.path} has no split", "name data with queries and judgements")
    if reported == dev:
        raise DataError(f"the split {dev!r} can't be chosen on and reported on; name two, or one to divide")
    return reported, dev or next((name for name in DEV if name in source.splits and name != reported), None)


def _read(source: Source, data: DataBlock, split: str) -> Collection:
    return read_split(source, replace(data, split=split), split)


def _capped(collection: Collection, queries: float | int, documents: int | None, name: str) -> Collection:
    """At most so many queries and documents, by hash; what answers a query stays."""
    own = sorted(collection.queries, key=lambda q: (hash_id(f"0\n{q}"), q))
    most = round(queries * len(own)) if 0 < queries < 1 else int(queries)
    kept = own[:most] if most else own
    ranked = cap(collection, kept, list(collection.corpus), documents, 0)
    if len(kept) == len(own) and len(ranked) == len(collection.corpus):
        return collection
    part = collection.select(sorted(kept), ranked)
    for query, judged in part.qrels.items():  # documents that the corpus never had count as they were read
        judged.update({d: g for d, g in collection.qrels[query].items() if d not in collection.corpus})
    part.name = f"{collection.name}/{name}"
    return part
