"""``smart-train train``: run a recipe."""

from __future__ import annotations

import argparse


def add(commands: argparse._SubParsersAction) -> None:
    about = "run a recipe"
    several = (
        "With several processes: accelerate launch RECIPE. accelerate starts Python programs, and the first line of a "
        "recipe (`smart-train new` writes it) makes the file one. Without that line: "
        "accelerate launch -m smart_train train RECIPE."
    )
    train = commands.add_parser("train", help=about, description=about, epilog=several)
    train.add_argument("file", metavar="RECIPE", help="the recipe, a YAML file")
    train.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="override a key: training.max_steps=2")
    train.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from smart_train.checks.recipe import check
    from smart_train.config.recipe import read

    recipe = read(options.file, options.overrides)
    check(recipe)
    from smart_train.training.run import run as train

    train(recipe)
