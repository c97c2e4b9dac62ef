"""Read Tevatron's training data with a corpus of its own (Tevatron 2, Ma et al. 2025, arXiv 2505.02466).

    train.jsonl    query_id, query_text (or query), positive_document_ids, negative_document_ids
    corpus.jsonl   docid, text; also title and image

in one folder, or in folders of their own; also .gz and Parquet.  Which file is which is seen by its columns.  Rows that
hold their passages (``positive_passages``) need no corpus, and the reader of rows has them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError
from smart_train.data.collection import DEV_SPLITS, TEST_SPLITS, Collection, HardNegatives, first_few
from smart_train.data.readers import row_cache
from smart_train.data.readers.base import DataProblem, Reader
from smart_train.data.readers.beir import CorpusRows, Judgement, QueryRows, open_part, read_parts
from smart_train.data.readers.collection_cache import Rows
from smart_train.data.tables import (
    Boundary,
    TextTable,
    columns_of,
    data_files,
    find_column,
    id_text,
    read_id,
    split_name,
    suffix,
)

logger = logging.getLogger(__name__)

POSITIVES = "positive_document_ids"
NEGATIVES = "negative_document_ids"
NO_CORPUS = ("query-id", "score", "relevance")  # qrels have a column of ids of documents, too
PICTURES = ("query-image", "query-video", "query-audio")  # what a query may be besides its text


class TevatronReader(Reader):
    """Read queries that name documents of a corpus by their ids.

    corpus: file or folder of the corpus; None = it is in the folder of the queries, or in a folder there

    ``data.path`` is a folder, or the file of the queries to train on.  ``data.image: ""`` leaves the documents' images
    out, ``data.document: ""`` their texts.
    """

    shared_corpus = True

    def __init__(self, data: DataBlock, corpus: str | None = None) -> None:
        super().__init__(data)
        self.queries, self.corpus = query_and_corpus_files(Path(data.path), data.split)
        if corpus is not None:
            named = Path(corpus).expanduser()
            self.corpus = data_files(named) if named.is_dir() else [named] if named.is_file() else []
        if not self.queries or not self.corpus:
            what = (
                f"no corpus (a column docid) in {corpus or data.path}" if self.queries else f"no table with {POSITIVES}"
            )
            fix = "name the folder of both, or the corpus in data.format: {type: tevatron, corpus: PATH}"
            raise DataProblem("data.path", f"{data.path}: there is {what}", fix)

    @classmethod
    def detect(cls, data: DataBlock) -> bool:
        return all(query_and_corpus_files(Path(data.path), data.split))

    def splits(self) -> list[str]:
        return list(self.queries)

    def read(self, split: str) -> Collection:
        data = self.data
        corpus = CorpusRows(open_part(self.corpus), Boundary.of(data), data.document, data.image)
        table = open_part(self.queries[split])
        asked = _Queries(table)
        about = [row_cache.rows_of(table)]
        judged, negatives = Rows(asked.judged, [*about, POSITIVES]), Rows(asked.negatives, [*about, NEGATIVES])
        return read_parts(self.name, corpus, asked, judged, negatives, Rows(tuple, None))

    def no_negatives(self) -> str | None:
        there = find_column(columns_of(self.queries[self.data.split]), (NEGATIVES,))
        return None if there else f"the queries of {self.data.path} have no {NEGATIVES}"

    def no_scores(self) -> str | None:
        return f"{self.data.path} has no scores"

    def image_column(self) -> str | None:
        if self.data.image is not None:
            return self.data.image or None
        return find_column(columns_of(self.corpus), ("image",))


class _Queries(QueryRows):
    """The queries of a table, what answers them and what does not.  A query that is an image, or has one beside its
    text, is left out and counted: queries are texts here."""

    def __init__(self, table: row_cache.LargeTable) -> None:
        self.positives, self.negative = (find_column(table.columns, (name,)) for name in (POSITIVES, NEGATIVES))
        found = {name.replace("-", "'s "): find_column(table.columns, (name,)) for name in PICTURES}
        self.pictures = [one for one in found.values() if one]
        super().__init__(table, {"positives": self.positives, "negatives": self.negative, **found})

    def __iter__(self) -> Iterator[tuple[str, str, str]]:
        left_out: list[str] = []
        for where, row in self.table:
            if any(row.get(one) for one in self.pictures):
                left_out.append(read_id(row, self.key, where))
        if left_out:
            what = "queries are images or have one, and are left out: queries are texts here"
            logger.warning("%s: %d %s: %s", self.table.name, len(left_out), what, first_few(left_out))
        gone = {*left_out}
        yield from (one for one in super().__iter__() if one[1] not in gone)

    def judged(self) -> Iterator[Judgement]:
        unanswered: list[str] = []
        for where, row in self.table:
            query, found = read_id(row, self.key, where), _ids(row, self.positives, where)
            if not found:
                unanswered.append(query)
            for document in found:
                yield where, query, document, 1
        if unanswered:
            what = f"queries have no {POSITIVES}, and are left out"
            logger.warning("%s: %d %s: %s", self.table.name, len(unanswered), what, first_few(unanswered))

    def negatives(self) -> Iterator[tuple[str, str, HardNegatives]]:
        positive = 0
        for where, row in self.table:
            if found := dict.fromkeys(_ids(row, self.negative, where)):
                answers = {*_ids(row, self.positives, where)}
                kept = tuple(document for document in found if document not in answers)
                positive += len(found) - len(kept)
                yield where, read_id(row, self.key, where), HardNegatives(kept)
        if positive:
            what = "negatives are also positives of their query, and are left out"
            logger.warning("%s: %d %s", self.table.name, positive, what)


def _ids(row: dict[str, Any], column: str | None, where: str) -> list[str]:
    named = row.get(column or "")
    if named is None:
        return []
    ids = [id_text(one) for one in named] if isinstance(named, list) else [None]
    if None in ids:
        raise DataError(f"{where}: {column} must be a list of document ids, texts or whole numbers")
    return [one for one in ids if one is not None]


def query_and_corpus_files(path: Path, split: str) -> tuple[dict[str, list[Path]], list[Path]]:
    """Return (split -> files of queries, files of the corpus), by their columns.

    path: a folder, whose folders are looked at too, or the file of the queries of ``split``
    """
    folder = path if path.is_dir() else path.parent
    folders = [folder, *sorted(sub for sub in folder.iterdir() if sub.is_dir())] if path.exists() else []
    queries: dict[str, list[Path]] = {}
    corpus: list[Path] = []
    for file in [path] * path.is_file() + [file for one in folders for file in data_files(one) if file != path]:
        columns = _first_columns(file)
        if find_column(columns, (POSITIVES,)):
            if path.is_dir() or file == path:
                queries.setdefault(_split(file, folder) if path.is_dir() else split, []).append(file)
        elif find_column(columns, ("docid",)) and not find_column(columns, NO_CORPUS):
            corpus.append(file)
        elif file == path:
            return {}, []
    return queries, corpus


def _first_columns(file: Path) -> list[str]:
    """Return the columns of the first row; [] for a file of another kind, and for one that cannot be read."""
    try:
        if suffix(file) == ".parquet":
            return columns_of([file])
        return list(next((row for _, row in TextTable([file])), {})) if suffix(file) == ".jsonl" else []
    except DataError:
        return []


def _split(file: Path, folder: Path) -> str:
    """Return the split that the name of a file, or of its folder, has in it; else train."""
    names = [split_name(file)] + [file.parent.name] * (file.parent != folder)
    parts = [part for name in names for part in re.split(r"[^a-z]+", name.lower())]
    return next((part for part in parts if part in ("train", *DEV_SPLITS, *TEST_SPLITS)), "train")
