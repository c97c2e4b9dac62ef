"""What verified.json vouches for: every file of an encoder's folder that could change a vector, by its hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smart_train.core.atomic_io import replacing
from smart_train.models.safe_loading import SETTINGS, VERIFIED

SUFFIXES = (".safetensors", ".json", ".jinja", ".model")  # the last is SentencePiece's
NAMES = ("vocab.txt", "merges.txt")


FIGURES = "metrics.json"  # lies beside the encoder where a published one was downloaded: it changes nothing
TEMPLATES = "additional_chat_templates"  # where transformers keeps those beside the usual one


def parts(folder: Path) -> tuple[list[Path], list[Path]]:
    """(files that make the encoder, other files and links), of the root and of the modules' folders by their kind.

    Raises ValueError where modules.json is no list of modules.
    """
    modules = folder / "modules.json"
    try:
        listed = json.loads(modules.read_text(encoding="utf8")) if modules.is_file() else []
        names = [str(module["path"]) for module in listed if module["path"]]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{modules} is no list of modules ({error}); it was written by half or edited") from None
    places = [folder, *(folder / name for name in (*names, TEMPLATES))]
    wanted: list[Path] = []
    others: list[Path] = []
    for path in sorted(p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()):
        fits = path.parent in places and (path.suffix in SUFFIXES or path.name in NAMES) and path != folder / FIGURES
        (wanted if fits else others).append(path)
    return wanted, others


def seals(folder: Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Path in ``folder`` -> SHA-256 of every file that makes the encoder, read whole (about a second per gigabyte).

    known: hashes that were taken just now
    """
    found = dict(known or {})
    names = [path.relative_to(folder).as_posix() for path in parts(folder)[0] if path.name != VERIFIED]
    for name in names:
        if name not in found:
            with (folder / name).open("rb") as stream:
                found[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return {name: found[name] for name in names}


def broken(folder: Path) -> dict[str, str]:
    """Path in ``folder`` -> "changed", "missing" or "new" since verified.json was written; {} where nothing is.

    Raises ValueError where verified.json is of a version that hashed the weights alone, or is none.
    """
    path = folder / VERIFIED
    try:
        then = json.loads(path.read_text(encoding="utf8")).get("files")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no JSON that was written here ({error})") from None
    if not isinstance(then, dict):
        raise ValueError(f"{path} is of an older version, which looked at weights alone")
    now = seals(folder)
    found = {name: "changed" if name in now else "missing" for name in then if then[name] != now.get(name)}
    return found | {name: "new" for name in now if name not in then}


def write_late(folder: Path, late: dict[str, Any]) -> None:
    """Rewrites the ``late`` block of smart_train.json alone.

    The seal moves along where the hybrid's weights and constants are all that changed: they change a score and no
    vector, and are fitted when the vectors have been verified.  Where anything else did, verified.json is taken away.
    """
    path, verified = folder / SETTINGS, folder / VERIFIED
    stored = json.loads(path.read_text(encoding="utf8"))
    report = json.loads(verified.read_text(encoding="utf8")) if verified.is_file() else {}
    sealed = report.get("files", {}).get(SETTINGS) == _hash(path.read_bytes())
    kept = sealed and _without_hybrid(stored["late"]) == _without_hybrid(late)
    content = (json.dumps({**stored, "late": late}, indent=2) + "\n").encode()
    if not kept:
        verified.unlink(missing_ok=True)
    with replacing(path) as part:
        part.write_bytes(content)
    if kept:
        report["files"][SETTINGS] = _hash(content)
        with replacing(verified) as part:
            part.write_text(json.dumps(report, indent=2) + "\n", encoding="utf8")


def _without_hybrid(late: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in late.items() if key != "hybrid"}


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
