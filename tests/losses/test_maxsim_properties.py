"""Whatever the shapes, tiles, ties, norms and strides: MaxSim is the formula, and keeps little for backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from late import draw, gradients, leaf, plain

from smart_train.core.embeddings import Tokens
from smart_train.losses import maxsim as room
from smart_train.losses import maxsim_torch as tiles
from smart_train.losses.maxsim import maxsim


def test_gradcheck_in_float64():
    queries, documents = draw([2, 3], 4, 0, torch.float64), draw([3, 1, 4], 4, 1, torch.float64)
    q, x = queries.values.requires_grad_(True), documents.values.requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda a, b: maxsim(Tokens(a, queries.lengths), Tokens(b, documents.lengths)), (q, x), eps=1e-7
    )


quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
lengths = st.lists(st.integers(1, 6), min_size=1, max_size=4)
document_lengths = st.lists(st.sampled_from([1, 2, 3, 5, 31, 40]), min_size=1, max_size=8)  # some twice: runs, sorting


@quick
@given(
    query_lengths=lengths,
    document_lengths=document_lengths,
    width=st.integers(1, 9),
    tile=st.sampled_from([1, 64, 1024, 1 << 20]),
    query_rows=st.sampled_from([1, 3, 1024]),
    fewest=st.sampled_from([1, 64]),
    lines=st.sampled_from([1, 2, 64]),
    block=st.sampled_from([1, 20, 1 << 20]),
    padded=st.booleans(),
)
def test_any_shape_and_any_tiling_gives_the_formula(
    query_lengths, document_lengths, width, tile, query_rows, fewest, lines, block, padded
):
    """Tiles and blocks are an implementation's business: the smallest of them, where most edges are, must not show;
    nor must the way a GPU goes, which fills up documents."""
    queries = draw(query_lengths, width, 3, torch.float64)
    documents = draw(document_lengths, width, 4, torch.float64)
    weights = torch.randn(len(queries), len(documents), dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiles.TILE, "cpu", tile)
        patch.setitem(tiles.QUERY_ROWS, "cpu", query_rows)
        patch.setattr(tiles, "FEWEST_ROWS", fewest)
        patch.setattr(tiles, "CACHE_LINE", lines)
        patch.setattr(room, "BLOCK", block)
        if padded:
            patch.setattr(tiles, "_slabs", tiles._padded_slabs)
        torch.testing.assert_close(maxsim(queries, documents), plain(queries, documents), atol=1e-12, rtol=0)
        if width > 1:  # one dimension has vectors of +1 and -1 only: ties everywhere, so no one gradient
            ours = gradients(maxsim, queries, documents, weights)
            for mine, reference in zip(ours, gradients(plain, queries, documents, weights), strict=True):
                torch.testing.assert_close(mine, reference, atol=1e-12, rtol=0)


@quick
@given(
    query_lengths=lengths,
    document_lengths=document_lengths,
    tile=st.sampled_from([1, 256, 1 << 20]),
    grain=st.sampled_from([2, 7, 128]),
)
def test_what_fills_up_a_bfloat16_tile_never_reaches_a_score(query_lengths, document_lengths, tile, grain):
    """A tile's last rows are the next documents' tokens, or zeros: larger than any own similarity where those are below
    zero, as here for every other document."""
    queries, documents = draw(query_lengths, 8, 5), draw(document_lengths, 8, 6)
    sign = torch.tensor([1.0, -1.0]).repeat(len(documents))[: len(documents)].repeat_interleave(documents.lengths)
    sides = [Tokens(side.values.abs().bfloat16(), side.lengths) for side in (queries, documents)]
    sides[1].values *= sign.unsqueeze(1).bfloat16()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiles.TILE, "cpu", tile)
        patch.setattr(tiles, "BF16_STEP", grain)
        found = maxsim(*sides)
    exact = plain(*(Tokens(side.values.double(), side.lengths) for side in sides))
    torch.testing.assert_close(found.double(), exact, atol=1e-6, rtol=2.0**-7)
    assert (found[:, 1::2] < 0).all()


@quick
@given(query_lengths=lengths, document_lengths=document_lengths, seed=st.integers(0, 1 << 16))
def test_with_ties_everywhere_the_gradient_is_still_one_of_the_formulas(query_lengths, document_lengths, seed):
    """Tokens of -1, 0 and 1: most maxima are shared.  A valid subgradient gives each query token the mean of tokens
    that attain its maxima, and each document token nothing unless it attains one."""
    generator = torch.Generator().manual_seed(seed)

    def small(rows: list[int]) -> Tokens:
        return Tokens(torch.randint(-1, 2, (sum(rows), 3), generator=generator).double(), torch.tensor(rows))

    queries, documents = leaf(small(query_lengths)), leaf(small(document_lengths))
    weights = torch.rand(len(queries), len(documents), generator=generator, dtype=torch.float64) + 0.1
    scores = maxsim(queries, documents)
    assert torch.equal(scores, plain(queries, documents))
    (scores * weights).sum().backward()
    # MaxSim is homogeneous of degree one in either side, and Euler's identity holds for any choice of winners.
    whole = (scores * weights).sum()
    torch.testing.assert_close((queries.values.grad * queries.values).sum(), whole, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close((documents.values.grad * documents.values).sum(), whole, atol=1e-12, rtol=1e-12)
    similarity = queries.values.detach() @ documents.values.detach().t()
    attained = torch.cat([part >= part.amax(1, keepdim=True) for part in similarity.split(document_lengths, 1)], 1)
    assert (documents.values.grad[~attained.any(0)] == 0).all()


@quick
@given(
    query_lengths=lengths,
    document_lengths=document_lengths,
    exponents=st.tuples(st.sampled_from([-15, -4, 4, 15]), st.sampled_from([-15, -4, 4, 15])),
)
def test_huge_and_tiny_norms_keep_float32_precision(query_lengths, document_lengths, exponents):
    queries, documents = draw(query_lengths, 8, 5), draw(document_lengths, 8, 6)
    scaled = [Tokens(t.values * 10.0**e, t.lengths) for t, e in zip((queries, documents), exponents, strict=True)]
    weights = torch.ones(len(queries), len(documents))
    size = 10.0 ** sum(exponents)
    torch.testing.assert_close(maxsim(*scaled).double(), plain(*scaled), atol=1e-6 * size, rtol=1e-5)
    ours, theirs = gradients(maxsim, *scaled, weights), gradients(plain, *scaled, weights)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-5 * reference.abs().max().item(), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("keep", [True, False])
def test_what_is_not_finite_spoils_its_own_row_and_no_other(dtype, poison, keep):
    queries, documents = draw([3, 2], 8, 0, dtype), draw([4, 40, 5], 8, 1, dtype)
    clean = maxsim(queries, documents)
    documents.values[10, 2] = poison  # a token of the second document
    if keep:
        documents = leaf(documents)
    found = maxsim(queries, documents).detach()
    assert not found[:, 1].isfinite().any()
    assert torch.equal(found[:, [0, 2]], clean[:, [0, 2]])


def test_no_width_scores_nothing_and_takes_an_empty_gradient():
    queries, documents = leaf(draw([2, 3], 0, 0)), leaf(draw([4, 1, 2], 0, 1))
    found = maxsim(queries, documents)
    assert torch.equal(found, torch.zeros(2, 3))
    found.sum().backward()
    assert queries.values.grad.shape == (5, 0) and documents.values.grad.shape == (7, 0)


@pytest.mark.parametrize("longest", [256, 257, 32768, 32769])
def test_the_last_token_of_a_long_document_is_found_again_by_backward(longest):
    """Places are kept in one, two or four bytes; a place too large for its integer would send the gradient astray."""
    values = torch.zeros(longest + 3, 2, dtype=torch.float64)
    values[longest - 1] = torch.tensor([1.0, 2.0])
    documents = leaf(Tokens(values, torch.tensor([longest, 3])))
    queries = leaf(Tokens(torch.ones(2, 2, dtype=torch.float64), torch.tensor([2])))
    maxsim(queries, documents)[0, 0].backward()
    assert documents.values.grad.nonzero()[:, 0].unique().tolist() == [longest - 1]
    assert torch.equal(queries.values.grad, torch.tensor([[0.5, 1.0]] * 2, dtype=torch.float64))


def test_backward_keeps_a_byte_a_winner_beside_the_inputs():
    """The similarities would take 4 * B*Q * sum T bytes = 1.3 MB here; kept are B*Q*N bytes = 8 kB, and the lengths."""
    queries, documents = leaf(draw([8] * 16, 4, 0)), leaf(draw([40] * 64, 4, 1))
    inputs = {queries.values.data_ptr(), documents.values.data_ptr()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in inputs:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        maxsim(queries, documents)
    winners = 16 * 8 * 64
    assert winners <= sum(kept.values()) <= winners + 8 * (16 * 8 + 16 + 64)


STRIDES = {
    "transposed": lambda values: values.t().contiguous().t(),
    "every second column of a wider tensor": lambda values: torch.stack([values, values * 9], -1).flatten(1)[:, ::2],
    "every second row of a longer tensor": lambda values: torch.stack([values, values * 9], 1).flatten(0, 1)[::2],
    "a column slice": lambda values: torch.cat([values * 9, values], 1)[:, values.shape[1] :],
    "one token expanded": lambda values: values[:1].expand_as(values),
}


@pytest.mark.parametrize("case", STRIDES)
def test_strides_do_not_show(case):
    queries, documents = draw([3, 2], 8, 0, torch.float64), draw([4, 5], 8, 1, torch.float64)
    weights = torch.rand(2, 2, dtype=torch.float64)
    strided = [Tokens(STRIDES[case](t.values), t.lengths) for t in (queries, documents)]
    copies = [Tokens(t.values.contiguous(), t.lengths) for t in strided]
    assert not strided[0].values.is_contiguous()
    for t in strided:
        t.values.requires_grad_(True)
    found = maxsim(*strided)
    torch.testing.assert_close(found, maxsim(*copies), atol=0, rtol=0)
    mine = torch.autograd.grad((found * weights).sum(), [t.values for t in strided])
    for one, reference in zip(mine, gradients(maxsim, *copies, weights), strict=True):
        torch.testing.assert_close(one, reference, atol=0, rtol=0)
