"""Check the first step: the right parameters are trainable, get gradients, and change."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from smart_train.config.schema import AdapterBlock
from smart_train.core.errors import TrainingStopped
from smart_train.training.nonfinite import SkippedSteps

logger = logging.getLogger(__name__)


def check_trainable(encoder: nn.Module, adapter: AdapterBlock) -> dict[str, int]:
    """Count the trainable parameters by part, and compare them with ``adapter.kind``.

    Returns {"trainable", "lora", "head", "backbone", "all"} (numbers of parameters, not tensors).
    Raises TrainingStopped where a part trains that should not, or does not train that should.
    """
    counts = {"trainable": 0, "lora": 0, "head": 0, "backbone": 0, "all": 0}
    for name, parameter in encoder.named_parameters():
        size = getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 shards: numel() is 0 there
        counts["all"] += size
        if parameter.requires_grad:
            part = "lora" if "lora_" in name else "head" if name.startswith("head.") else "backbone"
            counts[part] += size
            counts["trainable"] += size
    head = any(name.startswith("head.") for name, _ in encoder.named_parameters())
    wrong = {
        "lora": bool(counts["lora"]) != (adapter.kind == "lora"),
        "backbone": bool(counts["backbone"]) != (adapter.kind == "full"),
        "head": bool(counts["head"]) != head,
    }
    if any(wrong.values()) or not counts["trainable"]:
        raise TrainingStopped(
            f"adapter.kind is {adapter.kind}, but the trainable parameters are {counts}; nothing was trained"
        )
    return counts


BEHIND_ZEROS = ("lora_A", "head.projection.gate.", "head.projection.up.")
"""Tensors that move only once the matrix behind them has left zero: LoRA's B, the last matrix of the gated MLP."""


class FirstStepCheck(TrainerCallback):
    """Stops training, with the tensors' names, unless the first step trains what it should.

    After the first backward every trained tensor must have a finite gradient; after the first step with a learning rate
    above zero it must have moved (LoRA's B matrices from zero).  skipped: steps that were skipped do not count.
    """

    def __init__(self, encoder: nn.Module, skipped: SkippedSteps | None = None) -> None:
        self.encoder, self.skipped = encoder, skipped or SkippedSteps()
        self.checked = self.moved = False
        self.seen: dict[str, tuple[bool, bool]] = {}  # tensor -> (its gradients were finite, one was not zero)
        self.hooks: list[RemovableHandle] = []
        self.start: dict[str, Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.moved = state.global_step > 0  # a resumed run was checked when it began
        self.start = self._samples()
        # By hooks in the backward: DeepSpeed steps and drops the gradients before any callback could read them.
        for name, parameter in self.encoder.named_parameters():
            if parameter.requires_grad and not self.checked:
                self.hooks.append(parameter.register_hook(partial(self._see, name)))

    def _see(self, name: str, gradient: Tensor) -> None:
        finite, some = self.seen.get(name, (True, False))
        self.seen[name] = finite and bool(torch.isfinite(gradient).all()), some or bool(gradient.any())

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.checked or self.skipped.current:
            return
        self.checked = True
        for hook in self.hooks:
            hook.remove()
        for name, parameter in self.encoder.named_parameters():  # FSDP sets its shards' gradients, past any hook
            if name not in self.seen and parameter.requires_grad and parameter.grad is not None:
                self._see(name, local(parameter.grad))
        trained = [name for name, parameter in self.encoder.named_parameters() if parameter.requires_grad]
        without = [name for name in trained if name not in self.seen]
        # fp16's scaler skips steps that are not finite itself
        bad = [name for name, (finite, _) in self.seen.items() if not finite and not args.fp16]
        reached = any(some for _, some in self.seen.values())
        if without:
            raise TrainingStopped(
                f"{len(without)} trained tensors received no gradient ({', '.join(without[:3])} ...): they take no "
                "part in the forward; remove them from adapter.targets, or give their loss term a weight"
            )
        if bad:
            raise TrainingStopped(f"gradients of {len(bad)} tensors are not finite ({', '.join(bad[:3])} ...)")
        if not reached:
            raise TrainingStopped("every gradient of the first step is zero; has each batch at least one negative?")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        scheduler = kwargs.get("lr_scheduler")
        # A warm-up's first learning rate is zero: the second step moves at the latest.  fp16's scaler skips steps until
        # it has found its scale.
        steps = state.global_step - self.skipped.count
        if self.moved or self.skipped.current or scheduler is None or steps < (20 if args.fp16 else 2):
            return
        self.moved = True
        now = self._samples()
        due = [name for name in self.start if not any(part in name for part in BEHIND_ZEROS)]
        still = [name for name in due if torch.equal(self.start[name], now[name])]
        self.start = {}
        if still and len(still) == len(due):
            raise TrainingStopped(
                f"after {state.global_step} steps none of the {len(still)} trained tensors has moved ({still[0]} ...); "
                "is the learning rate zero, or does the engine hold other copies of them?"
            )
        if still:
            logger.warning("%d trained tensors have not moved: %s", len(still), ", ".join(still[:3]))

    def _samples(self) -> dict[str, Tensor]:
        """Return the first 1,024 values of what this process holds of every trained tensor (nothing under ZeRO-3)."""
        parameters = self.encoder.named_parameters()
        held = {n: local(p.detach()) for n, p in parameters if p.requires_grad and not hasattr(p, "ds_id")}
        return {name: tensor.flatten()[:1024].clone() for name, tensor in held.items() if tensor.numel()}


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor: FSDP's share, or all."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
