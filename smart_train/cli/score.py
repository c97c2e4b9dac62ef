"""``smart-train score``: let a teacher score queries' documents, for distillation."""

from __future__ import annotations

import argparse
from pathlib import Path

from smart_train.cli.mine import add_held_out, in_folder, read_held_out
from smart_train.cli.options import OUTSIDE, OUTSIDE_NAMES, add_data, check_output, count
from smart_train.core.errors import checks

NEXT = """
to learn from the scores, in a recipe:
data: {{path: {path}, negatives: {negatives}}}
objective:
  teacher:
    {{weight: 1.0, temperature: 0.02, teacher_temperature: 0.2, normalise: {normalise}, score: each}}"""


def add(commands: argparse._SubParsersAction) -> None:
    about = "let a teacher score each query's positives and hard negatives, for distillation"
    score = commands.add_parser("score", help=about, description=about)
    add_data(score, "what it holds out is not scored; all but a folder with corpus, queries and qrels needs --output")
    score.add_argument(
        "--teacher",
        action="append",
        required=True,
        dest="teachers",
        metavar="TEACHER",
        help="pooled:MODEL, late:MODEL or hybrid:MODEL (a base or a trained adapter), cross_encoder:MODEL, bm25, or "
        "package.module:function; several are added up",
    )
    score.add_argument(
        "--weights", type=float, nargs="+", metavar="W", help="weight of each --teacher in the sum (default: all 1)"
    )
    score.add_argument(
        "--normalise",
        choices=("minmax", "zscore", "none"),
        default="minmax",
        help="what brings several teachers to one unit, query by query (default: %(default)s)",
    )
    score.add_argument(
        "--ways",
        type=count,
        default=16,
        help="documents a query: positives, then its negatives, hardest first (default: %(default)s)",
    )
    score.add_argument(
        "--no-sample", action="store_true", help="do not fill up with random documents, which become negatives too"
    )
    score.add_argument("--seed", type=int, default=0, help="seed of the random documents (default: %(default)s)")
    score.add_argument("--output", "--out", help="folder that all of the data is written to, with the scores")
    score.add_argument("--allow-outside", action="store_true", help=OUTSIDE)
    score.add_argument("--split", help="split whose queries get scores (default: train)")
    add_held_out(score, "sampled")
    score.set_defaults(run=run, setting_names={**OUTSIDE_NAMES, "data.split": "--split", "out": "--output"})


def run(options: argparse.Namespace) -> None:
    from smart_train.mining.folder import mining_folder, score_folder
    from smart_train.mining.teachers import EnsembleTeacher, check_teacher, made_teacher

    with checks():
        block, _ = read_held_out(options)
        if options.output or Path(str(block.path)).is_dir():
            check_output(options.output or str(block.path), "--output" if options.output else "DATA")
        weights = check_teacher(options.teachers, options.weights)
        folder = mining_folder(block, options.output)
    data = in_folder(block, folder)
    alone = len(options.teachers) == 1
    teacher = (
        made_teacher(options.teachers[0]) if alone else EnsembleTeacher(options.teachers, weights, options.normalise)
    )
    found = score_folder(data, teacher, ways=options.ways, sample=not options.no_sample, seed=options.seed)
    print(f"{found.pairs:,} scores of {found.queries:,} queries ({found.pairs / found.queries:.1f} a query)")
    for number, what in (
        (found.unanswered, "queries without a positive in the corpus, not scored"),
        (found.cut, "hard negatives beyond --ways, not scored"),
        (found.sampled, f"random documents, which fill up {found.filled:,} queries and became negatives of theirs"),
    ):
        if number:
            print(f"{number:>10,}  {what}")
    print(f"the teacher ranks a positive first for {100 * found.agreement:.0f} % of the queries")
    print(f"{folder / 'teacher'}")
    normalise = "minmax" if alone else "none"  # an ensemble has one unit already
    negatives = max(1, min(options.ways - 1, 7))
    print(NEXT.format(path=folder, negatives=negatives, normalise=normalise))
