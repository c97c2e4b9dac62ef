"""``smart-train mine``: mine hard negatives for a retrieval folder."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smart_train.cli.options import (
    OUTSIDE,
    OUTSIDE_NAMES,
    SETTING_NAMES,
    add_data,
    add_model,
    add_reading,
    check_output,
    check_reading,
    count,
    make_encoder,
    read_data,
)
from smart_train.core.errors import UsageError, checks
from smart_train.core.folder_lock import own

if TYPE_CHECKING:
    from smart_train.config.schema import DataBlock, Recipe

WORDS = {
    "answer": "positives",
    "itself": "the query itself",
    "duplicate": "copies of a positive or of another candidate",
    "window": "pages next to a positive",
    "range": "ranks before the range",
    "max_relative": "scores too near to the positive's, or above (max-relative)",
    "margin": "scores too near to the positive's (margin)",
    "skip_top": "the hardest, left out by skip-top",
    "more": "more than -k",
}
HELD = ("dev", "test", "dev_documents", "test_documents", "near_duplicates")  # of a recipe's data: what it holds out
ROUNDS = """
to mine again during training, in a recipe:
data:
  path: {path}
  negatives: {k}
mining:
  rounds: {rounds}
  mode: {mode}"""


def add(commands: argparse._SubParsersAction) -> None:
    about = "find hard negatives for a retrieval folder, and store them in it"
    mine = commands.add_parser("mine", help=about, description=about)
    add_data(mine, "what it holds out is not mined; all but a folder with corpus, queries and qrels needs --output")
    add_model(mine, "folder of a trained adapter: mine again with what was trained")
    mine.add_argument("--output", "--out", help="folder that all of the data is written to, with its negatives")
    mine.add_argument(
        "--mode",
        choices=("pooled", "late", "hybrid"),
        default="hybrid",
        help="score to mine with (default: %(default)s)",
    )
    mine.add_argument(
        "-k", "--negatives", dest="k", type=count, default=8, help="most negatives per query (default: %(default)s)"
    )
    _thresholds(mine)
    mine.add_argument("--allow-outside", action="store_true", help=OUTSIDE)
    mine.add_argument("--split", help="split whose queries get negatives (default: train)")
    add_held_out(mine, "mined")
    mine.add_argument("--miner", metavar="NAME", help="find negatives with package.module:function (docs/mining.md)")
    mine.add_argument(
        "--reranker", metavar="NAME", help="judge candidates with package.module:function, such as a cross-encoder"
    )
    mine.add_argument(
        "--teacher", metavar="NAME", help="also store the scores of a teacher for distillation; see `smart-train score`"
    )
    mine.add_argument("--rounds", type=count, help="also print recipe lines that mine this often during training")
    add_reading(mine)
    mine.set_defaults(run=run, setting_names={**SETTING_NAMES, **OUTSIDE_NAMES, "out": "--output"})


def add_held_out(parser: argparse.ArgumentParser, done: str) -> None:
    """Options of what the recipe that will train holds out; done: what is not done to it."""
    of = "of the recipe that will train on this"
    parser.add_argument("--dev", type=_share, help=f"data.dev {of}: its dev documents are not {done}")
    parser.add_argument("--test", type=_share, help=f"data.test {of}: its test documents are not {done}")
    parser.add_argument("--dev-documents", type=count, help=f"data.dev_documents {of}: these are not {done}")
    parser.add_argument("--test-documents", type=count, help=f"data.test_documents {of}: these are not {done}")
    parser.add_argument(
        "--near-duplicates",
        choices=("keep", "together"),
        help=f"data.near_duplicates {of}: near copies of answers are not {done} (default: keep)",
    )


def read_held_out(options: argparse.Namespace) -> tuple[DataBlock, Recipe | None]:
    """Return the data block with what the recipe that will train holds out, and the recipe where DATA is one.

    Raises UsageError for --dev and the like beside a recipe, and for a recipe without data.path.
    """
    held = {name: getattr(options, name) for name in HELD if getattr(options, name) is not None}
    split = {"split": options.split} if options.split else {}
    options.words += ["allow_outside=true"] * options.allow_outside
    block, recipe = read_data(options, **held, **split)
    if recipe is None:
        return block, None
    given = [f"--{name.replace('_', '-')}" for name in (*held, *split)]
    if given:
        raise UsageError(
            f"{options.data} is a recipe, which says itself what is held out; leave out {', '.join(given)}"
        )
    if not block.path:
        raise UsageError(f"{options.data} has no data.path; name one of its data sets instead")
    return block, recipe


def in_folder(block: DataBlock, folder: Path) -> DataBlock:
    """Return the block of the retrieval folder that the data of ``block`` is in, with the same splits held out."""
    kept = {name: getattr(block, name) for name in (*HELD, "split", "allow_outside")}
    return type(block)(path=str(folder), **kept)


def _thresholds(mine: argparse.ArgumentParser) -> None:
    mine.add_argument(
        "--max-relative",
        type=float,
        default=0.95,
        help="most of a negative's score, as a share of the positive's (default: %(default)s)",
    )
    mine.add_argument("--no-max-relative", action="store_const", const=None, dest="max_relative", help="no such limit")
    mine.add_argument(
        "--margin", type=float, help="least distance of a negative's score below the positive's (default: none)"
    )
    mine.add_argument(
        "--range",
        type=int,
        nargs=2,
        default=(0, 100),
        metavar=("FIRST", "END"),
        help="ranks that are considered, from FIRST to before END (default: 0 100)",
    )
    mine.add_argument("--skip-top", type=int, default=0, help="hardest negatives to leave out (default: %(default)s)")
    mine.add_argument(
        "--window", type=int, help="leave out pages at most this many from a positive in its file (default: none)"
    )
    mine.add_argument(
        "--sampling",
        choices=("top", "random"),
        default="top",
        help="how negatives are chosen of those that pass (default: %(default)s)",
    )
    mine.add_argument("--seed", type=int, default=0, help="seed of --sampling random (default: %(default)s)")


def _share(text: str) -> float | int:
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no share (0.05) and no number of queries (300)") from None


def run(options: argparse.Namespace) -> None:
    from smart_train.mining.extensions import MINERS, RERANKERS, load_callable
    from smart_train.mining.folder import PICTURE, REPORT, mine_folder, mining_folder
    from smart_train.mining.selection import MiningOptions
    from smart_train.mining.teachers import check_teacher, made_teacher

    names = ("k", "mode", "max_relative", "margin", "skip_top", "window", "sampling", "seed")
    with checks():
        block, recipe = read_held_out(options)
        if options.output or Path(str(block.path)).is_dir():  # anything else is refused without --output
            check_output(options.output or str(block.path), "--output" if options.output else "DATA")
        chosen = MiningOptions(**{name: getattr(options, name) for name in names}, range=tuple(options.range))
        extensions: dict[str, Any] = {
            name: load_callable(registry, getattr(options, name))
            for name, registry in (("miner", MINERS), ("reranker", RERANKERS))
            if getattr(options, name)
        }
        if options.teacher:
            check_teacher([options.teacher])
        check_reading(options, recipe)
        folder = mining_folder(block, options.output)
    data = in_folder(block, folder)
    parts = [Path(name).name if Path(name).exists() else name for name in (options.model, options.adapter) if name]
    parts += [f"{name} {getattr(options, name)}" for name in ("miner", "reranker") if name in extensions]
    model = " + ".join(parts)  # stored with the data, so without the folders of this machine
    with own(folder / "mining"):
        encoder = make_encoder(options)
        if options.teacher:
            extensions["teacher"] = made_teacher(options.teacher)
        progress = sys.stderr.isatty()
        mined = mine_folder(
            data, encoder, chosen, model=model, batch_size=options.batch_size, progress=progress, **extensions
        )
        quantiles = {} if mined.ratios is None else mined.ratios.quantiles()
        print(_summary(mined.counts, quantiles, mined.seconds))
        if "teacher" in extensions:
            print(f"teacher scores: {folder / 'teacher'}")
        print(f"{folder / 'negatives'}; report: {folder / 'mining' / REPORT}; picture: {folder / 'mining' / PICTURE}")
        if options.rounds:
            print(ROUNDS.format(path=folder, k=min(chosen.k, 4), rounds=options.rounds, mode=chosen.mode))


def _summary(counts: Counter[str], quantiles: dict[str, float], seconds: float) -> str:
    rate = counts["documents"] / max(seconds, 1e-9)
    lines = [
        f"{counts['mined']} negatives of {counts['queries']} queries from {counts['documents']} documents "
        f"({seconds:.0f} s, {rate:.0f} documents a second)"
    ]
    for name, what in (
        ("short", "queries with fewer than -k"),
        ("none", "of them without any"),
        ("unanswered", "queries without a positive in the corpus, not mined for"),
        ("held_out", "documents of other splits, not candidates"),
    ):
        if counts[name]:
            lines.append(f"{counts[name]:>10}  {what}")
    not_taken = {what: counts[name] for name, what in WORDS.items() if counts[name]}
    lines += ["not taken, within the range:", *(f"{count:>10}  {what}" for what, count in not_taken.items())]
    if quantiles:
        lines.append(
            f"a negative's score as a share of the positive's: median {quantiles['0.5']:.2f}; "
            f"nine in ten between {quantiles['0.05']:.2f} and {quantiles['0.95']:.2f}"
        )
    return "\n".join(lines)
