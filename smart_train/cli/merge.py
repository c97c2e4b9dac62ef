"""``smart-train merge``: merge adapters of one base into one, and score it beside its parts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from smart_train.cli.options import (
    ADAPTER_SETTING_NAMES,
    OUTSIDE,
    OUTSIDE_NAMES,
    add_trust,
    check_output,
    count,
    read_data,
)
from smart_train.core.errors import UsageError, checks


def add(commands: argparse._SubParsersAction) -> None:
    about = "write the weighted sum of several adapters of one base, and score it beside them"
    merge = commands.add_parser("merge", help=about, description=about)
    merge.add_argument("adapters", nargs="+", help="folders or Hub ids; same base, targets, layer and head")
    merge.add_argument("--weights", type=float, nargs="+", help="one for each adapter (default: equal, with sum 1)")
    merge.add_argument(
        "--output", "--out", required=True, help="folder to write: adapter/ and, with --data, metrics.json"
    )
    merge.add_argument(
        "--data", nargs="+", metavar=("DATA", "KEY=VALUE"),
        help="data or a recipe to score them on, and keys of a data block: test is measured, dev gives the "
        "hybrid weight (default: not scored)",
    )  # fmt: skip
    merge.add_argument("--allow-outside", action="store_true", help=OUTSIDE)
    merge.add_argument("--split", help="split to report on (default: test, or the only one)")
    merge.add_argument("--dev-split", help="split to fit on (default: dev, else half of the other)")
    merge.add_argument(
        "--base",
        "--model",
        dest="base",
        help="the base, if it has moved since training (default: where they were trained)",
    )
    merge.add_argument("--batch-size", type=count, default=32, help="rows encoded at once (default: %(default)s)")
    add_trust(merge)
    merge.add_argument("--device", help="cpu, cuda:0 ... (default: a GPU if there is one)")
    names = {**ADAPTER_SETTING_NAMES, **OUTSIDE_NAMES, "data.path": "--data", "data.split": "--split"}
    merge.set_defaults(run=run, setting_names=names)


def run(options: argparse.Namespace) -> None:
    if len(options.adapters) < 2:
        raise UsageError("only one adapter is named; name two or more")
    weights = options.weights or [1 / len(options.adapters)] * len(options.adapters)
    if len(weights) != len(options.adapters):
        raise UsageError(f"--weights: {len(options.adapters)} adapters and {len(weights)} weights; give one each")
    check_output(options.output, "--output")
    from smart_train.data.load import dev_and_test
    from smart_train.publishing.merger import merge

    out = Path(options.output)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--output: {out} already exists and was not changed; name a new folder")
    data = None
    if options.data:
        with checks():
            options.data, *options.words = options.data
            options.words += ["allow_outside=true"] * options.allow_outside
            block, recipe = read_data(options, dev=0, test=0)
            data = dev_and_test(block, options.split, options.dev_split, recipe is not None)
    reading = {name: getattr(options, name) for name in ("base", "device", "trust_remote_code", "trust_extensions")}
    folder = merge(options.adapters, weights, out / "adapter", **reading)
    print(f"adapter: {folder}, verified")
    if data is None:
        print("not scored: give --data to see whether it is as good as its parts")
        return
    from smart_train.publishing.merger import rescore

    print(f"dev and test: {data.origin}", flush=True)
    rows = {f"{number} {_name(source)}": source for number, source in enumerate(options.adapters, 1)}
    progress = sys.stderr.isatty()
    print(rescore(folder, rows, data.dev, data.test, out, options.batch_size, progress, **reading))
    print(f"figures: {out / 'metrics.json'}")


def _name(source: str) -> str:
    """Of a run's adapter, the run's."""
    path = Path(source)
    return path.resolve().parent.name if path.name == "adapter" else path.name
