"""Make an embedder from a plain language or vision-language model, with last-token pooling.

sentence-transformers uses mean pooling for a model that names no pooling. In a decoder only the last token has seen the
whole input. ``smart-train last-token-base`` calls this; docs/reproduce.md uses it for the rows of the paper that start
from a model that was never an embedder.
"""

from __future__ import annotations

from pathlib import Path

from smart_train.core.errors import UsageError


def make_last_token_base(model: str, output: Path | str, dtype: str = "auto", trust_remote_code: bool = False) -> Path:
    """Write a language model as an embedder with last-token pooling, and return its folder.

    Weights are copied unchanged. If the model has a chat template, the assistant's turn is opened first, so that the
    last token is the one from which the model would answer.

    model: Hub id, folder or package:NAME/FOLDER; output: a new folder; dtype: of the weights: auto, bfloat16, float32
    Raises UsageError if the folder exists, BaseNotFound if the model does not exist or has no tokenizer.

    >>> make_last_token_base("Qwen/Qwen3-0.6B", "models/qwen3-0.6b")  # doctest: +SKIP
    PosixPath('models/qwen3-0.6b')
    """
    output = Path(output)
    if output.exists():
        raise UsageError(f"{output} exists already; name a new folder")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    from smart_train.models.processors import images_without_torchvision

    with images_without_torchvision():
        trust = {"trust_remote_code": trust_remote_code}
        body = Transformer(model, model_kwargs={"dtype": dtype, **trust}, config_kwargs=trust, processor_kwargs=trust)
        if getattr(body.processor, "chat_template", None):
            body.processing_kwargs = {**body.processing_kwargs, "chat_template": {"add_generation_prompt": True}}
        modules = [body, Pooling(body.get_embedding_dimension(), "lasttoken"), Normalize()]
        SentenceTransformer(modules=modules, device="cpu").save(str(output), create_model_card=False)
    return output
