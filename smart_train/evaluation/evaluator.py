"""Evaluate an encoder on data, as ``smart-train evaluate`` does: read, encode once, rank, compare, and write a report.

metrics.json, evaluation.json    metrics, and everything else as JSON (see report/metrics_json.py)
table.txt, metrics.csv, per_query.csv
report.html                      figures, groups, and the queries with the lowest metric
"""

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
from smart_train.data.load import load, load_ranked, read_split
from smart_train.data.readers.base import DataProblem, QueryMetadata, find_reader
from smart_train.distributed.process_group import ProcessGroup
from smart_train.evaluation.baseline import check_baseline, compare, read_baseline, table_hashes
from smart_train.evaluation.bm25 import BM25Result, evaluate_bm25
from smart_train.evaluation.encode import encode_shards, queries_in_corpus
from smart_train.evaluation.metrics import Group, group_of_best_document, groups
from smart_train.evaluation.report.failure_cases import Heatmap, failure_cases
from smart_train.evaluation.report.html import html_report
from smart_train.evaluation.report.metric_tables import evaluation_table, write_metrics_csv, write_query_csv
from smart_train.evaluation.report.metrics_json import write_metrics
from smart_train.evaluation.report.outcome import Outcome
from smart_train.evaluation.retrieval import evaluate_encoded
from smart_train.evaluation.score_histograms import ScoreObserver
from smart_train.evaluation.vector_store import VectorStore
from smart_train.models.encoder import SmartEncoder
from smart_train.models.lora import lora_parameters
from smart_train.models.saving import modules_of, settings_of

logger = logging.getLogger(__name__)

VERSIONS = ("smart-train", "torch", "transformers", "sentence-transformers", "peft")
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of an evaluation.

    k, bootstrap, seed: of the metrics; batch_size: rows encoded at once; store: folder of documents' vectors, or None
    baseline, baseline_row: folder of an earlier evaluation to compare with, and which of its rows
    bm25: whether to add a BM25 row; histograms: whether to count all scores for the report, which makes ranking slower
    failure_cases, heatmaps: number of queries shown in the report, and of those shown with similarity maps
    """

    k: tuple[int, ...] = (1, 5, 10)
    bootstrap: int = 1000
    seed: int = 0
    batch_size: int = 32
    store: str | None = None
    baseline: str | None = None
    baseline_row: str | None = None
    bm25: bool = True
    histograms: bool = True
    failure_cases: int = 10
    heatmaps: int = 3


@dataclass
class EvaluationData:
    """Data to evaluate on. texts: document id -> the text that BM25 reads; metadata: kinds and files of queries."""

    collection: Collection
    split: str
    texts: dict[str, str | None] = field(default_factory=dict)
    metadata: QueryMetadata = field(default_factory=QueryMetadata)


def read_data(data: DataBlock, split: str, held_out: bool = False) -> EvaluationData:
    """Read one split of any data that a recipe reads.

    held_out: dev and test are what a run with this block holds out; False: they are the data's own splits, if any
    Raises DataError if there is no such split, and for rows that cannot be read.
    """
    reader = find_reader(data)
    if held_out or not reader.has_splits:
        if split not in SPLITS:
            what = f"a recipe's data has no split {split!r}; it has {', '.join(SPLITS)}"
            raise DataProblem("data.split", what, "name one of these")
        collection = load(reader)[0] if split == "train" else load_ranked(reader)[SPLITS.index(split) - 1]
        if not collection.queries:
            raise DataError(f"{data.path}: the recipe holds out no query for {split} (data.{split})")
        names = {"train": (data.split,), "dev": DEV_SPLITS, "test": TEST_SPLITS}[split]
        own = next((name for name in names if name in reader.splits()), None)
    else:
        own = split
        collection = read_split(reader, split, data.limit)
        collection.name = f"{reader.name}/{split}"
    logger.info("%s: %d queries, %d documents", collection.name, len(collection.queries), len(collection.corpus))
    return EvaluationData(
        collection, own or split, reader.document_texts(collection), reader.query_metadata(collection)
    )


def images_of(collection: Collection) -> list[str]:
    """Return the ids of the documents that have an image."""
    return [document.id for document in collection.corpus.values() if document.image is not None]


def evaluate_data(
    encoder: SmartEncoder,
    data: EvaluationData,
    options: EvaluationOptions,
    row: str = "base",
    about: Mapping[str, Any] | None = None,
    progress: bool = False,
    group: ProcessGroup | None = None,
) -> Outcome | None:
    """Evaluate an encoder with everything that a report shows; return None on all ranks but the first.

    row: "base" or "trained"; about: names of the model, stored beside its settings ("base", "adapter")
    Raises EvaluationError, before anything is encoded, for a baseline of other queries or data and for a store of
    another encoder; otherwise what ``evaluate`` raises.
    """
    collection = data.collection
    tables = table_hashes(collection)
    baseline = None
    if options.baseline is not None:
        baseline = read_baseline(options.baseline, options.baseline_row)
        check_baseline(baseline, _with_relevant_documents(collection), tables, options.k)
    store = (
        None
        if options.store is None
        else VectorStore(options.store, vector_settings(encoder), {"versions": package_versions()})
    )
    encoded = encode_shards(
        encoder, collection, batch_size=options.batch_size, progress=progress, group=group, store=store
    )
    hybrid = encoder.late.hybrid
    observer = ScoreObserver(collection.qrels, hybrid, count=options.histograms)
    measured = evaluate_encoded(
        encoded,
        collection.qrels,
        hybrid,
        k=options.k,
        bootstrap=options.bootstrap,
        seed=options.seed,
        device=encoder.device,
        observer=observer,
    )
    if group is not None and group.rank:
        return None
    queries = {query: collection.queries[query] for query in encoded.query_ids}
    outcome = Outcome(row, measured, observer, queries, collection.qrels)
    outcome.kinds = data.metadata.kind
    outcome.files = _files(data, queries)
    if options.bm25:
        outcome.bm25 = _bm25(data, options, queries)
    outcome.baseline = baseline
    outcome.differences = compare(measured, baseline) if baseline is not None else {}
    outcome.groups = _groups(data, outcome)
    outcome.about = {
        "data": about_data(collection, data.split, data.metadata.column, tables),
        "model": {**(about or {}), **about_model(encoder)},
        "settings": {name: getattr(options, name) for name in ("k", "bootstrap", "seed", "batch_size")},
        **about_run(encoder, 1 if group is None else group.world_size),
    }
    return outcome


def _with_relevant_documents(collection: Collection) -> dict[str, str]:
    return {query: text for query, text in collection.queries.items() if collection.relevant(query)}


def _bm25(data: EvaluationData, options: EvaluationOptions, queries: Mapping[str, str]) -> BM25Result:
    found = evaluate_bm25(
        data.texts or {id: document.text for id, document in data.collection.corpus.items()},
        queries,
        data.collection.qrels,
        k=options.k,
        identical_ids=queries_in_corpus(data.collection, queries),
        bootstrap=options.bootstrap,
        seed=options.seed,
    )
    if found.absent:
        logger.info("no BM25 row: %s", found.absent)
    return found


def _files(data: EvaluationData, queries: Mapping[str, str]) -> dict[str, str]:
    """Return query id -> the file it is about: what the data says, else that of its best judged document."""
    of_document = {document.id: document.file for document in data.collection.corpus.values() if document.file}
    found = {}
    for query in queries:
        file = data.metadata.file.get(query) or group_of_best_document(data.collection.qrels[query], of_document)
        if file:
            found[query] = file
    return found


def _groups(data: EvaluationData, outcome: Outcome) -> dict[str, dict[str, Group]]:
    """Average the headline metric by file, kind of query and kind of document, where there are several."""
    corpus, one = data.collection.corpus, outcome.evaluation
    contents = {document.id: _content(document) for document in corpus.values()}
    shown = {query: group_of_best_document(data.collection.qrels[query], contents) for query in outcome.queries}
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


def write_report(
    outcome: Outcome,
    corpus: Mapping[str, Document],
    folder: Path,
    options: EvaluationOptions,
    heatmap: Heatmap | None = None,
) -> None:
    """Write the files listed at the top of this module."""
    folder.mkdir(parents=True, exist_ok=True)
    write_metrics(folder / "metrics.json", {outcome.row: outcome.evaluation}, **outcome.evaluation_json())
    _write(folder / "table.txt", evaluation_table(outcome) + "\n")
    write_metrics_csv(folder / "metrics.csv", outcome)
    write_query_csv(folder / "per_query.csv", outcome)
    cases = failure_cases(outcome, corpus, options.failure_cases, heatmap, options.heatmaps)
    _write(folder / "report.html", html_report(outcome, cases))


def _write(path: Path, content: str) -> None:
    with replacing(path) as part:
        part.write_text(content, encoding="utf-8")


# --- what evaluation.json says about the model, the data and the run


def vector_settings(encoder: SmartEncoder) -> dict[str, Any]:
    """Return everything that a document's vectors depend on: base, commit or fingerprint, layer, norm, head, prompts,
    limits, pixels, dtype, pooling, trained weights; not the hybrid's weights, which only change scores."""
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


def package_versions() -> dict[str, str]:
    """Return package -> version, of the packages that vectors depend on."""
    found = versions()
    return {name: found[name] for name in VERSIONS if name in found}


def about_model(encoder: SmartEncoder) -> dict[str, Any]:
    """Return the facts of an encoder for evaluation.json."""
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
    """kinds: the column that kinds of queries were read from; hashes: what ``table_hashes`` gave."""
    return {
        "name": collection.name,
        "split": split,
        "documents": len(collection.corpus),
        "queries": len(collection.queries),
        "kinds": kinds,
        "hashes": hashes,
    }


def about_run(encoder: SmartEncoder, processes: int) -> dict[str, Any]:
    """Return date, machine and versions."""
    machine = {"device": str(encoder.device), "processes": processes, "threads": torch.get_num_threads()}
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": {**machine, "cores": cores()},
        "versions": package_versions(),
    }
