"""``smart-train new``: write a commented recipe to start from."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from smart_train.cli.options import check_output
from smart_train.core.errors import UsageError
from smart_train.core.shipped_files import shipped_files


def add(commands: argparse._SubParsersAction) -> None:
    about = "write a commented recipe to start from"
    new = commands.add_parser("new", help=about, description=about)
    new.add_argument("name", help="name of the recipe, or a path; NAME.yaml is written")
    names = ", ".join(path.stem for path in shipped_files("recipes", "*.yaml"))
    new.add_argument(
        "--from", dest="template", default="text_lora", help=f"recipe to start from: {names} (default: %(default)s)"
    )
    new.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from smart_train.config.reference import shipped, written_for

    templates = shipped()
    if options.template not in templates:
        raise UsageError(f"there is no recipe {options.template!r}; shipped are {', '.join(sorted(templates))}")
    path = Path(options.name)
    path = path if path.suffix in (".yaml", ".yml") else path.with_name(path.name + ".yaml")
    if not re.fullmatch(r"\w[\w.-]*", path.stem):
        raise UsageError(f"{path.stem!r} cannot name a recipe; use letters, digits, dots, dashes and _")
    check_output(path, "NAME", file=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf8") as stream:
            stream.write(written_for(templates[options.template], path))
    except FileExistsError:
        raise UsageError(f"{path} already exists and was not changed; choose another name") from None
    print(f"wrote {path}; set model.base and data.path in it, then run: accelerate launch {path}")
