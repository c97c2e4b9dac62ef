"""Whether a recipe can work, before any model is loaded: each block by itself, against the base, against the data."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

from smart_train.checks.bounds import Problems, at_least, distinct, widths
from smart_train.checks.data import check_reader, check_source, check_sources
from smart_train.checks.late import check_head, check_late, check_layers, check_widths
from smart_train.checks.mining import check_mining, data_of
from smart_train.checks.objective import (
    check_batch,
    check_blocks,
    check_objective,
    check_skips,
    check_term_widths,
    check_trained,
    teacher_key,
)
from smart_train.checks.quantization import check_quantised
from smart_train.checks.training import check_best, check_launch, check_trackers
from smart_train.config.schema import Recipe
from smart_train.config.training_arguments import check_training
from smart_train.config.typed_values import Problem, RecipeError
from smart_train.core.errors import BaseNotFound
from smart_train.models.base_config import BaseConfig, read_base

ATTENTION = ["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]


def check(recipe: Recipe, data: bool = True) -> BaseConfig:
    """Returns the sizes of the base.

    data: also look at the data (for a Hub dataset: its description).
    Raises RecipeError with every problem found, file, line and key named.
    """
    problems = [problem for one in ALONE for problem in one(recipe)] + check_training(recipe)
    base: BaseConfig | None = None
    if recipe.model.base:
        try:
            base = read_base(recipe.model.base, recipe.model.revision, recipe.model.trust_remote_code)
        except BaseNotFound as error:
            problems.append(Problem("model.base", error.what, error.fix))
    if base is not None:
        problems += [problem for one in AGAINST_BASE for problem in one(recipe, base)]
    if data and recipe.data.path:
        problems += list(check_data(recipe, base))
    if problems or base is None:
        raise RecipeError(list(dict.fromkeys(problems)), recipe.where)
    return base


# Each block by itself ------------------------------------------------------------------------------------------------


def check_names(recipe: Recipe) -> Problems:
    if not recipe.model.base:
        yield Problem("model.base", "is not given", "name a Hub id, a local folder, or package:NAME/FOLDER")
    if not re.fullmatch(r"[\w][\w.-]*", recipe.name):
        yield Problem("name", f"{recipe.name!r} cannot name a folder", "use letters, digits, dots, dashes and _")
    if recipe.publish.repo is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", recipe.publish.repo):
        yield Problem("publish.repo", f"{recipe.publish.repo!r} is no repository", "write it as me/name")


def check_model(recipe: Recipe) -> Problems:
    model = recipe.model
    low, high = model.min_pixels, model.max_pixels
    for name in ("query_tokens", "document_tokens", "min_pixels", "max_pixels"):
        yield from at_least(f"model.{name}", getattr(model, name), 1)
    if low is not None and high is not None and low > high:
        what = f"is {low}, above model.max_pixels {high}"
        yield Problem("model.min_pixels", what, "lower it, or raise model.max_pixels")
    if model.dropout is not None and not 0 <= model.dropout < 1:
        what = f"is {model.dropout:g}, must be from 0 to below 1"
        yield Problem("model.dropout", what, "write 0, or null for the base's own")
    yield from widths("model.matryoshka", model.matryoshka)
    attention = model.attention
    if attention is not None and attention not in ATTENTION and "/" not in attention:
        what = f"{attention!r} is no attention of transformers"
        yield Problem("model.attention", what, f"write one of {', '.join(ATTENTION)}, a kernel as owner/name, or null")
    package = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}.get(attention or "")
    if package and find_spec(package) is None:
        what = f"{attention} needs the package {package}, which is not installed"
        yield Problem("model.attention", what, "install it, or write sdpa", here=True)


def check_adapter(recipe: Recipe) -> Problems:
    adapter = recipe.adapter
    yield from at_least("adapter.r", adapter.r, 1)
    yield from at_least("adapter.alpha", adapter.alpha, 1)
    if not 0 <= adapter.dropout < 1:
        yield Problem("adapter.dropout", f"is {adapter.dropout:g}, must be from 0 to below 1", "write 0.05, or 0")
    if adapter.layers is not None and isinstance(adapter.targets, str) and adapter.targets != "auto":
        what = "is given, but adapter.targets is a regular expression, which says itself which blocks it means"
        yield Problem("adapter.layers", what, "name the blocks in the expression, or write adapter.targets: auto")
    if not adapter.targets or (isinstance(adapter.targets, list) and not all(adapter.targets)):
        what = "is empty, so nothing would get LoRA"
        yield Problem("adapter.targets", what, "write auto, or names such as [q_proj, v_proj]")
    elif isinstance(adapter.targets, str):
        try:
            re.compile(adapter.targets)
        except re.error as error:
            what = f"{adapter.targets!r} is no regular expression ({error})"
            yield Problem("adapter.targets", what, "correct it, or give a list of names")
    if adapter.layers is not None:
        if not adapter.layers:
            yield Problem("adapter.layers", "is empty, so nothing would get LoRA", "write null for all blocks")
        yield from distinct("adapter.layers", adapter.layers)


def check_data_block(recipe: Recipe) -> Problems:
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


def check_evaluation(recipe: Recipe) -> Problems:
    evaluation = recipe.evaluation
    if not evaluation.k:
        yield Problem("evaluation.k", "is empty, so nothing would be measured", "write [1, 5, 10]")
    yield from distinct("evaluation.k", evaluation.k)
    for cut in evaluation.k:
        yield from at_least("evaluation.k", cut, 1)
    yield from at_least("evaluation.batch_size", evaluation.batch_size, 1)
    yield from at_least("evaluation.bootstrap", evaluation.bootstrap, 1)
    yield from at_least("evaluation.seed", evaluation.seed, 0)


# Against the base ----------------------------------------------------------------------------------------------------


def check_lengths(recipe: Recipe, base: BaseConfig) -> Problems:
    for name in ("query_tokens", "document_tokens"):
        for key, limit in (("model", getattr(recipe.model, name)), ("data", getattr(recipe.data, name))):
            if limit is not None and base.positions is not None and limit > base.positions:
                what = f"is {limit}, above the {base.positions} positions of the model"
                yield Problem(
                    f"{key}.{name}", what, f"write at most {base.positions}, or null for the base's own limit"
                )
        yield from at_least(f"data.{name}", getattr(recipe.data, name), 1)


def check_vision(recipe: Recipe, base: BaseConfig) -> Problems:
    """Nothing about images is asked of a model that sees none."""
    if base.vision:
        return
    asked = {
        "adapter.vision": recipe.adapter.vision,
        "model.min_pixels": recipe.model.min_pixels is not None,
        "model.max_pixels": recipe.model.max_pixels is not None,
        "data.image": bool(recipe.data.image),  # "" leaves images out
    }
    for key, given in asked.items():
        if given:
            what = f"is given, but {recipe.model.base} has no image side"
            yield Problem(key, what, "remove it, or choose a vision-language base")


# Against the data ----------------------------------------------------------------------------------------------------


def check_data(recipe: Recipe, base: BaseConfig | None) -> Problems:
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
    ranked = recipe.evaluation.before or recipe.evaluation.after
    if recipe.data.test == 0 and ranked and not has_test(reader):
        what = "is 0 and the data has no test split, but evaluation.before and evaluation.after rank one"
        yield Problem("data.test", what, "hold some out, or write both of them false")
    if base is not None and not base.vision and recipe.data.image is None:
        found = reader.image_column()
        if found:
            what = (
                f"is not given, so the images of the column {found} are read, but {recipe.model.base} has no image side"
            )
            yield Problem(
                "data.image", what, 'choose a vision-language base, or write data.image: "" for the text alone'
            )


ALONE: list[Callable[[Recipe], Problems]] = [
    check_names,
    check_model,
    check_quantised,
    check_late,
    check_adapter,
    check_objective,
    check_batch,
    check_skips,
    check_trained,
    check_launch,
    check_data_block,
    check_reader,
    check_sources,
    check_mining,
    check_evaluation,
    check_best,
    check_trackers,
]
AGAINST_BASE: list[Callable[[Recipe, BaseConfig], Problems]] = [
    check_layers,
    check_widths,
    check_head,
    check_lengths,
    check_blocks,
    check_term_widths,
    check_vision,
]
