"""Check the block ``data``: by itself, and against the data."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from smart_train.checks.bounds import Problems, at_least
from smart_train.checks.mining import data_of
from smart_train.checks.objective import teacher_key
from smart_train.config.schema import Recipe
from smart_train.config.typed_values import Problem
from smart_train.models.base_config import BaseConfig

if TYPE_CHECKING:
    from smart_train.data.readers.base import Reader

PAIRS_OF_A_STEP = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}  # with their defaults
FIX = "write data.source: file, or the column that names the sources; or remove it"


def check_reader(recipe: Recipe) -> Problems:
    """Check that ``data.format`` names a reader, before any data is looked at."""
    from smart_train.data.readers.base import DataProblem, check_format

    try:
        check_format(recipe.data.format)
    except DataProblem as error:
        yield error.problem


def check_sources(recipe: Recipe) -> Problems:
    """Yield what is wrong with data.source, its weights and temperature, and data.length_window."""
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


def check_streaming(recipe: Recipe) -> Problems:
    """Yield what of a recipe a stream cannot do; data/load.py looks at the block ``data`` by itself."""
    if not recipe.data.streaming:
        return
    from smart_train.data.streaming import KNOWN, NO_EPOCHS

    if recipe.mining.rounds:
        what = f"is {recipe.mining.rounds}, but {KNOWN}, so it can't look for negatives among them"
        yield Problem("mining.rounds", what, "mine negatives before (smart-train mine), or write data.streaming: false")
    for name in ("eval_strategy", "save_strategy"):
        if recipe.training.get(name) == "epoch":
            yield Problem(f"training.{name}", NO_EPOCHS, "write steps")


def check_stream_steps(recipe: Recipe) -> Problems:
    """Check that a run that streams says where it ends."""
    from smart_train.core.environment import world
    from smart_train.data.streaming import RowStream

    training = recipe.training
    if training.get("max_steps", -1) != -1:
        return  # of a wrong one checks/training.py says more
    values = [training.get(name, usual) for name, usual in PAIRS_OF_A_STEP.items()]
    size, accumulated = (value if isinstance(value, int) else 1 for value in values)
    stream = RowStream.open(replace(recipe.data, negatives=0))
    pairs = (recipe.objective.batch or size * world()) * accumulated
    yield Problem("training.max_steps", *stream.steps_needed(pairs))


def check_source(reader: Reader) -> Problems:
    """Check that the data's format can name the source of a document, where ``data.source`` is a column."""
    data = reader.data
    if data.source not in (None, "file") and not reader.has_source_column:
        what = f"is {data.source}, but {data.path} is no table with a document in each row, which could name it"
        yield Problem("data.source", what, "write file, or null")


def check_data_block(recipe: Recipe) -> Problems:
    """Yield what is wrong with the block ``data`` by itself."""
    data = recipe.data
    if not data.path:
        yield Problem("data.path", "is not given", "name pydocs, a local folder or file, or a Hub dataset")
    yield from at_least("data.negatives", data.negatives, 0)
    for name in ("limit", "dev_documents", "test_documents", "length_groups"):
        yield from at_least(f"data.{name}", getattr(data, name), 1)
    shares = {"dev": data.dev, "test": data.test}
    for name, share in shares.items():
        yield from at_least(f"data.{name}", share, 0)
        if isinstance(share, float) and share >= 1:
            what = f"is {share:g}: a share must be below 1"
            yield Problem(f"data.{name}", what, f"write a share such as 0.05, or {int(share)} for that many queries")
    if all(isinstance(share, float) for share in shares.values()) and sum(shares.values()) >= 1 > max(shares.values()):
        what = f"with data.test this holds out {sum(shares.values()):g} of the data, so nothing is left to train on"
        yield Problem("data.dev", what, "lower data.dev or data.test")
    strategy = recipe.training.get("eval_strategy", "no")
    if data.dev == 0 and recipe.evaluation.during and strategy != "no":
        what = f"is 0, but evaluation.during ranks the dev split (training.eval_strategy is {strategy})"
        yield Problem("data.dev", what, "hold some out, or write evaluation.during: false")
    hybrid = recipe.late.hybrid
    unfitted = hybrid.scaling == "standardised" and hybrid.pooled_std == hybrid.late_std == 1
    if unfitted and data.dev == 0:
        what = "is 0, but late.hybrid.scaling standardised is fitted on the dev split"
        yield Problem("data.dev", what, "hold some out, or write the four constants")
    elif unfitted and not recipe.evaluation.calibrate:
        what = "is standardised, but evaluation.calibrate is false and the constants are not given"
        yield Problem("late.hybrid.scaling", what, "write evaluation.calibrate: true, or the four constants")


def check_data(recipe: Recipe, base: BaseConfig | None) -> Problems:
    """Yield what is wrong with the block ``data`` once its files are looked at."""
    from smart_train.data.load import TEACHER_KEY, has_test
    from smart_train.data.load import check_data as check_rows
    from smart_train.data.readers.base import find_reader

    teacher = teacher_key(recipe)
    problems = [
        replace(problem, key=teacher) if teacher and problem.key == TEACHER_KEY else problem
        for problem in check_rows(data_of(recipe), teacher is not None)
    ]
    yield from problems
    if problems:
        return
    reader = find_reader(recipe.data)
    yield from check_source(reader)
    if recipe.data.streaming:
        yield from check_stream_steps(recipe)
    ranked = recipe.evaluation.before or recipe.evaluation.after
    if recipe.data.test == 0 and ranked and not has_test(reader):
        what = "is 0 and the data has no test split, but evaluation.before and evaluation.after rank one"
        split = "add a split test" if recipe.data.streaming else "hold some out"
        yield Problem("data.test", what, f"{split}, or write both of them false")
    if base is not None and not base.vision and recipe.data.image is None:
        found = reader.image_column()
        if found:
            what = (
                f"is not given, so the images of the column {found} are read, but {recipe.model.base} has no image side"
            )
            yield Problem(
                "data.image", what, 'choose a vision-language base, or write data.image: "" for the text alone'
            )
