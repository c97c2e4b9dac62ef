"""Store document vectors on disk, a shard at a time, so that an evaluation can resume or be repeated.

    STORE/store.json               everything that the vectors depend on; checked before they are used again
    STORE/shards/NAME.safetensors  pooled [n, D] float32, tokens [sum of lengths, d] float16, lengths [n] int64, and
                                   the documents' keys; NAME follows from the keys

A shard is written completely or not at all, so a process may be killed at any moment: the next one encodes what is
missing. Reading maps a shard into memory without copying it: only the pages being scored are in memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from smart_train.core.atomic_io import replacing
from smart_train.core.bounded_json import load_json
from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.core.errors import EvaluationError, Message, Setting
from smart_train.core.folder_lock import NAME as LOCK
from smart_train.evaluation.protocols import Document

logger = logging.getLogger(__name__)

FORMAT = 1
FACTS, SHARDS = "store.json", "shards"


@dataclass(frozen=True)
class Shard:
    """One file: the keys of its documents, row by row, and the seconds that encoding them took."""

    name: str
    keys: tuple[str, ...]
    seconds: float


class VectorStore:
    """A folder with the vectors of one encoder, of any documents.

    facts: what the vectors depend on, as JSON; ``open`` compares it with the folder's
    notes: versions and the like, stored beside and not compared
    """

    def __init__(self, folder: str | Path, facts: Mapping[str, Any], notes: Mapping[str, Any] | None = None) -> None:
        self.folder, self.notes = Path(folder), dict(notes or {})
        self.facts: dict[str, Any] = json.loads(json.dumps(facts))
        self._warned = False

    def open(self, first: bool = True) -> None:
        """Create the folder, or check that it is this encoder's; remove half-written files of a killed process.

        first: whether this process is the one that writes store.json
        Raises EvaluationError for another encoder's folder (naming what differs) and for one that is not a store.
        """
        path = self.folder / FACTS
        if path.is_file():
            self._check(path)
        elif self.folder.is_dir() and any(one.name != LOCK for one in self.folder.iterdir()):
            raise EvaluationError(
                f"{self.folder} is not empty and has no {FACTS}; name a new or empty folder for the vectors"
            )
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
            found = load_json(path.read_text(encoding="utf-8"))
            stored, number = found["facts"], found["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(f"{path}: not a store's description ({error!r}); name a new folder") from error
        if number != FORMAT:
            raise EvaluationError(f"{path}: format {number}, this version reads {FORMAT}; name a new folder")
        before, now = flatten(stored), flatten(self.facts)
        changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        if changed:
            changes: list[Message] = []
            for key in changed[:6]:
                changes += ["; " if changes else "", Setting(key), f" was {before.get(key)!r}, is {now.get(key)!r}"]
            more = f"; and {len(changed) - 6} more" if len(changed) > 6 else ""
            raise EvaluationError(
                f"{self.folder} holds vectors of another encoder: ",
                *changes,
                f"{more}. Name another folder, or delete this one",
            )

    def shards(self) -> list[Shard]:
        """Return every complete shard, by name. Raises EvaluationError for a file that cannot be read."""
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
        """Return a shard's rows, mapped into memory: nothing is read before it is used. Raises as ``shards``."""
        path = self.folder / SHARDS / f"{name}.safetensors"
        try:
            with safe_open(str(path), framework="pt") as opened:
                pooled, tokens, lengths = (opened.get_tensor(part) for part in ("pooled", "tokens", "lengths"))
            return Embeddings(pooled, Tokens(tokens, lengths).check())
        except (SafetensorError, OSError, ValueError) as error:
            raise self._broken(path, error) from error

    def write(self, keys: Sequence[str], rows: Embeddings, seconds: float, left: int = 0) -> str:
        """Write a shard and return its name; left: documents still to come, to warn if the disk is too small."""
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


def flatten(nested: Any, key: str = "") -> dict[str, Any]:
    """Return nested dicts as one: {"late.layer": -1, ...}."""
    if not isinstance(nested, Mapping):
        return {key: nested}
    found: dict[str, Any] = {}
    for name, value in nested.items():
        found |= flatten(value, f"{key}.{name}" if key else str(name))
    return found


def document_key(id: str, document: Document) -> str:
    """Return the key of a document and its content: 128 bits over its id, its text, and the image's hash, bytes or, for
    a file, name, size and time of change (so that no image is opened to look it up)."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (id, document.text, _image_key(document)):
        raw = b"\0" if part is None else b"\1" + part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def _image_key(document: Document) -> str | None:
    image = document.image
    if image is None:
        return None
    known = getattr(document, "hash", None)
    if known:
        return f"hash {known}"
    if isinstance(image, str | Path):
        try:
            status = Path(image).stat()
        except OSError as error:
            raise EvaluationError(f"the image {image} cannot be read ({error.strerror}); restore it") from error
        return f"file {Path(image).name} {status.st_size} {status.st_mtime_ns}"
    if hasattr(image, "content_id"):
        return str(image.content_id())
    if not hasattr(image, "tobytes"):  # something that is loaded
        content = document.content()
        image = content["image"] if isinstance(content, dict) else content
    return f"pixels {image.mode} {image.size} {hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()}"
