"""Build an encoder without weights: each parameter's shape and dtype, from configuration files alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from smart_train.config.schema import AdapterBlock, LateBlock, ModelBlock
from smart_train.models.base_config import BaseFiles
from smart_train.models.heads import LateHead
from smart_train.models.hidden_states import find_blocks, is_vision, resolve_layers, text_config
from smart_train.models.lora import add_lora
from smart_train.models.quantization import BITS
from smart_train.planning.estimates import Tower, Weights

PLAIN = ("Transformer", "Pooling", "Normalize", "Dense")  # sentence-transformers' modules whose weights are known here


class Blueprint(nn.Module):
    """The parameters of SmartEncoder(base, model=..., late=..., adapter=...), on the meta device, under its names.

    config: the base's configuration; unknown: modules of the folder whose parameters are not counted
    stored: whether the configuration says in which dtype the base is stored (else float32 is taken for it)
    """

    def __init__(self, model: ModelBlock, late: LateBlock, adapter: AdapterBlock) -> None:
        super().__init__()
        files = BaseFiles.of(model.base, model.revision)
        self.config = files.config(model.base, model.trust_remote_code)
        self.stored = model.dtype != "auto" or self.config.dtype is not None
        self.quantised = model.quantisation == "4bit"
        dtype = getattr(torch, model.dtype) if model.dtype != "auto" else self.config.dtype or torch.float32
        with torch.device("meta"):
            self.backbone: Any = _backbone(self.config, dtype, model.trust_remote_code)
            self.dense, self.unknown = _dense(files)
            width = int(text_config(self.config).hidden_size)
            self.head = LateHead(late, self._layers(late), width)
            _adapt(self, adapter)

    def _layers(self, late: LateBlock) -> list[int]:
        if late.layer in (-1, [-1]):
            return [-1]
        return resolve_layers(late.layer, len(find_blocks(self.backbone)[1]))

    def weights(self) -> Weights:
        """Return the sizes of the weights: numbers, bytes, the largest block, those in no block."""
        counts = {True: [0, 0], False: [0, 0]}
        small = self._in_four_bits()
        for parameter in self.parameters():
            total = counts[parameter.requires_grad]
            total[0] += parameter.numel()
            bits = BITS if id(parameter) in small else 8 * parameter.element_size()
            total[1] += int(parameter.numel() * bits / 8)
        blocks = [_size(block) for _, blocks in _stacks(self.backbone) for block in blocks]
        (trained, trained_bytes), (frozen, frozen_bytes) = counts[True], counts[False]
        outside = trained + frozen - sum(blocks)
        return Weights(frozen, trained, frozen_bytes, trained_bytes, max(blocks, default=0), outside)

    def _in_four_bits(self) -> set[int]:
        """Return the ids of the weights that model.quantisation stores in 4 bits."""
        if not self.quantised:
            return set()
        layers = [m for n, m in self.backbone.named_modules() if isinstance(m, nn.Linear) and "lora_" not in n]
        return {id(layer.weight) for layer in layers}

    def counts(self) -> dict[str, int]:
        """Count the parameters as training does (training/callbacks/first_step.py), without its checks."""
        counts = {"trainable": 0, "lora": 0, "head": 0, "backbone": 0, "all": 0}
        for name, parameter in self.named_parameters():
            counts["all"] += parameter.numel()
            if parameter.requires_grad:
                part = "lora" if "lora_" in name else "head" if name.startswith("head.") else "backbone"
                counts[part] += parameter.numel()
                counts["trainable"] += parameter.numel()
        return counts

    def towers(self) -> dict[str, Tower]:
        """Return the shapes of the text tower and of a vision tower, from which activations are estimated."""
        towers: dict[str, Tower] = {}
        for name, blocks in _stacks(self.backbone):
            kind = "vision" if is_vision(name) else "text"
            if kind not in towers:
                towers[kind] = _tower(blocks, _heads(self.config, kind))
        return towers


def _backbone(config: Any, dtype: torch.dtype, trust: bool) -> nn.Module:
    from transformers import AutoModel

    # As SentenceTransformer's Transformer loads it, but for the encoder halves of T5 and its like.
    model: nn.Module = AutoModel.from_config(config, dtype=dtype, trust_remote_code=trust)
    return model


def _dense(files: BaseFiles) -> tuple[nn.ModuleList, list[str]]:
    """sentence-transformers' Dense modules, and names of modules that may have weights and are not counted."""
    dense, unknown = nn.ModuleList(), []
    for module in files.modules():
        kind = module["type"].rpartition(".")[2]
        if kind == "Dense":
            config = files.json(f"{module['path']}/config.json") or {}
            dense.append(nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True)))
        elif kind not in PLAIN:
            unknown.append(kind)
    return dense, unknown


def _adapt(blueprint: Blueprint, adapter: AdapterBlock) -> None:
    """Freeze and adapt the parameters as SmartEncoder does."""
    if adapter.kind == "lora":
        blueprint.dense.requires_grad_(False)
        add_lora(blueprint.backbone, adapter, "blueprint", None)
        return
    for part in (blueprint.backbone, blueprint.dense):
        part.requires_grad_(adapter.kind == "full")
        if adapter.kind == "full":
            part.float()  # as training/weights.py holds what is trained
    pooler = getattr(blueprint.backbone, "pooler", None)
    if adapter.kind == "full" and isinstance(pooler, nn.Module):
        pooler.requires_grad_(False)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _stacks(backbone: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """Lists of transformer blocks: the language model's, then those of other towers, the longest first.  Blocks are
    what engines wrap: a merger between towers is none."""
    name, blocks = find_blocks(backbone)
    kinds: Any = getattr(backbone, "_no_split_modules", None) or ()
    lists = [(n, m) for n, m in backbone.named_modules() if isinstance(m, nn.ModuleList) and is_vision(n)]
    lists = [(n, m) for n, m in lists if not kinds or any(type(block).__name__ in kinds for block in m)]
    outer = [(n, m) for n, m in lists if not any(n.startswith(f"{o}.") for o, _ in lists)]
    return [(name, blocks), *sorted(outer, key=lambda pair: -len(pair[1]))]


def _heads(config: Any, kind: str) -> int:
    part = text_config(config) if kind == "text" else config.vision_config
    for name in ("num_attention_heads", "num_heads", "n_heads"):
        if getattr(part, name, None):
            return int(getattr(part, name))
    return 1


@dataclass
class _Linears:
    """Linear layers of a block: attention's inputs, its output, the MLP's inputs, its output."""

    into: list[nn.Linear]
    out: nn.Linear
    up: list[nn.Linear]
    down: nn.Linear


def _linears(block: nn.Module) -> _Linears | None:
    """None where the block is built otherwise (experts, convolutions).  A LoRA layer counts as what it wraps."""
    attention: list[nn.Linear] = []
    others: list[nn.Linear] = []
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear) and "lora_" not in name:
            (attention if "attn" in name.lower() or "attention" in name.lower() else others).append(module)
    if len(attention) < 2 or len(others) < 2:
        return None
    return _Linears(attention[:-1], attention[-1], others[:-1], others[-1])


def _tower(blocks: nn.ModuleList, heads: int) -> Tower:
    """Widths of a stack, read from its first block with a gradient, else from its first; see estimates.Tower."""
    first = next((n for n, b in enumerate(blocks) if any(p.requires_grad for p in b.parameters())), len(blocks))
    block = blocks[first if first < len(blocks) else 0]
    parts = _linears(block)
    norms: list[Any] = [m for m in block.modules() if "norm" in type(m).__name__.lower() and hasattr(m, "weight")]
    linears = [m for m in block.modules() if isinstance(m, nn.Linear)]
    hidden = parts.out.out_features if parts else linears[0].in_features if linears else norms[0].weight.numel()
    query = parts.out.in_features if parts else hidden
    key = (sum(layer.out_features for layer in parts.into) - query) // 2 if parts else hidden
    inner = parts.down.in_features if parts else 4 * hidden
    wide = [norm for norm in norms if norm.weight.numel() == hidden]
    full = any(p.requires_grad for n, p in block.named_parameters() if "lora_" not in n)
    lora, shared, ranks = _inputs(block, parts, full)
    return Tower(
        layers=len(blocks),
        hidden=hidden,
        query=query,
        key=key,
        inner=inner,
        heads=heads,
        gated=parts is not None and sum(layer.out_features for layer in parts.up) == 2 * inner,
        fused=parts is not None and len(parts.into) == 1,
        qk_norm=len(norms) > len(wide),
        rms=bool(wide) and "rms" in type(wide[0]).__name__.lower(),
        norms=len(wide),
        dropouts=sum(isinstance(m, nn.Dropout) and m.p > 0 for n, m in block.named_modules() if "lora_" not in n),
        first=first,
        full=full,
        lora=lora,
        shared=shared,
        ranks=ranks,
    )


def _inputs(block: nn.Module, parts: _Linears | None, full: bool) -> tuple[int, int, int]:
    """Widths of the inputs that trained linear layers keep: each its own, shared ones once; r summed."""
    adapted: dict[int, Any] = {
        id(m.base_layer): m for m in block.modules() if hasattr(m, "base_layer") and hasattr(m, "lora_A")
    }
    linears: list[Any] = [m for n, m in block.named_modules() if isinstance(m, nn.Linear) and "lora_" not in n]
    kept = [m for m in linears if full or id(m) in adapted]
    ranks = sum(a.out_features for m in kept if id(m) in adapted for a in adapted[id(m)].lora_A.values())
    separate = sum(m.in_features for m in kept)
    if parts is None:
        return separate, separate, ranks
    groups = [parts.into, parts.up, [parts.down]]
    shared = sum(max((m.in_features for m in group if m in kept), default=0) for group in groups)
    return separate, shared, ranks
