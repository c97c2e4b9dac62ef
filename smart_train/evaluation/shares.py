"""Who encodes what, and whose ranking it is: a collection dealt to ranks, and their best documents joined.

Knows: a corpus by id, ranks that meet.  Does not know: encoders, embeddings, scores, how ranks meet.

Documents stay with the rank that encodes them; what crosses is the best of each query.  They are dealt longest first,
one to each rank in turn, so that every rank has its part of every length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from smart_train.evaluation.best import Best
from smart_train.evaluation.peers import Meetings

SPARES = 8  # rows tried before a rank gives up staying in step


class Document(Protocol):
    @property
    def text(self) -> str | None: ...

    @property
    def title(self) -> str | None: ...

    @property
    def image(self) -> Any: ...

    def content(self) -> Any: ...


@dataclass
class Share:
    """One rank's documents among those of all.

    corpus: ids of all ranks' documents, in the same order on every rank
    places: [own documents] int64, of each in ``corpus``; None = all are this rank's, in that order
    """

    corpus: Sequence[str]
    places: Tensor | None = None
    meetings: Meetings = field(default_factory=Meetings)

    def joined(self, best: Mapping[str, Best]) -> dict[str, Best]:
        """The best of all ranks, by view, with places in ``corpus``; a collective where there are several."""
        places = torch.arange(len(self.corpus)) if self.places is None else self.places
        found = self.meetings.meet({name: one.kept(places) for name, one in best.items()})
        return {name: one.joined(each[name] for each in found) for name, one in best.items()}


@dataclass(frozen=True)
class Portion:
    """Documents to encode together.

    ids: this rank's own; none where only the others have some left
    rows: how many to run: above len(ids) where ranks run as many forwards each, and repeats make up for rows
    spares: a few of the same kind, for a rank that has no row to repeat, or none that can be encoded
    """

    ids: list[str]
    rows: int
    spares: list[str]


def portions(corpus: Mapping[str, Document], meetings: Meetings, text_rows: int, image_rows: int) -> Iterator[Portion]:
    """This rank's documents: texts by length, longest first, then images in their order.

    text_rows, image_rows: most rows of a portion.  Where ranks run together, all have as many portions of as many rows,
    and images with a text come after those without: a batch of both kinds would be two forwards.
    """
    kinds: dict[tuple[bool, bool], list[str]] = {}
    for id, document in corpus.items():
        image = document.image is not None
        kinds.setdefault((image, image and meetings.together and document.text is not None), []).append(id)
    for (image, _), ids in sorted(kinds.items()):
        if not image:
            ids.sort(key=lambda id: -len(corpus[id].text or ""))
        size = image_rows if image else text_rows
        own, rows = dealt(ids, meetings), run_rows(len(ids), meetings)
        for begin in range(0, rows, size):
            yield Portion(own[begin : begin + size], min(size, rows - begin), ids[-SPARES:])


def dealt(rows: Sequence[Any], meetings: Meetings, rank: int | None = None, block: int = 1) -> list[Any]:
    """What one rank gets of some rows (None = this one): every W-th ``block`` of rows."""
    first = (meetings.rank if rank is None else rank) * block
    starts = range(first, len(rows), meetings.world * block)
    return [row for start in starts for row in rows[start : start + block]]


def run_rows(rows: int, meetings: Meetings) -> int:
    """How many of so many rows this rank runs: its own, or where ranks run together, as many as any has."""
    if meetings.together:
        return math.ceil(rows / meetings.world)
    return len(range(meetings.rank, rows, meetings.world))
