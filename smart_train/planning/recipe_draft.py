"""Draft a recipe from what a base and a data set are: ``smart-train new NAME --base B --data D``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from smart_train.config.recipe import BOOT, CLOSE
from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError, UsageError
from smart_train.data.collection import Collection
from smart_train.data.load import find_reader, has_test, load
from smart_train.data.readers.python_rows import place_columns
from smart_train.data.readers.rows import RowsReader
from smart_train.models.base_config import BaseConfig, BaseFiles, read_base

LOOKED_AT = 2000  # texts that are tokenized to learn their lengths
STEP = 16  # tokens that a limit is a multiple of
HELD_OUT = 300  # most queries of dev and of test
LEAST = 4  # of each split: scores of a single query and document do not vary
BATCH = {"text": 256, "page": 64}  # most pairs of a loss
CHUNK = {"text": 32, "page": 8}  # rows of a forward pass
PIXELS = 786_432  # of a page, at most
WORDS = ("true", "false", "null", "yes", "no", "on", "off", "y", "n", ".nan", ".inf")  # to YAML they are no texts
Line = tuple[str, Any, str]
"""Key, value and comment."""
CHECKPOINTED: list[Line] = [
    ("activation_checkpointing", True, "recompute activations: a third more time, less memory"),
    ("activation_checkpointing_kwargs", {"use_reentrant": False}, "needed: the frozen base's input has no gradient"),
]
NAMED = {
    "format": "as docs/data.md names it",
    "subset": "configuration",
    "revision": "of the Hub dataset",
    "split": "the split to train on",
    "query": "column with the query",
    "document": "column with the document's text",
    "image": "column with the page image",
    "id": "column that names the document",
    "label": "column of labels",
    "scores": "column of a teacher's scores",
    "limit": "use the first pairs only; null = all",
    "allow_outside": "also read files outside of the data's folder",
}


@dataclass
class DataFacts:
    """What a data set is.

    queries: of the train split; pages: documents with an image, of ``documents``; negatives: fewest hard negatives of
    a query; own_test: has a test split; query_tokens, document_tokens: lengths that 95 of 100 texts do not exceed, 0 =
    there are no texts
    """

    block: DataBlock
    queries: int
    documents: int
    pages: int
    negatives: int
    own_test: bool
    query_tokens: int
    document_tokens: int


def draft_recipe(path: Path, base: str, data: DataBlock, gpu: bool) -> str:
    """Return the text of a recipe that trains ``base`` on ``data``.

    path: file that it will be written to; gpu: whether a GPU with bfloat16 is here
    Raises BaseNotFound, DataError, and UsageError for pages on a base that has no image side.
    """
    config = read_base(base)
    facts = look_at(base, data)
    if facts.pages and not config.vision:
        what = f"{facts.pages:,} of {facts.documents:,} documents of {data.path} are images"
        raise UsageError(f"--base: {what}, and {base} has no image side; name a vision-language base")
    return write_draft(path, base, config, facts, gpu)


def look_at(base: str, data: DataBlock) -> DataFacts:
    """Read the data: its columns, splits, sizes and lengths in tokens of the base.

    Columns of a table are found by name, else by position (query, document). Raises DataError.
    """
    reader = find_reader(data)
    if isinstance(reader, RowsReader) and (columns := reader.columns()):
        named = data.query != "query" or data.document or data.image
        if not named and any(True for _ in reader.problems()):
            block, renamed = place_columns(columns, data.path, {})
            if renamed:
                what = f"{data.path}: the columns {', '.join(renamed)} stand where negatives would"
                raise DataError(f"{what}; rename them to negative_1 ..., or name query=COLUMN and document=COLUMN")
            data.query, data.document = block.query, block.document
    train, _, _ = load(DataBlock(**{**vars(data), "dev": 0, "test": 0}))
    if not train.queries:
        raise DataError(f"{data.path}: the split {data.split} has no query; name another with split=NAME")
    documents = list(islice(train.corpus.values(), LOOKED_AT))
    texts = [document.text for document in documents if document.text and document.image is None]
    return DataFacts(
        data,
        len(train.queries),
        len(train.corpus),
        train.count_pages(),
        _fewest_negatives(train),
        has_test(data),
        *_lengths(base, islice(train.queries.values(), LOOKED_AT), texts),
    )


def _fewest_negatives(train: Collection) -> int:
    if train.count_related("negatives")[1] < len(train.queries):
        return 0
    return min(len(row) for row in train.negatives.values())


def _lengths(base: str, *groups: Iterable[str]) -> tuple[int, ...]:
    """Return for each group of texts the tokens that 95 of 100 of them do not exceed, rounded up; 0 for none."""
    from transformers import AutoTokenizer

    files = BaseFiles.of(base)
    tokenizer: Any = AutoTokenizer.from_pretrained(files.place, revision=files.revision, subfolder=files.transformer())
    found = []
    for texts in groups:
        given = list(texts)
        sizes = sorted(map(len, tokenizer(given, verbose=False)["input_ids"])) if given else [0]
        found.append(-(-sizes[int(0.95 * (len(sizes) - 1))] // STEP) * STEP)
    return tuple(found)


def write_draft(path: Path, base: str, config: BaseConfig, facts: DataFacts, gpu: bool) -> str:
    """Return the recipe's text. config: the base's sizes; gpu: whether a GPU with bfloat16 is here"""
    kind = "page" if facts.pages else "text"
    held = max(LEAST, min(HELD_OUT, facts.queries // 10))
    left = facts.queries - held * (1 if facts.own_test else 2)
    if left < LEAST:
        raise DataError(f"{facts.block.path}: {facts.queries} training queries are too few to train and measure with")
    batch = min(BATCH[kind], 1 << (max(2, left // 4).bit_length() - 1))
    every = max(1, left // batch // 10)
    blocks: dict[str, list[Line]] = {
        "model": _model(base, config, facts, gpu),
        "adapter": [
            ("kind", "lora", "the base stays frozen"),
            ("r", 32, "LoRA rank; higher means more capacity and a larger adapter"),
        ],
        "data": _data(facts, held),
        "objective": [
            ("pooled", {"weight": 1.0, "temperature": 0.05}, "trains the pooled vector"),
            ("late", {"weight": 1.0, "temperature": 0.05}, "trains the token vectors, from the same forward pass"),
            ("batch", batch, "pairs per loss over all GPUs; the other documents of the batch are negatives"),
            (
                "chunk_rows",
                CHUNK[kind],
                "rows per forward pass; lower it if memory is short, the result stays the same",
            ),
        ],
        "training": [
            ("num_train_epochs", 1, "one pass over the data"),
            ("learning_rate", 1e-4, "for LoRA"),
            *([("bf16", True, "matrix products in bfloat16")] if gpu else []),
            *(CHECKPOINTED if facts.pages else []),
            ("eval_strategy", "steps", "evaluate on the dev split during training"),
            ("eval_steps", every, "steps between two evaluations"),
            ("logging_steps", min(10, every), "steps between two log lines"),
            ("save_strategy", "steps", "training.resume_from_checkpoint=true resumes from the newest"),
            ("save_steps", every, "steps between two checkpoints; the two newest are kept"),
        ],
    }
    what = f"{facts.pages:,} of them images" if facts.pages else "texts"
    lines = [
        BOOT,
        "---",
        f"# Written by `smart-train new {path.stem} --base {base} --data {facts.block.path}`.",
        "#",
        f"# Data     {facts.queries:,} training queries, {facts.documents:,} documents, {what}",
        f"# Launch   smart-train train {path.as_posix()}",
        f"#          accelerate launch --multi_gpu --num_processes 8 {path.as_posix()}",
        "#          on several GPUs. accelerate starts Python programs: the first line makes this file one.",
        f"# Memory   smart-train doctor {path.as_posix()} --gpus 1 --memory 80",
        "",
        f"name: {path.stem}",
        f"output: runs/{path.stem}  # the run writes adapter, metrics.json, curve.png and log.jsonl here",
    ]
    for block, keys in blocks.items():
        lines += ["", f"{block}:", *(f"  {key}: {_yaml(value)}  # {note}" for key, value, note in keys)]
    return "\n".join([*lines, CLOSE, ""])


def _model(base: str, config: BaseConfig, facts: DataFacts, gpu: bool) -> list[Line]:
    lines: list[Line] = [
        ("base", base, f"{config.layers} layers of width {config.hidden}, pooled vectors of {config.pooled}")
    ]
    if config.language_model:
        lines.append(("pooling", "lasttoken", "a language model: only its last token has seen the whole input"))
    if gpu:
        lines.append(("dtype", "bfloat16", "half the memory; LoRA weights stay in float32"))
    most = config.positions or 1 << 20
    if facts.query_tokens:
        lines.append(
            ("query_tokens", min(facts.query_tokens, most), "95 of 100 queries are not longer; others are cut")
        )
    if facts.document_tokens and not facts.pages:
        note = "95 of 100 documents are not longer; time and memory of a step are nearly proportional to it"
        lines.append(("document_tokens", min(facts.document_tokens, most), note))
    if facts.pages:
        lines.append(("max_pixels", PIXELS, "of a page image, at most; half the pixels, half the time"))
    return lines


def _data(facts: DataFacts, held: int) -> list[Line]:
    block, usual = facts.block, DataBlock()
    lines: list[Line] = [("path", block.path, "folder, file or Hub dataset")]
    lines += [
        (key, getattr(block, key), note) for key, note in NAMED.items() if getattr(block, key) != getattr(usual, key)
    ]
    if facts.negatives:
        lines.append(("negatives", min(facts.negatives, 4), "hard negatives per query that a loss gets"))
    lines.append(("dev", held, "held-out queries for the curve and the hybrid weight"))
    if not facts.own_test:
        lines.append(("test", held, "held-out queries for the table"))
    return lines


def _yaml(value: Any) -> str:
    """Return a value as YAML on one line. JSON is YAML; a name or a path stands without quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(inner)}" for key, inner in value.items()) + "}"
    if (
        isinstance(value, str)
        and re.fullmatch(r"[A-Za-z_./][\w./-]*(:[\w./-]+)?", value)
        and value.lower() not in WORDS
    ):
        return value
    return json.dumps(value, ensure_ascii=False)
