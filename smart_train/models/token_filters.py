"""Which tokens count in a late score.

Kept: everything but padding, special and control tokens, the pooling token, and what ``late.drop`` names.  Image
placeholder tokens stay: their hidden states are the page's patches.  (SMART, arXiv 2605.24938, section 3.)
"""

from __future__ import annotations

import string
import unicodedata
from typing import Any

import torch
from torch import Tensor

PLACEHOLDERS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")


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


def punctuation_ids(tokenizer: Any) -> list[int]:
    """Ids of tokens that are punctuation only (ColBERT's skip list, for any tokenizer)."""

    def is_punctuation(piece: str) -> bool:
        return bool(piece) and all(c in string.punctuation or unicodedata.category(c).startswith("P") for c in piece)

    ids = range(len(tokenizer))
    texts = (tokenizer.decode([i]).strip().removeprefix("##") for i in ids)
    return [i for i, text in zip(ids, texts, strict=True) if is_punctuation(text)]


class TokenFilter:
    """The rule as an object: made once per encoder, called once per forward.

    pooling: "lasttoken", "cls" or another mode of the base's pooling; the first two pool one token, which the pooled
        score has already and which is therefore left out here
    """

    def __init__(self, tokenizer: Any, config: Any, pooling: str | None, drop: list[str]) -> None:
        ids = control_ids(tokenizer, config)
        if "punctuation" in drop:
            ids = sorted({*ids, *punctuation_ids(tokenizer)})
        self.left_out = torch.tensor(ids, dtype=torch.int64)
        self.pooling = pooling

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids, attention_mask [rows, length] -> kept [rows, length] bool; a row may be empty."""
        if self.left_out.device != input_ids.device:
            self.left_out = self.left_out.to(input_ids.device)
        attended = attention_mask.bool()
        kept = attended & ~torch.isin(input_ids, self.left_out)
        if self.pooling in ("lasttoken", "cls"):
            length = attended.shape[1]
            at = attended.int().argmax(1) if self.pooling == "cls" else length - 1 - attended.flip(1).int().argmax(1)
            kept = kept.scatter(1, at.unsqueeze(1), False)
        return kept
