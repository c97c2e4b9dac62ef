"""What a step makes of a rank's embeddings: which dtype tokens are compared in."""

from __future__ import annotations

import pytest
import torch
from formula import draw

from smart_train.config.schema import HybridBlock, ObjectiveBlock
from smart_train.core.embeddings import Batch, Embeddings, KnownPositives
from smart_train.training.loss_step import LossStep, token_dtype

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("similarity", "device", "bf16", "expected"),
    [
        ("auto", CUDA, True, torch.bfloat16),
        ("auto", CUDA, False, None),
        ("auto", CPU, True, None),
        ("float32", CUDA, True, None),
        ("bfloat16", CPU, False, torch.bfloat16),
    ],
)
def test_tokens_are_compared_in_what_the_gpu_trains_in_unless_the_recipe_says(similarity, device, bf16, expected):
    assert token_dtype(similarity, device, bf16) == expected


def test_only_the_late_scores_are_rounded_and_gradients_come_back_in_float32():
    both = draw([3, 2, 4, 5, 1], seed=0)
    keys = torch.tensor([[i, i, 0, -1] for i in (11, 12, 13)])
    known = KnownPositives(keys[:2].clone(), torch.ones(2), torch.tensor([1, 1]))
    batch = Batch([], [], torch.tensor([1, 2]), keys, known, torch.tensor([[0, 0], [1, 1]]))
    found = {}
    for dtype in (None, torch.bfloat16):
        leaf = both.tokens.values.detach().clone().requires_grad_(True)
        step = LossStep(ObjectiveBlock(), HybridBlock(), dtype=dtype)
        loss = step.loss(Embeddings(both.pooled, type(both.tokens)(leaf, both.tokens.lengths)), batch)
        loss.total.backward()
        assert leaf.grad.dtype == torch.float32 and loss.total.dtype == torch.float32
        found[dtype] = loss.parts
    assert found[None]["loss/pooled"] == found[torch.bfloat16]["loss/pooled"]
    late = [found[dtype]["loss/late"].item() for dtype in (None, torch.bfloat16)]
    assert late[0] != late[1] and late[0] == pytest.approx(late[1], rel=0.05)
