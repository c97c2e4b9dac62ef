"""Gradient caching: compute the exact gradient of one loss over many rows in the memory of a few of them.

Gao et al. 2021 (arXiv 2101.06983), for pooled vectors and ragged tokens together.  With f the forward, theta its
weights and e_c = f(chunk c; theta) the embeddings of a chunk, the chain rule reads

    dL/dtheta = sum over chunks c of  (de_c/dtheta)^T dL/de_c

so 1. every chunk is embedded without a graph, 2. L and dL/de are computed on the joined embeddings, 3. every chunk is
embedded again, and the backward of the surrogate  sum(e_c * dL/de_c)  adds its summand.  Only one chunk's activations
exist at a time; the price is one more forward, of all chunks but one where the last one's graph is kept.  Dropout is
the same in 1 and 3, because the random state that a chunk began with is replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from smart_train.core.embeddings import Embeddings, Features, Tokens
from smart_train.core.errors import ExtensionResultError
from smart_train.losses.joint import Loss


@dataclass
class RandomState:
    """The state of the random generators of the CPU and of a chunk's devices."""

    cpu: Tensor
    devices: dict[torch.device, Tensor] = field(default_factory=dict)

    @classmethod
    def before(cls, chunk: Features) -> RandomState:
        """Return the state now, on every device that the chunk is on."""
        found = {value.device for value in chunk.values() if isinstance(value, Tensor)}
        return cls._now({device for device in found if device.type not in ("cpu", "meta")})

    @classmethod
    def _now(cls, devices: set[torch.device]) -> RandomState:
        return cls(torch.get_rng_state(), {device: _read(device) for device in devices})

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Draw the same random numbers again within this block; afterwards the generators are as before it."""
        present = self._now(set(self.devices))
        self._set()
        try:
            yield
        finally:
            present._set()

    def _set(self) -> None:
        torch.set_rng_state(self.cpu)
        for device, state in self.devices.items():
            module = torch.get_device_module(device)
            module.set_rng_state(state, *([] if device.type == "mps" else [device]))


def _read(device: torch.device) -> Tensor:
    state: Tensor = torch.get_device_module(device).get_rng_state(*([] if device.type == "mps" else [device]))
    return state


def cached_backward(
    forward: Callable[[Features], Embeddings],
    chunks: Sequence[Features],
    loss: Callable[[Embeddings], Loss],
    backward: Callable[[Tensor, bool], None],
    plan: Sequence[int] | None = None,
    around: Callable[[bool], AbstractContextManager[None]] = lambda last: nullcontext(),
    keep: bool = False,
) -> Loss:
    """Accumulate the gradient of ``loss`` over all chunks, and return the loss, detached.

    forward: embeds a chunk; called without a graph, then with one.  loss: of the rows of all chunks, in their order.
    backward(surrogate, last): a scalar's backward; a factor given to it (accumulation, a loss scale) is a factor of
    the gradient.  around(last): entered around a chunk's second forward and backward.
    plan: numbers of the chunks in the order of running; None = as they come.  A chunk named again adds nothing: ranks
    whose engine wants as many forwards and backwards of everyone repeat one.
    keep: the last chunk's first forward has the graph, is not repeated and goes backward first.  Still one
    chunk's activations exist at a time, only earlier, while the loss is computed; with 4 chunks a side of rising length
    (the collator's order) a third of the second forwards is saved.  Not for engines that count forwards.
    ``chunks`` is indexed twice, so it may be one that moves a chunk to its device only when it is asked for.
    The random generators end where a pass over the chunks in the plan's order leaves them.
    Raises ValueError where the plan leaves a chunk out.
    """
    order = list(range(len(chunks)) if plan is None else plan)
    if set(order) != set(range(len(chunks))):
        raise ValueError(
            f"the plan {order} does not name each of the {len(chunks)} chunks; a gradient would be missing"
        )
    kept = order[-1] if keep and order.count(order[-1]) == 1 else None
    parts, states = _embed(forward, chunks, order if kept is None else order[:-1])
    held: Embeddings | None = None
    if kept is not None:
        with around(len(order) == 1):  # an engine looks at a forward, too, whether its backward will cross ranks
            held = forward(chunks[kept])
        parts[kept] = Embeddings(held.pooled.detach(), Tokens(held.tokens.values.detach(), held.tokens.lengths))
        order = [kept, *order[:-1]]
    sizes = {number: (len(part), len(part.tokens.values)) for number, part in parts.items()}
    found, pooled, tokens = _gradients([parts.pop(number) for number in range(len(chunks))], loss)
    seen: set[int] = set()
    for at, number in enumerate(order):
        last = at == len(order) - 1
        with around(last):
            again = held if held is not None else _again(forward, chunks[number], states[number])
            held = None
            surrogate = _surrogate(again, pooled[number], tokens[number], sizes[number])
            backward(surrogate * 0.0 if number in seen else surrogate, last)
        seen.add(number)
        del again, surrogate
    return found


def _again(forward: Callable[[Features], Embeddings], chunk: Features, state: RandomState) -> Embeddings:
    with state.replayed():
        return forward(chunk)


def _embed(
    forward: Callable[[Features], Embeddings], chunks: Sequence[Features], order: list[int]
) -> tuple[dict[int, Embeddings], dict[int, RandomState]]:
    """Step 1: every chunk's embeddings, and the random state before its forward."""
    parts: dict[int, Embeddings] = {}
    states: dict[int, RandomState] = {}
    with torch.no_grad():
        for number in order:
            chunk = chunks[number]
            if number in states:  # a repetition: an engine counts it, the generators do not
                with states[number].replayed():
                    forward(chunk)
                continue
            states[number] = RandomState.before(chunk)
            parts[number] = forward(chunk)
    # Autocast remembers its casts of the weights while it is on; those made here have no graph.
    torch.clear_autocast_cache()
    return parts, states


def _gradients(
    parts: list[Embeddings], loss: Callable[[Embeddings], Loss]
) -> tuple[Loss, Sequence[Tensor | None], Sequence[Tensor | None]]:
    """Step 2: the loss of all rows, and its gradient to every chunk's pooled vectors and tokens (None = none).

    Empties ``parts``: joined and apart, the embeddings would be held twice while the loss is computed.  The gradients
    stay whole, as views, since the most memory is in use while the first chunk goes backward, and it needs them all.
    """
    sizes = [len(part) for part in parts]
    counts = [len(part.tokens.values) for part in parts]
    lengths = torch.cat([part.tokens.lengths for part in parts])
    pooled = torch.cat([part.pooled for part in parts])
    values = [part.tokens.values for part in parts]
    parts.clear()
    tokens = torch.cat(values)
    values.clear()
    sides = [pooled.requires_grad_(), tokens.requires_grad_()]
    found = loss(Embeddings(pooled, Tokens(tokens, lengths)))
    gradients = torch.autograd.grad(found.total, sides, allow_unused=True)
    first, second = (
        [None] * len(sizes) if g is None else g.split(rows) for g, rows in zip(gradients, (sizes, counts), strict=True)
    )
    return Loss(found.total.detach(), found.parts), first, second


def _surrogate(own: Embeddings, pooled: Tensor | None, tokens: Tensor | None, size: tuple[int, int]) -> Tensor:
    """sum(e * dL/de): a scalar whose gradient is the chunk's summand.  A side without a gradient stays out of it, so
    that what it alone would have trained gets none, as in one pass."""
    if (len(own), len(own.tokens.values)) != size:
        raise ExtensionResultError(
            f"a chunk had {size[0]} rows and {size[1]} tokens the first time and {len(own)} and "
            f"{len(own.tokens.values)} the second",
            "its forward depends on something besides weights and random states: remove that, or objective.batch",
        )
    sides = [(own.pooled, pooled), (own.tokens.values, tokens)]
    terms = [(side * gradient).sum() for side, gradient in sides if gradient is not None]
    return torch.stack(terms).sum()
