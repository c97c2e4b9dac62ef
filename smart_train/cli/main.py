"""The program ``smart-train``: parse the command line, run one command, and return its exit status.

``EXIT_STATUS`` lists the exit statuses.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from smart_train.cli import (
    benchmark,
    data,
    doctor,
    evaluate,
    export,
    heatmap,
    ingest,
    last_token_base,
    launch,
    merge,
    mine,
    new,
    probe,
    publish,
    score,
    train,
)
from smart_train.cli.options import setting_namer
from smart_train.cli.streams import output_lost, protect_streams
from smart_train.core.disk import disk_fault
from smart_train.core.environment import check_launch, rank, world
from smart_train.core.errors import LaunchError, OutputFault, Preempted, SmartTrainError, UsageError, error_chain
from smart_train.core.paths import expand_home
from smart_train.core.terminal_log import log_to_terminal
from smart_train.distributed.failures import (
    PATIENCE,
    destroy_process_group,
    end_process_after,
    ending_with_other_machines,
    is_caused_by_other_rank,
    report_to_other_machines,
    summary,
    write_error_file,
)
from smart_train.distributed.signals import received, set_exit_status, stoppable

SHELLS = ("bash", "zsh", "tcsh")
TEXTS = ("query", "text", "query_prompt", "document_prompt", "arguments")  # options that name no path
COMMANDS = (
    train,
    new,
    evaluate,
    benchmark,
    probe,
    ingest,
    data,
    mine,
    score,
    heatmap,
    export,
    merge,
    publish,
    doctor,
    last_token_base,
    launch,
)
FILES = {"file", "data", "path", "folder", "run_folder", "document", "adapters", "adapter", "output", "fix", "store"}
EXIT_STATUS = """\
exit status:
  0    done
  1    the work failed
  2    the request is wrong, and nothing slow has run; doctor: the recipe cannot run
  3    done, but not whole: ingest skipped files, or data check found problems
  75   a signal ended a training after a checkpoint; resume it
  130  Ctrl-C
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    A SmartTrainError is printed as one sentence; any other exception is a bug and is raised.
    """
    protect_streams()
    os.environ["MPLBACKEND"] = "agg"  # no command opens a window, and a backend that matplotlib lacks would be an error
    try:
        check_launch()
    except LaunchError as error:
        print(error, file=sys.stderr)
        return error.status
    words = list(sys.argv[1:] if arguments is None else arguments)
    words = [word for word in words if not re.fullmatch(r"--local[-_]rank=-?\d+", word)]  # deepspeed's launcher adds it
    parser = build_parser()
    options, unknown = parser.parse_known_args(words)
    training = options.run is train.run
    if unknown and not training:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if unknown:  # --training.max_steps=2 and the like: the recipe's reader says how it is written
        options.overrides = unknown + options.overrides
    _expand_paths(options)
    options.arguments = words  # for a command that starts itself in several processes
    log_to_terminal()
    with stoppable() if training else nullcontext(), ending_with_other_machines() if training else nullcontext():
        try:
            status = int(options.run(options) or 0)
            return status or int(output_lost() and not training)  # what a training has made is in its folder
        except KeyboardInterrupt:
            return 130
        except Preempted as error:
            set_exit_status(error.status)
            if rank() == 0:
                _print_error(str(error))
            destroy_process_group()
            return error.status
        except Exception as error:
            if is_caused_by_other_rank(error):
                _end_after_another_rank(error)
                raise
            if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # only a given name can be that long
                error = UsageError(
                    f"{str(error.filename)[:60]}...: {error.strerror}; name a file or folder that exists"
                )
            if isinstance(error, SmartTrainError):
                return _report(error, error.text(setting_namer(getattr(options, "setting_names", {}))))
            if fault := disk_fault(error):
                return _report(*_output_fault(error, fault))
            _end_after_bug(error)
            raise


def _expand_paths(options: argparse.Namespace) -> None:
    """Put the home folder in place of ``~`` in every option but texts: shells leave it after a ``=``."""
    for name, value in vars(options).items():
        if name in TEXTS:
            continue
        if isinstance(value, str):
            setattr(options, name, expand_home(value))
        elif isinstance(value, Path):
            setattr(options, name, Path(expand_home(str(value))))
        elif isinstance(value, list):
            setattr(options, name, [expand_home(one) if isinstance(one, str) else one for one in value])


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; every command is one module of this package."""
    about = "Train any single-vector embedder as a pooled and a late-interaction retriever at once."
    parser = argparse.ArgumentParser(
        prog="smart-train",
        description=about,
        epilog=f"smart-train COMMAND --help shows the options of a command.\n\n{EXIT_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_PrintVersion, nargs=0, help="print the version and exit")
    parser.add_argument(
        "--print-completion", action=_PrintCompletion, choices=SHELLS, help="print completion for a shell, and exit"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    for inner in _parsers(parser):
        for action in inner._actions:
            if (
                action.option_strings
                and action.nargs != 0
                and not action.required
                and "(default: " not in (action.help or "")
            ):
                action.help = f"{action.help} (default: none)"
    return parser


class _PrintCompletion(argparse.Action):
    """Print the completion of all commands and options, made of the parser itself."""

    def __call__(self, parser: argparse.ArgumentParser, _: Any, shell: Any, *__: Any) -> None:
        import shtab

        for inner in _parsers(parser):
            for action in inner._actions:
                if action.dest in FILES and not action.choices:
                    action.complete = shtab.FILE  # type: ignore[attr-defined]
        print(shtab.complete(parser, shell))
        parser.exit()


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield a parser and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _parsers(inner)


class _PrintVersion(argparse.Action):
    """argparse's own version action needs the version now, and importlib.metadata is slow to import."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"smart-train {version('smart-train')}")
        parser.exit()


def _report(error: SmartTrainError, message: str) -> int:
    """Print a foreseen error, once where all ranks have it, and return its exit status."""
    set_exit_status(error.status)
    # Every rank finds the same mistake in a recipe and rank 0 prints it; the launcher ends the others while they wait,
    # and would end rank 0 before its message if one of them left first.  A rank that is still there then prints it too.
    if (error.status == 2 or error.on_every_rank) and rank():
        time.sleep(PATIENCE)
    _print_error(message)
    write_error_file(message)
    if error.status != 2:
        end_process_after(PATIENCE)
        report_to_other_machines(f"rank {rank()} failed: {message}")
    return error.status


def _output_fault(error: BaseException, fault: str) -> tuple[SmartTrainError, str]:
    """Return what to report of a disk that could not be written or read."""
    names = (getattr(one, "filename", None) for one in error_chain(error))
    name = next((str(name) for name in names if isinstance(name, str | bytes | Path)), "a file")
    fix = "free space or restore the disk, then run the same command again: what is complete in the output is kept"
    found = OutputFault(f"{name}: {fault}; {fix}")
    return found, str(found)


def _end_after_another_rank(error: Exception) -> None:
    """Leave after a broken connection to another rank: that rank has the error to read, this one is only an echo."""
    signalled = received()
    set_exit_status(1)
    first_line = str(error).splitlines()[0][:200]
    _print_error(f"stopped, because another rank ended ({first_line})")
    if not signalled:
        report_to_other_machines(f"rank {rank()} lost a rank, which could report nothing itself: {first_line}")
        time.sleep(PATIENCE)  # the launcher ends this rank, and names the other
        end_process_after(PATIENCE)


def _end_after_bug(error: Exception) -> None:
    """Record an unforeseen error for the launcher's summary; its traceback is the message."""
    set_exit_status(1)
    if world() > 1:
        error.add_note(f"(rank {rank()} of {world()})")
    write_error_file(summary(error))
    end_process_after(PATIENCE)
    report_to_other_machines(summary(error))


def _print_error(line: str) -> None:
    print(f"rank {rank()}: {line}" if rank() else line, file=sys.stderr, flush=True)
