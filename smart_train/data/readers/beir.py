"""Read retrieval collections: a corpus, queries and qrels, in BEIR's layout and its relatives, local or on the Hub.

    corpus.jsonl       _id, title, text        also image, file (or doc_id), page, hash
    queries.jsonl      _id, text               also kind and file, which evaluation reads
    qrels/SPLIT.tsv    query-id, corpus-id, score     with or without a header, or TREC's four columns
    negatives.jsonl    _id, negatives          optional: hard negatives, with scores, positive and miner
    teacher.jsonl      _id, scores             optional: another model's scores by document id

Each part may be gzipped, Parquet (store.py writes that), or a folder of files; on the Hub each is a configuration.
BEIR: Thakur et al. 2021, arXiv 2104.08663.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from smart_train.config.schema import DataBlock
from smart_train.config.typed_values import Problem
from smart_train.core.errors import DataError, Unreachable
from smart_train.data.collection import Collection, Document, HardNegatives, RetrievalDataset, first_few
from smart_train.data.readers import collection_cache, row_cache
from smart_train.data.readers import hub_datasets as hub
from smart_train.data.readers.base import DataProblem, QueryMetadata, Reader, is_hub_name, local_path
from smart_train.data.readers.collection_cache import (
    EMPTY_DOCUMENTS,
    EMPTY_QUERIES,
    LOST_NEGATIVES,
    LOST_SCORES,
    MISSING,
    TEXTLESS,
    TWICE,
    Judgement,
    Rows,
    scored,
)
from smart_train.data.tables import (
    CORPUS_IDS,
    FILES,
    HASHES,
    PAGES,
    QUERY_IDS,
    Boundary,
    Ids,
    StoredTable,
    Table,
    TextTable,
    columns_of,
    data_files,
    describe_columns,
    find_column,
    id_text,
    open_files,
    read_id,
    read_image,
    read_page,
    read_score,
    read_text,
    require_column,
    split_name,
    suffix,
    text_lines,
)

__all__ = ["BeirReader", "Judgement", "is_beir", "judgements", "part_files", "qrels_files", "read_beir"]

logger = logging.getLogger(__name__)

NEGATIVES = "negatives"  # negatives.jsonl, or a folder or a configuration of this name
TEACHER = "teacher"
ID_LISTS = ("corpus-ids", "negatives", "documents")  # a column of lists of document ids
KINDS = ("kind", "rule", "query-kind", "query-type", "query-types", "type", "category")

QRELS_TEXT = (".tsv", ".txt", ".trec", ".qrels", ".qrel")
JUDGED_QUERY = ("query-id", "qid", "query", "topic")
JUDGED_DOCUMENT = ("corpus-id", "docid", "doc-id", "document-id", "docno", "pid")
GRADES = ("score", "rel", "relevance", "grade", "label")

T = TypeVar("T")


class BeirReader(Reader):
    """Read a retrieval collection from a local folder, or from the configurations of a Hub dataset."""

    shared_corpus = True

    def __init__(self, data: DataBlock) -> None:
        super().__init__(data)
        self.folder = local_path(data)
        if self.folder is None:
            if not hub.is_retrieval(self._configs, data.subset):
                what = f"{data.path} has the configurations {', '.join(self._configs)}, not corpus and queries"
                raise DataProblem("data.format", what, "write data.format: rows")
            return
        if self.folder.is_file():
            what = f"{self.folder} is a file, and a BEIR collection is a folder"
            raise DataProblem("data.path", what, "name its folder")
        for name in ("corpus", "queries"):
            if not part_files(self.folder, name):
                what = f"{self.folder} has no {name}.jsonl (nor .jsonl.gz, .parquet, or a folder {name}/ of such files)"
                raise DataProblem("data.path", what, "name a BEIR folder, or write data.format: rows")

    @classmethod
    def detect(cls, data: DataBlock) -> bool:
        if not is_hub_name(data.path):
            return is_beir(Path(data.path))
        with hub.named_by_key(data):
            return hub.is_retrieval(hub.configs(data.path, data.revision), data.subset)

    @cached_property
    def _configs(self) -> list[str]:
        with hub.named_by_key(self.data):
            return hub.configs(self.data.path, self.data.revision)

    @cached_property
    def _splits(self) -> list[str]:
        if self.folder is not None:
            return list(qrels_files(self.folder))
        with hub.named_by_key(self.data):
            return hub.splits(self.data.path, qrels_config(self._configs, self.data.subset), self.data.revision)

    def splits(self) -> list[str]:
        return self._splits

    def read(self, split: str) -> Collection:
        data = self.data
        if self.folder is not None:
            return read_beir(self.folder, split, data.document, data.image, self.name, data.allow_outside)
        tables = self._hub_tables(split)
        optional = [self._optional_tables(name) for name in (NEGATIVES, TEACHER)]
        judged = Rows(lambda: judgement_rows(tables["qrels"]), row_cache.rows_of(tables["qrels"]))
        corpus = CorpusRows(tables["corpus"], Boundary.of(data), data.document, data.image)
        return _read_tables(self.name, corpus, tables["queries"], judged, *optional)

    def read_all(self) -> RetrievalDataset:
        """Read everything as it lies there, ids that dangle and paths of missing images included."""
        if self.folder is not None:
            corpus = [open_files(part_files(self.folder, "corpus"))]
            queries = [open_files(part_files(self.folder, "queries"))]
            files = qrels_files(self.folder)
            judged = {split: [j for file in files[split] for j in judgements(file)] for split in files}
            return self._join(self.folder.name, corpus, queries, judged)
        corpus, queries, judged = [], [], {}
        for split in self.splits():
            tables = self._hub_tables(split)
            judged[split] = list(judgement_rows(tables["qrels"]))
            for name, known in (("corpus", corpus), ("queries", queries)):
                if all(
                    table.name != tables[name].name for table in known
                ):  # some sets have one corpus, some one a split
                    known.append(tables[name])
        return self._join(self.data.path.rpartition("/")[2], corpus, queries, judged)

    def problems(self) -> Iterator[Problem]:
        if self.folder is None:
            return
        data = self.data
        corpus = columns_of(part_files(self.folder, "corpus"))
        queries = columns_of(part_files(self.folder, "queries"))
        for key, name in (("document", data.document), ("image", data.image)):
            if name and name not in corpus:
                what = f"the corpus of {data.path} has no column {name!r}; it has {', '.join(corpus)}"
                yield Problem(f"data.{key}", what, f"write data.{key}: one of these, or null")
        for columns, names, part in ((corpus, CORPUS_IDS, "corpus"), (queries, QUERY_IDS, "queries")):
            if find_column(columns, names) is None:
                what = f"the {part} of {data.path} has no id column ({', '.join(names)}); it has {', '.join(columns)}"
                yield Problem("data.path", what, f"rename its id column to {names[0]}")

    def no_negatives(self) -> str | None:
        return self._absent(NEGATIVES)

    def no_scores(self) -> str | None:
        return self._absent(TEACHER)

    def _absent(self, name: str) -> str | None:
        if self.folder is None:
            return None if name in self._configs else f"{self.data.path} has no configuration {name}"
        there = (self.folder / f"{name}.jsonl").is_file() or data_files(self.folder / name)
        return None if there else f"{self.data.path} has no {name}.jsonl"

    def image_column(self) -> str | None:
        data = self.data
        if data.image is not None:
            return data.image or None
        if self.folder is not None:
            return corpus_image_column(self.folder, data)
        return find_column(hub.columns(data.path, hub.prefixed("corpus", data.subset), data.revision), ("image",))

    def query_metadata(self, collection: Collection) -> QueryMetadata:
        """Read kinds and files from columns of the queries; a local folder only."""
        if self.folder is None:
            return QueryMetadata()
        table = open_files(part_files(self.folder, "queries"))
        key = require_column(table, QUERY_IDS, "query ids")
        others = [name for name in table.columns if name != key]
        kind, file = find_column(others, KINDS), find_column(others, FILES)
        found = QueryMetadata(column=kind or "")
        for where, row in table if kind or file else ():
            query = read_id(row, key, where)
            if query not in collection.queries:
                continue
            for name, values in ((kind, found.kind), (file, found.file)):
                if name is not None and (label := _label(row.get(name))):
                    values[query] = label
        return found

    def document_texts(self, collection: Collection) -> dict[str, str | None]:
        """Return what was read; for pages that are read as images alone (``data.document: ""``), return the text that
        the folder has beside them.  Of ingested pages that is the text layer without the words that queries were
        taken from."""
        found = super().document_texts(collection)
        if self.data.document != "" or self.folder is None:
            return found
        table = open_files(part_files(self.folder, "corpus"))
        key = require_column(table, CORPUS_IDS, "document ids")
        body, title = find_column(table.columns, ("text",)), find_column(table.columns, ("title",))
        columns = [name for name in (title, body) if name is not None]
        for where, row in table if body else ():
            id = read_id(row, key, where)
            if id in found:
                found[id] = " ".join(str(row[name]).strip() for name in columns if row.get(name)) or None
        return found

    def _hub_tables(self, split: str) -> dict[str, Any]:
        """corpus, queries and qrels of a split; corpus and queries from the split of this name, or from their only one
        (which some sets call ``corpus`` and ``queries``)."""
        path, revision, subset = self.data.path, self.data.revision, self.data.subset
        found = {"qrels": hub.table(path, qrels_config(self._configs, subset), split, revision)}
        for name in ("corpus", "queries"):
            config = hub.prefixed(name, subset)
            there = hub.splits(path, config, revision)
            chosen = split if split in there else there[0] if len(there) == 1 else None
            if chosen is None:
                what = f"{path}: {name} has the splits {', '.join(there)}, none of which is {split!r}"
                raise DataError(f"{what}; name one of these in data.split")
            found[name] = hub.table(path, config, chosen, revision)
        return found

    def _optional_tables(self, name: str) -> Sequence[Table]:
        """The tables of ``negatives`` or ``teacher``; [] where there are none."""
        if self.folder is not None:
            return optional_tables(self.folder, name)
        if name not in self._configs:
            return []
        path, revision = self.data.path, self.data.revision
        return [hub.table(path, name, split, revision) for split in hub.splits(path, name, revision)]

    def _join(
        self, name: str, corpus: Sequence[Table], queries: Sequence[Table], judged: dict[str, list[Judgement]]
    ) -> RetrievalDataset:
        data, dataset, boundary = self.data, RetrievalDataset(name, {}, {}, {}), Boundary.of(self.data)
        read = (("text",), ("title",), ("image",), FILES, PAGES, HASHES)
        for table in corpus:
            found = CorpusRows(table, boundary, data.document, data.image, self.folder, must_exist=False).read()
            _unite(dataset.corpus, found, lambda a, b: (a.text, a.page) == (b.text, b.page), table)
            _add_other_columns(dataset.document_columns, table, CORPUS_IDS, read, (data.document, data.image))
        for table in queries:
            _unite(dataset.queries, QueryRows(table).read(), str.__eq__, table)
            _add_other_columns(
                dataset.query_columns, table, QUERY_IDS, (("text", "query"),), (data.document, data.image)
            )
        asked, shown = Ids(dataset.queries), Ids(dataset.corpus)  # ids that dangle stay as they are
        for split, rows in judged.items():
            qrels = dataset.splits.setdefault(split, {})
            for _, query, document, grade in rows:
                query, document = asked.find(query) or query, shown.find(document) or document
                row = qrels.setdefault(query, {})
                if row.get(document, grade) != grade:
                    dataset.conflicts.append(f"{query} {document}")
                row[document] = max(grade, row.get(document, grade))
        for _, query, mined in negative_rows(self._optional_tables(NEGATIVES)):
            documents = tuple(shown.find(d) or d for d in mined.documents)
            dataset.negatives[asked.find(query) or query] = replace(mined, documents=documents)
        for where, query, scores in teacher_rows(self._optional_tables(TEACHER)):
            query = asked.find(query) or query
            if query in dataset.teacher:
                raise DataError(f"{where}: the query {query!r} {collection_cache.SCORED_BEFORE}")
            numbers = zip(scores, scored(scores, where), strict=True)
            dataset.teacher[query] = {shown.find(d) or d: score for d, score in numbers}
        return dataset


def _label(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(sorted(str(each) for each in value))
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    return "" if value is None else str(value).strip()


def _unite(into: dict[str, T], found: dict[str, T], same: Callable[[T, T], bool], table: Table) -> None:
    other = next((key for key, one in found.items() if not same(into.get(key, one), one)), None)
    if other is not None:
        raise DataError(f"{table.name}: the id {other!r} is in another split with another content; ids must be unique")
    into.update(found)


def _add_other_columns(
    into: dict[str, dict[str, Any]],
    table: Table,
    ids: tuple[str, ...],
    read: Iterable[tuple[str, ...]],
    named: Iterable[str | None],
) -> None:
    """Add the columns of a table that are not read; images among them are left where they are."""
    key = require_column(table, ids, "ids")
    known = {key, *named, *getattr(table, "images", ())}
    known |= {find_column([c for c in table.columns if c != key], names) for names in read}
    names = [name for name in table.columns if name not in known]
    for where, row in table if names else ():
        for name in names:
            if row.get(name) is not None:
                into.setdefault(name, {})[read_id(row, key, where)] = row[name]


# Local folders -------------------------------------------------------------------------------------------------------


def read_beir(
    folder: str | Path,
    split: str = "test",
    text: str | None = None,
    image: str | None = None,
    name: str | None = None,
    allow_outside: bool = False,
) -> Collection:
    """Read one split of a local folder in BEIR's layout; see the head of this module for the files.

    text, image: columns of the corpus, where they are not called so; "" leaves all texts, or all images, out
    allow_outside: images may lie outside of the folder

    A document is title, space, text.  Queries are those that the split judges.  Judged documents that the corpus
    lacks stay in the qrels (they lower recall, as in BEIR); judged queries without a text are left out.  Both are
    counted in a warning.
    Raises DataError, naming file and line, for a malformed row, an id that occurs twice with different content, or
    a split that is not there.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    files = {needed: part_files(folder, needed) for needed in ("corpus", "queries")}
    for needed, found in files.items():
        if not found:
            also = f"nor .jsonl.gz, .parquet, or a folder {needed}/ of such files"
            raise DataError(f"{folder}: no {needed}.jsonl ({also})")
    there = qrels_files(folder)
    if split not in there:
        raise DataError(f"{folder}: no qrels for the split {split!r}; there is {', '.join(sorted(there)) or 'none'}")
    corpus = CorpusRows(open_part(files["corpus"]), Boundary(folder, allow_outside=allow_outside), text, image, folder)
    optional = [optional_tables(folder, part) for part in (NEGATIVES, TEACHER)]
    name = name or f"{folder.name}/{split}"
    return _read_tables(name, corpus, open_part(files["queries"]), judged_rows(there[split]), *optional)


def judged_rows(files: list[Path]) -> Rows:
    """Return the judgements of qrels files."""
    return Rows(lambda: (one for file in files for one in judgements(file)), [row_cache.signature(f) for f in files])


def open_part(files: list[Path]) -> row_cache.LargeTable:
    return row_cache.open_large(files) or open_files(files)


def _read_tables(
    name: str,
    corpus: CorpusRows,
    queries: row_cache.LargeTable,
    judged: Rows,
    negatives: Sequence[Table],
    teacher: Sequence[Table],
) -> Collection:
    mined = Rows(lambda: negative_rows(negatives), [row_cache.rows_of(table) for table in negatives])
    taught = Rows(lambda: teacher_rows(teacher), [row_cache.rows_of(table) for table in teacher])
    large = any(map(row_cache.is_large, (*negatives, *teacher)))
    return read_parts(name, corpus, QueryRows(queries), judged, mined, taught, large)


def read_parts(
    name: str, corpus: CorpusRows, asked: QueryRows, judged: Rows, negatives: Rows, teacher: Rows, large: bool = False
) -> Collection:
    """Read a collection into memory, or a large one from its conversion on disk.

    judged, negatives, teacher: as in ``collection_cache.Sources``
    large: one of these is large; tables of documents and queries are looked at here
    """
    queries = asked.table
    if not (large or row_cache.is_large(corpus.table) or row_cache.is_large(queries)):
        pairs = list(judged.read())
        collection = judged_collection(name, corpus.read(), asked.read(), pairs)
        attach(collection, negatives.read(), teacher.read())
        return collection
    for table, columns in ((corpus.table, corpus.columns.values()), (queries, asked.columns)):
        if isinstance(table, row_cache.ParquetRows):
            table.reads = [column for column in columns if column]
    return collection_cache.open_stored(
        collection_cache.Sources(
            name,
            Rows(lambda: corpus, corpus.about(), row_cache.rows_estimate(corpus.table)),
            Rows(lambda: asked, [row_cache.rows_of(queries), *asked.columns], row_cache.rows_estimate(queries)),
            judged,
            negatives,
            teacher,
        ),
        corpus.table.image_column(corpus.columns["image"]) if isinstance(corpus.table, StoredTable) else None,
    )


def is_beir(folder: Path) -> bool:
    """Return whether a folder has a corpus and queries."""
    return folder.is_dir() and bool(part_files(folder, "corpus")) and bool(part_files(folder, "queries"))


def part_files(folder: Path, name: str) -> list[Path]:
    """Return the files of ``corpus`` or ``queries``: NAME.jsonl, NAME/..., or either below ``data``; [] for none."""
    for base in (folder, folder / "data"):
        files = [f for f in data_files(base) if split_name(f) == name]
        if files:
            return _one_kind(files)
        files = data_files(base / name)
        if files:
            return _one_kind(files)
    return []


def _one_kind(files: list[Path]) -> list[Path]:
    """Of a.jsonl and a.parquet side by side only one is the data: the first kind by name."""
    kind = min(suffix(f) for f in files)
    return [f for f in files if suffix(f) == kind]


def qrels_files(folder: Path) -> dict[str, list[Path]]:
    """Return split -> files of its qrels, from ``qrels/`` (or ``default/``, or ``qrels.tsv``, which is called test)."""
    for base in (folder, folder / "data"):
        for name in ("qrels", "default"):
            found: dict[str, list[Path]] = {}
            for file in data_files(base / name, *QRELS_TEXT):
                found.setdefault(split_name(file), []).append(file)
            if found:
                return {name: _one_kind(files) for name, files in found.items()}
    loose = [f for f in data_files(folder, *QRELS_TEXT) if split_name(f) == "qrels"]
    return {"test": _one_kind(loose)} if loose else {}


def optional_tables(folder: Path, name: str) -> list[Table]:
    """Return the tables of ``negatives`` or ``teacher``: NAME.jsonl, then the files of NAME/, which count for more."""
    loose = folder / f"{name}.jsonl"
    found: list[Table] = [TextTable([loose])] if loose.is_file() else []
    stored = data_files(folder / name)
    return found + ([open_files(stored)] if stored else [])


def corpus_image_column(folder: Path, data: DataBlock) -> str | None:
    """Return the column of images of a folder's corpus, or None."""
    columns = columns_of(part_files(folder, "corpus"))
    return (find_column(columns, ("image",)) if data.image is None else data.image) or None


def qrels_config(names: list[str], subset: str | None = None) -> str:
    """Return the configuration that holds the judgements of a retrieval set on the Hub."""
    choices = [hub.prefixed("qrels", subset), subset or "default"]
    found = next((n for n in choices if n in names), None)
    if found is None:
        raise Unreachable(f"no configuration {' or '.join(choices)} among {', '.join(names)}")
    return found


# Documents and queries -----------------------------------------------------------------------------------------------


class CorpusRows:
    """The documents of a table, with the place of each; ``title`` and ``text`` are joined by a space, as BEIR and MTEB
    join them.

    text, image: columns, where they are not called so; "" leaves all texts, or all images, out
    boundary, home, must_exist: see ``tables.read_image``
    Raises DataError for columns that are not there.
    """

    def __init__(
        self,
        table: row_cache.LargeTable,
        boundary: Boundary,
        text: str | None = None,
        image: str | None = None,
        home: Path | None = None,
        must_exist: bool = True,
    ) -> None:
        self.table, self.boundary, self.home, self.must_exist = table, boundary, home, must_exist
        columns = table.columns
        for named in (text, image):
            if named and named not in columns:
                require_column(table, (named,), "documents")
        key = require_column(table, CORPUS_IDS, "document ids")
        body = find_column(columns, ("text",)) if text is None else text
        picture = find_column(columns, ("image",)) if image is None else image
        if not body and not picture:
            require_column(table, ("text", "image"), "documents")
        # a column of a text file may first appear after the rows that were looked at
        self.columns = {
            "id": key,
            "title": "" if text == "" else find_column(columns, ("title",)) or "title",
            "text": "text" if body is None else body,
            "image": "image" if picture is None else picture,
            "file": find_column([c for c in columns if c != key], FILES),
            "page": find_column(columns, PAGES),
            "hash": find_column(columns, HASHES),
        }
        logger.info("%s: %s", table.name, describe_columns(table.columns, self.columns))

    def about(self) -> Any:
        """Return what the documents depend on, for the key of a conversion."""
        places = [str(folder.resolve()) for folder in (*self.boundary.folders, self.home) if folder is not None]
        return [row_cache.rows_of(self.table), self.columns, places, self.boundary.allow_outside]

    def __iter__(self) -> Iterator[tuple[str, Document]]:
        names = self.columns
        key, title, body, file, page = (names[part] for part in ("id", "title", "text", "file", "page"))
        for where, row in self.table:
            name = read_id(row, str(key), where)
            headline = read_text(row, title, where)
            words = " ".join(part for part in (headline, read_text(row, body, where)) if part)
            picture = row.get(names["image"]) if names["image"] else None
            pixels = read_image(picture, self.table, where, self.boundary, self.home, self.must_exist)  # type: ignore[arg-type]
            yield (
                where,
                Document(
                    name,
                    words if words or pixels is None else None,
                    pixels,
                    str(row[file]) if file and row.get(file) not in (None, "") else None,
                    read_page(row.get(page) if page else None),
                    headline or None,
                    read_text(row, names["hash"], where) or None,
                ),
            )

    def read(self) -> dict[str, Document]:
        """Return id -> Document; raises DataError for an id with two contents."""
        found: dict[str, Document] = {}
        for where, document in self:
            before = found.setdefault(document.id, document)
            if (before.text, before.page) != (document.text, document.page):
                raise DataError(f"{where}: the id {document.id!r} {collection_cache.TWO_CONTENTS}")
        return found


class QueryRows:
    """The queries of a table: (where, id, text) each.  Raises DataError for columns that are not there.

    more: further columns that are read: what it is -> its name; None = it is not there
    """

    def __init__(self, table: row_cache.LargeTable, more: Mapping[str, str | None] | None = None) -> None:
        self.table = table
        self.key = require_column(table, QUERY_IDS, "query ids")
        self.text = require_column(table, ("text", "query", "query-text"), "query texts")
        parts = {"id": self.key, "text": self.text, **(more or {})}
        self.columns = [column for column in parts.values() if column]
        logger.info("%s: %s", table.name, describe_columns(table.columns, parts))

    def __iter__(self) -> Iterator[tuple[str, str, str]]:
        for where, row in self.table:
            yield where, read_id(row, self.key, where), read_text(row, self.text, where)

    def read(self) -> dict[str, str]:
        """Return id -> text; raises DataError for an id with two texts."""
        found: dict[str, str] = {}
        for where, name, words in self:
            if found.setdefault(name, words) != words:
                raise DataError(f"{where}: the query id {name!r} {collection_cache.TWO_TEXTS}")
        return found


def judged_collection(
    name: str, documents: dict[str, Document], texts: dict[str, str], judged: Iterable[Judgement]
) -> Collection:
    """Return the judged queries over these documents; what dangles or is empty is counted in a warning."""
    qrels: dict[str, dict[str, int]] = {}
    textless: dict[str, None] = {}
    twice = 0
    asked, shown = Ids(texts), Ids(documents)
    for _, named, document, grade in judged:
        query, document = asked.find(named), shown.find(document) or document
        if query is None:
            textless[named] = None
            continue
        row = qrels.setdefault(query, {})
        twice += document in row and row[document] != grade
        row[document] = max(grade, row.get(document, grade))
    missing = sorted({d for row in qrels.values() for d in row if d not in documents})
    kept = {q: texts[q] for q in qrels}
    report = {
        TEXTLESS: list(textless),
        MISSING: missing,
        EMPTY_DOCUMENTS: [d.id for d in documents.values() if d.image is None and not (d.text or "").strip()],
        EMPTY_QUERIES: [q for q, t in kept.items() if not t.strip()],
    }
    for what, ids in report.items():
        if ids:
            logger.warning("%s: %d %s: %s", name, len(ids), what, first_few(ids))
    if twice:
        logger.warning("%s: %d %s", name, twice, TWICE)
    return Collection(name, documents, kept, qrels)


# Qrels ---------------------------------------------------------------------------------------------------------------


def judgements(file: Path) -> Iterator[Judgement]:
    """Read (where, query id, document id, grade) from a qrels file: tab or space separated with or without a header,
    TREC's four columns, JSON Lines, CSV or Parquet."""
    if suffix(file) in QRELS_TEXT:
        return _judgement_lines(file)
    return judgement_rows(open_files([file]))


def judgement_rows(table: Table) -> Iterator[Judgement]:
    """Yield (place, query id, document id, grade) of each row of qrels."""
    query = require_column(table, JUDGED_QUERY, "query ids")
    document = require_column(table, JUDGED_DOCUMENT, "document ids")
    grade = require_column(table, GRADES, "grades")
    if find_column(table.columns, ("rank",)):
        what = f"a column of ranks: this is a run, the output of a search, whose {grade} are no grades"
        raise DataError(f"{table.name}: {what}; give the qrels, which say what is relevant")
    logger.info(
        "%s: %s", table.name, describe_columns(table.columns, {"query": query, "document": document, "grade": grade})
    )
    for where, row in table:
        yield where, read_id(row, query, where), read_id(row, document, where), _grade(row.get(grade), where)


def _judgement_lines(file: Path) -> Iterator[Judgement]:
    places: tuple[int, int, int] | None = None
    for number, line in text_lines(file):
        where = f"{file}:{number}"
        fields = [f.strip() for f in (line.split("\t") if "\t" in line else line.split())]
        if places is None:
            places, header = _places(fields, where)
            if header:
                continue
            _check_width(fields, where)
        if len(fields) <= max(places) or not fields[places[0]] or not fields[places[1]]:
            raise DataError(f"{where}: {line!r} is not query id, document id, grade (nor TREC's four columns)")
        yield where, fields[places[0]], fields[places[1]], _grade(fields[places[2]], where)


def _check_width(fields: list[str], where: str) -> None:
    """Raise DataError for lines without a header that are no qrels: of a run, the rank would be taken for a grade."""
    if len(fields) == 6 and fields[1].upper() in ("Q0", "0") and _number(fields[3]) and _number(fields[4]):
        what = "six columns (query, Q0, document, rank, score, name) are a run, the output of a search"
        raise DataError(f"{where}: {what}; give the qrels, which say what is relevant")
    if len(fields) not in (3, 4):
        raise DataError(f"{where}: {len(fields)} columns; write query id, document id, grade, or TREC's four columns")
    if len(fields) == 4 and not re.fullmatch(r"[Qq]?\d+", fields[1]):
        what = f"the second of four columns is {fields[1]!r}, and TREC's is 0"
        raise DataError(f"{where}: {what}; write query id, document id, grade, with a header where there is more")


def _places(fields: list[str], where: str) -> tuple[tuple[int, int, int], bool]:
    """(where query, document and grade stand, whether this first line is a header)."""
    found = [find_column(fields, names) for names in (JUDGED_QUERY, JUDGED_DOCUMENT, GRADES)]
    if None not in found:
        query, document, grade = (fields.index(str(name)) for name in found)
        if find_column(fields, ("rank",)):
            what = "a column of ranks: this is a run, the output of a search"
            raise DataError(f"{where}: {what}; give the qrels, which say what is relevant")
        parts = {"query": fields[query], "document": fields[document], "grade": fields[grade]}
        logger.info("%s: %s", where.rpartition(":")[0], describe_columns(fields, parts))
        return (query, document, grade), True
    header = any(found) and not _number(fields[-1])
    return ((0, 1, 2) if len(fields) == 3 else (0, 2, 3)), header


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _grade(value: Any, where: str) -> int:
    if isinstance(value, bool) or not _number(str(value)) or not float(value).is_integer():
        raise DataError(f"{where}: the grade is {value!r}; it must be a whole number")
    return int(float(value))


# Hard negatives and teacher scores -----------------------------------------------------------------------------------


def negative_rows(found: Iterable[Table]) -> Iterator[tuple[str, str, HardNegatives]]:
    """Read (where, query id, its negatives); a query again where it is there again.  Raises DataError for bad rows."""
    for table in found:
        if not table.columns:
            continue
        key, ids = require_column(table, QUERY_IDS, "query ids"), find_column(table.columns, ID_LISTS) or NEGATIVES
        scores, positive, miner = (find_column(table.columns, (n,)) or n for n in ("scores", "positive", "miner"))
        parts = {"query": key, "negatives": ids, "scores": scores, "positive": positive, "miner": miner}
        logger.info("%s: %s", table.name, describe_columns(table.columns, parts))
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
                read_id(row, key, where),
                HardNegatives(
                    tuple(_document_id(d, f"{where}: {ids}") for d in named),
                    tuple(read_score(s, f"{where}: {scores}") for s in values or ()),
                    None if best is None else read_score(best, f"{where}: {positive}"),
                    str(row.get(miner) or ""),
                ),
            )


def _document_id(value: Any, where: str) -> str:
    found = id_text(value)
    if found is None:
        raise DataError(f"{where} holds {value!r}; an id is a text or a whole number")
    return found


def teacher_rows(found: Iterable[Table]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Read (where, query id, document id -> score as it is written).  Raises DataError for bad rows."""
    for table in found:
        if not table.columns:
            continue
        key, ids = require_column(table, QUERY_IDS, "query ids"), find_column(table.columns, ID_LISTS)
        parts = {"query": key, "documents": ids, "scores": "scores"}
        logger.info("%s: %s", table.name, describe_columns(table.columns, parts))
        for where, row in table:
            scores = row.get("scores")
            if ids and isinstance(scores, list) and isinstance(row[ids], list) and len(scores) == len(row[ids]):
                scores = dict(zip((_document_id(d, f"{where}: {ids}") for d in row[ids]), scores, strict=True))
            if not isinstance(scores, dict):
                raise DataError(f"{where}: scores must be an object of document id -> score")
            yield where, read_id(row, key, where), scores


def attach(
    collection: Collection,
    negatives: Iterable[tuple[str, str, HardNegatives]],
    teacher: Iterable[tuple[str, str, dict[str, Any]]],
) -> None:
    """Add negatives and a teacher's scores to the collection's queries; unknown documents are left out and counted."""
    lost = 0
    asked, shown = Ids(collection.queries), Ids(collection.corpus)
    for _, named, mined in negatives:
        query = asked.find(named)
        if query is not None:
            found = tuple(shown.find(d) or d for d in mined.documents)
            known = replace(mined, documents=found).filter(collection.corpus.__contains__)
            lost += len(mined.documents) - len(known.documents)
            collection.negatives[query] = list(known.documents)
            collection.scored_negatives.pop(query, None)
            if known.scores or known.miner:
                collection.scored_negatives[query] = known
    if lost:
        logger.warning("%s: %d %s", collection.name, lost, LOST_NEGATIVES)
    lost = 0
    for where, named, scores in teacher:
        query = asked.find(named)
        if query in collection.teacher:
            raise DataError(f"{where}: the query {query!r} {collection_cache.SCORED_BEFORE}")
        if query is not None:
            found_ids = map(shown.find, scores)
            there = {d: s for d, s in zip(found_ids, scored(scores, where), strict=True) if d is not None}
            lost += len(scores) - len(there)
            collection.teacher[query] = there
    if lost:
        logger.warning("%s: %d %s", collection.name, lost, LOST_SCORES)
