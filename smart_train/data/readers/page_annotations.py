"""Read a table of (query, file, page): questions with the page that answers them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from smart_train.config.schema import DataBlock
from smart_train.config.typed_values import Problem
from smart_train.core.errors import DataError
from smart_train.core.modality import text_fault
from smart_train.data.collection import Collection, Document, content_id, first_few
from smart_train.data.readers import row_cache
from smart_train.data.readers.base import DataProblem
from smart_train.data.readers.beir import CorpusRows, corpus_image_column, part_files
from smart_train.data.readers.cells import read_grade
from smart_train.data.readers.row_parser import DOCUMENTS, LABELS, query_column
from smart_train.data.readers.rows import RowsReader, is_image_folder, local_sources
from smart_train.data.tables import (
    FILES,
    PAGES,
    TEXT_FILES,
    Boundary,
    Table,
    TextTable,
    describe_columns,
    find_column,
    open_files,
    read_page,
    read_text,
    suffix,
)

logger = logging.getLogger(__name__)

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
TEXTS = (".txt", ".md")


class PageAnnotationsReader(RowsReader):
    """Read a table that names the file and page of each query's document.

    With a corpus beside the table, as ``ingest`` writes it, ``file`` is a file of it (its path, or its last part where
    that is unique) and ``page`` its number; the whole corpus is ranked.  Without one, ``file`` is an image or a text
    file, relative to the table.  A split with a column of documents is read as RowsReader reads it.
    """

    has_source_column = False

    def __init__(self, data: DataBlock) -> None:
        super().__init__(data)
        if not _page_tables(self.sources, data):
            what = f"{data.path} has no table with the columns query and file and without a column of documents"
            raise DataProblem("data.format", what, "write data.format: auto")

    @classmethod
    def detect(cls, data: DataBlock) -> bool:
        path = Path(data.path)
        if not path.exists() or (path.is_dir() and is_image_folder(path)):
            return False
        try:
            return _page_tables(local_sources(path, data), data)
        except DataError:  # no files, or files that cannot be read: a later reader knows them, or says so
            return False

    def read_table(self, table: Table, limit: int | None) -> Collection:
        if isinstance(table, TextTable) and is_page_table(table.columns, self.data):
            return read_pages(table, self.data, self.name, limit)
        return super().read_table(table, limit)

    def _trains_on_pages(self) -> bool:
        return is_page_table(self.columns(), self.data)

    def problems(self) -> Iterable[Problem]:
        return () if self._trains_on_pages() else super().problems()

    def no_negatives(self) -> str | None:
        labelled = self.data.label or (self.data.label is None and find_column(self.columns(), LABELS) is not None)
        named = labelled or not self._trains_on_pages()
        return None if named else f"{self.data.path} is a table of pages, and names none"

    def no_scores(self) -> str | None:
        return f"{self.data.path} has no scores" if self._trains_on_pages() else super().no_scores()

    def image_column(self) -> str | None:
        """Return the image column, of the corpus, or of the table if its files are images."""
        table = self.table(self.data.split)
        if not isinstance(table, TextTable) or not self._trains_on_pages():
            return super().image_column()
        home = corpus_folder(table)
        if home is not None:
            return corpus_image_column(home, self.data)
        key = str(find_column(table.columns, FILES))
        return key if any(str(row.get(key)).lower().endswith(IMAGES) for _, row in table) else None


def is_page_table(columns: list[str], data: DataBlock) -> bool:
    """Return whether a table has queries and files, and no column that holds a document."""
    usual = data.document is None and data.image is None
    contents = (find_column(columns, (*DOCUMENTS, "image")),) if usual else (data.document, data.image)
    named = query_column(columns, data) in columns and find_column(columns, FILES) is not None
    return named and not any(name in columns for name in contents if name)


def _page_tables(sources: dict[str, Any], data: DataBlock) -> bool:
    """Return whether some split is a text file of page annotations."""
    texts = [files for files in sources.values() if isinstance(files, list) and {*map(suffix, files)} <= {*TEXT_FILES}]
    return any(is_page_table(TextTable(sorted(files)).columns, data) for files in texts)


def corpus_folder(table: TextTable) -> Path | None:
    """Return the folder of the table, where it holds a corpus (as ``ingest`` writes it)."""
    folder = table.files[0].parent
    return folder if part_files(folder, "corpus") else None


def read_pages(table: TextTable, data: DataBlock, name: str, limit: int | None = None) -> Collection:
    """Read a table of page annotations; rows with the same query are one query with several relevant pages.

    Rows that lead nowhere are left out, and counted with their lines.  Raises DataError where none is left, and for a
    PDF, which must be ingested first.
    """
    home = corpus_folder(table)
    row_cache.warn_of_memory(name, "pages", [*table.files, *(part_files(home, "corpus") if home else ())])
    places = _CorpusPages(home, data) if home is not None else _FilePages(table, data)
    query, file = query_column(table.columns, data), str(find_column(table.columns, FILES))
    page = find_column(table.columns, PAGES) or "page"
    label = find_column(table.columns, LABELS) or "" if data.label is None else data.label
    parts = {"query": query, "file": file, "page": page, "label": label}
    logger.info("%s: %s", name, describe_columns(table.columns, parts))
    found = Collection(name, places.corpus, {}, {})
    lost: list[str] = []
    unlabelled: list[str] = []
    rejected: dict[str, dict[str, None]] = {}  # query -> pages of label 0
    pairs = 0
    for where, row in table:
        if limit is not None and pairs >= limit:
            break
        words, named = read_text(row, query, where), str(row.get(file) or "").strip()
        document = places.find(named, read_page(row.get(page)), where) if words and named else None
        if document is None:
            lost.append(f"{where} ({named or 'no file'}, page {row.get(page) or 'not given'})")
            continue
        key = content_id("query", words)
        grade = read_grade(row.get(label), label, where) if label else 1
        if grade is None:
            unlabelled.append(where)
        elif grade == 0:
            rejected.setdefault(key, {})[document] = None
        else:
            found.queries[key] = words
            judged = found.qrels.setdefault(key, {})
            pairs += document not in judged
            judged[document] = max(grade, judged.get(document, 0))
    for key, pages in rejected.items():
        if key in found.queries:
            found.negatives[key] = [document for document in pages if document not in found.qrels[key]]
    if alone := rejected.keys() - found.queries.keys():
        logger.warning("%s: %d queries have no page with a %s above 0 and are left out", name, len(alone), label)
    if unlabelled:
        logger.warning("%s: %d rows without a label are left out: %s", name, len(unlabelled), first_few(unlabelled))
    if lost:
        what = "rows have no query, or name a page that is not there, and are left out"
        logger.warning("%s: %d %s: %s", name, len(lost), what, first_few(lost))
    if not pairs:
        raise DataError(
            f"{table.name}: no row names a page that is there; the first: {first_few(lost, 1) or 'no rows'}"
        )
    return found


class _CorpusPages:
    """Documents of a corpus by file and page."""

    def __init__(self, home: Path, data: DataBlock) -> None:
        table = open_files(part_files(home, "corpus"))
        self.corpus = CorpusRows(table, Boundary.of(data), data.document, data.image, home).read()
        self.pages: dict[str, dict[int | None, str]] = {}
        for document in self.corpus.values():
            if document.file is not None:
                self.pages.setdefault(document.file, {})[document.page] = document.id
        names: dict[str, list[str]] = {}
        for file in self.pages:
            names.setdefault(file.rpartition("/")[2], []).append(file)
        self.short = {name: files[0] for name, files in names.items() if len(files) == 1}

    def find(self, file: str, page: int | None, where: str) -> str | None:
        file = file.replace("\\", "/").removeprefix("./")
        pages = self.pages.get(file) or self.pages.get(self.short.get(file.rpartition("/")[2], ""), {})
        if page is None and len(pages) == 1:
            return next(iter(pages.values()))
        if page is None and len(pages) > 1:
            raise DataError(f"{where}: {file} has {len(pages)} pages, and the row names none; give its page")
        return pages.get(page)


class _FilePages:
    """Image and text files, each a document."""

    def __init__(self, table: TextTable, data: DataBlock) -> None:
        self.boundary = Boundary.of(data)
        self.table, self.corpus, self.known = table, dict[str, Document](), dict[str, str]()

    def find(self, file: str, page: int | None, where: str) -> str | None:
        path = self.table.folder(where) / file
        kind = path.suffix.lower()
        if kind not in IMAGES + TEXTS:
            fix = "smart-train ingest FOLDER --output data/mine, then put this table into data/mine"
            raise DataError(f"{where}: {file} is neither an image nor a text file; for PDFs run: {fix}")
        self.boundary.check(path, where)
        if page not in (None, 1) or not path.is_file():
            return None
        if file not in self.known:
            content: dict[str, Any] = {"image": str(path)} if kind in IMAGES else {"text": path.read_text("utf-8")}
            if "text" in content and (fault := text_fault(content["text"])):
                raise DataError(f"{where}: {file} has {fault}; remove it")
            key = content_id(next(iter(content)), path.read_bytes())
            self.known[file] = key
            self.corpus.setdefault(key, Document(key, **content, file=file, page=page))
        return self.known[file]
