"""Training-free SMART: every layer x late weights x {late, hybrid} from one encoding pass, and what to do with it.

Knows: encoders and data together, in which order a probe goes through the rooms.
Does not know: how layers are read, how a reading is chosen, arguments.

A probe's folder:
    probe.json, probe.csv    every reading's nDCG on dev and test with intervals; diagnostics of every layer
    probe.png                nDCG over layers
    late.yaml                the recommendation, as a block of a recipe
    encoder/                 with ``apply`` and without an adapter: a training-free encoder's folder
    unfinished/              scores of a probe that was stopped; the same call goes on there
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from smart_train import recipe
from smart_train.bases import PACKAGE, told_name
from smart_train.blocks import HybridBlock, LateBlock
from smart_train.data.dev_and_test import DevAndTest
from smart_train.evaluation import probe_report as report
from smart_train.evaluation.layer_scores import layer_scores
from smart_train.evaluation.probe import Layer, Probe, probe
from smart_train.evaluation.retrieval import GRID
from smart_train.model.encoder import SmartEncoder
from smart_train.model.every_layer import every_layer, fixed
from smart_train.model.files import digests
from smart_train.model.settings import base_identity, modules_of
from smart_train.saving import replacing

logger = logging.getLogger(__name__)

UNFINISHED = "unfinished"


@dataclass
class Probed:
    """found: all figures; late: the recommended block of a recipe"""

    found: Probe
    late: LateBlock


def run(
    encoder: SmartEncoder,
    data: DevAndTest,
    output: Path,
    *,
    adapter: str | None = None,
    weights: Sequence[float] = GRID,
    cut: int = 10,
    batch_size: int = 32,
    bootstrap: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Probed:
    """Probes ``encoder`` and writes the folder described above; each document is encoded once.

    adapter: the folder (or Hub id) that the encoder was loaded from, where it was trained
    The other arguments are those of ``evaluation.probe.probe``.
    Raises EvaluationError, and what encoding raises.  What was scored by then stays in ``output``/unfinished.
    """
    dev, test = data.dev.fingerprint(), data.test.fingerprint()
    base = base_identity(encoder)
    identity = {
        "base": base,
        "modules": modules_of(encoder),
        "dtype": str(encoder.backbone.dtype),
        "model": asdict(replace(encoder.settings, revision=None)),
        "late": asdict(replace(encoder.late, hybrid=HybridBlock())),
        "adapter": digests(Path(adapter)) if adapter and Path(adapter).is_dir() else adapter,
        "dev": dev,
        "test": test,
    }
    output.mkdir(parents=True, exist_ok=True)
    with _reading(encoder) as layers:
        collections = {"dev": data.dev, "test": data.test}
        scores = layer_scores(
            encoder, collections, len(layers), output / UNFINISHED, identity,
            batch_size=batch_size, seed=seed, progress=progress,
        )  # fmt: skip
    found = probe(scores, layers, weights=weights, cut=cut, bootstrap=bootstrap, seed=seed, progress=progress)
    late = recommended(found, encoder.late)
    told = {
        "data": {"split": data.told, "dev": {"name": data.dev.name, "fingerprint": dev}}
        | {"test": {"name": data.test.name, "fingerprint": test}, "unanswered": len(scores.unanswered)},
        "base": {**base, "dtype": identity["dtype"]},
        "adapter": identity["adapter"],
        "versions": recipe.versions(),
    }
    _write(output, found, late, told, title=_title(base["base"], adapter))
    scores.files.finish()
    return Probed(found, late)


@contextmanager
def _reading(encoder: SmartEncoder) -> Iterator[list[Layer]]:
    """All layers; of an encoder with a head, what that head was trained to read."""
    if fixed(encoder):
        logger.info("its head reads layer %s and no other: only the weights are probed", encoder.late.layer)
        yield [encoder.late.layer]
        return
    with every_layer(encoder) as layers:
        yield list(layers)


def _title(base: str, adapter: str | None) -> str:
    """Without the folders of this machine."""
    name = told_name(base).removeprefix(PACKAGE)
    return name if adapter is None else f"{told_name(adapter)} on {name}"


def recommended(found: Probe, late: LateBlock) -> LateBlock:
    """The encoder's block with the chosen layer, weights and constants; with ``late`` weight 0, and the last layer
    where that is free, if the pooled score alone is recommended."""
    chosen = found.readings[found.chosen]
    layer = found.layers[-1] if chosen.layer is None else chosen.layer
    fitted = found.of_layer(layer)[0].hybrid  # its constants; the pooled reading is of no layer
    own = chosen.hybrid
    hybrid = replace(fitted, pooled=own.pooled, late=own.late, scaling=own.scaling)
    return replace(late, layer=layer, norm="auto" if layer == -1 else late.norm, hybrid=hybrid)


def _write(output: Path, found: Probe, late: LateBlock, told: dict[str, Any], title: str) -> None:
    values = asdict(late)
    usual = asdict(LateBlock())
    shown = {one.name: values[one.name] for one in fields(LateBlock) if values[one.name] != usual[one.name]}
    block = {"layer": values["layer"], **shown, "hybrid": values["hybrid"]}
    report.write_json(output / "probe.json", found, values, **told)
    report.write_csv(output / "probe.csv", found)
    report.draw(output / "probe.png", found, title)
    split = f"dev and test: {told['data']['split']}"
    with replacing(output / "late.yaml") as part:
        part.write_text(recipe.block("late", block, f"{report.verdict(found)}\n{split}"), encoding="utf8")
