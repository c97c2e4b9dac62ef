"""A corpus' vectors on the disk: written a shard at a time, mapped into memory when they are read, gone on with.

    STORE/store.json               what made the vectors: everything that would change one; checked when it is reused
    STORE/shards/NAME.safetensors  pooled [n, D] float32, tokens [sum of lengths, d] float16, lengths [n] int64, and
                                   the documents' keys; NAME follows from the keys

Knows: embeddings, keys of documents, files.  Does not know: encoders, collections, scores.

A shard is whole or not there, so a process may be killed at any moment: the next one encodes what is missing.  What is
read is mapped, not copied: memory holds the pages of a shard that are being scored, and the system takes them back.
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

from smart_train.embeddings import Embeddings, Tokens
from smart_train.evaluation.metrics import EvaluationError
from smart_train.saving import replacing

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
