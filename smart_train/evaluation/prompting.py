"""Other prompts for a while: a benchmark's instructions in front of an encoder's inputs, then its own again.

Knows: an encoder's settings.  Does not know: benchmarks, which prompt is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smart_train.model.encoder import SmartEncoder


@contextmanager
def prompted(encoder: SmartEncoder, query: str | None = None, document: str | None = None) -> Iterator[None]:
    """In this block the encoder puts these prompts before its inputs; None = its own stay, "" = none at all.

    A chat model gets a prompt as the system message; any other as text in front, so a space is put between.
    """
    before = encoder.settings
    encoder.settings = replace(
        before,
        query_prompt=before.query_prompt if query is None else _apart(encoder, query),
        document_prompt=before.document_prompt if document is None else _apart(encoder, document),
    )
    try:
        yield
    finally:
        encoder.settings = before


def _apart(encoder: SmartEncoder, prompt: str) -> str:
    bare = not prompt or prompt[-1].isspace() or "message" in encoder.st.modalities
    return prompt if bare else f"{prompt} "
