"""One step's loss from embeddings: gather the documents, find out who may be a negative, compute the joint loss.

Plain and cached training call the same function, so that they cannot differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from smart_train.config.schema import HybridBlock, ObjectiveBlock
from smart_train.core.embeddings import Batch, Embeddings
from smart_train.distributed.gather import Gather
from smart_train.losses.false_negatives import grades, relevance, repeats, shared
from smart_train.losses.joint import Labels, Loss, at, joint_loss, needs


@dataclass
class Step:
    """What turns a rank's embeddings into its loss.

    pooled_widths, token_widths: Matryoshka cuts; progress: share of the training that is done, for schedules
    dtype: what tokens are rounded to before they are gathered and compared (see ``token_dtype``); None = as they are
    """

    objective: ObjectiveBlock
    hybrid: HybridBlock
    pooled_widths: Sequence[int] = ()
    token_widths: Sequence[int] = ()
    progress: float = 0.0
    dtype: torch.dtype | None = None
    gather: Gather = field(init=False)

    def __post_init__(self) -> None:
        self.gather = Gather(self.objective.gather_group, enabled=self.objective.gather)

    def loss(self, both: Embeddings, batch: Batch) -> Loss:
        """both: the rows of the batch's queries, then those of its documents, on this rank.

        The mean over ranks of the returned totals is the mean over all drawn pairs of the world, and the mean over
        ranks of their gradients its gradient, exactly (see distributed/gather.py).
        """
        if self.dtype is not None:
            both = Embeddings(both.pooled, both.tokens.to(self.dtype))
        queries, own = both.split(len(batch.query_ids))
        pooled, tokens = needs(self.objective)
        documents, mine = self.gather.documents(own, pooled, tokens)
        labels = self._labels(batch, mine, len(documents))
        return joint_loss(
            queries,
            documents,
            labels,
            at(self.objective, self.progress),
            self.hybrid,
            self.pooled_widths,
            self.token_widths,
            self.gather.columns,
        )

    def _labels(self, batch: Batch, mine: slice, count: int) -> Labels:
        """Labels over the ``count`` gathered documents, of which the slice ``mine`` are this rank's."""
        keys = self.gather.keys(batch.document_keys)
        offset = batch.positives.new_tensor([0, mine.start])
        pairs, queries, documents = self.gather.shares(
            len(batch.positives), len(batch.query_ids), len(batch.document_keys)
        )
        # Where a query acts beyond its pairs, one whose pairs were dealt to several ranks may do so once only.
        beyond = self.objective.symmetric or self.objective.loss == "sigmoid"
        return Labels(
            relevance=relevance(batch.known, keys, self.objective.neighbour_pages),
            positives=batch.positives + offset,
            grades=shared(grades(batch.known, keys), keys) if self.objective.graded else None,
            teacher=_widened(batch.teacher, mine, count),
            repeats=repeats(keys),
            query_repeats=self.gather.repeats(batch.query_ids) if beyond else None,
            own=mine,
            shares=(pairs, queries, documents),
        )


def token_dtype(similarity: str, device: torch.device, bf16: bool = False) -> torch.dtype | None:
    """dtype of the tokens' similarities from ``objective.similarity``; None = float32, as the encoder gives them.

    "auto" is bfloat16 on a GPU that trains in it, else float32: hidden states have no more digits there, the fused
    kernels take no float32 (kernels.py), and half as much crosses between GPUs.  Maxima, sums, softmax and the pooled
    scores stay in float32.  Never float16: a token's gradient is small, and would be 0 in it.
    """
    half = similarity == "bfloat16" or (similarity == "auto" and bf16 and device.type == "cuda")
    return torch.bfloat16 if half else None


def _widened(teacher: Tensor | None, mine: slice, count: int) -> Tensor | None:
    """The own [B, N] columns among those of all ranks: a teacher says nothing of the others' documents."""
    if teacher is None:
        return None
    return F.pad(teacher, (mine.start, count - mine.stop), value=float("nan"))
