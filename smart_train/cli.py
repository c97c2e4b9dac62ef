"""Commands; each calls one function of the library.

Knows: arguments, what is printed, exit statuses (0 = done, 1 = failed with a reason, 2 = the request is wrong).
Does not know: models, data, training.  Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smart_train.bases import BaseNotFound
from smart_train.recipe_types import RecipeError

if TYPE_CHECKING:
    from smart_train.base_config import BaseConfig
    from smart_train.model.encoder import SmartEncoder

# Seconds.  Every rank finds the same mistake in a recipe and rank 0 tells it; the launcher ends the others while they
# wait, and would end rank 0 before its message if one of them left first.  Who is still there then tells it too.
PATIENCE = 30
# Keys of the model block that an adapter brings along, each the name of a flag of ``evaluate`` too.
STORED = ("revision", "query_tokens", "document_tokens", "query_prompt", "document_prompt", "max_pixels")
DTYPES = ("auto", "float32", "bfloat16", "float16")
FLAGS = {  # what the library tells those who write recipes or Python -> the flag of ``evaluate``
    "write model.trust_remote_code: true": "give --trust-remote-code",
    "from_pretrained(..., trust_remote_code=True)": "give --trust-remote-code",
    "from_pretrained(..., base=FOLDER)": "--model FOLDER",
    "model.revision in a recipe": "--revision",
    "model.revision": "--revision",
    "model.dtype": "--dtype",
    "model.base": "--model",
    "late.layer": "--layer",
}


class UsageError(ValueError):
    """What was asked for does not work; the message says what does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; errors that this package foresees are one line, no traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    given = [a for a in given if not re.fullmatch(r"--local[-_]rank=-?\d+", a)]  # the deepspeed launcher adds it
    parser = _parser()
    options, unknown = parser.parse_known_args(given)
    if unknown and options.run is not _train:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if unknown:  # --training.max_steps=2 and the like: the recipe's reader says how it is written
        options.overrides = unknown + options.overrides
    _speak()
    try:
        return int(options.run(options) or 0)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if not type(error).__module__.startswith("smart_train"):
            raise  # not foreseen: the traceback is the message
        wrong = isinstance(error, RecipeError | BaseNotFound | UsageError)
        rank = _rank()
        if wrong and rank:
            time.sleep(PATIENCE)
        told = _in_flags(str(error)) if options.run is _evaluate else str(error)
        print(f"rank {rank}: {told}" if rank else told, file=sys.stderr, flush=True)
        return 2 if wrong else 1


def _in_flags(told: str) -> str:
    for key, flag in FLAGS.items():
        told = told.replace(key, flag)
    return told


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


class _Terminal(logging.Handler):
    """Messages as they are, to what is standard output at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


def _speak() -> None:
    """This package's log goes to the terminal, from rank 0; other ranks and other packages tell warnings only."""
    log = logging.getLogger("smart_train")
    log.setLevel(logging.INFO if _rank() == 0 else logging.WARNING)
    if not any(isinstance(handler, _Terminal) for handler in log.handlers):
        log.addHandler(_Terminal())


def _parser() -> argparse.ArgumentParser:
    about = "Train any single-vector embedder as a pooled and a late-interaction retriever at once."
    parser = argparse.ArgumentParser(prog="smart-train", description=about)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="run a recipe (also: accelerate launch FILE)")
    train.add_argument("file", help="the recipe, a YAML file")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="for example training.max_steps=2")
    train.set_defaults(run=_train)

    new = commands.add_parser("new", help="write a commented recipe to start from")
    new.add_argument("name", help="NAME or a path; NAME.yaml is written")
    new.add_argument("--from", dest="template", default="text_lora", help="shipped recipe to start from: %(default)s")
    new.set_defaults(run=_new)

    evaluate = commands.add_parser("evaluate", help="rank a BEIR-layout folder by pooled, late and hybrid scores")
    evaluate.add_argument("data", help="folder with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv")
    evaluate.add_argument("--model", required=True, help="Hub id, local folder, or package:NAME/FOLDER")
    evaluate.add_argument("--adapter", help="folder of a trained adapter; its settings are used")
    evaluate.add_argument("--output", required=True, help="folder that metrics.json is written to")
    evaluate.add_argument("--layer", type=int, help="tokens' layer: 0 = embeddings, k = block k, -1 = last (default)")
    evaluate.add_argument("--split", default="test", help="qrels to use: %(default)s")
    evaluate.add_argument("--batch-size", type=_count, default=32, help="rows encoded at once: %(default)s")
    evaluate.add_argument("--k", type=_count, nargs="+", default=[1, 5, 10], help="cut-offs: 1 5 10")
    evaluate.add_argument("--bootstrap", type=_count, default=1000, help="resamples of an interval: %(default)s")
    evaluate.add_argument("--seed", type=int, default=0, help="of the resampling: %(default)s")
    evaluate.add_argument("--late-weight", type=float, help="weight of the late score in the hybrid (pooled has 1)")
    evaluate.add_argument("--query-tokens", type=_count, help="longest query (default: the model's own limit)")
    evaluate.add_argument("--document-tokens", type=_count, help="longest document text")
    evaluate.add_argument("--query-prompt", help="put before a query (default: the model's own)")
    evaluate.add_argument("--document-prompt", help="put before a document")
    evaluate.add_argument("--max-pixels", type=_count, help="pixel budget of an image")
    evaluate.add_argument("--revision", help="Hub branch, tag or commit of --model (default: the newest)")
    evaluate.add_argument("--dtype", choices=DTYPES, help="how the base is held in memory (default: as it is stored)")
    evaluate.add_argument("--trust-remote-code", action="store_true", help="run model code of the base's repository")
    evaluate.add_argument("--device", help="cpu, cuda:0 ... (default: the best there is)")
    evaluate.set_defaults(run=_evaluate)

    publish = commands.add_parser(
        "publish", help="upload a run's verified adapter to the Hub, with a card of its figures"
    )
    publish.add_argument("run_folder", metavar="RUN", help="a run's folder, or an adapter's")
    publish.add_argument("--repo", required=True, help="owner/name; it is made, private, if it is missing")
    publish.add_argument("--public", action="store_true", help="everyone may read it")
    publish.add_argument("--license", help="of the adapter, as the Hub names it: apache-2.0, mit ...")
    publish.add_argument("--dry-run", action="store_true", help="list what would go up, and send nothing")
    publish.set_defaults(run=_publish)
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


# Commands ------------------------------------------------------------------------------------------------------------


def _train(options: argparse.Namespace) -> None:
    from smart_train.recipe import read
    from smart_train.recipe_check import check

    path = Path(options.file)
    recipe = read(path, options.overrides)
    check(recipe)
    from smart_train.train import run

    run(recipe, path)


def _new(options: argparse.Namespace) -> None:
    from smart_train.recipe_docs import shipped, written_for

    templates = shipped()
    if options.template not in templates:
        raise UsageError(f"there is no recipe {options.template!r}; shipped are {', '.join(sorted(templates))}")
    path = Path(options.name)
    path = path if path.suffix in (".yaml", ".yml") else path.with_name(path.name + ".yaml")
    if not re.fullmatch(r"\w[\w.-]*", path.stem):
        raise UsageError(f"{path.stem!r} cannot name a recipe; use letters, digits, dots, dashes and _")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf8") as stream:
            stream.write(written_for(templates[options.template], path))
    except FileExistsError:
        raise UsageError(f"{path} is there already and was left as it is; choose another name") from None
    print(f"{path} is written. Set model.base and data.path in it, then: accelerate launch {path}")


def _evaluate(options: argparse.Namespace) -> None:
    from smart_train.data.records import read_beir
    from smart_train.evaluation.report import table, write_metrics
    from smart_train.evaluation.retrieval import evaluate

    base = _check_reading(options)
    collection = read_beir(options.data, options.split)
    pages = [document.id for document in collection.corpus.values() if document.image is not None]
    if pages and not base.vision:
        what = f"{len(pages)} documents of {options.data} are images, such as {pages[0]!r}"
        raise UsageError(f"--model: {what}, and {options.model} has no image side; choose a vision-language base")
    encoder = _encoder(options)
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


def _check_reading(options: argparse.Namespace) -> BaseConfig:
    """The sizes of the base; refuses what can be refused before data and a model are read."""
    from smart_train.base_config import read_base
    from smart_train.model.files import SETTINGS

    if options.adapter:
        stored = [f"--{name.replace('_', '-')}" for name in STORED if getattr(options, name) is not None]
        if stored:
            raise UsageError(f"the adapter brings its own {', '.join(stored)}; leave them out")
    elif (Path(options.model) / SETTINGS).is_file():  # its head and hybrid weights would be left out
        raise UsageError(f"{options.model} is a trained encoder; write --model ITS_BASE --adapter {options.model}")
    output = Path(options.output)
    blocked = next((path for path in (output, *output.parents) if path.exists() and not path.is_dir()), None)
    if blocked is not None:
        raise UsageError(f"--output: {blocked} is a file; name a folder")
    base = read_base(options.model, options.revision, options.trust_remote_code)
    for name in ("query_tokens", "document_tokens"):
        limit = getattr(options, name)
        if limit is not None and base.positions is not None and limit > base.positions:
            what = f"{options.model} has {base.positions} positions, {limit} tokens are more"
            raise UsageError(f"--{name.replace('_', '-')}: {what}; give at most {base.positions}")
    layers = base.layers
    if options.layer is not None and not -layers - 1 <= options.layer <= layers:
        what = f"{options.model} has no layer {options.layer}"
        raise UsageError(f"--layer: {what}: it has 0 (embeddings) to {layers}, or -1 for the last")
    return base


def _publish(options: argparse.Namespace) -> None:
    from smart_train.publish import publish

    publish(options.run_folder, options.repo, not options.public, options.license, options.dry_run)


def _encoder(options: argparse.Namespace) -> SmartEncoder:
    from smart_train.blocks import LateBlock, ModelBlock
    from smart_train.model.encoder import SmartEncoder

    if options.adapter:
        encoder = SmartEncoder.from_pretrained(
            options.adapter,
            base=options.model,
            layer=options.layer,
            dtype=options.dtype,
            trust_remote_code=options.trust_remote_code,
            device=options.device,
        )
    else:
        late = LateBlock() if options.layer is None else LateBlock(layer=options.layer)
        model = ModelBlock(
            **{name: getattr(options, name) for name in STORED},
            dtype=options.dtype or "auto",
            trust_remote_code=options.trust_remote_code,
        )
        encoder = SmartEncoder(options.model, model=model, late=late, device=options.device)
    if options.late_weight is not None:
        encoder.late.hybrid.late = options.late_weight
    return encoder
