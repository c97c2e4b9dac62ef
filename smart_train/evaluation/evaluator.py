"""Evaluate an encoder on data: read, encode once, rank, compare, and write the figures."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from smart_train.config.recipe import versions
from smart_train.config.schema import DataBlock
from smart_train.core.atomic_io import replacing
from smart_train.core.environment import cores
from smart_train.core.errors import DataError
from smart_train.core.modality import modality
from smart_train.data.collection import DEV_SPLITS, TEST_SPLITS, Collection, Document
from smart_train.data.load import load, read_split
from smart_train.data.readers.base import DataProblem, QueryMetadata, find_reader
from smart_train.distributed.process_group import ProcessGroup
from smart_train.evaluation import baseline as comparing
from smart_train.evaluation.bm25 import Lexical, lexical
from smart_train.evaluation.encode import encode_shards, queries_in_corpus
from smart_train.evaluation.metrics import Group, groups, home
from smart_train.evaluation.report.failure_cases import Heatmap, worst
from smart_train.evaluation.report.html import report
from smart_train.evaluation.report.metrics_json import write_metrics
from smart_train.evaluation.report.outcome import Outcome
from smart_train.evaluation.report.tables import text, write_metrics_csv, write_query_csv
from smart_train.evaluation.retrieval import evaluate_encoded
from smart_train.evaluation.score_histograms import Observer
from smart_train.evaluation.vector_store import VectorStore
from smart_train.models.encoder import SmartEncoder
from smart_train.models.lora import lora_parameters
from smart_train.models.saving import modules_of, settings_of

VERSIONS = ("smart-train", "torch", "transformers", "sentence-transformers", "peft")


def facts_of(encoder: SmartEncoder) -> dict[str, Any]:
    """Everything that changes a document's vectors: base, commit or fingerprint, layer, norm, head, prompts, limits,
    pixels, dtype, pooling, trained weights; not the hybrid's weights, which only change scores."""
    settings = settings_of(encoder)
    for name in ("versions", "format"):
        settings.pop(name, None)
    settings["late"].pop("hybrid", None)
    settings["late"].pop("matryoshka", None)
    for name in ("trust_remote_code", "dropout", "attention", "matryoshka", "query_tokens", "query_prompt", "base"):
        settings["model"].pop(name, None)
    if settings["fingerprint"] or settings["commit"]:
        settings.pop("base")  # the same weights, wherever they lie now
    weights = hashlib.sha256()
    trained = {**lora_parameters(encoder.backbone), **encoder.head.state_dict()}
    if encoder.adapter is not None and encoder.adapter.kind == "full":
        trained |= dict(encoder.backbone.named_parameters())
    for name in sorted(trained):
        weights.update(name.encode() + trained[name].detach().float().cpu().numpy().tobytes())
    widths = {"pooled": encoder.pooled_width, "tokens": encoder.token_width}
    settings["modules"] = modules_of(encoder)
    return {**settings, "trained": weights.hexdigest() if trained else None, "widths": widths, "tokens": "float16"}


def used() -> dict[str, str]:
    """Package -> version, of those that make vectors."""
    found = versions()
    return {name: found[name] for name in VERSIONS if name in found}


def about_model(encoder: SmartEncoder) -> dict[str, Any]:
    late = encoder.late
    return {
        "commit": encoder.commit,
        "layer": late.layer,
        "head": late.head.plain(),
        "token_width": encoder.token_width,
        "pooled_width": encoder.pooled_width,
        "query_prompt": encoder.prompt("query"),
        "document_prompt": encoder.prompt("document"),
        "query_tokens": encoder.settings.query_tokens,
        "document_tokens": encoder.settings.document_tokens,
        "hybrid": asdict(late.hybrid),
    }


def about_data(collection: Collection, split: str, kinds: str, hashes: dict[str, str]) -> dict[str, Any]:
    """kinds: the column that kinds of queries were read from; hashes: of the three tables (evaluation/baseline.py)."""
    return {
        "name": collection.name,
        "split": split,
        "documents": len(collection.corpus),
        "queries": len(collection.queries),
        "kinds": kinds,
        "hashes": hashes,
    }


def about_run(encoder: SmartEncoder, processes: int) -> dict[str, Any]:
    """Date, machine and versions."""
    machine = {"device": str(encoder.device), "processes": processes, "threads": torch.get_num_threads()}
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": {**machine, "cores": cores()},
        "versions": used(),
    }


# Measures an encoder on data: read, encoded once, ranked, compared, and told in files that people and programs read.

logger = logging.getLogger(__name__)

SIDES = ("train", "dev", "test")


@dataclass(frozen=True)
class Plan:
    """What is measured, beside the data and the encoder.

    k, bootstrap, seed: of the figures; batch_size: rows encoded at once; store: folder of documents' vectors, or None
    baseline, baseline_row: folder of another evaluation to compare with, and which of its rows
    spreads: whether scores of relevant pairs are shown among all others; ranking is faster without (observed.py)
    bm25: whether words alone are ranked beside; worst, heatmaps: queries in the report, and how many of them with maps
    """

    k: tuple[int, ...] = (1, 5, 10)
    bootstrap: int = 1000
    seed: int = 0
    batch_size: int = 32
    store: str | None = None
    baseline: str | None = None
    baseline_row: str | None = None
    bm25: bool = True
    spreads: bool = True
    worst: int = 10
    heatmaps: int = 3


@dataclass
class Read:
    """Data to measure on.  texts: document id -> what BM25 reads; metadata: kinds and files of queries."""

    collection: Collection
    split: str
    texts: dict[str, str | None] = field(default_factory=dict)
    metadata: QueryMetadata = field(default_factory=QueryMetadata)


def read(data: DataBlock, split: str, held_out: bool = False) -> Read:
    """One split of any data that a recipe reads.

    held_out: dev and test are what a run with this block holds out (a recipe's data); else they are the data's own
    splits, except of pydocs, which has none
    Raises DataError where there is no such split, and for rows that cannot be read.
    """
    reader = find_reader(data)
    if held_out or not reader.has_splits:
        if split not in SIDES:
            what = f"a recipe's data has no split {split!r}; it has {', '.join(SIDES)}"
            raise DataProblem("data.split", what, "name one of these")
        collection = load(reader)[SIDES.index(split)]
        if not collection.queries:
            raise DataError(f"{data.path}: the recipe holds out no query for {split} (data.{split})")
        names = {"train": (data.split,), "dev": DEV_SPLITS, "test": TEST_SPLITS}[split]
        own = next((name for name in names if name in reader.splits()), None)
    else:
        own = split
        collection = read_split(reader, split, data.limit)
        collection.name = f"{reader.name}/{split}"
    logger.info("%s: %d queries, %d documents", collection.name, len(collection.queries), len(collection.corpus))
    return Read(collection, own or split, reader.document_texts(collection), reader.query_metadata(collection))


def images_of(collection: Collection) -> list[str]:
    """Ids of the documents that have an image."""
    return [document.id for document in collection.corpus.values() if document.image is not None]


def evaluate_data(
    encoder: SmartEncoder,
    given: Read,
    plan: Plan,
    row: str = "base",
    about: Mapping[str, Any] | None = None,
    progress: bool = False,
    group: ProcessGroup | None = None,
) -> Outcome | None:
    """Everything that is measured; None on all ranks but the first.

    about: what is told of the model beside its settings ("base", "adapter": names)
    Raises EvaluationError, before anything is encoded, for a baseline of other queries or data and for a store of
    another encoder; else as ``evaluate``.
    """
    collection = given.collection
    tables = comparing.hashes(collection)
    other = None
    if plan.baseline is not None:
        other = comparing.read_baseline(plan.baseline, plan.baseline_row)
        comparing.check_baseline(other, _measured(collection), tables, plan.k)
    store = None if plan.store is None else VectorStore(plan.store, facts_of(encoder), {"versions": used()})
    encoded = encode_shards(
        encoder, collection, batch_size=plan.batch_size, progress=progress, group=group, store=store
    )
    hybrid = encoder.late.hybrid
    observer = Observer(collection.qrels, hybrid, count=plan.spreads)
    measured = evaluate_encoded(
        encoded,
        collection.qrels,
        hybrid,
        k=plan.k,
        bootstrap=plan.bootstrap,
        seed=plan.seed,
        device=encoder.device,
        observer=observer,
    )
    if group is not None and group.rank:
        return None
    queries = {query: collection.queries[query] for query in encoded.query_ids}
    outcome = Outcome(row, measured, observer, queries, collection.qrels)
    outcome.kinds = given.metadata.kind
    outcome.files = _files(given, queries)
    if plan.bm25:
        outcome.lexical = _words(given, plan, queries)
    outcome.baseline = other
    outcome.differences = comparing.compare(measured, other) if other is not None else {}
    outcome.parts = _parts(given, outcome)
    outcome.about = {
        "data": about_data(collection, given.split, given.metadata.column, tables),
        "model": {**(about or {}), **about_model(encoder)},
        "settings": {name: getattr(plan, name) for name in ("k", "bootstrap", "seed", "batch_size")},
        **about_run(encoder, 1 if group is None else group.world_size),
    }
    return outcome


def _measured(collection: Collection) -> dict[str, str]:
    return {query: text for query, text in collection.queries.items() if collection.relevant(query)}


def _words(given: Read, plan: Plan, queries: Mapping[str, str]) -> Lexical:
    found = lexical(
        given.texts or {id: document.text for id, document in given.collection.corpus.items()},
        queries,
        given.collection.qrels,
        k=plan.k,
        identical_ids=queries_in_corpus(given.collection, queries),
        bootstrap=plan.bootstrap,
        seed=plan.seed,
    )
    if found.absent:
        logger.info("no BM25 row: %s", found.absent)
    return found


def _files(given: Read, queries: Mapping[str, str]) -> dict[str, str]:
    """query id -> the file it is about: what the data says, else that of its best judged document."""
    of_document = {document.id: document.file for document in given.collection.corpus.values() if document.file}
    found = {}
    for query in queries:
        file = given.metadata.file.get(query) or home(given.collection.qrels[query], of_document)
        if file:
            found[query] = file
    return found


def _parts(given: Read, outcome: Outcome) -> dict[str, dict[str, Group]]:
    """By file, by kind of query and by kind of document, each where there are several."""
    corpus, one = given.collection.corpus, outcome.evaluation
    contents = {document.id: _content(document) for document in corpus.values()}
    shown = {query: home(given.collection.qrels[query], contents) for query in outcome.queries}
    by = {
        "file": outcome.files,
        "kind": outcome.kinds,
        "content": {query: found for query, found in shown.items() if found} if len(set(contents.values())) > 1 else {},
    }
    values = outcome.values(outcome.metric)
    found = {what: groups(of, values, one.bootstrap, one.seed) for what, of in by.items()}
    return {what: some for what, some in found.items() if len(some) > 1}


def _content(document: Document) -> str:
    if document.image is None:
        return modality("")
    return modality(None) if document.text is None else modality({"image": None, "text": ""})


def write(
    outcome: Outcome, corpus: Mapping[str, Document], folder: Path, plan: Plan, heatmap: Heatmap | None = None
) -> None:
    """The files that this module's head names."""
    folder.mkdir(parents=True, exist_ok=True)
    write_metrics(folder / "metrics.json", {outcome.row: outcome.evaluation}, **outcome.more())
    _write(folder / "table.txt", text(outcome) + "\n")
    write_metrics_csv(folder / "metrics.csv", outcome)
    write_query_csv(folder / "per_query.csv", outcome)
    shown = worst(outcome, corpus, plan.worst, heatmap, plan.heatmaps)
    _write(folder / "report.html", report(outcome, shown))


def _write(path: Path, content: str) -> None:
    with replacing(path) as part:
        part.write_text(content, encoding="utf-8")
