"""Loss terms as a user writes them, good ones and bad ones; recipes name them as own_terms:Class."""

from __future__ import annotations

import torch
from torch import nn

from smart_train.losses import LossTerm


class HardestNegative(LossTerm):
    """Hinge on the distance between the positive and the hardest negative."""

    name, reads, trains = "hardest", ("scores.late",), ("tokens",)

    def __init__(self, weight: float = 1.0, margin: float = 0.1) -> None:
        super().__init__(weight)
        self.margin = margin

    def forward(self, scores, labels, embeddings):
        positive = scores.late[labels.query, labels.document]
        hardest = scores.late[labels.query].masked_fill(~labels.negatives, -1e9).amax(1)
        costs = (self.margin - positive + hardest).relu()
        return labels.mean(costs), {"distance": labels.mean(positive - hardest)}


class PlainLate(LossTerm):
    """The built-in term ``late``, written again by hand."""

    reads, trains = ("scores.late",), ("tokens",)

    def __init__(self, temperature: float = 0.05) -> None:
        super().__init__(temperature=temperature)

    def forward(self, scores, labels, embeddings):
        exponentials = (scores.late / self.temperature).exp()[labels.query]
        own = exponentials.gather(1, labels.document.unsqueeze(1)).squeeze(1)
        return labels.mean(((own + (exponentials * labels.negatives).sum(1)) / own).log())


class FirstToken(LossTerm):
    """Mean squared cosine of a row's pooled vector and its first token: a mean over rows, from vectors alone."""

    name, mean_over = "first_token", ("queries", "documents")
    reads, trains = ("embeddings.pooled", "embeddings.tokens"), ("tokens",)

    def forward(self, scores, labels, embeddings):
        return torch.stack([self.of(embeddings.queries), self.of(embeddings.own_documents)])

    @staticmethod
    def of(rows):
        first = torch.stack([tokens[0] for tokens in rows.tokens.rows()])
        return (first * rows.pooled).sum(1).square().mean()


class HalfHybrid(LossTerm):
    """Reads the hybrid scores and trains the tokens alone."""

    name, reads, trains = "half_hybrid", ("scores.hybrid",), ("tokens",)

    def forward(self, scores, labels, embeddings):
        return labels.mean(scores.hybrid[labels.query, labels.document].square())


class Secretive(LossTerm):
    """Declares less than it reads."""

    reads, trains = ("scores.pooled", "embeddings.pooled"), ("pooled",)

    def __init__(self, what: str = "scores.late") -> None:
        super().__init__()
        self.what = what

    def forward(self, scores, labels, embeddings):
        if self.what == "scores.late":
            return scores.late.mean()
        return embeddings.documents.tokens.values.mean()


class Shapeless(LossTerm):
    """Returns a cost for every pair in place of their mean."""

    reads, trains = ("scores.pooled",), ("pooled",)

    def forward(self, scores, labels, embeddings):
        return scores.pooled[labels.query, labels.document]


class WithParameters(LossTerm):
    """Has weights of its own."""

    reads, trains = ("scores.late",), ("tokens",)

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1).requires_grad_(not frozen)


class Misdeclared(LossTerm):
    """Names what does not exist."""

    reads, trains, mean_over = ("scores.latte",), ("token",), ("batches",)


class Unread(LossTerm):
    """Trains a view that it does not read."""

    reads, trains = ("scores.pooled",), ("pooled", "tokens")


class Refusing(LossTerm):
    """Its constructor refuses one value, its ``problems`` another."""

    name, reads, trains = "refusing", ("scores.late",), ("tokens",)
    schedulable = ("weight", "strength")

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()
        if strength == 3:
            raise ValueError("three is no strength")
        self.strength = strength

    def forward(self, scores, labels, embeddings):
        return self.strength * labels.mean(scores.late[labels.query, labels.document])

    def problems(self):
        yield from super().problems()
        if self.strength > 10:
            yield "strength", f"is {self.strength:g}, must be at most 10", "write 10"


class Spread(LossTerm):
    """Pushes the pooled vectors of documents apart; trains the pooled view alone."""

    name, reads, trains, mean_over = "spread", ("embeddings.pooled",), ("pooled",), ("documents",)

    def forward(self, scores, labels, embeddings):
        vectors = embeddings.own_documents.pooled
        return (vectors @ embeddings.documents.pooled.T).square().mean()


class NoTerm:
    """Is no loss term."""
