"""Adapters as after some steps, without the steps; and their files, changed."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from smart_train.config.schema import AdapterBlock, LateBlock, ModelBlock
from smart_train.models.encoder import SmartEncoder


def trained(base: str | Path, adapter: AdapterBlock, late: LateBlock | None = None, **model) -> SmartEncoder:
    """An encoder whose trained tensors have all moved, as after some steps."""
    encoder = SmartEncoder(str(base), model=ModelBlock(**model), late=late, adapter=adapter, device="cpu")
    generator = torch.Generator().manual_seed(7)
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            step = 0.1 if "lora" in name or "head" in name else 0.02
            parameter.data += step * torch.randn(parameter.shape, generator=generator)
    return encoder


def rewrite(path: Path, change) -> None:
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
