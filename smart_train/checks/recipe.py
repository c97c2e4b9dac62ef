"""Check a recipe before any model is loaded: each block by itself, then against the base, then against the data.

Each block has a file of its own beside this one.  A check yields a Problem for everything that cannot work.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from smart_train.checks.adapter import check_adapter
from smart_train.checks.bounds import Problems
from smart_train.checks.data import check_data, check_data_block, check_reader, check_sources, check_streaming
from smart_train.checks.evaluation import check_evaluation
from smart_train.checks.late import check_head, check_late, check_layers, check_widths
from smart_train.checks.launch import check_launch
from smart_train.checks.mining import check_mining
from smart_train.checks.model import check_lengths, check_model, check_pooling, check_quantised, check_vision
from smart_train.checks.objective import (
    check_batch,
    check_blocks,
    check_objective,
    check_scaling,
    check_skips,
    check_term_widths,
    check_trained,
)
from smart_train.checks.training import check_best, check_callbacks, check_trackers, check_training
from smart_train.checks.unused import check_unused
from smart_train.config.schema import Recipe
from smart_train.config.typed_values import Problem, RecipeError
from smart_train.core.environment import rank
from smart_train.core.errors import BaseNotFound
from smart_train.core.output_check import output_problem
from smart_train.models.base_config import BaseConfig, BaseFiles, named_by_peft, read_base


def check(recipe: Recipe, data: bool = True) -> BaseConfig:
    """Check the recipe; return the sizes of its base.

    data: also look at the data (for a Hub dataset: its description)
    Raises RecipeError that lists every problem with its file, line, key and fix.
    """
    problems = [problem for one in ALONE for problem in one(recipe)] + check_training(recipe)
    base: BaseConfig | None = None
    if recipe.model.base:
        try:
            model = recipe.model
            base = read_base(model.base, model.revision, model.trust_remote_code, model.pooling)
            if recipe.adapter.kind == "lora":
                named_by_peft(BaseFiles.of(model.base, model.revision), model.base)
        except BaseNotFound as error:
            problems.append(Problem("model.base", error.what, error.fix))
    if base is not None:
        problems += [problem for one in AGAINST_BASE for problem in one(recipe, base)]
    if data and recipe.data.path:
        problems += list(check_data(recipe, base))
    if problems or base is None:
        raise RecipeError(list(dict.fromkeys(problems)), recipe.where)
    return base


def check_names(recipe: Recipe) -> Problems:
    """Yield what is wrong with the names of the base, the run and the repository."""
    if not recipe.model.base:
        yield Problem("model.base", "is not given", "name a Hub id, a local folder, or package:NAME/FOLDER")
    if not re.fullmatch(r"[\w][\w.-]*", recipe.name):
        yield Problem("name", f"{recipe.name!r} cannot name a folder", "use letters, digits, dots, dashes and _")
    if recipe.publish.repo is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", recipe.publish.repo):
        yield Problem("publish.repo", f"{recipe.publish.repo!r} is no repository", "write it as me/name")


def check_output(recipe: Recipe) -> Problems:
    """Rank 0 alone writes to the run's folder, and moves an earlier run in it aside unless it is resumed there."""
    if rank():
        return
    output = Path(recipe.output or f"runs/{recipe.name}")
    problem = output_problem(output, moved=not recipe.training.get("resume_from_checkpoint"))
    if problem is not None:
        yield Problem("output", problem, "name another folder, or free space")


ALONE: list[Callable[[Recipe], Problems]] = [
    check_names,
    check_output,
    check_model,
    check_quantised,
    check_late,
    check_adapter,
    check_objective,
    check_batch,
    check_skips,
    check_trained,
    check_scaling,
    check_unused,
    check_launch,
    check_data_block,
    check_reader,
    check_sources,
    check_streaming,
    check_mining,
    check_evaluation,
    check_best,
    check_trackers,
    check_callbacks,
]
AGAINST_BASE: list[Callable[[Recipe, BaseConfig], Problems]] = [
    check_pooling,
    check_layers,
    check_widths,
    check_head,
    check_lengths,
    check_blocks,
    check_term_widths,
    check_vision,
]
