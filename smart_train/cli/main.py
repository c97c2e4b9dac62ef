"""Commands; each calls one function of the library."""

from __future__ import annotations

import argparse
import logging
import re
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from tqdm import tqdm

from smart_train.cli import (
    benchmark,
    data,
    doctor,
    evaluate,
    export,
    heatmap,
    ingest,
    merge,
    mine,
    probe,
    publish,
)
from smart_train.cli.options import FLAGS, OF_ADAPTERS
from smart_train.config.typed_values import RecipeError
from smart_train.core.environment import rank, world
from smart_train.core.errors import BaseNotFound, Preempted, UsageError
from smart_train.distributed.failures import PATIENCE, end_by, is_echo, leave, record, summary, tell, watched
from smart_train.distributed.signals import STATUS, asked, leaving, stoppable

# Whose errors speak of flags, not of keys.
FLAGGED = dict.fromkeys((evaluate.run, benchmark.run, mine.run, probe.run, heatmap.run), FLAGS)
FLAGGED |= {export.run: OF_ADAPTERS, publish.run: OF_ADAPTERS, merge.run: {**OF_ADAPTERS, **merge.FLAGS}}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; errors that this package foresees are one line, no traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    given = [a for a in given if not re.fullmatch(r"--local[-_]rank=-?\d+", a)]  # the deepspeed launcher adds it
    parser = _parser()
    options, unknown = parser.parse_known_args(given)
    if unknown and options.run is not _train:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if unknown:  # --training.max_steps=2 and the like: the recipe's reader says how it is written
        options.overrides = unknown + options.overrides
    options.given = given  # for a command that starts itself in several processes
    _speak()
    training = options.run is _train
    with stoppable() if training else nullcontext(), watched() if training else nullcontext():
        try:
            return int(options.run(options) or 0)
        except KeyboardInterrupt:
            return 130
        except Preempted as error:
            return _preempted(error)
        except Exception as error:
            return _failed(error, options)


def _preempted(error: Preempted) -> int:
    leaving(STATUS)
    _told(str(error)) if rank() == 0 else None
    leave()
    return STATUS


def _failed(error: Exception, options: argparse.Namespace) -> int:
    """Tells a rank's error, once and before what follows from it; returns the exit status, or raises the error where it
    was not foreseen: the traceback is the message then."""
    again = asked()
    leaving(1)
    if is_echo(error):
        _told(f"stopped, because another rank ended ({str(error).splitlines()[0][:200]})")
        if not again:
            tell(f"rank {rank()} lost a rank, which could say nothing itself: {str(error).splitlines()[0][:200]}")
            time.sleep(PATIENCE)  # the launcher ends this rank, and names the other
            end_by(PATIENCE)
        raise error
    if not type(error).__module__.startswith("smart_train"):
        if world() > 1:
            error.add_note(f"(rank {rank()} of {world()})")
        record(summary(error))
        end_by(PATIENCE)
        tell(summary(error))
        raise error
    wrong = isinstance(error, RecipeError | BaseNotFound | UsageError)
    # Every rank finds the same mistake in a recipe and rank 0 tells it; the launcher ends the others while they wait,
    # and would end rank 0 before its message if one of them left first.  Who is still there then tells it too.
    if (wrong or getattr(error, "of_all", False)) and rank():
        time.sleep(PATIENCE)
    told = _in_flags(str(error), FLAGGED.get(options.run, {}))
    _told(told)
    record(told)
    if not wrong:
        end_by(PATIENCE)
        tell(f"rank {rank()} failed: {told}")
    return 2 if wrong else 1


def _told(line: str) -> None:
    print(f"rank {rank()}: {line}" if rank() else line, file=sys.stderr, flush=True)


def _in_flags(told: str, flags: dict[str, str]) -> str:
    for key, flag in flags.items():
        told = told.replace(key, flag)
    return told


class _Terminal(logging.Handler):
    """Messages as they are, to what is standard output at that moment; above a progress bar, where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode():
            print(self.format(record), flush=True)


def _speak() -> None:
    """This package's log goes to the terminal, from rank 0; other ranks and other packages tell warnings only."""
    log = logging.getLogger("smart_train")
    log.setLevel(logging.INFO if rank() == 0 else logging.WARNING)
    if not any(isinstance(handler, _Terminal) for handler in log.handlers):
        log.addHandler(_Terminal())


def _parser() -> argparse.ArgumentParser:
    about = "Train any single-vector embedder as a pooled and a late-interaction retriever at once."
    parser = argparse.ArgumentParser(prog="smart-train", description=about)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="run a recipe (also: accelerate launch FILE)")
    train.add_argument("file", help="the recipe, a YAML file")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="for example training.max_steps=2")
    train.set_defaults(run=_train)

    new = commands.add_parser("new", help="write a commented recipe to start from")
    new.add_argument("name", help="NAME or a path; NAME.yaml is written")
    new.add_argument("--from", dest="template", default="text_lora", help="shipped recipe to start from: %(default)s")
    new.set_defaults(run=_new)

    for command in (evaluate, benchmark, probe, ingest, data, mine, heatmap, export, merge, publish, doctor):
        command.add(commands)
    return parser


# Commands ------------------------------------------------------------------------------------------------------------


def _train(options: argparse.Namespace) -> None:
    from smart_train.checks.recipe import check
    from smart_train.config.recipe import read

    path = Path(options.file)
    recipe = read(path, options.overrides)
    check(recipe)
    from smart_train.training.run import run

    run(recipe, path)


def _new(options: argparse.Namespace) -> None:
    from smart_train.config.reference import shipped, written_for

    templates = shipped()
    if options.template not in templates:
        raise UsageError(f"there is no recipe {options.template!r}; shipped are {', '.join(sorted(templates))}")
    path = Path(options.name)
    path = path if path.suffix in (".yaml", ".yml") else path.with_name(path.name + ".yaml")
    if not re.fullmatch(r"\w[\w.-]*", path.stem):
        raise UsageError(f"{path.stem!r} cannot name a recipe; use letters, digits, dots, dashes and _")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf8") as stream:
            stream.write(written_for(templates[options.template], path))
    except FileExistsError:
        raise UsageError(f"{path} is there already and was left as it is; choose another name") from None
    print(f"{path} is written. Set model.base and data.path in it, then: accelerate launch {path}")
