"""Read MS MARCO's passage data, version 1, as its files are published (Bajaj et al. 2016, arXiv 1611.09268).

    collection.tsv                   passage id, passage
    queries.train.tsv                query id, query                                   also .dev, .dev.small
    qrels.train.tsv                  query id, 0, passage id, grade
    qidpidtriples.train.full.2.tsv   query id, id of a positive, id of a negative
    triples.train.small.tsv          query, positive, negative: the texts; no other file is needed

No file has a header, tabs divide the fields, and quotes are a part of the text.  Each may be compressed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from smart_train.config.schema import DataBlock
from smart_train.config.typed_values import Problem
from smart_train.core.errors import DataError
from smart_train.core.progress_log import ProgressLog
from smart_train.data.collection import Collection, HardNegatives
from smart_train.data.readers import row_cache
from smart_train.data.readers.base import DataProblem, Reader
from smart_train.data.readers.beir import CorpusRows, Judgement, QueryRows, judged_rows, read_parts
from smart_train.data.readers.collection_cache import Rows
from smart_train.data.readers.row_parser import choose_columns
from smart_train.data.readers.rows import RowsReader
from smart_train.data.tables import COMPRESSED, Boundary, Table, TextTable, suffix, text_lines

logger = logging.getLogger(__name__)

NAME = re.compile(r"(collection|queries|qrels|qidpidtriples|triples)(?:\.(.+))?")
MOST_NEGATIVES = 32  # of a query that are kept of its triples: train has 400 million triples
TEXTS = ["query", "positive", "negative"]  # of triples.*.tsv


@dataclass
class FieldsTable(TextTable):
    """Rows of text files without a header, whose fields are divided by tabs; quotes are a part of the text.

    fields: the names of the columns
    """

    fields: tuple[str, ...] = ()

    @cached_property
    def columns(self) -> list[str]:
        return list(self.fields)

    def read_segment(self, segment: int, skip: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
        file = self.files[segment]
        for number, line in islice(text_lines(file), skip, None):
            cells = line.split("\t")
            if len(cells) != len(self.fields):
                what = f"{len(cells)} fields; a row is {', '.join(self.fields)}, divided by tabs"
                raise DataError(f"{file}:{number}: {what}")
            yield f"{file}:{number}", dict(zip(self.fields, cells, strict=True))


class MsmarcoReader(Reader):
    """Read MS MARCO's passages, queries and qrels by their ids.

    negatives: most hard negatives of a query that are kept of qidpidtriples, the first ones
    """

    shared_corpus = True

    def __init__(self, data: DataBlock, negatives: int = MOST_NEGATIVES) -> None:
        super().__init__(data)
        self.most = negatives
        self.files = named_files(Path(data.path))
        if "collection" not in self.files or not self.splits():
            what = f"{data.path} has no collection.tsv with queries.SPLIT.tsv and qrels.SPLIT.tsv"
            raise DataProblem("data.path", what, "name MS MARCO's folder, or write data.format: auto")
        if negatives < 1:
            raise DataProblem("data.format", f"negatives is {negatives}, must be 1 or more", "write 32")

    @classmethod
    def detect(cls, data: DataBlock) -> bool:
        files = named_files(Path(data.path))
        return "collection" in files and "queries" in files and ("qrels" in files or "qidpidtriples" in files)

    def splits(self) -> list[str]:
        """Return the splits with queries that something is judged for.  dev.small counts as dev where that is alone."""
        judged = self.files.get("qrels", {}).keys() | {name.split(".")[0] for name in self._triples()}
        there = [name for name in self.files.get("queries", {}) if name in judged]
        return ["dev" if name == "dev.small" and "dev" not in there else name for name in there]

    def _triples(self) -> dict[str, list[Path]]:
        return self.files.get("qidpidtriples", {})

    def read(self, split: str) -> Collection:
        data, files = self.data, self.files
        own = split if split in files["queries"] else "dev.small"
        folder = Path(data.path)
        corpus = CorpusRows(FieldsTable(files["collection"][""], ("id", "text")), Boundary(folder), data.document, "")
        asked = QueryRows(FieldsTable(files["queries"][own], ("id", "text")))
        triples = [file for name, found in self._triples().items() if name.split(".")[0] == split for file in found]
        qrels = files.get("qrels", {}).get(own)
        about = [row_cache.signature(file) for file in triples]
        judged = judged_rows(qrels) if qrels else Rows(lambda: _positives(triples), [*about, "positives"])
        negatives = Rows(lambda: self._negatives(triples), [*about, self.most]) if triples else Rows(tuple, None)
        read = [*files["collection"][""], *files["queries"][own], *(qrels or ()), *triples]
        logger.info("%s: %s is read from %s", self.name, split, ", ".join(file.name for file in read))
        return read_parts(self.name, corpus, asked, judged, negatives, Rows(tuple, None), row_cache.many_bytes(triples))

    def _negatives(self, files: list[Path]) -> Iterator[tuple[str, str, HardNegatives]]:
        """Yield the negatives of each query, the first ``most`` of them; the others are counted."""
        held: dict[str, list[str]] = {}
        place: dict[str, str] = {}
        same: dict[str, str] = {}
        more = 0
        table = FieldsTable(files, ("query id", "positive id", "negative id"))
        pace = ProgressLog(f"{self.name}: triples read", row_cache.rows_estimate(table), every=10.0)
        for where, row in table:
            query, _, negative = row.values()
            found = held.setdefault(query, [])
            if not found:
                place[query] = where
            if len(found) >= self.most:
                more += 1
            elif negative not in found:
                found.append(same.setdefault(negative, negative))
            pace.add(1)
        if more:
            what = f"triples are beyond the first {self.most} negatives of their query, and are left out"
            logger.info("%s: %d %s (data.format: {type: msmarco, negatives: N})", self.name, more, what)
        for query, found in held.items():
            yield place[query], query, HardNegatives(tuple(found))

    def no_negatives(self) -> str | None:
        there = any(name.split(".")[0] == self.data.split for name in self._triples())
        return None if there else f"{self.data.path} has no qidpidtriples.{self.data.split}.tsv"

    def no_scores(self) -> str | None:
        return f"{self.data.path} has no scores"


def _positives(files: list[Path]) -> Iterator[Judgement]:
    for where, row in FieldsTable(files, ("query id", "positive id", "negative id")):
        query, positive, _ = row.values()
        yield where, query, positive, 1


class MsmarcoTriplesReader(RowsReader):
    """Read MS MARCO's triples of texts: a query, its positive and a negative in each row, without a header."""

    has_source_column = False

    def __init__(self, data: DataBlock) -> None:
        Reader.__init__(self, data)
        self.on_hub = False
        found = named_files(Path(data.path)).get("triples", {})
        if not found:
            what = f"{data.path} has no triples.SPLIT.tsv"
            raise DataProblem("data.path", what, "name such a file, or its folder")
        self.sources = {}
        for name, files in found.items():
            self.sources.setdefault(name.split(".")[0], []).extend(files)

    @classmethod
    def detect(cls, data: DataBlock) -> bool:
        files = named_files(Path(data.path)).get("triples", {})
        return any(len(line.split("\t")) == len(TEXTS) for one in files.values() for line in _first_lines(one))

    def table(self, split: str) -> Table:
        return FieldsTable(self.sources[split], tuple(TEXTS))

    def stream_table(self, split: str) -> Any:
        return self.table(split)

    def columns(self) -> list[str]:
        return list(TEXTS)

    def problems(self) -> Iterable[Problem]:
        return choose_columns(self.columns(), self.data)[1]


def named_files(path: Path) -> dict[str, dict[str, list[Path]]]:
    """Return kind -> split -> files: of a folder, or of one file; a collection has the split "" ."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    found: dict[str, dict[str, list[Path]]] = {}
    for file in files:
        if not file.is_file() or suffix(file) != ".tsv":
            continue
        stem = file.stem if file.suffix.lower() in COMPRESSED else file.name
        if (named := NAME.fullmatch(stem[: -len(".tsv")])) and (named[1] == "collection") != bool(named[2]):
            found.setdefault(named[1], {}).setdefault(named[2] or "", []).append(file)
    return {kind: {name: one[:1] for name, one in splits.items()} for kind, splits in found.items()}


def _first_lines(files: list[Path]) -> list[str]:
    return [line for _, line in islice(text_lines(files[0]), 1)]
