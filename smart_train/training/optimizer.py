"""Group the trained weights for the optimizer, and say how many steps a run has and what its schedule makes of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from smart_train.core.errors import CheckpointError
from smart_train.training.arguments import SmartTrainingArguments

SAME = "resume with the same values, or start a new run"
NAMES = {
    "initial_lr": "learning_rate (or head_learning_rate)",
    "betas": "adam_beta1 and adam_beta2",
    "eps": "adam_epsilon",
}


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


@contextmanager
def same_options(optimizer: Any, checkpoint: str | None) -> Iterator[None]:
    """Load a checkpoint's optimizer within the block.

    Raises CheckpointError where its options are not those of ``optimizer``: torch puts the stored ones in their place,
    and a new learning rate or weight decay would be recorded and never used.
    """
    wanted = _options(optimizer)
    try:
        yield
    except ValueError as error:  # other groups: with and without a learning rate of the head
        if checkpoint is None or "parameter group" not in str(error):
            raise
        raise CheckpointError(f"{checkpoint}: its optimizer has other groups of weights ({error}); {SAME}") from error
    if checkpoint is None:
        return
    for was, now in zip(_options(optimizer), wanted, strict=True):
        for name in was.keys() & now.keys():
            if was[name] != now[name]:
                what = (
                    f"{checkpoint}: its optimizer has {NAMES.get(name, name)} {was[name]}, and here it is {now[name]}"
                )
                raise CheckpointError(f"{what}; {SAME}")


def _options(optimizer: Any) -> list[dict[str, Any]]:
    """Return the numbers of each group that a step uses, without the scheduled learning rate itself."""
    kept = (int, float, tuple, list)
    return [
        {
            k: v
            for k, v in group.items()
            if k not in ("params", "lr") and isinstance(v, kept) and not isinstance(v, bool)
        }
        for group in getattr(optimizer, "param_groups", ())
    ]


def steps_of(args: SmartTrainingArguments, batches: int) -> int:
    """Return the optimizer's steps of a run whose ranks each load so many batches an epoch, as Trainer counts them."""
    if args.max_steps > 0:
        return args.max_steps
    each = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    return math.ceil(args.num_train_epochs * each)
