"""Many rows -> Embeddings: in batches of like length and one kind, with progress, in the order they were given.

Knows: an encoder's preprocess and forward.  Does not know: how either works, scores, files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from smart_train.contents import length
from smart_train.embeddings import Embeddings, Tokens
from smart_train.model.inputs import Contents, Role, same_kind

if TYPE_CHECKING:
    from smart_train.model.encoder import SmartEncoder

Progress = Callable[[Iterable[Any]], Iterable[Any]]


@torch.no_grad()
def encode(
    encoder: SmartEncoder,
    contents: Contents,
    role: Role,
    batch_size: int = 32,
    progress: Progress | bool | None = None,
    dtype: torch.dtype | None = None,
    pooled_dim: int | None = None,
    token_dim: int | None = None,
) -> Embeddings:
    """See ``SmartEncoder.encode``."""
    if isinstance(contents, (str, dict)):
        raise TypeError(f"contents is a list of rows, and this is a single {type(contents).__name__}; write [row]")
    order = sorted(range(len(contents)), key=lambda i: -length(contents[i]))  # the longest first: memory shows now
    starts: Iterable[int] = range(0, len(order), batch_size)
    if progress:
        starts = progress(starts) if callable(progress) else _bar(starts, f"{role} batches")
    training = encoder.training
    encoder.eval()
    # Mixed precision training puts autocast around forward, in the object; a reloaded encoder has none, and its vectors
    # are the ones that count: so none here either.
    wrapped = encoder.__dict__.pop("forward", None)
    parts: list[tuple[list[int], Embeddings]] = []
    try:
        for start in starts:
            for rows in same_kind(order[start : start + batch_size], contents):
                features = encoder.preprocess([contents[i] for i in rows], role)
                on_device = {k: v.to(encoder.device) if isinstance(v, Tensor) else v for k, v in features.items()}
                found = encoder(on_device).cut(pooled_dim, token_dim).to("cpu")
                parts.append((rows, found if dtype is None else Embeddings(found.pooled, found.tokens.to(dtype))))
    finally:
        encoder.train(training)
        if wrapped is not None:
            encoder.__dict__["forward"] = wrapped
    if not parts:
        nothing = Tokens(torch.zeros(0, token_dim or encoder.token_width), torch.zeros(0, dtype=torch.int64))
        return Embeddings(torch.zeros(0, pooled_dim or encoder.pooled_width), nothing)
    placed = torch.tensor([row for rows, _ in parts for row in rows])
    return Embeddings.cat(e for _, e in parts).select(placed.argsort())


def _bar(batches: Iterable[int], what: str) -> Iterable[int]:
    from tqdm.auto import tqdm

    return tqdm(batches, desc=what, leave=False)
