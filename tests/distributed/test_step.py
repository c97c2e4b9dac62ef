"""A step over real gloo ranks is one process's step on everybody's rows: every option of the contrastive terms, with
queries, pages and copies that several ranks hold, and unequal numbers of all of them.

Rows are looked up in a table of vectors by what they show, so that a page is the same on whatever rank it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from smart_train.config.schema import (
    CompressionBlock,
    HybridBlock,
    ObjectiveBlock,
    ReductionBlock,
    SelfDistillationBlock,
    TermBlock,
)
from smart_train.core.embeddings import Batch, Embeddings, Tokens
from smart_train.data.collate import Collator
from smart_train.data.collection import Collection, Document
from smart_train.distributed.gather import Gather
from smart_train.training.loss_step import LossStep

OFF = TermBlock(0.0)
JOINT = ObjectiveBlock(TermBlock(0.7, 0.2), TermBlock(1.3, 0.1), TermBlock(0.4, 0.15))
OPTIONS = {
    "joint": JOINT,
    "pooled alone": ObjectiveBlock(TermBlock(1.0, 0.1), OFF, OFF),
    "late alone": ObjectiveBlock(OFF, TermBlock(1.0, 0.1), OFF),
    "symmetric": replace(JOINT, symmetric=True),
    "symmetric, hardness, margin": replace(JOINT, symmetric=True, hardness=5.0, margin=0.1),
    "filter": replace(JOINT, false_negatives=0.9),
    "sigmoid": replace(JOINT, loss="sigmoid", sigmoid_bias=-2.0),
    "graded": replace(JOINT, graded=True),
    "graded, symmetric": replace(JOINT, graded=True, symmetric=True),
    "self-distillation": replace(JOINT, self_distillation=SelfDistillationBlock(0.6, 0.1)),
    "self-distillation alone": ObjectiveBlock(OFF, OFF, OFF, self_distillation=SelfDistillationBlock(1.0, 0.1)),
    "ensemble": ObjectiveBlock(OFF, OFF, OFF, self_distillation=SelfDistillationBlock(1.0, 0.1, 0.2, "bge_m3")),
    "soft": replace(JOINT, reduction=ReductionBlock("soft", 0.1)),
    "compressed": replace(JOINT, compression=CompressionBlock([2])),
    "neighbouring pages": replace(JOINT, neighbour_pages=1),
    "scheduled": replace(JOINT, schedule={"late.weight": [[0.0, 0.0], [1.0, 2.0]]}),
}
# (query, answer) by rank.  Query 0 asks on three ranks, 1 on two; d1 is on two ranks, e1 shows what d1 does, and e3
# what d3 does; e3 is an answer whose first column d3 is none by id.
ROWS = (
    [("q0", "d0"), ("q1", "d1"), ("q2", "d3"), ("q5", "d6")],
    [("q0", "d2"), ("q3", "e1"), ("q4", "e3")],
    [("q1", "d5"), ("q0", "d4")],
)
GRADES = {
    "q0": {"d0": 1, "d2": 2, "d4": 1},
    "q1": {"d1": 2, "d5": 1},
    "q2": {"d3": 1, "d0": 1},
    "q3": {"e1": 1, "d2": 1},
    "q4": {"e3": 1, "d0": 1},
    "q5": {"d6": 3},
}
NEGATIVES = {"q0": ["d7"], "q2": ["d1"], "q3": ["d7"], "q4": ["d6"], "q1": ["d3"]}
WIDTH = 6
NARROWER, CUTS = ("symmetric", "sigmoid"), ([4], [3, 5])


def collection() -> Collection:
    texts = {f"d{n}": f"page {n}" for n in range(8)} | {"e1": "page 1", "e3": "page 3"}
    corpus = {i: Document(i, t, file=f"file {int(t[-1]) // 4}", page=int(t[-1])) for i, t in texts.items()}
    queries = {query: f"asks {query}" for query in GRADES}
    return Collection("ranks", corpus, queries, GRADES, NEGATIVES)


def batch(rows: list[tuple[str, str]], of: Collection | None = None) -> Batch:
    return Collator(of or collection(), lambda contents, role: {"contents": contents}, negatives=1)(rows)


class Table(torch.nn.Module):
    """A vector, and one to three token vectors, for every content."""

    def __init__(self) -> None:
        super().__init__()
        self.names = [f"page {n}" for n in range(8)] + [f"asks {query}" for query in GRADES]
        draw = torch.randn(len(self.names), 4, WIDTH, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        self.vectors = torch.nn.Parameter(draw)

    def forward(self, given: Batch) -> Embeddings:
        chunks = [*given.queries, *given.documents]
        at = [self.names.index(content) for chunk in chunks for content in chunk["contents"]]
        vectors = torch.nn.functional.normalize(self.vectors, dim=-1)
        lengths = [1 + row % 3 for row in at]
        tokens = [vectors[row, 1 : 1 + length] for row, length in zip(at, lengths, strict=True)]
        return Embeddings(vectors[at, 0], Tokens(torch.cat(tokens), torch.tensor(lengths)))


def outcome(name: str, given: Batch) -> tuple[Any, ...]:
    """This rank's loss, gradient and numbers."""
    table = Table()
    cuts = CUTS if name in NARROWER else ([], [])
    loss = LossStep(OPTIONS[name], HybridBlock(1.0, 0.5), *cuts, progress=0.3).loss(table(given), given)
    loss.total.backward()
    return loss.total.detach(), table.vectors.grad, loss.parts


def steps_on_ranks() -> dict[str, Any]:
    rank, found = dist.get_rank(), {}
    for name in OPTIONS:
        total, gradient, parts = outcome(name, batch(ROWS[rank]))
        for tensor in (total, gradient):
            dist.all_reduce(tensor)
            tensor /= dist.get_world_size()
        found[name] = (total, gradient, parts)
    found["repeats"] = Gather().repeats(torch.tensor([[7, 8], [8, 9, -1], [-1, 7, 8, 10]][rank]))
    return found


def assert_same(found: list[tuple[Any, ...]], expected: tuple[Any, ...], name: str) -> None:
    for total, gradient, _ in found:
        assert total.item() == pytest.approx(expected[0].item(), abs=1e-12), name
        torch.testing.assert_close(gradient, expected[1], atol=1e-12, rtol=0, msg=name)
    assert expected[1].abs().max() > 1e-3
    for part, value in expected[2].items():
        if part != "masked" and not part.startswith("margin"):  # more columns are left out where there are copies
            mean = sum(parts[part] for *_, parts in found) / len(found)
            assert mean.item() == pytest.approx(value.item(), abs=1e-6), f"{name}: {part}"


@pytest.fixture(scope="module", params=[2, 3], ids=["two ranks", "three ranks"])
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_ranks(request.param, steps_on_ranks)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_mean_over_ranks_is_the_loss_and_gradient_of_one_process(ranks, name):
    rows = [row for held in ROWS[: len(ranks)] for row in held]
    assert_same([rank[name] for rank in ranks], outcome(name, batch(rows)), name)


def test_an_id_is_a_repeat_where_an_earlier_rank_has_it(ranks):
    expected: list[list[bool]] = [[False, False], [True, False, False], [True, True, True, False]]
    for rank, own in zip(ranks, expected, strict=False):
        assert rank["repeats"].tolist() == own


@pytest.mark.parametrize("name", OPTIONS)
def test_an_answer_that_is_a_copy_of_a_document_costs_what_the_document_itself_would(name):
    """e1 and e3 show what d1 and d3 do, which stand before them."""
    first = {"e1": "d1", "e3": "d3"}
    rows = [row for held in ROWS for row in held]
    plain = collection()
    plain.qrels = {q: {first.get(d, d): grade for d, grade in answers.items()} for q, answers in GRADES.items()}
    expected = outcome(name, batch([(q, first.get(d, d)) for q, d in rows], plain))
    assert (
        len(batch(rows).document_keys) == len(batch([(q, first.get(d, d)) for q, d in rows], plain).document_keys) + 2
    )
    assert_same([outcome(name, batch(rows))], expected, name)
