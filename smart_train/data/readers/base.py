"""Read a data format: the base class of readers, and how ``data.format`` chooses one.

To read a format of your own, derive a class from ``Reader``, define ``detect``, ``splits`` and ``read``, and name it in
a recipe as ``data.format: my_package.module:MyReader``, or register it as an entry point of the group
``smart_train.readers``.  docs/extending.md has an example, docs/data.md says what can be overridden.
"""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from smart_train.config.schema import Component, DataBlock
from smart_train.config.typed_values import Problem
from smart_train.core.errors import DataError, ExtensionError, Message, SettingError
from smart_train.core.registry import Registry
from smart_train.data.collection import Collection, HardNegatives, RetrievalDataset

READERS = Registry(
    "data reader",
    "smart_train.readers",
    {
        "pydocs": "smart_train.data.readers.pydocs:PydocsReader",
        "tevatron": "smart_train.data.readers.tevatron:TevatronReader",
        "beir": "smart_train.data.readers.beir:BeirReader",
        "mbeir": "smart_train.data.readers.mbeir:MbeirReader",
        "msmarco": "smart_train.data.readers.msmarco:MsmarcoReader",
        "msmarco-triples": "smart_train.data.readers.msmarco:MsmarcoTriplesReader",
        "pages": "smart_train.data.readers.page_annotations:PageAnnotationsReader",
        "rows": "smart_train.data.readers.rows:RowsReader",
    },
)
AUTO = "auto"
LAST = "rows"  # it reads every table, so all others are asked before it


class DataProblem(SettingError, DataError):
    """A setting of the data block does not work.

    here: the recipe may be right on another machine; this one lacks something, such as the network
    """

    def __init__(self, key: str, what: Message, fix: Message, here: bool = False) -> None:
        super().__init__(key, what, fix)
        self.problem = Problem(key, what, fix, here=here)


@dataclass
class QueryMetadata:
    """Metadata of queries besides their text; evaluation groups its metrics by it.

    kind: query id -> how the query was made, or what it asks for
    file: query id -> the file that it is about
    column: the name of the column that the kinds come from, for the report
    """

    kind: dict[str, str] = field(default_factory=dict)
    file: dict[str, str] = field(default_factory=dict)
    column: str = ""


class Reader(ABC):
    """Read one data format.  A subclass holds everything that is specific to the format.

    A reader is made with the recipe's data block and takes its options from it: ``path``, ``subset``, ``revision`` and
    the columns ``query``, ``document``, ``image``, ``id``, ``scores`` and ``source``.  Further options are keyword
    arguments of the constructor, with defaults; a recipe gives them as ``format: {type: NAME, option: value}``.  The
    constructor may look at the path, and raises DataProblem where the data is not there; it reads no rows.  What the
    block says of dev, test, limits and batches is applied by the callers, the same for every format.

    ``detect``, ``splits`` and ``read`` must be defined.  All other methods have a default that is right for any
    format, and can be overridden where the format knows better.

    >>> class NotesReader(Reader):
    ...     @classmethod
    ...     def detect(cls, data):
    ...         return data.path.endswith(".notes")
    ...     def splits(self):
    ...         return ["train"]
    ...     def read(self, split):
    ...         return Collection(self.name, {"d1": Document("d1", "a note")}, {"q1": "which"}, {"q1": {"d1": 1}})
    >>> from smart_train.data.collection import Document
    >>> NotesReader(DataBlock(path="my.notes")).read("train").pairs()
    [('q1', 'd1')]
    """

    shared_corpus: ClassVar[bool] = False
    """Whether all splits rank one corpus, so that documents that train and test have in common are no leak."""
    has_splits: ClassVar[bool] = True
    """False where the format is one body of pairs, out of which dev and test are always held."""
    has_source_column: ClassVar[bool] = False
    """Whether ``read`` fills ``Document.source`` from the column ``data.source``."""

    def __init__(self, data: DataBlock) -> None:
        self.data = data

    @classmethod
    @abstractmethod
    def detect(cls, data: DataBlock) -> bool:
        """Return whether ``data.path`` is of this format; called for ``data.format: auto``.

        Look at names and first lines only.  ``data`` is the whole block, since what is at a Hub path depends on
        ``data.revision`` and ``data.subset``.
        """

    @abstractmethod
    def splits(self) -> list[str]:
        """Return the names of the splits that are there, such as train and test."""

    @abstractmethod
    def read(self, split: str) -> Collection:
        """Read one of these splits whole, with hard negatives and teacher scores where the data has them.

        Nothing is decoded and nothing is dropped silently: log what is left out, with its number and first places.
        Raises DataError, naming the file and line or the id, for what cannot be read.
        """

    @property
    def name(self) -> str:
        """Return the name of the data for logs and reports: the last part of a local path, or the Hub id."""
        path = Path(self.data.path)
        return path.name if path.exists() else self.data.path

    def read_first(self, split: str, limit: int) -> Collection:
        """Read the first ``limit`` pairs of a split; the last query keeps all of its judgements.

        Override it where the format can stop reading early.
        """
        whole = self.read(split)
        return whole.select(dict.fromkeys(query for query, _ in whole.pairs()[:limit]))

    def read_all(self) -> RetrievalDataset:
        """Read every split as one data set; raises DataError where an id has two contents.

        Override it where the format can also return ids that dangle, which ``smart-train data check`` then reports.
        """
        dataset = RetrievalDataset(self.name, {}, {}, {})
        for split in self.splits():
            part = self.read(split)
            for key, document in part.corpus.items():
                if dataset.corpus.setdefault(key, document).text != document.text:
                    what = f"the id {key!r} of {split} is in another split with another content"
                    raise DataError(f"{self.data.path}: {what}; give each document an id of its own")
            dataset.queries |= part.queries
            dataset.splits[split] = part.qrels
            for query, documents in part.negatives.items():
                before = dataset.negatives.get(query, HardNegatives(())).documents
                dataset.negatives[query] = HardNegatives(tuple(dict.fromkeys([*before, *documents])))
            for query, scores in part.teacher.items():
                dataset.teacher.setdefault(query, {}).update(scores)
        return dataset

    # What is known before any row is read; recipes are checked with it.

    def problems(self) -> Iterable[Problem]:
        """Return what is wrong with the data block for this data, such as a column that is not there."""
        return ()

    def no_negatives(self) -> str | None:
        """Return why the data has no hard negatives; None where it has some, or only reading shows it."""
        return None

    def no_scores(self) -> str | None:
        """Return why the data has no teacher scores; None where it has some, or only reading shows it."""
        return None

    def image_column(self) -> str | None:
        """Return the column whose images ``read`` returns; None where there are none, or only reading shows it."""
        return None

    def stream_table(self, split: str) -> Any:
        """Open a split for ``data.streaming``: a table as ``data.streaming.SegmentedTable`` describes, with the columns
        of a table of rows.  Raises DataProblem for formats that are no such table."""
        what = f"is true, and {self.data.path} is no table with a query and its document in each row"
        raise DataProblem("data.streaming", what, "remove it")

    # What evaluation asks for besides a collection.

    def query_metadata(self, collection: Collection) -> QueryMetadata:
        """Return the kinds and files of a collection's queries."""
        return QueryMetadata()

    def document_texts(self, collection: Collection) -> dict[str, str | None]:
        """Return document id -> the text that BM25 ranks, for every document of a collection."""
        return {id: document.text for id, document in collection.corpus.items()}


def reader_class(name: str) -> type[Reader]:
    """Return the reader class of a short name, or of ``package.module:Class``.

    The name must come from the user's own recipe, command line or program, never from a data folder: importing it
    runs its code.  Raises DataProblem where there is no such class, or it is no complete Reader.
    """
    try:
        found = READERS.resolve(name)
    except ExtensionError as error:
        raise DataProblem("data.format", error.what, error.fix) from error
    base = f"{Reader.__module__}:Reader"
    if not (inspect.isclass(found) and issubclass(found, Reader)):
        raise DataProblem("data.format", f"{name} is no subclass of {base}", "derive the class from it")
    if inspect.isabstract(found):
        what = f"the reader {name} does not define {', '.join(sorted(found.__abstractmethods__))}"
        raise DataProblem("data.format", what, f"define it, as {base} documents")
    return found


def check_format(chosen: Component) -> None:
    """Raise DataProblem where ``data.format`` names no reader, or one that does not accept these options."""
    if chosen.type == AUTO:
        if chosen.options:
            what = f"auto has no options, and {', '.join(chosen.options)} is given"
            raise DataProblem("data.format", what, "name the reader in type, or write data.format: auto")
        return
    reader_class(chosen.type)
    try:
        READERS.check(chosen.type, chosen.options)
    except ExtensionError as error:
        raise DataProblem("data.format", error.what, error.fix) from error


def find_reader(data: DataBlock) -> Reader:
    """Return the reader of a recipe's data.

    ``data.format: auto`` asks ``detect`` of the package's readers in the order above, then of those that installed
    packages register (by name), then of rows, which reads any other table; the first that says yes reads.  ``rows``
    means any table, so it asks pages, then rows.  Any other value names the reader.
    Raises DataProblem where the path leads nowhere, or there is no such reader; reads no rows.
    """
    check_format(data.format)
    if data.format.type not in (AUTO, LAST):
        return reader_class(data.format.type)(data, **data.format.options)
    names = [*(name for name in READERS.names() if name != LAST), LAST] if data.format.type == AUTO else ["pages", LAST]
    for name in names:
        reader = reader_class(name)
        if reader.detect(data):
            return reader(data)
    local_path(data)
    what = f"no reader detects the format of {data.path}"
    raise DataProblem("data.format", what, f"name the reader: {', '.join(READERS.names())}, or package.module:Class")


def is_hub_name(path: str) -> bool:
    """Return whether this can only be a dataset on the Hub: owner/name, and no file or folder here."""
    return not Path(path).exists() and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) is not None


def local_path(data: DataBlock) -> Path | None:
    """Return the local file or folder ``data.path``; None where it is the name of a Hub dataset.

    Raises DataProblem where it is neither.
    """
    path = Path(data.path)
    if path.exists():
        return path
    if is_hub_name(data.path):
        return None
    fix = "name pydocs, a file or folder that is there, or a Hub dataset (owner/name)"
    raise DataProblem("data.path", f"there is no file or folder {data.path!r} (from {Path.cwd().name}/)", fix)
