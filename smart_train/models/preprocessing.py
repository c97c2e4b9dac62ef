"""Turn contents (text, images, paths of images, or both together) into the features that a backbone takes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from sentence_transformers import SentenceTransformer
from torch import nn

from smart_train.config.schema import ModelBlock
from smart_train.core.embeddings import Features
from smart_train.core.errors import BaseNotFound, DataError, SettingError, UsageError, border
from smart_train.core.modality import modality, text_fault
from smart_train.core.pictures import open_picture, picture_fault, to_rgb
from smart_train.models.hidden_states import is_vision

logger = logging.getLogger(__name__)

POSITIONS = ("position_embeddings", "position_embedding", "embed_positions", "wpe")  # names of such tables

Role = Literal["query", "document"]
Contents = Sequence[Any]


def set_pixel_budget(processor: Any, settings: ModelBlock) -> None:
    """Set the recipe's bounds on an image's pixels, where processors of the Qwen-VL family keep them.

    Raises SettingError where the processor has no such bounds: a bound without an effect must not be recorded.
    """
    wanted = {"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels}
    wanted = {k: v for k, v in wanted.items() if v is not None}
    if not wanted:
        return
    images = getattr(processor, "image_processor", None)
    size = getattr(images, "size", None)
    if images is None or size is None or "longest_edge" not in dict(size):
        key = "model.max_pixels" if settings.max_pixels is not None else "model.min_pixels"
        raise SettingError(key, f"is given, but {type(processor).__name__} has no pixel bounds", "remove it")
    images.size = {**dict(size), **wanted}
    for name, value in (("min_pixels", settings.min_pixels), ("max_pixels", settings.max_pixels)):
        if value is not None and hasattr(images, name):
            setattr(images, name, value)


def check_patches(processor: Any, config: Any, base: str) -> None:
    """Raise BaseNotFound where the processor cuts images into other patches than the model takes."""
    images, vision = getattr(processor, "image_processor", None), getattr(config, "vision_config", None)
    for ours, theirs in (
        ("patch_size", "patch_size"),
        ("temporal_patch_size", "temporal_patch_size"),
        ("merge_size", "spatial_merge_size"),
    ):
        made, taken = getattr(images, ours, None), getattr(vision, theirs, None)
        if isinstance(made, int) and isinstance(taken, int) and made != taken:
            what = f"{base}: its image processor's {ours} is {made:,}, and its model's {theirs} {taken:,}"
            raise BaseNotFound(what, "download or copy its processor files and its config.json again")


def as_rows(contents: Any) -> Any:
    """Return contents as rows by position: a single one as a list, a pandas Series or numpy array as its values.

    >>> as_rows("a text"), as_rows(("a", "b"))
    (['a text'], ('a', 'b'))
    """
    if isinstance(contents, str | dict | Path | Image.Image) or getattr(contents, "shape", None) == ():
        return [contents if not hasattr(contents, "tolist") else contents.tolist()]
    if isinstance(contents, np.ndarray) or (hasattr(contents, "iloc") and getattr(contents, "ndim", 0) == 1):
        return contents.tolist()  # a Series takes a number for a label, not for a place
    return contents


def check_contents(contents: Any, modalities: Sequence[Any]) -> None:
    """Raise UsageError, with the row, for what is no list of contents that a base of these modalities reads."""
    kind = type(contents).__name__
    if not hasattr(contents, "__len__") or not hasattr(contents, "__getitem__"):
        raise UsageError(f"contents is a list of rows, and this is {kind}; write list(...) around it")
    read = {name for one in modalities for name in ([one] if isinstance(one, str) else one)}
    for row in range(len(contents)):
        try:
            problem = _content_problem(contents[row], read)
        except (LookupError, TypeError) as error:  # no rows by number, as in a table of columns
            raise UsageError(f"contents is a list of rows, and this is {kind}; give a list") from error
        if problem is not None:
            raise UsageError(f"row {row}: {problem}")


def _content_problem(content: Any, read: set[str]) -> str | None:
    """Return why a content is none; read: the modalities of the base."""
    parts = content if isinstance(content, dict) else {"text" if isinstance(content, str) else "image": content}
    if not isinstance(content, str | dict | Path | Image.Image):
        kinds = "a text, a PIL image, a pathlib.Path of an image, or {'text': ..., 'image': ...}"
        return f"{type(content).__name__} is no content; give {kinds}"
    given = {name: value for name, value in parts.items() if value is not None}
    if not given:
        return "it has no text and no image; leave it out"
    unknown = [name for name in given if name not in read]
    if unknown:
        return f"it has {unknown[0]!r}, and the base reads {', '.join(sorted(read))}"
    text = given.get("text", "")
    if not isinstance(text, str):
        return f"its text is {type(text).__name__}; give a string"
    if fault := text_fault(text):
        return f"its text has {fault}; remove it, or decode the text with its own encoding"
    images = given.get("image", [])
    for image in images if isinstance(images, list | tuple) else [images]:
        if not isinstance(image, str | Path | Image.Image):
            return f"its image is {type(image).__name__}; give a PIL image or a path"
        if isinstance(image, Image.Image) and (fault := picture_fault(image)):
            return f"its image cannot be read: {fault}; leave it out"
    return None


def open_content(content: Any) -> Any:
    """Open the images of a content: paths become images, and every image is upright, opaque and RGB.

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
    """Open an image, or several in their order (of one content, or the frames of a video)."""
    if isinstance(images, list | tuple):
        return [_opened(image) for image in images]
    return open_content(Path(images) if isinstance(images, str) else images)


def _read_image(path: Path) -> Any:
    with border(path, "not a readable image; repair it or leave it out"):
        return open_picture(path)


def by_modality(rows: list[int], contents: Contents) -> list[list[int]]:
    """Group the rows of a batch by modality (text, image, both): a forward takes one."""
    groups: dict[str, list[int]] = {}
    for row in rows:
        groups.setdefault(modality(contents[row]), []).append(row)
    return list(groups.values())


def prompt_of(st: SentenceTransformer, settings: ModelBlock, role: Role) -> str | None:
    """Return the recipe's prompt for this role, else the base's own, chosen as sentence-transformers does."""
    own = settings.query_prompt if role == "query" else settings.document_prompt
    if own is not None:
        return own or None
    names = ["query"] if role == "query" else ["document", "passage", "corpus"]
    name = next((n for n in names if n in st.prompts), st.default_prompt_name)
    return st.prompts.get(name) if name is not None else None


def reading_limit(st: Any, settings: ModelBlock, role: Role) -> int | None:
    """Return the longest text of this role in tokens: the recipe's limit, else the base's own; None = no limit."""
    own = settings.query_tokens if role == "query" else settings.document_tokens
    base = st[0].query_length if role == "query" else st[0].document_length
    return next((n for n in (own, base, st.max_seq_length) if n is not None), None)


def position_count(backbone: Any) -> int | None:
    """Return how many tokens a table of learned absolute positions has room for; None where there is none."""
    found: list[int] = []
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Embedding) and name.split(".")[-1] in POSITIONS and not is_vision(name):
            # RoBERTa and its descendants count from behind the padding token's id, OPT from an offset.
            skipped = getattr(module, "offset", 0) + (0 if module.padding_idx is None else module.padding_idx + 1)
            found.append(module.num_embeddings - skipped)
    return min(found, default=None)


def limit_to_positions(st: Any, settings: ModelBlock, backbone: Any) -> None:
    """Lower the base's own length limits to the positions that it has, and log it: a longer text would end the run.

    Raises SettingError where the recipe's own limits are above them.
    """
    positions = position_count(backbone)
    if positions is None:
        return
    for name in ("query_tokens", "document_tokens"):
        limit = getattr(settings, name)
        if limit is not None and limit > positions:
            what = f"is {limit}, above the {positions} positions of the model"
            raise SettingError(f"model.{name}", what, f"write at most {positions}, or null for the base's own limit")
    for owner, name in ((st, "max_seq_length"), (st[0], "query_length"), (st[0], "document_length")):
        limit = getattr(owner, name)
        if limit is not None and limit > positions:
            logger.warning(
                "%s: its %s is %d, and the model has %d positions; texts are cut at %d tokens",
                *(settings.base, name, limit, positions, positions),
            )
            setattr(owner, name, positions)


def features_of(
    st: Any, settings: ModelBlock, contents: Contents, role: Role, prompt: str | None, limit: int | None
) -> Features:
    """Apply prompt, length limit and chat template, and tokenize; see ``SmartEncoder.preprocess``.

    The features carry their role ("role") and how many rows were cut ("cut").
    """
    own = settings.query_tokens if role == "query" else settings.document_tokens
    limit = own if limit is None else min(limit, reading_limit(st, settings, role) or limit)
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
    mask = features.get("attention_mask")
    if mask is not None:
        left_out = any(getattr(module, "include_prompt", True) is False for module in st)
        _check_tokens(rows, mask.sum(1) - (features.get("prompt_length", 0) if left_out else 0), role)
    features["role"] = role
    # Counted here and added up where the forward is: a data worker's own count would be lost with the worker.
    features["cut"] = len(cut) if chat else _at_limit(features, limit or st.max_seq_length)
    return features


def _check_tokens(rows: list[Any], counts: Any, role: Role) -> None:
    """Raise DataError where a row has no token that is pooled: its vector would be zero.

    counts: [rows], tokens without those of a prompt that the base's pooling leaves out
    """
    empty = (counts <= 0).nonzero().flatten().tolist()
    if empty:
        row = rows[empty[0]]
        text = row.get("text") if isinstance(row, dict) else row
        raise DataError(
            f"the text {str(text)[:60]!r} gets no token that is pooled, so it has no vector ({len(empty)} of "
            f"{len(rows)} in its batch): the base's tokenizer adds none of its own, and the prompt is empty, left out "
            f"by its pooling, or as long as the limit; leave them out, set model.{role}_prompt, or raise the limit"
        )


def _at_limit(features: Features, limit: int | None) -> int:
    """Count the rows of a text batch that fill the limit: cut, or (rarely) just as long."""
    mask = features.get("attention_mask")
    return 0 if limit is None or mask is None else int((mask.sum(1) >= limit).sum())


def _cut_text(tokenizer: Any, row: Any, limit: int, cut: list[int]) -> Any:
    """Cut the text of a row to ``limit`` tokens; ``cut`` gets the length of a text that was longer."""
    text = row.get("text") if isinstance(row, dict) else row
    if not isinstance(text, str):
        return row
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if len(offsets) <= limit:
        return row
    cut.append(len(offsets))
    text = text[: offsets[limit - 1][1]]
    return {**row, "text": text} if isinstance(row, dict) else text
