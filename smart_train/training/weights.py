"""Keep trained weights in float32, and load those of a saved folder into an encoder, under any engine."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from smart_train.config.recipe import plain
from smart_train.config.schema import LateBlock
from smart_train.core.bounded_json import load_json
from smart_train.models.encoder import SmartEncoder
from smart_train.models.heads import parameter_name
from smart_train.models.lora import NAME, WEIGHTS, AdapterError
from smart_train.models.safe_loading import HEAD, SETTINGS
from smart_train.models.saving import base_identity, check_base, check_processing
from smart_train.training.engine import reshard

ADAPTER_KEYS = ("kind", "r", "alpha", "targets", "layers", "vision")  # must be equal; dropout may change
LATE_KEYS = ("layer", "norm", "head", "dim", "keep", "drop")
HALF = (torch.bfloat16, torch.float16)

logger = logging.getLogger(__name__)


def train_in_float32(encoder: SmartEncoder) -> None:
    """Hold every trained weight in float32, whatever the base is stored in, and log it where that changes something.

    bfloat16 has 8 bits: a weight near 1 cannot take a step below 2^-9, and most updates of a fine-tuning are smaller,
    so they would be rounded away.  Where the backbone itself is trained, all of it becomes float32 (a frozen layer
    between trained ones computes in their dtype), and ``model.dtype`` is float32 from then on, so that what is
    saved is read as it was trained.  Frozen weights under LoRA or a head stay as they are stored.
    """
    halves = {p.dtype for p in encoder.parameters() if p.requires_grad and p.dtype in HALF}
    if not halves:
        return
    if encoder.adapter is not None and encoder.adapter.kind == "full":
        encoder.st.float()
        if encoder.settings.dtype != "auto":
            encoder.settings.dtype = "float32"
    for parameter in encoder.parameters():
        if parameter.requires_grad and parameter.dtype in HALF:
            parameter.data = parameter.data.float()
    stored = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in halves))
    logger.info(
        "%s is in %s; the trained weights are float32 (16 bytes each with gradient and Adam's moments) and are saved "
        "so; training.bf16: true computes in bfloat16 and keeps them in float32",
        *(encoder.settings.base, stored),
    )


def load_weights(encoder: SmartEncoder, folder: Path) -> None:
    """Load a saved folder's trained tensors into the encoder; every rank must call it.

    Raises:
        AdapterError: the folder is of another base or adapter, or a tensor is missing.  Nothing was loaded then.
    """
    tensors, buffers = read_weights(encoder, folder)
    reshard(encoder)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name in tensors:
                _copy_into(parameter, tensors[name])
        for name, buffer in encoder.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])


def read_weights(encoder: SmartEncoder, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a folder's trained tensors by the encoder's parameter names, and its buffers.

    Raises AdapterError as ``load_weights``.
    """
    stored: dict[str, Any] = load_json((folder / SETTINGS).read_text(encoding="utf8"))
    check_adapter(encoder, stored, folder)
    check_processing(encoder, stored, folder)
    kind = encoder.adapter.kind if encoder.adapter is not None else None
    if kind != "full":
        check_base(stored, base_identity(encoder), folder)
    found: dict[str, Tensor] = {}
    if (folder / HEAD).is_file():
        found |= {f"head.{parameter_name(name)}": tensor for name, tensor in load_file(folder / HEAD).items()}
    kept = {f"head.{name}" for name, _ in encoder.head.named_buffers()}
    buffers = {name: found.pop(name) for name in kept & found.keys()}
    if kind == "lora":
        found |= _lora(folder)
    elif kind == "full":
        trust = encoder.settings.trust_remote_code
        names = encoder.late.extensions
        fresh = SmartEncoder.from_pretrained(
            folder, device="cpu", trust_remote_code=trust, trust_extensions=names, checkpoint=True
        )
        found |= {name: p.detach() for name, p in fresh.named_parameters() if not name.startswith("head.")}
        buffers |= dict(fresh.named_buffers())
    _check_tensors(encoder, found, folder, full=kind == "full")
    return found, buffers


def _lora(folder: Path) -> dict[str, Tensor]:
    """Read LoRA tensors.  peft's files leave out the prefix of its model class and the name of the adapter."""
    found = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        module, part, last = name.removeprefix("base_model.model.").rsplit(".", 2)
        found[f"st.0.model.{module}.{part}.{NAME}.{last}"] = tensor
    return found


def _check_tensors(encoder: SmartEncoder, found: dict[str, Tensor], folder: Path, full: bool) -> None:
    parameters = dict(encoder.named_parameters())
    wanted = {n: _full_shape(p) for n, p in parameters.items() if full or p.requires_grad or n.startswith("head.")}
    have = {name: tuple(tensor.shape) for name, tensor in found.items()}
    missing, extra = sorted(wanted.keys() - have.keys()), sorted(have.keys() - wanted.keys())
    sizes = [f"{n} is {have[n]}, here {wanted[n]}" for n in sorted(wanted.keys() & have.keys()) if wanted[n] != have[n]]
    if missing or extra or sizes:
        raise AdapterError(
            f"{folder}: {len(missing)} of {len(wanted)} trained tensors are missing ({missing[:2]}), {len(extra)} are "
            f"not this model's ({extra[:2]}), {len(sizes)} have another size ({sizes[:2]}); nothing was loaded"
        )


def _full_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Return the shape of the whole tensor, of which this rank may hold a share."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _copy_into(parameter: nn.Parameter, tensor: Tensor) -> None:
    """Copy a whole tensor into a parameter of which this rank may hold a share; every rank must call it."""
    if isinstance(parameter, DTensor):
        local = tensor.to(parameter.device, parameter.dtype)
        parameter.copy_(distribute_tensor(local, parameter.device_mesh, parameter.placements))
    elif hasattr(parameter, "ds_id"):
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(tensor)
    else:
        parameter.copy_(tensor)


def check_adapter(encoder: SmartEncoder, stored: dict[str, Any], folder: Path) -> None:
    """Raise AdapterError where the folder's adapter or late head differs from the encoder's."""
    ours = {"adapter": asdict(encoder.adapter) if encoder.adapter is not None else {}, "late": plain(encoder.late)}
    ours = json.loads(json.dumps(ours))
    defaults = {"adapter": {}, "late": plain(LateBlock())}  # of keys that the folder's version did not have
    found = []
    for block, names in (("adapter", ADAPTER_KEYS), ("late", LATE_KEYS)):
        was, now = (defaults[block] | stored[block] if stored[block] else {}), ours[block]
        found += [f"{block}.{n} was {was.get(n)}, is {now.get(n)}" for n in names if was.get(n) != now.get(n)]
    if found:
        raise AdapterError(
            f"{folder} was trained with other settings: {'; '.join(found)}; resume with the recipe it was trained "
            "with, or start a new run; nothing was loaded"
        )
