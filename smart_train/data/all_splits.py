"""All splits of one data set at once, with everything that dangles still in it: what check looks at and share sends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError
from smart_train.data import hard_negatives as attached
from smart_train.data import store
from smart_train.data.collection import Collection, Document, Mined
from smart_train.data.column_aliases import (
    CORPUS_IDS,
    FILES,
    HASHES,
    PAGES,
    QUERY_IDS,
    column,
    id_of,
    require,
    score_of,
)
from smart_train.data.load import read_split
from smart_train.data.qrels import Judgement, judgement_rows, judgements
from smart_train.data.readers import beir
from smart_train.data.readers import hub_datasets as hub
from smart_train.data.sources import Source, find
from smart_train.data.tables import Table, open_files

T = TypeVar("T")

Qrels = dict[str, dict[str, int]]  # query id -> document id -> grade
More = dict[str, dict[str, Any]]  # column -> id -> value


@dataclass
class Whole:
    """One corpus, every query, and the qrels of each split; ids may dangle, images may be missing.

    corpus_more, query_more: columns that no reader here asks for, by id; they are kept when it is written
    twice: pairs that a split judges twice, with different grades; the higher is in the qrels
    """

    name: str
    corpus: dict[str, Document]
    queries: dict[str, str]
    splits: dict[str, Qrels]
    mined: dict[str, Mined] = field(default_factory=dict)
    teacher: dict[str, dict[str, float]] = field(default_factory=dict)
    corpus_more: More = field(default_factory=dict)
    query_more: More = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)


def read_whole(data: DataBlock) -> Whole:
    """Everything at ``data.path``: a retrieval collection (local or on the Hub) as it lies there, or the rows of every
    split as one collection.  Raises DataError where a row or a file cannot be read at all."""
    source = find(data)
    if source.kind == "pydocs":
        raise DataError("pydocs is made anew on each machine; name a folder, a file or a Hub dataset")
    if source.kind != "beir":
        return _rows(source, data)
    if source.place == "hub":
        return _hosted(data, list(source.splits))
    folder = Path(data.path)
    parts = {name: [open_files(beir.part(folder, name))] for name in ("corpus", "queries")}
    parts |= {name: attached.tables(folder, name) for name in (attached.NEGATIVES, attached.TEACHER)}
    judged = {split: [j for f in files for j in judgements(f)] for split, files in beir.splits(folder).items()}
    return _joined(folder.name, data, parts, judged, folder)


def write_whole(whole: Whole, folder: Path) -> None:
    """Writes all of it as store.py does; raises DataError where the folder holds anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is not empty; name a folder that is not there yet")
    store.write_corpus(folder, whole.corpus.values(), whole.corpus_more)
    store.write_queries(folder, whole.queries, whole.query_more)
    for split, qrels in whole.splits.items():
        store.write_qrels(folder, split, qrels)
    if whole.mined:
        store.write_negatives(folder, whole.mined)
    if whole.teacher:
        store.write_teacher(folder, whole.teacher)


def _joined(
    name: str,
    data: DataBlock,
    parts: Mapping[str, Sequence[Table]],
    judged: dict[str, list[Judgement]],
    home: Path | None,
) -> Whole:
    """parts: the tables of corpus, queries, negatives and teacher."""
    whole = Whole(name, {}, {}, {})
    read = (("text",), ("title",), ("image",), FILES, PAGES, HASHES)
    for table in parts["corpus"]:
        found = beir.read_corpus(table, data.document, data.image, home, there=False)
        _unite(whole.corpus, found, lambda a, b: (a.text, a.page) == (b.text, b.page), table)
        _further(table, CORPUS_IDS, read, data, whole.corpus_more)
    for table in parts["queries"]:
        _unite(whole.queries, beir.read_queries(table), str.__eq__, table)
        _further(table, QUERY_IDS, (("text", "query"),), data, whole.query_more)
    for split, rows in judged.items():
        qrels = whole.splits.setdefault(split, {})
        for _, query, document, grade in rows:
            row = qrels.setdefault(query, {})
            if row.get(document, grade) != grade:
                whole.twice.append(f"{query} {document}")
            row[document] = max(grade, row.get(document, grade))
    whole.mined = {query: mined for _, query, mined in attached.negative_rows(parts[attached.NEGATIVES])}
    for where, query, scores in attached.teacher_rows(parts[attached.TEACHER]):
        whole.teacher[query] = {d: score_of(s, f"{where}: {d}") for d, s in scores.items()}
    return whole


def _unite(into: dict[str, T], found: dict[str, T], same: Callable[[T, T], bool], table: Table) -> None:
    other = next((key for key, one in found.items() if not same(into.get(key, one), one)), None)
    if other is not None:
        raise DataError(f"{table.name}: the id {other!r} is in another split with another content; ids must be unique")
    into.update(found)


def _further(table: Table, ids: tuple[str, ...], read: Iterable[tuple[str, ...]], data: DataBlock, into: More) -> None:
    """The columns of a table that its reader does not ask for; images among them are left where they are."""
    key = require(table, ids, "ids")
    known = {key, data.document, data.image, *getattr(table, "images", ())}
    known |= {column([c for c in table.columns if c != key], names) for names in read}
    names = [name for name in table.columns if name not in known]
    for where, row in table if names else ():
        for name in names:
            if row.get(name) is not None:
                into.setdefault(name, {})[id_of(row, key, where)] = row[name]


def _hosted(data: DataBlock, splits: list[str]) -> Whole:
    parts: dict[str, list[Any]] = {"corpus": [], "queries": []}
    judged: dict[str, list[Judgement]] = {}
    for split in splits:
        tables = hub.retrieval_tables(data.path, split, data.revision, data.subset)
        judged[split] = list(judgement_rows(tables["qrels"]))
        for name, found in parts.items():  # some sets have one corpus, some one a split
            if all(table.name != tables[name].name for table in found):
                found.append(tables[name])
    for name in (attached.NEGATIVES, attached.TEACHER):
        parts[name] = list(hub.attached_tables(data.path, name, data.revision))
    return _joined(data.path.rpartition("/")[2], data, parts, judged, None)


def _rows(source: Source, data: DataBlock) -> Whole:
    whole = Whole(Path(data.path).name, {}, {}, {})
    for split in source.splits:
        part: Collection = read_split(source, data, split)
        for key, document in part.corpus.items():
            if whole.corpus.setdefault(key, document).text != document.text:
                raise DataError(f"{data.path}: the id {key!r} of {split} is in another split with another content")
        whole.queries |= part.queries
        whole.splits[split] = part.qrels
        for query, documents in part.negatives.items():
            before = whole.mined.get(query, Mined(())).documents
            whole.mined[query] = Mined(tuple(dict.fromkeys([*before, *documents])))
        for query, scores in part.teacher.items():
            whole.teacher.setdefault(query, {}).update(scores)
    return whole
