"""Pages and questions become a collection on the disk: corpus, queries, and the qrels of train, dev and test."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from smart_train.core.errors import DataError
from smart_train.data import store
from smart_train.data.collection import Collection, Document, content_id, hash_id
from smart_train.data.split import split
from smart_train.ingest.pages import Page, read_pages
from smart_train.ingest.questions.queries import Question, Written

logger = logging.getLogger(__name__)

SIDES = ("train", "dev", "test")


@dataclass
class Built:
    """What was written: documents, queries and files of each split; ``without`` counts what is in none, by reason."""

    documents: int = 0
    queries: dict[str, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    without: dict[str, int] = field(default_factory=dict)


def _put_aside(out: Path, of_query: Mapping[str, str], corpus: set[str]) -> None:
    """Negatives and teachers' scores of an earlier build whose queries or sides were others: its test pages may be
    among the negatives.  They are renamed, not removed."""
    try:
        before = {row["id"]: row["split"] for row in pq.read_table(out / "queries" / "queries.parquet").to_pylist()}
        known = set(pq.read_table(out / "corpus" / "corpus.parquet", columns=["id"])["id"].to_pylist())
    except (OSError, KeyError, ValueError):
        return  # nothing was built here before
    if before == dict(of_query) and known == corpus:
        return
    for name in ("negatives", "teacher"):
        for old in (out / name, out / f"{name}.jsonl"):
            if old.exists():
                aside, number = out / f"before-{old.name}", 1
                while aside.exists():
                    aside, number = out / f"before-{number}-{old.name}", number + 1
                old.rename(aside)
                logger.warning("%s was made for other queries or sides: moved to %s; mine again", old, aside)


def documents(
    out: str | Path, masked: Mapping[str, str] | None = None, pages: Iterable[Page] | None = None
) -> Iterator[Document]:
    """The pages as documents: their image, and their text without the words that questions were taken from.

    A page with neither is left out.  The title has no column of its own: readers put titles before texts, and a title
    is mostly what a page is asked for by.
    """
    masked = masked or {}
    for page in read_pages(out) if pages is None else pages:
        text = masked.get(page.id, page.text).strip() or None
        image = Path(out) / page.image if page.image else None
        if text or image:
            yield Document(page.id, text, image, page.file, page.page, hash=page.hash)


def build(
    out: str | Path,
    written: Written,
    dev: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    pages: Iterable[Page] | None = None,
) -> Built:
    """Writes corpus/, queries/ and qrels/ of a folder that pages were ingested to, instead of what they held.

    dev, test: a share of the questions.  Whole files are held out, in the order of a hash of their content and the
        seed (see split.py); where files are too few or too large for that, the one that comes nearest is held out,
        and of one file or two there is no dev or no test: that is told.
    pages: None = those in ``out``

    Every page with the content of the asked one answers a question too.
    Raises DataError where there is no question, and for a question about a page that is not there.
    """
    if not written.questions:
        raise DataError(
            f"{out}: not one question came of its pages, so there is nothing to train on; see the counts in report.json"
        )
    out, without = Path(out), Counter[str]()
    kept = list(read_pages(out) if pages is None else pages)
    corpus = {document.id: document for document in documents(out, written.masked, kept)}
    without["pages with neither text nor image"] = len(kept) - len(corpus)
    queries, qrels = _judged(written.questions, kept, corpus, without)
    sides = _sides(out.name, kept, corpus, qrels, dev, test, seed)
    of_query = {query: side for side, ids in sides.items() for query in ids}
    _put_aside(out, of_query, set(corpus))
    store.write_corpus(
        out,
        corpus.values(),
        {"label": {p.id: p.label for p in kept}, "source_text": {p.id: p.text for p in kept}},
        merge=False,
    )
    more: dict[str, dict[str, Any]] = {
        name: {query: getattr(question, name) for query, question in queries.items()}
        for name in ("rule", "source", "document", "file", "page")
    }
    texts = {query: question.text for query, question in queries.items()}
    store.write_queries(out, texts, {**more, "split": of_query}, merge=False)
    for side in SIDES:
        (out / "qrels" / f"{side}.parquet").unlink(missing_ok=True)  # of an earlier build, whose queries are gone
        if sides[side]:
            store.write_qrels(out, side, {query: qrels[query] for query in sides[side]})
    files = {side: len({queries[query].file for query in ids}) for side, ids in sides.items()}
    counts = {side: len(ids) for side, ids in sides.items()}
    logger.info("%s: %d documents, queries %s", out, len(corpus), ", ".join(f"{s} {n}" for s, n in counts.items()))
    return Built(len(corpus), counts, files, dict(+without))


def _judged(
    questions: Iterable[Question], pages: list[Page], corpus: Mapping[str, Document], without: Counter[str]
) -> tuple[dict[str, Question], dict[str, dict[str, int]]]:
    """(query id -> question, qrels); a question whose page has nothing left is counted and left out."""
    copies: dict[str, list[str]] = defaultdict(list)
    for page in pages:
        copies[page.hash].append(page.id)
    content = {page.id: page.hash for page in pages}
    queries: dict[str, Question] = {}
    qrels: dict[str, dict[str, int]] = {}
    for question in questions:
        if question.document not in content:
            raise DataError(f"the question {question.text!r} is about {question.document!r}, which is no page here")
        if question.document not in corpus:
            without["questions about a page with nothing else on it"] += 1
            continue
        query = content_id("query", f"{question.document}\n{question.text}")
        queries[query] = question
        qrels[query] = {page: 1 for page in copies[content[question.document]] if page in corpus}
    return queries, qrels


def _sides(
    name: str,
    pages: list[Page],
    corpus: Mapping[str, Document],
    qrels: Mapping[str, Mapping[str, int]],
    dev: float,
    test: float,
    seed: int,
) -> dict[str, list[str]]:
    """side -> query ids.  Files are known by their content, so that renaming one changes nothing."""
    light = {page.id: Document(page.id, "", file=page.file_id) for page in pages if page.id in corpus}
    whole = Collection(name, light, dict.fromkeys(qrels, ""), {query: dict(row) for query, row in qrels.items()})
    try:
        parts = split(whole, dev, test, seed)
    except DataError as error:
        sides = _nearest(whole, dev, test, seed)
        logger.warning("%s. So: %s", error, ", ".join(f"{side} has {len(ids)}" for side, ids in sides.items()))
        return sides
    return {side: list(part.queries) for side, part in zip(SIDES, parts, strict=True)}


def _nearest(whole: Collection, dev: float, test: float, seed: int) -> dict[str, list[str]]:
    """One file for test and one for dev, those whose questions come nearest to the shares; the others train."""
    root: dict[str, str] = {}

    def find(file: str) -> str:
        while root.setdefault(file, file) != file:
            file = root[file]
        return file

    homes = {query: [str(whole.corpus[page].file) for page in row] for query, row in whole.qrels.items()}
    for files in homes.values():
        for file in files[1:]:
            root[find(file)] = find(files[0])
    groups: dict[str, list[str]] = defaultdict(list)
    for query, files in homes.items():
        groups[find(files[0])].append(query)
    order = {file: hash_id(f"{seed}\n{file}") for file in groups}
    left = sorted(groups, key=lambda file: (len(groups[file]), order[file]))
    sides: dict[str, list[str]] = {side: [] for side in SIDES}
    for side, share in (("test", test), ("dev", dev)):
        if share and len(left) > 1:  # the largest one is never held out
            wanted = share * len(homes)
            chosen = min(left[:-1], key=lambda file: (abs(len(groups[file]) - wanted), order[file]))
            sides[side] = groups[chosen]
            left.remove(chosen)
    sides["train"] = [query for file in left for query in groups[file]]
    return sides
