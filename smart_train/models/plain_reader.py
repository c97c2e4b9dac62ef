"""Read a folder as others do: run by ``child_process.ask`` in a process that has sentence-transformers alone.

This file must import nothing of this package.
"""

from __future__ import annotations

from typing import Any


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return {"query": [B, D], "document": [N, D], "scores": [B, N]} as numpy arrays.

    request: {"folder", "working_directory", "device", "trust_remote_code", "model_kwargs", "contents"}; contents are
        {"query": [...], "document": [...]}
    """
    import os

    import torch
    from sentence_transformers import SentenceTransformer

    os.chdir(request["working_directory"])  # a relative path to the base is meant from there
    model = SentenceTransformer(
        request["folder"],
        device=request["device"],
        model_kwargs=request["model_kwargs"],
        trust_remote_code=request["trust_remote_code"],
        local_files_only=True,
    )
    given = {role: list(contents) for role, contents in request["contents"].items()}
    if set(model.modalities) - {"text", "message"}:  # a string that names a file would be opened as a picture
        given = {role: [{"text": c} if isinstance(c, str) else c for c in contents] for role, contents in given.items()}
    found: dict[str, Any] = {}
    for role, encode in (("query", model.encode_query), ("document", model.encode_document)):
        contents = given[role]
        mixed = not all(isinstance(content, str) for content in contents)  # a batch has one modality
        rows = [encode([one], convert_to_tensor=True)[0] for one in contents] if mixed else None
        found[role] = torch.stack(rows) if rows else encode(contents, convert_to_tensor=True)
    scores = model.similarity(found["query"], found["document"])
    return {name: values.float().cpu().numpy() for name, values in {**found, "scores": scores}.items()}
