"""A corpus' vectors on the disk: written a shard at a time, mapped into memory when they are read, gone on with.

    STORE/store.json               what made the vectors: everything that would change one; checked when it is reused
    STORE/shards/NAME.safetensors  pooled [n, D] float32, tokens [sum of lengths, d] float16, lengths [n] int64, and
                                   the documents' keys; NAME follows from the keys

A shard is whole or not there, so a process may be killed at any moment: the next one encodes what is missing.  What is
read is mapped, not copied: memory holds the pages of a shard that are being scored, and the system takes them back.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from smart_train.core.atomic_io import replacing
from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.core.errors import EvaluationError
from smart_train.distributed.process_group import ProcessGroup
from smart_train.evaluation.encode import (
    IMAGE_BATCHES,
    Collection,
    Encoded,
    Encoder,
    Forwards,
    ProgressLog,
    Wrap,
    asked,
    clock,
    embed_portion,
    embed_queries,
)
from smart_train.evaluation.topk import Document, Portion, Share

logger = logging.getLogger(__name__)

FORMAT = 1
FACTS, SHARDS = "store.json", "shards"


@dataclass(frozen=True)
class Shard:
    """One file: its documents' keys, row by row, and the seconds that encoding them took."""

    name: str
    keys: tuple[str, ...]
    seconds: float


class Store:
    """The vectors of one encoder, of any documents.

    facts: what made the vectors, as JSON; ``open`` compares them with those of the folder
    notes: versions and the like, written down beside them and not compared
    """

    def __init__(self, folder: str | Path, facts: Mapping[str, Any], notes: Mapping[str, Any] | None = None) -> None:
        self.folder, self.notes = Path(folder), dict(notes or {})
        self.facts: dict[str, Any] = json.loads(json.dumps(facts))
        self._warned = False

    def open(self, first: bool = True) -> None:
        """Makes the folder, or checks that it is this encoder's; removes what a killed process left half written.

        first: whether this process is the one that writes store.json
        Raises EvaluationError, naming what differs, for another encoder's folder and for one that is no store.
        """
        path = self.folder / FACTS
        if path.is_file():
            self._check(path)
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise EvaluationError(f"{self.folder} is not empty and has no {FACTS}; name a new folder for the vectors")
        if not first:
            return
        try:
            (self.folder / SHARDS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"{self.folder}: no folder for the vectors can be made there ({error.strerror})"
            raise EvaluationError(f"{what}; name another") from error
        for left in (self.folder / SHARDS).glob("*.part"):
            left.unlink()
        if not path.is_file():
            content = {"format": FORMAT, "facts": self.facts, "notes": self.notes}
            with replacing(path) as part:
                part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def _check(self, path: Path) -> None:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            stored, number = found["facts"], found["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(f"{path}: not a store's description ({error!r}); name a new folder") from error
        if number != FORMAT:
            raise EvaluationError(f"{path}: format {number}, this version reads {FORMAT}; name a new folder")
        before, now = flat(stored), flat(self.facts)
        changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        if changed:
            told = "; ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in changed[:6])
            more = f"; and {len(changed) - 6} more" if len(changed) > 6 else ""
            raise EvaluationError(
                f"{self.folder} holds vectors of another encoder: {told}{more}. Name another folder, or delete this one"
            )

    def shards(self) -> list[Shard]:
        """Every whole shard, by name.  Raises EvaluationError for a file that cannot be read."""
        found = []
        for path in sorted((self.folder / SHARDS).glob("*.safetensors")):
            try:
                with safe_open(str(path), framework="pt") as opened:
                    about = opened.metadata() or {}
                keys = tuple(about["keys"].split())
                found.append(Shard(path.stem, keys, float(about["seconds"])))
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                raise self._broken(path, error) from error
        return found

    def read(self, name: str) -> Embeddings:
        """A shard's rows, mapped: nothing is read before it is looked at.  Raises as ``shards``."""
        path = self.folder / SHARDS / f"{name}.safetensors"
        try:
            with safe_open(str(path), framework="pt") as opened:
                pooled, tokens, lengths = (opened.get_tensor(part) for part in ("pooled", "tokens", "lengths"))
            return Embeddings(pooled, Tokens(tokens, lengths).check())
        except (SafetensorError, OSError, ValueError) as error:
            raise self._broken(path, error) from error

    def write(self, keys: Sequence[str], rows: Embeddings, seconds: float, left: int = 0) -> str:
        """Adds a shard and returns its name; left: documents still to come, to tell whether the disk has room."""
        name = hashlib.blake2b("\n".join(keys).encode(), digest_size=12).hexdigest()
        path = self.folder / SHARDS / f"{name}.safetensors"
        tensors = {"pooled": rows.pooled, "tokens": rows.tokens.values, "lengths": rows.tokens.lengths}
        about = {"keys": " ".join(keys), "seconds": f"{seconds:.6f}"}
        try:
            with replacing(path, f".{os.getpid()}") as part:
                save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, part, about)
        except (SafetensorError, OSError) as error:
            what = f"{path}: the vectors cannot be written ({error})"
            raise EvaluationError(f"{what}; make room and run it again: what is stored already stays") from error
        self._warn(path.stat().st_size / len(keys) * left)
        return name

    def _warn(self, needed: float) -> None:
        free = shutil.disk_usage(self.folder).free
        if needed > free and not self._warned:
            self._warned = True
            logger.warning(
                "%s: about %.1f GB are still to come, and %.1f GB are free", self.folder, needed / 1e9, free / 1e9
            )

    @staticmethod
    def _broken(path: Path, error: Exception) -> EvaluationError:
        return EvaluationError(f"{path}: not a readable shard ({error}); delete it, and its documents are encoded anew")


def flat(nested: Any, key: str = "") -> dict[str, Any]:
    """{"late.layer": -1, ...} of nested dicts."""
    if not isinstance(nested, Mapping):
        return {key: nested}
    found: dict[str, Any] = {}
    for name, value in nested.items():
        found |= flat(value, f"{key}.{name}" if key else str(name))
    return found


# A corpus in shards that do not depend on how many processes there are: what each encodes, and reads from a store.


TEXT_ROWS = 128  # texts of a shard, in whole batches of any usual size
TEXT_CHARACTERS = 1 << 20  # of a shard of long texts: about 250,000 tokens, 2 GB at a width of 4096 in float16
IMAGE_ROWS = 64  # pages of a shard: 0.2 GB at 750 tokens of width 2048


@dataclass(frozen=True)
class Part:
    """Documents that are encoded, or read, together.

    stored: the shard that has them, and ``rows`` where in it they are; None = to be encoded
    """

    ids: list[str]
    stored: str | None = None
    rows: tuple[int, ...] = ()
    whole: bool = True  # all of the stored shard's rows, in order


def plan(corpus: Mapping[str, Document], group: ProcessGroup, store: Store | None = None) -> list[Part]:
    """This rank's documents; a collective where there are several ranks.

    What the store has comes first.  Raises EvaluationError as ``Store.open``, on every rank.
    """
    stored: list[Part] = []
    left = dict.fromkeys(corpus)
    if store is not None:
        known = {key(id, document): id for id, document in corpus.items()}
        # One rank looks: a shard that another one has just written must not be there for some ranks only.
        for shard in _listed(store, group):
            found = [(row, known[k]) for row, k in enumerate(shard.keys) if k in known and known[k] in left]
            if found:
                rows, ids = zip(*found, strict=True)
                stored.append(Part(list(ids), shard.name, rows, rows == tuple(range(len(shard.keys)))))
                for id in ids:
                    del left[id]
    parts = stored[group.rank :: group.world_size]
    return parts + [Part(ids) for ids in _cut(corpus, list(left))[group.rank :: group.world_size]]


def _listed(store: Store, group: ProcessGroup) -> list[Shard]:
    found: list[Shard] | None = None
    if group.is_main:
        store.open()
        found = store.shards()
    listed = group.exchange(found)[0]
    if not group.is_main:
        store.open(first=False)
    return list(listed)


def _cut(corpus: Mapping[str, Document], ids: Sequence[str]) -> list[list[str]]:
    """Texts by length, longest first; then images in their order."""
    texts = sorted((id for id in ids if corpus[id].image is None), key=lambda id: -len(corpus[id].text or ""))
    images = [id for id in ids if corpus[id].image is not None]
    shards = []
    at = 0
    while at < len(texts):
        fit = max(1, TEXT_CHARACTERS // max(1, len(corpus[texts[at]].text or "")))
        rows = min(TEXT_ROWS, 1 << (fit.bit_length() - 1))  # a power of two: whole batches of usual sizes
        shards.append(texts[at : at + rows])
        at += rows
    return shards + [images[at : at + IMAGE_ROWS] for at in range(0, len(images), IMAGE_ROWS)]


def key(id: str, document: Document) -> str:
    """What tells a document and its content: 128 bits over id, text, and the image's hash, its bytes or,
    for a file, its name, size and time of change (so that no image is opened to look it up)."""
    told = hashlib.blake2b(digest_size=16)
    for part in (id, document.text, _mark(document)):
        raw = b"\0" if part is None else b"\1" + part.encode("utf-8", "surrogatepass")
        told.update(len(raw).to_bytes(8, "little") + raw)
    return told.hexdigest()


def _mark(document: Document) -> str | None:
    image = document.image
    if image is None:
        return None
    known = getattr(document, "hash", None)
    if known:
        return f"hash {known}"
    if isinstance(image, str | Path):
        try:
            facts = Path(image).stat()
        except OSError as error:
            raise EvaluationError(f"the image {image} cannot be read ({error.strerror}); restore it") from error
        return f"file {Path(image).name} {facts.st_size} {facts.st_mtime_ns}"
    if hasattr(image, "content_id"):
        return str(image.content_id())
    if not hasattr(image, "tobytes"):  # something that is loaded
        content = document.content()
        image = content["image"] if isinstance(content, dict) else content
    return f"pixels {image.mode} {image.size} {hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()}"


# Embeds a collection shard by shard, for a command: the same vectors in however many processes, kept in a store.


def encode_shards(
    encoder: Encoder,
    collection: Collection,
    *,
    batch_size: int = 32,
    progress: bool = False,
    group: ProcessGroup | None = None,
    store: Store | None = None,
) -> Encoded:
    """As ``encode`` without keeping documents in memory; the iterator encodes a shard when it is asked for one.

    group: as in ``encode``; ranks take whole shards and whole batches of queries (see shards.py), and forwards must be
        each rank's own (not ``together``)
    store: where documents' vectors are read from, and written to where they are missing
    Raises as ``encode``, and EvaluationError for a store of another encoder, or one that cannot be read or written.
    """
    corpus, group = collection.corpus, group or ProcessGroup.single()
    if group.lockstep:
        raise ValueError("ranks that share the weights run as many forwards each, and shards are dealt whole")
    with group.propagate_failures():
        query_ids, unanswered, themselves = asked(collection, batch_size, group)
        forwards = Forwards(encoder, group, batch_size, progress and group.is_main)
        parts = plan(corpus, group, store)  # before anything is encoded: it may be refused
        stored = sum(group.exchange(sum(len(part.ids) for part in parts if part.stored is not None)))
        if stored and group.is_main:
            logger.info(
                "%d of %d documents are stored, %d are left to encode", stored, len(corpus), len(corpus) - stored
            )
        queries = embed_queries(forwards, [collection.queries[query] for query in query_ids], batch_size)
        documents = _documents(forwards, corpus, parts, store)
    document_ids = [document for part in parts for document in part.ids]
    place = {document: at for at, document in enumerate(corpus)}
    places = torch.tensor([place[document] for document in document_ids], dtype=torch.int64)
    share = Share(list(corpus), places, group)
    return Encoded(queries, documents, query_ids, document_ids, unanswered, themselves, forwards.seconds, share, stored)


def _documents(
    forwards: Forwards, corpus: Mapping[str, Document], parts: list[Part], store: Store | None
) -> Iterator[Embeddings]:
    """Reads a shard, or encodes and stores it, whenever one is asked for."""
    here = sum(len(part.ids) for part in parts)
    left = sum(len(part.ids) for part in parts if part.stored is None)
    pace = ProgressLog("documents encoded", here, here - left)
    with forwards.bar("documents", left) as wrap:
        for part in parts:
            if part.stored is not None and store is not None:
                rows = store.read(part.stored)
                yield rows if part.whole else rows.select(list(part.rows))
                continue
            begun = time.perf_counter()
            found = _encoded(forwards, corpus, part.ids, wrap)
            left -= len(part.ids)
            if store is not None:
                keys = [key(id, corpus[id]) for id in part.ids]
                with clock(forwards.seconds, "documents"):  # else it would count as scoring
                    # Other ranks have as many left, and most often the same disk.
                    store.write(keys, found, time.perf_counter() - begun, left * forwards.group.world_size)
            if wrap is None and forwards.group.is_main:
                pace.add(len(part.ids))
            yield found
            del found  # before the next is made, or three are in memory


def _encoded(forwards: Forwards, corpus: Mapping[str, Document], ids: list[str], wrap: Wrap | None) -> Embeddings:
    """A shard's rows in its order; of pages so few are decoded at a time as in a portion."""
    images = corpus[ids[0]].image is not None
    step = IMAGE_BATCHES * forwards.batch_size if images else len(ids)
    some = [ids[at : at + step] for at in range(0, len(ids), step)]
    found = [embed_portion(forwards, corpus, Portion(rows, len(rows), []), wrap) for rows in some]
    return found[0] if len(found) == 1 else Embeddings.cat(found)
