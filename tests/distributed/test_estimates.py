"""The formulas of estimates.py against what real ranks hold and receive: gloo, DDP and DeepSpeed on two processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.distributed.gather import Gather
from smart_train.planning.estimates import Engine, Rows, Weights, gather_volume, states

PAIRS, NEGATIVES, T, D, WIDTH = 3, 2, 5, 7, 4
FROZEN, WIDTHS = 64, (256, 128)  # a frozen and a trained linear layer


def crossed(half: bool) -> int:
    """Bytes that a rank received in one step's gathers: as training/loss_step.py calls them, symmetric, two terms."""
    gather, documents = Gather(), PAIRS * (1 + NEGATIVES)
    values = torch.randn(documents * T, WIDTH, dtype=torch.bfloat16 if half else torch.float32, requires_grad=True)
    pooled = torch.randn(documents, D, requires_grad=True)
    found, _ = gather.documents(Embeddings(pooled, Tokens(values, torch.full((documents,), T))))
    gather.keys(torch.zeros(documents, 4, dtype=torch.int64))
    gather.repeats(torch.arange(PAIRS))
    columns = [gather.columns(found.pooled.sum(1)) for _ in range(2)]
    (found.tokens.values.float().sum() + sum(c.sum() for c in columns)).backward()
    return gather.take_bytes()


def model() -> nn.Module:
    found = nn.Sequential(nn.Linear(FROZEN, WIDTHS[0], bias=False), nn.Linear(*WIDTHS, bias=False))
    found[0].requires_grad_(False)
    return found


def on_plain_ranks() -> dict[str, Any]:
    wrapped = DistributedDataParallel(model())
    wrapped(torch.randn(2, FROZEN)).sum().backward()
    buckets = wrapped._get_ddp_logging_data()["bucket_sizes"]
    return {"float32": crossed(False), "half": crossed(True), "buckets": buckets}


def on_deepspeed(stage: int, half: bool) -> dict[str, int]:
    """Bytes by part, of one rank, after a backward and after a step; torch's AdamW."""
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    inner = model()
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": half},
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 1000_000, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }
    trained = [p for p in inner.parameters() if p.requires_grad]
    engine, optimizer, _, _ = deepspeed.initialize(
        model=inner, optimizer=torch.optim.AdamW(trained), config=settings, dist_init_required=False
    )
    size = torch.bfloat16 if half else torch.float32
    engine.backward(engine(torch.randn(1, FROZEN, dtype=size)).float().sum())
    gradients = _gradients(optimizer, stage)
    engine.step()
    masters = optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups
    moments = [t for state in optimizer.optimizer.state.values() for t in state.values() if t.dim()]
    held = [p.ds_tensor if stage == 3 else p for p in inner.parameters()]
    return {
        "weights": _bytes(held),
        "gradients": gradients,
        "optimiser": _bytes([*masters, *moments]),
    }


def _gradients(optimizer: Any, stage: int) -> int:
    if stage == 3:
        return _bytes([optimizer.grad_partitions_flat_buffer])
    return _bytes([part for group in optimizer.averaged_gradients.values() if group is not None for part in group])


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def two_stages(half: bool) -> dict[int, dict[str, int]]:
    return {stage: on_deepspeed(stage, half) for stage in (2, 3)}


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_ranks(2, on_plain_ranks)


@pytest.mark.parametrize("precision", ["float32", "half"])
def test_the_volume_of_gathers_is_what_ranks_receive(ranks, precision):
    rows = Rows(PAIRS, PAIRS, PAIRS * (1 + NEGATIVES), T, T, D, WIDTH, 2 if precision == "half" else 4, group=2)
    for found in ranks:
        assert found[precision] == gather_volume(rows, columns=2, once=True)


def weights() -> Weights:
    frozen, trained = FROZEN * WIDTHS[0], WIDTHS[0] * WIDTHS[1]
    return Weights(frozen, trained, 4 * frozen, 4 * trained)


def test_ddp_holds_the_gradients_once_more_in_its_buckets(ranks):
    buckets = sum(int(size) for size in str(ranks[0]["buckets"]).split(","))
    assert states(weights(), Engine("ddp", 2)).gradients == 4 * weights().trained + buckets


@pytest.mark.slow
@pytest.mark.parametrize("half", [True, False])
def test_deepspeed_holds_what_the_formulas_say(half):
    for found in run_ranks(2, two_stages, half, timeout=300.0):
        for stage, held in found.items():
            expected = states(weights(), Engine("zero", 2, stage, half))
            assert held == {name: getattr(expected, name) for name in held}, stage
