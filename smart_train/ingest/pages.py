"""Store pages of documents, one Parquet file per source file, and read them back.

Names come from content: a file's id is a hash of its bytes, a page's id is its file's id and its number. The same file
gives the same ids on every machine and under every name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from smart_train.core.atomic_io import replacing
from smart_train.core.bounded_json import load_json
from smart_train.core.errors import DataError, SmartTrainError

Kind = Literal["pdf", "image", "text"]
PAGES, IMAGES = "pages", "images"  # folders below ``out``
ABOUT = b"smart_train"  # key of the Parquet metadata that holds what is known of the whole file
ROWS = 256  # pages decoded at once when they are read back


class Unreadable(SmartTrainError):
    """A file, or one page of it, that cannot be read. reason: one of few fixed phrases; detail: any text."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Outline:
    """A bookmark or a heading. level: 0 = outermost."""

    title: str
    level: int


@dataclass(frozen=True)
class Page:
    """One page of one file.

    id: the file's id, a hyphen, the page's number in five digits
    file: path relative to the folder that was read, with ``/``
    page, pages: number of the page from 1, and how many the file has; text files are cut into pages of similar size
    label: the document's own name of the page ("iv", "A-3"), or None
    text: the text layer with its line breaks, or what the OCR hook read; "" = none (a scan)
    title: the first title of ``outline``, or None
    outline: bookmarks that point to this page, or headings on it, in the document's order
    image: path relative to ``out``, or None
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
        """Return the id of the file, which does not depend on its name."""
        return self.id.rpartition("-")[0]


def page_id(file_id: str, page: int) -> str:
    """Return the id of a page: that of its file, and its number."""
    return f"{file_id}-{page:05d}"


def page_hash(text: str, image: bytes | None) -> str:
    """Return ``Page.hash``: 128 bits in hexadecimal over text and image."""
    digest = blake2b(digest_size=16)
    words = text.encode("utf-8", "surrogatepass")
    digest.update(f"{len(words)}\n".encode() + words)
    digest.update(image or b"")
    return digest.hexdigest()


def file_id(path: Path, also: str = "") -> str:
    """Return 80 bits in hexadecimal over a file's bytes and ``also``; a gigabyte takes about a second."""
    digest = blake2b(also.encode(), digest_size=10)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------- on the disk


def _schema() -> Any:
    import pyarrow as pa

    entry = pa.struct([("title", pa.string()), ("level", pa.int16())])
    kinds = {"page": pa.int32(), "pages": pa.int32(), "outline": pa.list_(entry)}
    return pa.schema([(name, kinds.get(name, pa.string())) for name in Page.__dataclass_fields__])


def write_pages(path: Path, pages: Sequence[Page], about: dict[str, Any]) -> None:
    """Write the pages of one file, atomically, with ``about``, which ``read_about`` returns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = json.dumps(about, sort_keys=True)
    table = pa.Table.from_pylist([asdict(page) for page in pages], _schema().with_metadata({ABOUT: metadata}))
    with replacing(path) as part:
        pq.write_table(table, part, compression="zstd", row_group_size=ROWS)


def read_about(path: Path) -> dict[str, Any]:
    """Return ``about`` of a file that ``write_pages`` wrote. Raises DataError for any other file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        about = load_json((pq.read_schema(path).metadata or {})[ABOUT])
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise DataError(f"{path}: not written by `smart-train ingest` ({error}); take it out of the folder") from error
    if not isinstance(about, dict):
        raise DataError(f"{path}: not written by `smart-train ingest`; take it out of the folder")
    return about


def read_one(path: Path) -> Iterator[Page]:
    """Yield the pages of one stored file, in order; a few hundred are in memory at once."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as stored:
        for batch in stored.iter_batches(ROWS):
            for row in batch.to_pylist():
                row["outline"] = tuple(Outline(**entry) for entry in row["outline"])
                yield Page(**row)


def images_of(path: Path) -> list[str]:
    """Return the image paths of the pages of one stored file."""
    import pyarrow.parquet as pq

    return [image for image in pq.read_table(path, columns=["image"])["image"].to_pylist() if image is not None]


class StoredPages:
    """The pages below a folder, which can be iterated any number of times; a few hundred are in memory at once."""

    def __init__(self, out: str | Path) -> None:
        files = sorted((Path(out) / PAGES).glob("*.parquet"))
        if not files:
            raise DataError(f"{Path(out) / PAGES}: no pages; run `smart-train ingest FOLDER --output {out}` first")
        self.files = [path for _, path in sorted((read_about(path)["file"], path) for path in files)]

    def __iter__(self) -> Iterator[Page]:
        for path in self.files:
            yield from read_one(path)

    def __len__(self) -> int:
        import pyarrow.parquet as pq

        return sum(pq.read_metadata(path).num_rows for path in self.files)


def read_pages(out: str | Path) -> StoredPages:
    """Return every page below ``out``, in the order of (file, page).

    Raises DataError where nothing was ingested to ``out``.

    >>> for page in read_pages("data/mine"):  # doctest: +SKIP
    ...     print(page.file, page.page, page.title)
    """
    return StoredPages(out)
