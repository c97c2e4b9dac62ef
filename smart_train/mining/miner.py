"""Mine hard negatives for a collection: the corpus is encoded once, and every query keeps its best few candidates.

Memory is a portion of documents, the queries' embeddings, 12 bytes x queries x (range and SPARE), and 8 bytes a
document. A pass that was stopped resumes where its state was last saved.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection as Ids
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from smart_train.core.atomic_io import replacing
from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.core.errors import DataError, EvaluationError, ExtensionResultError
from smart_train.data.collection import Collection, Document, HardNegatives
from smart_train.data.identity import content_hash, known_hash
from smart_train.data.readers.python_rows import as_collection
from smart_train.evaluation.encode import encode, queries_in_corpus
from smart_train.evaluation.metrics import Ranking
from smart_train.evaluation.protocols import Encoder
from smart_train.evaluation.scoring import check, tiles, view
from smart_train.evaluation.topk import TopK
from smart_train.mining.mining_report import Ratios
from smart_train.mining.pair_scores import KeptScores, PairScorer, score_pairs
from smart_train.mining.selection import (
    ExcludedDocuments,
    MiningOptions,
    distinct_candidates,
    select_negatives,
)

logger = logging.getLogger(__name__)

SPARE = 32  # candidates kept beyond the range: copies of pages are only known once both have been decoded
RERANKED = "unfinished-reranker.jsonl"  # beside a pass' state
SAVE_EVERY = 60.0  # seconds between two saves of a pass' state


@dataclass
class MiningTask:
    """Input of a negative miner.

    collection: corpus, queries and qrels; encoder: any object with ``encode_queries`` and ``encode_documents``
    options: how negatives are selected; a miner that ranks in another way uses those that it can
    held_out: documents that must not become negatives, since another split is measured on them
    reranker: judges candidates in place of the encoder's score (max_relative, margin); None = there is none
    batch_size, progress: of encoding
    state: file that a miner may save its state in, and resume from if ``key`` (data, model and options) is the same;
        the caller removes it. save_every: seconds between two saves
    signature: what ``HardNegatives.miner`` says: model, score and date
    """

    collection: Collection
    encoder: Encoder
    options: MiningOptions = field(default_factory=MiningOptions)
    held_out: Ids[str] = ()
    reranker: PairScorer | None = None
    batch_size: int = 32
    progress: bool = False
    state: Path | None = None
    key: str = ""
    save_every: float = SAVE_EVERY
    signature: str = ""

    @cached_property
    def exclusion(self) -> ExcludedDocuments:
        return ExcludedDocuments(self.collection, self.options.window)

    @cached_property
    def positives(self) -> dict[str, set[str]]:
        """{query id: its positives in the corpus, those of queries of the same words included}."""
        corpus = self.collection.corpus
        return {q: {d for d in self.exclusion.positives(q) if d in corpus} for q in self.collection.queries}

    @cached_property
    def query_ids(self) -> list[str]:
        """Return the queries to mine for: those with a positive in the corpus."""
        return [query for query, positives in self.positives.items() if positives]

    @cached_property
    def document_ids(self) -> list[str]:
        """Return possible negatives and the positives: texts by length, longest first, then images."""
        corpus = self.collection.corpus
        left_out = set(self.held_out) - {d for positives in self.positives.values() for d in positives}
        texts = [d.id for d in corpus.values() if d.image is None and d.id not in left_out]
        texts.sort(key=lambda name: -len(corpus[name].text or ""))  # the order of ``encode``, so that a rest keeps it
        return texts + [d.id for d in corpus.values() if d.image is not None and d.id not in left_out]

    @cached_property
    def _allowed(self) -> frozenset[str]:
        return frozenset(self.document_ids)

    def is_candidate(self, document: str) -> bool:
        """Return whether the corpus has the document and no other split holds it out."""
        return document in self._allowed

    def excluded(self, query: str) -> dict[str, str]:
        """Return {document id: reason} for the documents that must not become negatives of a query: positives, their
        copies, pages next to them (options.window). A query that is itself a document is not among them."""
        return self.exclusion.of(query)


@dataclass
class MiningResult:
    """Result of a negative miner.

    negatives: query id -> its negatives, hardest first, for every query that was mined; a query without any has an
        empty one
    counts: queries (mined for), mined (negatives), short (queries with fewer than k), none (queries without any),
        unanswered (queries without a positive in the corpus: not mined for), documents, held_out (documents left out),
        and how many candidates within the range were not taken, by reason (mining/selection.py)
    ratios: negatives' scores as shares of their positive's; None where the miner gave no scores
    """

    options: MiningOptions
    negatives: dict[str, HardNegatives] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    ratios: Ratios | None = None
    seconds: float = 0.0

    def document_ids(self) -> dict[str, list[str]]:
        """Return the negatives as ``Collection.negatives`` holds them: query id -> document ids."""
        return {query: list(mined.documents) for query, mined in self.negatives.items()}


class Miner(Protocol):
    """Finds hard negatives: a function from a MiningTask to {query id: document ids, hardest first}.

    A query's value may also be a ``HardNegatives`` (ids with scores), and the result a ``MiningResult`` (with counts).
    """

    def __call__(self, task: MiningTask, /) -> MiningResult | Mapping[str, Sequence[str] | HardNegatives]: ...


def mine(
    collection: Any,
    encoder: Encoder,
    options: MiningOptions | None = None,
    *,
    miner: Miner | None = None,
    **more: Any,
) -> MiningResult:
    """Mine hard negatives for every query that has a positive in the corpus.

    collection: a Collection, or rows as ``SmartTrainer`` takes them
    miner: None = ``mine_by_score``; more: the other fields of MiningTask (held_out, reranker, batch_size, state ...)

    Raises DataError if no query has a positive, EvaluationError for embeddings that are not finite, and
    ExtensionResultError if the miner or the reranker returns what its protocol does not allow.
    """
    collection = as_collection(collection)
    task = MiningTask(collection, encoder, options or MiningOptions(), **more)
    if not task.query_ids:
        raise DataError(
            f"{collection.name}: none of {len(task.positives)} queries has a positive in the corpus of "
            f"{len(collection.corpus)} documents, so there is no score to compare a negative's with; check the qrels"
        )
    begun = time.perf_counter()
    result = (miner or mine_by_score)(task)
    result = result if isinstance(result, MiningResult) else _result_of(task, result)
    for query, mined in result.negatives.items():
        _check_negatives(task, query, mined)
    result.counts.update(
        queries=len(task.query_ids),
        unanswered=len(task.positives) - len(task.query_ids),
        documents=len(task.document_ids),
        held_out=len(collection.corpus) - len(task.document_ids),
    )
    result.seconds = time.perf_counter() - begun
    return result


def _result_of(task: MiningTask, returned: Any) -> MiningResult:
    """Return what another miner returned as a MiningResult."""
    fix = "return {query id: [document ids, hardest first]}"
    if not isinstance(returned, Mapping):
        raise ExtensionResultError(f"the negative miner returned a {type(returned).__name__}", fix)
    result = MiningResult(task.options)
    for query in task.query_ids:
        ids = returned.get(query, ())
        if not isinstance(ids, HardNegatives):
            if isinstance(ids, str) or not isinstance(ids, Sequence) or not all(isinstance(one, str) for one in ids):
                what = f"the negative miner returned {str(ids)[:60]!r} for the query {query!r}"
                raise ExtensionResultError(what, fix)
            ids = HardNegatives(tuple(ids), miner=task.signature)
        result.negatives[query] = ids
        count = len(ids.documents)
        result.counts.update(mined=count, short=count < task.options.k, none=not count)
        if ids.scores and ids.positive is not None:
            result.ratios = result.ratios or Ratios()
            result.ratios.add(ids.positive, (), ids.scores)
    if unknown := [query for query in returned if query not in result.negatives]:
        what = f"the negative miner returned {len(unknown)} queries not in task.query_ids, such as {unknown[0]!r}"
        raise ExtensionResultError(what, fix)
    return result


def _check_negatives(task: MiningTask, query: str, mined: HardNegatives) -> None:
    """Raise ExtensionResultError if a document must not be a negative of the query."""
    corpus, fix = task.collection.corpus, "use ids of task.document_ids that are not in task.excluded(query id)"
    seen: set[str] = set()
    for document in mined.documents:
        why = (
            "that the corpus does not have"
            if document not in corpus
            else "that is a positive of it"
            if document in task.positives[query]
            else "that is held out for another split"
            if not task.is_candidate(document)
            else "twice"
            if document in seen
            else ""
        )
        if why:
            raise ExtensionResultError(
                f"the negative miner gave the query {query!r} the document {document!r}, {why}", fix
            )
        seen.add(document)


# --- the built-in miner


def mine_by_score(task: MiningTask) -> MiningResult:
    """Rank the corpus for every query by the encoder's score, and select negatives by ranks and thresholds."""
    search = _Pass(task)
    search.run()
    result = MiningResult(task.options, ratios=Ratios())
    candidates = search.select_candidates(result)
    if task.reranker is None:
        for one in candidates:
            _take(task, result, one, None)
        return result
    waiting: dict[str, _Candidates] = {}  # those that the reranker has been given and has not scored yet

    def documents() -> Iterator[tuple[str, list[str]]]:
        first = task.options.range[0]
        for one in candidates:
            waiting[one.query] = one
            yield one.query, [*sorted(task.positives[one.query]), *(document for document, _ in one.ranked[first:])]

    total = len(task.query_ids)
    kept = None if task.state is None else KeptScores(task.state.with_name(RERANKED), task.key, task.reranker)
    for query, scores in score_pairs(task.reranker, task.collection, documents(), "the reranker", total, kept):
        one = waiting.pop(query)
        one.positive = max(scores[document] for document in task.positives[query])
        _take(task, result, one, scores)
    return result


@dataclass
class _Candidates:
    """One query's candidates up to the last rank of the range.

    ranked: (document id, score), best first, without copies; scores: those of the same ranks with copies
    positive: the score of the query's best positive
    """

    query: str
    ranked: list[tuple[str, float]]
    scores: list[float]
    positive: float


def _take(task: MiningTask, result: MiningResult, one: _Candidates, rescored: Mapping[str, float] | None) -> None:
    """Select one query's negatives, count what was not taken, and add both to the result."""
    chosen = select_negatives(one.query, one.ranked, one.positive, task.options, rescored)
    documents, scores = [d for d, _ in chosen.documents], [s for _, s in chosen.documents]
    result.counts.update(chosen.dropped)
    result.counts.update(mined=len(documents), short=len(documents) < task.options.k, none=not documents)
    assert result.ratios is not None
    within_range = one.scores if rescored is None else [rescored[d] for d, _ in one.ranked if d in rescored]
    result.ratios.add(one.positive, within_range, scores)
    result.negatives[one.query] = HardNegatives(tuple(documents), tuple(scores), one.positive, task.signature)


class _Pass:
    """One pass over the corpus: encode it portion by portion, and keep every query's best candidates."""

    def __init__(self, task: MiningTask) -> None:
        self.task, self.queries, self.documents = task, task.query_ids, task.document_ids
        self.view = view(task.options.mode, task.encoder.late.hybrid)
        self.hashes: dict[str, int] = {}  # of images, as they are decoded
        self.rows: list[int] = []  # query rows of the pairs that are never a negative
        self.why: list[str] = []  # and their reasons
        top = task.options.range[1] + SPARE
        self.candidates = _TopKWithoutPairs(self._pairs(), top, self.view.noise, self.queries, self.documents)

    def _pairs(self) -> Tensor:
        """Return [E, 2] (query row, document row) of the pairs that are never a negative; fill ``rows`` and ``why``."""
        column = {document: at for at, document in enumerate(self.documents)}
        identical_ids = queries_in_corpus(self.task.collection, self.queries)
        columns: list[int] = []
        for row, query in enumerate(self.queries):
            excluded = self.task.excluded(query)
            if query in identical_ids:
                excluded.setdefault(query, "itself")
            for document, why in excluded.items():
                if document in column:
                    self.rows.append(row)
                    columns.append(column[document])
                    self.why.append(why)
        return torch.tensor([self.rows, columns], dtype=torch.int64).t()

    def run(self) -> None:
        task = self.task
        done = self._restore()
        if done == len(self.documents):
            return
        corpus = task.collection.corpus
        rest = {
            d: corpus[d] if corpus[d].image is None else _Watched(corpus[d], self.hashes) for d in self.documents[done:]
        }
        texts = {query: task.collection.queries[query] for query in self.queries}
        # encode() leaves out queries that have no judgement; here all are to be encoded, so each gets one
        judged = {next(iter(rest)): 1}
        encoded = encode(
            task.encoder,
            _RestOfCorpus(rest, texts, dict.fromkeys(self.queries, judged)),
            batch_size=task.batch_size,
            progress=task.progress,
            keep=False,
        )
        queries = self._without_unused_tokens(encoded.queries)
        check(queries, self.queries, "query")
        device, saved = getattr(task.encoder, "device", None), time.monotonic()
        for portion in encoded.documents:
            portion = self._without_unused_tokens(portion)
            check(portion, self.documents[done : done + len(portion)], "document")
            for rows, columns, pooled, late in tiles(queries, portion, device=device):
                place = slice(done + columns.start, done + columns.stop)
                self.candidates.add(rows, place, self.view.score(pooled, late))
            done += len(portion)
            due = done == len(self.documents) or time.monotonic() - saved >= task.save_every
            if task.state is not None and due:
                self._save(task.state, done)
                saved = time.monotonic()

    def select_candidates(self, result: MiningResult) -> Iterator[_Candidates]:
        """Yield every query's candidates; count copies and excluded documents within the range in the result."""
        last, corpus = self.task.options.range[1], self.task.collection.corpus
        excluded: list[list[tuple[str, float]]] = [[] for _ in self.queries]
        for row, why, score in zip(self.rows, self.why, self.candidates.pair_scores().tolist(), strict=True):
            excluded[row].append((why, score))
        ranking = self.candidates.ranked(self.queries, self.documents)
        for row, (query, ranked) in enumerate(ranking):  # blocks of queries, in their order
            # An excluded document counts only if its score would have placed it within the range.
            lowest = ranked[last - 1][1] if len(ranked) >= last else float("-inf")
            result.counts.update(why for why, score in excluded[row] if score >= lowest)
            positive = max(score for why, score in excluded[row] if why == "answer")
            contents = {self._content(d) for d in self.task.exclusion.positives(query) if d in corpus}
            distinct, copies = distinct_candidates(ranked, self.task.options, self._content, contents)
            result.counts.update({"duplicate": copies} if copies else {})
            yield _Candidates(query, distinct, [score for _, score in ranked[:last]], positive)

    def _without_unused_tokens(self, embeddings: Embeddings) -> Embeddings:
        """Drop the tokens where only pooled scores count; one number stands for them."""
        if self.task.options.mode != "pooled":
            return embeddings
        ones = torch.ones(len(embeddings), dtype=torch.int64, device=embeddings.pooled.device)
        return Embeddings(embeddings.pooled, Tokens(embeddings.pooled[:, :1], ones))

    def _save(self, state: Path, done: int) -> None:
        from safetensors.torch import save_file

        hashes = [self.hashes.get(document, 0) for document in self.documents[:done]]
        tensors = {**self.candidates.state(), "hashes": torch.tensor(hashes, dtype=torch.int64)}
        state.parent.mkdir(parents=True, exist_ok=True)
        with replacing(state) as part:
            save_file(tensors, part, metadata={"key": self.task.key, "done": str(done)})

    def _restore(self) -> int:
        """Load the state of a stopped pass; return how many documents it has scored."""
        state = self.task.state
        if state is None or not state.is_file():
            return 0
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(state, framework="pt") as stored:
                metadata = stored.metadata() or {}
                if metadata.get("key") != self.task.key:
                    logger.info("%s belongs to other data, another model or other options: mining starts anew", state)
                    return 0
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except SafetensorError as error:  # a machine that lost its power, or a copy that was cut off
            logger.warning("%s is damaged (%s): mining starts anew", state, error)
            return 0
        done = int(metadata["done"])
        hashes = tensors.pop("hashes").tolist()
        self.hashes |= {d: shown for d, shown in zip(self.documents[:done], hashes, strict=True) if shown}
        self.candidates.restore(tensors)
        logger.info("%s: resumed after %d of %d documents", state, done, len(self.documents))
        return done

    def _content(self, document: str) -> int:
        """Return the document's content hash; 0 for an image that was not decoded."""
        collection = self.task.collection
        if document in collection.near:
            return collection.near[document]
        return self.hashes.get(document) or known_hash(collection.corpus[document])


@dataclass
class _Watched:
    """A document whose content hash is kept when it is decoded, which happens once, on its way to the encoder."""

    document: Document
    hashes: dict[str, int]

    @property
    def text(self) -> str | None:
        return self.document.text

    @property
    def title(self) -> str | None:
        return self.document.title

    @property
    def image(self) -> Any:
        return self.document.image

    def content(self) -> Any:
        shown = self.document.content()
        self.hashes[self.document.id] = content_hash(shown)
        return shown


@dataclass
class _RestOfCorpus:
    """The collection that ``encode`` is given: the documents still to come, and the queries, which are all encoded."""

    corpus: Mapping[str, Any]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]


class _TopKWithoutPairs:
    """Keep the first ``top`` documents of every query without those of excluded pairs, and the scores of these pairs.

    pairs: [E, 2] int64, (query row, document row), in any order
    noise: scores nearer than this are equal and ordered by a hash of the ids (see ranking.py)
    query_ids, document_ids: of all rows and columns, see ``TopK``
    """

    def __init__(
        self,
        pairs: Tensor,
        top: int,
        noise: float,
        query_ids: Sequence[str] = (),
        document_ids: Sequence[str] = (),
    ) -> None:
        self.top, self.noise = top, noise
        self.query_ids, self.document_ids = query_ids, document_ids
        self.order = pairs[:, 1].argsort(stable=True)
        self.rows, self.columns = pairs[self.order].unbind(1)
        self.columns = self.columns.contiguous()
        self.found = torch.full((len(pairs),), float("nan"))
        self.best: dict[tuple[int, int], TopK] = {}

    def add(self, rows: slice, columns: slice, scores: Tensor) -> None:
        """Add the scores [rows, columns] of one tile; those of excluded pairs in it are overwritten."""
        begin, end = torch.searchsorted(self.columns, torch.tensor([columns.start, columns.stop])).tolist()
        row = self.rows[begin:end]
        here = ((row >= rows.start) & (row < rows.stop)).nonzero().squeeze(1) + begin
        at = (self.rows[here] - rows.start).to(scores.device), (self.columns[here] - columns.start).to(scores.device)
        self.found[here] = scores[at].to(self.found)
        scores[at] = float("-inf")
        best = self.best.setdefault((rows.start, rows.stop), self._empty(rows))
        if best.scores is not None and best.columns is not None and best.scores.device != scores.device:
            best.scores, best.columns = best.scores.to(scores.device), best.columns.to(scores.device)
        best.add(scores, columns.start)

    def _empty(self, rows: slice) -> TopK:
        return TopK(self.top, self.noise, query_ids=self.query_ids[rows], document_ids=self.document_ids)

    def pair_scores(self) -> Tensor:
        """Return the pairs' scores [E] float32, in the order of ``pairs``; NaN for a document that was not added."""
        scores = torch.empty_like(self.found)
        scores[self.order] = self.found
        return scores

    def ranked(self, query_ids: Sequence[str], document_ids: Sequence[str]) -> Iterator[tuple[str, Ranking]]:
        """Yield (query id, its ranking without excluded pairs, best first), one block of queries after another."""
        for (begin, end), best in sorted(self.best.items()):
            for query, ranking in best.rankings(query_ids[begin:end], document_ids).items():
                yield query, [pair for pair in ranking if pair[1] != float("-inf")]

    def state(self) -> dict[str, Tensor]:
        """Return tensors on the CPU by name, for ``restore``."""
        kept = {"found": self.found}
        for (begin, end), best in self.best.items():
            if best.scores is not None and best.columns is not None:
                kept[f"{begin}:{end}:scores"] = best.scores.cpu().contiguous()
                kept[f"{begin}:{end}:columns"] = best.columns.cpu().contiguous()
        return kept

    def restore(self, state: dict[str, Tensor]) -> None:
        """Load what ``state`` gave for the same pairs. Raises EvaluationError for another number of pairs."""
        if state["found"].shape != self.found.shape:
            raise EvaluationError(
                f"the saved state has {len(state['found'])} excluded pairs, this pass has {len(self.found)}; delete it"
            )
        self.found = state["found"].clone()
        for name, tensor in state.items():
            if not name.endswith(":scores"):
                continue
            begin, end = (int(part) for part in name.split(":")[:2])
            best = self._empty(slice(begin, end))
            best.scores, best.columns = tensor.clone(), state[f"{begin}:{end}:columns"].clone()
            self.best[begin, end] = best
