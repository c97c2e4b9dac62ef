"""What a recipe says of which pairs share a batch: by itself, and against the data."""

from __future__ import annotations

from smart_train.checks.bounds import Problems, at_least
from smart_train.config.schema import DataBlock, Recipe
from smart_train.config.typed_values import Problem

FIX = "write data.source: file, or the column that names the sources; or remove it"


def check_sources(recipe: Recipe) -> Problems:
    data = recipe.data
    yield from at_least("data.length_window", data.length_window, 1)
    if data.length_window > 256:
        what = f"is {data.length_window}: planning an epoch would take long, and its batches hardly differ any more"
        yield Problem("data.length_window", what, "write 8, or at most 256")
    if data.source_temperature <= 0:
        fix = "write 1 to draw by size, or a large number to draw all alike"
        yield Problem("data.source_temperature", f"is {data.source_temperature:g}, must be above 0", fix)
    for name, weight in data.source_weights.items():
        yield from at_least(f"data.source_weights.{name}", weight, 0)
    given = {"data.source_temperature": data.source_temperature != 1, "data.source_weights": bool(data.source_weights)}
    for key, there in given.items():
        if there and data.source is None:
            yield Problem(key, "is given, but data.source is null, so there is one source", FIX)


def check_source(data: DataBlock) -> Problems:
    """A column that names sources is one of a table with a query and its document in each row (rows.py looks)."""
    from smart_train.data.load import row_columns
    from smart_train.data.readers import page_annotations as by_page
    from smart_train.data.sources import find

    if data.source in (None, "file"):
        return
    source = find(data)
    if source.kind != "rows" or by_page.fits(row_columns(source, data), data):
        what = f"is {data.source}, but {data.path} is no table with a document in each row, which could name it"
        yield Problem("data.source", what, "write file, or null")
