"""Hold a base in 4 bits while LoRA is trained on it (QLoRA, Dettmers et al. 2023), and turn it back into weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smart_train.core.bounded_json import load_json
from smart_train.core.errors import AdapterError, BaseNotFound, Setting
from smart_train.core.extras import how_to_install, installed

FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
BITS = 4 + 0.127  # a weight: NF4 in blocks of 64, whose scales are quantised to 8 bits themselves


def four_bits(base: str, dtype: torch.dtype) -> Any:
    """Return transformers' BitsAndBytesConfig.

    dtype: in which layers compute.  Raises BaseNotFound where bitsandbytes is not installed.
    """
    if not installed("bitsandbytes"):
        what = f"{base}: to hold it in 4 bits the package bitsandbytes is needed, and it is missing"
        whole = Setting("model.quantisation", "none", python='pass quantisation="none"')
        fix = (
            f"{how_to_install('bitsandbytes')}, or ",
            whole,
            " (an adapter of 4 bits has other vectors then)",
        )
        raise BaseNotFound(what, fix)
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**FOUR_BITS, bnb_4bit_compute_dtype=dtype)


def write_quantization_config(folder: Path, model: Any) -> None:
    """Write into a saved adapter that plain sentence-transformers holds the base in 4 bits as well.

    Without it, it would take the unquantised base and silently give other vectors.
    """
    path = folder / "sentence_bert_config.json"
    dtype = str(model.config.quantization_config.bnb_4bit_compute_dtype).removeprefix("torch.")
    content = load_json(path.read_text(encoding="utf8"))
    settings = {"quant_method": "bitsandbytes", **FOUR_BITS, "bnb_4bit_compute_dtype": dtype}
    content["model_kwargs"] = {**content.get("model_kwargs", {}), "quantization_config": settings}
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf8")


def same_kernel(model: Any) -> None:
    """Keep bitsandbytes to one kernel for training and inference.

    On CPUs with bfloat16 units it would repack weights at the first forward without a gradient: that rounds in another
    way, and cannot be undone for training.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def quantised(model: Any) -> str | None:
    """Return how the model's weights are quantised ("4bit" = by bitsandbytes); None where they are not."""
    settings = getattr(model.config, "quantization_config", None)
    if settings is None and not getattr(model, "is_quantized", False):
        return None
    values = settings if isinstance(settings, dict) else getattr(settings, "__dict__", {})
    method = getattr(values.get("quant_method"), "value", values.get("quant_method"))
    if method == "bitsandbytes" and (values.get("load_in_4bit") or values.get("_load_in_4bit")):
        return "4bit"
    return str(method or "in an unknown way")


@torch.no_grad()
def dequantise(model: Any) -> None:
    """Replace 4-bit layers by linear layers with the weights that they compute with, in place.

    An adapter was trained on these, and not on the weights before quantisation.  LoRA may be around the layers.
    Raises AdapterError for other ways of quantising, whose products are rounded as well (8 bits, fp8).
    """
    method = quantised(model)
    if method is None:
        return
    if method != "4bit":
        raise AdapterError(
            f"the base is quantised ({method}), and its weights have too few values to add an update to: most of it "
            "would be rounded away; name the same base unquantised (--base FOLDER_OR_ID), and compare both with "
            "smart-train evaluate, since the adapter was trained on the quantised one"
        )
    import bitsandbytes

    for name, module in list(model.named_modules()):
        if isinstance(module, bitsandbytes.nn.Linear4bit) and not hasattr(module, "base_layer"):
            parent, _, child = name.rpartition(".")
            model.get_submodule(parent)._modules[child] = _linear(module, bitsandbytes)
    model.config.__dict__.pop("quantization_config", None)
    model.__dict__.pop("hf_quantizer", None)
    model.is_quantized = model.is_loaded_in_4bit = False


def _linear(module: Any, bitsandbytes: Any) -> nn.Linear:
    dtype = module.compute_dtype or torch.float32
    weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state).to(dtype)
    linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if module.bias is not None:
        linear.bias = nn.Parameter(module.bias.data, requires_grad=False)
    return linear
