"""``smart-train export``: write an adapter as merged weights or as a MultiVectorEncoder of sentence-transformers."""

from __future__ import annotations

import argparse

from smart_train.cli.options import ADAPTER_SETTING_NAMES, DTYPES, add_trust, check_output

KINDS = ("merged", "multi-vector")


def add(commands: argparse._SubParsersAction) -> None:
    export = commands.add_parser("export", help="write an adapter as whole weights, or as a MultiVectorEncoder")
    export.add_argument("adapter", help="folder or Hub id of an adapter")
    export.add_argument(
        "--as", dest="kind", required=True, choices=KINDS, help="whole weights, or token vectors for MultiVectorEncoder"
    )
    export.add_argument("--output", "--out", required=True, help="folder to write; it must not exist")
    add_options(export)
    export.set_defaults(run=run, setting_names={**ADAPTER_SETTING_NAMES, "whole_texts": "--whole-texts"})


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of an export; ``publish --export`` takes the same."""
    parser.add_argument(
        "--base",
        "--model",
        dest="base",
        help="the base, if it has moved since training (default: where the adapter was trained)",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the written weights (default: the base's own)")
    parser.add_argument(
        "--whole-texts", action="store_true", help="chat models: export without the adapter's limits of texts"
    )
    add_trust(parser)
    parser.add_argument("--device", help="cpu, cuda:0 ... (default: a GPU if there is one)")


def run(options: argparse.Namespace) -> None:
    check_output(options.output, "--output")
    from smart_train.publishing.exporter import export

    export(
        options.adapter,
        options.kind,
        options.output,
        base=options.base,
        dtype=options.dtype,
        device=options.device,
        whole_texts=options.whole_texts,
        trust_remote_code=options.trust_remote_code,
        trust_extensions=options.trust_extensions,
    )
    how = {
        "merged": f'sentence_transformers.SentenceTransformer("{options.output}")   pooled vectors\n'
        f'smart_train.models.encoder.SmartEncoder.from_pretrained("{options.output}")   both views',
        "multi-vector": f'sentence_transformers.MultiVectorEncoder("{options.output}")   token vectors',
    }
    print(how[options.kind])
