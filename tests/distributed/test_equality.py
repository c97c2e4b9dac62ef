"""Two ranks are one process with the joined batch: losses, gradients and weights after five optimizer steps, under
every engine; and what each engine saves is what was trained.

Two ranks in real processes over gloo.  Batches are of 4 and 3 pairs, rows of unequal length, with two hard negatives a
query; the reference is one plain process without an engine.
"""

from __future__ import annotations

from typing import Any

import equality
import pytest
from equality import ENGINES, VARIANTS
from ranks import run_ranks
from safetensors.torch import load_file

TYPES = {
    "DDP": "DistributedDataParallel",
    "DeepSpeed ZeRO-2": "DeepSpeedEngine",
    "DeepSpeed ZeRO-3": "DeepSpeedEngine",
    "FSDP2": "FSDPSmartEncoder",
}


@pytest.fixture(scope="module")
def alone(tiny_bert, tmp_path_factory) -> dict[str, Any]:
    return equality.run(str(tiny_bert), str(tmp_path_factory.mktemp("alone")), "one process, no engine", VARIANTS)


FEW = ("plain", "cached, accumulated")  # of every run of the tests; the slow suite has all of them
QUICK = ("DDP", "DeepSpeed ZeRO-2")  # a launch of two ranks takes 15 seconds or more
CASES = [pytest.param((e, FEW), id=e, marks=() if e in QUICK else pytest.mark.slow) for e in ENGINES]
CASES += [pytest.param((e, tuple(VARIANTS)), id=f"{e}, every kind of step", marks=pytest.mark.slow) for e in ENGINES]


@pytest.fixture(scope="module", params=CASES)
def together(request, tiny_bert, tmp_path_factory) -> tuple[str, dict[str, Any], Any]:
    (engine, names), out = request.param, tmp_path_factory.mktemp("together")
    variants = {name: VARIANTS[name] for name in names}
    return engine, run_ranks(2, equality.run, str(tiny_bert), str(out), engine, variants, timeout=600), out


def test_two_ranks_take_the_steps_of_one_process_with_the_joined_batch(alone, together):
    """The loss and the gradient norm of each of five steps, and every trained weight after them, to 1e-5."""
    engine, ranks, _ = together
    assert ranks[0].keys() >= set(FEW)
    for name in ranks[0]:
        one = alone[name]
        first, second = (found[name] for found in ranks)
        assert (first["engine"], first["type"], first["world"]) == (engine, TYPES[engine], 2)
        assert (one["engine"], one["world"]) == ("one process, no engine", 1)
        assert len(one["lines"]) == equality.STEPS
        sizes = [line["batch/queries"] for line in first["lines"]]
        assert min(sizes) < 2, "a batch of an odd number of pairs is among them"
        for mine, theirs in zip(one["lines"], first["lines"], strict=True):
            for figure in ("loss", "loss/pooled", "loss/late", "grad_norm"):
                assert theirs[figure] == pytest.approx(mine[figure], rel=1e-5, abs=1e-5), (name, figure)
        for found in (first, second):
            assert found["weights"].keys() == one["weights"].keys()
            for tensor, expected in one["weights"].items():
                off = float((found["weights"][tensor] - expected).abs().max())
                assert off <= 1e-5, f"{name}: {tensor} is off by {off:.1e}"


def test_what_every_engine_saves_is_what_was_trained_and_nothing_else(together):
    engine, ranks, out = together
    for name in ranks[0]:
        found = ranks[0][name]
        assert found["report"]["tolerance"] == 1e-5  # and the reloaded folder's vectors were within it
        assert ranks[1][name]["report"] == {}
        assert all(size > 0 for size in found["files"].values())
        weights = {file for file in found["files"] if file.endswith((".safetensors", ".bin", ".pt"))}
        assert weights == {"adapter_model.safetensors", "late_head.safetensors"}
        folder = out / name.replace(", ", "-") / "adapter"
        stored = load_file(folder / "adapter_model.safetensors") | load_file(folder / "late_head.safetensors")
        assert sum(tensor.numel() for tensor in stored.values()) == sum(t.numel() for t in found["weights"].values())
        assert all(bool(tensor.any()) for tensor in stored.values())
