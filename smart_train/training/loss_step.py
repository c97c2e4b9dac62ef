"""Compute one step's loss from embeddings: gather the documents, label the negatives, apply the loss.

Plain and cached training call the same function, so that they cannot differ.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import InitVar, dataclass, field

import torch
from torch import Tensor

from smart_train.config.schema import HybridBlock, ObjectiveBlock
from smart_train.core.embeddings import Batch, Embeddings
from smart_train.distributed.gather import Gather
from smart_train.losses.compression import compressed
from smart_train.losses.false_negatives import grade_matrix, relevance_mask, repeated_documents, share_grades
from smart_train.losses.joint import Joint, Loss
from smart_train.losses.labels import Labels


@dataclass
class LossStep:
    """Turn a rank's embeddings into its loss.

    objective: how documents are gathered and labelled, and the loss, unless ``joint`` is given
    hybrid: weights of the hybrid score; pooled_widths, token_widths: Matryoshka cuts
    progress: share of the training that is done, for schedules
    dtype: what tokens are rounded to before they are gathered and compared (see ``token_dtype``); None = as they are
    terms: the loss that it computes
    Raises LossError where the objective describes no loss.
    """

    objective: ObjectiveBlock
    hybrid: HybridBlock
    pooled_widths: Sequence[int] = ()
    token_widths: Sequence[int] = ()
    progress: float = 0.0
    dtype: torch.dtype | None = None
    joint: InitVar[Joint | None] = None
    terms: Joint = field(init=False)
    gather: Gather = field(init=False)

    def __post_init__(self, joint: Joint | None) -> None:
        self.gather = Gather(self.objective.gather_group, enabled=self.objective.gather)
        self.terms = joint if joint is not None else Joint.from_recipe(self.objective)

    def loss(self, both: Embeddings, batch: Batch) -> Loss:
        """Return this rank's part of the loss.

        both: the rows of the batch's queries, then those of its documents, on this rank

        The mean over ranks of the returned totals is the mean over all drawn pairs of the world, and the mean over
        ranks of their gradients its gradient, exactly (see distributed/gather.py).
        """
        if self.dtype is not None:
            both = Embeddings(both.pooled, both.tokens.to(self.dtype))
        queries, own = both.split(len(batch.query_ids))
        if "tokens" in self.terms.views:
            own = Embeddings(own.pooled, compressed(own.tokens, self.objective.compression, self.progress))
        documents, mine = self.gather.documents(own, "pooled" in self.terms.views, "tokens" in self.terms.views)
        labels = self._labels(batch, mine, len(documents), self.terms.reads)
        widths = self.pooled_widths, self.token_widths
        return self.terms(queries, documents, labels, self.hybrid, *widths, progress=self.progress)

    def _labels(self, batch: Batch, mine: slice, count: int, reads: Collection[str]) -> Labels:
        """Labels over the ``count`` gathered documents, of which the columns ``mine`` are this rank's.

        reads: which of the labels that not every loss needs are made, see LossTerm.reads
        """
        keys = self.gather.keys(batch.document_keys)
        offset = batch.positives.new_tensor([0, mine.start])
        pairs, queries, documents = self.gather.shares(
            len(batch.positives), len(batch.query_ids), len(batch.document_keys)
        )
        return Labels(
            relevance=relevance_mask(batch.known, keys, self.objective.neighbour_pages),
            positives=batch.positives + offset,
            grades=share_grades(grade_matrix(batch.known, keys), keys) if "labels.grades" in reads else None,
            teacher=self._teacher(batch, mine, count) if "labels.teacher" in reads else None,
            repeats=repeated_documents(keys),
            query_repeats=self.gather.repeats(batch.query_ids) if "labels.query_repeats" in reads else None,
            own=mine,
            shares=(pairs, queries, documents),
            all_ranks=self.gather.columns,
        )

    @staticmethod
    def _teacher(batch: Batch, mine: slice, count: int) -> Tensor | None:
        """Return [B, N] over all ranks' documents: a teacher did not score those of other ranks."""
        return None if batch.teacher is None else batch.teacher.dense(len(batch.query_ids), count, mine.start)


def token_dtype(similarity: str, device: torch.device, bf16: bool = False) -> torch.dtype | None:
    """Return the dtype of the tokens' similarities from ``objective.similarity``; None = as the encoder gives them.

    "auto" is bfloat16 on a GPU that trains in it, else float32: hidden states have no more digits there, the fused
    kernels take no float32 (losses/maxsim_fused.py), and half as much crosses between GPUs.  Maxima, sums, softmax and
    the pooled scores stay in float32.  Never float16: a token's gradient is small, and would be 0 in it.
    """
    half = similarity == "bfloat16" or (similarity == "auto" and bf16 and device.type == "cuda")
    return torch.bfloat16 if half else None
