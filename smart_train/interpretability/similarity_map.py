"""Compute a similarity map: the cosine of every query token with every document token, and the place of each token.

The map explains a late score: ``late = 1/Q sum_i max_j similarity[i, j]``. Sub-word tokens are joined into words, and
the image tokens of a page are placed on a grid of patches.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import isqrt
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from torch import Tensor

from smart_train.core.embeddings import Features
from smart_train.core.errors import HeatmapError
from smart_train.models.microbatches import GRID, image_token
from smart_train.models.preprocessing import Role, open_content

if TYPE_CHECKING:
    from PIL import Image

    from smart_train.models.encoder import SmartEncoder

WINDOW = 4  # tokens decoded together: a letter has at most 4 bytes, and at worst each is a token
WORD = re.compile(r"\w+(?:[-'’.,_@/]\w+)*|[^\w\s]+")
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")  # Thai to Han: no blanks
BREAK, BLANK = "↵", "␣"  # shown for a token of white space
HALF = "\ufffd"  # what decoders put for the bytes of half a letter


@dataclass(frozen=True)
class PatchGrid:
    """Rows x columns of image tokens, row by row, over the whole page."""

    rows: int
    columns: int


@dataclass(frozen=True)
class Word:
    """One word of a query or document.

    text: as it is shown; tokens: its rows among the kept tokens; own: whether it belongs to the content itself, not to
    the prompt or the chat template (whose tokens count in a late score, too)
    """

    text: str
    tokens: tuple[int, ...]
    own: bool = True


@dataclass(frozen=True)
class SimilarityMap:
    """Token similarities of one query and one document.

    query: its text
    similarity: [Q, T] float32, cosines of the kept tokens
    query_words, document_words: the text tokens of each, as words
    page: the document's image; None = it has none
    grid, patches: rows x columns of the page, and its [rows * columns] document tokens, row by row
    cut: which of "query" and "document" were longer than the encoder reads, and were cut
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
        """Late score, 1/Q sum_i max_j similarity: equal to ``encoder.score(..., mode="late")``."""
        return float(self.similarity.amax(1).double().mean())

    def of_word(self, word: Word) -> Tensor:
        """Return a query word's similarities [T]: the mean over its tokens."""
        return self.similarity[list(word.tokens)].mean(0)

    def share(self, word: Word) -> float:
        """Return a query word's share of the late score: the mean of its tokens' best similarities."""
        return float(self.similarity[list(word.tokens)].amax(1).mean())

    def over_query(self, over: str = "sum") -> Tensor:
        """Combine all query tokens into one row [T]: their mean ("sum") or the best of them ("max")."""
        if over not in ("sum", "max"):
            raise HeatmapError(f"over is {over!r}; choose sum or max")
        return self.similarity.mean(0) if over == "sum" else self.similarity.amax(0)

    def on_page(self, values: Tensor) -> Tensor:
        """Arrange a row of similarities [T] as the page's patches [rows, columns]."""
        if self.grid is None:
            raise HeatmapError("the document has no page image; use by_words for a text")
        return values[list(self.patches)].view(self.grid.rows, self.grid.columns)

    def by_words(self) -> Tensor:
        """Return [query words, document words]: the mean over the query word's tokens of the best document token."""
        columns = [self.similarity[:, list(word.tokens)].amax(1) for word in self.document_words]
        rows = [[float(column[list(word.tokens)].mean()) for column in columns] for word in self.query_words]
        return self.similarity.new_tensor(rows).view(len(self.query_words), len(columns))


def compute_similarity_map(encoder: SmartEncoder, query: str, document: Any) -> SimilarityMap:
    """Encode a query and a document and return their similarity map.

    document: text, PIL image, pathlib.Path of an image, or {"text": ..., "image": ...}
    Raises HeatmapError if the query is not a text, or if the model does not say where a page's tokens lie.
    """
    if not isinstance(query, str):
        raise HeatmapError(f"the query is a {type(query).__name__}; pass a text, since its words are shown")
    document = open_content(document)
    of_query, of_document = (
        _read_tokens(encoder, query, query, "query"),
        _read_tokens(encoder, document, _text(document), "document"),
    )
    page = document.get("image") if isinstance(document, dict) else None if isinstance(document, str) else document
    grid = None
    if page is not None:
        processor = encoder.transformer.processor
        grid = patch_grid(of_document.features, encoder.backbone.config, processor, len(of_document.patches))
    cut = tuple(role for role, side in (("query", of_query), ("document", of_document)) if side.features["cut"])
    similarity = of_query.vectors.float() @ of_document.vectors.float().t()
    return SimilarityMap(query, similarity, of_query.words, of_document.words, page, grid, of_document.patches, cut)


def _text(document: Any) -> str:
    if isinstance(document, dict):
        return document.get("text") or ""
    return document if isinstance(document, str) else ""


@dataclass(frozen=True)
class _Tokens:
    """vectors: [kept tokens, d]; words: the text tokens as words; patches: which of the tokens are image tokens."""

    features: Features
    vectors: Tensor
    words: list[Word]
    patches: tuple[int, ...] = ()


def _read_tokens(encoder: SmartEncoder, content: Any, text: str, role: Role) -> _Tokens:
    features = encoder.preprocess([content], role)
    ids, mask = features["input_ids"], features["attention_mask"]
    vectors: Tensor = encoder.encode([content], role).tokens.values
    there = mask[0].bool()
    row, kept = ids[0][there].tolist(), encoder.keep(ids, mask)[0][there].tolist()
    if not any(kept):  # the pooled vector is the only token then
        return _Tokens(features, vectors, [Word("(pooled)", (0,))])
    if sum(kept) != len(vectors):
        raise HeatmapError(f"the {role} has {sum(kept)} kept tokens and {len(vectors)} vectors; they must be the same")
    placeholder = image_token(encoder.backbone.config)
    numbers = [number - 1 if keep else None for number, keep in zip(accumulate(kept), kept, strict=True)]
    patches = tuple(n for n, one in zip(numbers, row, strict=True) if n is not None and one == placeholder)
    of_text = [None if one == placeholder else n for n, one in zip(numbers, row, strict=True)]
    return _Tokens(features, vectors, words(encoder.tokenizer, row, of_text, text), patches)


# --- patches of a page


def patch_grid(features: Features, config: Any, processor: Any, count: int) -> PatchGrid:
    """Return the grid of patches that a page's image tokens form.

    features: the processor's output for the page; config: the backbone's; count: image tokens of the page

    Qwen2-VL and its descendants state the grid: ``image_grid_thw`` counts patches, and every ``spatial_merge_size`` x
    ``spatial_merge_size`` of them become one token, row by row. Models that stretch every page to one square state it
    by their sizes. For all others (pages cut into tiles, resamplers) the grid is not guessed.

    Raises HeatmapError if the grid cannot be derived, or does not have ``count`` places.
    """
    vision = getattr(config, "vision_config", None)
    found = features.get(GRID)
    merge = getattr(vision, "spatial_merge_size", None)
    if found is not None and merge is not None:
        return _merged(found.tolist(), int(merge), count)
    return _square(features, config, vision, getattr(processor, "image_processor", None), count)


def _merged(grids: list[list[int]], merge: int, count: int) -> PatchGrid:
    if len(grids) != 1 or grids[0][0] != 1:
        raise HeatmapError(f"a heatmap needs one page, and {GRID} has {grids} (frames, rows, columns of each image)")
    grid = PatchGrid(grids[0][1] // merge, grids[0][2] // merge)
    if grid.rows * grid.columns != count:
        raise HeatmapError(
            f"{GRID} {grids[0]} in squares of {merge} gives {grid.rows} x {grid.columns} places, but the page has "
            f"{count} image tokens; a map would show them in wrong places"
        )
    return grid


def _square(features: Features, config: Any, vision: Any, images: Any, count: int) -> PatchGrid:
    """Return the grid of PaliGemma and Gemma 3, which stretch the page to one square; its patches, or means of squares
    of them, are the tokens."""
    size, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    pixels = features.get("pixel_values")
    side = isqrt(count)
    why = ""
    if pixels is None or pixels.dim() != 4 or len(pixels) != 1:
        why = "the page is not one picture in pixel_values"
    elif size is None or patch is None or tuple(pixels.shape[2:]) != (size, size):
        why = "the vision tower's size and the picture's differ"
    elif any(
        getattr(images, name, None) for name in ("do_center_crop", "do_pad", "do_pan_and_scan", "do_image_splitting")
    ):
        why = "the page is cropped, padded or cut into tiles on its way"
    elif dict(getattr(images, "size", None) or {}) != {"height": size, "width": size}:
        why = "the processor does not bring the whole page to the vision tower's size"
    elif side * side != count or count not in ((size // patch) ** 2, getattr(config, "mm_tokens_per_image", None)):
        why = f"{count} image tokens are not its {size // patch} x {size // patch} patches"
    if why:
        raise HeatmapError(
            f"{type(config).__name__} does not say where its image tokens lie on the page ({why}); a heatmap over a "
            f"page needs {GRID} and spatial_merge_size (as Qwen-VL has) or one square of patches (as PaliGemma has)"
        )
    return PatchGrid(side, side)


# --- words


def words(tokenizer: Any, ids: Sequence[int], rows: Sequence[int | None], content: str) -> list[Word]:
    """Join one text's tokens into words, in order; every kept token is in exactly one word.

    ids: the token ids as they went through the model, without padding
    rows: for each of them its row among the kept tokens; None = not kept, or not text
    content: the text itself, without prompt and template
    """
    pieces, unfinished = _pieces(tokenizer, ids)
    joined, own = _joined(pieces, unfinished), _own(pieces, content)
    groups: list[list[int]] = []
    for at, row in enumerate(rows):
        if row is None:
            continue
        if groups and joined[at] and groups[-1][-1] == at - 1:
            groups[-1].append(at)
        else:
            groups.append([at])
    return [
        Word(
            _shown([pieces[at] for at in group]),
            tuple(row for at in group if (row := rows[at]) is not None),
            own[group[-1]],
        )
        for group in groups
    ]


def _pieces(tokenizer: Any, ids: Sequence[int]) -> tuple[list[str], list[bool]]:
    """Return the text that each token adds (with the blank before it), and whether it ends within a letter that the
    next token completes."""

    def text(begin: int, end: int) -> str:
        return str(
            tokenizer.decode(list(ids[begin:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    pieces, unfinished = [], []
    for at in range(len(ids)):
        begin = max(0, at - WINDOW)
        before, here = text(begin, at).rstrip(HALF), text(begin, at + 1)
        same = len(commonprefix([before, here]))
        pieces.append(here[same:].replace(HALF, ""))
        unfinished.append(here.endswith(HALF))
    return pieces, unfinished


def _joined(pieces: Sequence[str], unfinished: Sequence[bool]) -> list[bool]:
    """Return for each token whether it continues the word of the token before it."""
    text = "".join(pieces)
    inside = [False] * (len(text) + 1)  # at a place of the text: a word runs over it
    for match in WORD.finditer(text):
        for place in range(match.start() + 1, match.end()):
            inside[place] = not (UNSPACED.match(text[place - 1]) or UNSPACED.match(text[place]))
    joined, place = [], 0
    for at, piece in enumerate(pieces):
        blank = at > 0 and pieces[at - 1] == " " and not piece[:1].isspace()  # a blank of its own, before its word
        joined.append(at > 0 and (unfinished[at - 1] or inside[place] or blank))
        place += len(piece)
    return joined


def _own(pieces: Sequence[str], content: str) -> list[bool]:
    """Return for each token whether it lies in the content: none if the content has no text, all if the content is not
    found (it was cut, or the tokenizer respelled it)."""
    letters = [(letter, at) for at, piece in enumerate(pieces) for letter in _plain(piece)]
    wanted = _plain(content)
    begin = "".join(letter for letter, _ in letters).rfind(wanted)
    if begin < 0 or not wanted:
        return [bool(wanted)] * len(pieces)
    places = [at for _, at in letters[begin : begin + len(wanted)]]
    return [places[0] <= at <= places[-1] for at in range(len(pieces))]


def _plain(text: str) -> str:
    """Remove case, accents and blanks, which tokenizers change."""
    spelt = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in spelt if not c.isspace() and not unicodedata.combining(c))


def _shown(pieces: Sequence[str]) -> str:
    text = "".join(pieces)
    return text.strip() or (BREAK if "\n" in text else BLANK)
