"""``smart-train probe``: choose a layer and a late weight without training."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

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
    read_data,
    whole,
)
from smart_train.core.errors import UsageError, checks
from smart_train.core.folder_lock import own

if TYPE_CHECKING:
    from smart_train.config.schema import DataBlock, Recipe
    from smart_train.data.load import DevAndTest
    from smart_train.models.encoder import SmartEncoder
    from smart_train.probing.probe_run import Probed

LIMITS = ("dev", "test", "dev_documents", "test_documents")
ROWS = 8  # queries and documents that an applied folder is compared with


def add(commands: argparse._SubParsersAction) -> None:
    about = "find the layer and the late weight that rank best, without training; chosen on dev, reported on test"
    probe = commands.add_parser("probe", help=about, description=about)
    add_data(probe, "what it holds out is probed")
    add_model(probe, "folder of a trained adapter: its layers are read")
    probe.add_argument("--output", required=True, help="folder for probe.json, probe.csv, probe.png and late.yaml")
    probe.add_argument(
        "--apply", action="store_true", help="keep what is recommended: in the adapter, or OUTPUT/encoder"
    )
    probe.add_argument("--split", help="split to report on (default: test, or the only one)")
    probe.add_argument("--dev-split", help="split to choose on (default: dev or validation, else half of the other)")
    probe.add_argument("--dev", type=_amount, help="queries to choose on (default: all; pydocs: 200)")
    probe.add_argument("--test", type=_amount, help="queries to report on (default: all; pydocs: 300)")
    probe.add_argument("--dev-documents", type=count, help="documents to rank for --dev (default: all; pydocs: 400)")
    probe.add_argument("--test-documents", type=count, help="documents to rank for --test (default: all; pydocs: 1500)")
    probe.add_argument("--weights", type=_weight, nargs="+", help="late weights tried (default: 0.25 0.5 1 2 4 8)")
    probe.add_argument("--k", type=count, default=10, help="cut-off of the nDCG that chooses (default: %(default)s)")
    probe.add_argument(
        "--bootstrap", type=count, default=1000, help="resamples of a confidence interval (default: %(default)s)"
    )
    probe.add_argument(
        "--seed", type=whole, default=0, help="seed of the resampling and the diagnostics (default: %(default)s)"
    )
    add_reading(probe, chosen=False)
    probe.set_defaults(
        run=run,
        setting_names={**SETTING_NAMES, "evaluation.k": "--k", "data.allow_outside": "--data allow_outside=true"},
    )


def _amount(text: str) -> float | int:
    try:
        value = int(text) if text.isdigit() else float(text)
    except ValueError:
        value = -1
    if value < 0 or (isinstance(value, float) and value >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of queries (300) and no share of them (0.05)")
    return value


def _weight(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a weight above 0 (0 is the pooled score, which is there)")
    return value


def run(options: argparse.Namespace) -> None:
    from smart_train.data.load import dev_and_test
    from smart_train.evaluation.calibration import GRID
    from smart_train.probing.probe_report import recommendation, table
    from smart_train.probing.probe_run import run as probe

    output = Path(options.output)
    with checks():
        check_output(output)
        if options.apply and options.adapter and Path(options.adapter).is_dir():
            check_output(options.adapter, "--apply")
        if options.apply and options.adapter and not Path(options.adapter).is_dir():
            raise UsageError(f"--apply: {options.adapter} is not a local folder; download the adapter first")
        block, recipe = _data(options)
        base = check_reading(options, recipe)
        data = dev_and_test(block, options.split, options.dev_split, recipe is not None)
        check_pages((data.dev.corpus, data.test.corpus), options, base)
    print(f"dev and test: {data.origin}", flush=True)
    with own(output):
        encoder = make_encoder(options)
        probed = probe(
            encoder,
            data,
            output,
            adapter=options.adapter,
            weights=sorted(set(options.weights or GRID)),
            cut=options.k,
            batch_size=options.batch_size,
            bootstrap=options.bootstrap,
            seed=options.seed,
            progress=sys.stderr.isatty(),
        )
        print(table(probed.found))
        print(f"\n{recommendation(probed.found)}\n")
        print(f"metrics: {output / 'probe.json'}, {output / 'probe.csv'}; picture: {output / 'probe.png'}")
        print(f"for a recipe: {output / 'late.yaml'}")
        if options.apply:
            print(_apply(encoder, probed, data, options))


def _data(options: argparse.Namespace) -> tuple[DataBlock, Recipe | None]:
    """The data block, and the recipe where DATA is one, whose held-out splits are meant."""
    limits = {name: getattr(options, name) for name in LIMITS if getattr(options, name) is not None}
    given = list(options.words)
    options.words = [*(f"{name}={value}" for name, value in limits.items()), *given]
    block, recipe = read_data(options, dev=0, test=0)
    if recipe is not None and (options.split or options.dev_split):
        what = f"{options.data} is a recipe, which says itself what is held out"
        raise UsageError(f"{what}; leave out --split and --dev-split")
    return block, recipe


def _apply(encoder: SmartEncoder, probed: Probed, data: DevAndTest, options: argparse.Namespace) -> str:
    from smart_train.probing.probe_run import as_folder, to_adapter

    queries = list(data.test.queries.values())[:ROWS]
    documents = [document.content() for document in list(data.test.corpus.values())[:ROWS]]
    if not options.adapter:
        folder = as_folder(encoder, probed.late, Path(options.output) / "encoder", queries, documents)
        return f"applied: {folder}, verified; use it: --model {options.model} --adapter {folder}"
    folder = Path(options.adapter)
    if probed.found.chosen == 0:  # no proof that something helps is none that what was calibrated does not
        return f"not applied: {folder} reads what it read before, since nothing was found to be better than pooled"
    if to_adapter(encoder, probed.late, folder, queries, documents, base=options.model):
        return f"applied: {folder} reads it from now on; reloaded and verified"
    return f"applied: {folder} reads it from now on; it was never verified after training, and still is not"
