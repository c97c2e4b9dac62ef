"""Queries and a candidate pool in JSON Lines, as M-BEIR (Wei et al. 2023, arXiv 2311.17136) has them; LamRA reads them.

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
from smart_train.data.collection import Collection, Document
from smart_train.data.column_aliases import id_of, picture_of, text_of
from smart_train.data.ids import some
from smart_train.data.qrels import Judgement
from smart_train.data.readers.beir import judged_collection
from smart_train.data.tables import TextTable, split_of, suffix

logger = logging.getLogger(__name__)

POOL = "cand_pool"


def files(folder: Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """(split -> files of queries, files of candidates); both empty where the folder is no such data."""
    pools = [
        f for f in _lines(folder, f"{POOL}/**/*") + _lines(folder, "*") if POOL in f.relative_to(folder).as_posix()
    ]
    queries: dict[str, list[Path]] = {}
    for file in _lines(folder, "query/*/*") if pools else ():
        queries.setdefault(file.parent.name.removeprefix("union_"), []).append(file)
    for file in _lines(folder, "*") if pools and not queries else ():
        if file not in pools:
            queries.setdefault(split_of(file).rpartition("_")[2], []).append(file)
    return (queries, pools) if queries else ({}, [])


def _lines(folder: Path, pattern: str) -> list[Path]:
    return sorted(f for f in folder.glob(pattern) if f.is_file() and suffix(f) == ".jsonl")


def read(folder: Path, split: str, data: DataBlock, name: str) -> Collection:
    """The queries of one split, over all candidates.

    A query that is an image, or has one beside its text, is left out and counted: queries are texts here.
    ``data.image: ""`` leaves the candidates' images out, ``data.document: ""`` their texts.
    """
    queries, pools = files(folder)
    corpus = _candidates(TextTable(pools), folder, data)
    texts: dict[str, str] = {}
    judged: list[Judgement] = []
    negatives: dict[str, list[str]] = {}
    pictures: list[str] = []
    for where, row in TextTable(queries[split]):
        if data.limit is not None and len(judged) >= data.limit:
            break
        query, text = id_of(row, "qid", where), text_of(row, "query_txt", where)
        if row.get("query_img_path"):
            pictures.append(query)
            continue
        if texts.setdefault(query, text) != text:
            raise DataError(f"{where}: the query id {query!r} is there before, with another text; ids must be unique")
        judged += [(where, query, document, 1) for document in _ids(row, "pos_cand_list", where)]
        negatives.setdefault(query, []).extend(_ids(row, "neg_cand_list", where))
    if pictures:
        what = "queries are images or have one, and are left out: queries are texts here"
        logger.warning("%s: %d %s: %s", name, len(pictures), what, some(pictures))
    found = judged_collection(name, corpus, texts, judged)
    for query, named in negatives.items():
        kept = [d for d in dict.fromkeys(named) if d in corpus and d not in found.qrels.get(query, {})]
        if kept and query in found.queries:
            found.negatives[query] = kept
    if not found.queries:
        raise DataError(f"{folder}: no query of {split} has a text and a candidate")
    return found


def _candidates(table: TextTable, home: Path, data: DataBlock) -> dict[str, Document]:
    corpus: dict[str, Document] = {}
    for where, row in table:
        name = id_of(row, "did", where)
        text = text_of(row, "txt" if data.document is None else data.document, where) or None
        pixels = None if data.image == "" else picture_of(row.get(data.image or "img_path"), table, where, home)
        document = Document(name, text if text or pixels is not None else "", pixels)
        if corpus.setdefault(name, document) != document:  # a pool of all tasks repeats those of each
            raise DataError(f"{where}: the id {name!r} is there before, with another content; ids must be unique")
    return corpus


def _ids(row: dict[str, Any], key: str, where: str) -> Iterator[str]:
    named = row.get(key) or []
    if not isinstance(named, list):
        raise DataError(f"{where}: {key} must be a list of candidate ids")
    for one in named:
        yield id_of(one, "did", where) if isinstance(one, dict) else str(one)
