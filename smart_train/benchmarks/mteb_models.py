"""Evaluate an encoder with MTEB: pooled as a dense model, late as a multi-vector model, hybrid with its own similarity.

import mteb
from smart_train.benchmarks.mteb_models import mteb_models

models = mteb_models(encoder)  # {"pooled": ..., "late": ..., "hybrid": ...}
mteb.evaluate(models["hybrid"], mteb.get_benchmark("NanoBEIR").tasks)
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from smart_train.benchmarks.benchmark_encoder import encoder_hash, prompted
from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.core.errors import EvaluationError
from smart_train.evaluation.encode import IMAGE_BATCHES, TEXT_BATCHES
from smart_train.evaluation.metrics import Ranking
from smart_train.evaluation.ranking import rank_candidates, rank_views
from smart_train.evaluation.scoring import MODES, view

if TYPE_CHECKING:
    from smart_train.models.encoder import SmartEncoder

logger = logging.getLogger(__name__)

KINDS = {"pooled": ("dense", "COSINE"), "late": ("late-interaction", "MAX_SIM"), "hybrid": ("hybrid", "CUSTOM")}
INPUTS = ("text", "image")  # what an encoder takes of a row; MTEB's other columns repeat the text or name it


def mteb_models(
    encoder: SmartEncoder,
    *,
    name: str | None = None,
    revision: str | None = None,
    modes: Sequence[str] = MODES,
    task_prompts: str | None = None,
) -> dict[str, MtebModel]:
    """Return {mode: a model for ``mteb.evaluate``}. All share the encoder; nothing is loaded or copied.

    name: organisation/model under which results are filed; None = that of the base
    revision: results are filed under it, too; None = a hash of everything that changes a score, so that a stored
        result is never taken for that of other weights
    modes: some of pooled, late, hybrid
    task_prompts: None = the encoder's own prompts, with which it was trained; a template such as
        "Instruct: {prompt}\\nQuery: " = MTEB's prompt of each task that has one, in place of the encoder's own
    Raises EvaluationError for another mode, or a template without {prompt}.
    """
    if task_prompts is not None and "{prompt}" not in task_prompts:
        raise EvaluationError(f"task_prompts {task_prompts!r} has no {{prompt}} in it; put it where MTEB's prompt goes")
    for mode in modes:
        view(mode, encoder.late.hybrid)  # refuses any other word
    shared = SharedEncoder(encoder, task_prompts)
    return {
        mode: (PooledModel if mode == "pooled" else MtebModel)(
            shared, mode, model_meta(encoder, mode, name, revision, task_prompts)
        )
        for mode in modes
    }


def model_meta(
    encoder: SmartEncoder, mode: str, name: str | None, revision: str | None, task_prompts: str | None = None
) -> Any:
    """Return MTEB's ModelMeta of one mode.

    Mode and template are the settings of an experiment: results of one model in different modes are filed beside each
    other, and never taken for one another's.
    """
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    kind, similarity = KINDS[mode]
    settings: dict[str, Any] = {"mode": mode}
    if task_prompts is not None:
        settings["task_prompts"] = hashlib.sha256(task_prompts.encode()).hexdigest()[:8]
    overwrites = {
        "name": name or base_name(encoder),
        "revision": revision or encoder_hash(encoder),
        "model_type": [kind],
        "similarity_fn_name": ScoringFunction[similarity],
        "framework": ["Sentence Transformers", "PyTorch"],
        "modalities": [one for one in INPUTS if one in encoder.st.modalities],
        "n_parameters": sum(weight.numel() for weight in encoder.parameters()),
        "max_tokens": encoder.st.max_seq_length,
        "embed_dim": encoder.pooled_width if mode == "pooled" else encoder.token_width,
        "use_instructions": bool(encoder.prompt("query") or task_prompts),
        "adapted_from": encoder.settings.base if encoder.adapter is not None else None,
        "experiment_kwargs": settings,
    }
    return ModelMeta.create_empty(overwrites=overwrites)


def base_name(encoder: SmartEncoder) -> str:
    """Return organisation/model of the base, or local/NAME of a folder."""
    base = encoder.settings.base
    if encoder.commit is not None and base.count("/") == 1:
        return base
    return f"local/{Path(encoder.place).name}"


# ------------------------------------------------------------------------------------------------- models for MTEB


class MtebModel:
    """One mode of an encoder as MTEB's SearchProtocol."""

    def __init__(self, shared: SharedEncoder, mode: str, meta: Any) -> None:
        self.shared, self.mode, self.meta = shared, mode, meta
        self.corpus: Any = None

    @property
    def mteb_model_meta(self) -> Any:
        return self.meta

    def index(self, corpus: Any, **options: Any) -> None:
        """Keep the corpus; it is encoded while it is searched, a portion at a time."""
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
    ) -> dict[str, dict[str, float]]:
        """Return {query id: {document id: score}}; see MTEB's SearchProtocol.

        Equal scores come back slightly apart, in the order of our hash; MTEB alone would order them by document id.
        Raises EvaluationError, with the id, where an embedding is not finite.
        """
        if self.corpus is None:
            raise EvaluationError(f"{task_metadata.name}: call index(corpus) before search(queries)")
        corpus, self.corpus = self.corpus, None
        key = (task_metadata.name, hf_split, hf_subset, len(queries), len(corpus), top_k, top_ranked is None)
        read = _TaskReader(self.shared, task_metadata, dict(encode_kwargs), num_proc)
        rankings = self.shared.rankings(
            self.mode, key, lambda modes: read.rank(modes, queries, corpus, top_k, top_ranked)
        )
        return {query: separate_ties(ranking[:top_k]) for query, ranking in rankings.items()}


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
        """Return [rows, D], float32, L2-normalised.

        Where MTEB names no role (both texts of STS, texts to classify) the text is encoded as a document: most encoders
        put a retrieval instruction before queries only.
        """
        if options.get("precision") not in (None, "float32"):
            raise EvaluationError(f"precision={options['precision']!r}: these models give float32 only; leave it out")
        read = _TaskReader(self.shared, task_metadata, options, None)
        found = [part.pooled for part in read.embed(inputs, prompt_type, task_metadata.name)]
        return torch.cat(found) if found else torch.zeros(0, self.shared.encoder.pooled_width)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosines [rows of 1, rows of 2] of what ``encode`` gave."""
        return torch.as_tensor(embeddings1) @ torch.as_tensor(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosines [rows] of each row with the row beside it."""
        return (torch.as_tensor(embeddings1) * torch.as_tensor(embeddings2)).sum(-1)


class SharedEncoder:
    """State that the models of one encoder share: the encoder, its prompts, and rankings for the other modes.

    task_prompts: None = the encoder's own prompts; else a template for MTEB's prompt of each task
    """

    def __init__(self, encoder: SmartEncoder, task_prompts: str | None = None) -> None:
        self.encoder, self.task_prompts = encoder, task_prompts
        self.modes: tuple[str, ...] = ()
        self.kept: dict[tuple[Any, ...], dict[str, Ranking]] = {}
        self.corpora: CorpusCache | None = None
        self.warned: set[str] = set()

    @contextmanager
    def sharing(self, modes: Sequence[str], folder: Path | None = None) -> Iterator[None]:
        """In this block, rank by all these modes from one encoding, and keep the rankings until their mode asks.

        For one task after another, with weights that do not change. Rankings take about 0.1 KB for every query,
        document ranked and mode.
        folder: where corpora are kept that several searches need, until the block ends; None = they are not kept
        """
        self.modes, self.corpora = tuple(modes), CorpusCache(folder) if folder is not None else None
        if self.corpora is not None:
            self.corpora.clear()  # a killed process may have left another encoder's
        try:
            yield
        finally:
            if self.corpora is not None:
                self.corpora.clear()
            self.modes, self.kept, self.corpora = (), {}, None

    def rankings(
        self, mode: str, key: tuple[Any, ...], rank: Callable[[Sequence[str]], dict[str, dict[str, Ranking]]]
    ) -> dict[str, Ranking]:
        """Return the rankings of one mode: those that are kept under ``key``, else from ``rank(modes)``."""
        if (*key, mode) not in self.kept:
            found = rank(self.modes if mode in self.modes else (mode,))
            self.kept |= {(*key, other): rankings for other, rankings in found.items()}
        return self.kept.pop((*key, mode))

    def warn_once(self, message: str) -> None:
        if message not in self.warned:
            self.warned.add(message)
            logger.warning("%s", message)


class _TaskReader:
    """Encode and rank the rows of one MTEB task, with the right prompts, a portion at a time."""

    def __init__(self, shared: SharedEncoder, task: Any, options: Mapping[str, Any], workers: int | None) -> None:
        self.shared, self.encoder, self.task, self.workers = shared, shared.encoder, task, workers
        self.batch_size = options.get("batch_size", 32)
        self.progress = options.get("show_progress_bar", True)

    def rank(
        self,
        modes: Sequence[str],
        queries: Any,
        corpus: Any,
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None,
    ) -> dict[str, dict[str, Ranking]]:
        """Return {mode: {query id: ranking}} from one encoding of queries and corpus.

        top_ranked: query id -> the documents it is ranked against; None = the whole corpus
        """
        views = {mode: view(mode, self.encoder.late.hybrid) for mode in modes}
        device = self.encoder.device
        query_ids = [str(one) for one in queries["id"]]
        document_ids = [str(one) for one in corpus["id"]]
        embedded = Embeddings.cat(self._embed_rows(queries, "query"))
        if top_ranked is None:
            documents = self._embed_rows(corpus, "document", self.shared.corpora)
            return rank_views(embedded, documents, query_ids, document_ids, views, top=top_k, device=device)
        # Only candidates are encoded. A query without candidates has no ranking, as in MTEB.
        rows = [row for row, query in enumerate(query_ids) if top_ranked.get(query)]
        if not rows:
            return {mode: {query: [] for query in query_ids} for mode in modes}
        candidates = {query_ids[row]: list(map(str, top_ranked[query_ids[row]])) for row in rows}
        wanted = {document for documents in candidates.values() for document in documents}
        kept = [row for row, document in enumerate(document_ids) if document in wanted]
        found = rank_candidates(
            embedded.select(rows),
            self._embed_rows(corpus.select(kept), "document"),
            list(candidates),
            [document_ids[row] for row in kept],
            candidates,
            views,
            device=device,
        )
        return {mode: {query: rankings.get(query, []) for query in query_ids} for mode, rankings in found.items()}

    def _embed_rows(self, rows: Any, role: str, cache: CorpusCache | None = None) -> Iterator[Embeddings]:
        """Embed a corpus or queries, read by MTEB's own loader, which joins titles and puts instructions in."""
        # The loader is not in MTEB's public names, but each of its own search wrappers uses it; a copy would drift.
        from mteb._create_dataloaders import create_dataloader
        from mteb.types import PromptType

        kind = PromptType.query if role == "query" else PromptType.document
        loader = create_dataloader(
            rows, task_metadata=self.task, prompt_type=kind, batch_size=self.batch_size, num_proc=self.workers
        )

        def make() -> Iterator[Embeddings]:
            return self.embed(loader, kind, f"{self.task.name}: {role} rows")

        return make() if cache is None else cache.read_or_make(loader.dataset, make)

    def embed(self, loader: Any, kind: Any, label: str) -> Iterator[Embeddings]:
        """Yield the embeddings of a loader's rows in portions; tokens of documents are float16, as in ``evaluate``.

        kind: MTEB's PromptType; None where a task has no roles
        label: shown beside the progress bar, which is drawn on terminals
        """
        query = kind is not None and str(getattr(kind, "value", kind)) == "query"
        method = self.encoder.encode_queries if query else self.encoder.encode_documents
        options: dict[str, Any] = {} if query else {"dtype": torch.float16}
        hidden = None if self.progress else True
        with tqdm(total=len(loader.dataset), desc=label, leave=False, disable=hidden) as bar:
            for contents in self._portions(loader):
                with self._prompt(kind):
                    found = method(contents, batch_size=self.batch_size, **options)
                bar.update(len(contents))
                yield Embeddings(found.pooled.float(), found.tokens)

    def _portions(self, loader: Any) -> Iterator[list[Any]]:
        waiting: list[Any] = []
        for batch in loader:
            waiting += self.contents(batch)
            batches = TEXT_BATCHES if isinstance(waiting[-1], str) else IMAGE_BATCHES
            if len(waiting) >= batches * self.batch_size:
                yield waiting
                waiting = []
        if waiting:
            yield waiting

    def contents(self, batch: Mapping[str, Any]) -> list[Any]:
        """Return the rows of a batch as an encoder takes them: text, image, or both."""
        name, base = self.task.name, self.encoder.settings.base
        columns = [key for key in INPUTS if key in batch]
        if "image" in columns and "image" not in self.encoder.st.modalities:
            if "text" not in columns:
                raise EvaluationError(f"{name} has images, and {base} has no image side; choose a vision-language base")
            columns.remove("image")
            self.shared.warn_once(f"{name}: {base} has no image side; of images with a text, the text is read")
        if not columns:
            raise EvaluationError(f"{name} has {', '.join(batch)}; an encoder reads text and images")
        if len(columns) == 1:
            return list(batch[columns[0]])
        return [{"text": text, "image": image} for text, image in zip(*(batch[key] for key in INPUTS), strict=True)]

    def _prompt(self, kind: Any) -> Any:
        """Put the task's prompt in place of the encoder's own, where that is wanted and the task has one."""
        template = self.shared.task_prompts
        if template is None:
            return nullcontext()
        prompt, role = self.task.prompt, str(getattr(kind, "value", kind)) if kind is not None else None
        if isinstance(prompt, Mapping):
            prompt = prompt.get(role or "query")
        elif role == "document":  # a prompt without a role says what to retrieve: it is the query's
            prompt = None
        if not prompt:
            self.shared.warn_once(f"{self.task.name} has no prompt for its {role or 'text'} side: the encoder's stays")
            return nullcontext()
        return prompted(self.encoder, **{"query" if role == "query" else "document": template.format(prompt=prompt)})


def separate_ties(ranking: Ranking) -> dict[str, float]:
    """Return {document: score} with scores that fall strictly, in the ranking's order.

    trec_eval keeps scores as float32 and orders equal ones by document id. Here ties are ordered already, by a hash; so
    a score that is not below the one before it becomes the next float32 below that.
    """
    scores: dict[str, float] = {}
    last = np.float32(np.inf)
    for document, score in ranking:
        value = np.float32(score)
        last = value if value < last else np.nextafter(last, np.float32(-np.inf))
        scores[document] = float(last)
    return scores


# -------------------------------------------------------------------------------------- corpora of several searches


class CorpusCache:
    """Embeddings of corpora on disk, by content, for one encoder with settings that do not change.

    MTEB searches the same pages once for every language of a task; they are encoded for the first search, and read for
    the others. folder: takes 2 bytes a number: 3 MB for a page of 750 tokens of width 2048. ``clear`` removes it.
    """

    COMPLETE = "complete"  # an empty file, written after the last portion

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read_or_make(self, rows: Any, make: Callable[[], Iterator[Embeddings]]) -> Iterator[Embeddings]:
        """Yield the embeddings of a corpus in portions: stored ones of equal rows, else ``make()``'s, which are stored.

        rows: a datasets.Dataset. A full disk is logged, and the corpus is encoded anew the next time.
        """
        place = self.folder / content_key(rows)
        if (place / self.COMPLETE).is_file():
            for file in sorted(place.glob("*.safetensors")):
                stored = load_file(file)
                yield Embeddings(stored["pooled"], Tokens(stored["tokens"], stored["lengths"]))
            return
        shutil.rmtree(place, ignore_errors=True)
        storing = True
        for number, portion in enumerate(make()):
            storing = storing and self._store(place / f"{number:06d}.safetensors", portion)
            yield portion
        if storing and place.is_dir():
            (place / self.COMPLETE).touch()

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _store(self, file: Path, portion: Embeddings) -> bool:
        tokens = portion.tokens
        tensors = {"pooled": portion.pooled, "tokens": tokens.values, "lengths": tokens.lengths}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
        except OSError as error:
            logger.warning("a corpus cannot be stored for the task's other languages, which encode it anew (%s)", error)
            shutil.rmtree(file.parent, ignore_errors=True)
            return False
        return True


def content_key(rows: Any) -> str:
    """Return a hash of a dataset's ids, texts and undecoded images, row by row."""
    import datasets

    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    columns = [name for name in ("id", *INPUTS) if name in rows.column_names]
    digest = hashlib.blake2b(repr(columns).encode(), digest_size=16)
    for row in rows.select_columns(columns):
        for name in columns:
            value = row[name]
            if isinstance(value, dict):  # of an image: its bytes, or the file that holds them
                value = value.get("bytes") or Path(value["path"]).read_bytes()
            part = value if isinstance(value, bytes) else str(value).encode()
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
