"""A piece of a text on its way to a page.

Knows: nothing else.  Does not know: where it comes from (markup.py, texts.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Block:
    """A heading (level 0 = outermost), a paragraph, code whose spaces count, or the end of a page."""

    kind: Literal["heading", "text", "code", "break"]
    text: str = ""
    level: int = 0


def flat(text: str) -> str:
    """One line, single spaces."""
    return " ".join(text.split())
