"""Arrays of a long pass in files: mapped into memory, gone on with by another process, replaced where they are stale.

Knows: numpy, a folder.  Does not know: what the numbers mean.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from smart_train.evaluation.metrics import EvaluationError
from smart_train.saving import replacing

logger = logging.getLogger(__name__)

STATE = "state.json"


class ScoreFiles:
    """Plain little-endian numbers, NAME.bin, and state.json that says what they are of.

    identity: everything that the numbers follow from; files of another identity are deleted, and that is told
    going_on: whether files of this identity are there
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder, self.identity = folder, json.loads(json.dumps(identity))
        state = folder / STATE
        found = json.loads(state.read_text(encoding="utf8")) if state.is_file() else None
        self.going_on = found == self.identity
        if found is not None and not self.going_on:
            logger.info("%s holds scores of other data, another model or other settings: starting anew", folder)
        if not self.going_on:
            self._clear()
        folder.mkdir(parents=True, exist_ok=True)

    def array(self, name: str, shape: tuple[int, ...], dtype: str = "<f4") -> np.ndarray:
        """The file's numbers; zeros, which take no disk before they are written, where it is new.

        Raises EvaluationError where the disk has no room for it.
        """
        path = self.folder / f"{name}.bin"
        size, free = int(np.prod(shape)) * np.dtype(dtype).itemsize, shutil.disk_usage(self.folder).free
        if not path.is_file() and size > free:
            raise EvaluationError(
                f"{path} needs {size / 1e9:.1f} GB for the scores of all pairs, and {free / 1e9:.1f} GB are free; "
                "name a folder on another disk, or take fewer queries or documents"
            )
        return np.memmap(path, dtype=dtype, mode="r+" if path.is_file() else "w+", shape=shape)

    def begin(self) -> None:
        """From here on the folder can be gone on with: its files have their sizes."""
        with replacing(self.folder / STATE) as part:
            part.write_text(json.dumps(self.identity, indent=1) + "\n", encoding="utf8")

    def finish(self) -> None:
        """Deletes them, and the folder where nothing else is in it."""
        self._clear()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _clear(self) -> None:
        for path in (self.folder / STATE, *self.folder.glob("*.bin")):
            path.unlink(missing_ok=True)
