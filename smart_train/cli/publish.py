"""``smart-train publish``: upload a run's verified adapter to the Hub, with a card of what was measured."""

from __future__ import annotations

import argparse
import re
from typing import Any

from smart_train.cli.export import KINDS, add_options
from smart_train.cli.options import ADAPTER_SETTING_NAMES, count
from smart_train.core.errors import UsageError


def add(commands: argparse._SubParsersAction) -> None:
    publish = commands.add_parser(
        "publish", help="upload a run's verified adapter to the Hub, with a card of its metrics"
    )
    publish.add_argument("run_folder", metavar="RUN", help="folder of a run, or of an adapter")
    publish.add_argument("--repo", required=True, help="owner/name; a private repository is created if it is missing")
    publish.add_argument("--public", action="store_true", help="the repository may be public (default: private)")
    publish.add_argument(
        "--license", help="licence of the adapter, as the Hub names it: apache-2.0, mit ... (default: not stated)"
    )
    publish.add_argument(
        "--dry-run", action="store_true", help="list what would be uploaded, show the card, send nothing"
    )
    publish.add_argument(
        "--branch", "--revision", dest="branch", help="branch to commit to, created if it is missing (default: main)"
    )
    publish.add_argument("--tag", help="name of this commit, such as v1 (default: none)")
    publish.add_argument("--commit-message", help="first line of the commit (default: what it holds)")
    publish.add_argument(
        "--include-examples",
        type=count,
        default=0,
        metavar="N",
        help="training pairs that the card shows (default: 0)",
    )
    publish.add_argument("--export", choices=KINDS, help="publish an export: whole weights, or a MultiVectorEncoder")
    add_options(publish.add_argument_group("with --export"))
    publish.set_defaults(
        run=run,
        setting_names={
            **ADAPTER_SETTING_NAMES,
            "publish.private": "--public",
            "publish.examples": "--include-examples",
        },
    )


def run(options: argparse.Namespace) -> None:
    from smart_train.publishing.publisher import publish

    for flag in ("branch", "tag"):
        name = getattr(options, flag)
        # What git allows, without what only quotes would bring through a shell.
        if name is not None and (not re.fullmatch(r"\w[\w./-]*", name) or ".." in name or name.endswith((".", "/"))):
            raise UsageError(f"--{flag}: {name!r} cannot name a {flag}; use letters, digits, dots, dashes and _")
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
