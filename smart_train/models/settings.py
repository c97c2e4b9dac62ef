"""smart_train.json: everything that changes a vector or a score, beside the weights it belongs to."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from smart_train.config.recipe import plain
from smart_train.config.schema import AdapterBlock, HybridBlock, LateBlock, ModelBlock
from smart_train.config.typed_values import Problem, fit
from smart_train.core.atomic_io import replacing
from smart_train.core.errors import AdapterError, written
from smart_train.models.safe_loading import SETTINGS, fingerprint

if TYPE_CHECKING:
    from smart_train.models.encoder import SmartEncoder

FORMAT = 1
VERSIONS = ("smart-train", "torch", "transformers", "peft", "sentence-transformers")


def base_identity(encoder: SmartEncoder) -> dict[str, Any]:
    """{"base", "revision", "commit", "fingerprint", "architecture", "hidden_size"}: what tells one base from another.

    The fingerprint is a SHA-256 over the base's weight files' headers and 64 KiB samples of each (a local folder);
    a Hub model is told by its commit.
    """
    settings = encoder.settings
    folder = Path(encoder.place)
    return {
        "base": settings.base,
        "revision": settings.revision,
        "commit": encoder.commit,
        "fingerprint": fingerprint(folder) if folder.is_dir() else None,
        "architecture": type(encoder.backbone).__name__,
        "hidden_size": encoder.hidden_size,
    }


def settings_of(encoder: SmartEncoder) -> dict[str, Any]:
    """Everything that changes a vector or a score, as JSON."""
    model = asdict(encoder.settings)
    model["query_prompt"], model["document_prompt"] = encoder.prompt("query") or "", encoder.prompt("document") or ""
    return {
        "format": FORMAT,
        **base_identity(encoder),
        "model": model,
        "late": plain(encoder.late),
        "adapter": asdict(encoder.adapter) if encoder.adapter is not None else None,
        "processing": processing_of(encoder),
        "versions": {name: _version(name) for name in VERSIONS},
    }


def processing_of(encoder: SmartEncoder) -> dict[str, Any]:
    """What the base brings along that changes a vector, and that its weights do not tell: the longest text, the chat
    template (by hash), the pixel budget in force and the side of the padding."""
    processor, tokenizer = encoder.transformer.processor, encoder.tokenizer
    template = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)  # as it is chosen
    images = getattr(processor, "image_processor", None)
    size = getattr(images, "size", None)
    return {
        "max_tokens": encoder.st.max_seq_length,
        "chat_template": _digest(template),
        "pixels": {k: v for k, v in dict(size).items() if v is not None} if size is not None else None,
        "padding_side": tokenizer.padding_side,
    }


def modules_of(encoder: SmartEncoder) -> dict[str, Any]:
    """What comes behind the backbone in the base's folder (pooling, dense layers, normalisation), by its settings, as
    JSON: a pooled vector follows from them, and neither a fingerprint nor ``settings_of`` tells them."""
    behind: list[Any] = list(encoder.st)[1:]
    return {
        f"{place} {type(module).__name__}": json.loads(json.dumps(module.get_config_dict(), default=str))
        for place, module in enumerate(behind, 1)
    }


def write_settings(encoder: SmartEncoder, folder: Path, **more: Any) -> None:
    """smart_train.json, through a temporary file: never half of it.

    more: what else is to be told there; it changes no vector.  "export", of a file that is there, stays.
    """
    path = folder / SETTINGS
    before = json.loads(path.read_text(encoding="utf8")) if path.is_file() else {}
    more = {**({"export": before["export"]} if "export" in before else {}), **more}
    with replacing(path) as part:
        part.write_text(json.dumps({**settings_of(encoder), **more}, indent=2) + "\n", encoding="utf8")


def read_settings(folder: Path) -> dict[str, Any]:
    """What smart_train.json says, with its blocks as dataclasses under "model", "late" and "adapter" (or None there).

    Raises AdapterError: another format, a key that is missing or that this version does not know, a value that is none.
    """
    path = folder / SETTINGS
    try:
        stored = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise AdapterError(f"{path} is no JSON ({error}); download or copy it again; nothing was loaded") from None
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        found = stored.get("format") if isinstance(stored, dict) else type(stored).__name__
        raise AdapterError(f"{path}: format {found}, this version reads {FORMAT}; upgrade; nothing was loaded")
    wanted = ("base", "commit", "fingerprint", "architecture", "hidden_size", "model", "late", "adapter", "processing")
    missing = [key for key in wanted if key not in stored]
    if missing:
        raise AdapterError(f"{path}: {', '.join(missing)} missing; save the adapter again; nothing was loaded")
    if not isinstance(stored["processing"], dict):
        raise AdapterError(f"{path}: processing is no block of keys; save the adapter again; nothing was loaded")
    late = _block(LateBlock, stored["late"], "late", path)
    late.hybrid = _block(HybridBlock, stored["late"].get("hybrid"), "late.hybrid", path)
    model = _block(ModelBlock, stored["model"], "model", path)
    adapter = None if stored["adapter"] is None else _block(AdapterBlock, stored["adapter"], "adapter", path)
    return {**stored, "model": model, "late": late, "adapter": adapter}


def _block(kind: type, stored: Any, name: str, path: Path) -> Any:
    if not isinstance(stored, dict):
        raise AdapterError(f"{path}: {name} is no block of keys ({type(stored).__name__}); nothing was loaded")
    unknown = sorted(stored.keys() - {one.name for one in fields(kind)})
    if unknown:
        what = f"{name} has {', '.join(unknown)}, which this version does not know"
        raise AdapterError(f"{path}: {what}; upgrade; nothing was loaded")
    problems: list[Problem] = []
    for key, hint in get_type_hints(kind).items():
        if key in stored and not is_dataclass(hint):
            fit(stored[key], hint, f"{name}.{key}", problems)
    if problems:  # a head or a way of scaling that this version lacks must not become one that it has
        told = "; ".join(f"{one.key} {written(one.what)}" for one in problems)
        raise AdapterError(f"{path}: {told}; upgrade, or correct it; nothing was loaded")
    return kind(**stored)


def _digest(text: Any) -> str | None:
    return None if text is None else hashlib.sha256(str(text).encode()).hexdigest()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except ImportError:
        return None
