"""An encoder as MTEB models: pooled as a dense one, late as a multi-vector one, hybrid with its own similarity.

    models = mteb_models(encoder)
    mteb.evaluate(models["hybrid"], mteb.get_benchmark("ViDoRe(v3)").tasks)

Retrieval and reranking go through ranking.py and given.py in all three modes: no matrix of padded tokens, memory of a
portion of documents, and the same figures as ``smart-train evaluate``.  The pooled model also has ``encode`` and
``similarity`` for MTEB's other tasks (classification, clustering, STS), which compare single vectors.

Knows: MTEB's protocols, encoders.  Does not know: which tasks are run, where results go (benchmark_runs.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from smart_train.embeddings import Embeddings
from smart_train.evaluation.benchmark_corpora import Corpora
from smart_train.evaluation.benchmark_inputs import Inputs
from smart_train.evaluation.benchmark_meta import meta_of
from smart_train.evaluation.given import rank_given
from smart_train.evaluation.metrics import EvaluationError, Ranking
from smart_train.evaluation.ranking import MODES, rank_views, view

if TYPE_CHECKING:
    from smart_train.model.encoder import SmartEncoder

Scores = dict[str, dict[str, float]]
"""Query id -> document id -> score: what MTEB takes from a search."""


def mteb_models(
    encoder: SmartEncoder,
    *,
    name: str | None = None,
    revision: str | None = None,
    modes: Sequence[str] = MODES,
    task_prompts: str | None = None,
) -> dict[str, MtebModel]:
    """{mode: a model for ``mteb.evaluate``}; all of one encoder, none of which loads or copies anything.

    name: organisation/model, as results are filed; None = the base's
    revision: results are filed under it, too; None = a hash of everything that changes a score, so that a stored
        result is never taken for that of other weights
    task_prompts: None = the encoder's own prompts, as it was trained; a template such as
        "Instruct: {prompt}\\nQuery: " = MTEB's prompt of each task, where the task has one, in its place
    Raises EvaluationError for another mode, or a template without {prompt}.
    """
    if task_prompts is not None and "{prompt}" not in task_prompts:
        raise EvaluationError(f"task_prompts is a template with {{prompt}} in it, not {task_prompts!r}")
    searches = Searches(encoder, Inputs(encoder, task_prompts))
    for mode in modes:
        view(mode, encoder.late.hybrid)  # refuses other words
    return {
        mode: (PooledModel if mode == "pooled" else MtebModel)(
            searches, mode, meta_of(encoder, mode, name, revision, task_prompts)
        )
        for mode in modes
    }


class Searches:
    """What the models of one encoder share: how inputs become embeddings, and rankings that others will ask for."""

    def __init__(self, encoder: SmartEncoder, inputs: Inputs) -> None:
        self.encoder, self.inputs = encoder, inputs
        self.together: tuple[str, ...] = ()
        self.kept: dict[tuple[Any, ...], dict[str, Ranking]] = {}
        self.corpora: Corpora | None = None

    @contextmanager
    def sharing(self, modes: Sequence[str], folder: Path | None = None) -> Iterator[None]:
        """In this block one encoding serves all these modes: a search ranks by each, and keeps what was not asked for
        until it is.  For one task after another, with weights that stay as they are.  Costs the rankings of the other
        modes: about 0.1 KB for every query, document ranked and mode.

        folder: where corpora are kept that several searches go through, until the block ends; None = they are not
        """
        self.together, self.corpora = tuple(modes), Corpora(folder) if folder is not None else None
        if self.corpora is not None:
            self.corpora.clear()  # what a killed process left may be another encoder's
        try:
            yield
        finally:
            if self.corpora is not None:
                self.corpora.clear()
            self.together, self.kept, self.corpora = (), {}, None

    def ranked(self, mode: str, place: tuple[Any, ...], make: Any) -> dict[str, Ranking]:
        """The rankings of one mode; ``make(modes)`` gives {mode: rankings} where they are not kept."""
        if (*place, mode) not in self.kept:
            modes = self.together if mode in self.together else (mode,)
            found = make(modes)
            self.kept |= {(*place, other): rankings for other, rankings in found.items()}  # of every language
        return self.kept.pop((*place, mode))


class MtebModel:
    """One mode as MTEB's SearchProtocol."""

    def __init__(self, searches: Searches, mode: str, meta: Any) -> None:
        self.searches, self.mode, self.meta = searches, mode, meta
        self.corpus: Any = None

    @property
    def mteb_model_meta(self) -> Any:
        return self.meta

    def index(self, corpus: Any, **options: Any) -> None:
        """Keeps the corpus; it is encoded while it is searched, a portion at a time."""
        self.corpus = corpus

    def search(
        self,
        queries: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        top_k: int,
        encode_kwargs: Mapping[str, Any],
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        num_proc: int | None = None,
        **options: Any,
    ) -> Scores:
        """See MTEB's SearchProtocol.  Equal scores come back a hair apart, in the order of our hash: MTEB would order
        them by document id.  Raises EvaluationError where an embedding is not finite, by id."""
        if self.corpus is None:
            raise EvaluationError(f"{task_metadata.name}: MTEB searches before it has indexed a corpus")
        corpus, self.corpus = self.corpus, None
        place = (task_metadata.name, hf_split, hf_subset, len(queries), len(corpus), top_k, top_ranked is None)
        reading = _Reading(task_metadata, dict(encode_kwargs), num_proc)
        rankings = self.searches.ranked(
            self.mode,
            place,
            lambda modes: _rankings(self.searches, modes, queries, corpus, reading, top_k, top_ranked),
        )
        return {query: falling(ranking[:top_k]) for query, ranking in rankings.items()}


class PooledModel(MtebModel):
    """The pooled vectors, also as MTEB's EncoderProtocol: for tasks that compare single vectors."""

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **options: Any,
    ) -> Tensor:
        """[rows, D] float32, L2-normalised.  Where MTEB names no role (both sides of STS, texts to classify) the text
        is read as a document is: most encoders put a retrieval instruction before queries alone."""
        if options.get("precision") not in (None, "float32"):
            raise EvaluationError(f"precision={options['precision']!r}: these models give float32 only; leave it out")
        parts = self.searches.inputs.embedded(inputs, task_metadata, prompt_type, options, f"{task_metadata.name}")
        found = [part.pooled for part in parts]
        return torch.cat(found) if found else torch.zeros(0, self.searches.encoder.pooled_width)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines [rows of 1, rows of 2] of what ``encode`` gave."""
        return torch.as_tensor(embeddings1) @ torch.as_tensor(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines [rows] of row with row."""
        return (torch.as_tensor(embeddings1) * torch.as_tensor(embeddings2)).sum(-1)


class _Reading:
    """How MTEB wants one task read."""

    def __init__(self, task: Any, options: dict[str, Any], workers: int | None) -> None:
        self.task, self.options, self.workers = task, options, workers

    def embedded(self, inputs: Inputs, rows: Any, role: str, corpora: Corpora | None = None) -> Iterator[Embeddings]:
        from mteb.types import PromptType

        kind = PromptType.query if role == "query" else PromptType.document
        loader = inputs.loader(rows, self.task, kind, self.options, self.workers)

        def make() -> Iterator[Embeddings]:
            return inputs.embedded(loader, self.task, kind, self.options, f"{self.task.name}: {role} rows")

        return make() if corpora is None else corpora.through(loader.dataset, make)


def _rankings(
    searches: Searches,
    modes: Sequence[str],
    queries: Any,
    corpus: Any,
    reading: _Reading,
    top_k: int,
    top_ranked: Mapping[str, Sequence[str]] | None,
) -> dict[str, dict[str, Ranking]]:
    """{mode: {query id: ranking}} from one encoding of both sides."""
    encoder = searches.encoder
    views = {mode: view(mode, encoder.late.hybrid) for mode in modes}
    query_ids = [str(one) for one in queries["id"]]
    document_ids = [str(one) for one in corpus["id"]]
    asked = Embeddings.cat(reading.embedded(searches.inputs, queries, "query"))
    if top_ranked is None:
        documents = reading.embedded(searches.inputs, corpus, "document", searches.corpora)
        return rank_views(asked, documents, query_ids, document_ids, views, top=top_k, device=encoder.device)
    # Only what some query is given is encoded; queries that are given nothing have no ranking, as in MTEB.
    rows = [row for row, query in enumerate(query_ids) if top_ranked.get(query)]
    if not rows:
        return {mode: {query: [] for query in query_ids} for mode in modes}
    given = {query_ids[row]: list(map(str, top_ranked[query_ids[row]])) for row in rows}
    wanted = {document for documents in given.values() for document in documents}
    kept = [row for row, document in enumerate(document_ids) if document in wanted]
    documents = reading.embedded(searches.inputs, corpus.select(kept), "document")
    found = rank_given(
        asked.select(rows),
        documents,
        list(given),
        [document_ids[row] for row in kept],
        given,
        views,
        device=encoder.device,
    )
    return {mode: {query: rankings.get(query, []) for query in query_ids} for mode, rankings in found.items()}


def falling(ranking: Ranking) -> dict[str, float]:
    """{document: score} whose scores fall strictly in the ranking's order.

    trec_eval keeps scores as float32 and orders equal ones by document id.  Here ties were ordered already, by hash; so
    a score that is not below the one before becomes the next float32 below that.
    """
    found: dict[str, float] = {}
    last = np.float32(np.inf)
    for document, score in ranking:
        value = np.float32(score)
        last = value if value < last else np.nextafter(last, np.float32(-np.inf))
        found[document] = float(last)
    return found
