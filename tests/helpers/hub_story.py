"""What core/test_hub.py runs in a child process: adapters saved, published, moved on and loaded again.

    python tests/helpers/hub_story.py BASE_FOLDER OUT
The Hub of its environment holds me/base (the same files as BASE_FOLDER) and the repositories that test_hub.py put
there.  OUT/vectors.npz gets the pooled and token vectors of every step, OUT/told.json commits and messages.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
from huggingface_hub import HfApi, constants
from safetensors.torch import load_file, save
from sentence_transformers import SentenceTransformer

from smart_train.config.schema import AdapterBlock, LateBlock, ModelBlock
from smart_train.models.base_config import read_base
from smart_train.models.encoder import SmartEncoder
from smart_train.models.saving import base_identity, check_base
from smart_train.models.verification import verify
from smart_train.publishing.publisher import publish

FOLDER, OUT = Path(sys.argv[1]), Path(sys.argv[2])
VECTORS: dict[str, np.ndarray] = {}
TOLD: dict[str, Any] = {}
LORA, HEAD = AdapterBlock(r=4), LateBlock(head="linear", dim=12)


def keep(name: str, encoder: SmartEncoder) -> SmartEncoder:
    found = encoder.encode_documents(tiny.TEXTS)
    VECTORS[f"{name}/pooled"], VECTORS[f"{name}/tokens"] = found.pooled.numpy(), found.tokens.values.numpy()
    return encoder


def keep_plain(name: str, model: SentenceTransformer) -> None:
    VECTORS[f"{name}/pooled"] = model.encode(tiny.TEXTS)


def keep_error(name: str, call: Callable[[], Any]) -> None:
    try:
        call()
    except Exception as error:
        TOLD[name] = {"class": type(error).__name__, "message": str(error), "shown": not error.__suppress_context__}


def load(name: str, **options: Any) -> SmartEncoder:
    return SmartEncoder.from_pretrained(name, device="cpu", **options)


def made(name: str, base: str, seed: int, adapter: AdapterBlock = LORA, revision: str | None = None) -> Path:
    """A saved and verified folder of an encoder whose trained tensors were drawn."""
    settings = ModelBlock(revision=revision)
    encoder = SmartEncoder(base, model=settings, late=HEAD, adapter=adapter, device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    encoder.save_pretrained(OUT / name)
    verify(encoder, OUT / name, ["a query"], tiny.TEXTS)
    keep(f"{name}/made", encoder)
    return OUT / name


def commit_of(name: str) -> str:
    return str(HfApi().model_info(name).sha)


def adapters_of_a_hub_base() -> None:
    TOLD["base A"] = commit_of("me/base")
    keep("base A", SmartEncoder("me/base", device="cpu"))
    publish(made("first", "me/base", seed=1), "me/adapter")
    TOLD["first"] = commit_of("me/adapter")
    keep("first/loaded", load("me/adapter"))
    keep_plain("first/plain", SentenceTransformer("me/adapter", device="cpu"))
    publish(made("second", "me/base", seed=2), "me/adapter")
    keep("second/loaded", load("me/adapter"))
    keep("first/pinned", load("me/adapter", revision=TOLD["first"]))
    TOLD["settings"] = json.loads((OUT / "second" / "smart_train.json").read_text())
    TOLD["peft"] = json.loads((OUT / "second" / "adapter_config.json").read_text())
    publish(made("frozen", "me/base", 3, AdapterBlock(kind="frozen")), "me/frozen")
    keep("frozen/loaded", load("me/frozen"))


def the_base_moves_on() -> None:
    tensors = load_file(FOLDER / "model.safetensors")
    moved = save({name: tensor * 1.05 for name, tensor in tensors.items()}, metadata={"format": "pt"})
    HfApi().upload_file(path_or_fileobj=moved, path_in_repo="model.safetensors", repo_id="me/base")
    TOLD["base B"] = commit_of("me/base")
    newest = keep("base B", SmartEncoder("me/base", device="cpu"))
    keep("second/after", load("me/adapter"))
    keep("second/named", load("me/adapter", base="me/base"))
    keep("base pinned", SmartEncoder("me/base", model=ModelBlock(revision=TOLD["base A"]), device="cpu"))
    keep_error("commit B", lambda: check_base(TOLD["settings"], base_identity(newest), OUT / "second"))
    keep_error("mirror", lambda: load("me/adapter", base="me/mirror"))
    TOLD["made on B"] = json.loads((made("third", "me/base", 4) / "smart_train.json").read_text())["commit"]


def adapters_of_a_folder() -> None:
    publish(made("local", str(FOLDER), seed=5), "me/local")
    keep_error("local", lambda: load("me/local"))
    keep("local/loaded", load("me/local", base=str(FOLDER)))
    plain = SentenceTransformer(str(FOLDER), device="cpu")
    plain.load_adapter("me/local")  # what the card says
    keep_plain("local/plain", plain)
    publish(made("full", str(FOLDER), 6, AdapterBlock(kind="full")), "me/full")
    keep("full/loaded", load("me/full"))
    keep_plain("full/plain", SentenceTransformer("me/full", device="cpu"))


def adapters_as_bases() -> None:
    keep_error("adapter as base", lambda: SmartEncoder("me/adapter", lora={"r": 2}))
    keep_error("adapter as base, free", lambda: SmartEncoder("me/adapter"))
    keep_error("adapter as base, read", lambda: read_base("me/adapter"))
    keep_error("frozen as base", lambda: read_base("me/frozen"))
    keep_error("peft as base", lambda: SmartEncoder("me/peft", lora={"r": 2}))
    keep_error("peft as base, read", lambda: read_base("me/peft"))


def plain_bases() -> None:
    keep("plain/folder", SmartEncoder(str(FOLDER), device="cpu"))
    keep("plain/loaded", load("me/plain"))


def what_cannot_be_had() -> None:
    keep_error("missing", lambda: load("me/nothing"))
    keep_error("missing base", lambda: SmartEncoder("me/nothing"))
    keep_error("gated", lambda: load("other/gated"))
    keep_error("gated base", lambda: SmartEncoder("other/gated"))
    keep_error("private", lambda: load("other/private"))
    keep_error("revision", lambda: load("me/adapter", revision="v9"))
    keep_error("path", lambda: load("runs/nothing/adapter"))


def without_a_network() -> None:
    broken = json.dumps({"method": "GET HEAD POST", "path": ".", "status": 0}).encode()
    urllib.request.urlopen(f"{os.environ['HF_ENDPOINT']}/_fail", broken).close()
    keep_error("broken", lambda: load("me/never"))
    constants.HF_HUB_OFFLINE = True  # as the variable does; without it transformers tries again for half a minute
    keep_error("offline", lambda: load("me/never"))
    keep("second/offline", load("me/adapter"))
    keep("plain/offline", load("me/plain"))


if __name__ == "__main__":
    adapters_of_a_hub_base()
    the_base_moves_on()
    adapters_of_a_folder()
    adapters_as_bases()
    plain_bases()
    what_cannot_be_had()
    without_a_network()
    np.savez(OUT / "vectors.npz", **VECTORS)  # type: ignore[arg-type]
    (OUT / "told.json").write_text(json.dumps(TOLD))
