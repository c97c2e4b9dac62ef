"""Write collections: Parquet files in a folder, which every reader reads, or JSON Lines in BEIR's layout.

corpus/corpus.parquet        id, title, text, image (path in the folder), file, page, hash, and further columns
queries/queries.parquet      id, text, and further columns
qrels/SPLIT.parquet          query-id, corpus-id, score
negatives/negatives.parquet  query-id, corpus-ids, scores, positive, miner
teacher/teacher.parquet      query-id, corpus-ids, scores
images/                      files that were not in the folder before, named by their content
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from smart_train.core.atomic_io import replacing
from smart_train.core.errors import DataError, border
from smart_train.core.folder_lock import new_folder
from smart_train.data.collection import Collection, Document, HardNegatives, RetrievalDataset, content_id
from smart_train.data.readers.beir import NEGATIVES, TEACHER, part_files
from smart_train.data.tables import TEXT_FILES, data_files, read_json_lines, suffix

Row = dict[str, Any]
More = Mapping[str, Mapping[str, Any]]  # column -> id -> value

TYPES = {
    **dict.fromkeys(("id", "title", "text", "image", "file", "hash", "query-id", "corpus-id", "miner"), "string"),
    **{"page": "int32", "score": "int64", "positive": "float64", "corpus-ids": "strings", "scores": "floats"},
}
MAGIC = ((b"\x89PNG", ".png"), (b"\xff\xd8\xff", ".jpg"), (b"GIF8", ".gif"), (b"BM", ".bmp"), (b"II*\0", ".tif"))


def write(
    collection: Collection,
    folder: str | Path,
    split: str,
    document_columns: More | None = None,
    query_columns: More | None = None,
) -> None:
    """Write a collection as one split of a folder, as Parquet.

    Corpus, queries, negatives and teacher scores are added to those that are there, so that several splits can share a
    folder; the qrels of this split are replaced.  document_columns, query_columns: further columns, by id.
    Raises DataError where an id is there with another content, and where the folder holds other files for a part.
    """
    folder = Path(folder).expanduser()
    write_corpus(folder, collection.corpus.values(), document_columns)
    write_queries(folder, collection.queries, query_columns)
    write_qrels(folder, split, collection.qrels)
    if collection.negatives:
        mined = {
            q: collection.scored_negatives.get(q, HardNegatives(tuple(n))) for q, n in collection.negatives.items()
        }
        write_negatives(folder, mined)
    if collection.teacher:
        write_teacher(folder, collection.teacher)


def write_dataset(dataset: RetrievalDataset, folder: Path) -> None:
    """Write all splits to a new folder, as Parquet, whole or not at all; raises DataError where it holds anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is not empty; name a folder that is not there yet")
    with new_folder(folder) as part:
        write_corpus(part, dataset.corpus.values(), dataset.document_columns)
        write_queries(part, dataset.queries, dataset.query_columns)
        for split, qrels in dataset.splits.items():
            write_qrels(part, split, qrels)
        if dataset.negatives:
            write_negatives(part, dataset.negatives)
        if dataset.teacher:
            write_teacher(part, dataset.teacher)


def write_corpus(
    folder: str | Path, documents: Iterable[Document], more: More | None = None, merge: bool = True
) -> None:
    """Write documents, added to those that are there (``merge``) or instead of them; ``more`` as in ``write``.

    An image file inside the folder is referred to; any other image is stored in ``images/``, once per content, as the
    bytes it has (an image in memory as PNG).  Raises as ``write``, and where an image file is missing.
    """
    folder = Path(folder).expanduser()
    rows: list[Row] = []
    for document in documents:
        title, text = title_and_body(document)
        none = document.text is None
        row: Row = {"id": document.id, "title": title or None, "text": None if none else text}
        row["image"] = stored_image(document, folder)
        row |= {"file": document.file, "page": document.page, "hash": document.hash}
        rows.append(row | {name: values.get(document.id) for name, values in (more or {}).items()})
    _write(folder, "corpus", rows, ("id", "title", "text", "image", "file", "page", "hash"), merge)


def write_queries(folder: str | Path, queries: Mapping[str, str], more: More | None = None, merge: bool = True) -> None:
    """Write queries by id; ``more`` and ``merge`` as in ``write_corpus``."""
    extra = (more or {}).items()
    rows = [{"id": q, "text": text, **{name: values.get(q) for name, values in extra}} for q, text in queries.items()]
    _write(Path(folder).expanduser(), "queries", rows, ("id", "text"), merge)


def write_qrels(folder: str | Path, split: str, qrels: Mapping[str, Mapping[str, int]]) -> None:
    """Write query id -> document id -> grade, instead of what this split had.  Raises DataError where qrels of another
    kind are there."""
    place = Path(folder).expanduser() / "qrels"
    others = [f.name for f in data_files(place, ".tsv", ".txt", ".trec", ".qrels", ".qrel") if suffix(f) != ".parquet"]
    if others:
        raise DataError(f"{place} holds {others[0]}, which Parquet would hide; write to an empty folder")
    rows = [
        {"query-id": query, "corpus-id": document, "score": grade}
        for query, judged in qrels.items()
        for document, grade in judged.items()
    ]
    write_parquet(place / f"{split}.parquet", rows, ("query-id", "corpus-id", "score"))


def write_negatives(folder: str | Path, mined: Mapping[str, HardNegatives], merge: bool = True) -> None:
    """Write hard negatives by query id; a query that is there gets the new ones, others stay (``merge``) or go."""
    rows = [
        {
            "query-id": query,
            "corpus-ids": list(found.documents),
            "scores": list(found.scores) or None,
            "positive": found.positive,
            "miner": found.miner or None,
        }
        for query, found in mined.items()
    ]
    columns = ("query-id", "corpus-ids", "scores", "positive", "miner")
    _write(Path(folder).expanduser(), NEGATIVES, rows, columns, merge, replace=True)


def write_teacher(folder: str | Path, scores: Mapping[str, Mapping[str, float]], merge: bool = True) -> None:
    """Write another model's scores, query id -> document id -> score; ``merge`` as in ``write_negatives``."""
    rows = [{"query-id": q, "corpus-ids": list(row), "scores": list(row.values())} for q, row in scores.items()]
    _write(Path(folder).expanduser(), TEACHER, rows, ("query-id", "corpus-ids", "scores"), merge, replace=True)


def title_and_body(document: Document) -> tuple[str, str]:
    """Split a text into (title, the text after it), which readers join again; ("", text) where it lacks the title."""
    title, text = document.title or "", document.text or ""
    if f"{title} {text.removeprefix(title).strip()}".strip() != text.strip():
        return "", text
    return title, text.removeprefix(title).strip()


# Images --------------------------------------------------------------------------------------------------------------


def image_bytes(image: Any) -> bytes:
    """Return the undecoded bytes of a path or a stored image; PNG of an image in memory.

    Raises what opening raises.
    """
    if isinstance(image, str | Path):
        return Path(image).read_bytes()
    if hasattr(image, "raw"):
        return image.raw()
    from PIL.Image import Image

    stream = io.BytesIO()
    (image if isinstance(image, Image) else image.load()).save(stream, "PNG")
    return stream.getvalue()


def image_suffix(raw: bytes) -> str:
    """Return the file ending by the first bytes, whatever the file was called; readers do not look at it."""
    if raw[:4] == b"RIFF" and raw[8:12] == b"WEBP":
        return ".webp"
    return next((end for start, end in MAGIC if raw.startswith(start)), ".image")


def stored_image(document: Document, folder: Path) -> str | None:
    """Return where the document's image is in the folder, relative and with slashes; put it there if it is not."""
    image = document.image
    if image is None:
        return None
    if isinstance(image, str | Path) and Path(image).is_file():
        path = Path(image).resolve()
        if path.is_relative_to(folder.resolve()):
            return path.relative_to(folder.resolve()).as_posix()
    try:
        raw = image_bytes(image)
    except OSError as error:
        raise DataError(f"the image of document {document.id!r} cannot be read ({error})") from error
    file = folder / "images" / (content_id("image", raw) + image_suffix(raw))
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part:
            part.write_bytes(raw)
    return file.relative_to(folder).as_posix()


# Parquet files -------------------------------------------------------------------------------------------------------


def _write(
    folder: Path, name: str, rows: list[Row], columns: tuple[str, ...], merge: bool, replace: bool = False
) -> None:
    file, key = folder / name / f"{name}.parquet", columns[0]
    _refuse_other_files(folder, name, file)
    merged = {row[key]: row for row in read_parquet(file)} if merge and file.is_file() else {}
    for row in rows:
        before = merged.get(row[key], {})
        if not replace and any(before[c] != row[c] for c in before.keys() & row.keys()):
            fix = "write to an empty folder, or write the part anew (merge=False)"
            raise DataError(f"{file}: the id {row[key]!r} is there with another content; {fix}")
        merged[row[key]] = row if replace else {**before, **row}
    kept = list(merged.values())
    if not any(row.get("image") for row in kept):  # a column of images asks for a base that sees
        kept = [{name: value for name, value in row.items() if name != "image"} for row in kept]
        columns = tuple(name for name in columns if name != "image")
    write_parquet(file, kept, columns)


def _refuse_other_files(folder: Path, name: str, file: Path) -> None:
    """Raise DataError where this part is there in files that the new one would hide, or be read together with."""
    if name in (NEGATIVES, TEACHER):
        others = [f for f in data_files(file.parent) if f != file]  # a .jsonl beside the folder counts for less
    else:
        others = [f for f in part_files(folder, name) if f != file]
        others += [f for f in data_files(file.parent) if f != file and suffix(f) in TEXT_FILES]
    if others:
        raise DataError(f"{folder}: its {name} is there in {others[0].name}; write to an empty folder")


def read_parquet(file: Path) -> list[Row]:
    """Read the rows of a Parquet file; raises DataError where it is not one."""
    from pyarrow.parquet import read_table

    with border(file, "not a readable parquet file"):
        rows: list[Row] = read_table(file, partitioning=None).to_pylist()
        return rows


def write_parquet(file: Path, rows: list[Row], columns: tuple[str, ...]) -> None:
    """Write rows to a Parquet file with these columns first, whole or not at all; a stopped run leaves the old file.

    The file carries the types that `datasets` knows it by.
    """
    import datasets
    import pyarrow as pa
    from pyarrow.parquet import write_table

    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    table = pa.table({name: arrow_array([row.get(name) for row in rows], name, file) for name in names})
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part:
        write_table(table.cast(datasets.Features.from_arrow_schema(table.schema).arrow_schema), part)


def arrow_array(values: list[Any], name: str, file: Path) -> Any:
    """Return a pyarrow array of a column: of its known type, else the values' own; texts where all are empty."""
    import pyarrow as pa

    known = {"strings": pa.list_(pa.string()), "floats": pa.list_(pa.float64())}
    try:
        kind = TYPES.get(name)
        if kind is not None:
            return pa.array(values, known.get(kind) or pa.type_for_alias(kind))
        array = pa.array(values)
        return pa.array(values, pa.string()) if pa.types.is_null(array.type) else array
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"{file}: the column {name} cannot be stored ({error})") from error


# JSON Lines in BEIR's layout -----------------------------------------------------------------------------------------


def write_beir(collection: Collection, folder: str | Path, split: str = "test") -> None:
    """Write a collection in BEIR's layout, as JSON Lines; images that are not files of the folder go to ``images/``.

    Corpus, queries, negatives and teacher scores are added to those that the folder already has, so that several splits
    can share one folder; the qrels of this split are replaced.  Raises DataError where an id is there with another
    content.
    """
    folder = Path(folder).expanduser()
    parts = {name: part_files(folder, name) for name in ("corpus", "queries")}
    stored = [name for name, files in parts.items() if files and suffix(files[0]) != ".jsonl"]
    if stored:
        what = f"its {stored[0]} is there as {suffix(parts[stored[0]][0])}"
        raise DataError(f"{folder}: {what}, and JSON Lines would hide it; write to an empty folder, or use store.write")
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    _merge_lines(folder / "corpus.jsonl", (_line(d, folder) for d in collection.corpus.values()))
    _merge_lines(folder / "queries.jsonl", ({"_id": q, "text": t} for q, t in collection.queries.items()))
    if collection.negatives:
        _merge_lines(folder / "negatives.jsonl", _negative_lines(collection), replace=True)
    if collection.teacher:
        scored = ({"_id": q, "scores": s} for q, s in collection.teacher.items())
        _merge_lines(folder / "teacher.jsonl", scored, replace=True)
    out = ["query-id\tcorpus-id\tscore\n"]
    for query, row in collection.qrels.items():
        for document, grade in row.items():
            if any(c in name for name in (query, document) for c in "\t\r\n"):
                raise DataError(f"the ids {query!r}, {document!r} cannot be written: tab or line break in an id")
            out.append(f"{query}\t{document}\t{grade}\n")
    _write_lines(folder / "qrels" / f"{split}.tsv", out)


def _negative_lines(collection: Collection) -> Iterable[dict[str, Any]]:
    for query, documents in collection.negatives.items():
        row: dict[str, Any] = {"_id": query, "negatives": documents}
        mined = collection.scored_negatives.get(query)
        if mined is not None and list(mined.documents) == documents:
            scored = {"scores": list(mined.scores), "positive": mined.positive, "miner": mined.miner}
            row.update({name: value for name, value in scored.items() if value not in (None, "", [])})
        yield row


def _line(document: Document, folder: Path) -> dict[str, Any]:
    title, body = title_and_body(document)
    row: dict[str, Any] = {"_id": document.id, "title": title, "text": body}
    if isinstance(document.image, str | Path):
        row["image"] = stored_image(document, folder)
    elif document.image is not None:
        file = folder / "images" / f"{content_id('page', document.id)}.png"
        file.parent.mkdir(exist_ok=True)
        content = document.content()
        (content["image"] if isinstance(content, dict) else content).save(file)
        row["image"] = str(file.relative_to(folder))
    more = {"file": document.file, "page": document.page, "hash": document.hash}
    row.update({name: value for name, value in more.items() if value is not None})
    return row


def _merge_lines(file: Path, rows: Iterable[dict[str, Any]], replace: bool = False) -> None:
    merged = {str(row["_id"]): row for _, row in read_json_lines(file)} if file.is_file() else {}
    for row in rows:
        if not replace and merged.get(row["_id"], row) != row:
            raise DataError(f"{file}: the id {row['_id']!r} is there with another content; write to an empty folder")
        merged[row["_id"]] = row
    _write_lines(file, (json.dumps(row, ensure_ascii=False) + "\n" for row in merged.values()))


def _write_lines(file: Path, out: Iterable[str]) -> None:
    with replacing(file) as part, part.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(out)
