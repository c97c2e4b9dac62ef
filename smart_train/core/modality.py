"""What an encoder is given, seen from outside: its kind and how long it is."""

from __future__ import annotations

from typing import Any


def kind(content: Any) -> str:
    """text, image, or image+text: a forward takes rows of one kind."""
    if isinstance(content, dict):
        return "+".join(sorted(content))
    return "text" if isinstance(content, str) else "image"


def length(content: Any) -> int:
    """What padding and memory follow: characters of a text, pixels of an image (of both, the pixels: they weigh more).

    A path of an image counts 0, or its text: nothing is opened here.
    """
    if isinstance(content, str):
        return len(content)
    image = content.get("image") if isinstance(content, dict) else content
    pixels = getattr(image, "width", 0) * getattr(image, "height", 0)
    return pixels or (len(content.get("text") or "") if isinstance(content, dict) else 0)
