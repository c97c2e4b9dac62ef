"""The files of a saved encoder's folder: their names, and hashes that tell one set of weights from another.

Knows: files.  Does not know: torch, encoders, the Hub.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

SETTINGS, HEAD, VERIFIED = "smart_train.json", "late_head.safetensors", "verified.json"


class AdapterError(ValueError):
    """An adapter that does not fit its base or its file, with what was expected and what was found."""


def fingerprint(folder: Path) -> str:
    """SHA-256 over names, sizes and 64 KiB pieces (first, last and 14 between) of a folder's weight files."""
    digest = hashlib.sha256()
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".bin") and p.is_file())
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}:{size}".encode())
        with path.open("rb") as stream:
            for part in range(16):
                stream.seek(max(0, (size - 65536) * part // 15))
                digest.update(stream.read(65536))
    return digest.hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """Path in ``folder`` -> SHA-256 of every weight file, read whole (about a second per gigabyte)."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb") as stream:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found
