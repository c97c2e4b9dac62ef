"""``smart-train publish``: a run's verified adapter to the Hub, with a card of what was measured."""

from __future__ import annotations

import argparse
import re
from typing import Any

from smart_train.cli.export import KINDS, add_options
from smart_train.cli.options import ADAPTER_SETTING_NAMES, count
from smart_train.core.errors import UsageError


def add(commands: argparse._SubParsersAction) -> None:
    publish = commands.add_parser(
        "publish", help="upload a run's verified adapter to the Hub, with a card of its figures"
    )
    publish.add_argument("run_folder", metavar="RUN", help="a run's folder, or an adapter's")
    publish.add_argument("--repo", required=True, help="owner/name; it is made, private, if it is missing")
    publish.add_argument("--public", action="store_true", help="everyone may read it")
    publish.add_argument("--license", help="of the adapter, as the Hub names it: apache-2.0, mit ...")
    publish.add_argument("--dry-run", action="store_true", help="list what would go up, and send nothing")
    publish.add_argument(
        "--branch", "--revision", dest="branch", help="branch to commit to, made if missing (default: main)"
    )
    publish.add_argument("--tag", help="name of this commit, to load it by: v1")
    publish.add_argument("--commit-message", help="first line of the commit")
    publish.add_argument(
        "--include-examples", type=count, default=0, metavar="N", help="show N pairs of the data in the card"
    )
    publish.add_argument("--retries", type=int, help="of requests that may pass later (default: 4)")
    publish.add_argument("--export", choices=KINDS, help="publish whole weights, or a MultiVectorEncoder, made of it")
    add_options(publish.add_argument_group("with --export"))
    publish.set_defaults(run=run, setting_names=ADAPTER_SETTING_NAMES)


def run(options: argparse.Namespace) -> None:
    from smart_train.publishing.publisher import publish

    for flag in ("branch", "tag"):
        name = getattr(options, flag)
        # What git allows, without what only quotes would bring through a shell.
        if name is not None and (not re.fullmatch(r"\w[\w./-]*", name) or ".." in name or name.endswith((".", "/"))):
            raise UsageError(f"--{flag}: {name!r} cannot name a {flag}; use letters, digits, dots, dashes and _")
    if options.retries is not None and options.retries < 0:
        raise UsageError(f"--retries: {options.retries} is not 0 or more")
    publish(
        options.run_folder,
        options.repo,
        not options.public,
        options.license,
        options.dry_run,
        branch=options.branch,
        tag=options.tag,
        message=options.commit_message,
        examples=options.include_examples,
        retries=options.retries,
        export=options.export,
        **_of_export(options),
    )


def _of_export(options: argparse.Namespace) -> dict[str, Any]:
    names = ("base", "dtype", "whole_texts", "trust_remote_code", "trust_extensions", "device")
    given = {name: getattr(options, name) for name in names if getattr(options, name)}
    if given and options.export is None:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given).replace("-extensions", "-extension")
        raise UsageError(f"{flags}: only with --export; leave it out")
    return given
