"""Evaluation over real gloo ranks and real encoders is that of one process; with sharded weights, too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_data
import torch
import torch.distributed as dist
from ranks import run_ranks

from smart_train.config.schema import HybridBlock, LateBlock
from smart_train.core.errors import DataError, EvaluationError, RankError
from smart_train.data.collection import Collection, Document
from smart_train.distributed.process_group import ProcessGroup
from smart_train.evaluation.calibration import calibrate
from smart_train.evaluation.retrieval import Evaluation, evaluate
from smart_train.models.encoder import SmartEncoder

CONSTANTS = ("pooled_mean", "pooled_std", "late_mean", "late_std")
Found = tuple[Evaluation, HybridBlock, list[dict[str, float]]]


def encoder_of(folder: Path) -> SmartEncoder:
    return SmartEncoder(str(folder), late=LateBlock(hybrid=HybridBlock(late=2.0)), device="cpu")


def both(encoder: SmartEncoder, some: Collection, group: ProcessGroup | None = None) -> Found:
    block, figures = calibrate(encoder, some, cut=3, batch_size=2, group=group)
    return evaluate(encoder, some, k=[1, 5], batch_size=2, bootstrap=50, group=group), block, figures


def assert_same(found: list[Found], whole: Found) -> None:
    assert all(each == found[0] for each in found)  # to the bit, seconds included
    evaluation, block, figures = found[0]
    assert replace(evaluation, seconds={}) == replace(whole[0], seconds={})
    assert min(evaluation.seconds.values()) > 0
    assert figures == whole[2] and block.late == whole[1].late
    for name in CONSTANTS:  # a row's padding is another in another batch
        assert getattr(block, name) == pytest.approx(getattr(whole[1], name), abs=1e-5)


def texts(documents: int, queries: int) -> Collection:
    corpus = {f"d{n}": Document(f"d{n}", tiny_data.passage(n)) for n in range(documents)}
    asked = {f"q{n}": f"what stands beside the {tiny_data.TOPICS[n]}" for n in range(queries)}
    return Collection("texts", corpus, asked, {f"q{n}": {f"d{n}": 2, f"d{n + 1}": 1} for n in range(queries)})


def on_texts(folder: Path) -> dict[str, Any]:
    group, encoder = ProcessGroup(), encoder_of(folder)
    found: dict[str, Any] = {"all": both(encoder, texts(24, 24), group)}
    found["few"] = evaluate(encoder, texts(1, 2), k=[1], bootstrap=5, group=group)
    found["torn"] = raised(encoder, {"torn": Document("torn", image="not/there.png")}, group)
    if group.rank == 1:
        encoder.register_forward_hook(with_nan)
    found["broken"] = raised(encoder, {}, group)
    return found


def raised(encoder: SmartEncoder, more: dict[str, Document], group: ProcessGroup) -> str:
    some = texts(24, 24)
    some.corpus |= more
    with pytest.raises((EvaluationError, RankError, DataError)) as error:
        evaluate(encoder, some, batch_size=4, group=group)
    return f"{error.type.__name__}: {error.value}"


def with_nan(encoder: Any, arguments: Any, embeddings: Any) -> None:
    if arguments[0]["role"] == "document":
        embeddings.pooled[0] = float("nan")


def test_texts_on_three_ranks_are_measured_and_calibrated_as_in_one_process(tiny_bert):
    encoder = encoder_of(tiny_bert)
    found = run_ranks(3, on_texts, tiny_bert, timeout=120)
    assert_same([each["all"] for each in found], both(encoder, texts(24, 24)))
    few = evaluate(encoder, texts(1, 2), k=[1], bootstrap=5)  # ranks without a document, and one without a query
    assert all(replace(each["few"], seconds={}) == replace(few, seconds={}) for each in found)
    torn = [each["torn"] for each in found]
    assert sorted(text.split(":")[0] for text in torn) == ["DataError", "RankError", "RankError"]
    assert all("the image of document 'torn' cannot be decoded" in text for text in torn)
    broken = {each["broken"] for each in found}
    assert len(broken) == 1 and "EvaluationError: the embedding of document" in broken.pop()


def pages() -> Collection:
    """Five images, three images with a text and one text: no kind has an even number."""
    shown = {n: tiny_data.draw_page(n) for n in range(8)}
    corpus = {f"d{n}": Document(f"d{n}", tiny_data.passage(n) if n > 4 else None, shown.get(n)) for n in range(9)}
    asked = {f"q{n}": f"the page about {tiny_data.TOPICS[n]}" for n in range(7)}
    return Collection("pages", corpus, asked, {f"q{n}": {f"d{n}": 1} for n in range(7)})


def on_pages(folder: Path) -> tuple[Found, list[tuple[bool, int]]]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    encoder, kinds = encoder_of(folder), []
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in (*encoder.backbone.language_model.layers, *encoder.backbone.visual.blocks, encoder):
        fully_shard(module, mesh=mesh)
    assert any(type(weight).__name__ == "DTensor" for weight in encoder.backbone.parameters())

    def noted(module: Any, arguments: Any) -> None:
        kinds.append(("pixel_values" in arguments[0], len(arguments[0]["input_ids"])))

    encoder.register_forward_pre_hook(noted)
    return both(encoder, pages(), ProcessGroup(lockstep=True)), kinds


@pytest.mark.slow
def test_pages_on_two_ranks_that_share_the_weights_are_measured_as_in_one_process(tiny_qwen3vl):
    torch.manual_seed(0)
    found = run_ranks(2, on_pages, tiny_qwen3vl, timeout=120)
    assert_same([each for each, _ in found], both(encoder_of(tiny_qwen3vl), pages()))
    first, second = (kinds for _, kinds in found)
    assert first == second and len({image for image, _ in first}) == 2
