"""Which hidden states, their norm, the learned mix and the head.

Layer numbers mean one thing everywhere: 0 = output of the embeddings, k = output of block k, -1 = last =
``last_hidden_state`` (after the final norm, where the model has one).  Block n of n is the last layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

VISION = ("visual", "vision", "image", "video", "audio")


def text_config(config: Any) -> Any:
    """The configuration of the language model inside ``config`` (itself for a text model)."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def is_vision(name: str) -> bool:
    """Whether a module of this dotted name belongs to a vision (or audio) tower."""
    return any(word in part for part in name.split(".") for word in VISION)


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The dotted name and the list of the language model's transformer blocks.

    Found as the one ModuleList outside the vision tower that is as long as the configuration says.
    Raises ValueError where there is none.
    """
    count = getattr(text_config(model.config), "num_hidden_layers", None)
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and not is_vision(n)]
    for name, modules in lists:
        if len(modules) == count:
            return name, modules
    seen = ", ".join(f"{n} ({len(m)})" for n, m in lists) or "none"
    raise ValueError(
        f"{type(model).__name__}: no list of {count} transformer blocks was found (module lists: {seen}); "
        "use late.layer -1, and give adapter.targets as a regular expression"
    )


def set_dropout(model: nn.Module, rate: float) -> None:
    """Sets every dropout of the model, those that attention functions are handed as a number too."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        for name in ("attention_dropout", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, rate)


def resolve_layers(layer: int | list[int], count: int) -> list[int]:
    """Layer numbers in 0..count-1 or -1; block ``count`` is -1.  Raises ValueError for one the model lacks."""
    layers = [layer] if isinstance(layer, int) else list(layer)
    if not layers:
        raise ValueError("late.layer is an empty list; name at least one layer, -1 is the last")
    for number in layers:
        if not -count - 1 <= number <= count:
            raise ValueError(f"late.layer {number}: the model has layers 0 (embeddings) to {count}, or -1 for the last")
    resolved = [number % (count + 1) for number in layers]
    return [-1 if number == count else number for number in resolved]


def find_final_norm(model: nn.Module, run: Callable[[], Any]) -> nn.Module | None:
    """The norm between the last block and ``last_hidden_state``; None for a post-norm model, which has none.

    It is found by value, not by name: ``run`` makes one small forward and returns its ``last_hidden_state``, and the
    norm is the module that turns the last block's output into it.
    Raises ValueError where no module does.
    """
    name, blocks = find_blocks(model)
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = blocks[-1].register_forward_hook(keep)
    try:
        with torch.no_grad():
            last = run()
    finally:
        handle.remove()
    block = seen[-1]
    if _same(block, last):
        return None
    parent = model.get_submodule(name.rpartition(".")[0])
    width = block.shape[-1]
    for child in parent.children():
        weight = getattr(child, "weight", None)
        if "norm" in type(child).__name__.lower() and weight is not None and weight.shape == (width,):
            with torch.no_grad():
                if _same(child(block), last):
                    return child
    raise ValueError(
        f"{type(model).__name__}: no module of {name.rpartition('.')[0] or 'the model'} turns the last block's output "
        "into last_hidden_state, so the final norm is unknown; set late.norm to none, or late.layer to -1"
    )


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-4))
