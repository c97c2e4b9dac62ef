"""Parse the rows of a table with a query and its document in each row: which column holds what, what a row says.

Rows are parsed one by one, so that a table of any size can be read; readers/rows.py makes a collection of them in
memory, readers/row_cache.py one on disk.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from smart_train.config.schema import DataBlock
from smart_train.config.typed_values import Problem
from smart_train.core.errors import DataError, Setting
from smart_train.core.modality import text_fault
from smart_train.data.collection import Document, content_id, first_few
from smart_train.data.readers.cells import (
    cell_ids,
    cell_items,
    cell_texts,
    is_empty,
    printed_list,
    question,
    read_grades,
)
from smart_train.data.tables import (
    FILES,
    PAGES,
    Boundary,
    IterableTable,
    MemoryImage,
    StoredImage,
    StoredTable,
    Table,
    TextTable,
    describe_columns,
    find_column,
    id_text,
    plain_name,
    read_image,
    read_page,
    read_score,
    suffix,
)

logger = logging.getLogger(__name__)


QUERIES = ("query", "anchor", "question")  # the first is the default; the others are sentence-transformers' names
CHATS = ("messages", "conversations")  # of ms-swift and OpenAI, of ShareGPT: the user's message is the query
DOCUMENTS = ("positive", "document", "text", "pos", "passage", "answer")
NESTED = ("positives", "positive_passages", "positive_ctxs", "positive_messages", "response")  # in tables of texts
NEGATIVE = re.compile(
    r"(hard-)?neg(ative)?s?(-?\d+)?|negative-(passages|messages)|hard-negative-ctxs|rejected-response"
)  # of a column without case, with - for _
EASY = "negative_ctxs"  # DPR's negatives that are not hard; read where there are no others
LABELS = ("label", "labels", "relevance", "rel", "grade", "score", "similarity", "similarity_score")
SENTENCES = ("premise", "hypothesis")  # of entailment, whose label 0 is the positive one
PROMPTS = ("prompt", "instruction", "query_prompt", "query_instruction", "task")
BY_ID = ("positive_document_ids", "positive_ids", "positive_doc_ids", "pos_ids", "docid", "pid")
DIVIDED = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
BLANK = ("nan", "NaN", "None", "<NA>", "NaT")  # an empty cell, as pandas and Python print it


# Which column holds what ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Columns:
    """The column of each part of a row; None where there is none."""

    query: str
    document: str | None
    image: str | None
    id: str | None
    file: str | None
    page: str | None
    negatives: tuple[str, ...]
    scores: str | None
    source: str | None = None
    label: str | None = None
    more_scores: str | None = None  # of the negatives, where ``scores`` are of the documents alone (FlagEmbedding)

    def names(self) -> list[str]:
        """Return the columns that are read."""
        each = (self.query, self.document, self.image, self.id, self.file, self.page, *self.negatives)
        return list(
            dict.fromkeys(name for name in (*each, self.scores, self.more_scores, self.source, self.label) if name)
        )

    def describe(self, columns: list[str]) -> str:
        """Return what each column was taken for, and which are not read, as one line."""
        parts: dict[str, Any] = {"query": self.query, "document": self.document, "image": self.image, "id": self.id}
        parts |= {"negatives": self.negatives, "label": self.label, "teacher's scores": self.scores}
        parts |= {"teacher's scores of negatives": self.more_scores}
        parts |= {"file": self.file, "page": self.page, "source": self.source}
        line = describe_columns(columns, parts)
        rest = [column for column in columns if column not in self.names()]
        if prompt := find_column(rest, PROMPTS):
            line += f"; a prompt ({prompt}) is not read from rows: write it as model.query_prompt"
        if lost := [c for c in rest if "neg" in plain_name(c) and not self.negatives]:
            line += f"; {', '.join(lost)} may be negatives: call them negatives, or negative_1 ..., to have them read"
        return line


def query_column(columns: list[str], data: DataBlock) -> str:
    """Return ``data.query``; where that is not given, the first usual name that the table has."""
    usual = find_column(columns, (*QUERIES, *CHATS)) if data.query == QUERIES[0] else None
    return data.query if usual is None else usual


def choose_columns(columns: list[str], data: DataBlock) -> tuple[Columns | None, list[Problem]]:
    """Return (columns, []), or (None, problems), each problem with the nearest names."""
    problems: list[Problem] = []
    query = query_column(columns, data)
    named = {"query": query, "document": data.document, "image": data.image, "id": data.id, "scores": data.scores}
    named["source"] = source = data.source if data.source != "file" else None
    named["label"] = data.label
    for key, name in named.items():
        if name and name not in columns:
            near = get_close_matches(name, columns, 1, 0.5)
            what = f"there is no column {name!r} in {data.path}; it has {', '.join(columns) or 'no rows'}"
            problems.append(Problem(f"data.{key}", what, f"write data.{key}: {near[0] if near else 'one of these'}"))
    image = data.image if data.image is not None else find_column(columns, ("image",))
    usual = DOCUMENTS if image else (*DOCUMENTS, *NESTED, *CHATS)  # of a chat, the answer
    document = (
        data.document
        if data.document is not None
        else find_column([c for c in columns if c != query or c in CHATS], usual)
    )
    if not document and not image:
        what = f"no column holds the documents of {data.path} (positive, document, text, image); it has "
        fix = "name the column in data.document"
        if find_column(columns, BY_ID):
            fix = "it names documents of another file: name the folder of both, with the corpus as corpus.jsonl"
        elif query not in columns and Path(data.path).name.lower().endswith(DIVIDED):
            fix += ", or write a first line with the names of the columns where there is none"
        problems.append(Problem("data.document", what + (", ".join(columns) or "no rows"), fix))
    negatives = [c for c in columns if NEGATIVE.fullmatch(plain_name(c))]
    negatives = negatives or [c for c in columns if c == EASY]
    negatives.sort(key=lambda c: (not re.search(r"[-_]\d+$", c), int("0" + "".join(filter(str.isdigit, c)))))
    scores = data.scores if data.scores is not None else find_column(columns, ("scores", "pos_scores"))
    rest = [c for c in columns if c not in (query, document, image, data.id, scores, source)]
    label = data.label if data.label is not None else find_column(rest, LABELS)
    if data.negatives and not negatives and not label:
        what = f"is {data.negatives}, but {data.path} has no column negative, negative_1 ... or negatives"
        problems.append(Problem("data.negatives", what, "write data.negatives: 0, or add such a column"))
    if data.label is None and label and find_column(columns, SENTENCES):
        what = f"{data.path} has {label} beside {' and '.join(SENTENCES)}, in which 0 usually means entailment"
        problems.append(Problem("data.label", what, 'write 1 and 0 into a column and name it, or write data.label: ""'))
    if problems:
        return None, problems
    rest = [c for c in columns if c not in (query, document, image, data.id)]
    file, page = find_column(rest, FILES), find_column(rest, PAGES)
    found = Columns(
        query,
        document or None,
        image or None,
        data.id,
        file,
        page,
        tuple(negatives),
        scores or None,
        source,
        label or None,
        find_column(columns, ("neg_scores",)) if scores and plain_name(scores) == "pos-scores" else None,
    )
    return found, []


# Rows -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ParsedRow:
    """What one row holds: where it is, its query, documents and negatives, a grade for each document (0 = a negative
    of the query), and a score or None for each document and negative; None = the row has no scores.  No query, or no
    documents: the row is to be left out."""

    where: str
    query: str | None
    documents: list[Document]
    negatives: list[Any]  # texts or ids; of rows of a program also documents
    scores: list[float | None] | None
    grades: list[int]


class RowParser:
    """Turn a table's rows into ``ParsedRow``, and count what is left out.  Raises DataError for unclear columns.

    empty: what rows lack -> where; late: columns that appear too late -> where; notes: what else was done -> how often
    """

    def __init__(self, table: Table, data: DataBlock) -> None:
        columns, problems = choose_columns(table.columns, data)
        if columns is None:
            lines = [(Setting(p.key), ": ", p.what, "; ", p.fix) for p in problems]
            raise DataError(*[part for line in lines for part in ("; ", line)][1:])
        self.table, self.columns, self.boundary = table, columns, Boundary.of(data)
        self._known = set(table.columns)
        self.empty: dict[str, list[str]] = {"query": [], "document": [], "label": []}
        self.late: dict[str, str] = {}
        self.notes: Counter[str] = Counter()
        self.is_csv = isinstance(table, TextTable) and any(suffix(file) in (".csv", ".tsv") for file in table.files)
        if columns.label and isinstance(table, StoredTable | IterableTable):
            _check_classes(table, columns.label)

    def rows(self, skip: int = 0) -> Iterator[ParsedRow]:
        """Yield every row, after the first ``skip``.  Raises DataError, naming the row, for what it cannot hold."""
        for where, row in islice(iter(self.table), skip, None):
            yield self.parse(where, row)

    def parse(self, where: str, row: dict[str, Any]) -> ParsedRow:
        """Parse one row.  Raises as ``rows``."""
        if not row.keys() <= self._known:
            self.late.update((name, where) for name in row.keys() - self._known - self.late.keys())
        return self._parsed(self._lists(row, where), where)

    def _parsed(self, row: dict[str, Any], where: str) -> ParsedRow:
        columns = self.columns
        answered = columns.document == columns.query
        texts, answers, told = question(row.get(columns.query), columns.query, where, answered)
        if told:
            self.notes["rows have a system message, which is not read; a prompt is model.query_prompt"] += 1
        if len(texts) > 1:
            raise DataError(f"{where}: {columns.query} holds {len(texts)} texts; a row has one query")
        items = (
            answers
            if answered
            else cell_items(row.get(columns.document), columns.document, where)
            if columns.document
            else []
        )
        documents = list(_documents(row, [text for text in items if text], columns, self.table, where, self.boundary))
        query = texts[0] if texts else None
        if not (texts and documents):
            self.empty["document" if texts else "query"].append(where)
            return ParsedRow(where, query, documents, [], None, [])
        filled = [bool(text) for text in items] if any(items) else [True] * len(documents)
        if columns.more_scores and row.get(str(columns.scores)) is not None:
            parts = (row[str(columns.scores)], row.get(columns.more_scores))
            listed = [list(one) if isinstance(one, list | tuple) else [] if one is None else [one] for one in parts]
            row = row | {str(columns.scores): [*listed[0], *listed[1]]}
        scored = columns.scores and row.get(columns.scores) is not None
        scores = row_scores(row, columns, filled, where) if scored else None
        grades: list[int | None] = [1] * len(documents)
        if columns.label:
            grades = read_grades(row.get(columns.label), filled, columns.label, where)
            if None in grades:
                self.empty["label"].append(where)
                return ParsedRow(where, None, documents, [], None, [])
            self.notes[f"documents have {columns.label} 0, and are negatives of their query"] += grades.count(0)
        cells = cell_ids if columns.id else cell_texts
        negatives = [one for name in columns.negatives for one in cells(row.get(name), name, where)]
        return ParsedRow(where, query, documents, negatives, scores, [grade or 0 for grade in grades])

    def _lists(self, row: dict[str, Any], where: str) -> dict[str, Any]:
        """Return a row with lists and numbers of a teacher in place of their texts, and without cells that say None."""
        columns = self.columns
        numeric = (columns.scores, columns.more_scores, columns.label)
        read = (columns.query, columns.document, *columns.negatives, *numeric)
        row = dict(row)
        for name in dict.fromkeys(read):
            value = row.get(name) if name else None
            if not isinstance(value, str):
                continue
            bare = value.strip()
            if bare in BLANK or (self.is_csv and bare in ("null", "NULL")):
                row[str(name)] = None
                self.notes[f"cells of {name} hold {bare!r}, and are read as empty"] += 1
            found = printed_list(bare, str(name), where) if bare.startswith("[") else None
            if found is None:
                continue
            numbers = name in numeric or (columns.id and name in columns.negatives)
            kinds = (str, int, float, type(None)) if numbers else (str, dict, list, type(None))
            if all(isinstance(one, kinds) for one in found):
                row[str(name)] = found
                self.notes[f"cells of {name} hold a list as text, and are read as lists"] += 1
        for name in (columns.scores, columns.more_scores):
            if name and isinstance(row.get(name), str):
                row[name] = _number(row[name])
        return row

    def report(self, name: str) -> None:
        """Log what was left out, and what else was done."""
        for what, places in self.empty.items():
            if places:
                logger.warning("%s: %d rows without a %s are left out: %s", name, len(places), what, first_few(places))
        for line in self.lines():
            logger.info("%s: %s", name, line)
        if self.late:
            what = "columns first appear after the rows that the columns are taken from, and are not read"
            first = [f"{column} ({where})" for column, where in sorted(self.late.items())]
            fix = "give the first row every column"
            logger.warning("%s: %d %s; %s: %s", name, len(self.late), what, fix, first_few(first))

    def nothing(self) -> str:
        """Return what to say of a table without a pair."""
        label = f" with a {self.columns.label} above 0" if self.columns.label else ""
        return f"no row has a query and a document{label}"

    def lines(self) -> list[str]:
        """Return what was taken for what, and how often something was done about it."""
        done = [f"{count} {what}" for what, count in self.notes.items() if count]
        return [self.columns.describe(self.table.columns), *done]


def two_contents(where: str, id: str) -> DataError:
    """Return the error of an id that is there again with another content."""
    return DataError(
        f"{where}: the id {id!r} is there before, with another content. Leave data.id empty (the "
        "id is then a hash of the content), or name a column that is unique per document"
    )


def _number(text: str) -> Any:
    """Return the number that a text is, None for a blank, and the text itself where it is none."""
    try:
        return float(text) if text.strip() else None
    except ValueError:
        return text


def _check_classes(table: StoredTable | IterableTable, column: str) -> None:
    """Raise DataError for classes whose names do not say that the first one is the negative."""
    names = getattr((table.dataset.features or {}).get(column), "names", None) or []
    plain = all(name.isdigit() for name in names)
    negative = len(names) == 2 and re.match(r"(no|neg|non|un|ir|false|dis)", names[0].lower())
    if names and not plain and not negative:
        what = f"{table.name}: {column} has the classes {', '.join(names)}, and it is not clear which are relevant; "
        ignore = (Setting("data.label", '""'), " to take every row for a positive")
        raise DataError(what, "write 1 (relevant) and 0 (a negative), or ", *ignore)


def row_scores(row: dict[str, Any], columns: Columns, filled: list[bool], where: str) -> list[float | None]:
    """Return one score, or None, for each of the row's documents and then its negatives, empty cells left out.

    filled: whether each document's cell holds something
    The list may also count the empty cells (rows padded to equal numbers of negatives); a number stands for a list
    of one.  Raises DataError for any other length, and for what is no finite number.
    """
    name = str(columns.scores)
    value = row[name]
    given = list(value) if isinstance(value, list | tuple) else [value]
    if any(isinstance(score, str | list | dict) for score in given):
        fix = 'correct it, or write data.scores: "" to ignore the column'
        raise DataError(f"{where}: {name} must be a list of numbers, got {str(value)[:40]!r}; {fix}")
    scores = [None if score is None else read_score(score, f"{where}: {name}") for score in given]
    documents = sum(filled)
    cells = filled + [there for negatives in columns.negatives for there in _cells(row, columns, negatives, where)]
    if len(scores) == len(cells):
        return [score for score, filled in zip(scores, cells, strict=True) if filled]
    if len(scores) != sum(cells):
        what = f"{name} has {len(scores)} values, but the row has {documents} documents and {sum(cells) - documents}"
        raise DataError(f"{where}: {what} negatives; give one for each of these, in this order")
    return scores


def _cells(row: dict[str, Any], columns: Columns, name: str, where: str) -> list[bool]:
    """Return whether each value of a cell of negatives holds something; a cell without a list is one value."""
    value = row.get(name)
    if columns.id:
        return [not is_empty(one) for one in (value if isinstance(value, list | tuple) else [value])]
    return [bool(text) for text in cell_items(value, name, where)]


def _documents(
    row: dict[str, Any], texts: list[str], columns: Columns, table: Table, where: str, boundary: Boundary
) -> Iterable[Document]:
    for one in filter(None, (columns.image, columns.id, columns.file, columns.source)):
        if isinstance(row.get(one), str) and (fault := text_fault(row[one])):
            raise DataError(f"{where}: {one} has {fault}; remove it")
    image = read_image(row.get(columns.image) if columns.image else None, table, where, boundary)
    given = row.get(columns.id) if columns.id else None
    name = id_text(given)
    if columns.id and name is None:
        if not is_empty(given):
            raise DataError(f"{where}: {columns.id} is {str(given)[:40]!r}; an id is a text or a whole number")
        raise DataError(f"{where}: {columns.id} is empty; a row needs an id, or leave data.id empty")
    if len(texts) > 1 and (image is not None or name is not None):
        raise DataError(f"{where}: {len(texts)} documents share one {'id' if image is None else 'image'}; one a row")
    file = row.get(columns.file) if columns.file else None
    page = read_page(row.get(columns.page)) if columns.page else None
    source = row.get(columns.source) if columns.source else None
    contents: list[str | None] = [*texts] if texts or image is None else [None]
    for text in contents:
        key = name if name is not None else document_id(text, image)
        yield Document(key, text, image, _name(file), page, source=_name(source))


def _name(value: Any) -> str | None:
    return None if value in (None, "") else str(value)


def document_id(text: str | None, image: Any) -> str:
    if image is None:
        return content_id("text", text or "")
    own = isinstance(image, StoredImage | MemoryImage)
    key = image.content_id() if own else content_id("image", Path(image).read_bytes())
    return key if text is None else content_id("page", f"{key}\n{text}")
