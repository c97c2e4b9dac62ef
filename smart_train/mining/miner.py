"""Hard negatives for a collection: its corpus goes by once, and every query keeps the best few.

Memory is a portion of documents, the queries' embeddings, 12 bytes x queries x (range and a few), and 8 bytes a
document.  A pass that is stopped goes on where it was last written down.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection as Some
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smart_train.core.atomic_io import replacing
from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.core.errors import DataError, EvaluationError
from smart_train.data.collection import Collection, Document, HardNegatives
from smart_train.data.identity import content_hash
from smart_train.evaluation.encode import Encoder, encode, standing
from smart_train.evaluation.metrics import Ranking
from smart_train.evaluation.scoring import check, tiles, view
from smart_train.evaluation.topk import Best
from smart_train.mining.mining_report import Ratios
from smart_train.mining.selection import Never, Options, select, text_hash

logger = logging.getLogger(__name__)

SPARE = 32  # candidates kept beyond the range: copies of pages are only known once both have been decoded
EVERY = 60.0  # seconds between two notes of how far a pass has come


@dataclass
class Mining:
    """What a pass gave.

    found: query id -> its negatives, hardest first, of every query that was looked at; none is an empty one
    counts: queries (looked at), mined (negatives), short (queries with fewer than k), none (queries without any),
        unanswered (queries without a known answer in the corpus: not looked at), documents, held_out (documents left
        aside), and, of the candidates within the range, how many were passed over, by reason (mining/selection.py)
    ratios: of negatives' scores to their positives'
    """

    options: Options
    found: dict[str, HardNegatives] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    ratios: Ratios = field(default_factory=Ratios)
    seconds: float = 0.0

    def negatives(self) -> dict[str, list[str]]:
        """As ``Collection.negatives`` holds them."""
        return {query: list(mined.documents) for query, mined in self.found.items()}


@dataclass
class _Watched:
    """A document whose content hash is noted when it is decoded, which happens once, on its way to the encoder."""

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
class _Rest:
    """What ``encode`` takes: documents still to come, and queries that are all to be encoded."""

    corpus: Mapping[str, Any]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]


def mine(
    collection: Collection,
    encoder: Encoder,
    options: Options | None = None,
    *,
    leave_out: Some[str] = (),
    batch_size: int = 32,
    progress: bool = False,
    state: Path | None = None,
    key: str = "",
    every: float = EVERY,
    miner: str = "",
) -> Mining:
    """The negatives of every query that has a known answer in the corpus.

    encoder: any; its hybrid weights and constants are those of mode hybrid
    leave_out: documents that are no candidates (``data.mining.held_out``); known answers among them stay answers
    state: file that the pass is written down in every ``every`` seconds, and gone on from where it is there; ``key``
        says what it is of (data, model, options): a file with another key is not used.  The caller removes it.
    miner: what ``HardNegatives.miner`` says
    Raises DataError where no query has a known answer, EvaluationError for embeddings that are not finite.
    """
    options = options or Options()
    begun = time.perf_counter()
    never = Never(collection, options.window)
    answers = {q: {d for d in never.answers(q) if d in collection.corpus} for q in collection.queries}
    queries = [q for q, found in answers.items() if found]
    if not queries:
        raise DataError(
            f"{collection.name}: none of {len(answers)} queries has a known answer in the corpus of "
            f"{len(collection.corpus)}, so there is nothing to compare a negative's score with"
        )
    needed = {d for found in answers.values() for d in found}
    left = set(leave_out) - needed
    corpus = _ordered(collection.corpus, left)
    stream = _Stream(collection, encoder, options, queries, corpus, never)
    stream.run(batch_size, progress, state, key, every)
    mining = Mining(options)
    mining.counts.update(queries=len(queries), unanswered=len(answers) - len(queries))
    mining.counts.update(documents=len(corpus), held_out=len(collection.corpus) - len(corpus))
    _choose(mining, stream, miner)
    mining.seconds = time.perf_counter() - begun
    return mining


def _ordered(corpus: Mapping[str, Document], left: set[str]) -> list[str]:
    """Ids in the order in which ``encode`` takes them, so that what is left of them keeps its order."""
    texts = [d.id for d in corpus.values() if d.image is None and d.id not in left]
    texts.sort(key=lambda name: -len(corpus[name].text or ""))
    return texts + [d.id for d in corpus.values() if d.image is not None and d.id not in left]


class _Stream:
    """One pass over the corpus."""

    def __init__(
        self,
        collection: Collection,
        encoder: Encoder,
        options: Options,
        queries: list[str],
        documents: list[str],
        never: Never,
    ) -> None:
        self.collection, self.encoder, self.options = collection, encoder, options
        self.queries, self.documents, self.never = queries, documents, never
        self.view = view(options.mode, encoder.late.hybrid)
        self.hashes: dict[str, int] = {}  # of images, as they are decoded
        self.rows: list[int] = []  # query rows of the pairs that are never a negative
        self.why: list[str] = []  # and their reasons
        self.candidates = _Candidates(self._pairs(), options.range[1] + SPARE, self.view.noise)

    def _pairs(self) -> Tensor:
        """[E, 2] (query row, document row) of what is never a negative; noted in ``rows`` and ``why``."""
        column = {document: at for at, document in enumerate(self.documents)}
        themselves = standing(self.collection, self.queries)
        columns: list[int] = []
        for row, query in enumerate(self.queries):
            found = self.never.of(query)
            if query in themselves:
                found.setdefault(query, "itself")
            for document, why in found.items():
                if document in column:
                    self.rows.append(row)
                    columns.append(column[document])
                    self.why.append(why)
        return torch.tensor([self.rows, columns], dtype=torch.int64).t()

    def run(self, batch_size: int, progress: bool, state: Path | None, key: str, every: float) -> None:
        done = self._restore(state, key)
        if done == len(self.documents):
            return
        corpus = self.collection.corpus
        rest = {
            d: corpus[d] if corpus[d].image is None else _Watched(corpus[d], self.hashes) for d in self.documents[done:]
        }
        texts = {query: self.collection.queries[query] for query in self.queries}
        # encode() chooses queries by their judgements; these are chosen already, so each is judged for some document
        some = {next(iter(rest)): 1}
        encoded = encode(
            self.encoder,
            _Rest(rest, texts, dict.fromkeys(self.queries, some)),
            batch_size=batch_size,
            progress=progress,
            keep=False,
        )
        asked = self._thin(encoded.queries)
        check(asked, self.queries, "query")
        device, noted = getattr(self.encoder, "device", None), time.monotonic()
        for portion in encoded.documents:
            portion = self._thin(portion)
            check(portion, self.documents[done : done + len(portion)], "document")
            for rows, columns, pooled, late in tiles(asked, portion, device=device):
                place = slice(done + columns.start, done + columns.stop)
                self.candidates.add(rows, place, self.view.score(pooled, late))
            done += len(portion)
            if state is not None and (done == len(self.documents) or time.monotonic() - noted >= every):
                self._note(state, key, done)
                noted = time.monotonic()

    def _thin(self, embeddings: Embeddings) -> Embeddings:
        """Without tokens, where only pooled scores count: one number stands for them."""
        if self.options.mode != "pooled":
            return embeddings
        ones = torch.ones(len(embeddings), dtype=torch.int64, device=embeddings.pooled.device)
        return Embeddings(embeddings.pooled, Tokens(embeddings.pooled[:, :1], ones))

    def _note(self, state: Path, key: str, done: int) -> None:
        from safetensors.torch import save_file

        hashes = [self.hashes.get(document, 0) for document in self.documents[:done]]
        tensors = {**self.candidates.state(), "hashes": torch.tensor(hashes, dtype=torch.int64)}
        state.parent.mkdir(parents=True, exist_ok=True)
        with replacing(state) as part:
            save_file(tensors, part, metadata={"key": key, "done": str(done)})

    def _restore(self, state: Path | None, key: str) -> int:
        """How many documents have gone by already."""
        if state is None or not state.is_file():
            return 0
        from safetensors import safe_open

        with safe_open(state, framework="pt") as stored:
            told = stored.metadata() or {}
            if told.get("key") != key:
                logger.info("%s is of other data, another model or other options: mining starts anew", state)
                return 0
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        done = int(told["done"])
        hashes = tensors.pop("hashes").tolist()
        self.hashes |= {d: shown for d, shown in zip(self.documents[:done], hashes, strict=True) if shown}
        self.candidates.restore(tensors)
        logger.info("%s: goes on after %d of %d documents", state, done, len(self.documents))
        return done

    def content(self, document: str) -> int:
        return self.hashes.get(document) or text_hash(self.collection.corpus[document])


class _Candidates:
    """The first ``top`` documents of every query but those that a named pair keeps out, and the named pairs' scores.

    pairs: [E, 2] int64, (query row, document row), in any order
    noise: scores nearer than this are equal and ordered by a hash of the ids (see ranking.py)
    """

    def __init__(self, pairs: Tensor, top: int, noise: float) -> None:
        self.top, self.noise = top, noise
        self.order = pairs[:, 1].argsort(stable=True)
        self.rows, self.columns = pairs[self.order].unbind(1)
        self.columns = self.columns.contiguous()
        self.found = torch.full((len(pairs),), float("nan"))
        self.best: dict[tuple[int, int], Best] = {}

    def add(self, rows: slice, columns: slice, scores: Tensor) -> None:
        """Takes the scores [rows, columns] of one tile, and overwrites those of named pairs in it."""
        begin, end = torch.searchsorted(self.columns, torch.tensor([columns.start, columns.stop])).tolist()
        row = self.rows[begin:end]
        here = ((row >= rows.start) & (row < rows.stop)).nonzero().squeeze(1) + begin
        at = (self.rows[here] - rows.start).to(scores.device), (self.columns[here] - columns.start).to(scores.device)
        self.found[here] = scores[at].to(self.found)
        scores[at] = float("-inf")
        best = self.best.setdefault((rows.start, rows.stop), Best(self.top, self.noise))
        if best.scores is not None and best.columns is not None and best.scores.device != scores.device:
            best.scores, best.columns = best.scores.to(scores.device), best.columns.to(scores.device)
        best.add(scores, columns.start)

    def pair_scores(self) -> Tensor:
        """[E] float32, in the order in which the pairs were given; NaN where the document did not go by."""
        scores = torch.empty_like(self.found)
        scores[self.order] = self.found
        return scores

    def ranked(self, query_ids: Sequence[str], document_ids: Sequence[str]) -> Iterator[tuple[str, Ranking]]:
        """(query id, its ranking, best first and without named pairs) of every query; one block at a time in lists."""
        for (begin, end), best in sorted(self.best.items()):
            for query, ranking in best.rankings(query_ids[begin:end], document_ids).items():
                yield query, [pair for pair in ranking if pair[1] != float("-inf")]

    def state(self) -> dict[str, Tensor]:
        """Tensors on the CPU by name, for ``restore``."""
        kept = {"found": self.found}
        for (begin, end), best in self.best.items():
            if best.scores is not None and best.columns is not None:
                kept[f"{begin}:{end}:scores"] = best.scores.cpu().contiguous()
                kept[f"{begin}:{end}:columns"] = best.columns.cpu().contiguous()
        return kept

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes what ``state`` gave for the same pairs.  Raises EvaluationError for that of others."""
        if state["found"].shape != self.found.shape:
            raise EvaluationError(f"the state has {len(state['found'])} pairs, and there are {len(self.found)}")
        self.found = state["found"].clone()
        for name, tensor in state.items():
            if not name.endswith(":scores"):
                continue
            begin, end = (int(part) for part in name.split(":")[:2])
            best = Best(self.top, self.noise)
            best.scores, best.columns = tensor.clone(), state[f"{begin}:{end}:columns"].clone()
            self.best[begin, end] = best


def _choose(mining: Mining, stream: _Stream, miner: str) -> None:
    """Fills ``mining`` with what is chosen of the stream's candidates."""
    options, last = mining.options, mining.options.range[1]
    kept_out: list[list[tuple[str, float]]] = [[] for _ in stream.queries]
    for row, why, score in zip(stream.rows, stream.why, stream.candidates.pair_scores().tolist(), strict=True):
        kept_out[row].append((why, score))
    ranking = stream.candidates.ranked(stream.queries, stream.documents)
    for row, (query, ranked) in enumerate(ranking):  # blocks of queries, in their order
        positive = max(score for why, score in kept_out[row] if why == "answer")
        shown = {stream.content(d) for d in stream.never.answers(query) if d in stream.collection.corpus}
        chosen = select(query, ranked, positive, options, stream.content, shown)
        documents, scores = [d for d, _ in chosen.documents], [s for _, s in chosen.documents]
        # Of what is never a negative, only what would have been within the range says something.
        lowest = ranked[last - 1][1] if len(ranked) >= last else float("-inf")
        mining.counts.update(why for why, score in kept_out[row] if score >= lowest)
        mining.counts.update(chosen.dropped)
        mining.counts.update(mined=len(documents), short=len(documents) < options.k, none=not documents)
        mining.ratios.add(positive, [s for _, s in ranked[:last]], scores)
        mining.found[query] = HardNegatives(tuple(documents), tuple(scores), positive, miner)
