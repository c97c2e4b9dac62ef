"""Models for MTEB: an encoder as a dense, a late-interaction or a hybrid retriever."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.core.errors import EvaluationError
from smart_train.evaluation.encode import IMAGE_BATCHES, TEXT_BATCHES
from smart_train.evaluation.metrics import Ranking
from smart_train.evaluation.ranking import rank_candidates, rank_views
from smart_train.evaluation.scoring import MODES, view

if TYPE_CHECKING:
    from smart_train.models.encoder import SmartEncoder

KINDS = {"pooled": ("dense", "COSINE"), "late": ("late-interaction", "MAX_SIM"), "hybrid": ("hybrid", "CUSTOM")}


def meta_of(
    encoder: SmartEncoder, mode: str, name: str | None, revision: str | None, task_prompts: str | None = None
) -> Any:
    """MTEB's ModelMeta of one mode.  Mode and template are an experiment's settings, so that results of one model in
    different modes lie beside each other and are never taken for one another's."""
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    kind, similarity = KINDS[mode]
    settings: dict[str, Any] = {"mode": mode}
    if task_prompts is not None:
        settings["task_prompts"] = hashlib.sha256(task_prompts.encode()).hexdigest()[:8]
    overwrites = {
        "name": name or name_of(encoder),
        "revision": revision or digest(encoder),
        "model_type": [kind],
        "similarity_fn_name": ScoringFunction[similarity],
        "framework": ["Sentence Transformers", "PyTorch"],
        "modalities": [one for one in ("text", "image") if one in encoder.st.modalities],
        "n_parameters": sum(weight.numel() for weight in encoder.parameters()),
        "max_tokens": encoder.st.max_seq_length,
        "embed_dim": encoder.pooled_width if mode == "pooled" else encoder.token_width,
        "use_instructions": bool(encoder.prompt("query") or task_prompts),
        "adapted_from": encoder.settings.base if encoder.adapter is not None else None,
        "experiment_kwargs": settings,
    }
    return ModelMeta.create_empty(overwrites=overwrites)


def name_of(encoder: SmartEncoder) -> str:
    """organisation/model of the base; local/NAME for a folder."""
    base = encoder.settings.base
    if encoder.commit is not None and base.count("/") == 1:
        return base
    return f"local/{Path(encoder.place).name}"


def digest(encoder: SmartEncoder) -> str:
    """16 hexadecimal digits over all that changes a score: the base's identity, settings, prompts, hybrid weights, and
    the weights that are not the base's (LoRA and head; all of them where all were trained)."""
    from smart_train.models.settings import modules_of, settings_of

    told = {key: value for key, value in settings_of(encoder).items() if key not in ("versions", "revision")}
    told["modules"] = modules_of(encoder)
    found = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    whole = encoder.adapter is not None and encoder.adapter.kind == "full"
    for key, weight in sorted(encoder.state_dict().items()):
        if whole or "lora_" in key or key.startswith("head."):
            found.update(key.encode())
            found.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


# Other prompts for a while: a benchmark's instructions in front of an encoder's inputs, then its own again.


@contextmanager
def prompted(encoder: SmartEncoder, query: str | None = None, document: str | None = None) -> Iterator[None]:
    """In this block the encoder puts these prompts before its inputs; None = its own stay, "" = none at all.

    A chat model gets a prompt as the system message; any other as text in front, so a space is put between.
    """
    before = encoder.settings
    encoder.settings = replace(
        before,
        query_prompt=before.query_prompt if query is None else _apart(encoder, query),
        document_prompt=before.document_prompt if document is None else _apart(encoder, document),
    )
    try:
        yield
    finally:
        encoder.settings = before


def _apart(encoder: SmartEncoder, prompt: str) -> str:
    bare = not prompt or prompt[-1].isspace() or "message" in encoder.st.modalities
    return prompt if bare else f"{prompt} "


# A corpus that several searches of one task go through: encoded for the first, read from a disk for the others.

logger = logging.getLogger(__name__)

WHOLE = "whole"  # a file that is there when all portions are


class Corpora:
    """Embeddings by what the corpus holds, for one encoder with settings that stay as they are.

    folder: takes 2 bytes a number: 3 MB for a page of 750 tokens of width 2048; ``clear`` removes it
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def through(self, rows: Any, make: Callable[[], Iterator[Embeddings]]) -> Iterator[Embeddings]:
        """The portions of a corpus: ``make()``'s, which are kept, or those that were kept of equal rows.

        rows: a datasets.Dataset.  A disk that is full is told, and the corpus is encoded anew the next time.
        """
        place = self.folder / key_of(rows)
        if (place / WHOLE).is_file():
            for file in sorted(place.glob("*.safetensors")):
                kept = load_file(file)
                yield Embeddings(kept["pooled"], Tokens(kept["tokens"], kept["lengths"]))
            return
        shutil.rmtree(place, ignore_errors=True)
        keeping = True
        for number, portion in enumerate(make()):
            keeping = keeping and _kept(place / f"{number:06d}.safetensors", portion)
            yield portion
        if keeping and place.is_dir():
            (place / WHOLE).touch()

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _kept(file: Path, portion: Embeddings) -> bool:
    tokens = portion.tokens
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"pooled": portion.pooled, "tokens": tokens.values, "lengths": tokens.lengths}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    except OSError as error:
        logger.warning("a corpus cannot be kept for the task's other languages, which encode it anew (%s)", error)
        shutil.rmtree(file.parent, ignore_errors=True)
        return False
    return True


def key_of(rows: Any) -> str:
    """A hash of ids, texts and undecoded images, row by row."""
    import datasets

    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    shown = [name for name in ("id", "text", "image") if name in rows.column_names]
    digest = hashlib.blake2b(repr(shown).encode(), digest_size=16)
    for row in rows.select_columns(shown):
        for name in shown:
            value = row[name]
            if isinstance(value, dict):  # of an image: its bytes, or the file that holds them
                value = value.get("bytes") or Path(value["path"]).read_bytes()
            part = value if isinstance(value, bytes) else str(value).encode()
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


# MTEB's batches as an encoder's contents, with the right prompt, embedded portion by portion.

READ = ("text", "image")  # what an encoder takes of a row; MTEB's other columns repeat the text or name it


class Inputs:
    """Reads what MTEB hands over for one encoder.

    task_prompts: None = the encoder's own prompts; else a template for MTEB's prompt of each task
    """

    def __init__(self, encoder: SmartEncoder, task_prompts: str | None) -> None:
        self.encoder, self.task_prompts = encoder, task_prompts
        self.told: set[str] = set()

    def loader(self, rows: Any, task: Any, kind: Any, options: Mapping[str, Any], workers: int | None) -> Any:
        """MTEB's own loader of a corpus or of queries: titles joined, instructions and conversations put in."""
        # Not in MTEB's public names, but what each of its own search wrappers uses: a copy here would drift from it.
        from mteb._create_dataloaders import create_dataloader

        size = options.get("batch_size", 32)
        return create_dataloader(rows, task_metadata=task, prompt_type=kind, batch_size=size, num_proc=workers)

    def embedded(
        self, loader: Any, task: Any, kind: Any, options: Mapping[str, Any], what: str
    ) -> Iterator[Embeddings]:
        """The rows of a loader, in portions; documents' tokens in float16, as ``evaluate`` keeps them.

        kind: MTEB's PromptType, None where a task has no sides
        what: said beside the progress bar, which is drawn on terminals
        """
        query = kind is not None and str(getattr(kind, "value", kind)) == "query"
        method = self.encoder.encode_queries if query else self.encoder.encode_documents
        size = options.get("batch_size", 32)
        kept: dict[str, Any] = {} if query else {"dtype": torch.float16}
        shown = options.get("show_progress_bar", True)
        with tqdm(total=len(loader.dataset), desc=what, leave=False, disable=None if shown else True) as bar:
            for contents in self._portions(loader, size, task.name):
                with self._prompted(task, kind):
                    found = method(contents, batch_size=size, **kept)
                bar.update(len(contents))
                yield Embeddings(found.pooled.float(), found.tokens)

    def _portions(self, loader: Any, size: int, name: str) -> Iterator[list[Any]]:
        waiting: list[Any] = []
        for batch in loader:
            waiting += self._contents(batch, name)
            batches = TEXT_BATCHES if isinstance(waiting[-1], str) else IMAGE_BATCHES
            if len(waiting) >= batches * size:
                yield waiting
                waiting = []
        if waiting:
            yield waiting

    def _contents(self, batch: Mapping[str, Any], name: str) -> list[Any]:
        """Rows of a batch: text, image, or both."""
        seen = [key for key in READ if key in batch]
        if "image" in seen and "image" not in self.encoder.st.modalities:
            if "text" not in seen:
                raise EvaluationError(f"{name} has images, and {self.encoder.settings.base} has no image side")
            seen.remove("image")
            self._tell(
                f"{name}: {self.encoder.settings.base} has no image side; of images with a text, the text is read"
            )
        if not seen:
            raise EvaluationError(f"{name} has {', '.join(batch)}; an encoder reads text and images")
        if len(seen) == 1:
            return list(batch[seen[0]])
        return [{"text": text, "image": image} for text, image in zip(*(batch[key] for key in READ), strict=True)]

    def _prompted(self, task: Any, kind: Any) -> Any:
        """The task's prompt in place of the encoder's own, where that is wanted and there is one."""
        if self.task_prompts is None:
            return nullcontext()
        prompt, role = task.prompt, str(getattr(kind, "value", kind)) if kind is not None else None
        if isinstance(prompt, Mapping):
            prompt = prompt.get(role or "query")
        elif role == "document":  # a prompt without a side is the question's: what to retrieve
            prompt = None
        if not prompt:
            self._tell(f"{task.name} has no prompt for its {role or 'text'} side: the encoder's own stays")
            return nullcontext()
        whole = self.task_prompts.format(prompt=prompt)
        return prompted(self.encoder, **{"query" if role == "query" else "document": whole})

    def _tell(self, what: str) -> None:
        if what not in self.told:
            self.told.add(what)
            logger.warning("%s", what)


# An encoder as MTEB models: pooled as a dense one, late as a multi-vector one, hybrid with its own similarity.

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
    found = rank_candidates(
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
