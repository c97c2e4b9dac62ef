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
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError, Setting
from smart_train.core.folder_lock import own
from smart_train.data import store
from smart_train.data.collection import Collection, HardNegatives
from smart_train.data.load import load, read_all
from smart_train.data.readers.beir import is_beir
from smart_train.mining.miner import RERANKED, SAVE_EVERY, Miner, MiningResult, mine
from smart_train.mining.mining_report import Ratios, draw, write_report
from smart_train.mining.pair_scores import KeptScores, PairScorer, positives_in_corpus, teacher_scores
from smart_train.mining.selection import ExcludedDocuments, MiningOptions, held_out_documents
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


@dataclass
class ScoringResult:
    """What ``score_folder`` did.

    queries: with scores; unanswered: without a positive in the corpus, left out; pairs: scores
    filled: queries that got random negatives; sampled: how many random negatives; cut: hard negatives beyond ``ways``
    agreement: share of queries whose best document, to the teacher, is a positive
    """

    queries: int = 0
    unanswered: int = 0
    pairs: int = 0
    filled: int = 0
    sampled: int = 0
    cut: int = 0
    agreement: float = 0.0


def score_folder(
    data: DataBlock, teacher: PairScorer, *, ways: int = 16, sample: bool = True, seed: int = 0
) -> ScoringResult:
    """Score each query's positives and hard negatives with a teacher, and write teacher/ of the folder ``data.path``.

    data: split, dev and test as in the recipe that will train on it, so that what it holds out is never sampled
    ways: documents of a query that are scored: its positives, then its hard negatives, hardest first
    sample: whether a query with fewer is filled up with random documents, which become its negatives, too: behind the
        hard ones, and without the miner's scores. They are no positives, no copies of one and of no other split

    A query that had scores gets the new ones; those of other splits' queries stay. A call that was stopped goes on.
    Raises what ``load`` raises, ExtensionResultError for scores that are no numbers, FolderInUse where another process
    works on this folder, DataError where no query has two documents to compare.
    """
    folder = Path(data.path)
    with own(folder / "mining"):
        train, *others = load(data)
        held_out = held_out_documents(train, others)
        result, chosen, filled = ScoringResult(), {}, {}
        excluded, ids = ExcludedDocuments(train), list(train.corpus)
        for query in train.queries:
            positives = positives_in_corpus(train, query)
            if not positives:
                result.unanswered += 1
                continue
            mined = list(train.negatives.get(query, ()))
            room = max(ways - len(positives), 0)
            result.cut += max(len(mined) - room, 0)
            kept = mined[:room]
            if sample and len(kept) < room:
                banned = {*mined, *excluded.of(query), query}  # the positives are excluded, too
                drawn = _random_documents(ids, room - len(kept), banned, held_out, f"{seed}-{query}")
                if drawn:
                    filled[query] = HardNegatives((*mined, *drawn), miner=f"mined, then {len(drawn)} at random")
                    result.filled, result.sampled = result.filled + 1, result.sampled + len(drawn)
                kept += drawn
            if kept:
                chosen[query] = kept
        if not chosen:
            raise DataError(
                f"no query of {train.name} has a positive and another document to score; mine hard negatives first, "
                "or let the groups be filled up with random documents"
            )
        state = folder / "mining" / TAUGHT
        kept_scores = KeptScores(state, _data_key(train, {"ways": ways, "seed": seed, "sample": sample}), teacher)
        scores = teacher_scores(train, chosen, teacher, kept_scores)
        if filled:
            store.write_negatives(folder, filled)
        store.write_teacher(folder, scores)
        state.unlink(missing_ok=True)
    result.queries, result.pairs = len(scores), sum(map(len, scores.values()))
    best = [max(row, key=row.__getitem__) in train.relevant(query) for query, row in scores.items()]
    result.agreement = sum(best) / len(best)
    return result


def _random_documents(ids: Sequence[str], count: int, banned: set[str], held_out: set[str], seed: str) -> list[str]:
    """Draw documents by a seed of their own, so that a query's draw depends on no other query."""
    drawn: list[str] = []
    source = random.Random(seed)
    for _ in range(20 * count):  # a corpus that is hardly larger than what is banned has fewer
        one = ids[source.randrange(len(ids))]
        if one not in banned and one not in held_out:
            drawn.append(one)
            banned.add(one)
        if len(drawn) == count:
            break
    return drawn


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


def _data_key(collection: Collection, options: object) -> str:
    """Return a hash of the data and options, without negatives and teacher scores: a call that was stopped between its
    last files goes on, too."""
    bare = copy.copy(collection)
    bare.negatives, bare.teacher = {}, {}
    near = f" {json.dumps(sorted(collection.near.items()))}" if collection.near else ""
    return hashlib.sha256(f"{bare.fingerprint()} {json.dumps(options, sort_keys=True)}{near}".encode()).hexdigest()


def _key(collection: Collection, held_out: set[str], encoder: SmartEncoder, options: MiningOptions) -> str:
    """Return the key of a pass' state: the same data, weights, settings and options give the same key."""
    found = hashlib.sha256(_data_key(collection, None).encode())
    found.update(json.dumps([sorted(held_out), asdict(options), settings_of(encoder)], sort_keys=True).encode())
    trained = {**lora_parameters(encoder.backbone), **encoder.head.state_dict()}
    for name in sorted(trained):
        found.update(name.encode())
        found.update(trained[name].detach().float().cpu().numpy().tobytes())
    return found.hexdigest()
