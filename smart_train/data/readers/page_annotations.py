"""A table of (query, file, page): questions that someone wrote down, with where the answer is."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError
from smart_train.data.collection import Collection, Document
from smart_train.data.column_aliases import FILES, PAGES, column, page_of, text_of
from smart_train.data.ids import content_id, some
from smart_train.data.readers import beir
from smart_train.data.readers.rows import DOCUMENTS, query_column
from smart_train.data.tables import TextTable, columns_of, open_files

logger = logging.getLogger(__name__)

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
TEXTS = (".txt", ".md")


def fits(columns: list[str], data: DataBlock) -> bool:
    """Whether a table has queries and files, and no column that holds a document."""
    contents = (*DOCUMENTS, "image") if data.document is None and data.image is None else (data.document, data.image)
    named = query_column(columns, data) in columns and column(columns, FILES) is not None
    return named and not any(name in columns for name in contents if name)


def corpus_of(table: TextTable) -> Path | None:
    """The folder of the table, where it holds a corpus (as ingest writes it)."""
    folder = table.files[0].parent
    return folder if beir.part(folder, "corpus") else None


def image_column(table: TextTable, data: DataBlock) -> str | None:
    """What holds the images: a column of the corpus, or of the table where its files are images; None for none."""
    home = corpus_of(table)
    if home is not None:
        columns = columns_of(beir.part(home, "corpus"))
        return (column(columns, ("image",)) if data.image is None else data.image) or None
    key = str(column(table.columns, FILES))
    return key if any(str(row.get(key)).lower().endswith(IMAGES) for _, row in table) else None


def read(table: TextTable, data: DataBlock, name: str) -> Collection:
    """The collection of such a table; rows with the same query are one query with several relevant pages.

    With a corpus beside the table, ``file`` is a file of it (its path, or its last part where that is unique) and
    ``page`` its number; the whole corpus is there to be ranked.  Without one, ``file`` is an image or a text file,
    relative to the table.  Rows that lead nowhere are left out, and counted with their lines; raises DataError where
    none is left, and for a PDF, which must be ingested first.
    """
    home = corpus_of(table)
    places = _Corpus(home, data) if home is not None else _Files(table)
    query, file = query_column(table.columns, data), str(column(table.columns, FILES))
    page = column(table.columns, PAGES) or "page"
    found = Collection(name, places.corpus, {}, {})
    lost: list[str] = []
    pairs = 0
    for where, row in table:
        if data.limit is not None and pairs >= data.limit:
            break
        words, named = text_of(row, query, where), str(row.get(file) or "").strip()
        document = places.find(named, page_of(row.get(page)), where) if words and named else None
        if document is None:
            lost.append(f"{where} ({named or 'no file'}, page {row.get(page) or 'not given'})")
            continue
        key = content_id("query", words)
        found.queries[key] = words
        pairs += document not in found.qrels.setdefault(key, {})
        found.qrels[key][document] = 1
    if lost:
        what = "rows have no query, or name a page that is not there, and are left out"
        logger.warning("%s: %d %s: %s", name, len(lost), what, some(lost))
    if not pairs:
        raise DataError(f"{table.name}: no row names a page that is there; the first: {some(lost, 1) or 'no rows'}")
    return found


class _Corpus:
    """Documents of a corpus by file and page."""

    def __init__(self, home: Path, data: DataBlock) -> None:
        self.corpus = beir.read_corpus(open_files(beir.part(home, "corpus")), data.document, data.image, home)
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


class _Files:
    """Image and text files, each a document."""

    def __init__(self, table: TextTable) -> None:
        self.table, self.corpus, self.known = table, dict[str, Document](), dict[str, str]()

    def find(self, file: str, page: int | None, where: str) -> str | None:
        path = self.table.folder(where) / file
        kind = path.suffix.lower()
        if kind not in IMAGES + TEXTS:
            fix = "smart-train ingest FOLDER --out data/mine, then put this table into data/mine"
            raise DataError(f"{where}: {file} is neither an image nor a text file; for PDFs run: {fix}")
        if page not in (None, 1) or not path.is_file():
            return None
        if file not in self.known:
            content: dict[str, Any] = {"image": str(path)} if kind in IMAGES else {"text": path.read_text("utf-8")}
            key = content_id(next(iter(content)), path.read_bytes())
            self.known[file] = key
            self.corpus.setdefault(key, Document(key, **content, file=file, page=page))
        return self.known[file]
