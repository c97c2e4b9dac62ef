"""Split a chunk of features into smaller pieces, rows in order, to bound the memory of one forward."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from smart_train.core.embeddings import Features
from smart_train.core.errors import SettingError

GRID, PATCHES, COUNTS = "image_grid_thw", "pixel_values", "num_images_per_sample"


def split(
    features: Features, rows: int | None = None, tokens: int | None = None, image_token: int | None = None
) -> list[Features]:
    """Split the rows of a chunk into pieces, in order; a chunk within both limits comes back as it is.

    rows: most rows of a piece (pieces are made alike in size); tokens: most tokens of a piece, padding included, which
    is its rows times its longest row; a single row may be longer.  None = no limit.
    image_token: id of the placeholder token (see ``image_token``); needed only where rows hold images as flat patches
    and the processor does not say how many images a row has.

    Columns that are padding in every row of a piece are cut off, on either side.  ``cut``, a count, stays with the
    first piece.  Tensors come as views, without a copy.
    Raises ValueError for a limit below 1, SettingError for a key whose layout is not known, naming it.
    """
    for name, limit in (("rows", rows), ("tokens", tokens)):
        if limit is not None and limit < 1:
            raise ValueError(f"{name} is {limit}, the most in a forward; give 1 or more, or None for no limit")
    lengths = _lengths(features)
    bounds = _bounds(lengths, rows, tokens)
    if len(bounds) < 2:
        return [features]
    kinds = {name: _layout(name, value, features, len(lengths)) for name, value in features.items()}
    in_images = "images" in kinds.values()
    images = _image_bounds(features, len(lengths), image_token) if in_images else []
    pieces = [_piece(features, kinds, images, first, end) for first, end in bounds]
    for later in pieces[1:]:
        if "cut" in later:
            later["cut"] = 0
    return pieces


def image_token(config: Any) -> int | None:
    """Return the id of the token that stands for a part of an image, from a model's configuration; None = none."""
    for name in ("image_token_id", "image_token_index"):
        if getattr(config, name, None) is not None:
            return int(getattr(config, name))
    return None


def rows_of(features: Features) -> int:
    """Return the number of rows of a chunk."""
    return len(features["input_ids"])


def _lengths(features: Features) -> list[int]:
    mask = features.get("attention_mask")
    if mask is not None:
        return [int(n) for n in mask.sum(1).tolist()]
    count, longest = features["input_ids"].shape
    return [longest] * count


def _bounds(lengths: list[int], rows: int | None, tokens: int | None) -> list[tuple[int, int]]:
    """(first, end) of every piece.  With a limit of rows, all have about the same number: 33 rows in pieces of at most
    32 are 17 and 16, which is as many forwards as 32 and 1 in less memory."""
    count = len(lengths)
    most = count if rows is None else math.ceil(count / math.ceil(count / rows)) if count else 1
    bounds, first, longest = [], 0, 0
    for at, length in enumerate(lengths):
        wider = max(longest, length)
        full = at - first >= most or (tokens is not None and (at - first + 1) * wider > tokens)
        if full and at > first:
            bounds.append((first, at))
            first, wider = at, length
        longest = wider
    return [*bounds, (first, count)]


def _layout(name: str, value: Any, features: Features, rows: int) -> str:
    """columns = [rows, padded length], rows = [rows, ...], grid and images = of all rows' images, copy = no tensor."""
    if not isinstance(value, Tensor):
        return "copy"
    padded = features["input_ids"].shape
    if name == GRID or (name == PATCHES and GRID in features):
        return "images"
    if value.shape[:2] == padded and value.dim() == 2:
        return "columns"
    # One entry a row: counts, or an image of fixed size a row (CLIP), or several in one tensor (Idefics).
    if len(value) == rows and name in (COUNTS, PATCHES, "pixel_attention_mask"):
        return "rows"
    what = f"features[{name!r}] of shape {tuple(value.shape)} can't be divided into pieces: its layout is not known"
    raise SettingError("objective.batch", what, "leave it, chunk_rows and chunk_tokens out for this model")


def _image_bounds(features: Features, rows: int, image_token: int | None) -> list[tuple[int, int]]:
    """For 0 .. rows: (images, patches) that lie before that row."""
    patches = features[GRID].prod(1).tolist()
    counts = features[COUNTS].tolist() if COUNTS in features else _images_by_tokens(features, patches, image_token)
    if sum(counts) != len(patches) or len(counts) != rows or sum(patches) != len(features[PATCHES]):
        raise ValueError(
            f"features: {rows} rows hold {sum(counts)} images, {GRID} names {len(patches)} of {sum(patches)} patches, "
            f"and {PATCHES} has {len(features[PATCHES])}; these must agree"
        )
    bounds, image, patch = [(0, 0)], 0, 0
    for count in counts:
        patch += sum(patches[image : image + count])
        image += count
        bounds.append((image, patch))
    return bounds


def _images_by_tokens(features: Features, patches: list[int], image_token: int | None) -> list[int]:
    """Images of every row, from its placeholder tokens: each stands for the same number of patches."""
    if image_token is None:
        raise ValueError(f"features[{PATCHES!r}] can't be divided without the id of the image token or {COUNTS!r}")
    held = (features["input_ids"] == image_token).sum(1).tolist()
    merged = sum(patches) // max(1, sum(held))
    counts, image = [], 0
    for tokens in held:
        count = 0
        while tokens > 0 and image + count < len(patches):
            tokens -= patches[image + count] // max(1, merged)
            count += 1
        counts.append(count)
        image += count
    return counts


def _piece(features: Features, kinds: dict[str, str], images: list[tuple[int, int]], first: int, end: int) -> Features:
    columns = _used_columns(features, first, end)
    piece: Features = {}
    for name, value in features.items():
        kind = kinds[name]
        if kind == "copy":
            piece[name] = value
        elif kind == "columns":
            piece[name] = value[first:end, columns]
        elif kind == "rows":
            piece[name] = value[first:end]
        else:
            (image, patch), (last_image, last_patch) = images[first], images[end]
            if last_image > image:  # a piece without images is text: the vision tower must not be called
                piece[name] = value[image:last_image] if name == GRID else value[patch:last_patch]
    return piece


def _used_columns(features: Features, first: int, end: int) -> slice:
    mask = features.get("attention_mask")
    if mask is None:
        return slice(None)
    used = mask[first:end].bool().any(0).nonzero().flatten()
    if not len(used):
        return slice(None)
    return slice(int(used[0]), int(used[-1]) + 1)
