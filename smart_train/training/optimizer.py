"""Group the trained weights for the optimizer, and say how many steps a run has and what its schedule makes of them."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from torch import nn

from smart_train.training.arguments import SmartTrainingArguments


def weight_groups(
    model: nn.Module, head: nn.Module, args: SmartTrainingArguments, decayed: Collection[str]
) -> list[dict[str, Any]]:
    """Return the optimizer's groups of the trained weights, (head or not) x (decayed or not): the head has a learning
    rate of its own.  decayed: names of the weights that ``weight_decay`` shrinks"""
    rate = getattr(args, "head_learning_rate", None)
    heads = {id(parameter) for parameter in head.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in heads and rate is not None, name in decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": args.weight_decay if decay else 0.0,
            "lr": rate if of_head else args.learning_rate,
        }
        for (of_head, decay), parameters in groups.items()
    ]


def steps_of(args: SmartTrainingArguments, batches: int) -> int:
    """Return the optimizer's steps of a run whose ranks each load so many batches an epoch, as Trainer counts them."""
    if args.max_steps > 0:
        return args.max_steps
    each = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    return math.ceil(args.num_train_epochs * each)
