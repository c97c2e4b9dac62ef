"""Which tokens go to the fused kernels, what these are handed, and, where they are installed, the kernels themselves.

No GPU is needed: the device's limits are set by hand, the library is a stand-in that writes the formula out, and the
real kernels run on a CPU in Triton's interpreter, in a process of their own.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from late import draw, gradients, leaf, plain

from smart_train.core.embeddings import Tokens
from smart_train.losses import maxsim_fused as kernels
from smart_train.losses.maxsim import maxsim

HOPPER = 227 << 10  # bytes of shared memory a block may ask for


class Library(types.ModuleType):
    """``maxsim_varlen`` by its contract: packed tokens, int32 offsets and hard loop bounds; sums, not means."""

    def __init__(self) -> None:
        super().__init__(kernels.LIBRARY)
        self.calls: list[tuple[bool, int, int]] = []

    def maxsim_varlen(self, queries, documents, query_offsets, document_offsets, longest_query, longest_document):
        assert query_offsets.dtype == document_offsets.dtype == torch.int32
        assert query_offsets[0] == 0 and query_offsets[-1] == len(queries)
        assert document_offsets[0] == 0 and document_offsets[-1] == len(documents)
        assert queries.is_contiguous() and documents.is_contiguous()
        rows = [
            Tokens(v.float(), o.diff().long()) for v, o in ((queries, query_offsets), (documents, document_offsets))
        ]
        assert [longest_query, longest_document] == [int(t.lengths.max()) for t in rows]
        self.calls.append((queries.requires_grad or documents.requires_grad, longest_query, longest_document))
        return torch.stack([torch.stack([(q @ x.t()).amax(1).sum() for x in rows[1].rows()]) for q in rows[0].rows()])


@pytest.fixture
def library(monkeypatch) -> Library:
    """The stand-in on a device that is taken for a Hopper GPU."""
    module = Library()
    monkeypatch.setattr(kernels, "_library", lambda: module)
    monkeypatch.setattr(kernels, "shared_memory", lambda device: HOPPER)
    monkeypatch.setattr(kernels, "_logged", set())
    return module


def test_half_precision_tokens_go_to_the_kernel_and_come_back_as_means(library):
    queries, documents = draw([5, 1, 3], 8, 0, torch.bfloat16), draw([4, 9], 8, 1, torch.bfloat16)
    found = maxsim(queries, documents)
    assert library.calls == [(False, 5, 9)] and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), plain(queries, documents), atol=1e-6, rtol=0)


def test_gradients_through_the_kernel_are_those_of_the_mean(library):
    queries, documents = draw([5, 1, 3], 8, 0, torch.float16), draw([4, 9], 8, 1, torch.float16)
    weights = torch.rand(3, 2)
    ours = gradients(maxsim, queries, documents, weights)
    assert library.calls == [(True, 5, 9)]
    theirs = gradients(plain, *(t.to(torch.float64) for t in (queries, documents)), weights)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), reference, atol=2e-3, rtol=2e-3)


def test_without_gradients_the_kernel_is_not_asked_to_keep_places(library):
    queries, documents = leaf(draw([2], 8, 0, torch.float16)), leaf(draw([4], 8, 1, torch.float16))
    with torch.no_grad():
        maxsim(queries, documents)
    assert library.calls == [(False, 2, 4)]


def refused(caplog, queries: Tokens, documents: Tokens) -> str:
    """What is logged when these tokens are scored twice; the scores must be the formula's."""
    with caplog.at_level(logging.WARNING, kernels.__name__):
        for _ in range(2):
            torch.testing.assert_close(
                maxsim(queries, documents).double(), plain(queries, documents), atol=4e-3, rtol=0
            )
    (said,) = caplog.messages
    return said


def test_float32_tokens_stay_exact_in_torch_tiles_and_this_is_logged_once(library, caplog):
    said = refused(caplog, draw([2, 3], 8, 0), draw([4, 1], 8, 1))
    assert "round float32 tokens to float16" in said and not library.calls


def test_without_the_library_the_tiles_score_and_the_extra_is_named_once(library, monkeypatch, caplog):
    monkeypatch.setattr(kernels, "_library", lambda: None)
    half = draw([2, 3], 8, 0, torch.bfloat16), draw([4, 1], 8, 1, torch.bfloat16)
    assert "smart-train[kernels]" in refused(caplog, *half)


def test_wider_tokens_than_shared_memory_takes_stay_with_the_tiles(library, caplog):
    said = refused(caplog, draw([2], 1025, 0, torch.bfloat16), draw([3], 1025, 1, torch.bfloat16))
    assert "1025 wide" in said and "takes 1024" in said and not library.calls
    maxsim(draw([2], 1024, 0, torch.bfloat16), draw([3], 1024, 1, torch.bfloat16))
    assert len(library.calls) == 1


@pytest.mark.parametrize(("shared", "widest"), [(227 << 10, 1024), (163 << 10, 1024), (99 << 10, 512), (48 << 10, 256)])
def test_the_widest_tokens_follow_from_the_smallest_block_twice_buffered(shared, widest):
    """(16 + 16) rows x width x 2 bytes x 2 stages + 16 x 16 x 4 bytes, beside 8 KiB that the compiler takes."""

    def needed(width: int) -> int:
        return (16 + 16) * width * 2 * 2 + 16 * 16 * 4 + (8 << 10)

    assert kernels._widest(shared) == widest
    assert needed(widest) <= shared < needed(2 * widest)


def test_batches_beyond_32_bit_offsets_stay_with_the_tiles(library, monkeypatch, caplog):
    monkeypatch.setattr(kernels, "OFFSETS", 3 * 2 * 2)  # B * N * longest query of the call below
    said = refused(caplog, draw([3, 1], 1, 0, torch.bfloat16), draw([4, 1], 1, 1, torch.bfloat16))
    assert "32-bit" in said and not library.calls


def test_deterministic_algorithms_keep_gradients_from_the_kernel(library, monkeypatch, caplog):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    queries, documents = draw([2], 8, 0, torch.bfloat16), draw([3], 8, 1, torch.bfloat16)
    maxsim(queries, documents)
    assert len(library.calls) == 1  # scores alone are the same in every run
    assert "deterministic" in refused(caplog, leaf(queries), leaf(documents))
    assert len(library.calls) == 1


def test_on_a_cpu_the_kernels_are_never_tried_and_nothing_is_logged(caplog):
    assert kernels.shared_memory(torch.device("cpu")) is None
    with caplog.at_level(logging.DEBUG, kernels.__name__):
        maxsim(draw([2], 8, 0, torch.bfloat16), draw([3], 8, 1, torch.bfloat16))
    assert not caplog.messages


def test_an_installation_without_triton_counts_as_none(monkeypatch):
    """Without Triton the library can be imported, and raises when it is called."""
    monkeypatch.setitem(sys.modules, kernels.LIBRARY, Library())
    monkeypatch.setitem(sys.modules, "triton", None)
    kernels._library.cache_clear()
    try:
        assert kernels._library() is None
    finally:
        kernels._library.cache_clear()


def test_the_stand_in_is_the_librarys_own_reference(library):
    reference = pytest.importorskip(f"{kernels.LIBRARY}.reference", reason="the extra `kernels` is not installed")
    queries, documents = draw([5, 1, 3], 8, 0, torch.float16), draw([4, 9], 8, 1, torch.float16)
    offsets = torch.tensor([0, 5, 6, 9], dtype=torch.int32), torch.tensor([0, 4, 13], dtype=torch.int32)
    theirs = reference.maxsim_reference_varlen(queries.values, documents.values, *offsets)
    ours = library.maxsim_varlen(queries.values, documents.values, *offsets, 5, 9)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


INTERPRETED = """
import sys
import torch
from late import draw, gradients, plain
from late_interaction_kernels import varlen
from smart_train.losses import maxsim_fused as kernels
from smart_train.losses.maxsim import maxsim

class Fixed:
    # Autotuning times candidates on a GPU; the interpreter gets the smallest blocks.
    def __init__(self, tuned, **blocks):
        self.function, self.blocks = tuned.fn, blocks
    def __getitem__(self, grid):
        return lambda *args, **named: self.function[grid](*args, **named, **self.blocks)

varlen._varlen_fwd_kernel = Fixed(varlen._varlen_fwd_kernel, BLOCK_Q=16, BLOCK_D=16)
varlen._varlen_bwd_dQ_kernel = Fixed(varlen._varlen_bwd_dQ_kernel)
varlen._varlen_bwd_dD_kernel = Fixed(varlen._varlen_bwd_dD_kernel)
kernels.shared_memory = lambda device: 227 << 10

queries, documents = draw([5, 1, 20], 12, 0, torch.float16), draw([4, 33, 1, 17], 12, 1, torch.float16)
wide = [t.to(torch.float64) for t in (queries, documents)]
torch.testing.assert_close(maxsim(queries, documents).double(), plain(*wide), atol=1e-6, rtol=0)
weights = torch.rand(3, 4)
for mine, reference in zip(gradients(maxsim, queries, documents, weights), gradients(plain, *wide, weights)):
    torch.testing.assert_close(mine.double(), reference, atol=1e-3, rtol=1e-3)
assert not kernels._logged, kernels._logged
print("kernels ran")
"""


@pytest.mark.slow
def test_the_real_kernels_give_the_formula_in_tritons_interpreter():
    """float16 alone: the interpreter can't multiply bfloat16.  A CPU run says nothing about speed or about a GPU."""
    pytest.importorskip("triton", reason="the extra `kernels` is not installed")
    pytest.importorskip(kernels.LIBRARY, reason="the extra `kernels` is not installed")
    root = Path(__file__).parents[2]
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests" / "helpers")]),
    }
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "kernels ran" in done.stdout, done.stderr[-3000:]
