"""Find the modality and size of queries and documents, and open their images as encoders read them.

A content is a text, a PIL image, a pathlib.Path of an image, or {"text": ..., "image": ...}.
"""

from __future__ import annotations

from typing import Any


def modality(content: Any) -> str:
    """Return "text", "image" or "image+text": a forward takes rows of one modality.

    >>> modality("a passage"), modality({"text": "a caption", "image": None})
    ('text', 'image+text')
    """
    if isinstance(content, dict):
        return "+".join(sorted(content))
    return "text" if isinstance(content, str) else "image"


def content_size(content: Any) -> int:
    """Return what padding and memory follow: characters of a text, pixels of an image (pixels where there are both).

    A path of an image counts 0, or its text: nothing is opened here.

    >>> content_size("a passage")
    9
    """
    if isinstance(content, str):
        return len(content)
    image = content.get("image") if isinstance(content, dict) else content
    pixels = getattr(image, "width", 0) * getattr(image, "height", 0)
    return pixels or (len(content.get("text") or "") if isinstance(content, dict) else 0)


def is_unicode(text: str) -> bool:
    """Return whether a text can be stored and tokenized: half of a surrogate pair, which JSON can hold, cannot.

    >>> is_unicode("für"), is_unicode("\\ud800")
    (True, False)
    """
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def text_fault(text: str) -> str | None:
    """Return what a text holds that no tokenizer can read, with the place of its first character; None where it is
    sound.

    >>> text_fault("f\\u00fcr"), text_fault("a\\0b")
    (None, 'a NUL (character 2 is a zero byte)')
    """
    if not is_unicode(text):
        return "half of a surrogate pair, which is no character"
    return f"a NUL (character {text.index(chr(0)) + 1} is a zero byte)" if "\0" in text else None
