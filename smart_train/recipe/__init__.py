"""Run a recipe file as a program: ``accelerate launch recipes/NAME.yaml``.

A recipe's first line imports ``boot`` from here. Its keys and its YAML are read in ``smart_train.config``.
"""

from __future__ import annotations

import sys


def boot(file: str, name: str) -> None:
    """Run the recipe that calls this if it is the main program, with ``sys.argv[1:]`` as its overrides.

    Data workers import the main file again under another name; for them this does nothing. Otherwise it does not
    return: the process exits with the run's status (2 = the recipe is wrong).
    """
    if name != "__main__":
        return
    from smart_train.cli.main import main

    sys.exit(main(["train", file, *sys.argv[1:]]))
