"""What MTEB files results under: a model's name, what it is, and a revision that tells one set of weights from another.

Knows: MTEB's ModelMeta, an encoder's settings and weights.  Does not know: tasks, scores.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from smart_train.model.encoder import SmartEncoder

KINDS = {"pooled": ("dense", "COSINE"), "late": ("late-interaction", "MAX_SIM"), "hybrid": ("hybrid", "CUSTOM")}


def meta_of(
    encoder: SmartEncoder, mode: str, name: str | None, revision: str | None, task_prompts: str | None = None
) -> Any:
    """MTEB's ModelMeta of one mode.  Mode and template are an experiment's settings, so that results of one model in
    different modes lie beside each other and are never taken for one another's."""
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    kind, similarity = KINDS[mode]
    settings: dict[str, Any] = {"mode": mode}
    if task_prompts is not None:
        settings["task_prompts"] = hashlib.sha256(task_prompts.encode()).hexdigest()[:8]
    overwrites = {
        "name": name or name_of(encoder),
        "revision": revision or digest(encoder),
        "model_type": [kind],
        "similarity_fn_name": ScoringFunction[similarity],
        "framework": ["Sentence Transformers", "PyTorch"],
        "modalities": [one for one in ("text", "image") if one in encoder.st.modalities],
        "n_parameters": sum(weight.numel() for weight in encoder.parameters()),
        "max_tokens": encoder.st.max_seq_length,
        "embed_dim": encoder.pooled_width if mode == "pooled" else encoder.token_width,
        "use_instructions": bool(encoder.prompt("query") or task_prompts),
        "adapted_from": encoder.settings.base if encoder.adapter is not None else None,
        "experiment_kwargs": settings,
    }
    return ModelMeta.create_empty(overwrites=overwrites)


def name_of(encoder: SmartEncoder) -> str:
    """organisation/model of the base; local/NAME for a folder."""
    base = encoder.settings.base
    if encoder.commit is not None and base.count("/") == 1:
        return base
    return f"local/{Path(encoder.place).name}"


def digest(encoder: SmartEncoder) -> str:
    """16 hexadecimal digits over all that changes a score: the base's identity, settings, prompts, hybrid weights, and
    the weights that are not the base's (LoRA and head; all of them where all were trained)."""
    from smart_train.model.settings import modules_of, settings_of

    told = {key: value for key, value in settings_of(encoder).items() if key not in ("versions", "revision")}
    told["modules"] = modules_of(encoder)
    found = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    whole = encoder.adapter is not None and encoder.adapter.kind == "full"
    for key, weight in sorted(encoder.state_dict().items()):
        if whole or "lora_" in key or key.startswith("head."):
            found.update(key.encode())
            found.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
