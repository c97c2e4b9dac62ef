"""What an encoder is given: text, images, paths of images, or both together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from sentence_transformers import SentenceTransformer

from smart_train.config.schema import ModelBlock
from smart_train.core.embeddings import Features
from smart_train.core.modality import modality, to_rgb

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
    """A path of an image becomes the image, and every image upright, opaque and RGB, as data/collection.py gives it.

    A path is a pathlib.Path, or the value under "image" of a dict, which may be a list; so may "video", of frames.  A
    plain string is text, always: a document that reads like a file's name must not be opened.
    """
    if isinstance(content, dict):
        shown = {what: content[what] for what in ("image", "video") if content.get(what) is not None}
        return {**content, **{what: _opened(value) for what, value in shown.items()}}
    if isinstance(content, Path):
        return _read_image(content)
    return to_rgb(content) if isinstance(content, Image.Image) else content


def _opened(images: Any) -> Any:
    """An image, or several in their order (of one content, or the frames of a video), opened."""
    if isinstance(images, list | tuple):
        return [_opened(image) for image in images]
    return open_content(Path(images) if isinstance(images, str) else images)


def _read_image(path: Path) -> Any:
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except OSError as error:
        raise ValueError(f"{path}: not a readable image ({error}); repair it or leave it out") from error


def same_kind(rows: list[int], contents: Contents) -> list[list[int]]:
    """The rows of a batch by kind (text, image, both): a forward takes one kind."""
    groups: dict[str, list[int]] = {}
    for row in rows:
        groups.setdefault(modality(contents[row]), []).append(row)
    return list(groups.values())


# Contents -> Features: prompt, length, template, in data workers.


def prompt_of(st: SentenceTransformer, settings: ModelBlock, role: Role) -> str | None:
    """The recipe's prompt for this role, else the base's own, chosen as sentence-transformers does."""
    own = settings.query_prompt if role == "query" else settings.document_prompt
    if own is not None:
        return own or None
    names = ["query"] if role == "query" else ["document", "passage", "corpus"]
    name = next((n for n in names if n in st.prompts), st.default_prompt_name)
    return st.prompts.get(name) if name is not None else None


def features_of(
    st: Any, settings: ModelBlock, contents: Contents, role: Role, prompt: str | None, limit: int | None
) -> Features:
    """See SmartEncoder.preprocess.  Features carry their role, and how many rows were cut."""
    own = settings.query_tokens if role == "query" else settings.document_tokens
    limit = min((n for n in (limit, own) if n is not None), default=None)
    rows = [open_content(content) for content in contents]
    cut: list[int] = []
    chat = "message" in st.modalities
    options: dict[str, Any] = {"task": role}
    if chat and limit is not None:
        # Only the text is cut, before the template: cutting the rendered chat would take image placeholders
        # or the token that is pooled.
        rows = [_cut_text(st.tokenizer, row, limit, cut) for row in rows]
    elif limit is not None:
        options["max_length"] = limit
    if set(st.modalities) - {"text", "message"}:
        # sentence-transformers would open a string that names a file, and fetch one that reads like a picture's URL
        rows = [{"text": row} if isinstance(row, str) else row for row in rows]
    features: Features = dict(st.preprocess(rows, prompt=prompt, **options))
    features["role"] = role
    # Counted here and added up where the forward is: a data worker's own count would be lost with the worker.
    features["cut"] = len(cut) if chat else _at_limit(features, limit or st.max_seq_length)
    return features


def _at_limit(features: Features, limit: int | None) -> int:
    """Rows of a text batch that fill the limit: cut, or (rarely) just as long."""
    mask = features.get("attention_mask")
    return 0 if limit is None or mask is None else int((mask.sum(1) >= limit).sum())


def _cut_text(tokenizer: Any, row: Any, limit: int, cut: list[int]) -> Any:
    text = row.get("text") if isinstance(row, dict) else row
    if not isinstance(text, str):
        return row
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if len(offsets) <= limit:
        return row
    cut.append(len(offsets))
    text = text[: offsets[limit - 1][1]]
    return {**row, "text": text} if isinstance(row, dict) else text
