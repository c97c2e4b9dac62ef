"""``smart-train launch`` and ``launch-files``: find the launch files of ``accelerate launch`` after a pip install."""

from __future__ import annotations

import argparse
from pathlib import Path

from smart_train.cli.options import check_output
from smart_train.core.errors import UsageError


def add(commands: argparse._SubParsersAction) -> None:
    about = "print the path of a launch file: accelerate launch --config_file $(smart-train launch zero3) RECIPE"
    launch = commands.add_parser("launch", help=about, description=about)
    launch.add_argument("name", nargs="?", help="name of a launch file (default: list them)")
    launch.set_defaults(run=run)

    about = "copy the launch files of accelerate, torchrun and Slurm into a folder, to change them"
    copy = commands.add_parser("launch-files", help=about, description=about)
    copy.add_argument("folder", help="folder to write to; files that it has are kept")
    copy.set_defaults(run=run_copy)


def run(options: argparse.Namespace) -> None:
    from smart_train.planning.launch_files import cached_launch_file, first_line, shipped

    files = {path.stem: path for path in shipped()}
    if options.name is None:
        width = max(map(len, files))
        print("\n".join(f"{name.ljust(width)}  {first_line(path)}" for name, path in files.items()))
        return
    if options.name not in files:
        raise UsageError(f"there is no launch file {options.name!r}; there are {', '.join(sorted(files))}")
    print(cached_launch_file(files[options.name]))


def run_copy(options: argparse.Namespace) -> None:
    check_output(options.folder, "FOLDER")
    from smart_train.planning.launch_files import copy_launch_files

    folder = Path(options.folder)
    written, kept = copy_launch_files(folder)
    print(f"{folder}: {len(written)} files written" + (f"; kept as they were: {', '.join(kept)}" if kept else ""))
    print(f"accelerate launch --config_file {folder / 'ddp.yaml'} RECIPE")
