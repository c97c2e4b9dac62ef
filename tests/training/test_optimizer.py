"""A checkpoint's optimizer keeps its own options, so a resume with other ones is refused and names them."""

from __future__ import annotations

import pytest
import torch

from smart_train.core.errors import CheckpointError
from smart_train.training.optimizer import same_options


def adam(groups: int = 1, rate: float = 0.1, **options) -> torch.optim.Optimizer:
    weights = [{"params": [torch.nn.Parameter(torch.ones(2))]} for _ in range(groups)]
    optimizer = torch.optim.AdamW(weights, lr=rate, **options)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    return optimizer


OTHER = {
    "learning_rate": {"rate": 0.2},
    "adam_beta1 and adam_beta2": {"betas": (0.8, 0.999)},
    "adam_epsilon": {"eps": 1e-6},
    "weight_decay": {"weight_decay": 0.5},
    "other groups of weights": {"groups": 2},
}


@pytest.mark.parametrize("named", OTHER)
def test_another_value_than_the_checkpoint_holds_is_refused_by_name(named):
    stored, fresh = adam().state_dict(), adam(**OTHER[named])
    with pytest.raises(CheckpointError, match=named), same_options(fresh, "checkpoint-3"):
        fresh.load_state_dict(stored)


def test_the_same_values_at_a_later_rate_are_loaded():
    before = adam()
    before.param_groups[0]["lr"] = 0.01
    fresh = adam()
    with same_options(fresh, "checkpoint-3"):
        fresh.load_state_dict(before.state_dict())
    assert fresh.param_groups[0]["lr"] == 0.01
    with same_options(fresh, None):
        pass
