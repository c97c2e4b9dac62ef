"""Compress token vectors: fewer of them by pooling, fewer bits by rounding; for training, and for an index alike.

Pooling (token pooling, Clavie et al. 2024, arXiv 2409.14683): the T tokens of a row are put in K = ceil(T / factor)
clusters by their cosines, and each cluster becomes the normalised mean of its tokens.  Rounding is symmetric, with one
scale a vector.  In training the clusters and the rounding have no gradient of their own: a token gets the gradient of
its cluster's mean, and rounding passes gradients on unchanged (straight-through, Bengio et al. 2013, arXiv 1308.3432).
"""

from __future__ import annotations

import random
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from smart_train.config.schema import CompressionBlock
from smart_train.core.embeddings import Tokens
from smart_train.core.errors import UsageError

Method = Literal["hierarchical", "kmeans"]
METHODS = ("hierarchical", "kmeans")
BITS = (4, 8, 32)
ROUNDS = 8  # of k-means: the assignments of unit vectors hardly move after that


def drawn(block: CompressionBlock, progress: float) -> tuple[int, int]:
    """Return the factor and the bits of the step at the share ``progress`` of training: the same on every rank, and in
    a resumed run.  A list that is empty stands for 1, and for 32.

    >>> drawn(CompressionBlock(factors=[2], bits=[8]), 0.3)
    (2, 8)
    """
    source = random.Random(f"0 {progress!r}")
    return source.choice(block.factors or [1]), source.choice(block.bits or [32])


def compressed(tokens: Tokens, block: CompressionBlock, progress: float) -> Tokens:
    """Return document tokens as the step at the share ``progress`` of training compares them.

    tokens: N ragged rows of unit vectors [sum T, d]; themselves where the block turns nothing on
    """
    factor, bits = drawn(block, progress)
    return rounded(pooled_tokens(tokens, factor, block.method), bits)


def check_pooling(factor: int, method: str) -> None:
    """Raise UsageError for a factor and a method that ``pooled_tokens`` does not take."""
    if factor < 1 or method not in METHODS:
        raise UsageError(f"tokens cannot be pooled by {factor} with {method!r}; give 1 or more, and one of {METHODS}")


def pooled_tokens(tokens: Tokens, factor: int, method: Method = "hierarchical") -> Tokens:
    """Pool the tokens of each row: T tokens -> at most ceil(T / factor), L2-normalised.

    tokens: N ragged rows of unit vectors [sum T, d]; gradients flow through the means, not through the clusters
    method: ``hierarchical``, Ward's clusters (scipy, on the CPU, about T^2 d a row), or ``kmeans``, cosine k-means of
        all rows at once on the tokens' device, from evenly spaced tokens
    Raises UsageError for a factor below 1 and another method.

    >>> row = Tokens(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]]), torch.tensor([3]))
    >>> pooled_tokens(row, 2).values  # the first and the third are alike
    tensor([[0.9487, 0.3162],
            [0.0000, 1.0000]])
    """
    check_pooling(factor, method)
    if factor == 1 or not len(tokens.values):
        return tokens
    with torch.no_grad(), torch.autocast(tokens.values.device.type, enabled=False):
        rows = [row.float() for row in tokens.rows()]
        clusters = _kmeans(rows, factor) if method == "kmeans" else [_ward(row, factor) for row in rows]
        places, lengths = _numbered(clusters)
    values = tokens.values.float() if tokens.values.dtype.itemsize < 4 else tokens.values
    sums = values.new_zeros(int(lengths.sum()), values.shape[1]).index_add(0, places, values)
    return Tokens(F.normalize(sums, dim=1).to(tokens.values.dtype), lengths)


def rounded(tokens: Tokens, bits: int) -> Tokens:
    """Round each vector's numbers to 2^bits - 1 steps between -max and max of the vector; gradients pass unchanged.

    tokens: N ragged rows; bits: 4, 8, or 32 = as they are

    >>> rounded(Tokens(torch.tensor([[1.0, 0.26]]), torch.tensor([1])), 4).values  # steps of 1 / 7
    tensor([[1.0000, 0.2857]])
    """
    if bits not in BITS:
        raise UsageError(f"numbers cannot be rounded to {bits} bits; give one of {', '.join(map(str, BITS))}")
    if bits == 32:
        return tokens
    steps = 2 ** (bits - 1) - 1
    values = tokens.values.detach().float()
    scale = values.abs().amax(1, keepdim=True).clamp(min=1e-12) / steps
    change = (values / scale).round() * scale - values
    return Tokens(tokens.values + change.to(tokens.values.dtype), tokens.lengths)


def _ward(row: Tensor, factor: int) -> Tensor:
    """Cluster numbers [T] of one row by Ward's method, which merges what raises the variance within clusters least."""
    from scipy.cluster.hierarchy import fcluster, linkage

    wanted = -(-len(row) // factor)
    if wanted == len(row):
        return torch.arange(len(row), device=row.device)
    tree = linkage(row.cpu().double().numpy(), method="ward")
    return torch.from_numpy(fcluster(tree, wanted, criterion="maxclust")).long().to(row.device)


def _kmeans(rows: list[Tensor], factor: int) -> list[Tensor]:
    """Cluster numbers [T] of every row by spherical k-means, all rows at once."""
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    wanted = (lengths + factor - 1) // factor
    tokens = pad_sequence(rows, batch_first=True)  # [N, T, d]
    there = torch.arange(tokens.shape[1], device=tokens.device) < lengths.unsqueeze(1)  # [N, T]
    most = int(wanted.max())
    number = torch.arange(most, device=tokens.device)
    outside = number >= wanted.unsqueeze(1)  # [N, K]
    first = (number * lengths.unsqueeze(1) // wanted.unsqueeze(1)).clamp(max=tokens.shape[1] - 1)  # evenly spaced
    centres = tokens.gather(1, first.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
    nearest = first.new_zeros(there.shape)
    for _ in range(ROUNDS):
        nearest = (tokens @ centres.transpose(1, 2)).masked_fill(outside.unsqueeze(1), -torch.inf).argmax(2)  # [N, T]
        members = F.one_hot(nearest, most).to(tokens.dtype) * there.unsqueeze(2)  # [N, T, K]
        means = F.normalize(members.transpose(1, 2) @ tokens, dim=2)
        empty = members.sum(1) == 0
        centres = torch.where(empty.unsqueeze(2), centres, means)
    return [one[: int(length)] for one, length in zip(nearest, lengths, strict=True)]


def _numbered(clusters: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return each token's place among all pooled tokens [sum T], in the order of each cluster's first token, and the
    number of clusters of every row [N]."""
    places, lengths, begin = [], [], 0
    for row in clusters:
        names, inverse = row.unique(return_inverse=True)
        first = torch.full((len(names),), len(row), device=row.device).scatter_reduce(
            0, inverse, torch.arange(len(row), device=row.device), "amin"
        )
        order = first.argsort().argsort()
        places.append(order[inverse] + begin)
        lengths.append(len(names))
        begin += len(names)
    return torch.cat(places), torch.tensor(lengths, device=clusters[0].device)
