"""Merge adapters into one (weighted sum of their updates), and score the result beside its parts."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smart_train.config.schema import HybridBlock
from smart_train.core import hub
from smart_train.core.errors import AdapterError, PublishError, checks
from smart_train.data.collection import Collection
from smart_train.evaluation.calibration import calibrate
from smart_train.evaluation.report.metric_tables import table
from smart_train.evaluation.report.metrics_json import differences, write_metrics
from smart_train.evaluation.retrieval import Evaluation, evaluate
from smart_train.models.base_config import BaseFiles, named_by_peft
from smart_train.models.encoder import SmartEncoder
from smart_train.models.heads import parameter_name
from smart_train.models.lora import (
    CONFIG,
    WEIGHTS,
    add_lora,
    put_lora,
    read_config,
    read_lora,
    remove_lora,
    weighted_lora,
)
from smart_train.models.safe_loading import HEAD, SETTINGS, VERIFIED, check_folder, read_tensors
from smart_train.models.saving import read_settings, save, write_settings
from smart_train.models.verification import reference_inputs, verify
from smart_train.publishing.exporter import new_folder, publish_error

logger = logging.getLogger(__name__)

MERGED = "merged"


def rescore(
    folder: Path,
    parts: Mapping[str, str],
    dev: Collection,
    test: Collection,
    into: Path,
    batch_size: int = 32,
    progress: bool = False,
    **options: Any,
) -> str:
    """Return a table of the merged adapter and its parts on ``test``; fit the merged hybrid on ``dev`` first.

    parts: row name -> folder or Hub id; each keeps the hybrid that is stored with it; into: folder for metrics.json and
    evaluation.json; options: go to ``load``
    """
    rows: dict[str, Evaluation] = {}
    usual = HybridBlock()
    for name, source in {**parts, MERGED: str(folder)}.items():
        encoder = SmartEncoder.from_pretrained(source, **options)
        if not rows:
            usual = HybridBlock(encoder.late.hybrid.pooled, scaling=encoder.late.hybrid.scaling)  # as its parts score
        if name == MERGED:
            encoder.late.hybrid = usual
            encoder.late.hybrid, _ = calibrate(encoder, dev, batch_size=batch_size, progress=progress)
            encoder.save_settings(folder)
            logger.info("hybrid fitted on %d dev queries: %s", len(dev.queries), encoder.late.hybrid)
        rows[name] = evaluate(encoder, test, batch_size=batch_size, progress=progress)
        del encoder
    found = differences(rows)
    write_metrics(into / "metrics.json", rows, differences=found)
    return table({name: one.metrics for name, one in rows.items()}, found)


# Several adapters of one base as one: the weighted sum of their updates, their heads averaged by the same weights.

NAMED = ("base", "revision", "commit", "fingerprint")
IDENTITY = ("architecture", "hidden_size", "commit", "fingerprint")
READING = (
    "pooling",
    "query_prompt",
    "document_prompt",
    "query_tokens",
    "document_tokens",
    "min_pixels",
    "max_pixels",
    "quantisation",
)
LATE = ("layer", "norm", "head", "dim", "keep", "drop")


@dataclass
class Stored:
    """An adapter as it lies in its folder, its base not loaded."""

    folder: Path
    settings: dict[str, Any]  # as read_settings gives them
    lora: dict[str, Tensor]
    scale: float  # alpha / r
    head: dict[str, Tensor]


def merge(
    sources: Sequence[str | Path],
    weights: Sequence[float],
    out: str | Path,
    *,
    base: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    trust_extensions: Sequence[str] = (),
) -> Path:
    """Write an adapter whose update of every layer is the weighted sum of the others', verify it, return its folder.

    sources: folders or Hub ids of LoRA adapters, or of heads on a frozen base, trained on one base with the same
    targets, prompts, layer and kind of head; ranks may differ, and the merged rank is their sum
    weights: one each; where there are heads they must sum to 1, since a head is averaged and not added
    The hybrid weights and constants are dropped unless all adapters have the same: they fit one model's scores.
    Raises PublishError, and leaves nothing, if the adapters do not fit together.
    """
    if len(sources) < 2 or len(sources) != len(weights):
        raise PublishError(f"{len(sources)} adapters with {len(weights)} weights: give two or more, and a weight each")
    if not all(math.isfinite(weight) for weight in weights):
        raise PublishError(f"the weights are {', '.join(map(str, weights))}: give finite numbers; nothing was merged")
    try:
        parts = [read_adapter(source, trust_remote_code) for source in sources]
        check_alike(parts)
        check_heads(parts, weights)
        with new_folder(Path(out)) as part:
            encoder = SmartEncoder.from_pretrained(
                sources[0],
                base=base,
                device=device,
                trust_remote_code=trust_remote_code,
                trust_extensions=trust_extensions,
            )
            known = {key: parts[0].settings.get(key) for key in NAMED}  # the base's, wherever it lies now
            _merge_into(encoder, parts, weights, part, base is not None)
            save(encoder, part)
            sources_of = [
                {"weight": weight, "weights": _weights_of(one.folder), "adapter": asdict(one.settings["adapter"])}
                for one, weight in zip(parts, weights, strict=True)
            ]
            write_settings(encoder, part, export={"kind": "merge", "adapters": sources_of}, **known)
            queries, documents = (contents for _, contents in reference_inputs(encoder))
            verify(encoder, part, queries, documents, base=base)
    except AdapterError as error:
        raise publish_error(error) from error
    return Path(out)


@checks()
def read_adapter(source: str | Path, trust_remote_code: bool = False) -> Stored:
    """Read an adapter from a folder or Hub repository, checked as ``load`` checks it. Raises AdapterError."""
    place, commit = hub.locate(str(source), None)
    folder = Path(place) if commit is None else hub.fetch(place, commit, SETTINGS)
    if folder is None or not (folder / SETTINGS).is_file():
        raise AdapterError(f"{source}: there is no {SETTINGS}, so it is no adapter; name one's folder")
    check_folder(folder, trust_remote_code)
    settings = read_settings(folder)
    kind = settings["adapter"].kind if settings["adapter"] is not None else None
    if kind not in ("lora", "frozen"):
        what = f"{source} is {'full weights' if kind == 'full' else 'no adapter'}"
        raise AdapterError(f"{what}; LoRA adapters merge, and heads on a frozen base")
    scale, lora = 1.0, {}
    if kind == "lora":
        config = read_config(folder)
        scale, lora = config.lora_alpha / config.r, read_lora(folder)
    head = read_tensors(folder / HEAD) if (folder / HEAD).is_file() else {}
    return Stored(folder, settings, lora, scale, head)


def check_alike(parts: Sequence[Stored]) -> None:
    """Raise AdapterError if the adapters were trained on different bases, or read inputs or tokens differently."""
    first = parts[0]
    for other in parts[1:]:
        pairs = [(key, first.settings[key], other.settings[key]) for key in IDENTITY]
        pairs += [
            (f"processing.{k}", v, other.settings["processing"].get(k)) for k, v in first.settings["processing"].items()
        ]
        for block, names in (("model", READING), ("late", LATE), ("adapter", ("kind",))):
            one, two = first.settings[block], other.settings[block]
            pairs += [(f"{block}.{name}", getattr(one, name), getattr(two, name)) for name in names]
        found = [f"{name} is {a!r} and {b!r}" for name, a, b in pairs if a != b]
        if found:
            different = "; ".join(found[:4])
            raise AdapterError(f"{first.folder} and {other.folder} cannot be merged: {different}; they must be equal")


def check_heads(parts: Sequence[Stored], weights: Sequence[float]) -> None:
    """Raise AdapterError if the heads cannot be averaged with these weights; warn if they are unlike."""
    shapes = [{name: tuple(t.shape) for name, t in part.head.items()} for part in parts]
    if any(shape != shapes[0] for shape in shapes):
        raise AdapterError(f"the heads have different tensors: {shapes[0]} and {shapes[-1]}; nothing was merged")
    if not parts[0].head:
        return
    if abs(sum(weights) - 1) > 1e-6:
        what = f"the weights sum to {sum(weights):g}, and heads are averaged"
        raise AdapterError(f"{what}: give weights that sum to 1")
    if "linear.weight" in parts[0].head:
        flat = [part.head["linear.weight"].double().flatten() for part in parts]
        least = min(float(torch.cosine_similarity(flat[0], other, dim=0)) for other in flat[1:])
        if least < 0.5:
            logger.warning(
                "the heads have a cosine of %.2f: they were drawn from different seeds, and their mean may fit none; "
                "compare the scores, or train them with the same training.seed",
                least,
            )


def _merge_into(
    encoder: SmartEncoder, parts: Sequence[Stored], weights: Sequence[float], folder: Path, moved: bool
) -> None:
    """Turn the first adapter's encoder into the merged one. moved: keep the base's stored name, not where it is now."""
    if encoder.adapter is not None and encoder.adapter.kind == "lora":
        lora = [(part.lora, part.scale, weight) for part, weight in zip(parts, weights, strict=True)]
        tensors, rank = weighted_lora(lora)
        encoder.adapter = replace(encoder.adapter, r=rank, alpha=rank, dropout=0.0)
        remove_lora(encoder.backbone)
        first = parts[0].settings
        place, commit = named_by_peft(BaseFiles(encoder.place, encoder.commit), encoder.place), encoder.commit
        if moved:
            place, commit = first["base"] + place.removeprefix(encoder.place), first["commit"]
        add_lora(encoder.backbone, encoder.adapter, place, commit)
        put_lora(encoder.backbone, tensors, folder)
    if parts[0].head:
        mean = {
            name: sum((w * part.head[name].double() for part, w in zip(parts, weights, strict=True)), torch.zeros(()))
            for name in parts[0].head
        }
        encoder.head.load_state_dict({parameter_name(name): tensor.float() for name, tensor in mean.items()})
    blocks = [part.settings["late"].hybrid for part in parts]
    if any(block != blocks[0] for block in blocks):
        encoder.late.hybrid = HybridBlock()
        logger.info(
            "the hybrid weights and constants differ and were dropped (0.5 x pooled + 0.5 x late): they belong to one "
            "model's scores; fit them again on dev data"
        )


def _weights_of(folder: Path) -> dict[str, str]:
    """Return the hashes of a verified adapter's weights, which identify it without a path."""
    path = folder / VERIFIED
    found: dict[str, str] = json.loads(path.read_text(encoding="utf8")).get("weights", {}) if path.is_file() else {}
    return {name: found[name] for name in (WEIGHTS, HEAD, CONFIG) if name in found}
