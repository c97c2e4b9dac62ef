"""Check the block ``mining`` of a recipe."""

from __future__ import annotations

from dataclasses import replace

from smart_train.checks.bounds import Problems, at_least
from smart_train.config.schema import DataBlock, MiningBlock, Recipe
from smart_train.config.typed_values import Problem
from smart_train.core.errors import ExtensionError
from smart_train.mining.extensions import MINERS, RERANKERS, check_callable


def data_of(recipe: Recipe) -> DataBlock:
    """Return the data block that the data must satisfy: negatives mined before the first step may be missing."""
    return replace(recipe.data, negatives=0) if recipe.mining.rounds and recipe.mining.start else recipe.data


def check_mining(recipe: Recipe) -> Problems:
    """Yield what is wrong with the block ``mining``."""
    mining = recipe.mining
    for name, least in (("rounds", 0), ("k", 1), ("first", 0), ("skip_top", 0), ("margin", 0), ("window", 0)):
        yield from at_least(f"mining.{name}", getattr(mining, name), least)
    if mining.max_relative is not None and not 0 < mining.max_relative <= 1:
        what = f"is {mining.max_relative:g}, must be above 0 and at most 1: a share of the positive's score"
        yield Problem("mining.max_relative", what, "write 0.95, or null for no limit")
    if mining.last <= mining.first:
        what = f"is {mining.last}, but mining.first is {mining.first}: no rank lies between"
        yield Problem("mining.last", what, f"write {max(mining.first, 0) + 100}")
    for name, registry in (("miner", MINERS), ("reranker", RERANKERS)):
        if chosen := getattr(mining, name):
            try:
                check_callable(registry, chosen)
            except ExtensionError as error:
                yield Problem(f"mining.{name}", error.what, error.fix)
    if not mining.rounds:
        if mining != MiningBlock(rounds=mining.rounds):
            yield Problem("mining.rounds", "is 0, so nothing is mined", "write 1 or more, or remove the block")
        return
    if not recipe.data.negatives:
        what = f"is {mining.rounds}, but data.negatives is 0, so what is mined would not be used"
        yield Problem("mining.rounds", what, f"write data.negatives: {min(mining.k, 2)}, or rounds: 0")
    elif recipe.data.negatives > mining.k:
        what = f"is {mining.k}, and data.negatives asks for {recipe.data.negatives} of them"
        yield Problem("mining.k", what, f"write {recipe.data.negatives} or more")
