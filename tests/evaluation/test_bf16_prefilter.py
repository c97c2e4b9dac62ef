"""A bfloat16 pass may rule documents out, and no ranking, score or tie shows it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smart_train.config.schema import HybridBlock
from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.evaluation import bf16_prefilter, ranking, scoring
from smart_train.evaluation.bf16_prefilter import Rounded, bounded
from smart_train.evaluation.ranking import rank_views
from smart_train.evaluation.scoring import MODES, View, tiles, view
from smart_train.losses.maxsim import maxsim, maxsim_where

HYBRID = HybridBlock(pooled=0.5, late=2.0)
SCALED = HybridBlock(
    pooled=1.0, late=3.0, scaling="standardised", pooled_mean=0.1, pooled_std=0.2, late_mean=0.4, late_std=0.1
)


def unit(*shape: int, generator: torch.Generator) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def tokens(lengths: list[int], width: int, generator: torch.Generator) -> Tokens:
    return Tokens(unit(sum(lengths), width, generator=generator), torch.tensor(lengths))


def corpus(count: int, copies: int, seed: int, near: float = 0.0) -> tuple[Embeddings, Embeddings]:
    """5 queries, and documents of which the last ``copies`` are others again, exactly or nearly."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (count,), generator=generator).tolist()
    documents = Embeddings(unit(count, 8, generator=generator), tokens(lengths, 16, generator))
    if copies:
        again = documents.select(torch.randint(0, count, (copies,), generator=generator))
        moved = again.tokens.values + near * torch.randn(again.tokens.values.shape, generator=generator)
        again.tokens.values = torch.nn.functional.normalize(moved, dim=-1)
        documents = Embeddings.cat([documents, again])
    return Embeddings(unit(5, 8, generator=generator), tokens([1, 3, 2, 4, 7], 16, generator)), documents


@pytest.fixture
def always(monkeypatch) -> list[float]:
    """The prefilter wherever it is possible, on any machine; the shares of pairs that were scored exactly."""
    shares: list[float] = []

    def counted(wanted: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        shares.append(float(wanted.float().mean()))
        return maxsim_where(wanted, *rest)

    monkeypatch.setattr(ranking, "bf16_is_faster", lambda device: True)
    monkeypatch.setattr(bf16_prefilter, "maxsim_where", counted)
    monkeypatch.setattr(bf16_prefilter, "DENSE", 1.1)
    monkeypatch.setattr(bf16_prefilter, "SEEN", 1)
    return shares


def both(queries: Embeddings, documents: Embeddings, views: dict[str, View], top: int, **options) -> tuple[dict, dict]:
    """Rankings with the prefilter, and of every exact score."""
    ids = [f"q{n}" for n in range(len(queries))], [f"d{n}" for n in range(len(documents))]
    whole = list(tiles(queries, documents))
    assert len(whole) == 1, "one tile: all exact"
    return (
        rank_views(queries, documents, *ids, views, top=top, **options),
        rank_views(queries, documents, *ids, views, top=top, scored=whole),
    )


def assert_same(found: dict, expected: dict, views: dict[str, View]) -> None:
    for name, of_queries in expected.items():
        for query, wanted in of_queries.items():
            assert [id for id, _ in found[name][query]] == [id for id, _ in wanted], (name, query)
            scores = [score for _, score in found[name][query]]
            assert scores == pytest.approx([score for _, score in wanted], abs=0.5 * views[name].noise)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    count=st.integers(20, 60),
    copies=st.integers(0, 30),
    near=st.sampled_from([0.0, 1e-7, 1e-2]),
    top=st.integers(1, 12),
    block=st.sampled_from([200, 1000, 1 << 20]),
    hybrid=st.sampled_from([HYBRID, SCALED, HybridBlock(pooled=1.0, late=0.0), HybridBlock(pooled=-1.0, late=1.0)]),
    seed=st.integers(0, 1000),
)
def test_rankings_and_scores_are_those_of_scoring_everything(count, copies, near, top, block, hybrid, seed):
    """Copies tie, exactly and nearly, or come close, within blocks of documents and across them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "bf16_is_faster", lambda device: True)
        patch.setattr(bf16_prefilter, "SEEN", 1)
        queries, documents = corpus(count, copies, seed, near)
        views = {mode: view(mode, hybrid) for mode in MODES}
        found, expected = both(queries, documents, views, top, block=block)
    assert_same(found, expected, views)


def test_most_of_a_corpus_is_ruled_out_and_its_rankings_are_the_same(always):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(8, 40, (600,), generator=generator).tolist()
    queries = Embeddings(unit(6, 32, generator=generator), tokens([8] * 6, 32, generator))
    documents = Embeddings(unit(600, 32, generator=generator), tokens(lengths, 32, generator))
    views = {"hybrid": view("hybrid", HYBRID)}
    found, expected = both(queries, documents, views, 10, block=32 * 4000)
    assert_same(found, expected, views)
    assert len(always) > 1 and max(always) < 0.3 and always[-1] < always[0]


def test_blocks_of_queries_and_documents_that_leave_themselves_out_are_narrowed_alike(always, monkeypatch):
    monkeypatch.setattr(scoring, "QUERY_TOKENS", 5)
    queries, documents = corpus(60, 20, 3)
    ids = [f"q{n}" for n in range(5)], [*[f"q{n}" for n in range(5)], *[f"d{n}" for n in range(75)]]
    views = {mode: view(mode, SCALED) for mode in MODES}
    options = {"top": 4, "identical_ids": {"q0", "q3"}, "block": 600}
    found = rank_views(queries, documents, *ids, views, **options)
    assert always
    whole = list(tiles(queries, documents))
    assert_same(found, rank_views(queries, documents, *ids, views, scored=whole, **options), views)


@pytest.mark.parametrize("hybrid", [HybridBlock(pooled=1.0, late=-1.0), HybridBlock(pooled=0.0, late=-0.5)])
def test_a_score_that_falls_with_the_late_score_is_not_narrowed(hybrid, always):
    queries, documents = corpus(60, 0, 0)
    views = {"hybrid": view("hybrid", hybrid)}
    assert_same(*both(queries, documents, views, 3), views)
    assert not always


def test_a_machine_without_bfloat16_and_other_devices_score_everything(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert not bf16_prefilter.bf16_is_faster(torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert bf16_prefilter.bf16_is_faster(torch.device("cpu")) and not bf16_prefilter.bf16_is_faster(
        torch.device("cuda")
    )


def test_scores_too_alike_to_rule_anything_out_are_scored_whole(always, monkeypatch):
    monkeypatch.setattr(bf16_prefilter, "DENSE", 0.6)
    queries, documents = corpus(80, 0, 0)
    same = Tokens(documents.tokens.values[:1].expand(80, -1).contiguous(), torch.ones(80, dtype=torch.int64))
    views = {"late": view("late", HYBRID)}
    assert_same(*both(queries, Embeddings(documents.pooled, same), views, 5, block=16 * 10), views)
    assert not always, "all 80 tie"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(width=st.sampled_from([1, 3, 16, 96]), scale=st.sampled_from([1e-3, 1.0, 30.0]), seed=st.integers(0, 1000))
def test_the_bound_holds(width, scale, seed):
    """Against float64, for tokens of any length and for numbers half-way between two that bfloat16 can hold."""
    generator = torch.Generator().manual_seed(seed)
    queries, documents = tokens([1, 2, 5], width, generator), tokens([1, 4, 9, 30], width, generator)
    middle = 1 + 2.0**-8 * (1 + 2 * torch.randint(0, 60, documents.values.shape, generator=generator))
    sign = documents.values.sign()
    for q, x in (
        (queries.values * scale, documents.values),
        (queries.values.abs(), -middle),
        (sign[:8], middle * sign),
    ):
        ours, theirs = Tokens(q, queries.lengths), Tokens(x, documents.lengths)
        scores, error = bounded(Rounded.of(ours), Rounded.of(theirs))
        exact = maxsim(Tokens(q.double(), ours.lengths), Tokens(x.double(), theirs.lengths))
        assert (scores - exact).abs().le(error).all()
        assert error.max() <= 0.02 * float(q.norm(dim=1).max() * x.norm(dim=1).max()), "and it is of use"


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    share=st.sampled_from([0.0, 0.1, 0.7, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_some_pairs_are_scored_as_all_pairs_are(seed, share, dtype):
    generator = torch.Generator().manual_seed(seed)
    queries = tokens([3, 1, 6], 8, generator).to(dtype)
    documents = tokens(torch.randint(1, 20, (300,), generator=generator).tolist(), 8, generator)
    wanted = torch.rand(3, 300, generator=generator) < share
    otherwise = torch.full((3, 300), -7.0)
    found, every = maxsim_where(wanted, queries, documents, otherwise), maxsim(queries, documents)
    assert found.dtype == every.dtype
    torch.testing.assert_close(found[wanted], every[wanted], atol=1e-6, rtol=0)
    assert (found[~wanted] == -7).all() and (otherwise == -7).all()
