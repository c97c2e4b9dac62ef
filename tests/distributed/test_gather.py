"""Gathering over real gloo ranks against one process that has everybody's rows; one launch of ranks, many checks.

The losses are written out here, over all documents: what is tested is that ranks add up, not any loss of the package.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from shards import (
    DOCUMENTS,
    LENGTHS,
    PAIRS,
    WIDTH,
    D,
    Encoder,
    averaged,
    close,
    gradients,
    in_one_process,
    on_ranks,
    pages,
    scores,
    shard,
    slices,
    softmax_loss,
)
from torch import Tensor

from smart_train.core.embeddings import Embeddings, KnownPositives, Tokens
from smart_train.distributed.gather import Gather
from smart_train.losses.false_negatives import relevance_mask, repeated_documents

# (id, content) of documents by rank: four contents in all; rank 1's third page is rank 0's first by another id.
COPIES = ([(10, 1), (11, 2), (12, 3)], [(12, 3), (13, 4), (99, 1)], [(13, 4), (10, 1)])
ASKED = ([(0, 10), (1, 12)], [(2, 12), (3, 13), (4, 99)], [(5, 10)])  # (query, id of its answer) by rank

NOBODY = "one rank without documents"


def copies_on_ranks() -> tuple[Tensor, list[Tensor]]:
    gather, encoder = Gather(), Encoder(torch.float64)
    held, asked = COPIES[dist.get_rank()], ASKED[dist.get_rank()]
    documents, own = gather.documents(encoder(*pages([content for _, content in held], seed=7)))
    keys = gather.keys(torch.tensor([[i, content, 0, -1] for i, content in held]))
    answers = torch.tensor([[i, 0, 0, -1] for _, i in asked])  # nothing but the id is known of them
    known = KnownPositives(answers, torch.ones(len(asked)), torch.ones(len(asked), dtype=torch.int64))
    hidden = relevance_mask(known, keys) | repeated_documents(keys)
    pairs = [(row, own.start + [i for i, _ in held].index(answer)) for row, (_, answer) in enumerate(asked)]
    for row, column in pairs:
        hidden[row, column] = False
    queries = encoder(*pages([query for query, _ in asked], seed=8))
    loss = softmax_loss(scores(queries, documents).masked_fill(hidden, -torch.inf), pairs)
    return averaged(encoder, gather.shares(len(pairs))[0] * loss)


def transported(dtype: torch.dtype) -> dict[str, Any]:
    """Values, places and volume of a plain gather and of what else crosses."""
    gather, rank, encoder = Gather(), dist.get_rank(), Encoder(dtype)
    with torch.no_grad():
        own = encoder(*shard(rank, dtype).documents)
    found: dict[str, Any] = {"own": own, "no_grad": gather.documents(own)}
    found["forward bytes"] = gather.take_bytes()
    found["late only"] = gather.documents(own, pooled=False)[0]
    found["late only bytes"] = gather.take_bytes()
    found["pooled only"] = gather.documents(own, tokens=False)[0]
    found["pooled only bytes"] = gather.take_bytes()
    found["keys"] = gather.keys(torch.arange(4 * len(own)).view(-1, 4) + 100 * rank)
    found["keys bytes"] = gather.take_bytes()
    # Frozen pooled vectors and a trained head: one side has no gradient to send.
    own.tokens.values.requires_grad_(True)
    half, _ = gather.documents(own)
    found["needs"] = (half.pooled.requires_grad, half.tokens.values.requires_grad)
    gather.take_bytes()
    (half.tokens.values * (256.0 if rank == 0 else 1.0)).sum().backward()
    found["backward bytes"], found["summed"] = gather.take_bytes(), own.tokens.values.grad
    nobody = Embeddings(own.pooled[:0], Tokens(own.tokens.values[:0], own.tokens.lengths[:0]))
    last = rank == dist.get_world_size() - 1
    found[NOBODY], found["place"] = gather.documents(nobody if last else own)
    return found


def refusals() -> dict[str, str]:
    rank, found = dist.get_rank(), {}

    def said(name: str, width: int, dtype: torch.dtype, needs: bool) -> None:
        own = Embeddings(torch.ones(2, width, dtype=dtype), Tokens(torch.ones(2, 3), torch.ones(2, dtype=torch.int64)))
        own.pooled.requires_grad_(needs)
        with pytest.raises(ValueError) as error:
            Gather().documents(own)
        found[name] = str(error.value)

    said("width", 4 + rank, torch.float32, False)
    said("dtype", 4, torch.float16 if rank else torch.float32, False)
    said("gradient", 4, torch.float32, rank == 0)
    with pytest.raises(ValueError) as error:
        Gather(dist.get_world_size() + 1)
    found["group"] = str(error.value)
    return found


def sliced(size: int) -> tuple[dict[str, Any], int]:
    with slices(size) as brought:
        return transported(torch.float32), max(brought)


def checks() -> dict[str, Any]:
    """Everything that one launch shows."""
    found: dict[str, Any] = {"transport": {d: transported(d) for d in (torch.float32, torch.bfloat16)}}
    found["sliced"] = {size: sliced(size) for size in (1, 200, 400)}
    for dtype in (torch.float32, torch.float64):
        for symmetric in (False, True):
            found[dtype, symmetric] = on_ranks(Gather(), dtype, symmetric)
    found["each for itself"] = [on_ranks(g, torch.float64, True) for g in (Gather(1), Gather(enabled=False))]
    found["refusals"], found["shares"] = refusals(), Gather().shares(dist.get_rank() + 1, 0, 5)
    found["copies"] = copies_on_ranks()
    return found


def groups_of_two() -> dict[str, Any]:
    with pytest.raises(ValueError, match="gather_group: is 3, which does not divide the 4 ranks"):
        Gather(3)
    gather = Gather(2)
    rows, own = gather.documents(Embeddings(torch.full((1, 2), dist.get_rank() + 0.5), Tokens(torch.ones(1, 2), ONE)))
    return {
        "group": (gather.size, gather.rank, rows.pooled[:, 0].tolist(), own),
        "columns": gather.columns(torch.tensor([10.0 * dist.get_rank()])),
        "shares": gather.shares(len(PAIRS[dist.get_rank()])),
        "losses": {size: on_ranks(Gather(size), torch.float64, True) for size in (1, 2, 4, None)},
    }


ONE = torch.ones(1, dtype=torch.int64)


@pytest.fixture(scope="module", params=[2, 3], ids=["two ranks", "three ranks"])
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    found = run_ranks(request.param, checks)
    assert len(found) == request.param
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_gathered_is_everybodys_rows_in_rank_order(ranks, dtype):
    shares = [rank["transport"][dtype] for rank in ranks]
    every = Embeddings.cat(share["own"] for share in shares)
    start = 0
    for r, share in enumerate(shares):
        documents, own = share["no_grad"]
        assert documents.pooled.dtype == documents.tokens.values.dtype == dtype
        assert torch.equal(documents.pooled, every.pooled)
        assert torch.equal(documents.tokens.values, every.tokens.values)
        assert torch.equal(documents.tokens.check().lengths, every.tokens.lengths)
        assert own == slice(start, start + DOCUMENTS[r])
        start = own.stop
        keys = torch.cat([torch.arange(4 * n).view(-1, 4) + 100 * r for r, n in enumerate(DOCUMENTS[: len(ranks)])])
        assert torch.equal(share["keys"], keys)


def test_in_slices_the_same_crosses_whatever_their_size(ranks):
    """Of a row each, of some rows, and of all rows of a side; a rank with fewer rows takes part in every one."""
    for rank in ranks:
        whole = leaves(rank["transport"][torch.float32])
        for size, (share, largest) in rank["sliced"].items():
            assert largest <= max(size, 8 * 8 * len(ranks))  # the header, of eight numbers, is a row, too
            assert all(torch.equal(a, b) for a, b in zip(leaves(share), whole, strict=True))


def leaves(share: dict[str, Any]) -> list[Tensor]:
    sides = [
        side for e in (share["no_grad"][0], share[NOBODY]) for side in (e.pooled, e.tokens.values, e.tokens.lengths)
    ]
    return sides + [torch.as_tensor(v) for name, v in share.items() if name in ("keys", "summed") or "bytes" in name]


def test_a_rank_may_have_no_document_at_all(ranks):
    shares = [rank["transport"][torch.float32] for rank in ranks]
    every = Embeddings.cat(share["own"] for share in shares[:-1])
    for share in shares:
        documents = share[NOBODY]
        assert torch.equal(documents.pooled, every.pooled)
        assert torch.equal(documents.tokens.values, every.tokens.values)
    assert shares[-1]["place"] == slice(len(every), len(every))


@pytest.mark.parametrize("symmetric", [False, True], ids=["one direction", "both directions"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)], ids=str)
def test_losses_and_gradients_averaged_over_ranks_are_those_of_one_process(ranks, dtype, tolerance, symmetric):
    expected = in_one_process([list(range(len(ranks)))], torch.float64, symmetric)
    for rank in ranks:
        close(rank[dtype, symmetric], expected, tolerance)


def test_a_rank_that_gathers_with_nobody_still_weighs_its_pairs(ranks):
    expected = in_one_process([[r] for r in range(len(ranks))], torch.float64, True)
    for rank in ranks:
        for found in rank["each for itself"]:
            close(found, expected, 1e-13)


def test_copies_of_a_document_on_another_rank_change_neither_loss_nor_gradient(ranks):
    encoder, contents = Encoder(torch.float64), dict(page for held in COPIES for page in held)
    asked = [pair for pairs in ASKED[: len(ranks)] for pair in pairs]
    logits = scores(encoder(*pages([q for q, _ in asked], seed=8)), encoder(*pages([1, 2, 3, 4], seed=7)))
    loss = softmax_loss(logits, [(q, contents[answer] - 1) for q, answer in asked])
    loss.backward()
    for rank in ranks:
        close(rank["copies"], (loss.detach(), gradients(encoder)), 1e-13)


def test_sides_not_asked_for_are_not_sent(ranks):
    world, n = len(ranks), DOCUMENTS[: len(ranks)]
    tokens = [sum(lengths) for lengths in LENGTHS[:world]]
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        for rank in ranks:
            share = rank["transport"][dtype]
            late, pooled = share["late only"], share["pooled only"]
            assert late.pooled.shape == (sum(n), 0) and late.tokens.values.shape == (sum(tokens), WIDTH)
            assert pooled.pooled.shape == (sum(n), D) and pooled.tokens.values.shape == (sum(n), 0)
            assert pooled.tokens.lengths.tolist() == [1] * sum(n)
            header, lengths = 8 * 8, 8 * max(n)
            others = world - 1
            assert share["forward bytes"] == others * (header + lengths + size * (D * max(n) + WIDTH * max(tokens)))
            assert share["late only bytes"] == others * (header + lengths + size * WIDTH * max(tokens))
            assert share["pooled only bytes"] == others * (header + size * D * max(n))
            assert share["keys bytes"] == others * (8 + 4 * 8 * max(n))
            assert share["backward bytes"] == others * 4 * WIDTH * max(tokens)  # sums are float32; no pooled side


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_rows_gradient_is_the_sum_over_ranks_taken_in_float32(ranks, dtype):
    # 256 + 1 + 1 is 258; added in bfloat16, where 257 does not exist, it stays 256.
    for rank in ranks:
        share = rank["transport"][dtype]
        assert share["needs"] == (False, True)
        assert share["summed"].dtype == dtype
        assert torch.equal(share["summed"], torch.full_like(share["summed"], 256.0 + len(ranks) - 1))


def test_ranks_that_differ_are_told_so_instead_of_hanging(ranks):
    for rank in ranks:
        said = rank["refusals"]
        assert "rank 1 of its group has pooled vectors of width 5" in said["width"]
        assert "float16 without gradient and tokens" in said["dtype"]
        assert "rank 0 has pooled vectors of width 4 in float32 with gradient" in said["gradient"]
        assert f"does not divide the {len(ranks)} ranks" in said["group"]


def test_shares_are_counts_over_their_mean(ranks):
    total = sum(range(1, len(ranks) + 1))
    for r, rank in enumerate(ranks):
        assert rank["shares"] == [(r + 1) * len(ranks) / total, 0.0, 1.0]


def test_groups_gather_among_themselves_and_pairs_are_weighed_over_the_world():
    ranks = run_ranks(4, groups_of_two)
    for r, rank in enumerate(ranks):
        first = r - r % 2
        assert rank["group"] == (2, r % 2, [first + 0.5, first + 1.5], slice(r % 2, r % 2 + 1))
        assert rank["columns"].tolist() == [[10.0 * first], [10.0 * first + 10]]
        assert rank["shares"] == [len(PAIRS[r]) * 4 / sum(map(len, PAIRS))]
        everyone = in_one_process([[0, 1, 2, 3]], torch.float64, True)
        expected = {2: in_one_process([[0, 1], [2, 3]], torch.float64, True), 4: everyone, None: everyone}
        expected[1] = in_one_process([[0], [1], [2], [3]], torch.float64, True)
        assert abs(expected[2][0] - everyone[0]) > 0.1  # the groups make a difference
        for size, found in rank["losses"].items():
            close(found, expected[size], 1e-13)


def test_one_process_gets_its_own_back():
    own = Embeddings(torch.ones(2, 3, requires_grad=True), Tokens(torch.ones(3, 2), torch.tensor([1, 2])))
    keys, values = torch.ones(2, 4, dtype=torch.int64), torch.ones(5)
    for gather in (Gather(), Gather(enabled=False), Gather(1)):
        assert (gather.size, gather.rank) == (1, 0)
        documents, place = gather.documents(own)
        assert documents is own and place == slice(0, 2)
        assert gather.keys(keys) is keys
        assert gather.repeats(keys[:, 0]).tolist() == [False, False]
        assert torch.equal(gather.columns(values), values[None])
        assert gather.shares(3, 0) == [1.0, 1.0]
        assert gather.take_bytes() == 0
    with pytest.raises(ValueError, match="gather_group: is 2, which does not divide the 1 ranks"):
        Gather(2)


def test_a_gather_made_before_the_process_group_is_refused(monkeypatch):
    gather = Gather()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    for use in (gather.shares, lambda: gather.keys(torch.ones(1, 4, dtype=torch.int64))):
        with pytest.raises(ValueError, match="created for 1 rank"):
            use()
