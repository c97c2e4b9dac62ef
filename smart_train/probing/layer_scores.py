"""Score queries against documents with every layer of an encoder, from one encoding pass that can be resumed.

The pooled score and every layer's late score of all pairs are kept in files.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smart_train.core.atomic_io import replacing
from smart_train.core.disk import reserve
from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.core.errors import EvaluationError
from smart_train.core.progress_log import ProgressLog, timed
from smart_train.evaluation.encode import Encoded, encode
from smart_train.evaluation.protocols import Collection, Encoder
from smart_train.evaluation.scoring import check, tiles
from smart_train.evaluation.topk import tie_hash

logger = logging.getLogger(__name__)

STATE = "state.json"
SAMPLE = 1024  # documents whose vectors are kept for the diagnostics: half a million pairs
READ = 1 << 23  # scores read at a time: 32 MiB


@dataclass
class LayerScores:
    """Scores of every layer, by split, and how they were computed."""

    splits: dict[str, SplitScores]
    sample: Sample
    files: ScoreFiles
    unanswered: list[str]  # queries of all splits without a relevant document
    seconds: dict[str, float]  # queries, documents (encoding), scores; of this process


def layer_scores(
    encoder: Encoder,
    collections: Mapping[str, Collection],
    layers: int,
    folder: Path,
    identity: Mapping[str, Any],
    *,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> LayerScores:
    """Score the queries of every split against its documents; a document of several splits is encoded once.

    encoder: its tokens are L = ``layers`` layers side by side; collections: by split, without a query in common
    folder: where scores are kept; a process that was stopped is resumed from there if its ``identity`` is the same
    seed: which documents are sampled for the diagnostics, and which of their tokens
    progress: True for a bar on a terminal, False for a log line every half minute, both with the time left
    Raises EvaluationError for a split without a query that has a relevant document, embeddings that are not finite, an
    id with two contents, and a full disk.
    """
    merged = _merged(collections)
    files = ScoreFiles(folder, {**identity, "layers": layers, "seed": seed})
    done = _finished(files, collections)
    encoded = encode(encoder, merged, batch_size=batch_size, progress=progress, keep=False, wide=layers, skip=done)
    check(encoded.queries, encoded.query_ids, "query")
    splits = {name: SplitScores(files, name, one, encoded, layers) for name, one in collections.items()}
    sample = Sample(files, merged.corpus, encoded.queries, layers, seed)
    files.begin()
    encoded.queries = encoded.queries.select([])  # each split has its own now: L layers of them in float32
    pace = ProgressLog("documents scored in all layers", len(merged.corpus), len(done))
    if done:
        logger.info("%d of %d documents were scored before; resuming with the others", len(done), len(merged.corpus))
    begun = 0
    for portion in encoded.documents:
        ids = encoded.document_ids[begun : begun + len(portion)]
        begun += len(portion)
        check(portion, ids, "document")
        with timed(encoded.seconds, "scores"):
            sample.take(portion, ids)
            for split in splits.values():
                split.take(portion, ids, getattr(encoder, "device", None))
        if not progress:
            pace.add(len(portion))
    return LayerScores(splits, sample, files, encoded.unanswered, encoded.seconds)


@dataclass
class _Merged:
    corpus: dict[str, Any]
    queries: dict[str, str]
    qrels: dict[str, Mapping[str, int]]


def _merged(collections: Mapping[str, Collection]) -> _Merged:
    """Merge all splits, so that a document of two is encoded once."""
    merged = _Merged({}, {}, {})
    for split, collection in collections.items():
        for id, document in collection.corpus.items():
            other = merged.corpus.setdefault(id, document)
            if (other.text, other.image is None) != (document.text, document.image is None):
                raise EvaluationError(
                    f"the document id {id!r} has two contents, one of them in {split}; give each its own id"
                )
        if shared := merged.queries.keys() & collection.queries.keys():
            raise EvaluationError(
                f"{len(shared)} queries are in two splits, such as {min(shared)!r}; each may be in one only"
            )
        merged.queries.update(collection.queries)
        merged.qrels.update({query: collection.qrels.get(query, {}) for query in collection.queries})
    return merged


def _finished(files: ScoreFiles, collections: Mapping[str, Collection]) -> frozenset[str]:
    """Return the documents whose scores are complete in every split that has them."""
    found: set[str] = set()
    left: set[str] = set()
    for name, collection in collections.items() if files.resumable else ():
        done = files.array(f"{name}.done", (len(collection.corpus),), "u1")
        for document, finished in zip(collection.corpus, done, strict=True):
            (found if finished else left).add(document)
    return frozenset(found - left)


class SplitScores:
    """The scores of one split's queries and documents.

    scores: [1 + L, N, B] float32 in a file: the pooled score, then each layer's late score; documents first, so that a
        portion is written, and a block read, in one piece
    done: [N] uint8 in a file: whether all scores of that document are written
    """

    def __init__(self, files: ScoreFiles, name: str, collection: Collection, encoded: Encoded, layers: int) -> None:
        rows = [row for row, query in enumerate(encoded.query_ids) if query in collection.queries]
        if not rows or not collection.corpus:
            raise EvaluationError(
                f"{name} has no query with a relevant document in its corpus; choose another split for it"
            )
        self.name, self.qrels = name, collection.qrels
        self.query_ids = [encoded.query_ids[row] for row in rows]
        self.document_ids = list(collection.corpus)
        self.column = {document: at for at, document in enumerate(self.document_ids)}
        self.identical_ids = frozenset(query for query in self.query_ids if query in encoded.identical_ids)
        self.scores = files.array(f"{name}.scores", (1 + layers, len(self.document_ids), len(rows)))
        self.done = files.array(f"{name}.done", (len(self.document_ids),), "u1")
        queries = encoded.queries.select(rows)
        self.queries = [layer_of(queries, at, layers) for at in range(layers)]

    def take(self, portion: Embeddings, ids: Sequence[str], device: torch.device | None) -> None:
        """Score the split's queries against those of the documents that the split has."""
        rows = [row for row, document in enumerate(ids) if document in self.column]
        if not rows:
            return
        part = portion if len(rows) == len(ids) else portion.select(rows)
        columns = np.array([self.column[ids[row]] for row in rows])
        scores = np.empty((2, len(rows), len(self.query_ids)), dtype=np.float32)
        for at, own in enumerate(self.queries):
            documents = layer_of(part, at, len(self.queries))
            for b, n, pooled, late in tiles(own, documents, device=device):
                scores[0, n, b], scores[1, n, b] = pooled.t().cpu(), late.t().cpu()
            self.scores[1 + at, columns] = scores[1]
        self.scores[0, columns] = scores[0]
        self.done[columns] = 1

    def blocks(self, layer: int) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
        """Yield all pairs as tiles (queries, documents, pooled [B, n], late [B, n]); layer: its place among the L."""
        rows = max(1, READ // len(self.query_ids))
        for begin in range(0, len(self.document_ids), rows):
            part = slice(begin, min(begin + rows, len(self.document_ids)))
            pooled, late = (torch.from_numpy(np.array(self.scores[at, part])).t() for at in (0, 1 + layer))
            yield slice(0, len(self.query_ids)), part, pooled, late

    def relevant_scores(self, place: int) -> np.ndarray:
        """Return the scores [pairs] (0 = pooled, 1 + l = late) of relevant pairs whose document is in the corpus."""
        pairs = [
            (self.column[document], row)
            for row, query in enumerate(self.query_ids)
            for document, grade in self.qrels[query].items()
            if grade > 0 and document in self.column
        ]
        return np.array([self.scores[place, at, row] for at, row in pairs])


class Sample:
    """Vectors of SAMPLE documents for the diagnostics: [n, D + L * d] in a file, the pooled vector, then one token, the
    same in each layer."""

    def __init__(
        self, files: ScoreFiles, corpus: Mapping[str, Any], queries: Embeddings, layers: int, seed: int
    ) -> None:
        chosen = sorted(corpus, key=lambda document: tie_hash(f"{seed}", document))[:SAMPLE]
        self.place = {document: at for at, document in enumerate(chosen)}
        self.layers, self.seed, self.pooled_width = layers, seed, queries.pooled.shape[1]
        self.values = files.array("sample", (len(chosen), self.pooled_width + queries.tokens.width))

    def take(self, portion: Embeddings, ids: Sequence[str]) -> None:
        starts = (portion.tokens.lengths.cumsum(0) - portion.tokens.lengths).tolist()
        for row, document in enumerate(ids):
            if document in self.place:
                drawn = int.from_bytes(tie_hash(f"{self.seed} token", document), "big")
                token = portion.tokens.values[starts[row] + drawn % int(portion.tokens.lengths[row])]
                both = torch.cat([portion.pooled[row].float(), token.float()])
                self.values[self.place[document]] = both.cpu().numpy()

    def vectors(self, place: int) -> np.ndarray:
        """Return pooled vectors [n, D] (place 0), or tokens [n, d] of a layer (1 + l)."""
        width = (self.values.shape[1] - self.pooled_width) // self.layers
        begin = self.pooled_width + (place - 1) * width
        return np.array(self.values[:, : self.pooled_width] if place == 0 else self.values[:, begin : begin + width])


def layer_of(embeddings: Embeddings, at: int, layers: int) -> Embeddings:
    """Return the rows with the tokens of one of the layers that are side by side."""
    width = embeddings.tokens.width // layers
    values = embeddings.tokens.values[:, at * width : (at + 1) * width].contiguous()
    return Embeddings(embeddings.pooled, Tokens(values, embeddings.tokens.lengths))


class ScoreFiles:
    """Files of plain little-endian numbers, NAME.bin, with a state.json that says what they depend on.

    identity: everything that the numbers depend on; files of another identity are deleted, with a log line
    resumable: whether files of this identity are there
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder, self.identity = folder, json.loads(json.dumps(identity))
        state = folder / STATE
        found = json.loads(state.read_text(encoding="utf8")) if state.is_file() else None
        self.resumable = found == self.identity
        if found is not None and not self.resumable:
            logger.info("%s holds scores of other data, another model or other settings: starting again", folder)
        if not self.resumable:
            self._clear()
        folder.mkdir(parents=True, exist_ok=True)

    def array(self, name: str, shape: tuple[int, ...], dtype: str = "<f4") -> np.ndarray:
        """Return the file's numbers; a new file has zeros, and its room on the disk is taken at once.

        Raises EvaluationError if the disk has no room for it.
        """
        path = self.folder / f"{name}.bin"
        size, free = int(np.prod(shape)) * np.dtype(dtype).itemsize, shutil.disk_usage(self.folder).free
        if not path.is_file():
            try:
                if size > free:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                reserve(path, size)
            except OSError as error:
                what = f"{path} needs {size / 1e9:.1f} GB for the scores of all pairs, and {free / 1e9:.1f} GB are free"
                fix = "name a folder on another disk, or take fewer queries or documents"
                raise EvaluationError(f"{what}; {fix} ({error.strerror})") from error
        return np.memmap(path, dtype=dtype, mode="r+", shape=shape)

    def begin(self) -> None:
        """Mark the folder as resumable: its files have their sizes."""
        with replacing(self.folder / STATE) as part:
            part.write_text(json.dumps(self.identity, indent=1) + "\n", encoding="utf8")

    def finish(self) -> None:
        """Delete the files, and the folder if nothing else is in it."""
        self._clear()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _clear(self) -> None:
        for path in (self.folder / STATE, *self.folder.glob("*.bin")):
            path.unlink(missing_ok=True)
