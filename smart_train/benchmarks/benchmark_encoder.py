"""Identify an encoder by everything that changes its scores, and give it other prompts for a while."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from smart_train.models.saving import modules_of, settings_of

if TYPE_CHECKING:
    from smart_train.models.encoder import SmartEncoder


# Keys of the settings that 0.1 did not have. They count where they are set, so that results of 0.1 are found again.
ADDED = {"late": ("keep",), "model": ("pooling",)}


def encoder_hash(encoder: SmartEncoder) -> str:
    """Return 16 hexadecimal digits over all that changes a score, under which benchmark results are filed.

    These are the base's identity, settings, prompts, hybrid weights, and the weights that are not the base's (LoRA and
    head; all of them where all were trained).
    """
    settings = {key: value for key, value in settings_of(encoder).items() if key not in ("versions", "revision")}
    settings["modules"] = modules_of(encoder)
    settings["processing"].pop("pooling", None)  # 0.1 did not have it, and "modules" says the same
    for block, keys in ADDED.items():
        unset = [key for key in keys if not settings[block].get(key)]
        settings[block] = {key: value for key, value in settings[block].items() if key not in unset}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    full = encoder.adapter is not None and encoder.adapter.kind == "full"
    for key, weight in sorted(encoder.state_dict().items()):
        if full or "lora_" in key or key.startswith("head."):
            digest.update(key.encode())
            digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def prompted(encoder: SmartEncoder, query: str | None = None, document: str | None = None) -> Iterator[None]:
    """In this block, put these prompts before an encoder's inputs; None = its own, "" = no prompt.

    A chat model gets a prompt as the system message. Any other model gets it as text in front, so a space is added.
    """
    before = encoder.settings
    encoder.settings = replace(
        before,
        query_prompt=before.query_prompt if query is None else _with_space(encoder, query),
        document_prompt=before.document_prompt if document is None else _with_space(encoder, document),
    )
    try:
        yield
    finally:
        encoder.settings = before


def _with_space(encoder: SmartEncoder, prompt: str) -> str:
    complete = not prompt or prompt[-1].isspace() or "message" in encoder.st.modalities
    return prompt if complete else f"{prompt} "
