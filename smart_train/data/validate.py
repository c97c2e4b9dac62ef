"""Validate a data set: find broken images, duplicates, dangling ids and leaks, and return the data without them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import combinations, islice
from typing import Any, Literal

from smart_train.core.environment import cores
from smart_train.core.errors import DataError, UsageError
from smart_train.data.collection import DEV_SPLITS, TEST_SPLITS, Document, HardNegatives, Qrels, RetrievalDataset
from smart_train.data.identity import content_hash, plain
from smart_train.data.near_documents import LEAST_WORDS, MOST_TEXT, NearGroups, near_groups
from smart_train.data.near_duplicates import near_duplicates

KINDS = {  # in the order of the checks; each looks at what the ones before it have left
    "source": "warnings of the reader: what it left out of the files, or read in another way than it is written",
    "twice": "pairs are judged twice with different grades; the higher one stays",
    "image": "images cannot be decoded; their documents are removed",
    "empty-document": "documents are empty, and are removed",
    "duplicate": "documents show the same as another; the first stays and takes over their judgements",
    "empty-query": "queries are empty, and are removed",
    "duplicate-query": "queries have the words of another of their split; the first takes over what belongs to them",
    "query-id": "judged queries have no text; their judgements are removed",
    "corpus-id": "judged documents are not in the corpus; their judgements are removed",
    "negative-id": "negatives name an unknown query or document, and are removed",
    "negative-relevant": "negatives are relevant to their query, and are removed from its negatives",
    "teacher-id": "teacher scores name an unknown query or document, and are removed",
    "near-duplicate": "documents are near copies of an answer and not judged; they become answers, too",
    "unanswered": "queries have no relevant document, and are removed from their split",
    "leak-query": "queries are nearly the same as one of a held-out split, and are removed from theirs",
    "leak-page": "queries have a positive that a held-out split has too, and are removed from theirs",
    "leak-file": "queries have a positive from a file that a held-out split has too, and are removed from theirs",
}
Near = Literal["report", "merge", "ignore"]
Progress = Callable[[Iterable[Document], int], Iterable[Document]]  # (documents, how many) -> the same documents


@dataclass(frozen=True)
class Finding:
    """One kind of problem.

    kind: a key of KINDS; ids: what is affected, with file and page where known; where: the two splits of a leak
    """

    kind: str
    ids: list[str]
    where: str = ""


@dataclass
class Report:
    """The data that was checked, unchanged; the data without its problems; and the problems.

    near: what there is of near copies, one sentence each; they are no problem by themselves
    """

    dataset: RetrievalDataset
    clean: RetrievalDataset
    findings: list[Finding] = field(default_factory=list)
    near: list[str] = field(default_factory=list)

    def emptied(self) -> list[str]:
        """Return the splits of which nothing would be left."""
        return [split for split, qrels in self.dataset.splits.items() if qrels and not self.clean.splits[split]]

    def drops(self) -> dict[str, tuple[int, int]]:
        """Return what would be dropped: name -> (how many, of how many)."""
        before, after = _sizes(self.dataset), _sizes(self.clean)
        return {what: (count - after.get(what, 0), count) for what, count in before.items()}


def validate(
    dataset: RetrievalDataset,
    images: bool = True,
    jobs: int | None = None,
    similar: float = 0.8,
    ignore: Iterable[str] = (),
    progress: Progress = lambda documents, _: documents,
    near: Near = "report",
    warned: Iterable[str] = (),
) -> Report:
    """Find every kind of problem in KINDS, and what is left without them; checking that again finds nothing.

    images: False leaves images undecoded: broken ones and duplicates among them are not found
    jobs: threads that decode and hash; None = one a core.  So many images are in memory at once, and as many wait
    similar: least similarity of two queries that are nearly the same (``near_duplicates.near_duplicates``)
    ignore: kinds that are neither reported nor removed
    progress: wraps the documents, to show a progress bar
    near: what becomes of documents whose texts are near copies (near_documents.py): "report" counts them in
        ``Report.near``, "merge" makes every near copy of an answer an answer of the same query, "ignore" looks for none
    warned: what the reader warned of, see ``load.read_all_with_warnings``

    Of two splits that share something, test is kept before dev, and dev before any other; two others are not compared.
    """
    unknown = set(ignore) - set(KINDS)
    if unknown:
        raise UsageError(f"{', '.join(sorted(unknown))}: no such kind of problem; choose from {', '.join(KINDS)}")
    run = _Validation(dataset, set(ignore))
    run.report("source", warned)
    run.report("twice", dataset.conflicts)
    run.documents(images, jobs or cores(), progress)
    run.queries()
    run.judgements()
    if near != "ignore":
        run.near_copies(near == "merge")
    run.negatives()
    run.teacher()
    run.unanswered()
    run.leaks(similar)
    return Report(dataset, run.clean, run.findings, run.near)


class _Validation:
    """One pass over a copy of the data, in which each step drops what it finds."""

    def __init__(self, dataset: RetrievalDataset, ignore: set[str]) -> None:
        self.dataset, self.ignore = dataset, ignore
        self.findings: list[Finding] = []
        self.gone: set[str] = set()  # documents that were dropped: what names them does not dangle
        splits = {split: {q: dict(row) for q, row in qrels.items()} for split, qrels in dataset.splits.items()}
        self.clean = replace(
            dataset,
            corpus=dict(dataset.corpus),
            queries=dict(dataset.queries),
            splits=splits,
            negatives={},
            teacher={},
            conflicts=[],
        )
        self.same: dict[str, str] = {}  # document -> the one that shows the same and stays
        self.near: list[str] = []
        self.asked: dict[str, str] = {}  # query -> the one of the same words that stays

    def report(self, kind: str, ids: Iterable[str], where: str = "") -> None:
        unique = list(dict.fromkeys(ids))
        if unique and kind not in self.ignore:
            self.findings.append(Finding(kind, unique, where))

    def documents(self, images: bool, jobs: int, progress: Progress) -> None:
        corpus = self.clean.corpus
        empty = [d for d in corpus.values() if d.image is None and not (d.text or "").strip()]
        broken: dict[str, str] = {}
        first: dict[int, str] = {}
        blank = {d.id for d in empty}
        looked = [d for d in corpus.values() if d.id not in blank and (images or d.image is None)]
        for document, found in _hashes(looked, jobs, progress):
            if isinstance(found, str):
                broken[document.id] = found
            elif first.setdefault(found, document.id) != document.id:
                self.same[document.id] = first[found]
        self.report("image", (f"{name(corpus[d])}: {why}" for d, why in broken.items()))
        self.report("empty-document", map(name, empty))
        self.report("duplicate", (f"{name(corpus[d])} = {name(corpus[one])}" for d, one in self.same.items()))
        self.same = {} if "duplicate" in self.ignore else self.same
        dropped = {"image": broken.keys(), "empty-document": blank, "duplicate": self.same.keys()}
        self.gone = {d for kind, ids in dropped.items() if kind not in self.ignore for d in ids}
        for gone in self.gone:
            del corpus[gone]

    def queries(self) -> None:
        empty = [q for q, text in self.clean.queries.items() if not text.strip()]
        self.report("empty-query", empty)
        for query in empty if "empty-query" not in self.ignore else ():
            del self.clean.queries[query]
        for qrels in self.clean.splits.values():
            first: dict[str, str] = {}
            for query in qrels:
                words, stays = plain(self.clean.queries.get(query, "")), _last(self.asked, query)
                if words and (one := first.setdefault(words, stays)) != stays:
                    self.asked[stays] = one
        self.asked = {query: _last(self.asked, query) for query in self.asked}
        self.report("duplicate-query", (f"{query} = {one}" for query, one in self.asked.items()))
        self.asked = {} if "duplicate-query" in self.ignore else self.asked
        for query, one in self.asked.items():
            for qrels in self.clean.splits.values():
                for document, grade in qrels.pop(query, {}).items():
                    row = qrels.setdefault(one, {})
                    row[document] = max(grade, row.get(document, grade))
            del self.clean.queries[query]

    def judgements(self) -> None:
        queries, documents = set[str](), set[str]()
        for qrels in self.clean.splits.values():
            for query, judged in list(qrels.items()):
                if query not in self.clean.queries:
                    queries |= {query} - self.dataset.queries.keys()
                    if query in self.dataset.queries or "query-id" not in self.ignore:
                        del qrels[query]
                    continue
                kept: dict[str, int] = {}
                for document, grade in judged.items():
                    stays = self.same.get(document, document)
                    documents |= {stays} - self.dataset.corpus.keys()
                    if self._stays(stays, "corpus-id"):
                        kept[stays] = max(grade, kept.get(stays, grade))
                qrels[query] = kept
        self.report("query-id", sorted(queries))
        self.report("corpus-id", sorted(documents))

    def near_copies(self, merge: bool) -> None:
        """Count near copies within and between splits; merge: make those of answers answers of the same query."""
        large = sum(len(d.text or "") for d in self.clean.corpus.values())
        if large > MOST_TEXT:
            self.near = [f"not looked for: {large:,} characters of text do not fit the memory ({MOST_TEXT:,} do)"]
            return
        texts = ((d.id, d.text or "") for d in self.clean.corpus.values())
        groups = near_groups(texts, name=self.dataset.name, total=len(self.clean.corpus))
        self.near = near_lines(groups, self.clean.splits)
        group = {document: members for members in groups.ids for document in members}
        added = list[str]()
        for qrels in self.clean.splits.values() if merge and "near-duplicate" not in self.ignore else ():
            for query, judged in qrels.items():
                for document, grade in [(d, g) for d, g in judged.items() if g > 0 and d in group]:
                    new = [d for d in group[document] if judged.get(d, 0) < grade]
                    added += [f"{query} -> {name(self.clean.corpus[d])} ~ {document}" for d in new if d not in judged]
                    judged.update(dict.fromkeys(new, grade))
        self.report("near-duplicate", added)

    def _stays(self, document: str, kind: str) -> bool:
        """Return whether what names this document stays."""
        return document in self.clean.corpus or (document not in self.gone and kind in self.ignore)

    def negatives(self) -> None:
        lost, relevant = list[str](), list[str]()
        for query, mined in self.dataset.negatives.items():
            if query not in self.dataset.queries:
                lost.append(query)
            query = self.asked.get(query, query)
            if query not in self.clean.queries or self.clean.negatives.get(query):
                continue
            positives = {d for qrels in self.clean.splits.values() for d, g in qrels.get(query, {}).items() if g > 0}
            lost += [f"{query} -> {d}" for d in mined.documents if d not in self.dataset.corpus]
            mined = _moved(mined, self.same).filter(lambda d: self._stays(d, "negative-id"))
            relevant += [f"{query} -> {d}" for d in mined.documents if d in positives]
            if "negative-relevant" not in self.ignore:
                mined = mined.filter(lambda d, positives=positives: d not in positives)  # type: ignore[misc]
            self.clean.negatives[query] = mined
        self.report("negative-id", lost)
        self.report("negative-relevant", relevant)

    def teacher(self) -> None:
        lost: list[str] = []
        for query, scores in self.dataset.teacher.items():
            if query not in self.dataset.queries:
                lost.append(query)
            query = self.asked.get(query, query)
            if query in self.clean.queries:
                lost += [f"{query} -> {d}" for d in scores if d not in self.dataset.corpus]
                moved = {self.same.get(d, d): s for d, s in reversed(scores.items())}  # the first score of two stays
                kept = {d: s for d, s in moved.items() if self._stays(d, "teacher-id")}
                self.clean.teacher[query] = kept | self.clean.teacher.get(query, {})
        self.report("teacher-id", lost)

    def unanswered(self) -> None:
        for split, qrels in self.clean.splits.items():
            found = [q for q, judged in qrels.items() if not any(grade > 0 for grade in judged.values())]
            self.report("unanswered", found, split)
            if "unanswered" not in self.ignore:
                self._remove(split, found)

    def leaks(self, similar: float) -> None:
        """Find leaks of each split into those that are kept before it, which are clean by then."""
        order = sorted(self.clean.splits, key=_order)
        for place, split in enumerate(order):
            leaving: set[str] = set()
            for other in order[:place]:
                if _order(other) == _order(split):
                    continue
                for kind, found in self._shared(self.clean.splits[split], self.clean.splits[other], similar).items():
                    self.report(kind, found.values(), f"{split} and {other}")
                    leaving |= found.keys() if kind not in self.ignore else set()
            self._remove(split, leaving)

    def _shared(self, qrels: Qrels, later: Qrels, similar: float) -> dict[str, dict[str, str]]:
        """kind -> query -> what to report of it."""
        texts, corpus = self.clean.queries, self.clean.corpus
        mine, others = ({q: texts[q] for q in part if q in texts} for part in (qrels, later))
        near = {} if "leak-query" in self.ignore else near_duplicates(mine, others, similar)
        pages = {d for judged in later.values() for d, grade in judged.items() if grade > 0}
        files = {corpus[d].file for d in pages if d in corpus} - {None}
        found: dict[str, dict[str, str]] = {"leak-query": {q: f"{q} ~ {other}" for q, other in near.items()}}
        found |= {"leak-page": {}, "leak-file": {}}
        for query, judged in qrels.items():
            positives = [d for d, grade in judged.items() if grade > 0]
            page = next((d for d in positives if d in pages), None)
            file = next((corpus[d].file for d in positives if d in corpus and corpus[d].file in files), None)
            if page is not None:
                found["leak-page"][query] = f"{query} -> {name(corpus[page]) if page in corpus else page}"
            elif file is not None:
                found["leak-file"][query] = f"{query} -> {file}"
        return found

    def _remove(self, split: str, queries: Iterable[str]) -> None:
        """Remove queries from a split, and from the data where no split is left that judges them."""
        for query in queries:
            del self.clean.splits[split][query]
            if not any(query in qrels for qrels in self.clean.splits.values()):
                for part in (self.clean.queries, self.clean.negatives, self.clean.teacher):
                    part.pop(query, None)


def near_lines(groups: NearGroups, splits: dict[str, Qrels]) -> list[str]:
    """Return how many documents are near copies, among all and among the answers of a split and of two splits."""
    if not groups.ids:
        return []
    lines = [
        f"{sum(map(len, groups.ids)):,} of {groups.compared:,} documents of {LEAST_WORDS} words or more are near "
        f"copies, in {len(groups.ids):,} groups, the largest of {max(map(len, groups.ids)):,}{_two(groups.ids)}"
    ]
    number = {document: place for place, members in enumerate(groups.ids) for document in members}
    answers: dict[str, dict[int, list[str]]] = {}
    for split, qrels in splits.items():
        own = answers.setdefault(split, {})
        for document in dict.fromkeys(d for judged in qrels.values() for d, grade in judged.items() if grade > 0):
            if document in number:
                own.setdefault(number[document], []).append(document)
        several = [members for members in own.values() if len(members) > 1]
        if several:
            lines.append(f"{sum(map(len, several)):,} answers of {split} are near copies of another{_two(several)}")
    for one, other in combinations(sorted(splits, key=_order), 2):
        both = [
            (document, next(d for d in answers[other][place] if d != document))
            for place, members in answers[one].items()
            for document in members
            if any(d != document for d in answers[other].get(place, ()))
        ]
        if both:
            lines.append(f"{len(both):,} answers of {one} have a near copy among the answers of {other}{_two(both)}")
    return lines


def _two(groups: Sequence[Sequence[str]]) -> str:
    return ": " + "; ".join(" ~ ".join(group[:2]) for group in groups[:2])


def name(document: Document) -> str:
    """Return a document's id with its file and page, for a message."""
    page = f", page {document.page}" if document.page is not None else ""
    return document.id if document.file is None else f"{document.id} ({document.file}{page})"


def _last(moved: dict[Any, Any], one: Any) -> Any:
    """Return what stays in place of one: what stays in one split may be a copy in another."""
    while one in moved:
        one = moved[one]
    return one


def _order(split: str) -> int:
    """Test, then dev, then any other: of two splits that share something, the first keeps it."""
    return 0 if split in TEST_SPLITS else 1 if split in DEV_SPLITS else 2


def _moved(mined: HardNegatives, same: dict[str, str]) -> HardNegatives:
    """With documents that stay in place of those that show the same, each once."""
    moved = [same.get(d, d) for d in mined.documents]
    first = sorted({d: place for place, d in reversed(list(enumerate(moved)))}.values())
    scores = tuple(mined.scores[i] for i in first) if mined.scores else ()
    return replace(mined, documents=tuple(moved[i] for i in first), scores=scores)


def _hashes(documents: list[Document], jobs: int, progress: Progress) -> Iterator[tuple[Document, int | str]]:
    """(document, hash of what it shows, or why that cannot be decoded), in order; a bounded number at once."""

    def look(document: Document) -> int | str:
        try:
            return content_hash(document.content())
        except DataError as error:
            return str(error.__cause__ or error)

    shown = iter(progress(documents, len(documents)))
    with ThreadPoolExecutor(jobs) as pool:  # PIL and the hash release the lock while they work
        waiting = [(d, pool.submit(look, d)) for d in islice(shown, 2 * jobs)]
        while waiting:
            document, future = waiting.pop(0)
            yield document, future.result()
            waiting += [(d, pool.submit(look, d)) for d in islice(shown, 1)]


def _sizes(dataset: RetrievalDataset) -> dict[str, int]:
    sizes = {"documents": len(dataset.corpus), "queries": len(dataset.queries)}
    sizes |= {f"{split} queries": len(qrels) for split, qrels in dataset.splits.items()}
    sizes["judgements"] = sum(len(judged) for qrels in dataset.splits.values() for judged in qrels.values())
    sizes["negatives"] = sum(len(mined.documents) for mined in dataset.negatives.values())
    sizes["scores"] = sum(map(len, dataset.teacher.values()))
    return sizes
