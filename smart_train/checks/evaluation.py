"""Check the block ``evaluation``."""

from __future__ import annotations

from smart_train.checks.bounds import Problems, at_least, distinct
from smart_train.config.schema import Recipe
from smart_train.config.typed_values import Problem


def check_evaluation(recipe: Recipe) -> Problems:
    """Yield what is wrong with the block ``evaluation``."""
    evaluation = recipe.evaluation
    if not evaluation.k:
        yield Problem("evaluation.k", "is empty, so nothing would be measured", "write [1, 5, 10]")
    yield from distinct("evaluation.k", evaluation.k)
    for cut in evaluation.k:
        yield from at_least("evaluation.k", cut, 1)
    yield from at_least("evaluation.batch_size", evaluation.batch_size, 1)
    yield from at_least("evaluation.bootstrap", evaluation.bootstrap, 1)
    yield from at_least("evaluation.seed", evaluation.seed, 0)
    yield from at_least("evaluation.calibration_queries", evaluation.calibration_queries, 1)
    yield from at_least("evaluation.calibration_documents", evaluation.calibration_documents, 2)
