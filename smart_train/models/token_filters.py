"""Token filters: which tokens count in a late score.

Always left out: padding, special and control tokens, and the token that is pooled.  Image placeholder tokens stay:
their hidden states are the page's patches.  (SMART, arXiv 2605.24938, section 3.)  ``late.keep`` names filters that
leave out more, each a short name or ``package.module:Name``; a token counts where all of them agree.  A filter is a
function (or an object of a class that is made with its options) of this form:

    def my_filter(input_ids: Tensor, attention_mask: Tensor, info: TokenizerInfo) -> Tensor: ...
    # both [B, T] -> bool [B, T], True = the token counts; B rows, T tokens with padding

A class that leaves tokens out for their ids alone, wherever they stand, can have ``dropped_ids(self, info) ->
list[int]`` instead of ``__call__``: it is asked once, costs nothing in a step, and can be exported to other formats.
"""

from __future__ import annotations

import inspect
import string
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from smart_train.config.schema import Component
from smart_train.core.errors import ExtensionError, ExtensionResultError
from smart_train.core.registry import Registry

TOKEN_FILTERS = Registry(
    "token filter",
    "smart_train.token_filters",
    {"no_punctuation": "smart_train.models.token_filters:NoPunctuation"},
)
PLACEHOLDERS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")


@dataclass(frozen=True)
class TokenizerInfo:
    """Facts of the model that a token filter may need.

    tokenizer: of transformers; control_ids: ids of special and control tokens; placeholder_ids: ids of the tokens
    that stand for parts of an image or a video; pooling: mode of the pooling ("mean", "cls" ...)
    """

    tokenizer: Any
    control_ids: list[int]
    placeholder_ids: list[int]
    pooling: str | None


class NoPunctuation:
    """Leave out tokens that are punctuation only (ColBERT's skip list, Khattab and Zaharia 2020, any tokenizer)."""

    def dropped_ids(self, info: TokenizerInfo) -> list[int]:
        ids = range(len(info.tokenizer))
        texts = (info.tokenizer.decode([i]).strip().removeprefix("##") for i in ids)
        return [i for i, text in zip(ids, texts, strict=True) if is_punctuation(text)]


def is_punctuation(text: str) -> bool:
    """Return whether a text is only punctuation.

    >>> is_punctuation("?!"), is_punctuation("a?"), is_punctuation("")
    (True, False, False)
    """
    return bool(text) and all(c in string.punctuation or unicodedata.category(c).startswith("P") for c in text)


def make_filter(component: Component) -> Any:
    """Make the token filter that an entry of ``late.keep`` names.

    returns: a function of (input_ids, attention_mask, info), or an object with ``dropped_ids``
    Raises ExtensionError where there is none of that name and where it does not accept its options.
    """
    target = TOKEN_FILTERS.resolve(component.type)
    if inspect.isclass(target):
        made = TOKEN_FILTERS.create(component.type, component.options)
    else:
        TOKEN_FILTERS.check(component.type, component.options)
        made = partial(target, **component.options) if component.options else target
    if not callable(made) and not hasattr(made, "dropped_ids"):
        what = f"the token filter {component.type!r} is neither a function nor has it dropped_ids"
        raise ExtensionError(what, "see docs/extending.md, Token filters")
    return made


class TokenFilter:
    """All filters of an encoder together: made once, called once per forward.

    pooling: "lasttoken", "cls" or another mode; the first two pool one token, which the pooled score has already and
        which is therefore left out
    keep: further filters, as ``late.keep`` names them
    """

    def __init__(self, tokenizer: Any, config: Any, pooling: str | None, keep: Sequence[Component] = ()) -> None:
        placeholders = sorted(id for name in PLACEHOLDERS if (id := getattr(config, name, None)) is not None)
        self.info = TokenizerInfo(tokenizer, control_ids(tokenizer, config), placeholders, pooling)
        ids = set(self.info.control_ids)
        self.by_position: list[tuple[str, Callable[..., Any]]] = []
        """Filters that look at more than an id, with their names."""
        for component in keep:
            made = make_filter(component)
            if hasattr(made, "dropped_ids"):
                ids.update(made.dropped_ids(self.info))
            else:
                self.by_position.append((component.type, made))
        self.left_out = torch.tensor(sorted(ids), dtype=torch.int64)

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids, attention_mask: [B, T] -> bool [B, T], True = the token counts; a row may be empty.

        Raises ExtensionResultError where a filter returns another shape or dtype.
        """
        if self.left_out.device != input_ids.device:
            self.left_out = self.left_out.to(input_ids.device)
        attended = attention_mask.bool()
        kept = attended & ~torch.isin(input_ids, self.left_out)
        if self.info.pooling in ("lasttoken", "cls"):
            last = attended.shape[1] - 1
            at = attended.int().argmax(1) if self.info.pooling == "cls" else last - attended.flip(1).int().argmax(1)
            kept = kept.scatter(1, at.unsqueeze(1), False)
        for name, keep in self.by_position:
            found = keep(input_ids, attention_mask, self.info)
            if not isinstance(found, Tensor) or found.dtype != torch.bool or found.shape != input_ids.shape:
                got = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
                fix = f"return a torch.bool tensor {list(input_ids.shape)}, the shape of input_ids"
                raise ExtensionResultError(f"the token filter {name!r} returned {got}", fix)
            kept = kept & found
        return kept


def control_ids(tokenizer: Any, config: Any) -> list[int]:
    """Ids of special and control tokens (<s>, <|im_start|>, [CLS] ...), without image placeholders.

    The unknown token stays: it stands for content that the tokenizer cannot spell.
    """
    ids = set(tokenizer.all_special_ids)
    ids |= {i for i, token in tokenizer.added_tokens_decoder.items() if getattr(token, "special", False)}
    named = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
    if tokenizer.unk_token_id not in {getattr(tokenizer, name, None) for name in named}:  # GPT-2's is its end as well
        ids.discard(tokenizer.unk_token_id)
    placeholders = {getattr(config, name, None) for name in PLACEHOLDERS}
    return sorted(ids - placeholders)
