"""Read queries and a candidate pool in JSON Lines, as M-BEIR (Wei et al. 2023, arXiv 2311.17136) and LamRA have them.

    query/train/NAME_train.jsonl   qid, query_txt, query_img_path, pos_cand_list, neg_cand_list (ids of candidates)
    cand_pool/.../NAME.jsonl       did, txt, img_path (relative to the folder), modality

or the same files side by side, with ``cand_pool`` in the pool's name and the split at the end of the queries'.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError
from smart_train.data.collection import Collection, Document, first_few
from smart_train.data.readers import row_cache
from smart_train.data.readers.base import DataProblem, Reader
from smart_train.data.readers.beir import Judgement, judged_collection
from smart_train.data.tables import (
    Boundary,
    Ids,
    TextTable,
    describe_columns,
    read_id,
    read_image,
    read_text,
    split_name,
    suffix,
)

logger = logging.getLogger(__name__)

POOL = "cand_pool"


class MbeirReader(Reader):
    """Read queries over a pool of candidates.

    ``data.image: ""`` leaves the candidates' images out, ``data.document: ""`` their texts.
    """

    shared_corpus = True

    def __init__(self, data: DataBlock) -> None:
        super().__init__(data)
        self.folder = Path(data.path)
        self.queries, self.pools = query_and_pool_files(self.folder)
        if not self.queries:
            what = f"{data.path} has no queries and candidate pool in M-BEIR's layout"
            raise DataProblem("data.path", what, "name the folder of query/ and cand_pool/, or write data.format: auto")

    @classmethod
    def detect(cls, data: DataBlock) -> bool:
        return bool(query_and_pool_files(Path(data.path))[0])

    def splits(self) -> list[str]:
        return list(self.queries)

    def read(self, split: str) -> Collection:
        return self._read(split, None)

    def read_first(self, split: str, limit: int) -> Collection:
        return self._read(split, limit)

    def no_scores(self) -> str | None:
        return f"{self.data.path} has no scores"

    def image_column(self) -> str | None:
        key = "img_path" if self.data.image is None else self.data.image
        return key if key and any(row.get(key) for _, row in TextTable(self.pools)) else None

    def _read(self, split: str, limit: int | None) -> Collection:
        """The queries of one split, over all candidates.  A query that is an image, or has one beside its text, is left
        out and counted: queries are texts here."""
        row_cache.warn_of_memory(self.name, "mbeir", [*self.pools, *self.queries[split]])
        corpus = _candidates(TextTable(self.pools), self.folder, self.data)
        texts: dict[str, str] = {}
        judged: list[Judgement] = []
        negatives: dict[str, list[str]] = {}
        image_queries: list[str] = []
        table = TextTable(self.queries[split])
        parts = {"id": "qid", "query": "query_txt", "query's image (left out)": "query_img_path"}
        parts |= {"documents": "pos_cand_list", "negatives": "neg_cand_list"}
        logger.info("%s: %s", table.name, describe_columns(table.columns, parts))
        positive = dropped = 0
        for where, row in table:
            if limit is not None and len(judged) >= limit:
                break
            query, text = read_id(row, "qid", where), read_text(row, "query_txt", where)
            if row.get("query_img_path"):
                image_queries.append(query)
                continue
            if texts.setdefault(query, text) != text:
                raise DataError(
                    f"{where}: the query id {query!r} is there before, with another text; ids must be unique"
                )
            judged += [(where, query, document, 1) for document in _ids(row, "pos_cand_list", where)]
            negatives.setdefault(query, []).extend(_ids(row, "neg_cand_list", where))
        if image_queries:
            what = "queries are images or have one, and are left out: queries are texts here"
            logger.warning("%s: %d %s: %s", self.name, len(image_queries), what, first_few(image_queries))
        found = judged_collection(self.name, corpus, texts, judged)
        shown = Ids(corpus)
        for query, named in negatives.items():
            there = [d for d in dict.fromkeys(map(shown.find, named)) if d is not None]
            kept = [d for d in there if d not in found.qrels.get(query, {})]
            dropped, positive = dropped + len({*named}) - len(there), positive + len(there) - len(kept)
            if kept and query in found.queries:
                found.negatives[query] = kept
        for count, what in ((dropped, "name no candidate"), (positive, "are also positives of their query")):
            if count:
                logger.warning("%s: %d negatives %s and are left out", self.name, count, what)
        if not found.queries:
            raise DataError(f"{self.folder}: no query of {split} has a text and a candidate")
        return found


def query_and_pool_files(folder: Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """Return (split -> files of queries, files of candidates); both empty where the folder is no such data."""
    pools = [
        f for f in _lines(folder, f"{POOL}/**/*") + _lines(folder, "*") if POOL in f.relative_to(folder).as_posix()
    ]
    queries: dict[str, list[Path]] = {}
    for file in _lines(folder, "query/*/*") if pools else ():
        queries.setdefault(file.parent.name.removeprefix("union_"), []).append(file)
    for file in _lines(folder, "*") if pools and not queries else ():
        if file not in pools:
            queries.setdefault(split_name(file).rpartition("_")[2], []).append(file)
    return (queries, pools) if queries else ({}, [])


def _lines(folder: Path, pattern: str) -> list[Path]:
    return sorted(f for f in folder.glob(pattern) if f.is_file() and suffix(f) == ".jsonl")


def _candidates(table: TextTable, home: Path, data: DataBlock) -> dict[str, Document]:
    corpus: dict[str, Document] = {}
    boundary = Boundary.of(data)
    words = "txt" if data.document is None else data.document
    picture = "img_path" if data.image is None else data.image
    parts = {"id": "did", "text": words, "image": picture}
    logger.info("%s: %s", table.name, describe_columns(table.columns, parts))
    for where, row in table:
        name = read_id(row, "did", where)
        text = read_text(row, words, where) or None
        image = row.get(picture) if picture else None
        pixels = read_image(image, table, where, boundary, home)
        document = Document(name, text if text or pixels is not None else "", pixels)
        if corpus.setdefault(name, document) != document:  # a pool of all tasks repeats those of each
            raise DataError(f"{where}: the id {name!r} is there before, with another content; ids must be unique")
    return corpus


def _ids(row: dict[str, Any], key: str, where: str) -> Iterator[str]:
    named = row.get(key) or []
    if not isinstance(named, list):
        raise DataError(f"{where}: {key} must be a list of candidate ids")
    for one in named:
        yield read_id(one, "did", where) if isinstance(one, dict) else str(one)
