"""A probe's recommendation made to last: in an adapter's folder, or as a training-free encoder's folder of its own.

Knows: encoders' folders.  Does not know: how a reading was chosen.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from smart_train.blocks import LateBlock
from smart_train.model.encoder import SmartEncoder
from smart_train.model.every_layer import read_layer
from smart_train.model.files import SETTINGS, VERIFIED, AdapterError
from smart_train.model.folder import Sides, compare, load, save, seal, verify
from smart_train.model.sealing import broken, write_late
from smart_train.saving import replacing

logger = logging.getLogger(__name__)


def as_folder(encoder: SmartEncoder, late: LateBlock, folder: Path, queries: list[Any], documents: list[Any]) -> Path:
    """Writes the plain base with ``late`` as a folder that ``SmartEncoder.from_pretrained`` loads, and verifies it.

    The folder holds settings and no weights: the base is named in it, by its fingerprint or its commit.
    queries, documents: some contents to compare with; encoder: without an adapter; it reads ``late`` from now on
    Raises AdapterError where the folder holds something else, and as ``verify`` does.
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
    """Puts layer, weights and constants of ``late`` into an adapter's smart_train.json, and nothing else.

    encoder: what was loaded from the folder; it reads ``late`` from now on.  base: where the base lies, if not where
        the folder says
    returns: whether the folder is verified.  It is reloaded and compared in any case; but where it had no verified.json
        the weights were never compared with what was trained, and a comparison with themselves makes no proof of it
    Raises AdapterError where the folder is not what was verified, and where it gives other vectors when it is reloaded;
    it is as it was then.
    """
    kept = {name: (folder / name).read_bytes() for name in (SETTINGS, VERIFIED) if (folder / name).is_file()}
    verified = json.loads(kept[VERIFIED]) if VERIFIED in kept else None
    if verified is not None:
        _check_seal(folder)
    _read(encoder, late)
    sides: Sides = [("query", queries), ("document", documents)]
    ours = [encoder.encode(contents, role) for role, contents in sides]
    block = json.loads(kept[SETTINGS])["late"] | {"layer": late.layer, "hybrid": asdict(late.hybrid)}
    try:
        write_late(folder, block)
        own = encoder.settings
        fresh = load(
            str(folder), device=encoder.device, base=base, dtype=own.dtype, attention=own.attention,
            trust_remote_code=own.trust_remote_code,
        )  # fmt: skip
        report = compare(folder, sides, ours, fresh)
        if verified is not None:
            seal(folder, {**verified, **report})
    except BaseException:
        for name, content in kept.items():
            with replacing(folder / name) as part:
                part.write_bytes(content)
        raise
    logger.info("reloaded %s: it reads layer %s, the same vectors (%s)", folder, late.layer, report)
    return verified is not None


def _check_seal(folder: Path) -> None:
    try:
        changed = broken(folder)
    except ValueError as error:
        raise AdapterError(f"{error}; verify it again, then apply") from None
    if changed:
        told = ", ".join(f"{name} ({how})" for name, how in sorted(changed.items()))
        raise AdapterError(f"{folder} is not what was verified: {told}; verify it again, then apply")


def _read(encoder: SmartEncoder, late: LateBlock) -> None:
    if isinstance(late.layer, int):
        read_layer(encoder, late.layer)
    encoder.late = replace(encoder.late, hybrid=late.hybrid)
