"""Read hard negatives and teacher scores of queries, from a folder or a Hub dataset."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from smart_train.core.errors import DataError
from smart_train.data.collection import Collection, Mined
from smart_train.data.column_aliases import QUERY_IDS, column, id_of, require, score_of
from smart_train.data.tables import Table, TextTable, open_files, readable

logger = logging.getLogger(__name__)

NEGATIVES = "negatives"  # negatives.jsonl, or a folder of this name
TEACHER = "teacher"
IDS = ("corpus-ids", "negatives", "documents")  # a column of lists of document ids


def tables(folder: Path, name: str) -> list[Table]:
    """The tables of ``negatives`` or ``teacher``: NAME.jsonl, then the Parquet files of NAME/, which count for more."""
    loose = folder / f"{name}.jsonl"
    found: list[Table] = [TextTable([loose])] if loose.is_file() else []
    stored = readable(folder / name)
    return found + ([open_files(stored)] if stored else [])


def has(folder: Path, name: str) -> bool:
    return (folder / f"{name}.jsonl").is_file() or bool(readable(folder / name))


def negative_rows(found: Iterable[Table]) -> Iterator[tuple[str, str, Mined]]:
    """(where, query id, its negatives), a query again where it is there again; raises DataError for a row's shape."""
    for table in found:
        if not table.columns:
            continue
        key, ids = require(table, QUERY_IDS, "query ids"), column(table.columns, IDS) or NEGATIVES
        scores, positive, miner = (column(table.columns, (n,)) or n for n in ("scores", "positive", "miner"))
        for where, row in table:
            named = row.get(ids)
            if not isinstance(named, list):
                raise DataError(f"{where}: {ids} must be a list of document ids")
            values = row.get(scores)
            if values is not None and (not isinstance(values, list) or len(values) not in (0, len(named))):
                raise DataError(f"{where}: {scores} must be a list of {len(named)} numbers, one for each of {ids}")
            best = row.get(positive)
            yield (
                where,
                id_of(row, key, where),
                Mined(
                    tuple(str(d) for d in named),
                    tuple(score_of(s, f"{where}: {scores}") for s in values or ()),
                    None if best is None else score_of(best, f"{where}: {positive}"),
                    str(row.get(miner) or ""),
                ),
            )


def teacher_rows(found: Iterable[Table]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(where, query id, document id -> score as it is written); raises DataError for a row's shape."""
    for table in found:
        if not table.columns:
            continue
        key, ids = require(table, QUERY_IDS, "query ids"), column(table.columns, IDS)
        for where, row in table:
            scores = row.get("scores")
            if ids and isinstance(scores, list) and isinstance(row[ids], list) and len(scores) == len(row[ids]):
                scores = dict(zip(map(str, row[ids]), scores, strict=True))
            if not isinstance(scores, dict):
                raise DataError(f"{where}: scores must be an object of document id -> score")
            yield where, id_of(row, key, where), scores


def attach(collection: Collection, negatives: Iterable[Table], teacher: Iterable[Table]) -> None:
    """Gives the collection what these tables say of its own queries; other documents are left out and counted."""
    lost = 0
    for _, query, mined in negative_rows(negatives):
        if query in collection.queries:
            known = mined.only(collection.corpus.__contains__)
            lost += len(mined.documents) - len(known.documents)
            collection.negatives[query] = list(known.documents)
            collection.mined.pop(query, None)
            if known.scores or known.miner:
                collection.mined[query] = known
    if lost:
        logger.warning("%s: %d negatives are missing in the corpus and are left out", collection.name, lost)
    lost = 0
    for where, query, scores in teacher_rows(teacher):
        if query in collection.teacher:
            raise DataError(f"{where}: the query {query!r} has a line before; write its scores in one line")
        if query in collection.queries:
            there = {d: score_of(s, f"{where}: {d}") for d, s in scores.items() if d in collection.corpus}
            lost += len(scores) - len(there)
            collection.teacher[query] = there
    if lost:
        what = "scores are of documents missing in the corpus and are left out"
        logger.warning("%s: %d %s", collection.name, lost, what)
