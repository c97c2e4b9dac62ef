"""``smart-train ingest``: a folder of documents -> corpus, queries and qrels, split by document."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from smart_train.cli.options import count
from smart_train.core.errors import UsageError

if TYPE_CHECKING:
    from smart_train.ingest.pages import Page
    from smart_train.ingest.questions.asking import Asker
    from smart_train.ingest.questions.queries import Written

SKIPPED = 3
WAYS = ("own-words", "vlm", "none")


def add(commands: argparse._SubParsersAction) -> None:
    about = "PDFs, pictures and texts of a folder -> corpus, queries and qrels, split by document"
    ingest = commands.add_parser("ingest", help=about, description=f"{about}. Run again after a stop, it goes on.")
    ingest.add_argument("folder", help="folder of documents, read with all its folders (or one file)")
    ingest.add_argument("--out", required=True, help="folder to write; a second run reads what is new or has changed")
    ingest.add_argument("--jobs", type=count, help="processes that read (default: one for each core)")
    ingest.add_argument("--strict", action="store_true", help="stop at the first file that cannot be read")
    _pages(ingest)
    _questions(ingest)
    ingest.set_defaults(run=run)


def _pages(ingest: argparse.ArgumentParser) -> None:
    from smart_train.ingest.options import IngestOptions, Limits

    pages, most = IngestOptions(), Limits()
    ingest.add_argument("--pixels", type=count, default=pages.pixels, help="most of a page's image: %(default)s")
    ingest.add_argument("--no-images", action="store_true", help="keep the text layer alone")
    ingest.add_argument("--no-text", action="store_true", help="keep page images alone")
    ingest.add_argument("--characters", type=count, default=pages.characters, help="of a text file's page: %(default)s")
    ingest.add_argument("--encoding", help="of text files that are not UTF-8 and do not say, such as cp1252")
    ingest.add_argument("--encrypted", action="store_true", help="read encrypted PDFs that open without a password")
    ingest.add_argument("--ocr", metavar="MODULE:FUNCTION", help="called with the image of a page without text")
    ingest.add_argument("--max-pages", type=count, default=most.pages, help="of one file: %(default)s")
    ingest.add_argument("--max-bytes", type=count, default=most.file_bytes, help="of one file: %(default)s")
    ingest.add_argument("--max-picture", type=count, default=most.picture, help="pixels of a picture: %(default)s")
    ingest.add_argument("--seconds", type=float, default=most.seconds, help="most for one page: %(default)s")


def _questions(ingest: argparse.ArgumentParser) -> None:
    ingest.add_argument("--questions", choices=WAYS, default=WAYS[0], help="where queries come from: %(default)s")
    ingest.add_argument("--vlm", metavar="MODEL", help="with --questions vlm: a model on this machine, or a server's")
    ingest.add_argument(
        "--endpoint", metavar="URL", help="server of --vlm, .../v1: it is sent the pages; key: --key-env"
    )
    ingest.add_argument("--key-env", metavar="NAME", help="environment variable that holds the endpoint's key")
    ingest.add_argument("--round-trip", metavar="MODEL", help="keep a query only if this base finds its page back")
    ingest.add_argument("--top", type=count, default=10, help="with --round-trip: among so many: %(default)s")
    ingest.add_argument("--dev", type=float, default=0.1, help="share of the questions, by whole files: %(default)s")
    ingest.add_argument("--test", type=float, default=0.1, help="the same, for tests: %(default)s")
    ingest.add_argument("--seed", type=int, default=0, help="of the split: %(default)s")


def run(options: argparse.Namespace) -> int:
    """Reads, asks, splits, writes; what was skipped is told and sets the exit status."""
    from smart_train.core.errors import DataError
    from smart_train.ingest.ingest_report import REPORT
    from smart_train.ingest.ingestion import ingest
    from smart_train.ingest.options import IngestOptions, Limits

    _check(options)
    limits = Limits(options.max_pages, options.max_bytes, options.max_picture, options.seconds)
    try:
        chosen = IngestOptions(
            pixels=options.pixels,
            jobs=options.jobs,
            images=not options.no_images,
            text=not options.no_text,
            characters=options.characters,
            encoding=options.encoding,
            encrypted=options.encrypted,
            ocr=options.ocr,
            strict=options.strict,
            limits=limits,
        )
    except DataError as error:
        raise UsageError(str(error)) from error
    asker = _asker(options)
    out = Path(options.out)
    report = ingest(options.folder, out, chosen, progress=True)
    print(report.summary(), flush=True)
    status = SKIPPED if report.skipped else 0
    if options.questions != "none" and report.pages:
        try:
            _ask_and_build(options, out, asker)
        except OSError as error:
            raise DataError(
                f"{out}: {error}; free or mend it, and run again: what was read and asked is kept"
            ) from error
    print(f"{out}; report: {out / REPORT}")
    return status


def _ask_and_build(options: argparse.Namespace, out: Path, asker: Asker | None) -> None:
    from smart_train.ingest.corpus import build
    from smart_train.ingest.ingest_report import update

    written = _asked(out, asker)
    if options.round_trip:
        written = _found_back(written, out, options.round_trip, options.top)
    told = {"way": options.questions, "kept": written.kept(), "dropped": written.dropped(), "counts": written.counts}
    if options.round_trip:
        told["round_trip"] = {"model": options.round_trip, "top": options.top}
    update(out, {"questions": told})
    print(_told(written), flush=True)
    built = build(out, written, options.dev, options.test, options.seed)
    update(out, {"built": asdict(built)})
    queries = ", ".join(f"{side} {count:,} of {built.files[side]:,} files" for side, count in built.queries.items())
    print(f"{built.documents:,} documents; queries: {queries}")


def _found_back(written: Written, out: Path, model: str, top: int) -> Written:
    """The questions whose page the base model finds back, in the documents as they will be searched."""
    from smart_train.ingest.corpus import documents
    from smart_train.ingest.pages import read_pages
    from smart_train.ingest.questions.local_model import base_ranker
    from smart_train.ingest.questions.queries import round_trip
    from smart_train.models.encoder import SmartEncoder

    corpus = {document.id: document for document in documents(out, written.masked)}
    content = {page.id: page.hash for page in read_pages(out)}
    encoder = SmartEncoder(model)
    if any(document.image is not None for document in corpus.values()) and "image" not in encoder.st.modalities:
        raise UsageError(f"--round-trip: {model} sees no images; name a vision-language base, or give --no-images")
    return round_trip(written, base_ranker(encoder, corpus, top), top, lambda page: content.get(page, page))


def _check(options: argparse.Namespace) -> None:
    """Refuses what can be refused before anything is read."""
    if options.round_trip and options.questions == "none":
        raise UsageError("--round-trip filters questions, and --questions is none")
    if (options.questions == "vlm") != bool(options.vlm):
        raise UsageError("--questions vlm and --vlm MODEL go together")
    if (options.endpoint or options.key_env) and not options.vlm:
        raise UsageError("--endpoint and --key-env belong to --questions vlm --vlm MODEL")
    if options.key_env and options.key_env not in os.environ:
        raise UsageError(f"--key-env: there is no environment variable {options.key_env}; set it to the key")
    if options.no_text and options.questions == "own-words":
        raise UsageError("--no-text leaves no words to make queries of; give --questions vlm or none")
    for name in ("dev", "test"):
        if not 0 <= getattr(options, name) < 1:
            raise UsageError(f"--{name}: {getattr(options, name)} is no share; give 0 or more and less than 1")
    if options.seconds <= 0:
        raise UsageError(f"--seconds: {options.seconds:g} is not above 0")


def _asker(options: argparse.Namespace) -> Asker | None:
    if options.questions != "vlm":
        return None
    if options.endpoint:
        from smart_train.ingest.questions.endpoint import EndpointAsker

        return EndpointAsker(options.endpoint, options.vlm, os.environ[options.key_env] if options.key_env else None)
    from smart_train.ingest.questions.local_model import LocalAsker

    return LocalAsker(options.vlm)


class _Stored:
    """Pages that can be gone through again, as they lie on the disk."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def __iter__(self) -> Iterator[Page]:
        from smart_train.ingest.pages import read_pages

        return read_pages(self.out)

    def __len__(self) -> int:
        import pyarrow.parquet

        return sum(pyarrow.parquet.read_metadata(file).num_rows for file in (self.out / "pages").glob("*.parquet"))


def _asked(out: Path, asker: Asker | None) -> Written:
    from smart_train.ingest.questions import queries as questions

    return questions.own_words(_Stored(out)) if asker is None else questions.vlm(_Stored(out), asker, out)


def _told(written: Written) -> str:
    kept = ", ".join(f"{count:,} {rule}" for rule, count in written.kept().items())
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in list(written.dropped().items())[:5])
    lines = [f"{len(written.questions):,} questions: {kept or 'none'}"]
    return "\n".join([*lines, f"  candidates dropped: {dropped}"] if dropped else lines)
