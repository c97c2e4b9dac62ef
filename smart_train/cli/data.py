"""``smart-train data``: check a data set, send it to the Hub and fetch one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smart_train.cli.options import OUTSIDE, OUTSIDE_NAMES, check_output
from smart_train.core.errors import UsageError

if TYPE_CHECKING:
    from smart_train.data.validate import Finding, Report

PROBLEMS = 3
SHOWN = 5  # ids of a finding
NEAR = (
    "  In a recipe, data.near_duplicates: together makes each group one document for splits, batches, the loss and "
    "mining.\n  --fix OUT --near-duplicates merge makes near copies of answers answers, too."
)


def add(commands: argparse._SubParsersAction) -> None:
    """Adds ``data`` with its own commands."""
    data = commands.add_parser("data", help="check a data set, send it to the Hub, fetch one")
    kinds = data.add_subparsers(required=True, metavar="COMMAND")

    check = kinds.add_parser("check", help="report what is wrong with a data set, and what would be dropped")
    check.add_argument("path", help="folder (BEIR, ingest ...), table, or Hub dataset")
    check.add_argument("--fix", "--output", metavar="OUT", help="new folder to write the clean data to")
    check.add_argument(
        "--ignore", action="append", default=[], metavar="KIND", help="kind of finding to ignore; may be repeated"
    )
    check.add_argument(
        "--similar",
        type=float,
        default=0.8,
        help="similarity from which queries count as the same (default: %(default)s)",
    )
    check.add_argument(
        "--near-duplicates",
        choices=("report", "merge", "ignore"),
        default="report",
        help="documents of mostly the same words: count them; make near copies of answers answers, too; or do not "
        "look for them (default: %(default)s)",
    )
    check.add_argument("--jobs", type=int, help="threads that decode images (default: one for each core)")
    check.add_argument(
        "--no-images", action="store_true", help="do not decode images; broken ones and copies stay unknown"
    )
    check.add_argument("--allow-outside", action="store_true", help=OUTSIDE)
    for name in ("format", "query", "document", "image", "id", "label", "scores", "subset", "revision"):
        check.add_argument(f"--{name}", help=f"as data.{name} in a recipe")
    names = {f"data.{name}": f"--{name}" for name in ("label", "scores")}
    check.set_defaults(run=_check, setting_names=OUTSIDE_NAMES | names)

    push = kinds.add_parser("push", help="upload a data set to the Hub, images inside")
    push.add_argument("path", help="folder of a data set")
    push.add_argument("--repo", required=True, help="owner/name; a private repository is created if it is missing")
    push.add_argument("--public", action="store_true", help="the repository may be public (default: private)")
    outside = "also upload images and texts that lie outside of the data's folder, by a path or a link"
    push.add_argument("--allow-outside", action="store_true", help=outside)
    push.add_argument(
        "--allow-secrets",
        action="store_true",
        help="also upload texts that hold what looks like a secret or a private path (default: refused, by row)",
    )
    names = {"public": "--public", "allow_secrets": "--allow-secrets", **OUTSIDE_NAMES}
    push.set_defaults(run=_push, setting_names=names)

    pull = kinds.add_parser("pull", help="fetch a data set from the Hub into a folder")
    pull.add_argument("repo", help="owner/name")
    pull.add_argument("--output", "--out", required=True, help="folder to write; it must not exist")
    pull.add_argument("--revision", help="branch, tag or commit (default: the newest)")
    pull.add_argument("--subset", help="configuration, or language of a set of several")
    pull.set_defaults(run=_pull)


def _check(options: argparse.Namespace) -> int:
    from smart_train.config.schema import DataBlock
    from smart_train.core.errors import DataError
    from smart_train.data.load import read_all_with_warnings
    from smart_train.data.store import write_dataset
    from smart_train.data.validate import KINDS, validate

    unknown = sorted(set(options.ignore) - set(KINDS))
    if unknown:
        raise UsageError(f"--ignore: there is no kind {unknown[0]!r}; there are {', '.join(KINDS)}")
    if not 0 < options.similar <= 1:
        raise UsageError(f"--similar: {options.similar} is not above 0 and at most 1")
    if options.jobs is not None and options.jobs < 1:
        raise UsageError(f"--jobs: {options.jobs} is not 1 or more")
    if options.fix:
        check_output(options.fix, "--fix")
    if options.fix and _filled(Path(options.fix)):
        raise UsageError(f"--fix: {options.fix} already exists and is not empty; name a new folder")
    columns = ("document", "image", "id", "label", "scores")
    given = {name: getattr(options, name) for name in (*columns, "subset", "revision")}
    named = {name: value for name in ("format", "query") if (value := getattr(options, name)) is not None}
    data = DataBlock(path=options.path, allow_outside=options.allow_outside, **named, **given)
    dataset, warned = read_all_with_warnings(data)
    report = validate(
        dataset,
        not options.no_images,
        options.jobs,
        options.similar,
        options.ignore,
        _shown("decoding"),
        options.near_duplicates,
        warned,
    )
    print("\n".join(report_lines(report)), flush=True)
    if not report.findings:
        return 0
    if not options.fix:
        print(f"Nothing was changed. Write what is left: smart-train data check {options.path} --fix OUT")
        return PROBLEMS
    if report.emptied():
        fix = "--ignore KIND keeps what a kind of finding takes"
        raise DataError(f"nothing would be left of {', '.join(report.emptied())}, so nothing was written; {fix}")
    write_dataset(report.clean, Path(options.fix))
    print(f"What is left is written: {options.fix}")
    return 0


def _named(finding: Finding) -> list[str]:
    """Return ids on one line, sentences on a line each."""
    from smart_train.data.collection import first_few

    return finding.ids if finding.kind == "source" else [first_few(finding.ids, SHOWN)]


def report_lines(report: Report) -> list[str]:
    """Return the lines of a report: the counts, the problems and what would be dropped."""
    from smart_train.data.validate import KINDS

    dataset = report.dataset
    pages = sum(document.image is not None for document in dataset.corpus.values())
    splits = ", ".join(f"{name} {len(qrels):,}" for name, qrels in dataset.splits.items())
    lines = [f"{dataset.name}: {len(dataset.corpus):,} documents ({pages:,} with an image)"]
    lines[0] += f", {len(dataset.queries):,} queries"
    lines[0] += f"; judged in {splits}" if splits else "; no qrels"
    for finding in report.findings:
        where = f" ({finding.where})" if finding.where else ""
        lines += [
            f"  {len(finding.ids):>7,}  {finding.kind}{where}: {KINDS[finding.kind]}",
            *(f"           {line}" for line in _named(finding)),
        ]
    if report.near:
        lines += ["Near copies (texts of mostly the same words):", *(f"  {line}" for line in report.near), NEAR]
    if not report.findings:
        return [*lines, "Nothing else was found." if report.near else "Nothing is wrong with it."]
    drops = [f"{count:,} of {total:,} {what}" for what, (count, total) in report.drops().items() if count > 0]
    return [*lines, f"Would drop: {', '.join(drops) or 'nothing'}."]


def _push(options: argparse.Namespace) -> None:
    from smart_train.data.hub_transfer import push

    address = push(options.path, options.repo, not options.public, options.allow_outside, options.allow_secrets)
    print(f"{address} holds {options.path}")


def _pull(options: argparse.Namespace) -> None:
    from smart_train.data.hub_transfer import pull

    check_output(options.output, "--output")
    if _filled(Path(options.output)):
        raise UsageError(f"--output: {options.output} already exists and is not empty; name a new folder")
    dataset = pull(options.repo, options.output, options.revision, options.subset)
    print(f"{options.output}: {len(dataset.corpus):,} documents, {len(dataset.queries):,} queries")


def _filled(path: Path) -> bool:
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def _shown(what: str) -> Any:
    """A progress bar with rate and time left on a terminal, nothing elsewhere."""

    def progress(documents: Iterable[Any], total: int) -> Iterable[Any]:
        from tqdm import tqdm

        return tqdm(documents, what, total, unit=" documents", disable=not sys.stderr.isatty(), leave=False)

    return progress
