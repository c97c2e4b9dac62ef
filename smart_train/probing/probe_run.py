"""Run a probe on an encoder, write its folder, and apply its recommendation to an adapter or a new encoder folder.

The folder of a probe:
    probe.json, probe.csv    nDCG on dev and test of every configuration, with intervals; diagnostics of every layer
    probe.png                nDCG over layers
    late.yaml                the recommendation, as a block of a recipe
    encoder/                 with ``--apply`` and without an adapter: the folder of an untrained encoder
    unfinished/              scores of a probe that was stopped; the same call resumes there
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from smart_train.config import recipe
from smart_train.config.schema import HybridBlock, LateBlock
from smart_train.core.atomic_io import replacing
from smart_train.core.bounded_json import load_json
from smart_train.core.errors import AdapterError
from smart_train.core.folder_lock import own
from smart_train.core.hub import PACKAGE, display_name
from smart_train.data.load import DevAndTest
from smart_train.evaluation.calibration import GRID
from smart_train.models.encoder import SmartEncoder
from smart_train.models.safe_loading import SETTINGS, VERIFIED, digests
from smart_train.models.saving import base_identity, modules_of, save, write_late_settings
from smart_train.models.verification import Inputs, changed_files, compare, reload, verify, write_verified
from smart_train.probing import probe_report as report
from smart_train.probing.every_layer import every_layer, read_layer, reads_fixed_layers
from smart_train.probing.layer_probe import Layer, Probe, probe
from smart_train.probing.layer_scores import layer_scores

logger = logging.getLogger(__name__)

UNFINISHED = "unfinished"


@dataclass
class Probed:
    """found: all metrics; late: the recommended block of a recipe"""

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
    """Probe an encoder and write the folder described above; each document is encoded once.

    adapter: the folder (or Hub id) that the encoder was loaded from, if it was trained
    The other arguments are those of ``layer_probe.probe``.
    Raises EvaluationError, FolderInUse, and what encoding raises.  Scores computed by then stay in
    ``output``/unfinished.
    """
    with own(output):
        dev, test = data.dev.fingerprint(), data.test.fingerprint()
        base = base_identity(encoder)
        identity = {
            "base": base,
            "modules": modules_of(encoder),
            "dtype": str(encoder.backbone.dtype),
            "model": asdict(replace(encoder.settings, revision=None)),
            "late": recipe.plain(replace(encoder.late, hybrid=HybridBlock())),
            "adapter": digests(Path(adapter)) if adapter and Path(adapter).is_dir() else adapter,
            "dev": dev,
            "test": test,
        }
        with _readable_layers(encoder) as layers:
            collections = {"dev": data.dev, "test": data.test}
            scores = layer_scores(
                encoder, collections, len(layers), output / UNFINISHED, identity,
                batch_size=batch_size, seed=seed, progress=progress,
            )  # fmt: skip
        found = probe(scores, layers, weights=weights, cut=cut, bootstrap=bootstrap, seed=seed, progress=progress)
        late = recommended(found, encoder.late)
        about = {
            "data": {"split": data.origin, "dev": {"name": data.dev.name, "fingerprint": dev}}
            | {"test": {"name": data.test.name, "fingerprint": test}, "unanswered": len(scores.unanswered)},
            "base": {**base, "dtype": identity["dtype"]},
            "adapter": identity["adapter"],
            "versions": recipe.versions(),
        }
        _write(output, found, late, about, title=_title(base["base"], adapter))
        scores.files.finish()
        return Probed(found, late)


@contextmanager
def _readable_layers(encoder: SmartEncoder) -> Iterator[list[Layer]]:
    """Have the encoder give all layers; an encoder with a head reads what the head was trained on."""
    if reads_fixed_layers(encoder):
        logger.info("the encoder's head was trained on layer %s: only the weights are probed", encoder.late.layer)
        yield [encoder.late.layer]
        return
    with every_layer(encoder) as layers:
        yield list(layers)


def _title(base: str, adapter: str | None) -> str:
    """Return a title without local folders."""
    name = display_name(base).removeprefix(PACKAGE)
    return name if adapter is None else f"{display_name(adapter)} on {name}"


def recommended(found: Probe, late: LateBlock) -> LateBlock:
    """Return the encoder's block with the chosen layer, weights and constants.

    If the pooled score alone is recommended, the late weight is 0, and the layer is the last unless a head fixes it.
    """
    chosen = found.configurations[found.chosen]
    layer = found.layers[-1] if chosen.layer is None else chosen.layer
    fitted = found.of_layer(layer)[0].hybrid  # its constants; the pooled configuration has no layer
    own = chosen.hybrid
    hybrid = replace(fitted, pooled=own.pooled, late=own.late, scaling=own.scaling)
    return replace(late, layer=layer, norm="auto" if layer == -1 else late.norm, hybrid=hybrid)


def _write(output: Path, found: Probe, late: LateBlock, about: dict[str, Any], title: str) -> None:
    values = recipe.plain(late)
    usual = recipe.plain(LateBlock())
    shown = {one.name: values[one.name] for one in fields(LateBlock) if values[one.name] != usual[one.name]}
    block = {"layer": values["layer"], **shown, "hybrid": values["hybrid"]}
    report.write_json(output / "probe.json", found, values, **about)
    report.write_csv(output / "probe.csv", found)
    report.draw(output / "probe.png", found, title)
    split = f"dev and test: {about['data']['split']}"
    with replacing(output / "late.yaml") as part:
        part.write_text(recipe.block("late", block, f"{report.recommendation(found)}\n{split}"), encoding="utf8")


# --- keeping the recommendation


def as_folder(encoder: SmartEncoder, late: LateBlock, folder: Path, queries: list[Any], documents: list[Any]) -> Path:
    """Save the untrained base with ``late`` as a folder that ``SmartEncoder.from_pretrained`` loads, and verify it.

    The folder holds settings and no weights: it names the base by its fingerprint or commit.

    encoder: without an adapter; it reads ``late`` from now on; queries, documents: some contents to compare with
    Raises AdapterError if the folder holds other files, and what ``verify`` raises.
    """
    others = (
        [path.name for path in folder.iterdir() if path.name not in (SETTINGS, VERIFIED)] if folder.is_dir() else []
    )
    if others:
        raise AdapterError(f"{folder} holds other files ({sorted(others)[0]} ...); name another folder")
    _read(encoder, late)
    save(encoder, folder)
    verify(encoder, folder, queries, documents)
    return folder


def to_adapter(
    encoder: SmartEncoder,
    late: LateBlock,
    folder: Path,
    queries: list[Any],
    documents: list[Any],
    base: str | None = None,
) -> bool:
    """Write layer, weights and constants of ``late`` into an adapter's smart_train.json, and change nothing else.

    encoder: loaded from the folder; it reads ``late`` from now on
    base: where the base is, if not where the folder says
    returns: whether the folder is verified.  It is reloaded and compared in any case; but where it had no verified.json
        the weights were never compared with the trained ones, and comparing them with themselves proves nothing
    Raises AdapterError if the folder is not what was verified, or gives other vectors when it is reloaded; it is then
    as it was before.
    """
    kept = {name: (folder / name).read_bytes() for name in (SETTINGS, VERIFIED) if (folder / name).is_file()}
    verified = load_json(kept[VERIFIED]) if VERIFIED in kept else None
    if verified is not None:
        _check_unchanged(folder)
    _read(encoder, late)
    sides: Inputs = [("query", queries), ("document", documents)]
    ours = [encoder.encode(contents, role) for role, contents in sides]
    block = load_json(kept[SETTINGS])["late"] | {"layer": late.layer, "hybrid": asdict(late.hybrid)}
    try:
        write_late_settings(folder, block)
        fresh = reload(encoder, folder, base)
        report = compare(folder, sides, ours, fresh)
        if verified is not None:
            write_verified(folder, {**verified, **report})
    except BaseException:
        for name, content in kept.items():
            with replacing(folder / name) as part:
                part.write_bytes(content)
        raise
    logger.info("reloaded %s: it reads layer %s and gives the same vectors (%s)", folder, late.layer, report)
    return verified is not None


def _check_unchanged(folder: Path) -> None:
    try:
        changed = changed_files(folder)
    except ValueError as error:
        raise AdapterError(f"{error}; verify it again, then apply") from None
    if changed:
        changes = ", ".join(f"{name} ({how})" for name, how in sorted(changed.items()))
        raise AdapterError(f"{folder} is not what was verified: {changes}; verify it again, then apply")


def _read(encoder: SmartEncoder, late: LateBlock) -> None:
    if isinstance(late.layer, int):
        read_layer(encoder, late.layer)
    encoder.late = replace(encoder.late, hybrid=late.hybrid)
