"""Stable hashes of ids and contents, and the one error of this room."""

from __future__ import annotations

from hashlib import blake2b


def hash_id(text: str) -> int:
    """A signed 64-bit hash that is the same in every process and on every machine (BLAKE2b, RFC 7693), so that
    ranks can compare documents by one int64.  Two of a million ids collide with a chance of about 3e-8."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big", signed=True)


def content_id(kind: str, content: str | bytes) -> str:
    """An id made of the content: ``kind-`` and 80 bits in hexadecimal; equal content, equal id."""
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return f"{kind}-{blake2b(raw, digest_size=10).hexdigest()}"


def some(names: list[str], most: int = 5) -> str:
    """The first few of many names, for a message: ``a, b, c and 12 more``."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
