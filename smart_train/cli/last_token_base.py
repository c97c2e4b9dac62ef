"""``smart-train last-token-base``: make an embedder from a plain language or vision-language model."""

from __future__ import annotations

import argparse

from smart_train.cli.options import DTYPES, check_output


def add(commands: argparse._SubParsersAction) -> None:
    about = "make an embedder with last-token pooling from a language model that has none"
    parser = commands.add_parser("last-token-base", help=about, description=about)
    parser.add_argument("model", help="the language model: Hub id, local folder, or package:NAME/FOLDER")
    parser.add_argument("--output", required=True, help="folder to write; it must not exist")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="dtype of the written weights (default: %(default)s, as stored)"
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run model code of the model's repository")
    parser.set_defaults(run=run, setting_names={"model.trust_remote_code": "--trust-remote-code"})


def run(options: argparse.Namespace) -> None:
    check_output(options.output)
    from smart_train.models.last_token_base import make_last_token_base

    folder = make_last_token_base(options.model, options.output, options.dtype, options.trust_remote_code)
    print(f"{folder}: an embedder with last-token pooling; train on it: model.base: {folder}")
