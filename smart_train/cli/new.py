"""``smart-train new``: write a commented recipe to start from, made for a base and a data set where they are named."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from smart_train.cli.options import check_output
from smart_train.core.errors import UsageError
from smart_train.core.shipped_files import shipped_files


def add(commands: argparse._SubParsersAction) -> None:
    about = "write a commented recipe to start from; with --base and --data, one that runs as it is"
    new = commands.add_parser("new", help=about, description=about)
    new.add_argument("name", help="name of the recipe, or a path; NAME.yaml is written")
    names = ", ".join(path.stem for path in shipped_files("recipes", "*.yaml"))
    new.add_argument("--from", dest="template", help=f"recipe to start from: {names} (default: text_lora)")
    new.add_argument("--base", "--model", dest="base", help="the base to train: Hub id, local folder ...")
    new.add_argument(
        "--data", nargs="+", metavar=("DATA", "KEY=VALUE"),
        help="folder, file or Hub dataset to train on, and keys of a recipe's data block where they are not clear",
    )  # fmt: skip
    names_of = {"model.base": "--base", "data.path": "--data"}
    new.set_defaults(run=run, setting_names=names_of)


def run(options: argparse.Namespace) -> None:
    if (options.base is None) != (options.data is None):
        raise UsageError("--base and --data belong together: a recipe is made for both; give the other one too")
    if options.base is not None and options.template is not None:
        raise UsageError("--from copies a shipped recipe, --base and --data make one; leave one of them out")
    path = Path(options.name)
    path = path if path.suffix in (".yaml", ".yml") else path.with_name(path.name + ".yaml")
    if not re.fullmatch(r"\w[\w.-]*", path.stem):
        raise UsageError(f"{path.stem!r} cannot name a recipe; use letters, digits, dots, dashes and _")
    check_output(path, "NAME", file=True)
    if path.exists():
        raise UsageError(f"{path} already exists and was not changed; choose another name")
    text = _copied(options.template or "text_lora", path) if options.base is None else _drafted(options, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf8") as stream:
            stream.write(text)
    except FileExistsError:
        raise UsageError(f"{path} already exists and was not changed; choose another name") from None
    if options.base is None:
        print(f"wrote {path}; set model.base and data.path in it, then run: smart-train train {path}")
        return
    from smart_train.checks.recipe import check
    from smart_train.config.recipe import read

    check(read(path, []))
    print(f"wrote {path} and checked it; run: smart-train train {path}")


def _copied(name: str, path: Path) -> str:
    from smart_train.config.reference import shipped, written_for

    templates = shipped()
    if name not in templates:
        raise UsageError(f"there is no recipe {name!r}; shipped are {', '.join(sorted(templates))}")
    return written_for(templates[name], path)


def _drafted(options: argparse.Namespace, path: Path) -> str:
    from smart_train.config.recipe import of_words
    from smart_train.core.errors import checks

    data, *words = options.data
    with checks():
        block = of_words({"data": {"path": data}}, [f"data.{word}" for word in words]).data
        import torch

        from smart_train.planning.recipe_draft import draft_recipe

        gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return draft_recipe(path, options.base, block, gpu)
