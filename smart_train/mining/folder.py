"""Mine negatives for a retrieval folder and store them in it, with a report and a picture.

negatives/negatives.parquet    read by every recipe with data.negatives above 0
teacher/teacher.parquet        scores of a teacher, read by every recipe with objective.teacher.weight above 0
mining/report.json, ratios.png counts, and how near the negatives' scores come to their positives'
mining/unfinished*             the state of a pass that was stopped, and its reranker's and teacher's scores; the next
                               one resumes there
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError, Setting
from smart_train.core.folder_lock import own
from smart_train.data import store
from smart_train.data.collection import Collection
from smart_train.data.load import load, read_all
from smart_train.data.readers.beir import is_beir
from smart_train.mining.miner import RERANKED, SAVE_EVERY, Miner, MiningResult, mine
from smart_train.mining.mining_report import Ratios, draw, write_report
from smart_train.mining.pair_scores import KeptScores, PairScorer, teacher_scores
from smart_train.mining.selection import MiningOptions, held_out_documents
from smart_train.models.encoder import SmartEncoder
from smart_train.models.lora import lora_parameters
from smart_train.models.saving import settings_of

logger = logging.getLogger(__name__)

REPORT, PICTURE, UNFINISHED = "report.json", "ratios.png", "unfinished.safetensors"
TAUGHT = "unfinished-teacher.jsonl"


def mining_folder(data: DataBlock, out: str | Path | None = None) -> Path:
    """Return the retrieval folder that negatives are added to: ``data.path``, or ``out``, which all of the data is
    written to first, unless an earlier call did that.

    Raises DataError if the data is not a local retrieval folder and ``out`` is not given.
    """
    if out is None:
        folder = Path(data.path)
        if not is_beir(folder):
            raise DataError(
                f"{data.path} is not a folder with a corpus, queries and qrels, so negatives cannot be added to it; "
                "to write all of it to a new folder, ",
                Setting("out", "FOLDER", python="pass out=FOLDER"),
            )
        return folder
    folder = Path(out)
    if not is_beir(folder):
        store.write_dataset(read_all(data), folder)
        logger.info("wrote all of %s to %s, as a corpus, queries and qrels", data.path, folder)
    return folder


def mine_folder(
    data: DataBlock,
    encoder: SmartEncoder,
    options: MiningOptions,
    *,
    model: str = "",
    miner: Miner | None = None,
    reranker: PairScorer | None = None,
    teacher: PairScorer | None = None,
    batch_size: int = 32,
    progress: bool = False,
    save_every: float = SAVE_EVERY,
) -> MiningResult:
    """Mine negatives for the queries of ``data.split`` in the folder ``data.path``, and write the files listed above.

    data: split, dev and test as in the recipe that will train on it, so that what it holds out is no candidate
    model: name of the model (and of miner and reranker), stored with each query's negatives
    miner, reranker, teacher: see mining/extensions.py; None = the built-in miner, no reranker, no teacher

    A query that had negatives (or teacher scores) gets the new ones; those of other splits' queries stay.
    Raises what ``load`` and ``mine`` raise, DataError for images if the encoder has no image side, and FolderInUse
    where another process is mining for this folder.
    """
    folder = Path(data.path)
    with own(folder / "mining"):
        train, *others = load(data)
        _check_images(train, encoder)
        held_out = held_out_documents(train, others)
        state = folder / "mining" / UNFINISHED
        key = _key(train, held_out, encoder, options)
        signature = f"{model or encoder.settings.base}, {options.mode}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        result = mine(
            train,
            encoder,
            options,
            miner=miner,
            held_out=held_out,
            reranker=reranker,
            batch_size=batch_size,
            progress=progress,
            state=state,
            key=key,
            save_every=save_every,
            signature=signature,
        )
        scores = None
        if teacher is not None:
            kept = KeptScores(state.with_name(TAUGHT), key, teacher)
            scores = teacher_scores(train, result.document_ids(), teacher, kept)
        store.write_negatives(folder, result.negatives)
        if scores is not None:
            store.write_teacher(folder, scores)
        about = {
            "miner": signature,
            "split": data.split,
            "options": asdict(options),
            "hybrid": asdict(encoder.late.hybrid),
        }
        report = folder / "mining" / REPORT
        ratios = result.ratios or Ratios()
        write_report(report, ratios, result.counts, **about, seconds=round(result.seconds, 2))
        title = f"{folder.name}: {result.counts['mined']:,} negatives of {result.counts['queries']:,} queries"
        score = options.mode if reranker is None else "reranker"
        draw(folder / "mining" / PICTURE, ratios, score, options.max_relative, title)
        for name in (UNFINISHED, RERANKED, TAUGHT):  # now that all of it is written
            state.with_name(name).unlink(missing_ok=True)
        return result


def round_miner(
    train: Collection,
    others: Sequence[Collection],
    options: MiningOptions,
    batch_size: int = 32,
    miner: Miner | None = None,
    reranker: PairScorer | None = None,
) -> Callable[[SmartEncoder], tuple[dict[str, list[str]], dict[str, float]]]:
    """Return the function that a run mines with (training/mining_rounds.py).

    It takes an encoder, and returns negatives by query id and metrics for the log.

    train: the run's training split; others: the splits it is measured on, whose documents are no candidates
    """
    held_out = held_out_documents(train, others)

    def mine_with(encoder: SmartEncoder) -> tuple[dict[str, list[str]], dict[str, float]]:
        _check_images(train, encoder)
        result = mine(train, encoder, options, miner=miner, held_out=held_out, reranker=reranker, batch_size=batch_size)
        queries, ratios = result.counts["queries"], result.ratios
        median = None if ratios is None else ratios.quantiles().get("0.5")
        metrics = {
            "negatives": result.counts["mined"] / queries,
            "without": result.counts["none"] / queries,
            "seconds": round(result.seconds, 2),
        }
        return result.document_ids(), metrics | ({} if median is None else {"ratio": median})

    return mine_with


def _check_images(collection: Collection, encoder: SmartEncoder) -> None:
    pages = [document.id for document in collection.corpus.values() if document.image is not None]
    if pages and "image" not in encoder.st.modalities:
        raise DataError(
            f"{len(pages)} documents of {collection.name} are images, such as {pages[0]!r}, and "
            f"{encoder.settings.base} has no image side; choose a vision-language base"
        )


def _key(collection: Collection, held_out: set[str], encoder: SmartEncoder, options: MiningOptions) -> str:
    """Return the key of a pass' state: the same data, weights, settings and options give the same key.

    Negatives and teacher scores that are there already change no result: a call that was stopped between its last
    files goes on, too.
    """
    bare = copy.copy(collection)
    bare.negatives, bare.teacher = {}, {}
    found = hashlib.sha256(bare.fingerprint().encode())
    found.update(json.dumps([sorted(held_out), asdict(options), settings_of(encoder)], sort_keys=True).encode())
    trained = {**lora_parameters(encoder.backbone), **encoder.head.state_dict()}
    for name in sorted(trained):
        found.update(name.encode())
        found.update(trained[name].detach().float().cpu().numpy().tobytes())
    return found.hexdigest()
