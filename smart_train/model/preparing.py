"""Contents -> Features: prompt, length, template, in data workers.

Knows: SentenceTransformer's own preprocessing, the recipe's lengths and prompts.  Does not know: weights, layers.
"""

from __future__ import annotations

from typing import Any

from sentence_transformers import SentenceTransformer

from smart_train.blocks import ModelBlock
from smart_train.embeddings import Features
from smart_train.model.inputs import Contents, Role, open_content


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
