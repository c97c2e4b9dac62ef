"""Push a data set to the Hub and pull one, in the layout of ViDoRe: corpus, queries and qrels are configurations.

configuration corpus     corpus-id, image, title, text, file, page, hash ...      one split, corpus
              queries    query-id, query ...                                      one split, queries
              qrels      query-id, corpus-id, score                               a split for each split
              negatives  query-id, corpus-ids, scores, positive, miner            where there are any
              teacher    query-id, corpus-ids, scores                             where there are any
"""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from smart_train.config.schema import DataBlock
from smart_train.core import hub
from smart_train.core.errors import DataError, Setting
from smart_train.core.secrets import Finding, Searcher, image_texts, listed, search, search_texts, strings
from smart_train.data import store
from smart_train.data.collection import RetrievalDataset
from smart_train.data.load import read_all
from smart_train.data.readers.beir import NEGATIVES, TEACHER
from smart_train.data.tables import Boundary

logger = logging.getLogger(__name__)

SHARD = 256 * 2**20  # bytes of images and texts in one file, roughly
GROUP = 64  # pages of a row group: what a reader of one page has to fetch, and what is in memory while writing
PARTS = ("corpus", "queries", "qrels", NEGATIVES, TEACHER)
PICTURES = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Formats that are uploaded.  Others of Pillow's are left out since they run a program (EPS) or take in text (XPM)."""


def push(
    path: str | Path, repo: str, private: bool = True, allow_outside: bool = False, allow_secrets: bool = False
) -> str:
    """Upload a local data set to a dataset repository in one commit, and return its address.

    repo: owner/name, made if it is missing; what an older upload left there is deleted
    private: make it private, and refuse one that is public
    allow_outside: also upload what paths and links lead to outside of the data's folder
    allow_secrets: also upload texts that hold what looks like a secret or a private path, with a warning

    Every image is decoded while the files are written to a temporary folder, which takes as much disk as they do.
    Raises DataError for what cannot be read or decoded, for a path or a link that leads out of the data's folder, for
    a text that holds what looks like a secret (about a second per megabyte of text), and for what the Hub refuses.
    Nothing is uploaded then.
    """
    from huggingface_hub import HfApi

    if not Path(path).expanduser().exists():  # docstrings of this machine, or a dataset that is on the Hub already
        raise DataError(f"there is no file or folder {str(path)!r}; name the data's folder")
    data = DataBlock(path=str(path), allow_outside=allow_outside)
    _check_links(data)
    api = HfApi()
    with _named_by_repository(repo):
        address = str(api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True))
        info = api.dataset_info(repo)
    _check_repository(repo, info, private)
    with TemporaryDirectory() as folder:
        export(read_all(data), Path(folder))
        files = {one.relative_to(folder).as_posix(): one for one in sorted(Path(folder).rglob("*")) if one.is_file()}
        digests = {name: hub.sha256_of(file) for name, file in files.items()}
        _check_secrets(Path(folder), Path(path), allow_secrets)
        old = {file.rfilename for file in info.siblings or [] if file.rfilename.partition("/")[0] in PARTS}
        with _named_by_repository(repo):
            hub.commit_files(
                repo,
                files,
                digests,
                sorted(old - files.keys()),
                message="Data set by smart-train",
                error=DataError,
                repo_type="dataset",
                parent_commit=info.sha,
            )
    return address


def pull(repo: str, folder: str | Path, revision: str | None = None, subset: str | None = None) -> RetrievalDataset:
    """Download a data set from the Hub into a new folder, as Parquet, each image as a file.

    Raises DataError where the folder holds anything, and for what cannot be read.
    """
    dataset = read_all(DataBlock(path=repo, revision=revision, subset=subset))
    store.write_dataset(dataset, Path(folder).expanduser())
    return dataset


def export(dataset: RetrievalDataset, folder: Path) -> None:
    """Write what ``push`` uploads: Parquet files by part, and a README that describes them."""
    _save(_corpus(dataset), folder / "corpus" / "corpus")
    rows = (
        {"query-id": q, "query": text, **_other_columns(dataset.query_columns, q)}
        for q, text in dataset.queries.items()
    )
    _save(rows, folder / "queries" / "queries")
    for split, qrels in dataset.splits.items():
        if not re.fullmatch(r"\w+(\.\w+)*", split):
            raise DataError(
                f"the Hub has no splits called {split!r}; rename its qrels, with letters, digits and _ only"
            )
        triples = ((q, d, grade) for q, judged in qrels.items() for d, grade in judged.items())
        rows = ({"query-id": q, "corpus-id": d, "score": grade} for q, d, grade in triples)
        _save(rows, folder / "qrels" / split)
    if dataset.negatives:
        store.write_negatives(folder, dataset.negatives)
    if dataset.teacher:
        store.write_teacher(folder, dataset.teacher)
    (folder / "README.md").write_text(_card(folder), encoding="utf-8")


def _corpus(dataset: RetrievalDataset) -> Iterator[dict[str, Any]]:
    has_images = any(document.image is not None for document in dataset.corpus.values())
    for document in dataset.corpus.values():
        title, text = store.title_and_body(document)
        row: dict[str, Any] = {"corpus-id": document.id}
        if has_images:
            row["image"] = _image_cell(document.id, document.image)
        row |= {"title": title or None, "text": None if document.text is None else text}
        row |= {"file": document.file, "page": document.page, "hash": document.hash}
        yield row | _other_columns(dataset.document_columns, document.id)


def _image_cell(name: str, image: Any) -> dict[str, Any] | None:
    """The bytes of an image as they are stored, after they were decoded: any other file stays here."""
    if image is None:
        return None
    from PIL import Image

    fix = "nothing was sent; run: smart-train data check"
    try:
        raw = store.image_bytes(image)
    except OSError as error:
        raise DataError(f"the image of document {name!r} cannot be read ({error}); {fix}") from error
    try:
        Image.init()
        with Image.open(io.BytesIO(raw), formats=[known for known in PICTURES if known in Image.OPEN]) as opened:
            opened.load()
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error ... by format
        raise DataError(f"the image of document {name!r} cannot be decoded ({error}); {fix}") from error
    return {"bytes": raw, "path": None}


def _check_links(data: DataBlock) -> None:
    """Raise DataError for a link in the data's folder that leads out of it."""
    path = Path(data.path)
    boundary = Boundary.of(data)
    if not path.is_dir():
        return
    for root, folders, files in os.walk(path):
        for name in sorted([*folders, *files]):
            if os.path.islink(one := os.path.join(root, name)):
                boundary.check(Path(one), str(path))


def _check_secrets(folder: Path, source: Path, allow: bool) -> None:
    """Raise DataError where what is about to be uploaded holds a secret or a private path; a warning with ``allow``.

    source: of the data, whose path is searched for
    """
    findings = list(_findings(folder, Searcher([source.resolve()] if source.exists() else [])))
    grave = [one for one in findings if one.grave]
    if grave and not allow:
        secrets = Setting("allow_secrets", True, python="pass allow_secrets=True")
        raise DataError(f"{listed(grave)}; take it out, or if others may read it, ", secrets, "; nothing was uploaded")
    if grave:
        logger.warning("uploaded all the same: %s", listed(grave))
    if len(findings) > len(grave):
        logger.warning("%s texts hold e-mail addresses, %s", len(findings) - len(grave), listed(findings[-1:]))


def _findings(folder: Path, searcher: Searcher) -> Iterator[Finding]:
    """Yield what is found in the card, in every text of the tables, and in the texts inside of pictures."""
    from PIL import Image
    from pyarrow.parquet import ParquetFile

    yield from search({"README.md": folder / "README.md"}, [])
    for path in sorted(folder.rglob("*.parquet")):
        file, first = path.relative_to(folder).as_posix(), 1
        for batch in ParquetFile(path).iter_batches(GROUP):
            texts: list[tuple[str, str]] = []
            for number, row in enumerate(batch.to_pylist(), first):
                place = f"row {number} ({next(iter(row.values()))})"
                for column, value in row.items():
                    if column != "image":
                        texts += [(f"{place}, {column}", text) for text in strings(value)]
                    elif value is not None:
                        with Image.open(io.BytesIO(value["bytes"])) as image:
                            if image.format == "PNG":
                                image.load()  # its texts may come after the pixels
                            texts += [(f"{place}, image, {where}", text) for where, text in image_texts(image)]
            yield from search_texts(searcher, texts, file)
            first += len(batch)


def _other_columns(columns: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
    return {name: values.get(key) for name, values in columns.items()}


def _save(rows: Iterable[dict[str, Any]], base: Path) -> None:
    """BASE-0000.parquet and so on, a row group in memory at a time, with the types that `datasets` knows."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    base.parent.mkdir(parents=True, exist_ok=True)
    schema: Any = None
    writer: Any = None
    size = shard = 0
    for group in _groups(rows):
        if schema is None:
            schema = _schema(group)
        if writer is None or size > SHARD:
            if writer is not None:
                writer.close()
            writer = ParquetWriter(base.with_name(f"{base.name}-{shard:04d}.parquet"), schema)
            size, shard = 0, shard + 1
        try:
            table = pa.Table.from_pylist(group, schema)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(f"{base.name}: a column changes its type on the way ({error})") from error
        size += table.nbytes
        writer.write_table(table)
    if writer is None:
        raise DataError(f"{base.name}: there are no rows")
    writer.close()


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for row in rows:
        group.append(row)
        if len(group) == GROUP:
            yield group
            group = []
    if group:
        yield group


def _schema(group: list[dict[str, Any]]) -> Any:
    """Of the first rows: known columns have their type, others the one they show, texts where they are empty."""
    import datasets
    import pyarrow as pa

    image = datasets.Image()
    fields = []
    for name in group[0]:
        shown = (
            image.pa_type if name == "image" else store.arrow_array([row[name] for row in group], name, Path(name)).type
        )
        fields.append((name, shown))
    features = datasets.Features.from_arrow_schema(pa.schema(fields))
    if "image" in features:
        features["image"] = image
    return features.arrow_schema


def _card(folder: Path) -> str:
    """The dataset card, from which the Hub and `datasets` know the files of each part, and the columns."""
    from datasets import DatasetInfo, Features
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData
    from pyarrow.parquet import read_schema

    configs: list[dict[str, Any]] = []
    columns = DatasetInfosDict()
    for part in PARTS:
        files = sorted((folder / part).glob("*.parquet"))
        splits = {file.stem: file.stem.rpartition("-")[0] or file.stem for file in files}
        of = {s: [f"{part}/{f.name}" for f in files if splits[f.stem] == s] for s in sorted(set(splits.values()))}
        if files:
            configs.append(
                {"config_name": part, "data_files": [{"split": s, "path": paths} for s, paths in of.items()]}
            )
            columns[part] = DatasetInfo(features=Features.from_arrow_schema(read_schema(files[0])), config_name=part)
    data = DatasetCardData(tags=["retrieval"], configs=configs)
    columns.to_dataset_card_data(data)
    about = "A retrieval data set: corpus, queries, and qrels (which document answers which query)."
    return f"---\n{data.to_yaml()}\n---\n\n{about}\n"


def _check_repository(repo: str, info: Any, private: bool) -> None:
    """Raise DataError where the repository is public, or holds other data."""
    if private and not info.private:
        public = Setting("public", True, python="pass private=False")
        raise DataError(f"{repo} exists and everyone can read it; if you want that, ", public, ", or name another")
    there = [file.rfilename for file in info.siblings or []]
    other = [name for name in there if name.partition("/")[0] not in (*PARTS, "README.md", ".gitattributes")]
    if other:
        raise DataError(f"{repo} holds other data ({other[0]} ...); choose another name; nothing was sent")


@contextmanager
def _named_by_repository(repo: str) -> Iterator[None]:
    """Turn what the Hub's client raises into a DataError of one sentence; other errors pass unchanged."""
    hub.limit_waiting()
    try:
        yield
    except Exception as error:
        status, kind = hub.http_status(error), hub.error_kind(error)
        if status is None and kind is None:
            raise
        causes = {
            401: f"the Hub does not accept your token, or you have none (401); {hub.LOGIN}",
            403: f"your token may not write there (403); use one with write access, or a name of your own: {hub.LOGIN}",
            412: "someone else changed it meanwhile (412); look at it, then push again",
        }
        cause = causes.get(status or 0) or f"the Hub answered with status {status}; push again later"
        if kind == "name":
            cause = "this is not the form of a repository's name; write it as owner/name"
        elif kind == "unreadable":
            cause = "the Hub's answer cannot be read; push again later"
        elif status is None:
            cause = f"{hub.describe_failure(error)}; push again when it is back"
        raise DataError(f"{repo}: {cause}") from None
