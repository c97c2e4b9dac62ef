"""Caching over real ranks: two that cache are one that does not, on everybody's rows; gradients cross once a step; and
engines that shard do the same step as DDP."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cached_ranks import LORA, VARIANTS, all_of_ddp, encoder_of, joined, runs_on_ranks
from ranks import run_ranks
from steps import JOINT, OBJECTIVES, assert_gradients, plain, taken


@pytest.fixture(scope="module")
def ddp(tiny_models, tmp_path_factory):
    """What two ranks of DDP found, by rank: one launch, since a launch costs more than all it does."""
    folders = str(tiny_models("bert")), str(tiny_models("qwen3vl"))
    return run_ranks(2, all_of_ddp, *folders, str(tmp_path_factory.mktemp("ddp")), timeout=300.0)


def test_two_ranks_cached_are_one_rank_plain_on_the_joined_batch(ddp, tiny_bert):
    """Every setting of the loss, unequal rows, lengths and numbers of chunks; and as many reductions as a plain step
    has, of whatever number of chunks."""
    ranks = [rank["gradients"] for rank in ddp]
    assert ranks[0]["chunks"] != ranks[1]["chunks"]
    for name, objective in OBJECTIVES.items():
        encoder = encoder_of(str(tiny_bert), {"kind": "full"}, head=name != "pooled").train()
        loss = plain(encoder, joined(encoder), objective)
        expected = taken(encoder)
        found = [rank["settings"][name] for rank in ranks]
        assert sum(total for total, *_ in found) / 2 == pytest.approx(float(loss), rel=1e-5), name
        for _, gradients, crossed, once in found:
            assert_gradients(gradients, expected)
            assert crossed == once > 0, "gradients cross once a step, not once a chunk"


def test_a_vision_tower_whose_last_chunk_was_no_image_is_reduced_all_the_same(ddp, tiny_qwen3vl):
    encoder = encoder_of(str(tiny_qwen3vl), LORA).train()
    plain(encoder, joined(encoder, images=True), JOINT)
    expected = taken(encoder)
    assert any("visual" in name for name in expected)
    for rank in ddp:
        for found in rank["pages"]:
            assert_gradients(found, expected, 2e-6)


def assert_same_runs(found: dict[str, Any], expected: dict[str, Any], what: str) -> None:
    for name, (_, tensors, log, _) in found.items():
        _, reference, reference_log, _ = expected[name.replace("cached", "plain").replace("checkpointed", "plain")]
        assert tensors.keys() == reference.keys()
        for tensor in tensors:
            torch.testing.assert_close(
                tensors[tensor], reference[tensor], atol=1e-6, rtol=1e-5, msg=f"{what}, {name}: {tensor}"
            )
        pairs = list(zip(log[:2], reference_log[:2], strict=True))
        assert len(pairs) == 2
        for line, other in pairs:
            for part in ("loss", "loss/pooled", "loss/late", "accuracy/late", "negatives", "batch/documents"):
                assert line[part] == pytest.approx(other[part], rel=1e-4), f"{what}, {name}: {part}"
            assert line["gather/MiB"] > 0


def test_ranks_run_the_same_number_of_chunks_of_every_kind(ddp):
    first, second = (rank["plans"] for rank in ddp)
    assert (first["free"], second["free"]) == ([0, 1, 2], [0, 1, 2, 3]), "DDP needs no agreement"
    assert (first["plain"], second["plain"]) == ([0, 1, 2], [0, 1, 2, 3]), "nor does one backward"
    assert (first["by number"], second["by number"]) == ([0, 1, 2, 2], [0, 1, 2, 3])
    assert (first["by kind"], second["by kind"]) == ([0, 2, 1, 1, 1], [0, 0, 1, 2, 3])
    for rank in (first, second):
        assert "one rank's batch has 1 image chunks and another's has none, which DeepSpeed ZeRO-3" in rank["no image"]
        assert "one rank's batch has 1 text chunks and another's has none" in rank["no text"]


@pytest.fixture(scope="module")
def ddp_runs(ddp):
    return [rank["runs"] for rank in ddp]


def test_a_cached_run_of_two_ranks_is_the_plain_run(ddp_runs):
    """DDP: weights on both ranks, losses in the log, accumulation, activation checkpointing."""
    for rank in ddp_runs:
        assert {kind for kind, *_ in rank.values()} == {"DistributedDataParallel 0"}
        assert_same_runs(rank, ddp_runs[0], "ddp")
    forwards = {name: rank[3] for name, rank in ddp_runs[0].items()}
    assert forwards["cached"] == 2 * forwards["plain"] - 2  # in each of two steps the last chunk keeps its graph


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_does_the_same_steps_as_ddp(stage, ddp_runs, tiny_bert, tmp_path):
    """ZeRO-2 and ZeRO-3, plain and cached, with twice as many chunks on one rank as on the other."""
    ranks = run_ranks(2, runs_on_ranks, str(tiny_bert), str(tmp_path), stage, VARIANTS, timeout=400.0)
    for rank in ranks:
        assert {kind for kind, *_ in rank.values()} == {f"DeepSpeedEngine {stage}"}
        assert_same_runs(rank, ddp_runs[0], f"ZeRO-{stage}")
    for name in VARIANTS:
        if stage == 3 or "plain" not in name:
            assert ranks[0][name][3] == ranks[1][name][3], "every rank runs as many forwards"
