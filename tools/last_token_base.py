"""Make an embedder from a plain language or vision-language model, with last-token pooling.

    python tools/last_token_base.py Qwen/Qwen3-VL-2B-Instruct models/qwen3-vl-2b

sentence-transformers uses mean pooling for a model that names no pooling. In a decoder only the last token has seen the
whole input. If the model has a chat template, the assistant's turn is opened first, so that the last token is the one
from which the model would answer. Weights are copied unchanged. docs/reproduce.md uses this for the rows of the paper
that start from a model that was never an embedder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from smart_train.models.processors import images_without_torchvision


def make(model: str, out: Path, dtype: str = "auto") -> Path:
    """Write the embedder to the new folder ``out`` and return it. model: Hub id or folder."""
    if out.exists():
        raise SystemExit(f"{out} exists already; name a new folder")
    with images_without_torchvision():
        body = Transformer(model, model_kwargs={"dtype": dtype})
        if getattr(body.processor, "chat_template", None):
            body.processing_kwargs = {**body.processing_kwargs, "chat_template": {"add_generation_prompt": True}}
        modules = [body, Pooling(body.get_embedding_dimension(), "lasttoken"), Normalize()]
        SentenceTransformer(modules=modules, device="cpu").save(str(out), create_model_card=False)
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="Hub id or folder")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--dtype", default="auto", help="of the weights: auto, bfloat16, float32")
    given = parser.parse_args()
    print(make(given.model, given.out, given.dtype))
