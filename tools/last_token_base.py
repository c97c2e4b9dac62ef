"""Makes an embedder's folder of a plain vision-language or language model: its last token's state is the pooled vector.

    python tools/last_token_base.py Qwen/Qwen3-VL-2B-Instruct models/qwen3-vl-2b

sentence-transformers would take the mean of all tokens of a model that says nothing about pooling.  A decoder reads
from left to right, so only its last token has seen the whole input; and where there is a chat template the answer is
opened first, so that this token is the place where the model would begin to say what it saw.  docs/reproduce.md uses it
for the rows of the reference that start from a model that was never an embedder.  Weights are copied as they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from smart_train.models.processors import images_without_torchvision


def make(model: str, out: Path, dtype: str = "auto") -> Path:
    """model: Hub id or folder; out: a folder that is not there yet."""
    if out.exists():
        raise SystemExit(f"{out} is there already; name another folder")
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
