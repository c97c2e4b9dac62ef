"""Built-in teachers: models whose scores of (query, document) pairs a run distils (``objective.teacher``).

    encoder        pooled, late or hybrid score of a base or of a trained adapter
    cross_encoder  a CrossEncoder of sentence-transformers
    bm25           Lucene's BM25 over the corpus (evaluation/bm25.py)
    ensemble       the weighted sum of several, each brought to one unit query by query

A teacher is a ``PairScorer``: a list of (query text, document content) pairs -> one number a pair. One that needs the
whole corpus first has a method ``prepare(collection)``, which is called once.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from smart_train.config.schema import Component
from smart_train.core.embeddings import Embeddings
from smart_train.core.errors import ExtensionError
from smart_train.data.collection import Collection
from smart_train.evaluation.bm25 import BM25Index
from smart_train.losses.distillation import NORMALISED, normalised
from smart_train.mining.extensions import TEACHERS, check_callable, load_callable
from smart_train.mining.pair_scores import PairScorer, prepare
from smart_train.mining.selection import MODES
from smart_train.models.encoder import SmartEncoder
from smart_train.models.safe_loading import SETTINGS

Pairs = list[tuple[str, Any]]
KEPT = 4096  # documents whose vectors are kept between calls: neighbouring queries share hard negatives


class EncoderTeacher:
    """Score pairs with an encoder's pooled, late or hybrid score.

    model: a base (Hub id, folder, package:NAME/FOLDER), the folder of a trained adapter, or a SmartEncoder
    adapter: folder of an adapter trained on the base ``model``, where the base is not where the adapter says
    mode: the score; hybrid has the weights stored with the adapter. batch_size: rows encoded at once
    """

    def __init__(
        self,
        model: str | SmartEncoder,
        adapter: str | None = None,
        mode: Literal["pooled", "late", "hybrid"] = "hybrid",
        batch_size: int = 32,
        device: str | None = None,
    ) -> None:
        if mode not in MODES:
            raise ExtensionError(f"the teacher's mode is {mode!r}", f"write {', '.join(MODES[:-1])} or {MODES[-1]}")
        self.mode, self.batch_size = mode, batch_size
        self.keywords = {"model": str(model), "adapter": adapter, "mode": mode}  # names its kept scores
        if isinstance(model, SmartEncoder):
            self.encoder = model
        elif adapter is not None:
            self.encoder = SmartEncoder.from_pretrained(adapter, base=model, device=device)
        elif (Path(model).expanduser() / SETTINGS).is_file():
            self.encoder = SmartEncoder.from_pretrained(model, device=device)
        else:
            self.encoder = SmartEncoder(model, device=device)
        self._vectors: OrderedDict[str, Embeddings] = OrderedDict()

    def __call__(self, pairs: Pairs) -> list[float]:
        """Return a score a pair; texts that repeat within a call are encoded once."""
        queries = list(dict.fromkeys(query for query, _ in pairs))
        vectors = self.encoder.encode_queries(queries, batch_size=self.batch_size)
        places = {query: place for place, query in enumerate(queries)}
        documents = self._documents([content for _, content in pairs])
        scores: list[float] = []
        begin = 0
        for query, group in groupby(pairs, key=lambda pair: pair[0]):
            count = len(list(group))
            rows = Embeddings.cat(documents[begin : begin + count])
            scores += self.encoder.score(vectors.select([places[query]]), rows, self.mode)[0].tolist()
            begin += count
        return scores

    def _documents(self, contents: Sequence[Any]) -> list[Embeddings]:
        """The vectors of each content, as a row."""
        keys = [content if isinstance(content, str) else f"{id(content)}" for content in contents]
        missing = {key: content for key, content in zip(keys, contents, strict=True) if key not in self._vectors}
        encoded = self.encoder.encode_documents(list(missing.values()), batch_size=self.batch_size) if missing else None
        found = {key: self._vectors[key] for key in keys if key in self._vectors}
        for row, (key, content) in enumerate(missing.items()):
            assert encoded is not None
            found[key] = encoded.select([row])
            if isinstance(content, str):  # an image's identity ends with the call
                self._vectors[key] = found[key]
        for key in keys:
            if key in self._vectors:
                self._vectors.move_to_end(key)
        while len(self._vectors) > KEPT:
            self._vectors.popitem(last=False)
        return [found[key] for key in keys]


class CrossEncoderTeacher:
    """Score pairs of texts with a CrossEncoder of sentence-transformers; options: those of ``CrossEncoder``."""

    def __init__(self, model: str, batch_size: int = 32, **options: Any) -> None:
        from sentence_transformers import CrossEncoder

        self.keywords = {"model": model, **options}
        self.batch_size = batch_size
        self.model = CrossEncoder(model, **options)

    def __call__(self, pairs: Pairs) -> NDArray[np.floating]:
        """Return the model's scores; raises ExtensionError for a document that is no text."""
        if any(not isinstance(content, str) for _, content in pairs):
            raise ExtensionError("a cross-encoder reads texts, and a document has an image", "choose another teacher")
        scores: NDArray[np.floating] = self.model.predict(pairs, batch_size=self.batch_size, show_progress_bar=False)
        return scores


class BM25Teacher:
    """Score pairs of texts with Lucene's BM25; document frequencies are those of the whole corpus."""

    keywords: dict[str, Any] = {}

    def prepare(self, collection: Collection) -> None:
        """Index the corpus' texts."""
        texts = [document.text or "" for document in collection.corpus.values()]
        if not any(text.strip() for text in texts):
            raise ExtensionError(f"BM25 scores texts, and no document of {collection.name} has one", "choose another")
        self._places = {text: place for place, text in enumerate(texts)}
        self._index = BM25Index(texts)

    def __call__(self, pairs: Pairs) -> list[float]:
        """Return a score a pair, 0 where no word is shared. Time: a pass over the corpus' postings a query."""
        scores: list[float] = []
        for query, group in groupby(pairs, key=lambda pair: pair[0]):
            all_scores = self._index.scores(self._index.split([query])[0])
            for _, content in group:
                text = content if isinstance(content, str) else content.get("text") if isinstance(content, dict) else ""
                scores.append(float(all_scores[self._places[text or ""]]) if text else 0.0)
        return scores


class EnsembleTeacher:
    """Add the scores of several teachers, each brought to one unit within a query's documents.

    members: a teacher each, as a name, ``{type: NAME, option: value}``, or a callable
    weights: one a member; None = all 1
    normalise: ``minmax`` (to 0 ... 1), ``zscore`` (to mean 0, standard deviation 1), or ``none``. A query's documents
        are the consecutive pairs with its text
    """

    def __init__(
        self,
        members: Sequence[str | dict[str, Any] | PairScorer],
        weights: Sequence[float] | None = None,
        normalise: Literal["minmax", "zscore", "none"] = "minmax",
    ) -> None:
        self.weights = [1.0] * len(members) if weights is None else [float(weight) for weight in weights]
        if not members or len(self.weights) != len(members):
            what = f"an ensemble of {len(members)} teachers has {len(self.weights)} weights"
            raise ExtensionError(what, "give at least one teacher, and one weight for each")
        if normalise not in NORMALISED:
            raise ExtensionError(f"normalise is {normalise!r}", "write minmax, zscore or none")
        self.normalise = normalise
        self.members = [made_teacher(member) for member in members]
        kept = [getattr(one, "keywords", repr(one)) for one in self.members]
        self.keywords = {"members": kept, "weights": self.weights, "normalise": normalise}

    def prepare(self, collection: Collection) -> None:
        """Prepare every member that needs the corpus."""
        for member in self.members:
            prepare(member, collection)

    def __call__(self, pairs: Pairs) -> NDArray[np.floating]:
        """Return the weighted sum of the members' scores."""
        ends = list(accumulate(len(list(group)) for _, group in groupby(pairs, key=lambda pair: pair[0])))
        total = np.zeros(len(pairs))
        for member, weight in zip(self.members, self.weights, strict=True):
            scores = torch.tensor([float(one) for one in member(pairs)], dtype=torch.float64)
            rows = (row.unsqueeze(0) for row in scores.tensor_split(ends[:-1]))  # one a query
            alike = [normalised(row, torch.ones_like(row, dtype=torch.bool), self.normalise)[0] for row in rows]
            total += weight * torch.cat(alike).numpy()
        return total


def made_teacher(teacher: str | dict[str, Any] | PairScorer) -> PairScorer:
    """Return the teacher that a name, ``{type: NAME, option: value}`` or a spelling of ``parse_teacher`` stands for."""
    if isinstance(teacher, str):
        return load_callable(TEACHERS, parse_teacher(teacher))
    if isinstance(teacher, dict):
        chosen = Component.parse(teacher)
        if chosen is None:
            raise ExtensionError(f"{teacher!r} is no teacher", "write {type: NAME, option: value}")
        return load_callable(TEACHERS, chosen)
    return teacher


def check_teacher(teachers: Sequence[str], weights: Sequence[float] | None = None) -> list[float]:
    """Check the words of the command line before anything slow runs; return the weights.

    Raises ExtensionError for a name that is not there, and where weights and teachers do not fit.
    """
    for text in teachers:
        check_callable(TEACHERS, parse_teacher(text))
    weights = [1.0] * len(teachers) if weights is None else list(weights)
    if len(weights) != len(teachers):
        raise ExtensionError(
            f"there are {len(teachers)} teachers and {len(weights)} weights", "give each --teacher one of --weights"
        )
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise ExtensionError(f"the weights are {weights}", "give finite numbers of 0 or more, one of them above 0")
    return weights


def parse_teacher(text: str) -> Component:
    """Return the teacher that a word of the command line names.

    >>> parse_teacher("late:runs/mine/adapter")
    Component(type='encoder', options={'model': 'runs/mine/adapter', 'mode': 'late'})
    >>> parse_teacher("cross_encoder:cross-encoder/ms-marco-MiniLM-L6-v2").options["model"]
    'cross-encoder/ms-marco-MiniLM-L6-v2'
    >>> parse_teacher("my_models:judge"), parse_teacher("bm25")
    (Component(type='my_models:judge', options={}), Component(type='bm25', options={}))
    """
    kind, _, model = text.partition(":")
    if kind in (*MODES, "cross_encoder") and not model:
        raise ExtensionError(f"the teacher {text!r} names no model", f"write {kind}:MODEL")
    if kind in MODES:
        return Component("encoder", {"model": model, "mode": kind})
    if kind == "cross_encoder":
        return Component("cross_encoder", {"model": model})
    return Component(text)
