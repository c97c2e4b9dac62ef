"""What a recipe says of which pairs share a batch: by itself, and against the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smart_train.checks.bounds import Problems, at_least
from smart_train.config.schema import Recipe
from smart_train.config.typed_values import Problem

if TYPE_CHECKING:
    from smart_train.data.readers.base import Reader

FIX = "write data.source: file, or the column that names the sources; or remove it"


def check_reader(recipe: Recipe) -> Problems:
    """Check that ``data.format`` names a reader, before any data is looked at."""
    from smart_train.data.readers.base import DataProblem, check_format

    try:
        check_format(recipe.data.format)
    except DataProblem as error:
        yield error.problem


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


def check_source(reader: Reader) -> Problems:
    """Check that the data's format can name the source of a document, where ``data.source`` is a column."""
    data = reader.data
    if data.source not in (None, "file") and not reader.has_source_column:
        what = f"is {data.source}, but {data.path} is no table with a document in each row, which could name it"
        yield Problem("data.source", what, "write file, or null")
