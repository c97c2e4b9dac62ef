"""One split of what was found at ``data.path``, read by the reader of its kind.

Knows: which reader takes which source.  Does not know: how to look for it (sources.py), other splits, holding out.
"""

from __future__ import annotations

from pathlib import Path

from smart_train.blocks import DataBlock
from smart_train.data import attached, beir, by_page, hub, pools
from smart_train.data.columns import column
from smart_train.data.qrels import judgement_rows
from smart_train.data.records import Collection
from smart_train.data.rows import choose_columns, read_rows
from smart_train.data.sources import DataProblem, Source, find
from smart_train.data.tables import StoredTable, Table, TextTable, columns_of, open_files


def short_name(data: DataBlock) -> str:
    """A local path's last part, or the Hub id."""
    return Path(data.path).name if Path(data.path).exists() else data.path


def read_split(source: Source, data: DataBlock, split: str) -> Collection:
    """The collection of one split; raises DataProblem where there is no such split, DataError for bad rows."""
    name = short_name(data)
    if split not in source.splits:
        there = ", ".join(sorted(source.splits)) or "none"
        raise DataProblem("data.split", f"{data.path} has no split {split!r}; there is {there}", "name one of these")
    if source.kind == "pool":
        return pools.read(Path(data.path), split, data, name)
    if source.kind == "rows":
        table = open_rows(source, data, split)
        pages = isinstance(table, TextTable) and by_page.fits(table.columns, data)
        return by_page.read(table, data, name) if pages else read_rows(table, data, name)  # type: ignore[arg-type]
    if source.place == "local":
        return beir.read(Path(data.path), split, data.document, data.image, name)
    tables = hub.retrieval_tables(data.path, split, data.revision, data.subset)
    judged = list(judgement_rows(tables["qrels"]))
    found = beir.collect(name, tables["corpus"], tables["queries"], judged, data.document, data.image)
    more = [hub.attached_tables(data.path, kind, data.revision) for kind in (attached.NEGATIVES, attached.TEACHER)]
    attached.attach(found, *more)
    return found


def open_rows(source: Source, data: DataBlock, split: str) -> Table:
    """The table of one split."""
    found = source.splits[split]
    if isinstance(found, list):
        return open_files(found)
    if isinstance(found, Path):
        import datasets

        return StoredTable(datasets.load_from_disk(str(found)), str(found), found)
    return hub.table(data.path, data.subset, split, data.revision)


def row_columns(source: Source, data: DataBlock) -> list[str]:
    """The columns of the split that is trained on; [] where a Hub dataset does not describe them."""
    found = source.splits[data.split]
    if source.place == "hub":
        return hub.columns(data.path, data.subset, data.revision)
    return columns_of(found) if isinstance(found, list) else open_rows(source, data, data.split).columns


def image_column(data: DataBlock) -> str | None:
    """The column whose images would be encoded, given or found; None where there is none, or where a Hub dataset does
    not describe its columns.  Raises as ``find`` does."""
    source = find(data)
    if source.kind == "pydocs":
        return None
    if source.kind == "pool":
        pool = TextTable(pools.files(Path(data.path))[1])
        key = "img_path" if data.image is None else data.image
        return key if key and any(row.get(key) for _, row in pool) else None
    if source.kind == "beir":
        columns = corpus_columns(source, data)
        return (column(columns, ("image",)) if data.image is None else data.image) or None
    columns = row_columns(source, data)
    if by_page.fits(columns, data):
        table = open_rows(source, data, data.split)
        return by_page.image_column(table, data) if isinstance(table, TextTable) else None
    chosen, _ = choose_columns(columns, data)
    return chosen.image if chosen else None


def corpus_columns(source: Source, data: DataBlock) -> list[str]:
    """The columns of a retrieval collection's corpus."""
    if source.place == "hub":
        return hub.columns(data.path, hub.prefixed("corpus", data.subset), data.revision)
    return columns_of(beir.part(Path(data.path), "corpus"))
