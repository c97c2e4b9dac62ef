"""``smart-train ingest``: turn a folder of documents into corpus, queries and qrels, split by document."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from smart_train.cli.options import check_output, count
from smart_train.core.errors import DataError, UsageError, checks
from smart_train.core.folder_lock import own

if TYPE_CHECKING:
    from smart_train.ingest.ingest_options import IngestOptions
    from smart_train.ingest.questions.chat_model import ChatModel
    from smart_train.ingest.questions.question_set import QuestionSet

SOME_SKIPPED = 3  # exit status
SOURCES = ("own-words", "vlm", "none")


def add(commands: argparse._SubParsersAction) -> None:
    about = "turn a folder of PDFs, images and text files into corpus, queries and qrels, split by document"
    ingest = commands.add_parser("ingest", help=about, description=f"{about}. A stopped run continues when run again.")
    ingest.add_argument("folder", help="folder of documents, read with all folders below it; or one file")
    ingest.add_argument(
        "--output", "--out", required=True, help="folder to write; a second run reads only new or changed files"
    )
    ingest.add_argument("--jobs", type=count, help="reading processes (default: one for each core)")
    ingest.add_argument("--strict", action="store_true", help="stop at the first file or page that cannot be read")
    outside = "also read files and folders that links lead to outside of the folder (default: skip, and say so)"
    ingest.add_argument("--allow-outside", action="store_true", help=outside)
    _add_page_options(ingest)
    _add_question_options(ingest)
    ingest.set_defaults(run=run)


def _add_page_options(ingest: argparse.ArgumentParser) -> None:
    from smart_train.ingest.ingest_options import IngestOptions, Limits

    pages, most = IngestOptions(), Limits()
    ingest.add_argument(
        "--pixels", type=count, default=pages.pixels, help="most pixels of a page image (default: %(default)s)"
    )
    ingest.add_argument("--no-images", action="store_true", help="store the text of pages only")
    ingest.add_argument("--no-text", action="store_true", help="store the images of pages only")
    ingest.add_argument(
        "--characters",
        type=count,
        default=pages.characters,
        help="most characters of a text page (default: %(default)s)",
    )
    ingest.add_argument(
        "--encoding", help="encoding of text files that are not UTF-8 and declare none, such as cp1252 (default: skip)"
    )
    ingest.add_argument("--encrypted", action="store_true", help="read encrypted PDFs that open without a password")
    ingest.add_argument(
        "--ocr", metavar="MODULE:FUNCTION", help="reads the text of page images without a text layer: image -> str"
    )
    ingest.add_argument(
        "--max-pages", type=count, default=most.pages, help="most pages of a file (default: %(default)s)"
    )
    ingest.add_argument(
        "--max-bytes", type=count, default=most.file_bytes, help="most bytes of a file (default: %(default)s)"
    )
    ingest.add_argument(
        "--max-picture",
        type=count,
        default=most.picture,
        help="most pixels of an image in a file (default: %(default)s)",
    )
    ingest.add_argument(
        "--seconds", type=float, default=most.seconds, help="per-page timeout in seconds (default: %(default)s)"
    )


def _add_question_options(ingest: argparse.ArgumentParser) -> None:
    ingest.add_argument(
        "--questions",
        default=SOURCES[0],
        metavar="SOURCE",
        help="source of queries: own-words, vlm, none, or your own chat model, MODULE:CLASS (default: %(default)s)",
    )
    ingest.add_argument("--vlm", metavar="MODEL", help="with --questions vlm: a local model, or its name on a server")
    ingest.add_argument("--endpoint", metavar="URL", help="server of --vlm (.../v1); the pages are sent to it")
    ingest.add_argument("--key-env", metavar="NAME", help="environment variable with the key of --endpoint")
    ingest.add_argument("--round-trip", metavar="MODEL", help="keep a query only if this base finds its page again")
    ingest.add_argument(
        "--top", type=count, default=10, help="with --round-trip: among the first TOP pages (default: %(default)s)"
    )
    ingest.add_argument(
        "--dev", type=float, default=0.1, help="share of the queries for dev, by whole files (default: %(default)s)"
    )
    ingest.add_argument("--test", type=float, default=0.1, help="share of the queries for test (default: %(default)s)")
    ingest.add_argument("--seed", type=int, default=0, help="seed of the split (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    from smart_train.ingest.ingest_report import REPORT
    from smart_train.ingest.ingestion import ingest

    page_options = _check(options)
    with checks():
        model = _chat_model(options)
    out = Path(options.output)
    report = ingest(options.folder, out, page_options, progress=True)
    print(report.summary(), flush=True)
    if options.questions != "none" and report.pages:
        try:
            with own(out):
                _write_collection(options, out, model)
        except OSError as error:
            raise DataError(
                f"{out}: {error}; free space or fix it, and run again: pages and answers so far are kept"
            ) from error
    print(f"{out}; report: {out / REPORT}")
    return SOME_SKIPPED if report.skipped else 0


def _check(options: argparse.Namespace) -> IngestOptions:
    """Refuse what can be refused before anything is read."""
    from smart_train.ingest.ingest_options import IngestOptions, Limits
    from smart_train.ingest.questions.chat_model import CHAT_MODELS
    from smart_train.models.base_config import read_base

    source = options.questions
    if source not in SOURCES and ":" not in source and source not in CHAT_MODELS.names():
        raise UsageError(f"--questions: no such source {source!r}; choose {', '.join(SOURCES)}, or name a MODULE:CLASS")
    if options.round_trip and source == "none":
        raise UsageError("--round-trip filters questions, and --questions is none; leave one of them out")
    if (source == "vlm") != bool(options.vlm):
        raise UsageError("--questions vlm and --vlm MODEL go together; give both or neither")
    if (options.endpoint or options.key_env) and not options.vlm:
        raise UsageError("--endpoint and --key-env belong to --questions vlm --vlm MODEL")
    if options.key_env and options.key_env not in os.environ:
        raise UsageError(f"--key-env: there is no environment variable {options.key_env}; set it to the key")
    if options.no_text and source == "own-words":
        raise UsageError("--no-text leaves no words to make queries of; give --questions vlm or none")
    for name in ("dev", "test"):
        if not 0 <= getattr(options, name) < 1:
            raise UsageError(f"--{name}: {getattr(options, name)} is no share; give 0 or more and less than 1")
    if options.seconds <= 0:
        raise UsageError(f"--seconds: {options.seconds:g} is not above 0")
    if not Path(options.folder).exists():
        raise UsageError(f"{options.folder}: there is no such folder or file")
    with checks():
        check_output(options.output, "--output")
        if options.round_trip:
            read_base(options.round_trip)
        return IngestOptions(
            pixels=options.pixels,
            jobs=options.jobs,
            images=not options.no_images,
            text=not options.no_text,
            characters=options.characters,
            encoding=options.encoding,
            encrypted=options.encrypted,
            ocr=options.ocr,
            strict=options.strict,
            allow_outside=options.allow_outside,
            limits=Limits(options.max_pages, options.max_bytes, options.max_picture, options.seconds),
        )


def _chat_model(options: argparse.Namespace) -> ChatModel | None:
    """Return the model that writes the questions; None where the documents' own words do."""
    if options.questions in ("own-words", "none"):
        return None
    if options.questions != "vlm":
        from smart_train.ingest.questions.chat_model import load_chat_model

        return load_chat_model(options.questions)
    if options.endpoint:
        from smart_train.ingest.questions.chat_endpoint import ChatEndpoint

        return ChatEndpoint(options.endpoint, options.vlm, os.environ[options.key_env] if options.key_env else None)
    from smart_train.ingest.questions.local_chat_model import LocalChatModel

    return LocalChatModel(options.vlm)


def _write_collection(options: argparse.Namespace, out: Path, model: ChatModel | None) -> None:
    from smart_train.ingest.corpus import build
    from smart_train.ingest.ingest_report import update
    from smart_train.ingest.pages import read_pages
    from smart_train.ingest.questions.own_words import own_words
    from smart_train.ingest.questions.vlm import vlm

    pages = read_pages(out)
    questions = own_words(pages) if model is None else vlm(pages, model, out)
    if options.round_trip:
        questions = _found_again(questions, out, options.round_trip, options.top)
    row = {
        "way": options.questions,
        "kept": questions.kept(),
        "dropped": questions.dropped(),
        "counts": questions.counts,
    }
    if options.round_trip:
        row["round_trip"] = {"model": options.round_trip, "top": options.top}
    update(out, {"questions": row})
    print(questions.summary(), flush=True)
    built = build(out, questions, options.dev, options.test, options.seed)
    update(out, {"built": asdict(built)})
    print(built.summary())


def _found_again(questions: QuestionSet, out: Path, model: str, top: int) -> QuestionSet:
    """Keep the questions whose page the base model finds, among the documents as they will be searched."""
    from smart_train.ingest.corpus import documents
    from smart_train.ingest.pages import read_pages
    from smart_train.ingest.questions.round_trip import base_ranker, round_trip
    from smart_train.models.encoder import SmartEncoder

    corpus = {document.id: document for document in documents(out, questions.masked)}
    content = {page.id: page.hash for page in read_pages(out)}
    encoder = SmartEncoder(model)
    if any(document.image is not None for document in corpus.values()) and "image" not in encoder.st.modalities:
        raise UsageError(f"--round-trip: {model} sees no images; name a vision-language base, or give --no-images")
    return round_trip(questions, base_ranker(encoder, corpus, top), top, lambda page: content.get(page, page))
