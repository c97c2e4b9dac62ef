"""Why a document got its late score: the similarity of every query token with every document token.

Knows: encoders, words, patch grids.  Does not know: how a map is drawn (heatmap_drawing.py), files, rankings.

The vectors are those that the encoder scores with, kept tokens only, so the late score can be read from the map:
the mean over query tokens of the best similarity in their row.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from smart_train.embeddings import Features
from smart_train.model.inputs import Role, open_content
from smart_train.model.slices import image_token
from smart_train.patches import PatchGrid, patch_grid
from smart_train.words import Word, words

if TYPE_CHECKING:
    from PIL import Image

    from smart_train.model.encoder import SmartEncoder


class HeatmapError(ValueError):
    """What was asked for has no heatmap; the message says why."""


@dataclass(frozen=True)
class Heatmap:
    """One query against one document.

    query: its text; similarity: [Q, T] float32, cosines of kept tokens
    query_words, document_words: the text tokens of both sides; page: the document's image, None = it has none
    grid, patches: where the page's tokens lie: rows x columns, and the [rows * columns] document tokens, row after row
    cut: texts of the two that were longer than the encoder reads, and were cut
    """

    query: str
    similarity: Tensor
    query_words: list[Word]
    document_words: list[Word]
    page: Image.Image | None = None
    grid: PatchGrid | None = None
    patches: tuple[int, ...] = ()
    cut: tuple[str, ...] = ()

    @property
    def late(self) -> float:
        """1/Q sum_i max_j similarity: what ``encoder.score(mode="late")`` gives."""
        return float(self.similarity.amax(1).double().mean())

    def of_word(self, word: Word) -> Tensor:
        """[T]: similarities of a query word, the mean of its tokens'."""
        return self.similarity[list(word.tokens)].mean(0)

    def share(self, word: Word) -> float:
        """What a query word has in the late score: the mean of its tokens' best similarities."""
        return float(self.similarity[list(word.tokens)].amax(1).mean())

    def over_query(self, over: str = "sum") -> Tensor:
        """[T]: of all query tokens, as one.  "sum" is divided by Q, in the unit of a cosine; "max" is of the best."""
        if over not in ("sum", "max"):
            raise HeatmapError(f"over is sum or max, not {over!r}")
        return self.similarity.mean(0) if over == "sum" else self.similarity.amax(0)

    def on_page(self, values: Tensor) -> Tensor:
        """[T] -> [rows, columns] of the page's patches."""
        if self.grid is None:
            raise HeatmapError("the document has no page")
        return values[list(self.patches)].view(self.grid.rows, self.grid.columns)

    def by_words(self) -> Tensor:
        """[query words, document words]: over a query word's tokens the mean of the best in the document word."""
        columns = [self.similarity[:, list(word.tokens)].amax(1) for word in self.document_words]
        rows = [[float(column[list(word.tokens)].mean()) for column in columns] for word in self.query_words]
        return self.similarity.new_tensor(rows).view(len(self.query_words), len(columns))


def measure(encoder: SmartEncoder, query: str, document: Any) -> Heatmap:
    """The map of a query and a document (text, PIL image, pathlib.Path of an image, {"text": ..., "image": ...}).

    Raises HeatmapError for a query that is no text, and PatchGridError where the places of a page's tokens are not
    known.
    """
    if not isinstance(query, str):
        raise HeatmapError(f"the query is a {type(query).__name__}; its words are shown, so it has to be a text")
    document = open_content(document)
    asked, read = _read(encoder, query, query, "query"), _read(encoder, document, _text(document), "document")
    page = document.get("image") if isinstance(document, dict) else None if isinstance(document, str) else document
    grid = None
    if page is not None:
        processor = encoder.transformer.processor
        grid = patch_grid(read.features, encoder.backbone.config, processor, len(read.patches))
    cut = tuple(role for role, side in (("query", asked), ("document", read)) if side.features["cut"])
    similarity = asked.vectors.float() @ read.vectors.float().t()
    return Heatmap(query, similarity, asked.words, read.words, page, grid, read.patches, cut)


def _text(document: Any) -> str:
    if isinstance(document, dict):
        return document.get("text") or ""
    return document if isinstance(document, str) else ""


@dataclass(frozen=True)
class _Side:
    """vectors: [kept tokens, d]; words: of the text tokens; patches: which tokens are image tokens."""

    features: Features
    vectors: Tensor
    words: list[Word]
    patches: tuple[int, ...] = ()


def _read(encoder: SmartEncoder, content: Any, text: str, role: Role) -> _Side:
    features = encoder.preprocess([content], role)
    ids, mask = features["input_ids"], features["attention_mask"]
    vectors: Tensor = encoder.encode([content], role).tokens.values
    there = mask[0].bool()
    row, kept = ids[0][there].tolist(), encoder.keep(ids, mask)[0][there].tolist()
    if not any(kept):  # the pooled vector stands in as the only token
        return _Side(features, vectors, [Word("(pooled)", (0,))])
    if sum(kept) != len(vectors):
        raise HeatmapError(f"the {role} has {sum(kept)} kept tokens and {len(vectors)} vectors; they must be the same")
    placeholder = image_token(encoder.backbone.config)
    numbers = [number - 1 if keep else None for number, keep in zip(accumulate(kept), kept, strict=True)]
    patches = tuple(n for n, one in zip(numbers, row, strict=True) if n is not None and one == placeholder)
    of_text = [None if one == placeholder else n for n, one in zip(numbers, row, strict=True)]
    return _Side(features, vectors, words(encoder.tokenizer, row, of_text, text), patches)


def page_heatmap(
    encoder: SmartEncoder, query: str, document: Any, path: str | Path | None = None, over: str = "sum"
) -> Image.Image:
    """The picture of ``measure``: over the page for a document with an image, a matrix of words for a text.

    path: where the picture is written too; over: "sum" or "max" of the query tokens in the large picture.
    Needs no display.  Raises as ``measure`` does.
    """
    from smart_train.heatmap_drawing import draw

    picture = draw(measure(encoder, query, document), over)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return picture
