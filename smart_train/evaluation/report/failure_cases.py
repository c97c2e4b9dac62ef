"""Show the queries with the lowest metric: their relevant documents, and the documents found instead."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from smart_train.evaluation.protocols import Document
from smart_train.evaluation.report.outcome import Outcome
from smart_train.evaluation.topk import tie_hash

logger = logging.getLogger(__name__)

Heatmap = Callable[[str, Any], Any]
"""(query text, a document's content) -> PIL image."""

WIDTH = 360  # pixels of a thumbnail: one and a half times what a page shows, for dense screens and print
EXCERPT = 420  # characters of a text
FOUND = 3  # documents shown of what was found


@dataclass
class ShownDocument:
    """A document as the report shows it.

    place: file and page, or the id; image: data URI of a thumbnail, or None; text: its beginning, or ""
    relevant: whether it is relevant to the query; rank, score: in the hybrid ranking, None = not among those kept
    heatmap: data URI of the similarity map, or None
    """

    id: str
    place: str
    image: str | None
    text: str
    relevant: bool
    rank: int | None = None
    score: float | None = None
    heatmap: str | None = None


@dataclass
class FailureCase:
    """A query with its values of the metric; ranks: column -> rank of the first relevant document, None = beyond those
    kept. wanted: its relevant documents; found: the top of the hybrid ranking."""

    query: str
    text: str
    kind: str
    file: str
    values: dict[str, float]
    ranks: dict[str, int | None]
    wanted: list[ShownDocument] = field(default_factory=list)
    found: list[ShownDocument] = field(default_factory=list)
    missing: int = 0  # relevant documents that the corpus lacks
    more: int = 0  # relevant documents that are not shown


def failure_cases(
    outcome: Outcome, corpus: Mapping[str, Document], count: int, heatmap: Heatmap | None = None, heatmaps: int = 0
) -> list[FailureCase]:
    """Return the ``count`` queries with the lowest hybrid metric below 1; of equals, those whose first relevant
    document has the lowest rank, then by a hash.

    heatmaps: number of queries whose page images get a similarity map
    """
    values = outcome.values(outcome.metric)

    def order(query: str) -> tuple[float, float, bytes]:
        rank = outcome.first_relevant("hybrid", query)
        return values["hybrid"][query], -(rank or float("inf")), tie_hash(query, "worst")

    chosen = sorted((query for query, value in values["hybrid"].items() if value < 1 - 1e-9), key=order)[:count]
    return [
        _failure_case(outcome, corpus, query, values, heatmap if place < heatmaps else None)
        for place, query in enumerate(chosen)
    ]


def _failure_case(
    outcome: Outcome,
    corpus: Mapping[str, Document],
    query: str,
    values: Mapping[str, Mapping[str, float]],
    heatmap: Heatmap | None,
) -> FailureCase:
    judged = {id: grade for id, grade in outcome.qrels[query].items() if grade > 0}
    there = sorted((id for id in judged if id in corpus), key=lambda id: (-judged[id], id))
    ranking = outcome.rankings()["hybrid"].get(query, [])
    places = {id: (rank, score) for rank, (id, score) in enumerate(ranking, 1)}

    mapped = {*there[:1], *(id for id, _ in ranking[:1])}  # the best relevant document, and the one found in its place

    def show(id: str) -> ShownDocument:
        rank, score = places.get(id, (None, None))
        shown = _show(corpus[id], id in judged, rank, score)
        if heatmap is not None and shown.image is not None and id in mapped:
            shown.heatmap = _heatmap(heatmap, outcome.queries[query], corpus[id])
        return shown

    return FailureCase(
        query,
        _excerpt(outcome.queries[query]),
        outcome.kinds.get(query, ""),
        outcome.files.get(query, ""),
        {column: row[query] for column, row in values.items()},
        {column: outcome.first_relevant(column, query) for column in values},
        [show(id) for id in there[:2]],
        [show(id) for id, _ in ranking[:FOUND]],
        len(judged) - len(there),
        max(0, len(there) - 2),
    )


def _show(document: Document, relevant: bool, rank: int | None, score: float | None) -> ShownDocument:
    id = str(getattr(document, "id", ""))
    file, page = getattr(document, "file", None), getattr(document, "page", None)
    place = f"{file}, page {page}" if file and page is not None else f"{file}: {id}" if file else id
    content = document.content() if document.image is not None else document.text
    image = content.get("image") if isinstance(content, dict) else None if isinstance(content, str) else content
    text = _excerpt(document.text or "")
    return ShownDocument(id, place, thumbnail(image) if image is not None else None, text, relevant, rank, score)


def _excerpt(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= EXCERPT else text[:EXCERPT].rsplit(" ", 1)[0] + " ..."


def _heatmap(heatmap: Heatmap, query: str, document: Document) -> str | None:
    """Draw a similarity map. If it cannot be drawn, log a warning and go on: it is an extra."""
    try:
        return thumbnail(heatmap(query, document.content()), 1400)
    except (ValueError, RuntimeError) as error:
        logger.warning("no heatmap of document %r: %s", getattr(document, "id", ""), error)
        return None


def thumbnail(image: Any, width: int = WIDTH) -> str:
    """Return a picture as a data URI of a JPEG, at most ``width`` pixels wide."""
    if isinstance(image, list | tuple):  # several pictures, or a video's frames: the first stands for all
        image = image[0]
    small = image.convert("RGB")
    small.thumbnail((width, 2 * width))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=75, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
