"""Pages of documents, as ``smart-train ingest`` leaves them on the disk: one Parquet file per source file.

Everything here is named after content: a file's id is a hash of its bytes, a page's id is its file's id and its number,
so the same file gives the same ids on every machine and under every name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from smart_train.core.atomic_io import replacing
from smart_train.core.errors import DataError

Kind = Literal["pdf", "image", "text"]
PAGES, IMAGES = "pages", "images"  # folders below ``out``
ABOUT = b"smart_train"  # key of a Parquet file's metadata that holds what is known of the whole file
ROWS = 256  # pages decoded at once when they are read back


class Unreadable(Exception):
    """A file, or one page of it, that cannot be taken; ``reason`` is one of few fixed phrases, ``detail`` any text."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Outline:
    """A bookmark or a heading.  level: 0 = outermost."""

    title: str
    level: int


@dataclass(frozen=True)
class Page:
    """One page of one file.

    id: the file's id, a hyphen, the page's number in five digits
    file: path relative to the folder that was read, with ``/``
    page, pages: number of the page from 1, and how many the file has; text is cut into pages of like size
    label: what the document calls the page ("iv", "A-3"), where it says so
    text: the text layer as it is, lines and all; "" = none (a scan), or what the OCR hook read
    title: the first of ``outline``
    outline: bookmarks that point to this page, or headings on it, in the document's order
    image: path relative to ``out``
    hash: 128 bits in hexadecimal over the text and the bytes of the image: equal pages have equal hashes
    """

    id: str
    file: str
    page: int
    pages: int
    label: str | None
    text: str
    title: str | None
    outline: tuple[Outline, ...]
    image: str | None
    hash: str
    kind: Kind

    @property
    def file_id(self) -> str:
        """The id of the file, which its name has no part in."""
        return self.id.rpartition("-")[0]


def page_id(file_id: str, page: int) -> str:
    return f"{file_id}-{page:05d}"


def page_hash(text: str, image: bytes | None) -> str:
    """See ``Page.hash``."""
    found = blake2b(digest_size=16)
    words = text.encode("utf-8", "surrogatepass")
    found.update(f"{len(words)}\n".encode() + words)
    found.update(image or b"")
    return found.hexdigest()


def file_id(path: Path, also: str = "") -> str:
    """80 bits in hexadecimal over a file's bytes, and over ``also``; a gigabyte takes about a second."""
    found = blake2b(also.encode(), digest_size=10)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            found.update(block)
    return found.hexdigest()


# ---------------------------------------------------------------------------------------------- on the disk


def _schema() -> Any:
    import pyarrow as pa

    entry = pa.struct([("title", pa.string()), ("level", pa.int16())])
    kinds = {"page": pa.int32(), "pages": pa.int32(), "outline": pa.list_(entry)}
    return pa.schema([(name, kinds.get(name, pa.string())) for name in Page.__dataclass_fields__])


def write_pages(path: Path, pages: Sequence[Page], about: dict[str, Any]) -> None:
    """Writes the pages of one file, whole or not at all, and ``about``, which ``read_about`` gives back."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    told = json.dumps(about, sort_keys=True)
    table = pa.Table.from_pylist([asdict(page) for page in pages], _schema().with_metadata({ABOUT: told}))
    with replacing(path) as part:
        pq.write_table(table, part, compression="zstd", row_group_size=ROWS)


def read_about(path: Path) -> dict[str, Any]:
    """What ``write_pages`` was told of the file.  Raises DataError where this is not a file of its making."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        about = json.loads((pq.read_schema(path).metadata or {})[ABOUT])
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise DataError(f"{path}: not written by `smart-train ingest` ({error}); take it out of the folder") from error
    if not isinstance(about, dict):
        raise DataError(f"{path}: not written by `smart-train ingest`; take it out of the folder")
    return about


def read_one(path: Path) -> Iterator[Page]:
    """The pages of one stored file, in order; a few hundred are in memory at once."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as stored:
        for batch in stored.iter_batches(ROWS):
            for row in batch.to_pylist():
                row["outline"] = tuple(Outline(**entry) for entry in row["outline"])
                yield Page(**row)


def images_of(path: Path) -> list[str]:
    """The images that the pages of one stored file name."""
    import pyarrow.parquet as pq

    return [image for image in pq.read_table(path, columns=["image"])["image"].to_pylist() if image is not None]


def read_pages(out: str | Path) -> Iterator[Page]:
    """Every page below ``out``, in the order of (file, page); nothing but a few hundred of them is held.

    Raises DataError where nothing was ingested.
    """
    folder = Path(out) / PAGES
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise DataError(f"{folder}: no pages; run `smart-train ingest FOLDER --out {os.fspath(out)}` first")
    for _, path in sorted((read_about(path)["file"], path) for path in files):
        yield from read_one(path)
