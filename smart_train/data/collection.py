"""The one data shape of this project: a corpus, queries and qrels, by document id."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any

from smart_train.core.errors import DataError
from smart_train.core.images import on_paper
from smart_train.data.ids import content_id, hash_id, some
from smart_train.data.split import split

__all__ = ["Collection", "DataError", "Document", "Mined", "content_id", "hash_id", "read_beir", "split", "write_beir"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    """A text, an image, or both.  A page is a document.

    image: a path, a PIL image, or an object whose ``load()`` gives one (nothing is decoded before ``content()``)
    file: what the document is a part of (a PDF, a package); a split keeps a file together
    page: its number in there, for messages and links
    title: what ``text`` begins with, where the source keeps it apart
    hash: of the content it was made of, in hexadecimal, where the source has one (ingest does)
    source: which of several data sets it came from, where rows say so; batches may keep them apart
    """

    id: str
    text: str | None = None
    image: Any = None
    file: str | None = None
    page: int | None = None
    title: str | None = None
    hash: str | None = None
    source: str | None = None

    def content(self) -> Any:
        """What an encoder takes: ``str``, an RGB PIL image, or ``{"text": str, "image": image}``.

        Decodes, so it is called in data workers.  Raises DataError that names the document where the image is
        broken or missing: a page is never replaced by something else.
        """
        if self.image is None:
            if self.text is None:
                raise DataError(f"document {self.id!r} has neither text nor image")
            return self.text
        image = self._decode()
        return image if self.text is None else {"text": self.text, "image": image}

    def _decode(self) -> Any:
        from PIL import Image

        try:
            image = self.image
            if isinstance(image, str | Path):
                with Image.open(image) as opened:
                    opened.load()
                    image = opened
            elif not isinstance(image, Image.Image):
                image = image.load()
            return on_paper(image)
        except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error ... by format
            where = self.image if isinstance(self.image, str | Path) else getattr(self.image, "name", "memory")
            of = f" of {self.file}" if self.file else ""
            raise DataError(
                f"the image of document {self.id!r}{of} cannot be decoded ({where}): {error}. "
                "Repair the file or take the row out of the data"
            ) from error


@dataclass(frozen=True)
class Mined:
    """The hard negatives of one query, and who says so.

    documents: ids, hardest first
    scores: the miner's score of each, in its own unit; empty where it gave none
    positive: its score of the query's best relevant document
    miner: the model, the kind of score and when, in words
    """

    documents: tuple[str, ...]
    scores: tuple[float, ...] = ()
    positive: float | None = None
    miner: str = ""

    def __post_init__(self) -> None:
        if self.scores and len(self.scores) != len(self.documents):
            raise DataError(f"{len(self.documents)} negatives have {len(self.scores)} scores; give one for each")

    def only(self, kept: Callable[[str], bool]) -> Mined:
        """Without the documents that are not kept, and without their scores."""
        places = [i for i, document in enumerate(self.documents) if kept(document)]
        scores = tuple(self.scores[i] for i in places) if self.scores else ()
        return replace(self, documents=tuple(self.documents[i] for i in places), scores=scores)


@dataclass
class Collection:
    """A corpus to search in, queries, and which documents answer them.

    corpus: document id -> Document
    queries: query id -> text
    qrels: query id -> document id -> grade; above 0 is relevant, 0 is judged and not relevant
    negatives: query id -> ids of hard negatives in the corpus, hardest first where they were mined
    teacher: query id -> document id -> another model's score of the pair, in that model's unit; any pairs, or none
    mined: query id -> how its negatives were found, for those who look; training reads ``negatives``
    """

    name: str
    corpus: dict[str, Document]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    negatives: dict[str, list[str]] = field(default_factory=dict)
    teacher: dict[str, dict[str, float]] = field(default_factory=dict)
    mined: dict[str, Mined] = field(default_factory=dict)

    def relevant(self, query: str) -> set[str]:
        """Ids of the documents judged relevant, whether the corpus has them or not."""
        return {document for document, grade in self.qrels.get(query, {}).items() if grade > 0}

    def pairs(self) -> list[tuple[str, str]]:
        """(query id, document id) for every grade above 0, in the order of the qrels; pairs whose query or document
        is missing are left out here, and named by ``check()``."""
        return [
            (query, document)
            for query, judged in self.qrels.items()
            if query in self.queries
            for document, grade in judged.items()
            if grade > 0 and document in self.corpus
        ]

    def fingerprint(self) -> str:
        """SHA-256 over ids, texts, files, grades, negatives and a teacher's scores, in the order of the ids;
        independent of the order of reading and of where the folder lies.  An image counts by its document's id; who
        mined the negatives, and when, does not count."""
        total = sha256()
        for key in sorted(self.corpus):
            d = self.corpus[key]
            total.update(json.dumps([d.id, d.text, d.image is not None, d.file, d.page]).encode())
        total.update(json.dumps(sorted(self.queries.items())).encode())
        total.update(json.dumps([[q, sorted(self.qrels[q].items())] for q in sorted(self.qrels)]).encode())
        total.update(json.dumps(sorted((q, n) for q, n in self.negatives.items() if n)).encode())
        scored = sorted((q, sorted(row.items())) for q, row in self.teacher.items() if row)
        if scored:  # data without a teacher keeps the fingerprint it had before there were teachers
            total.update(json.dumps(scored).encode())
        return total.hexdigest()

    def problems(self) -> list[str]:
        """What is wrong inside, one sentence each, with the ids; empty where all is well."""
        judged = {d: q for q, row in self.qrels.items() for d in row}
        named = {d for row in self.negatives.values() for d in row}
        scored = {d for row in self.teacher.values() for d in row}
        infinite = [q for q, row in self.teacher.items() if not all(map(isfinite, row.values()))]
        blank = [d.id for d in self.corpus.values() if d.image is None and not (d.text or "").strip()]
        found = {
            "queries in the qrels without a text": [q for q in self.qrels if q not in self.queries],
            "queries that are empty": [q for q, text in self.queries.items() if not text.strip()],
            "queries without a judgement": [q for q in self.queries if not self.qrels.get(q)],
            "judged documents missing in the corpus": [d for d in judged if d not in self.corpus],
            "negatives missing in the corpus": sorted(named - self.corpus.keys()),
            "queries with a teacher's scores, but without a text": [q for q in self.teacher if q not in self.queries],
            "documents with a teacher's score missing in the corpus": sorted(scored - self.corpus.keys()),
            "queries with a teacher's score that is not finite": infinite,
            "documents that are empty": blank,
            "documents filed under another id": [k for k, d in self.corpus.items() if k != d.id],
        }
        return [f"{len(ids)} {what}: {some(ids)}" for what, ids in found.items() if ids]

    def check(self) -> Collection:
        """Returns self; raises DataError that lists dangling ids and empty texts."""
        problems = self.problems()
        if problems:
            raise DataError(f"{self.name}: " + "; ".join(problems))
        return self

    def select(self, query_ids: Iterable[str], document_ids: Iterable[str] | None = None) -> Collection:
        """These queries with these documents (None = the whole corpus); judgements, negatives and scores of other
        documents are left out.  Raises KeyError for an id that is not there."""
        corpus = self.corpus if document_ids is None else {d: self.corpus[d] for d in document_ids}
        queries = {q: self.queries[q] for q in query_ids}
        qrels, negatives, teacher, mined = {}, {}, {}, {}
        for query in queries:
            judged = self.qrels.get(query, {})
            qrels[query] = {d: g for d, g in judged.items() if document_ids is None or d in corpus}
            if query in self.negatives:
                negatives[query] = [d for d in self.negatives[query] if document_ids is None or d in corpus]
            if query in self.teacher:
                scores = self.teacher[query]
                teacher[query] = {d: s for d, s in scores.items() if document_ids is None or d in corpus}
            if query in self.mined:
                mined[query] = self.mined[query].only(lambda d: document_ids is None or d in corpus)
        return Collection(self.name, dict(corpus), queries, qrels, negatives, teacher, mined)


def read_beir(folder: str | Path, split: str = "test", text: str | None = None, image: str | None = None) -> Collection:
    """A local folder in BEIR's layout (Thakur et al. 2021): corpus, queries, and the qrels of one split.

    Reads ``corpus.jsonl`` (``_id``, ``title``, ``text``; a document is title, space, text), ``queries.jsonl``
    (``_id``, ``text``) and ``qrels/SPLIT.tsv`` (query id, document id, grade; with or without a header, or with the
    four columns of TREC), each also gzipped or as Parquet, and the layout of retrieval sets on the Hub (folders
    ``corpus``, ``queries`` and ``qrels`` with ``corpus-id``, ``query-id``, ``score``, and an ``image`` column).
    Columns ``file`` (or ``doc_id``), ``page`` and ``hash`` are kept.  Hard negatives and a teacher's scores are read
    where there are such: ``negatives.jsonl`` (``_id``, ``negatives``: document ids) and ``teacher.jsonl`` (``_id``,
    ``scores``: document id -> score), or the folders ``negatives`` and ``teacher`` that store.py writes.
    Queries are those judged in the split.

    text, image: column of the corpus, where it is not called so; empty leaves the texts, or the images, out.

    Judged documents that the corpus lacks stay in the qrels (they lower recall, as in BEIR); judged queries without
    a text are left out.  Both are counted in a warning, and ``check()`` lists the former.
    Raises DataError, naming file and line, for a malformed row, an id that occurs twice with different content, or
    a split that is not there.
    """
    from smart_train.data.readers import beir  # it builds on this module

    return beir.read(Path(folder), split, text, image)


def write_beir(collection: Collection, folder: str | Path, split: str = "test") -> None:
    """Writes a collection as ``read_beir`` reads it; images that are not files go to ``images/`` as PNG.

    Corpus, queries, negatives and a teacher's scores are added to those that the folder already has (so several
    splits can share one folder); the qrels of this split are replaced.  Raises DataError where an id is there with
    another content.
    """
    from smart_train.data.readers import beir  # it builds on this module

    beir.write(collection, Path(folder), split)
