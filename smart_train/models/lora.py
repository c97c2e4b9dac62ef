"""Add, save, load and merge LoRA adapters, through peft.

Every tensor of an adapter file is checked: a missing, an unexpected or a wrongly sized one is an error, and so is a
file of zeros.  (Adapters that load without an error and do nothing are this field's most reported fault.)
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from smart_train.config.schema import AdapterBlock
from smart_train.core.bounded_json import load_json
from smart_train.core.errors import AdapterError, border
from smart_train.models.hidden_states import find_blocks, is_vision
from smart_train.models.quantization import dequantise
from smart_train.models.safe_loading import nonfinite, read_tensors

__all__ = ["CONFIG", "NAME", "WEIGHTS", "AdapterError", "add_lora", "load_lora", "lora_targets", "save_lora"]

logger = logging.getLogger(__name__)

NAME = "default"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What add_lora sets.  All else of a file must be as peft has it by default: other fields change the base's weights as
# they are read (pissa), import modules by name (megatron_core) or add tensors that nothing here knows.
OURS = ("r", "lora_alpha", "lora_dropout", "target_modules", "base_model_name_or_path", "revision", "task_type")
NOTED = ("inference_mode", "peft_type", "peft_version")


def lora_targets(model: nn.Module, adapter: AdapterBlock) -> str:
    """Return one regular expression over module names: the linear layers that get LoRA.

    adapter.targets: "auto" = every linear layer of the language model's blocks (of ``adapter.layers`` only, where
        given); a list = those of them with these last names; another text = used as it is.  With ``adapter.vision`` the
        vision tower's linear layers are added
    Raises AdapterError where nothing matches.
    """
    if isinstance(adapter.targets, str) and adapter.targets != "auto":
        pattern = adapter.targets
    else:
        wanted = None if adapter.targets == "auto" else set(adapter.targets)
        prefix, blocks = find_blocks(model)
        numbers = range(1, len(blocks) + 1) if adapter.layers is None else adapter.layers
        leaves = {n for block in blocks for n in _linear_names(block) if wanted is None or n.split(".")[-1] in wanted}
        names = {n.split(".")[-1] for block in blocks for n in _linear_names(block)}
        unknown = sorted((wanted or set()) - names)
        if unknown or not leaves:
            what = f"adapter.targets {adapter.targets}: no such linear layer ({', '.join(unknown)})"
            raise AdapterError(f"{what}; the blocks have {sorted(names)}")
        index = "|".join(str(number - 1) for number in numbers)
        inner = "|".join(re.escape(leaf) for leaf in sorted(leaves))
        pattern = rf"(.*\.)?{re.escape(prefix)}\.({index})\.({inner})"
    if adapter.vision:
        towers = [n for n in _linear_names(model) if is_vision(n)]
        if not towers:
            raise AdapterError("adapter.vision is true, but the model has no vision tower; set it to false")
        pattern = f"({pattern})|(.*\\.)?({'|'.join(re.escape(n) for n in towers)})"
    if not any(re.fullmatch(pattern, name) for name, _ in model.named_modules()):
        raise AdapterError(f"adapter.targets {pattern!r} matches no module of {type(model).__name__}")
    return pattern


def _linear_names(module: nn.Module) -> list[str]:
    return [name for name, child in module.named_modules() if isinstance(child, nn.Linear)]


def add_lora(model: nn.Module, adapter: AdapterBlock, base: str, revision: str | None) -> None:
    """Freeze ``model`` and add LoRA (Hu et al. 2021) in place; LoRA weights are float32 over a half-precision base.

    B starts at zero, so that the vectors are the base's own until the first step.
    """
    config = LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=lora_targets(model, adapter),
        base_model_name_or_path=base,
        revision=revision,
        task_type="FEATURE_EXTRACTION",
    )
    _inject(model, config)


def _inject(model: nn.Module, config: LoraConfig) -> None:
    model.requires_grad_(False)
    inject_adapter_in_model(config, model, NAME)
    model.peft_config = {NAME: config}  # type: ignore[assignment]
    if hasattr(model, "_hf_peft_config_loaded"):
        model._hf_peft_config_loaded = True  # type: ignore[assignment]  # transformers then treats it as adapted
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


def lora_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the LoRA parameters of a model by name."""
    return {name: p for name, p in model.named_parameters() if "lora_" in name}


def _lora_state(model: Any, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the adapter's tensors under peft's names.

    No embeddings are resized here, so peft need not ask the Hub whether they were (by default it does, at every save).
    """
    tensors: dict[str, Tensor] = get_peft_model_state_dict(
        model, state_dict=state, adapter_name=NAME, save_embedding_layers=False
    )
    return tensors


def save_lora(model: Any, folder: Path, state: dict[str, Tensor] | None = None) -> None:
    """Write adapter_config.json and adapter_model.safetensors as peft does, so that plain peft reads them.

    state: the gathered full tensors where the model in memory is sharded; None takes the model's own.
    Raises AdapterError, and writes nothing, where a tensor is empty.
    """
    tensors = _lora_state(model, state)
    empty = [name for name, tensor in tensors.items() if tensor.numel() == 0]
    if empty or not tensors:
        raise AdapterError(f"{len(empty)} of {len(tensors)} adapter tensors are empty (sharded?): {empty[:3]}")
    prefixed = {f"base_model.model.{name}": t.detach().cpu().contiguous() for name, t in tensors.items()}
    config = model.peft_config[NAME]
    inference, config.inference_mode = config.inference_mode, True
    try:
        config.save_pretrained(str(folder))
    finally:
        config.inference_mode = inference
    save_file(prefixed, folder / WEIGHTS, metadata={"format": "pt"})


def load_lora(model: Any, folder: Path, trainable: bool = False) -> None:
    """Add the adapter of ``folder`` to the plain base ``model``.

    Raises AdapterError, and leaves the model as it was: no adapter there, keys missing or left over, another shape, or
    B all zero (an untrained or broken file would load without an error and change nothing).
    """
    config = read_config(folder)
    tensors = read_lora(folder)
    if NAME in getattr(model, "peft_config", {}):
        put_lora(model, tensors, folder)
    else:
        trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        try:
            _inject(model, config)
            put_lora(model, tensors, folder)
        except Exception as error:  # peft raises its own on each field that it cannot use
            remove_lora(model)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(trained[name])
            if isinstance(error, AdapterError):
                raise
            raise AdapterError(f"{folder / CONFIG}: {error}; nothing was loaded") from error
    if not trainable:
        for parameter in lora_parameters(model).values():
            parameter.requires_grad_(False)


def remove_lora(model: Any) -> None:
    """Remove LoRA and what it learned: put the base's own layers back in their places."""
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    model.__dict__.pop("peft_config", None)
    if hasattr(model, "_hf_peft_config_loaded"):
        model._hf_peft_config_loaded = False


def read_config(folder: Path) -> LoraConfig:
    """Read adapter_config.json; raise AdapterError where it sets anything that ``add_lora`` does not set."""
    path = folder / CONFIG
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        raise AdapterError(f"{folder}: no adapter there ({CONFIG} and {WEIGHTS} are needed)")
    stored = load_json(path.read_text(encoding="utf8"))
    found = stored.get("peft_type") if isinstance(stored, dict) else None
    if found != "LORA":
        raise AdapterError(f"{path}: peft_type is {found!r}, expected 'LORA'; nothing was loaded")
    usual = LoraConfig().to_dict()
    for key, value in stored.items():
        if key in (*OURS, *NOTED) or value == usual.get(key):
            continue
        if key in usual:
            what = f"{key} is {value!r}, expected {usual[key]!r}, which is all that this package writes"
            raise AdapterError(f"{path}: {what}; nothing was loaded")
        if value:
            logger.warning("%s: %s is of a newer peft and is left out", path, key)
    for key in ("base_model_name_or_path", "revision"):
        if not isinstance(stored.get(key), str | None):
            raise AdapterError(f"{path}: {key} is {stored[key]!r}, expected a text; nothing was loaded")
    with border(path, "not the settings of a LoRA; nothing was loaded", AdapterError):
        return LoraConfig(**{key: stored[key] for key in OURS if key in stored})


def read_lora(folder: Path) -> dict[str, Tensor]:
    """Read the adapter's tensors under the names they have in the model (without the adapter's own).

    Raises AdapterError.
    """
    stored = read_tensors(folder / WEIGHTS)
    tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in stored.items()}
    if len(tensors) < len(stored):
        what = f"{len(stored) - len(tensors)} of {len(stored)} tensors are there twice (base_model.model.)"
        raise AdapterError(f"{folder / WEIGHTS}: {what}; nothing was loaded")
    check_nonzero(tensors, folder / WEIGHTS)
    return tensors


def load_lora_weights(model: Any, folder: Path) -> None:
    """Copy the file's tensors into the LoRA that ``model`` already has; the checks are those of ``load_lora``."""
    put_lora(model, read_lora(folder), folder)


def put_lora(model: Any, stored: dict[str, Tensor], folder: Path) -> None:
    """Copy tensors into the model's LoRA; raise AdapterError where names or shapes differ.  folder: for messages"""
    expected = _lora_state(model)
    missing, extra = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys())
    if missing or extra:
        raise AdapterError(
            f"{folder / WEIGHTS}: {len(missing)} of {len(expected)} tensors are missing ({missing[:2]}) and "
            f"{len(extra)} are not this base's ({extra[:2]}); the adapter belongs to another model or its keys were "
            "renamed; nothing was loaded"
        )
    for name, tensor in stored.items():
        if tensor.shape != expected[name].shape:
            raise AdapterError(
                f"{folder / WEIGHTS}: {name} is {tuple(tensor.shape)}, the base needs {tuple(expected[name].shape)}; "
                "nothing was loaded"
            )
    result: Any = set_peft_model_state_dict(model, stored, adapter_name=NAME)
    if result.unexpected_keys:
        raise AdapterError(f"{folder / WEIGHTS}: peft left out {result.unexpected_keys[:3]}")


def check_nonzero(tensors: dict[str, Tensor], where: Path | str) -> None:
    """Raise AdapterError where every LoRA B is zero: such an adapter changes no vector."""
    bs = [t for name, t in tensors.items() if "lora_B" in name]
    if bs and not any(bool(torch.any(t != 0)) for t in bs):
        raise AdapterError(f"{where}: all {len(bs)} LoRA B matrices are zero, so the adapter changes nothing")


# Merging -------------------------------------------------------------------------------------------------------------


@dataclass
class Rounding:
    """Loss of an update by rounding. lost: share of its length; dtype: of the weights"""

    lost: float
    dtype: str


@torch.no_grad()
def merge_lora(model: Any) -> Rounding:
    """Replace every adapted layer's W by W + scale x B A, in place; afterwards the model has no LoRA.

    The sum is taken in float32 and rounded once.  In bfloat16 (8 bits) that rounding is as large as a small update:
    the vectors then equal the adapter's to about 1e-2, not 1e-5, and ``lost`` says how much of the update is gone.
    A base in 4 bits becomes the weights that these stand for first: the sum is what was trained, at the usual size.
    Raises AdapterError for weights quantised otherwise, and for one that a second layer shares: it would change, too.
    """
    layers: dict[str, Any] = {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    for name, layer in layers.items():
        if owners[id(layer.get_base_layer().weight)] > 1:
            raise AdapterError(
                f"{name}: its weight is shared with another layer (tied), which has no such LoRA, so that a sum would "
                "change both; publish the adapter itself"
            )
    dequantise(model)
    lost = whole = 0.0
    for layer in layers.values():
        weight = layer.get_base_layer().weight
        update = layer.get_delta_weight(NAME).float()
        wanted = weight.float() + update
        weight.copy_(wanted)  # rounded here, where the weight has fewer digits
        wrong = nonfinite([(name, weight)])
        if wrong:
            raise AdapterError(f"{wrong}: the sum is too large for it; merge into a base in float32 or bfloat16")
        lost += float((weight.float() - wanted).square().sum())
        whole += float(update.square().sum())
    remove_lora(model)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return Rounding((lost / whole) ** 0.5 if whole else 0.0, dtype)


def weighted_lora(parts: Sequence[tuple[dict[str, Tensor], float, float]]) -> tuple[dict[str, Tensor], int]:
    """Return one adapter's tensors whose update is exactly the weighted sum of several adapters', and its rank.

    parts: (tensors by peft's names, alpha / r, weight) of each, with the same layers
    Ranks are concatenated: A = [A1; A2 ...], B = [w1 s1 B1, w2 s2 B2 ...], so that B A = sum of w s B A with alpha = r.
    Averaging A and B themselves would give other products (B1 A2 among them).
    Raises AdapterError where the layers or their widths differ.
    """
    names = parts[0][0].keys()
    for tensors, _, _ in parts[1:]:
        other = sorted(names ^ tensors.keys())
        if other:
            what = f"{len(other)} tensors are in only one of them ({other[0]} ...)"
            raise AdapterError(f"the adapters adapt different layers: {what}; only adapters of the same targets merge")
    merged: dict[str, Tensor] = {}
    for name in sorted(names):
        down = "lora_A" in name
        pieces = [t[name].float() if down else t[name].float() * (weight * scale) for t, scale, weight in parts]
        if len({piece.shape[1 if down else 0] for piece in pieces}) > 1:
            raise AdapterError(f"{name}: {[tuple(p.shape) for p in pieces]} do not belong to one layer")
        merged[name] = torch.cat(pieces, dim=0 if down else 1).contiguous()
    wrong = nonfinite(merged.items())
    if wrong:
        raise AdapterError(f"{wrong}: a weight or an alpha of an adapter is too large; nothing was merged")
    ranks = {tensor.shape[0] for name, tensor in merged.items() if "lora_A" in name}
    if len(ranks) != 1:
        raise AdapterError(f"the adapters have different ranks for different layers ({sorted(ranks)} together)")
    return merged, ranks.pop()
