"""``smart-train evaluate``: ranks a retrieval folder by pooled, late and hybrid scores.

Knows: arguments, what is printed.  Does not know: how ranking is done.  Nothing heavy is imported before it runs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from smart_train.commands.common import UsageError, add_model, add_reading, check_reading, count, make_encoder


def add(commands: argparse._SubParsersAction) -> None:
    evaluate = commands.add_parser("evaluate", help="rank a BEIR-layout folder by pooled, late and hybrid scores")
    evaluate.add_argument("data", help="folder with a corpus, queries and qrels of the split")
    add_model(evaluate, "folder of a trained adapter; its settings are used")
    evaluate.add_argument("--output", required=True, help="folder that metrics.json is written to")
    evaluate.add_argument("--split", default="test", help="qrels to use: %(default)s")
    evaluate.add_argument("--k", type=count, nargs="+", default=[1, 5, 10], help="cut-offs: 1 5 10")
    evaluate.add_argument("--bootstrap", type=count, default=1000, help="resamples of an interval: %(default)s")
    evaluate.add_argument("--seed", type=int, default=0, help="of the resampling: %(default)s")
    add_reading(evaluate)
    evaluate.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from smart_train.data.records import read_beir
    from smart_train.evaluation.report import table, write_metrics
    from smart_train.evaluation.retrieval import evaluate

    _check_output(Path(options.output))
    base = check_reading(options)
    collection = read_beir(options.data, options.split)
    pages = [document.id for document in collection.corpus.values() if document.image is not None]
    if pages and not base.vision:
        what = f"{len(pages)} documents of {options.data} are images, such as {pages[0]!r}"
        raise UsageError(f"--model: {what}, and {options.model} has no image side; choose a vision-language base")
    encoder = make_encoder(options)
    measured = evaluate(
        encoder,
        collection,
        k=sorted(set(options.k)),
        batch_size=options.batch_size,
        bootstrap=options.bootstrap,
        seed=options.seed,
        progress=sys.stderr.isatty(),
    )
    row = "trained" if options.adapter else "base"
    path = Path(options.output) / "metrics.json"
    write_metrics(path, {row: measured})
    print(table({row: measured.metrics}))
    print(f"{measured.queries} queries, {measured.documents} documents of {options.data}; figures: {path}")


def _check_output(output: Path) -> None:
    blocked = next((path for path in (output, *output.parents) if path.exists() and not path.is_dir()), None)
    if blocked is not None:
        raise UsageError(f"--output: {blocked} is a file; name a folder")
