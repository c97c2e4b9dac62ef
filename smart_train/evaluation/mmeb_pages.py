"""MMEB-V2's 24 visual-document tasks: ViDoRe v1 and v2, VisRAG, ViDoSeek, MMLongBench.

    visdoc-tasks/data/REPOSITORY/    corpus, queries and qrels, as the repository has them
    visdoc-tasks/images/NAME/        pages by their ids, where the corpus has no column of images

Every query is ranked against the whole corpus.

Knows: these folders.  Does not know: encoders, scores.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from smart_train.data import beir
from smart_train.data.columns import CORPUS_IDS, id_of, require
from smart_train.data.ids import DataError
from smart_train.data.qrels import judgements
from smart_train.data.records import Collection, Document
from smart_train.data.tables import open_files
from smart_train.evaluation.mmeb_data import Data, Query, Reading, media_of
from smart_train.evaluation.mmeb_tasks import Task


def read_pages(task: Task, reading: Reading) -> Data:
    """Queries without a relevant page are left out, as nothing can be measured of them; notes say how many."""
    folder = reading.root / task.tables[0]
    if not folder.is_dir():
        raise DataError(f"{task.name}: {folder} is not there; put the repository's corpus, queries and qrels into it")
    collection = _collection(folder, task, reading)
    data = Data(documents=dict(collection.corpus))
    for query, text in collection.queries.items():
        answers = {document: grade for document, grade in collection.qrels[query].items() if grade > 0}
        if answers:
            data.queries.append(Query(query, text, task.instruction, answers))
    left = len(collection.queries) - len(data.queries)
    if left:
        data.notes.append(f"{left} queries have no relevant page and are left out")
    return data


def _collection(folder: Path, task: Task, reading: Reading) -> Collection:
    corpus = open_files(beir.part(folder, "corpus")) if beir.part(folder, "corpus") else None
    if corpus is None or "image" in corpus.columns:
        return beir.read(folder, task.split, text="" if corpus is not None else None)
    media, key = media_of(task, reading), require(corpus, CORPUS_IDS, "document ids")
    ids = [id_of(row, key, where) for where, row in corpus]
    pages = {id: _page(media, id) for id in ids}
    absent = [id for id, page in pages.items() if page is None]
    if absent:
        told = f"{len(absent)} of {len(ids)} pages are not there, such as that of {absent[0]!r}"
        raise DataError(f"{task.name}: {told}; looked into {media}")
    documents = {id: Document(id, image=page) for id, page in pages.items()}
    judged = [each for file in beir.splits(folder).get(task.split, []) for each in judgements(file)]
    queries = beir.read_queries(open_files(beir.part(folder, "queries")))
    return beir.judged_collection(task.name, documents, queries, judged)


def _page(media: Path, id: str) -> Path | None:
    """ID.png, ID (an id that is a file's name), or that as VLM2Vec's export shortens it: 50 characters and a hash."""
    end = Path(id).suffix
    short = f"{id.removesuffix(end)[:50]}_{hashlib.md5(id.encode(), usedforsecurity=False).hexdigest()[:8]}{end}"
    return next((media / name for name in (f"{id}.png", id, short) if (media / name).is_file()), None)
