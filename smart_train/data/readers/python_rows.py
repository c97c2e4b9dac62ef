"""Read rows that a Python program holds: a datasets.Dataset, a pandas table, a list of dicts, or several by name.

The columns mean what they mean in files (readers/row_parser.py), and a row may hold pictures.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError, UsageError
from smart_train.core.modality import text_fault
from smart_train.data.collection import DEV_SPLITS, TEST_SPLITS, Collection, Document
from smart_train.data.readers import row_cache
from smart_train.data.readers.row_parser import (
    DOCUMENTS,
    LABELS,
    NEGATIVE,
    QUERIES,
    ParsedRow,
    RowParser,
    choose_columns,
    document_id,
)
from smart_train.data.readers.rows import read_rows
from smart_train.data.tables import Boundary, MemoryTable, StoredTable, is_picture, plain_name, read_image

logger = logging.getLogger(__name__)

COLUMNS = ("query", "document", "image", "id", "scores", "label")
"""Keys of ``columns``: the keys of a recipe's block ``data`` that name a column."""

COUNTED = 1000  # rows that are looked at for the number of negatives of a row
KINDS = "a Collection, a datasets.Dataset, a pandas table, a list of dicts, or a dict of these by name"
_IDS = ("id", "idx", "query_id", "document_id")  # no texts, whatever their place


@dataclass
class NamedRows:
    """What a program gave as data, as one collection.

    collection: all of it
    negatives: how many negatives a row has, the most of the first 1,000 rows; 0 for a Collection
    sources: name -> places in ``collection.pairs()``, where several data sets were given; else {}
    """

    collection: Collection
    negatives: int
    sources: dict[str, list[int]] = field(default_factory=dict)


def read_named(data: Any, name: str, columns: Mapping[str, str] | None = None) -> dict[str, tuple[Collection, int]]:
    """Return name -> what ``to_collection`` returns, of each data set of a dict; "" names one that stands alone.

    Raises DataError as ``to_collection``, and for a DatasetDict of train and test splits.
    """
    if not isinstance(data, Mapping):
        return {"": to_collection(data, name, columns)}
    if not data:
        raise DataError(f"{name} is an empty {type(data).__name__}; give {KINDS}")
    splits = [key for key in data if key in ("train", *DEV_SPLITS, *TEST_SPLITS)]
    if "train" in splits and len(data) > 1:
        what = f"{name} has the splits {', '.join(map(str, data))}, and one of them is not to be mixed with another"
        raise DataError(f"{what}; give train_dataset=data['train'] and eval_dataset=data[...]")
    wrong = next((key for key in data if not isinstance(key, str) or not key or "/" in key), None)
    if wrong is not None:
        raise DataError(f"{name}: {wrong!r} cannot name a data set; choose a word without a slash")
    return {key: to_collection(one, f"{name}[{key!r}]", columns) for key, one in data.items()}


def read_together(data: Any, name: str, columns: Mapping[str, str] | None = None) -> NamedRows:
    """Return the data as one collection; a dict of data sets becomes one, in which equal texts are one document.

    Ids of a Collection that stands in a dict get its name before them, since two may use one id for different things.
    Raises DataError as ``read_named``.

    >>> both = read_together({"a": [{"query": "q", "positive": "p"}], "b": [{"query": "q", "positive": "x"}]}, "rows")
    >>> both.sources, len(both.collection.queries)
    ({'a': [0], 'b': [1]}, 1)
    """
    parts = read_named(data, name, columns)
    negatives = max(count for _, count in parts.values())
    if len(parts) == 1:
        return NamedRows(*next(iter(parts.values())))
    merged = Collection(name, {}, {}, {})
    origin: dict[tuple[str, str], str] = {}
    for key, (part, _) in parts.items():
        own = f"{key}/" if isinstance(data[key], Collection) else ""
        merged.corpus.update({own + id: replace(one, id=own + id) if own else one for id, one in part.corpus.items()})
        merged.queries.update({own + id: text for id, text in part.queries.items()})
        for query, judged in part.qrels.items():
            into = merged.qrels.setdefault(own + query, {})
            for document, grade in judged.items():
                into[own + document] = max(grade, into.get(own + document, 0))
                origin.setdefault((own + query, own + document), key)
        for query, listed in part.negatives.items():
            before = merged.negatives.setdefault(own + query, [])
            before += [one for one in (own + document for document in listed) if one not in before]
        for query, scores in part.teacher.items():
            merged.teacher.setdefault(own + query, {}).update({own + one: value for one, value in scores.items()})
    for query, listed in merged.negatives.items():  # the positive of another data set is no negative
        merged.negatives[query] = [one for one in listed if not merged.qrels.get(query, {}).get(one, 0) > 0]
    twice = sum(len(part.pairs()) for part, _ in parts.values()) - len(origin)
    if twice:
        logger.info("%s: %d pairs are in several of the data sets, and count for the first that has them", name, twice)
    sources: dict[str, list[int]] = {key: [] for key in parts}
    for place, pair in enumerate(merged.pairs()):
        sources[origin[pair]].append(place)
    return NamedRows(merged, negatives, {key: places for key, places in sources.items() if places})


def as_collection(data: Any, columns: Mapping[str, str] | None = None, name: str = "data") -> Collection:
    """Return data in any form that ``SmartTrainer`` takes as a Collection; see ``to_collection``.

    >>> as_collection([{"query": "what is a zebra", "positive": "a striped animal"}]).count_pages()
    0
    """
    if isinstance(data, Collection) or all(hasattr(data, part) for part in ("corpus", "queries", "qrels")):
        return data  # a collection of a class of one's own is read as it is
    return read_together(data, name, columns).collection


def to_collection(data: Any, name: str, columns: Mapping[str, str] | None = None) -> tuple[Collection, int]:
    """Return a Collection (the one given, or one made of rows), and how many negatives a row has.

    Rows are a ``datasets.Dataset``, a ``pandas.DataFrame`` or a list of dicts. Their columns are found by name (query
    or anchor, positive or document, negative, negative_1 ..., label or score, scores), else by position (query,
    positive, negatives ...), as sentence-transformers reads them; the log says what was taken for what. A cell of a
    negative column may be a list. Documents may be pictures: PIL images, ``pathlib.Path`` of images, or
    ``{"text": ..., "image": ...}``. Equal texts are one query, or one document. Large data sets are converted to files
    once, and not held in memory.

    columns: names of columns where they are not clear: keys of COLUMNS -> column; "" for none

    Raises:
        DataError: the columns do not say which text is which, or a cell holds something else.
        UsageError: ``columns`` has another key.

    >>> rows = [{"anchor": "a query", "positive": "a passage", "negative": "another"}]
    >>> collection, negatives = to_collection(rows, "pairs")
    >>> len(collection.queries), len(collection.corpus), negatives
    (1, 2, 1)
    """
    if isinstance(data, Collection):
        return data, 0
    given = dict(columns or {})
    wrong = [key for key in given if key not in COLUMNS]
    if wrong:
        raise UsageError(f"columns has {wrong[0]!r}; its keys are {', '.join(COLUMNS)}")
    table = _table(data, name)
    try:
        block, renamed = place_columns(table.columns, name, given)
        table = table.renamed(renamed) if renamed else table
        parser = ContentParser(table, block)
        negatives = max((_negatives(row) for row in islice(parser.rows(), COUNTED)), default=0)
        if not isinstance(table, StoredTable):
            return read_rows(table, block, name, parser=ContentParser(table, block)), negatives
        stored = row_cache.read(table, block, name)
        if stored is None:
            return read_rows(table, block, name, parser=ContentParser(table, block)), negatives
        return stored, negatives
    except DataError as error:
        raise DataError(_in_python(str(error))) from error


def place_columns(columns: list[str], name: str, given: Mapping[str, str]) -> tuple[DataBlock, dict[str, str]]:
    """Return (which column is what, column -> new name of negatives that are found by their place).

    Raises DataError where the columns do not say which text is which.

    >>> place_columns(["question", "answer", "label"], "rows", {})[1]
    {}
    >>> block, renamed = place_columns(["a", "b", "c", "d"], "rows", {})
    >>> block.query, block.document, renamed
    ('a', 'b', {'c': 'negative_1', 'd': 'negative_2'})
    """
    block = DataBlock(path=name, **given)  # type: ignore[arg-type]
    named = [[c for c in columns if c in names] for names in (QUERIES, DOCUMENTS)]
    found, problems = choose_columns(columns, block)
    if given or (found and not set(columns) - set(found.names())):
        if problems:
            raise DataError("; ".join(f"{p.key}: {p.what}; {p.fix}" for p in problems))
        return block, {}
    texts = [c for c in columns if c not in (*LABELS, "scores")]
    by_place = len(texts) > 1 and not (named[0] and named[1]) and not set(texts) & {"image", *_IDS}
    for place, column in enumerate(texts):
        kinds = (column in QUERIES, column in DOCUMENTS, bool(NEGATIVE.fullmatch(plain_name(column))))
        by_place = by_place and (not any(kinds) or kinds[min(place, 2)])
    if not by_place:
        raise DataError(
            f"{name} has {', '.join(columns) or 'no columns'}, and it is not clear which column is what; rename or "
            f"remove columns so that they are {QUERIES[0]} or {QUERIES[1]}, {DOCUMENTS[0]} or {DOCUMENTS[1]}, and "
            'negative, negative_1 ..., or name them: columns={"query": ..., "document": ...}'
        )
    block = replace(block, query=texts[0], document=texts[1])
    _, problems = choose_columns(columns, block)
    if problems:
        raise DataError("; ".join(f"{p.key}: {p.what}; {p.fix}" for p in problems))
    rest = [c for c in texts[2:] if not NEGATIVE.fullmatch(plain_name(c))]
    return block, {column: f"negative_{place}" for place, column in enumerate(rest, 1)}


class ContentParser(RowParser):
    """Also read pictures where a text may stand: PIL images, paths, ``{"text": ..., "image": ...}``.

    They pass through ``RowParser`` as a text of their own, which is then replaced by the document.
    """

    def __init__(self, table: Any, data: DataBlock) -> None:
        super().__init__(table, data)
        self.boundary = Boundary.of(DataBlock(path="."))  # for paths that are texts, which may have come with the data

    def _parsed(self, row: dict[str, Any], where: str) -> ParsedRow:
        columns, pictures, row = self.columns, dict[str, Document](), dict(row)
        for name in filter(None, (columns.document, *columns.negatives)):
            cell = row.get(name)
            if isinstance(cell, list | tuple):
                row[name] = [self._token(one, f"{where}: {name}", pictures) for one in cell]
            else:
                row[name] = self._token(cell, f"{where}: {name}", pictures)
        parsed = super()._parsed(row, where)
        if not pictures:
            return parsed
        documents = []
        for one in parsed.documents:
            shown = pictures.get(one.text or "")
            id = one.id if columns.id or shown is None else shown.id
            documents.append(one if shown is None else replace(one, id=id, text=shown.text, image=shown.image))
        return replace(parsed, documents=documents, negatives=[pictures.get(str(n), n) for n in parsed.negatives])

    def _token(self, cell: Any, where: str, pictures: dict[str, Document]) -> Any:
        """Return the cell, or a text that stands for the picture in it."""
        both = isinstance(cell, dict) and "image" in cell
        text, image = (cell.get("text"), cell["image"]) if both else (None, cell)
        if both and image is None:
            return text
        if not both and not is_picture(cell):
            return cell
        if text is not None and (not isinstance(text, str) or text_fault(text)):
            raise DataError(f"{where}: its text is {text!r:.60}; give a text that can be read, or none")
        shown = read_image(image, self.table, where, self.boundary)
        if shown is None:
            return text
        document = Document(document_id(text or None, shown), text or None, shown)
        token = f"\ufffc{document.id}"
        pictures[token] = document
        return token


def _negatives(row: ParsedRow) -> int:
    return len(row.negatives) + row.grades.count(0)


def _table(data: Any, name: str) -> Any:
    """Return the rows as a table. Raises DataError for anything that has no rows."""
    kind = type(data).__name__
    if kind in ("IterableDataset", "IterableDatasetDict"):
        fix = "give a part that is read at once: datasets.Dataset.from_list(list(data.take(100_000)))"
        raise DataError(f"{name} is an {kind}, whose rows come one after another; {fix}")
    if hasattr(data, "features") and hasattr(data, "column_names") and hasattr(data, "select_columns"):
        if data.format["type"] == "custom":  # its columns are those that a function makes of the stored ones
            return _memory(_Transformed(data), name, list(data[0]) if len(data) else [])
        return StoredTable(data.with_format(None), name)
    if hasattr(data, "iloc") and hasattr(data, "to_dict") and hasattr(data, "columns"):
        twice = list(data.columns[data.columns.duplicated()])
        if twice:
            raise DataError(f"{name} has the column {twice[0]!r} twice; give each a name of its own")
        return _memory(data.to_dict("records"), name, [*data.columns])
    if isinstance(data, str | bytes | Path) or not isinstance(data, Sequence):
        more = "; read a file with datasets.load_dataset" if isinstance(data, str | Path) else ""
        raise DataError(f"{name} is a {kind}; give {KINDS}{more}")
    return _memory(data, name)


def _memory(rows: Any, name: str, columns: list[Any] | None = None) -> MemoryTable:
    seen: dict[Any, None] = dict.fromkeys(columns or ())
    for number, row in enumerate(rows if columns is None else ()):
        if not isinstance(row, Mapping):
            raise DataError(f"{name}, row {number} is {row!r:.80}; give a dict of column -> text")
        seen.update(dict.fromkeys(row))
    wrong = [column for column in seen if not isinstance(column, str)]
    if wrong:
        raise DataError(f"{name} has the column {wrong[0]!r}; the name of a column is a text")
    return MemoryTable(rows, name, list(seen))


@dataclass
class _Transformed(Sequence[Any]):
    """Rows of a datasets.Dataset as its ``set_transform`` makes them."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: Any) -> Any:
        return self.dataset[number]


PATH_ADVICE = (
    "give it as a pathlib.Path, which a Dataset cannot hold: pass a list of rows, such as "
    '[{**row, "image": pathlib.Path(row["image"])} for row in dataset]'
)


def _in_python(message: str) -> str:
    """Name settings of a recipe as a Python program gives them.

    >>> _in_python('write data.label: "" to take every row; data.scores')
    'give columns={"label": ""} to take every row; columns["scores"]'
    """
    message = message.replace("write data.allow_outside: true", PATH_ADVICE)
    message = re.sub(
        r'write data\.(\w+): ("[^"]*"|\w+)', lambda m: f'give columns={{"{m[1]}": {_quoted(m[2])}}}', message
    )
    return re.sub(r"\bdata\.(query|document|image|id|scores|label)\b", r'columns["\1"]', message)


def _quoted(value: str) -> str:
    return value if value.startswith('"') else f'"{value}"'
