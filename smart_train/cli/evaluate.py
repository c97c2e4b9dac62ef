"""``smart-train evaluate``: measure pooled, late and hybrid retrieval, beside BM25 and another evaluation."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from smart_train.cli.options import (
    SETTING_NAMES,
    add_data,
    add_model,
    add_reading,
    check_output,
    check_pages,
    check_reading,
    count,
    make_encoder,
    own_gpu,
    read_data,
    whole,
)
from smart_train.core.environment import rank, world
from smart_train.core.errors import checks
from smart_train.core.folder_lock import own
from smart_train.core.hub import display_name


def add(commands: argparse._SubParsersAction) -> None:
    about = "measure pooled, late and hybrid retrieval on data"
    evaluate = commands.add_parser("evaluate", help=about, description=about)
    add_data(evaluate, "what it holds out is measured")
    add_model(evaluate, "folder of a trained adapter; its settings are used")
    evaluate.add_argument("--output", help="folder for metrics.json, evaluation.json, table.txt, two .csv, report.html")
    evaluate.add_argument("--split", default="test", help="split to measure (default: %(default)s)")
    evaluate.add_argument(
        "--k", type=count, nargs="+", default=[1, 5, 10], help="cut-offs of the metrics (default: 1 5 10)"
    )
    evaluate.add_argument(
        "--bootstrap", type=count, default=1000, help="resamples of a confidence interval (default: %(default)s)"
    )
    evaluate.add_argument("--seed", type=whole, default=0, help="seed of the resampling (default: %(default)s)")
    evaluate.add_argument("--baseline", metavar="DIR", help="folder of an evaluation or a run to compare with")
    evaluate.add_argument(
        "--baseline-row", metavar="ROW", help="row of --baseline: base or trained (default: the last)"
    )
    evaluate.add_argument("--no-bm25", dest="bm25", action="store_false", help="leave the BM25 row out")
    evaluate.add_argument(
        "--store", metavar="DIR", help="folder to keep document vectors in; a later run continues there"
    )
    evaluate.add_argument(
        "--processes", type=count, default=1, help="processes that share the work (default: %(default)s)"
    )
    shown = "queries with the lowest metric to show in the report (default: %(default)s)"
    evaluate.add_argument("--failure-cases", "--worst", type=whole, default=10, metavar="N", help=shown)
    evaluate.add_argument(
        "--heatmaps", type=whole, default=3, help="worst queries with heatmaps of their pages (default: %(default)s)"
    )
    add_reading(evaluate)
    names = {
        **SETTING_NAMES,
        "evaluation.k": "--k",
        "evaluation.bm25": "--no-bm25",
        "data.allow_outside": "--data allow_outside=true",
    }
    evaluate.set_defaults(run=run, setting_names=names)


def run(options: argparse.Namespace) -> int:
    if options.processes > 1 and world() == 1:
        from smart_train.distributed.local_launch import launch_local, remove_option

        return launch_local(options.processes, remove_option(options.arguments, "--processes"))
    with checks():
        if options.output is not None:
            check_output(options.output)
        if options.store is not None:
            check_output(options.store, "--store")
        data, recipe = read_data(options, split=options.split)
        base = check_reading(options, recipe)

        from smart_train.distributed.process_group import launched_group
        from smart_train.evaluation.baseline import read_baseline
        from smart_train.evaluation.evaluator import (
            EvaluationOptions,
            evaluate_data,
            images_of,
            write_report,
        )
        from smart_train.evaluation.evaluator import read_data as read_evaluation_data
        from smart_train.evaluation.report.metric_tables import evaluation_table

        if options.baseline is not None:
            read_baseline(options.baseline, options.baseline_row)
        evaluation_data = read_evaluation_data(data, options.split, recipe is not None)
        check_pages((evaluation_data.collection.corpus,), options, base)
    pages = images_of(evaluation_data.collection)
    names = (
        "bootstrap",
        "seed",
        "batch_size",
        "store",
        "baseline",
        "baseline_row",
        "bm25",
        "failure_cases",
        "heatmaps",
    )
    chosen = {name: getattr(options, name) for name in names}
    plan = EvaluationOptions(k=tuple(sorted(set(options.k))), histograms=options.output is not None, **chosen)
    with own(options.output if rank() == 0 else None), own(options.store if rank() == 0 else None):
        own_gpu(options)
        with launched_group() as group:
            encoder = make_encoder(options)
            # A folder of settings alone, as probe --apply makes, reads the base in another way: nothing was trained.
            trained = encoder.adapter is not None or bool(encoder.head.state_dict())
            row = "trained" if options.adapter and trained else "base"
            about = {
                "base": display_name(options.model),
                "adapter": display_name(options.adapter) if options.adapter else None,
            }
            outcome = evaluate_data(
                encoder, evaluation_data, plan, row, about, progress=sys.stderr.isatty(), group=group
            )
        if outcome is None:
            return 0
        if options.output:  # before anything is printed: whoever reads that may have gone
            heatmap = _heatmap(encoder) if plan.heatmaps and pages else None
            write_report(outcome, evaluation_data.collection.corpus, Path(options.output), plan, heatmap)
        print(evaluation_table(outcome))
        if options.output:
            print(f"\nmetrics: {Path(options.output) / 'metrics.json'}; report: {Path(options.output) / 'report.html'}")
        return 0


def _heatmap(encoder: Any) -> Any:
    from smart_train.interpretability.drawing import page_heatmap

    return lambda query, document: page_heatmap(encoder, query, document)
