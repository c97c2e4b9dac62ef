"""Keep the figures of the base as they are made, and use them again in the next start of a run that ended later.

RUN/measured.json holds what they depend on, and the figures: "calibration" (the fitted hybrid score) and "base" (the
row).  They are used only where all of it is equal: the base's files or commit, how it reads and pools, layer and
filters, queries, documents and judgements of dev and test, settings of the evaluation, packages, code and device.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from smart_train.config.recipe import plain, versions
from smart_train.config.schema import EvaluationBlock, HybridBlock, LateBlock, ModelBlock
from smart_train.core.atomic_io import replacing
from smart_train.core.bounded_json import load_json
from smart_train.core.hub import locate
from smart_train.data.collection import Collection
from smart_train.distributed.process_group import ProcessGroup
from smart_train.evaluation.baseline import table_hashes
from smart_train.evaluation.retrieval import Evaluation
from smart_train.evaluation.vector_store import document_key
from smart_train.models.safe_loading import fingerprint

logger = logging.getLogger(__name__)

EVALUATION = ("k", "calibrate", "calibration_queries", "calibration_documents", "batch_size", "bootstrap", "seed")

FILE = "measured.json"
WEIGHTS = (".safetensors", ".bin")
NO_EFFECT = ("base", "revision", "trust_remote_code", "dropout", "matryoshka")  # keys of model, for an untrained row


class MeasuredRows:
    """The figures of a run's base row; every rank makes one, asks it and tells it at the same places.

    output: the run's folder; depends_on: of ``dependencies``, the same on every rank; None keeps and finds nothing
    main: whether this rank reads and writes
    """

    def __init__(self, output: Path, depends_on: Mapping[str, Any] | None, main: bool) -> None:
        self.file = output / FILE
        self.depends_on, self.main = depends_on, main
        self.found: dict[str, Any] = {}
        if main and depends_on is not None:
            self.found = self._read()
        self.found = ProcessGroup().exchange(self.found)[0]

    def _read(self) -> dict[str, Any]:
        """Return the content of the newest file that depends on the same: of this folder, or of those of earlier runs
        that were moved aside (OUTPUT.1, OUTPUT.2 ...)."""
        output = self.file.parent
        moved = [path for path in output.parent.glob(f"{output.name}.*") if path.suffix[1:].isdigit()]
        moved.sort(key=lambda path: int(path.suffix[1:]), reverse=True)
        for file in (self.file, *(path / FILE for path in moved)):
            try:
                content = load_json(file.read_text(encoding="utf8"))
            except (OSError, ValueError):  # none, or not ours: it is measured again
                continue
            if isinstance(content, dict) and content.get("depends_on") == self.depends_on:
                return {**content, "file": str(file)}
        return {}

    def calibration(self) -> HybridBlock | None:
        """Return the hybrid score that was fitted to the base."""
        kept = self._figures("calibration")
        return None if kept is None else HybridBlock(**kept)

    def base(self) -> Evaluation | None:
        """Return the base row."""
        kept = self._figures("base")
        return None if kept is None else Evaluation(**{**kept, "hybrid": HybridBlock(**kept["hybrid"])})

    def _figures(self, name: str) -> Any:
        kept = self.found.get(name)
        if kept is not None and self.main and "file" in self.found:
            made, file = self.found.get("made"), self.found["file"]
            what = "base: its %s of %s is used again: nothing that it depends on has changed (remove %s to measure it)"
            logger.info(what, {"base": "row"}.get(name, name), made, file)
        return kept

    def keep(self, name: str, figures: HybridBlock | Evaluation) -> None:
        """Write figures as they are made.  A disk that is full loses no run: it is told."""
        self.found.setdefault("made", time.strftime("%Y-%m-%d %H:%M:%S"))
        self.found[name] = asdict(figures)
        if not self.main or self.depends_on is None:
            return
        kept: dict[str, Any] = {key: self.found[key] for key in ("made", "calibration", "base") if key in self.found}
        content = kept | {"depends_on": self.depends_on}
        try:
            with replacing(self.file) as part:
                part.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf8")
        except OSError as error:
            logger.warning(
                "%s cannot be written (%s): a later start measures the base again", self.file, error.strerror
            )


def dependencies(
    model: ModelBlock,
    late: LateBlock,
    evaluation: EvaluationBlock,
    splits: Mapping[str, Collection],
    device: torch.device,
) -> dict[str, Any] | None:
    """Return everything that the base row depends on, as JSON; None where it cannot be told: a token filter whose code
    is not of this package.  splits: "dev" and "test"

    Raises BaseNotFound.
    """
    if any(":" in one.type for one in late.token_filters):
        return None
    place, commit = locate(model.base, model.revision)
    found = {
        "base": commit or _files(Path(place)),
        "model": {name: value for name, value in asdict(model).items() if name not in NO_EFFECT},
        "late": plain(late),
        "evaluation": {n: getattr(evaluation, n) for n in EVALUATION},
        "data": {name: _content(split) for name, split in splits.items()},
        "packages": versions(),
        "code": _code(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
    read: dict[str, Any] = json.loads(json.dumps(found))
    return read


def _code() -> str:
    """Hash the code that encodes and ranks: a checkout changes without its version."""
    package, total = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(file for part in ("core", "models", "evaluation") for file in (package / part).rglob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()


def _files(folder: Path) -> str:
    """Hash a base's folder: its weights by the fingerprint that adapters know it by, all other files whole."""
    total = hashlib.sha256(fingerprint(folder).encode())
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in WEIGHTS:
            total.update(path.relative_to(folder).as_posix().encode())
            with path.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def _content(split: Collection) -> dict[str, str]:
    """Hash queries, judgements and the content of the documents, in their order: it decides ties."""
    documents = hashlib.sha256()
    for id, document in split.corpus.items():
        documents.update(document_key(id, document).encode())
    return {**table_hashes(split), "documents": documents.hexdigest()}
