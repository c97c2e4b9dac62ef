"""Which place of the page each image token stands for.

Knows: how processors of vision-language models cut a page.  Does not know: vectors, scores, pictures.

Qwen2-VL and what follows it say it themselves: ``image_grid_thw`` counts patches, of which ``spatial_merge_size`` by
``spatial_merge_size`` become one token, row after row, and the processor lays patches out in that order.  Models that
bring every page to one square say it by their sizes.  Of all others (pages cut into tiles, resamplers whose tokens have
no place) the grid is refused rather than guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Any

from smart_train.embeddings import Features
from smart_train.model.slices import GRID


class PatchGridError(ValueError):
    """The places of a model's image tokens are not known."""


@dataclass(frozen=True)
class PatchGrid:
    """rows x columns of image tokens, row after row, over the whole page."""

    rows: int
    columns: int


def patch_grid(features: Features, config: Any, processor: Any, count: int) -> PatchGrid:
    """The grid of a row that holds one page.

    features: what the processor made of the page; config: the backbone's; count: image tokens in the row.
    Raises PatchGridError where the grid can't be derived, or does not have ``count`` places.
    """
    vision = getattr(config, "vision_config", None)
    found = features.get(GRID)
    merge = getattr(vision, "spatial_merge_size", None)
    if found is not None and merge is not None:
        return _merged(found.tolist(), int(merge), count)
    return _square(features, config, vision, getattr(processor, "image_processor", None), count)


def _merged(grids: list[list[int]], merge: int, count: int) -> PatchGrid:
    if len(grids) != 1 or grids[0][0] != 1:
        raise PatchGridError(f"a heatmap is of one page, and {GRID} has {grids} (frames, rows, columns of each image)")
    grid = PatchGrid(grids[0][1] // merge, grids[0][2] // merge)
    if grid.rows * grid.columns != count:
        raise PatchGridError(
            f"{GRID} {grids[0]} in squares of {merge} gives {grid.rows} x {grid.columns} places, and there are {count} "
            "image tokens; the map would show them in wrong places"
        )
    return grid


def _square(features: Features, config: Any, vision: Any, images: Any, count: int) -> PatchGrid:
    """PaliGemma and Gemma 3: the whole page is stretched to one square, whose patches (or means of squares of them)
    are the tokens."""
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
        raise PatchGridError(
            f"the places of {type(config).__name__}'s image tokens on the page are not known ({why}); a heatmap over a "
            f"page needs {GRID} and spatial_merge_size (Qwen-VL and what follows it) or one square of patches"
        )
    return PatchGrid(side, side)
