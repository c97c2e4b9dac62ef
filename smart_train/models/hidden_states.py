"""Find the hidden states of a backbone: its transformer blocks, its layers by number, its final norm.

Layer numbers mean one thing everywhere: 0 = output of the embeddings, k = output of block k, -1 = last =
``last_hidden_state`` (after the final norm, where the model has one).  Block n of n is the last layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from smart_train.core.errors import SettingError

VISION = ("visual", "vision", "image", "video", "audio")


def text_config(config: Any) -> Any:
    """Return the configuration of the language model inside ``config`` (itself for a text model)."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def is_vision(name: str) -> bool:
    """Return whether a module of this dotted name belongs to a vision (or audio) tower.

    >>> is_vision("visual.blocks.0"), is_vision("language_model.layers.0")
    (True, False)
    """
    return any(word in part for part in name.split(".") for word in VISION)


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the dotted name and the list of the language model's transformer blocks.

    They are the ModuleList outside the vision tower that is as long as the configuration says.
    Raises SettingError where there is none.
    """
    count = getattr(text_config(model.config), "num_hidden_layers", None)
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and not is_vision(n)]
    for name, modules in lists:
        if len(modules) == count:
            return name, modules
    seen = ", ".join(f"{n} ({len(m)})" for n, m in lists) or "none"
    what = f"{type(model).__name__} has no list of {count} transformer blocks that could be found (its lists: {seen})"
    raise SettingError("model.base", what, "use late.layer -1, and give adapter.targets as a regular expression")


def keep_blocks(model: nn.Module, count: int) -> None:
    """Remove the language model's blocks above the first ``count``, from the model and its configuration, in place.

    What is last then is layer ``count``, through the model's own final norm.
    """
    name, blocks = find_blocks(model)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.ModuleList(list(blocks)[:count]))
    config: Any = text_config(model.config)
    for key, value in list(vars(config).items()):
        if key.endswith(("_types", "_layers")) and isinstance(value, list) and len(value) == len(blocks):
            setattr(config, key, value[:count])
    config.num_hidden_layers = count


def set_dropout(model: nn.Module, rate: float) -> None:
    """Set every dropout rate of the model, also those that attention functions get as a number."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        for name in ("attention_dropout", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, rate)


def resolve_layers(layer: int | list[int], count: int) -> list[int]:
    """Return layer numbers in 0..count-1 or -1 for the last, which is block ``count``.

    Raises SettingError for a layer that the model does not have.

    >>> resolve_layers([0, -2, 6], count=6)
    [0, 5, -1]
    """
    layers = [layer] if isinstance(layer, int) else list(layer)
    if not layers:
        raise SettingError("late.layer", "is an empty list", "name at least one layer; -1 is the last")
    for number in layers:
        if not -count - 1 <= number <= count:
            what = f"is {number}, but the model has layers 0 (embeddings) to {count}"
            raise SettingError("late.layer", what, "name one of these, or -1 for the last")
    resolved = [number % (count + 1) for number in layers]
    return [-1 if number == count else number for number in resolved]


def find_final_norm(model: nn.Module, run: Callable[[], Any]) -> nn.Module | None:
    """Return the norm between the last block and ``last_hidden_state``; None for a post-norm model, which has none.

    It is found by value, not by name: ``run`` makes one small forward and returns its ``last_hidden_state``, and the
    norm is the module that turns the last block's output into it.
    Raises SettingError where no module does.
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
    what = f"the final norm is unknown: no module of {name.rpartition('.')[0] or type(model).__name__} turns the last"
    raise SettingError(
        "late.norm", f"{what} block's output into last_hidden_state", "set late.norm to none, or late.layer to -1"
    )


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-4))
