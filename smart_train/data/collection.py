"""Hold retrieval data in memory: documents, queries, and which documents answer which queries.

``Collection`` is what one split is trained or evaluated on; ``RetrievalDataset`` is all splits of one data set.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b, sha256
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from smart_train.core.errors import DataError
from smart_train.core.pictures import open_picture, to_rgb

DEV_SPLITS = ("dev", "validation", "valid", "val")  # names of splits to choose on
TEST_SPLITS = ("test",)  # names of splits to report on

Qrels = dict[str, dict[str, int]]  # query id -> document id -> grade
Columns = dict[str, dict[str, Any]]  # column -> id -> value


def hash_id(text: str) -> int:
    """Return a signed 64-bit hash that is the same in every process and on every machine (BLAKE2b, RFC 7693).

    Ranks compare documents by this one int64.  Two of a million ids collide with a chance of about 3e-8.
    """
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big", signed=True)


def content_id(kind: str, content: str | bytes) -> str:
    """Return an id made of the content: ``kind-`` and 80 bits in hexadecimal.  Equal content has an equal id."""
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return f"{kind}-{blake2b(raw, digest_size=10).hexdigest()}"


def first_few(names: list[str], most: int = 5) -> str:
    """Shorten a list for a message.

    >>> first_few(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


@dataclass(frozen=True)
class Document:
    """A text, an image, or both.  A page of a PDF is a document.

    image: a path, a PIL image, or an object whose ``load()`` returns one; nothing is decoded before ``content()``
    file: what the document is a part of (a PDF, a package); a split keeps the documents of a file together
    page: the page number in the file, for messages and links
    title: the beginning of ``text``, where the data stores the title separately
    hash: hash of the original content in hexadecimal, where the data has one (``ingest`` writes it)
    source: the data set that the document came from, where the data mixes several; batches can be of one source
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
        """Return what an encoder takes: ``str``, an RGB PIL image, or ``{"text": str, "image": image}``.

        This decodes the image, so call it in data workers.  Raises DataError, naming the document, where the image is
        broken or missing: a page is never replaced by something else.

        >>> Document("d1", "A harbour is a place for ships.").content()
        'A harbour is a place for ships.'
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
                return open_picture(image)
            return to_rgb(image if isinstance(image, Image.Image) else image.load())
        except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error ... by format
            where = self.image if isinstance(self.image, str | Path) else getattr(self.image, "name", "memory")
            of = f" of {self.file}" if self.file else ""
            raise DataError(
                f"the image of document {self.id!r}{of} cannot be decoded ({where}): {error}. "
                "Repair the file or take the row out of the data"
            ) from error


@dataclass(frozen=True)
class HardNegatives:
    """The hard negatives of one query, with the scores of the model that mined them.

    documents: document ids, hardest first
    scores: the miner's score of each document, in the miner's unit; empty where there are none
    positive: the miner's score of the query's best positive
    miner: the model, the kind of score and the date, for people
    """

    documents: tuple[str, ...]
    scores: tuple[float, ...] = ()
    positive: float | None = None
    miner: str = ""

    def __post_init__(self) -> None:
        if self.scores and len(self.scores) != len(self.documents):
            raise DataError(f"{len(self.documents)} negatives have {len(self.scores)} scores; give one for each")

    def filter(self, keep: Callable[[str], bool]) -> HardNegatives:
        """Return only the documents for which ``keep(id)`` is true, with their scores."""
        places = [i for i, document in enumerate(self.documents) if keep(document)]
        scores = tuple(self.scores[i] for i in places) if self.scores else ()
        return replace(self, documents=tuple(self.documents[i] for i in places), scores=scores)


@dataclass
class Collection:
    """One split: a corpus to search in, queries, and which documents answer them.

    corpus: document id -> Document
    queries: query id -> text
    qrels: query id -> document id -> grade; above 0 is relevant, 0 is judged and not relevant
    negatives: query id -> ids of hard negatives in the corpus, hardest first where they were mined
    teacher: query id -> document id -> another model's score of the pair, in that model's unit; for any pairs
    scored_negatives: query id -> its negatives with the miner's scores, where known; training reads ``negatives``
    near: document id -> a hash that it shares with its near copies, where ``data.near_duplicates`` asks for them; such
        documents count as one wherever copies do (identity.py)

    The mappings are dicts here, and read-only mappings over files in a ``StoredCollection``: do not write to those of a
    collection that you did not make.

    >>> corpus = {"d1": Document("d1", "Ships rest in a harbour."), "d2": Document("d2", "A bridge crosses a river.")}
    >>> data = Collection("demo", corpus, {"q1": "where do ships rest"}, {"q1": {"d1": 1, "d2": 0}})
    >>> data.pairs()
    [('q1', 'd1')]
    """

    name: str
    corpus: dict[str, Document]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    negatives: dict[str, list[str]] = field(default_factory=dict)
    teacher: dict[str, dict[str, float]] = field(default_factory=dict)
    scored_negatives: dict[str, HardNegatives] = field(default_factory=dict)
    near: dict[str, int] = field(default_factory=dict)

    def relevant(self, query: str) -> set[str]:
        """Return the ids of the documents judged relevant, whether the corpus has them or not."""
        return {document for document, grade in self.qrels.get(query, {}).items() if grade > 0}

    def pairs(self) -> Sequence[tuple[str, str]]:
        """Return (query id, document id) for every grade above 0, in the order of the qrels.

        Pairs whose query or document is missing are left out here; ``check()`` lists them.
        """
        return [
            (query, document)
            for query, judged in self.qrels.items()
            if query in self.queries
            for document, grade in judged.items()
            if grade > 0 and document in self.corpus
        ]

    def count_pages(self) -> int:
        """Return how many documents have an image."""
        return sum(document.image is not None for document in self.corpus.values())

    def count_files(self) -> int:
        """Return how many files the documents are a part of."""
        return len({document.file for document in self.corpus.values() if document.file is not None})

    def names_pages(self) -> bool:
        """Return whether some document names its file and its page in it."""
        return any(one.file is not None and one.page is not None for one in self.corpus.values())

    def count_related(self, name: Literal["negatives", "teacher"]) -> tuple[int, int]:
        """Return (how many documents are named by all queries together, how many queries name one)."""
        sizes = [len(row) for row in getattr(self, name).values()]
        return sum(sizes), sum(size > 0 for size in sizes)

    def fingerprint(self) -> str:
        """Return the SHA-256 of ids, texts, files, grades, negatives and teacher scores, in the order of the ids.

        It does not depend on the order of reading or on the place of the folder.  An image counts by its document's
        id; the miner and its scores do not count.
        """
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
        """Return what is inconsistent or empty, one sentence each, with the ids; [] where nothing is."""
        judged = {d: q for q, row in self.qrels.items() for d in row}
        named = {d for row in self.negatives.values() for d in row}
        scored = {d for row in self.teacher.values() for d in row}
        infinite = [q for q, row in self.teacher.items() if not all(map(isfinite, row.values()))]
        blank = [d.id for d in self.corpus.values() if d.image is None and not (d.text or "").strip()]
        problems = {
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
        return [f"{len(ids)} {what}: {first_few(ids)}" for what, ids in problems.items() if ids]

    def check(self) -> Collection:
        """Return self; raise DataError with every dangling id and empty text."""
        problems = self.problems()
        if problems:
            raise DataError(f"{self.name}: " + "; ".join(problems))
        return self

    def select(self, query_ids: Iterable[str], document_ids: Iterable[str] | None = None) -> Collection:
        """Return these queries with these documents (None = the whole corpus).

        Judgements, negatives and scores of other documents are left out.  Raises KeyError for an unknown id.
        """
        corpus = self.corpus if document_ids is None else {d: self.corpus[d] for d in document_ids}
        queries = {q: self.queries[q] for q in query_ids}
        qrels, negatives, teacher, scored = {}, {}, {}, {}
        for query in queries:
            judged = self.qrels.get(query, {})
            qrels[query] = {d: g for d, g in judged.items() if document_ids is None or d in corpus}
            if query in self.negatives:
                negatives[query] = [d for d in self.negatives[query] if document_ids is None or d in corpus]
            if query in self.teacher:
                scores = self.teacher[query]
                teacher[query] = {d: s for d, s in scores.items() if document_ids is None or d in corpus}
            if query in self.scored_negatives:
                keep = self.scored_negatives[query].filter
                scored[query] = keep(lambda d: document_ids is None or d in corpus)
        return Collection(self.name, dict(corpus), queries, qrels, negatives, teacher, scored, self.near)


@dataclass
class RetrievalDataset:
    """All splits of one data set, as the files have it: ids may dangle and images may be missing.

    ``smart-train data check`` looks at this, and ``data push``, ``data pull`` and ``mine --output`` copy it.

    splits: split -> qrels; negatives, teacher: of the queries of every split
    document_columns, query_columns: columns that no reader uses, by id; they are kept where the data is written
    conflicts: "query document" pairs that one split judges twice with different grades; the higher is in the qrels
    """

    name: str
    corpus: dict[str, Document]
    queries: dict[str, str]
    splits: dict[str, Qrels]
    negatives: dict[str, HardNegatives] = field(default_factory=dict)
    teacher: dict[str, dict[str, float]] = field(default_factory=dict)
    document_columns: Columns = field(default_factory=dict)
    query_columns: Columns = field(default_factory=dict)
    conflicts: list[str] = field(default_factory=list)
