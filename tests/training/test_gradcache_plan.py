"""What gradient caching runs, in which order, and how it replays what was drawn; on a model of a few numbers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import pytest
import torch
from steps import assert_gradients, taken
from torch import Tensor, nn

from smart_train.core.embeddings import Embeddings, Features, Tokens
from smart_train.losses.joint import Loss
from smart_train.training.gradcache import RandomState, cached_backward


class Toy(nn.Module):
    """Features of one number a row -> two tokens a row; counts its forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.pooled, self.tokens, self.drop = nn.Linear(3, 4), nn.Linear(3, 5), nn.Dropout(0.5)
        self.calls: list[bool] = []

    def forward(self, features: Features) -> Embeddings:
        self.calls.append(torch.is_grad_enabled())
        hidden = self.drop(features["input_ids"])
        pair = self.tokens(torch.cat([hidden, hidden.sin()], 1).view(-1, 3))
        return Embeddings(self.pooled(hidden), Tokens(pair, torch.full((len(hidden),), 2)))


def toy() -> tuple[Toy, list[Features], Callable[[Embeddings], Loss]]:
    torch.manual_seed(3)
    made = Toy()
    chunks = [{"input_ids": torch.randn(rows, 3)} for rows in (2, 1, 3)]

    def loss(both: Embeddings) -> Loss:
        total = both.pooled.pow(2).sum() * both.tokens.values.sin().mean() + both.pooled[0] @ both.pooled[-1]
        return Loss(total, {"loss/toy": total.detach()})

    return made, chunks, loss


def in_one_pass(model: Toy, chunks: list[Features], loss: Callable[[Embeddings], Loss]) -> dict[str, Tensor]:
    torch.manual_seed(4)
    loss(Embeddings.cat(model(chunk) for chunk in chunks)).total.backward()
    return taken(model)


@pytest.mark.parametrize("plan", [None, [0, 1, 2], [2, 0, 1], [0, 1, 2, 2, 2], [0, 0, 1, 2, 1]])
def test_a_plan_changes_order_and_number_of_forwards_and_no_gradient(plan):
    """A repeated chunk runs for the other ranks' sake: no gradient of its own, no number drawn."""
    model, chunks, loss = toy()
    model.drop.p = 0.5 if plan in (None, [0, 1, 2], [0, 1, 2, 2, 2], [0, 0, 1, 2, 1]) else 0.0
    expected, after = in_one_pass(model, chunks, loss), torch.get_rng_state()
    model.calls.clear()
    order: list[bool] = []
    torch.manual_seed(4)
    found = cached_backward(
        model,
        chunks,
        loss,
        lambda value, last: order.append(last) or value.backward(),
        plan,  # type: ignore[func-returns-value]
    )
    count = len(plan or chunks)
    assert model.calls == [False] * count + [True] * count
    assert order == [False] * (count - 1) + [True]
    assert_gradients(taken(model), expected)
    if model.drop.p:
        assert torch.equal(torch.get_rng_state(), after)
    assert found.parts["loss/toy"] == found.total


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_last_chunk_may_keep_its_graph_and_then_runs_once_and_goes_first(count):
    model, chunks, loss = toy()
    chunks = chunks[:count]
    expected, after = in_one_pass(model, chunks, loss), torch.get_rng_state()
    model.calls.clear()
    seen: list[tuple[str, bool]] = []

    @contextmanager
    def around(last: bool):
        seen.append(("in", last))
        yield

    def backward(value: Tensor, last: bool) -> None:
        seen.append(("backward", last))
        value.backward()

    torch.manual_seed(4)
    cached_backward(model, chunks, loss, backward, None, around, keep=True)
    assert model.calls == [False] * (count - 1) + [True] + [True] * (count - 1)
    lasts = [at == count - 1 for at in range(count)]
    assert seen == [("in", count == 1)] + [step for last in lasts for step in (("in", last), ("backward", last))]
    assert_gradients(taken(model), expected)
    assert torch.equal(torch.get_rng_state(), after)


def test_a_plan_that_ends_with_a_repetition_keeps_no_graph():
    model, chunks, loss = toy()
    expected = in_one_pass(model, chunks, loss)
    model.calls.clear()
    torch.manual_seed(4)
    cached_backward(model, chunks, loss, lambda value, last: value.backward(), [0, 1, 2, 2], keep=True)
    assert model.calls == [False] * 4 + [True] * 4
    assert_gradients(taken(model), expected)


def test_a_plan_that_leaves_a_chunk_out_is_refused():
    model, chunks, loss = toy()
    with pytest.raises(ValueError, match="does not name each of the 3 chunks"):
        cached_backward(model, chunks, loss, lambda value, last: value.backward(), [0, 1, 1])


def test_each_second_forward_and_its_backward_are_inside_of_around():
    model, chunks, loss = toy()
    seen: list[str] = []

    @contextmanager
    def around(last: bool):
        seen.append(f"in {last}")
        yield
        seen.append("out")

    model.register_forward_hook(lambda *_: seen.append("forward"))
    cached_backward(model, chunks, loss, lambda value, last: seen.append("backward") or value.backward(), None, around)  # type: ignore[func-returns-value]
    one = ["forward", "backward", "out"]
    assert seen == ["forward"] * 3 + ["in False", *one, "in False", *one, "in True", *one]


def test_what_the_loss_does_not_read_gets_no_gradient():
    """As in one pass; a zero instead would let weight decay move what was never trained."""
    model, chunks, _ = toy()
    cached_backward(model, chunks, lambda both: Loss(both.pooled.sum(), {}), lambda value, last: value.backward())
    assert taken(model).keys() == {"pooled.weight", "pooled.bias"}


def test_a_forward_that_changes_between_the_passes_is_refused():
    model, chunks, loss = toy()

    def growing(features: Features) -> Embeddings:
        found = model(features)
        return found if not torch.is_grad_enabled() else found.select([0])

    with pytest.raises(ValueError, match="the second; its forward depends on"):
        cached_backward(growing, chunks, loss, lambda value, last: value.backward())


# -- random states


def test_a_replay_draws_the_same_and_leaves_no_trace():
    chunk = {"input_ids": torch.zeros(1), "role": "query"}
    state = RandomState.before(chunk)
    first = torch.rand(5)
    torch.rand(7)
    before = torch.get_rng_state()
    with state.replayed():
        assert torch.equal(torch.rand(5), first)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(RuntimeError), state.replayed():
        torch.rand(3)
        raise RuntimeError
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_replay_draws_the_same_on_the_chunks_device():
    chunk = {"input_ids": torch.zeros(1, device="cuda")}
    state = RandomState.before(chunk)
    first = torch.rand(5, device="cuda")
    before = torch.cuda.get_rng_state()
    with state.replayed():
        assert torch.equal(torch.rand(5, device="cuda"), first)
    assert torch.equal(torch.cuda.get_rng_state(), before)
