"""Rankings against brute force in float64: every score, every order, whatever the blocks and the corpus' order."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smart_train.config.schema import HybridBlock
from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.core.errors import EvaluationError
from smart_train.evaluation import scoring, topk
from smart_train.evaluation.ranking import rank, rank_all
from smart_train.evaluation.scoring import MODES, check
from smart_train.evaluation.topk import TopK, tie_hash

HYBRID = HybridBlock(pooled=0.5, late=2.0)
SCALED = HybridBlock(
    pooled=1.0, late=3.0, scaling="standardised", pooled_mean=0.1, pooled_std=0.2, late_mean=0.4, late_std=0.1
)


def unit(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(values, dim=-1).to(dtype)


def embeddings(lengths: list[int], seed: int, dtype: torch.dtype = torch.float32, d: int = 6) -> Embeddings:
    tokens = Tokens(unit(sum(lengths), d, seed=seed + 1, dtype=dtype), torch.tensor(lengths))
    return Embeddings(unit(len(lengths), 5, seed=seed), tokens)


def ids(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{i}" for i in range(count)]


def by_hand(queries: Embeddings, documents: Embeddings, mode: str, hybrid: HybridBlock) -> list[list[float]]:
    """[B][N] scores, pair by pair, in float64 and plain words."""
    scores = []
    for q, q_tokens in enumerate(queries.tokens.rows()):
        row = []
        for x, x_tokens in enumerate(documents.tokens.rows()):
            pooled = float(queries.pooled[q].double() @ documents.pooled[x].double())
            best = [max(float(t.double() @ u.double()) for u in x_tokens) for t in q_tokens]
            late = sum(best) / len(best)
            if mode == "hybrid":
                if hybrid.scaling == "standardised":
                    pooled = (pooled - hybrid.pooled_mean) / hybrid.pooled_std
                    late = (late - hybrid.late_mean) / hybrid.late_std
                row.append((hybrid.pooled * pooled + hybrid.late * late) / (hybrid.pooled + hybrid.late))
            else:
                row.append({"pooled": pooled, "late": late}[mode])
        scores.append(row)
    return scores


some_lengths = st.lists(st.integers(1, 5), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    some_lengths,
    st.integers(0, 10**6),
    st.integers(1, 14),
    st.integers(1, 200),
    st.sampled_from([HYBRID, SCALED]),
)
def test_scores_and_order_are_those_of_brute_force(query_lengths, document_lengths, seed, top, block, hybrid):
    queries, documents = embeddings(query_lengths, seed), embeddings(document_lengths, seed + 7)
    query_ids, document_ids = ids("q", len(queries)), ids("d", len(documents))
    found = rank_all(queries, documents, query_ids, document_ids, hybrid, top=top, block=block)
    assert list(found) == list(MODES)
    for mode in MODES:
        expected = by_hand(queries, documents, mode, hybrid)
        for q, query in enumerate(query_ids):
            score = dict(zip(document_ids, expected[q], strict=True))
            ranking = found[mode][query]
            best = sorted(score.values(), reverse=True)[:top]
            assert [value for _, value in ranking] == pytest.approx(best, abs=3e-5)
            assert len({document for document, _ in ranking}) == len(ranking) == min(top, len(documents))
            for document, value in ranking:
                assert value == pytest.approx(score[document], abs=3e-5)


def few_values(rows: int, lengths: list[int], seed: int) -> Embeddings:
    """Rows drawn from three token vectors and two pooled ones: nearly every score is a tie."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.eye(3)[torch.randint(3, (sum(lengths),), generator=generator)]
    return Embeddings(
        torch.eye(2)[torch.randint(2, (rows,), generator=generator)], Tokens(tokens, torch.tensor(lengths))
    )


@settings(max_examples=40, deadline=None)
@given(some_lengths, st.integers(0, 10**6), st.integers(1, 14), st.integers(1, 60), st.randoms(use_true_random=False))
def test_ties_are_ordered_by_hash_whatever_the_blocks_and_the_order_of_the_corpus(lengths, seed, top, block, shuffle):
    queries, documents = few_values(2, [2, 3], seed), few_values(len(lengths), lengths, seed + 1)
    document_ids = ids("d", len(documents))
    plain = rank_all(queries, documents, ["a", "b"], document_ids, HYBRID, top=top)
    order = list(range(len(documents)))
    shuffle.shuffle(order)
    shuffled = rank_all(
        queries, documents.select(order), ["a", "b"], [document_ids[i] for i in order], HYBRID, top=top, block=block
    )
    for mode in MODES:
        expected = by_hand(queries, documents, mode, HYBRID)
        for q, query in enumerate("ab"):
            # rounded, since 1/3 + 1/3 + 1/3 is no tie in floating point but is one here
            key = {
                document: (-round(score, 5), tie_hash(query, document))
                for document, score in zip(document_ids, expected[q], strict=True)
            }
            by_hash = sorted(document_ids, key=key.__getitem__)[:top]
            assert [document for document, _ in plain[mode][query]] == by_hash
            assert [document for document, _ in shuffled[mode][query]] == by_hash


def test_block_sizes_never_change_a_ranking(monkeypatch):
    queries, documents = embeddings([3, 1, 4, 2, 6, 5], 1), embeddings([7, 2, 9, 1, 4, 3, 8, 5, 6, 2] * 5, 2)
    arguments = queries, documents, ids("q", 6), ids("d", 50), HYBRID
    whole = rank_all(*arguments, top=8)
    for block, query_tokens in ((1, 1), (30, 4), (100, 7), (10**6, 5)):
        monkeypatch.setattr(scoring, "QUERY_TOKENS", query_tokens)
        parts = rank_all(*arguments, top=8, block=block)
        for mode in MODES:
            for query in whole[mode]:
                assert [d for d, _ in parts[mode][query]] == [d for d, _ in whole[mode][query]]
                assert [s for _, s in parts[mode][query]] == pytest.approx([s for _, s in whole[mode][query]], abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(some_lengths, st.integers(0, 10**6), st.integers(1, 14), st.lists(st.integers(1, 4), min_size=12, max_size=12))
def test_documents_in_portions_are_ranked_as_they_are_at_once(lengths, seed, top, sizes):
    queries, documents = few_values(2, [2, 3], seed), few_values(len(lengths), lengths, seed + 1)
    document_ids = ids("d", len(documents))
    whole = rank_all(queries, documents, ["a", "b"], document_ids, HYBRID, top=top)

    def portions():
        rest = documents
        for size in sizes:
            part, rest = rest.split(size)
            if len(part):
                yield part

    parts = rank_all(queries, portions(), ["a", "b"], document_ids, HYBRID, top=top)
    for mode in MODES:
        for query in "ab":
            assert [d for d, _ in parts[mode][query]] == [d for d, _ in whole[mode][query]]
            assert [s for _, s in parts[mode][query]] == pytest.approx([s for _, s in whole[mode][query]], abs=1e-6)


def test_portions_that_do_not_fit_the_ids_are_an_error():
    parts = embeddings([2, 3, 1], 1).split(2)
    query = embeddings([2], 3)
    with pytest.raises(EvaluationError, match="3 document embeddings, but 4 document ids"):
        rank_all(query, iter(parts), ["q"], ids("d", 4))
    with pytest.raises(EvaluationError, match="1 document embeddings, but 0 document ids"):
        rank_all(query, iter(parts), ["q"], ids("d", 2))
    with pytest.raises(EvaluationError, match="the document id 'a' is there twice"):
        rank_all(query, iter(parts), ["q"], ["a", "b", "a"])


def test_identical_documents_beyond_the_cut_are_chosen_by_hash_and_not_by_block():
    row = embeddings([3], 5)
    documents = row.select([0] * 40)
    query, names = embeddings([2], 6), ids("d", 40)
    expected = sorted(names, key=lambda name: tie_hash("q", name))[:5]
    for block in (1, 18, 10**6):
        found = rank(query, documents, ["q"], names, "late", top=5, block=block)
        assert [document for document, _ in found["q"]] == expected


def test_different_queries_order_the_same_ties_differently():
    documents = embeddings([3], 5).select([0] * 40)
    found = rank(embeddings([2, 2, 2], 6), documents, ["a", "b", "c"], ids("d", 40), "pooled", top=40)
    assert len({tuple(document for document, _ in ranking) for ranking in found.values()}) == 3


def test_one_mode_is_that_mode_of_all():
    queries, documents = embeddings([2, 3], 1), embeddings([4, 1, 3], 2)
    every = rank_all(queries, documents, ["a", "b"], ids("d", 3), HYBRID)
    for mode in MODES:
        assert rank(queries, documents, ["a", "b"], ids("d", 3), mode, HYBRID) == every[mode]
    with pytest.raises(EvaluationError, match="pooled, late, hybrid, not 'dense'"):
        rank(queries, documents, ["a", "b"], ids("d", 3), "dense")


def test_half_precision_storage_is_scored_in_single_precision():
    queries, documents = embeddings([3, 4], 1, d=64), embeddings([5, 9, 2, 7], 2, d=64)
    stored = Embeddings(documents.pooled.half(), documents.tokens.to(torch.float16))
    expected = by_hand(queries, stored, "late", HYBRID)
    found = rank(queries, stored, ["a", "b"], ids("d", 4), "late", top=4)
    for q, query in enumerate("ab"):
        for document, score in found[query]:
            assert score == pytest.approx(expected[q][int(document[1:])], abs=1e-6)


def test_memory_is_a_block_and_not_the_similarities():
    script = """
import resource, torch
from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.evaluation.ranking import rank_all
def rows(n, t, d=64):
    v = torch.nn.functional.normalize(torch.randn(n * t, d), dim=-1)
    return Embeddings(torch.nn.functional.normalize(torch.randn(n, d), dim=-1), Tokens(v, torch.full((n,), t)))
q, x = rows(64, 32), rows(2000, 64)
names = [str(i) for i in range(2000)]
rank_all(q.select([0]), x.select([0]), ["q"], ["x"], top=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rank_all(q, x, names[:64], names, top=10)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    similarities = 64 * 2000 * 32 * 64 * 4 / 2**20  # 1000 MB
    assert float(done.stdout) < similarities / 8


def test_the_hash_is_the_same_in_every_process_and_keeps_the_two_ids_apart():
    length = (2).to_bytes(8, "little")
    assert tie_hash("q1", "d") == hashlib.blake2b(length + b"q1d", digest_size=8).digest()
    assert tie_hash("q1", "d") != tie_hash("q", "1d")


@pytest.mark.parametrize("side", ["pooled", "tokens"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_an_error_naming_the_row(side, value):
    bad = embeddings([2, 3, 1], 1)
    if side == "pooled":
        bad.pooled[1, 2] = value
    else:
        bad.tokens.values[3, 0] = value
    with pytest.raises(EvaluationError, match="document 'd1' is not finite"):
        rank_all(embeddings([2], 3), bad, ["q"], ids("d", 3))


def test_ids_must_be_one_a_row_and_unique():
    rows = embeddings([2, 1], 1)
    with pytest.raises(EvaluationError, match="2 query embeddings, but 1 query ids"):
        check(rows, ["a"], "query")
    with pytest.raises(EvaluationError, match="'a' is there twice"):
        check(rows, ["a", "a"], "query")


def test_no_document_and_no_place_are_errors():
    queries, documents = embeddings([2], 1), embeddings([1, 2], 2)
    with pytest.raises(EvaluationError, match="no document"):
        rank_all(queries, documents.select([]), ["q"], [])
    with pytest.raises(EvaluationError, match="1 or more, got 0"):
        rank_all(queries, documents, ["q"], ["a", "b"], top=0)


def test_a_chain_of_near_scores_is_cut_at_the_same_place_whoever_shares_its_block_or_rank():
    """Scores that each tie with the next: whether one far down the chain is let go must not depend on what other
    queries, blocks and ranks keep."""
    noise = 2.0**-20
    chain = 0.5 - noise * 0.75 * torch.arange(40)
    ties = torch.full((40,), 0.25)  # keeps all 40 of its own row, and so of every row of its block
    names = ids("d", 40)

    def best(rows: torch.Tensor) -> TopK:
        one = TopK(5, noise)
        one.add(rows, 0)
        return one

    alone = best(chain[None]).rankings(["q"], names)["q"]
    within = {f"d{i}" for i in range(6)}  # the first five, and what is within the noise of the fifth
    assert len(alone) == 5 and {document for document, _ in alone} < within
    with_ties = torch.stack([chain, ties])
    assert best(with_ties).rankings(["q", "r"], names)["q"] == alone
    for world in (2, 3):
        shares = [range(at, min(at + 7, 40)) for at in range(0, 40, 7)]
        ranks = [torch.cat([torch.tensor(share) for share in shares[rank::world]]) for rank in range(world)]
        kept = [best(with_ties[:, own]).kept(own) for own in ranks]
        joined = TopK(5, noise).merged([*kept, None])
        assert joined.rankings(["q", "r"], names)["q"] == alone


@pytest.mark.parametrize("block", [1, 7, 200])
def test_ties_are_bounded_and_the_ranking_is_the_same(monkeypatch, block):
    """A collapsed encoder scores all alike: what is kept stays small, whatever the order of the documents."""
    monkeypatch.setattr(topk, "TIES", 9)
    names, queries = ids("d", 200), ["q", "r"]
    scores = torch.full((2, 200), 0.25)
    scores[0, 60], scores[1, 61] = 0.5, 0.1
    expected = TopK(5, 1e-6)
    expected.add(scores, 0)
    for order in (torch.arange(200), torch.randperm(200, generator=torch.Generator().manual_seed(1))):
        own = [names[place] for place in order.tolist()]
        best = TopK(5, 1e-6, query_ids=queries, document_ids=own)
        for begin in range(0, 200, block):
            best.add(scores[:, order[begin : begin + block]], begin)
            assert best.scores.shape[1] <= 5 + 9 + 1
        assert best.rankings(queries, own) == expected.rankings(queries, names)
        parts = [TopK(5, 1e-6, query_ids=queries, document_ids=own[at::2]) for at in range(2)]
        for at, part in enumerate(parts):
            part.add(scores[:, order[at::2]], 0)
        merged = parts[0].merged([part.kept(torch.arange(at, 200, 2)) for at, part in enumerate(parts)], own)
        assert merged.rankings(queries, own) == expected.rankings(queries, names)
