"""What a retrieval folder says of its queries besides their text (kind, file), and of its documents' texts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smart_train.config.schema import DataBlock
from smart_train.data.collection import Collection
from smart_train.data.column_aliases import CORPUS_IDS, FILES, QUERY_IDS, column, id_of, require
from smart_train.data.readers import beir
from smart_train.data.sources import Source
from smart_train.data.tables import open_files

KINDS = ("kind", "rule", "query-kind", "query-type", "query-types", "type", "category")


@dataclass
class Asked:
    """kind: query id -> how it was made or what it asks for; file: query id -> the file it is about; column: which
    column the kinds are of.  {} where the data does not say."""

    kind: dict[str, str] = field(default_factory=dict)
    file: dict[str, str] = field(default_factory=dict)
    column: str = ""


def asked(source: Source, data: DataBlock, collection: Collection) -> Asked:
    """Of the collection's queries; a local retrieval folder only, since rows have no table of queries."""
    if source.kind != "beir" or source.place != "local":
        return Asked()
    table = open_files(beir.part(Path(data.path), "queries"))
    key = require(table, QUERY_IDS, "query ids")
    others = [name for name in table.columns if name != key]
    kind, file = column(others, KINDS), column(others, FILES)
    found = Asked(column=kind or "")
    if kind is None and file is None:
        return found
    for where, row in table:
        query = id_of(row, key, where)
        if query not in collection.queries:
            continue
        for name, values in ((kind, found.kind), (file, found.file)):
            if name is not None and (told := _told(row.get(name))):
                values[query] = told
    return found


def _told(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(sorted(str(each) for each in value))
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    return "" if value is None else str(value).strip()


def texts(source: Source, data: DataBlock, collection: Collection) -> dict[str, str | None]:
    """Document id -> its text, of every document: what was read, and for pages that were read as images alone
    (``data.document: ""``) the text that their folder has beside them.

    Of ingested pages that is the text layer without the words that queries were taken from, as everywhere.
    """
    found = {id: document.text for id, document in collection.corpus.items()}
    if data.document != "" or source.kind != "beir" or source.place != "local":
        return found
    table = open_files(beir.part(Path(data.path), "corpus"))
    key = require(table, CORPUS_IDS, "document ids")
    body, title = column(table.columns, ("text",)), column(table.columns, ("title",))
    columns = [name for name in (title, body) if name is not None]
    for where, row in table if body else ():
        id = id_of(row, key, where)
        if id in found:
            found[id] = " ".join(str(row[name]).strip() for name in columns if row.get(name)) or None
    return found
