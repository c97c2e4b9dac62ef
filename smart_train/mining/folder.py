"""Mines a retrieval folder: its training queries get negatives, stored beside them, with a report and a picture.

negatives/negatives.parquet    read by every recipe with data.negatives above 0
mining/report.json, ratios.png what was found, what was passed over, and how near to the answers it is
mining/unfinished.safetensors  how far a pass has come that was stopped; the next one goes on there
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError
from smart_train.data import store
from smart_train.data.collection import Collection
from smart_train.data.load import load, read_all
from smart_train.data.readers.beir import is_beir
from smart_train.mining.miner import EVERY, Mining, mine
from smart_train.mining.mining_report import draw, write_report
from smart_train.mining.selection import Options, held_out
from smart_train.models.encoder import SmartEncoder
from smart_train.models.lora import lora_parameters
from smart_train.models.saving import settings_of

logger = logging.getLogger(__name__)

REPORT, PICTURE, UNFINISHED = "report.json", "ratios.png", "unfinished.safetensors"


def place_of(data: DataBlock, out: str | Path | None = None) -> Path:
    """The retrieval folder that negatives are added to: ``data.path`` itself, or ``out``, to which all of the data is
    written first, unless an earlier call did that.

    Raises DataError where the data is no local retrieval folder and ``out`` is not given.
    """
    if out is None:
        folder = Path(data.path)
        if not is_beir(folder):
            raise DataError(
                f"{data.path} is no folder of a corpus, queries and qrels, so negatives cannot be added to it; "
                "name a folder that all of it is written to (--out FOLDER)"
            )
        return folder
    folder = Path(out)
    if not is_beir(folder):
        store.write_dataset(read_all(data), folder)
        logger.info("%s: all of %s, as a corpus, queries and qrels", folder, data.path)
    return folder


def mine_folder(
    data: DataBlock,
    encoder: SmartEncoder,
    options: Options,
    *,
    model: str = "",
    batch_size: int = 32,
    progress: bool = False,
    every: float = EVERY,
) -> Mining:
    """Mines the queries of ``data.split`` in the folder ``data.path``, and writes what this module's head says.

    data: split, dev and test as in the recipe that will train on it: what it holds out is no candidate
    model: what the rows are signed with, besides the score and the date
    A query that had negatives gets the new ones; those of other splits' queries stay.
    Raises what ``load`` and ``mine`` raise, and DataError for images where the encoder has no image side.
    """
    folder = Path(data.path)
    train, *others = load(data)
    _check_images(train, encoder)
    left = held_out(train, others)
    state = folder / "mining" / UNFINISHED
    signed = f"{model or encoder.settings.base}, {options.mode}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    mining = mine(
        train,
        encoder,
        options,
        leave_out=left,
        batch_size=batch_size,
        progress=progress,
        state=state,
        key=_key(train, left, encoder, options),
        every=every,
        miner=signed,
    )
    store.write_negatives(folder, mining.found)
    state.unlink(missing_ok=True)
    told = {"miner": signed, "split": data.split, "options": asdict(options), "hybrid": asdict(encoder.late.hybrid)}
    report = folder / "mining" / REPORT
    write_report(report, mining.ratios, mining.counts, **told, seconds=round(mining.seconds, 2))
    title = f"{folder.name}: {mining.counts['mined']:,} negatives of {mining.counts['queries']:,} queries"
    draw(folder / "mining" / PICTURE, mining.ratios, options.mode, options.max_relative, title)
    return mining


def miner(
    train: Collection, others: Sequence[Collection], options: Options, batch_size: int = 32
) -> Callable[[SmartEncoder], tuple[dict[str, list[str]], dict[str, float]]]:
    """Return the function that a run mines with (training/mining_rounds.py).

    It takes an encoder and returns negatives by query id, and figures for the log.

    train: the run's training side; others: what it is measured on, whose documents are no candidates
    """
    left = held_out(train, others)

    def of(encoder: SmartEncoder) -> tuple[dict[str, list[str]], dict[str, float]]:
        _check_images(train, encoder)
        found = mine(train, encoder, options, leave_out=left, batch_size=batch_size)
        queries, median = found.counts["queries"], found.ratios.quantiles().get("0.5")
        figures = {
            "negatives": found.counts["mined"] / queries,
            "without": found.counts["none"] / queries,
            "seconds": round(found.seconds, 2),
        }
        return found.negatives(), figures | ({} if median is None else {"ratio": median})

    return of


def _check_images(collection: Collection, encoder: SmartEncoder) -> None:
    pages = [document.id for document in collection.corpus.values() if document.image is not None]
    if pages and "image" not in encoder.st.modalities:
        raise DataError(
            f"{len(pages)} documents of {collection.name} are images, such as {pages[0]!r}, and "
            f"{encoder.settings.base} has no image side; choose a vision-language base"
        )


def _key(collection: Collection, left: set[str], encoder: SmartEncoder, options: Options) -> str:
    """What a pass is of: the same data, weights, settings and options give the same key."""
    found = hashlib.sha256(collection.fingerprint().encode())
    found.update(json.dumps([sorted(left), asdict(options), settings_of(encoder)], sort_keys=True).encode())
    trained = {**lora_parameters(encoder.backbone), **encoder.head.state_dict()}
    for name in sorted(trained):
        found.update(name.encode())
        found.update(trained[name].detach().float().cpu().numpy().tobytes())
    return found.hexdigest()
