"""A corpus that several searches of one task go through: encoded for the first, read from a disk for the others.

MTEB runs ViDoRe v2 and v3 language by language, each with the same pages; encoding them is nearly all of the work.

Knows: rows of a corpus, embeddings, files.  Does not know: encoders, scores, tasks.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from smart_train.embeddings import Embeddings, Tokens

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
