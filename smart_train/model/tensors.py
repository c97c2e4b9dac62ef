"""Tensors of a safetensors file: the whole file, numbers of a floating kind, every one of them finite.

Knows: safetensors.  Does not know: what the tensors are for.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from smart_train.model.files import AdapterError

FLOATING = (torch.float32, torch.bfloat16, torch.float16)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of a file of trained weights.

    Raises AdapterError where the file is cut short or no safetensors at all (a pickle under that name, say), and names
    the tensor that is of another kind than float32, bfloat16 or float16, or that holds NaN or infinity.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise AdapterError(_broken(path, error)) from None
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATING:
            raise AdapterError(
                f"{path}: {name} is {str(tensor.dtype).removeprefix('torch.')}, expected float32, bfloat16 or float16; "
                "nothing was loaded"
            )
        wrong = int((~torch.isfinite(tensor)).sum())
        if wrong:
            what = f"{wrong} of {tensor.numel()} numbers of {name} are NaN or infinite"
            raise AdapterError(f"{path}: {what}; it was saved from a run that had failed; nothing was loaded")
    return tensors


def names_of(path: Path) -> set[str]:
    """Names of a file's tensors, from its header alone.  Raises AdapterError where it is not a whole file."""
    try:
        with safe_open(path, "pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise AdapterError(_broken(path, error)) from None


def _broken(path: Path, error: Exception) -> str:
    return f"{path} is no whole safetensors file ({error}); download or copy it again; nothing was loaded"
