"""What an encoder is given: text, images, paths of images, or both together.

Knows: PIL, paths, processors' pixel bounds.  Does not know: models, tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from smart_train.blocks import ModelBlock
from smart_train.contents import kind
from smart_train.pictures import on_paper

Role = Literal["query", "document"]
Contents = Sequence[Any]


def set_pixel_budget(processor: Any, settings: ModelBlock) -> None:
    """The recipe's bounds on an image's pixels, set where the Qwen-VL family keeps them.

    Raises ValueError where the processor has no such bounds: a budget that is not obeyed must not be recorded.
    """
    wanted = {"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels}
    wanted = {k: v for k, v in wanted.items() if v is not None}
    if not wanted:
        return
    images = getattr(processor, "image_processor", None)
    size = getattr(images, "size", None)
    if images is None or size is None or "longest_edge" not in dict(size):
        raise ValueError(
            f"model.min_pixels / max_pixels: {type(processor).__name__} has no pixel bounds; remove both keys"
        )
    images.size = {**dict(size), **wanted}
    for name, value in (("min_pixels", settings.min_pixels), ("max_pixels", settings.max_pixels)):
        if value is not None and hasattr(images, name):
            setattr(images, name, value)


def open_content(content: Any) -> Any:
    """A path of an image becomes the image, and every image upright, opaque and RGB, as data/records.py gives it.

    A path is a pathlib.Path, or the value under "image" of a dict, which may be a list; so may "video", of frames.  A
    plain string is text, always: a document that reads like a file's name must not be opened.
    """
    if isinstance(content, dict):
        shown = {what: content[what] for what in ("image", "video") if content.get(what) is not None}
        return {**content, **{what: _opened(value) for what, value in shown.items()}}
    if isinstance(content, Path):
        return _read_image(content)
    return on_paper(content) if isinstance(content, Image.Image) else content


def _opened(images: Any) -> Any:
    """An image, or several in their order (of one content, or the frames of a video), opened."""
    if isinstance(images, list | tuple):
        return [_opened(image) for image in images]
    return open_content(Path(images) if isinstance(images, str) else images)


def _read_image(path: Path) -> Any:
    try:
        with Image.open(path) as image:
            return on_paper(image)
    except OSError as error:
        raise ValueError(f"{path}: not a readable image ({error}); repair it or leave it out") from error


def same_kind(rows: list[int], contents: Contents) -> list[list[int]]:
    """The rows of a batch by kind (text, image, both): a forward takes one kind."""
    groups: dict[str, list[int]] = {}
    for row in rows:
        groups.setdefault(kind(contents[row]), []).append(row)
    return list(groups.values())
