"""Retrieval collections on a disk, in BEIR's layout and its relatives: found, read and written."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from smart_train.core.atomic_io import replacing
from smart_train.core.errors import DataError
from smart_train.data import hard_negatives as attached
from smart_train.data.collection import Collection, Document
from smart_train.data.column_aliases import (
    CORPUS_IDS,
    FILES,
    HASHES,
    PAGES,
    QUERY_IDS,
    column,
    id_of,
    page_of,
    picture_of,
    require,
    text_of,
)
from smart_train.data.ids import content_id, some
from smart_train.data.qrels import QRELS_TEXT, Judgement, judgements
from smart_train.data.tables import Table, open_files, read_json_lines, readable, split_of, suffix

logger = logging.getLogger(__name__)

# ---------------------------------------------------------------------------------------------- finding


def part(folder: Path, name: str) -> list[Path]:
    """The files of ``corpus`` or ``queries``: NAME.jsonl, NAME/..., or either below ``data``; [] where none is."""
    for base in (folder, folder / "data"):
        files = [f for f in readable(base) if split_of(f) == name]
        if files:
            return _one_kind(files)
        files = readable(base / name)
        if files:
            return _one_kind(files)
    return []


def _one_kind(files: list[Path]) -> list[Path]:
    """Of a.jsonl and a.parquet side by side only one is the data: the first kind by name."""
    kind = min(suffix(f) for f in files)
    return [f for f in files if suffix(f) == kind]


def is_beir(folder: Path) -> bool:
    return folder.is_dir() and bool(part(folder, "corpus")) and bool(part(folder, "queries"))


def splits(folder: Path) -> dict[str, list[Path]]:
    """split -> files of its qrels, from ``qrels/`` (or ``default/``, or ``qrels.tsv``, which is called test)."""
    for base in (folder, folder / "data"):
        for name in ("qrels", "default"):
            found: dict[str, list[Path]] = {}
            for file in readable(base / name, *QRELS_TEXT):
                found.setdefault(split_of(file), []).append(file)
            if found:
                return {name: _one_kind(files) for name, files in found.items()}
    loose = [f for f in readable(folder, *QRELS_TEXT) if split_of(f) == "qrels"]
    return {"test": _one_kind(loose)} if loose else {}


# ---------------------------------------------------------------------------------------------- reading


def read(
    folder: Path, split: str, text: str | None = None, image: str | None = None, name: str | None = None
) -> Collection:
    """See ``records.read_beir``."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    files = {needed: part(folder, needed) for needed in ("corpus", "queries")}
    for needed, found in files.items():
        if not found:
            also = f"nor .jsonl.gz, .parquet, or a folder {needed}/ of such files"
            raise DataError(f"{folder}: no {needed}.jsonl ({also})")
    there = splits(folder)
    if split not in there:
        raise DataError(f"{folder}: no qrels for the split {split!r}; there is {', '.join(sorted(there)) or 'none'}")
    judged = [j for file in there[split] for j in judgements(file)]
    name = name or f"{folder.name}/{split}"
    whole = collect(name, open_files(files["corpus"]), open_files(files["queries"]), judged, text, image, folder)
    attached.attach(whole, *(attached.tables(folder, kind) for kind in (attached.NEGATIVES, attached.TEACHER)))
    return whole


def collect(
    name: str,
    corpus: Table,
    queries: Table,
    judged: Iterable[Judgement],
    text: str | None = None,
    image: str | None = None,
    home: Path | None = None,
) -> Collection:
    """A collection of three tables; queries are those judged.  home: see ``columns.picture_of``."""
    return judged_collection(name, read_corpus(corpus, text, image, home), read_queries(queries), judged)


def judged_collection(
    name: str, documents: dict[str, Document], texts: dict[str, str], judged: Iterable[Judgement]
) -> Collection:
    """The judged queries over these documents; what dangles or is empty is counted in a warning."""
    qrels: dict[str, dict[str, int]] = {}
    twice = 0
    for _, query, document, grade in judged:
        row = qrels.setdefault(query, {})
        twice += document in row and row[document] != grade
        row[document] = max(grade, row.get(document, grade))
    silent = [q for q in qrels if q not in texts]
    qrels = {q: row for q, row in qrels.items() if q in texts}
    absent = sorted({d for row in qrels.values() for d in row if d not in documents})
    kept = {q: texts[q] for q in qrels}
    report = {
        "judged queries have no text and are left out": silent,
        "judged documents are missing in the corpus (they stay in the qrels and lower recall)": absent,
        "documents are empty": [d.id for d in documents.values() if d.image is None and not (d.text or "").strip()],
        "queries are empty": [q for q, t in kept.items() if not t.strip()],
    }
    for what, ids in report.items():
        if ids:
            logger.warning("%s: %d %s: %s", name, len(ids), what, some(ids))
    if twice:
        logger.warning("%s: %d pairs are judged twice with different grades; the higher counts", name, twice)
    return Collection(name, documents, kept, qrels)


def read_corpus(
    table: Table, text: str | None = None, image: str | None = None, home: Path | None = None, there: bool = True
) -> dict[str, Document]:
    """id -> Document; ``title`` and ``text`` are joined by a space, as BEIR and MTEB join them.

    text, image: columns, where they are not called so; "" leaves all texts, or all images, out
    home, there: see ``columns.picture_of``
    """
    columns = table.columns
    for given in (text, image):
        if given and given not in columns:
            require(table, (given,), "documents")
    key = require(table, CORPUS_IDS, "document ids")
    body = column(columns, ("text",)) if text is None else text
    picture = column(columns, ("image",)) if image is None else image
    if not body and not picture:
        require(table, ("text", "image"), "documents")
    # a column of a text file may first appear after the rows that were looked at
    body = "text" if body is None else body
    title = "" if text == "" else column(columns, ("title",)) or "title"
    picture = "image" if picture is None else picture
    file, page = column([c for c in columns if c != key], FILES), column(columns, PAGES)
    digest = column(columns, HASHES)
    found: dict[str, Document] = {}
    for where, row in table:
        name = id_of(row, key, where)
        headline = text_of(row, title, where)
        words = " ".join(part for part in (headline, text_of(row, body, where)) if part)
        pixels = picture_of(row.get(picture), table, where, home, there)
        document = Document(
            name,
            words if words or pixels is None else None,
            pixels,
            str(row[file]) if file and row.get(file) not in (None, "") else None,
            page_of(row.get(page) if page else None),
            headline or None,
            text_of(row, digest, where) or None,
        )
        if name in found and (found[name].text, found[name].page) != (document.text, document.page):
            raise DataError(f"{where}: the id {name!r} is there before, with another content; ids must be unique")
        found[name] = document
    return found


def read_queries(table: Table) -> dict[str, str]:
    """id -> text; raises DataError for an id with two texts."""
    key, text = require(table, QUERY_IDS, "query ids"), require(table, ("text", "query"), "query texts")
    found: dict[str, str] = {}
    for where, row in table:
        name, words = id_of(row, key, where), text_of(row, text, where)
        if found.get(name, words) != words:
            raise DataError(f"{where}: the query id {name!r} is there before, with another text; ids must be unique")
        found[name] = words
    return found


# ---------------------------------------------------------------------------------------------- writing


def write(collection: Collection, folder: Path, split: str) -> None:
    """See ``records.write_beir``."""
    stored = [name for name in ("corpus", "queries") if (found := part(folder, name)) and suffix(found[0]) != ".jsonl"]
    if stored:
        what = f"its {stored[0]} is there as {suffix(part(folder, stored[0])[0])}"
        raise DataError(f"{folder}: {what}, and JSON Lines would hide it; write to an empty folder, or use store.write")
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    _merge(folder / "corpus.jsonl", (_row(d, folder) for d in collection.corpus.values()))
    _merge(folder / "queries.jsonl", ({"_id": q, "text": t} for q, t in collection.queries.items()))
    if collection.negatives:
        _merge(folder / "negatives.jsonl", _negatives(collection), replace=True)
    if collection.teacher:
        scored = ({"_id": q, "scores": s} for q, s in collection.teacher.items())
        _merge(folder / "teacher.jsonl", scored, replace=True)
    out = ["query-id\tcorpus-id\tscore\n"]
    for query, row in collection.qrels.items():
        for document, grade in row.items():
            if any(c in name for name in (query, document) for c in "\t\r\n"):
                raise DataError(f"the ids {query!r}, {document!r} cannot be written: tab or line break in an id")
            out.append(f"{query}\t{document}\t{grade}\n")
    _replace(folder / "qrels" / f"{split}.tsv", out)


def _negatives(collection: Collection) -> Iterable[dict[str, Any]]:
    for query, documents in collection.negatives.items():
        row: dict[str, Any] = {"_id": query, "negatives": documents}
        mined = collection.mined.get(query)
        if mined is not None and list(mined.documents) == documents:
            told = {"scores": list(mined.scores), "positive": mined.positive, "miner": mined.miner}
            row.update({name: value for name, value in told.items() if value not in (None, "", [])})
        yield row


def parts_of(document: Document) -> tuple[str, str]:
    """(title, the text after it), which the readers join again; a title that the text lacks is not written."""
    title, text = document.title or "", document.text or ""
    if f"{title} {text.removeprefix(title).strip()}".strip() != text.strip():
        return "", text
    return title, text.removeprefix(title).strip()


def _row(document: Document, folder: Path) -> dict[str, Any]:
    title, body = parts_of(document)
    row: dict[str, Any] = {"_id": document.id, "title": title, "text": body}
    if isinstance(document.image, str | Path):
        row["image"] = os.path.relpath(document.image, folder)
    elif document.image is not None:
        file = folder / "images" / f"{content_id('page', document.id)}.png"
        file.parent.mkdir(exist_ok=True)
        content = document.content()
        (content["image"] if isinstance(content, dict) else content).save(file)
        row["image"] = str(file.relative_to(folder))
    more = {"file": document.file, "page": document.page, "hash": document.hash}
    row.update({name: value for name, value in more.items() if value is not None})
    return row


def _merge(file: Path, rows: Iterable[dict[str, Any]], replace: bool = False) -> None:
    merged = {str(row["_id"]): row for _, row in read_json_lines(file)} if file.is_file() else {}
    for row in rows:
        if not replace and merged.get(row["_id"], row) != row:
            raise DataError(f"{file}: the id {row['_id']!r} is there with another content; write to an empty folder")
        merged[row["_id"]] = row
    _replace(file, (json.dumps(row, ensure_ascii=False) + "\n" for row in merged.values()))


def _replace(file: Path, out: Iterable[str]) -> None:
    with replacing(file) as part, part.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(out)
