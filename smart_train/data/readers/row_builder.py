"""Merge parsed rows into a collection: equal texts are one query or one document, negatives become documents."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from smart_train.core.errors import DataError
from smart_train.data.collection import Collection, Document, content_id, first_few
from smart_train.data.readers.row_parser import Columns, ParsedRow, document_id, two_contents
from smart_train.data.tables import Ids

UNKNOWN = "negatives name no document that was read and are left out"


@dataclass
class RowBuilder:
    """Rows merged into a collection: the same query text is one query, the same id or content one document.

    Without ``data.id`` negatives are texts.  With it they are ids, unless none of them is the id of a document and
    some of them are texts: of several words, or the text of a document.
    """

    table: str  # its name, for messages
    columns: Columns
    corpus: dict[str, Document] = field(default_factory=dict)
    queries: dict[str, str] = field(default_factory=dict)
    qrels: dict[str, dict[str, int]] = field(default_factory=dict)
    negatives: dict[str, dict[str | Document, None]] = field(default_factory=dict)  # texts or ids; unique, in order
    teacher: dict[str, dict[str, float]] = field(default_factory=dict)  # of documents by id
    scored: dict[str, list[tuple[str | Document, float | None]]] = field(default_factory=dict)  # of negatives, in order
    rescored: Counter[str] = field(default_factory=Counter)  # query -> how many of its scores came after another one
    spare: dict[str, Document] = field(default_factory=dict)  # documents of no pair, which negatives may name
    seen: dict[str, Document] = field(default_factory=dict)  # of rows with a query, by their own ids
    by_text: dict[str, str] = field(default_factory=dict)
    pairs: int = 0
    warnings: list[str] = field(default_factory=list)  # of ``finish``: what was left out

    def add(self, row: ParsedRow) -> None:
        documents = row.documents
        if row.query is None or not documents:
            self.keep(documents)
            return
        key = content_id("query", row.query)
        self.queries[key] = row.query
        judged, negatives = self.qrels.setdefault(key, {}), self.negatives.setdefault(key, {})
        for document, grade in zip(documents, row.grades, strict=True):
            self._check_same(document, row.where)
            if not grade:
                negatives[document] = None
                self.keep([document])
                continue
            self.corpus.setdefault(document.id, document)
            if document.text and document.image is None:
                self.by_text.setdefault(document.text, document.id)
            self.pairs += document.id not in judged
            judged[document.id] = max(grade, judged.get(document.id, 0))
        negatives.update(dict.fromkeys(row.negatives))
        if row.scores is not None:
            self.teacher.setdefault(key, {})
            later = self.scored.setdefault(key, [])
            for document, grade, score in zip(documents, row.grades, row.scores, strict=False):
                if grade:
                    self._score(key, document.id, score)
                else:
                    later.append((document, score))
            later += zip(row.negatives, row.scores[len(documents) :], strict=True)

    def keep(self, documents: list[Document]) -> None:
        """Remember documents without a query, which a negative may name by their id."""
        if self.columns.id:
            for document in documents:
                self.spare.setdefault(document.id, document)

    def _check_same(self, document: Document, where: str) -> None:
        before = self.seen.setdefault(document.id, document) if self.columns.id else document
        if before is not document and not _same(before, document):
            raise two_contents(where, document.id)

    def _score(self, query: str, name: str, value: float | None) -> None:
        if value is not None:
            before = self.teacher[query]
            self.rescored[query] += before.get(name, value) != value
            before[name] = value

    def _named(self) -> set[str]:
        return {value for row in self.negatives.values() for value in row if isinstance(value, str)}

    def unknown(self) -> bool:
        """Return whether there are negatives that are ids, as it seems, and no document that was read has one."""
        if not self.columns.id:
            return False
        known = Ids({**self.spare, **self.corpus})
        return any(known.find(value) is None and value not in self.by_text for value in self._named())

    def _negatives_are_ids(self) -> bool:
        if not self.columns.id:
            return False
        known, named = Ids({**self.spare, **self.corpus}), self._named()
        if any(known.find(value) is not None for value in named):
            return True
        return not any(value in self.by_text or len(value.split()) > 1 for value in named)

    def finish(self, name: str) -> Collection:
        """Return the collection, with negatives as documents: an id is that document; a text that some row's document
        has is that document; any other text is a document of its own."""
        lists: dict[str, list[str]] = {}
        unknown: list[str] = []
        relevant: set[tuple[str, str]] = set()
        known = Ids({**self.spare, **self.corpus}) if self._negatives_are_ids() else None
        for query, values in self.negatives.items():
            keys = {value: self._negative(value, known) for value in values}
            for value, score in self.scored.get(query, ()):
                if (named := keys[value]) is not None:
                    self._score(query, named, score)
            for value, key in keys.items():
                if key is None:
                    unknown.append(str(value))
                    continue
                if key in self.qrels[query]:
                    relevant.add((query, key))
                elif key not in (found := lists.setdefault(query, [])):
                    found.append(key)
        if unknown:
            if not lists:
                fix = "name the column that they are ids of in data.id, or leave it empty where they are texts"
                raise DataError(f"{self.table}: all {len(unknown)} {UNKNOWN}: {first_few(unknown)}; {fix}")
            self.warnings.append(f"{len(unknown)} {UNKNOWN}: {first_few(unknown)}")
        if relevant:
            what = "negatives are also positives of their query, and are left out of its negatives"
            self.warnings.append(f"{len(relevant)} {what}")
        alone = [query for query, judged in self.qrels.items() if not judged]
        for query in alone:
            for part in (self.queries, self.qrels, lists, self.teacher):
                part.pop(query, None)
        rescored = sum(count for query, count in self.rescored.items() if query in self.queries)
        if rescored:
            self.warnings.append(f"{rescored} pairs have two scores in {self.columns.scores}; the last counts")
        if alone:
            what = f"queries have no document with a {self.columns.label} above 0 and are left out"
            self.warnings.append(f"{len(alone)} {what}")
        return Collection(
            name, self.corpus, self.queries, self.qrels, lists, {q: s for q, s in self.teacher.items() if s}
        )

    def _negative(self, value: str | Document, known: Ids | None) -> str | None:
        if isinstance(value, Document):
            return self.corpus.setdefault(value.id, value).id
        id = known.find(value) if known else None
        if id is not None:
            self.corpus.setdefault(id, self.spare.get(id) or self.corpus[id])
            return id
        if known and value not in self.by_text:
            return None
        key = self.by_text.setdefault(value, content_id("text", value))
        self.corpus.setdefault(key, Document(key, value))
        return key


def _same(first: Document, second: Document) -> bool:
    """The same content; images are compared by their bytes, which are read only here, where an id comes again."""
    if first.text != second.text or (first.image is None) != (second.image is None):
        return False
    return first.image is None or document_id(None, first.image) == document_id(None, second.image)
