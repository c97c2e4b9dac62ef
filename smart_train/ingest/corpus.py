"""Write pages and questions as a collection: corpus, queries, and the qrels of train, dev and test."""

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
from smart_train.data.split import file_groups, split
from smart_train.ingest.pages import Page, read_pages
from smart_train.ingest.questions.question_set import Question, QuestionSet

logger = logging.getLogger(__name__)

SPLITS = ("train", "dev", "test")


@dataclass
class BuildReport:
    """Result of ``build``: documents, and queries and files of each split.

    without: reason -> pages and questions that were left out
    """

    documents: int = 0
    queries: dict[str, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    without: dict[str, int] = field(default_factory=dict)

    def summary(self) -> str:
        """Return one line for a terminal."""
        queries = ", ".join(f"{name} {count:,} of {self.files[name]:,} files" for name, count in self.queries.items())
        return f"{self.documents:,} documents; queries: {queries}"


def build(
    out: str | Path,
    questions: QuestionSet,
    dev: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    pages: Iterable[Page] | None = None,
) -> BuildReport:
    """Write corpus/, queries/ and qrels/ of a folder that pages were ingested to, in place of what they held.

    dev, test: shares of the questions. Whole files are held out, in the order of a hash of their content and ``seed``.
        Where files are too few or too large for that, the one file that comes nearest is held out; with one or two
        files dev or test may be empty. Both are logged.
    pages: None = those in ``out``

    Every page with the same content as the page of a question is relevant, too.
    Raises DataError where there is no question, and for a question about a page that is not there.
    """
    if not questions.questions:
        raise DataError(
            f"{out}: its pages gave no question, so there is nothing to train on; report.json counts what was dropped"
        )
    out, without = Path(out), Counter[str]()
    all_pages = list(read_pages(out) if pages is None else pages)
    corpus = {document.id: document for document in documents(out, questions.masked, all_pages)}
    without["pages with neither text nor image"] = len(all_pages) - len(corpus)
    queries, qrels = _judge(questions.questions, all_pages, corpus, without)
    splits = _split_queries(out.name, all_pages, corpus, qrels, dev, test, seed)
    split_of = {query: name for name, ids in splits.items() for query in ids}
    _set_aside_older_negatives(out, split_of, set(corpus))
    store.write_corpus(
        out,
        corpus.values(),
        {"label": {p.id: p.label for p in all_pages}, "source_text": {p.id: p.text for p in all_pages}},
        merge=False,
    )
    columns: dict[str, dict[str, Any]] = {
        name: {query: getattr(question, name) for query, question in queries.items()}
        for name in ("rule", "source", "document", "file", "page")
    }
    texts = {query: question.text for query, question in queries.items()}
    store.write_queries(out, texts, {**columns, "split": split_of}, merge=False)
    for name in SPLITS:
        (out / "qrels" / f"{name}.parquet").unlink(missing_ok=True)  # of an earlier build, whose queries are gone
        if splits[name]:
            store.write_qrels(out, name, {query: qrels[query] for query in splits[name]})
    return BuildReport(
        len(corpus),
        {name: len(ids) for name, ids in splits.items()},
        {name: len({queries[query].file for query in ids}) for name, ids in splits.items()},
        dict(+without),
    )


def documents(
    out: str | Path, masked: Mapping[str, str] | None = None, pages: Iterable[Page] | None = None
) -> Iterator[Document]:
    """Yield the pages as documents: their image, and their text without the words that questions were taken from.

    A page with neither is left out. The title has no column of its own, since readers put titles before texts, and
    most questions are titles.
    """
    masked = masked or {}
    for page in read_pages(out) if pages is None else pages:
        text = masked.get(page.id, page.text).strip() or None
        image = Path(out) / page.image if page.image else None
        if text or image:
            yield Document(page.id, text, image, page.file, page.page, hash=page.hash)


def _judge(
    questions: Iterable[Question], pages: list[Page], corpus: Mapping[str, Document], without: Counter[str]
) -> tuple[dict[str, Question], dict[str, dict[str, int]]]:
    """Return (query id -> question, qrels); a question whose page is not in the corpus is counted and left out."""
    copies: dict[str, list[str]] = defaultdict(list)
    for page in pages:
        copies[page.hash].append(page.id)
    content = {page.id: page.hash for page in pages}
    queries: dict[str, Question] = {}
    qrels: dict[str, dict[str, int]] = {}
    for question in questions:
        if question.document not in content:
            raise DataError(
                f"the question {question.text!r} is about the page {question.document!r}, which is not there"
            )
        if question.document not in corpus:
            without["questions about a page with nothing else on it"] += 1
            continue
        query = content_id("query", f"{question.document}\n{question.text}")
        queries[query] = question
        qrels[query] = {page: 1 for page in copies[content[question.document]] if page in corpus}
    return queries, qrels


def _split_queries(
    name: str,
    pages: list[Page],
    corpus: Mapping[str, Document],
    qrels: Mapping[str, Mapping[str, int]],
    dev: float,
    test: float,
    seed: int,
) -> dict[str, list[str]]:
    """Return split -> query ids. Files are known by their content, so that renaming one changes nothing."""
    by_file = {page.id: Document(page.id, "", file=page.file_id) for page in pages if page.id in corpus}
    everything = Collection(name, by_file, dict.fromkeys(qrels, ""), {query: dict(row) for query, row in qrels.items()})
    try:
        parts = split(everything, dev, test, seed)
    except DataError as error:
        splits = _split_few_files(everything, dev, test, seed)
        logger.warning("%s. So: %s", error, ", ".join(f"{name} has {len(ids)}" for name, ids in splits.items()))
        return splits
    return {name: list(part.queries) for name, part in zip(SPLITS, parts, strict=True)}


def _split_few_files(everything: Collection, dev: float, test: float, seed: int) -> dict[str, list[str]]:
    """Hold out one file for test and one for dev: those whose questions come nearest to the shares.

    Files that share a question (copies of a page) are held out together.
    """
    groups, _ = file_groups(everything)
    order = {group.name: hash_id(f"{seed}\n{group.name.removeprefix('file:')}") for group in groups}
    left = sorted(groups, key=lambda group: (len(group.queries), order[group.name]))
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    for name, share in (("test", test), ("dev", dev)):
        if share and len(left) > 1:  # the largest group always trains
            wanted = share * len(everything.qrels)
            chosen = min(left[:-1], key=lambda group: (abs(len(group.queries) - wanted), order[group.name]))
            splits[name] = chosen.queries
            left.remove(chosen)
    splits["train"] = [query for group in left for query in group.queries]
    return splits


def _set_aside_older_negatives(out: Path, split_of: Mapping[str, str], corpus: set[str]) -> None:
    """Rename negatives and teacher scores of an earlier build with other queries, splits or pages.

    Pages that are test pages now may be among those negatives.
    """
    try:
        before = {row["id"]: row["split"] for row in pq.read_table(out / "queries" / "queries.parquet").to_pylist()}
        known = set(pq.read_table(out / "corpus" / "corpus.parquet", columns=["id"])["id"].to_pylist())
    except (OSError, KeyError, ValueError):
        return  # nothing was built here before
    if before == dict(split_of) and known == corpus:
        return
    for name in ("negatives", "teacher"):
        for old in (out / name, out / f"{name}.jsonl"):
            if old.exists():
                aside, number = out / f"before-{old.name}", 1
                while aside.exists():
                    aside, number = out / f"before-{number}-{old.name}", number + 1
                old.rename(aside)
                logger.warning("%s belongs to an earlier build: renamed to %s; run smart-train mine again", old, aside)
