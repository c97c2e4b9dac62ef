"""The folder an encoder is saved as, loaded from, and verified by.

    smart_train.json           what changes a vector: base and its revision, layer, norm, head, prompts, lengths, pixels
    late_head.safetensors      the head's and the mix's weights, where there are any
    adapter_config.json, adapter_model.safetensors    LoRA, as peft writes it
    modules.json, config_sentence_transformers.json, 1_Pooling/ ...    so that plain SentenceTransformer(folder) gives
                               the same pooled vectors without this package
Safetensors and JSON only.  A frozen backbone's folder holds the first two alone: its pooled vectors are the base's.

Knows: SmartEncoder and files; what is in smart_train.json is settings.py's, how a folder is loaded reading.py's (both
can be had from here).  Does not know: training, data sets.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from smart_train.embeddings import Embeddings
from smart_train.model.adapters import save_lora
from smart_train.model.encoder import SmartEncoder
from smart_train.model.files import HEAD, SETTINGS, VERIFIED, AdapterError, digests
from smart_train.model.inputs import Role
from smart_train.model.intake import without_code
from smart_train.model.quantised import tell_plain
from smart_train.model.reading import check_base, check_processing, load, load_head
from smart_train.model.sealing import seals
from smart_train.model.settings import base_identity, processing_of, settings_of, write_settings

__all__ = [
    "seal",
    "note",
    "compare",
    "check_plain",
    "Sides",
    "HALF",
    "EXACT",
    "HEAD",
    "SETTINGS",
    "VERIFIED",
    "base_identity",
    "check_base",
    "check_processing",
    "load",
    "load_head",
    "processing_of",
    "save",
    "settings_of",
    "verify",
    "write_settings",
]

logger = logging.getLogger(__name__)

Sides = list[tuple[Role, list[Any]]]
EXACT, HALF = 1e-5, 2e-2  # largest difference of two vectors of length 1: in float32; where the base has 8 to 11 bits
CAST = 5e-2  # of a float32 base that an engine computes in half precision, beside the reloaded one in float32


def save(encoder: SmartEncoder, folder: Path, state: dict[str, Tensor] | None = None) -> Path:
    """Writes ``folder``; weights first, smart_train.json last, so that a half-written folder is not taken for one.

    state: gathered full tensors by parameter name, where the encoder in memory is sharded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (SETTINGS, VERIFIED):
        (folder / name).unlink(missing_ok=True)
    kind = encoder.adapter.kind if encoder.adapter is not None else None
    if kind in ("lora", "full"):
        _save_foundation(encoder, folder, state, kind)
    head = encoder.head.state_dict() if state is None else _part(state, "head.")
    if head:
        tensors = {name: t.detach().float().cpu().contiguous() for name, t in head.items()}
        empty = [name for name, tensor in tensors.items() if tensor.numel() == 0]
        if empty:
            raise AdapterError(f"{folder / HEAD}: {empty} are empty (sharded?); nothing was written there")
        save_file(tensors, folder / HEAD)
    write_settings(encoder, folder)
    return folder


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}


def _save_foundation(encoder: SmartEncoder, folder: Path, state: dict[str, Tensor] | None, kind: str) -> None:
    """The sentence-transformers folder: its modules and settings, with LoRA in place of the base's weights."""
    transformer, st = encoder.transformer, encoder.st
    prompts = dict(st.prompts)
    if encoder.settings.query_prompt is not None:
        prompts["query"] = encoder.settings.query_prompt
    if encoder.settings.document_prompt is not None:
        prompts["document"] = encoder.settings.document_prompt
    kept = (st.prompts, transformer.query_length, transformer.document_length)
    st.prompts = prompts
    if "message" not in st.modalities:  # a chat's text is cut before the template, which has no key there
        transformer.query_length, transformer.document_length = (
            encoder.settings.query_tokens or transformer.query_length,
            encoder.settings.document_tokens or transformer.document_length,
        )
    backbone_save = transformer.model.save_pretrained
    inner = None if state is None else _part(state, "st.0.model.")

    def write(path: str, **_options: Any) -> None:
        if kind == "lora":
            save_lora(transformer.model, Path(path), inner)
        else:
            backbone_save(path, state_dict=inner)

    transformer.model.save_pretrained = write
    try:
        st.save(str(folder), create_model_card=False)
    finally:
        del transformer.model.save_pretrained
        st.prompts, transformer.query_length, transformer.document_length = kept
    if not encoder.settings.trust_remote_code:
        without_code(folder)
    if kind == "lora" and encoder.settings.quantisation == "4bit":
        tell_plain(folder, transformer.model)


def verify(
    encoder: SmartEncoder,
    folder: Path,
    queries: list[Any],
    documents: list[Any],
    main: bool = True,
    base: str | None = None,
    half: bool = False,
) -> dict[str, Any]:
    """Reloads ``folder`` in a fresh object and compares both views with the encoder in memory.

    queries, documents: some real contents.  main: False on ranks that only take part in the forward of an encoder whose
    weights are shared out; they get {}.  base: where it lies now, if it has moved.
    half: the encoder in memory computes in half precision, whatever its base (an engine has cast it).
    Returns what ``compare`` and ``seal`` tell, and writes it to verified.json.
    A difference is the length of it between two vectors of length 1, so that it says the same for any width.
    Raises AdapterError on one over 1e-5 (2e-2 for a half-precision base; 5e-2 with ``half``), on another
    number of tokens, and where every LoRA B is still zero.
    """
    sides: Sides = [("query", queries), ("document", documents)]
    ours = [encoder.encode(contents, role) for role, contents in sides]
    if not main:
        return {}
    own = encoder.settings
    check_plain(encoder, folder)
    fresh = load(
        str(folder),
        device=encoder.device,
        base=base,
        dtype=own.dtype,
        attention=own.attention,
        trust_remote_code=own.trust_remote_code,
    )
    report = compare(folder, sides, ours, fresh, exact=CAST if half else EXACT)
    logger.info("reloaded %s: the same vectors (%s)", folder, report)
    return seal(folder, report)


def compare(
    folder: Path, sides: Sides, ours: list[Embeddings], fresh: SmartEncoder, exact: float = EXACT, half: float = HALF
) -> dict[str, Any]:
    """``ours``, one for each of ``sides``, against what a freshly loaded encoder makes of the same contents.

    exact, half: differences that are accepted of a base in float32, and in half precision
    Returns {"rows", "tolerance", "largest_pooled_difference", "largest_token_difference"}; raises AdapterError.
    """
    halved = fresh.backbone.dtype in (torch.float16, torch.bfloat16)
    rows = sum(len(contents) for _, contents in sides)
    report: dict[str, Any] = {"rows": rows, "tolerance": half if halved else exact}
    for (role, contents), mine in zip(sides, ours, strict=True):
        theirs = fresh.encode(contents, role)
        if mine.tokens.lengths.tolist() != theirs.tokens.lengths.tolist():
            raise AdapterError(f"{folder}: reloaded, a {role} has another number of tokens; the folder is not usable")
        for view, a, b in (("pooled", mine.pooled, theirs.pooled), ("token", mine.tokens.values, theirs.tokens.values)):
            note(report, folder, role, view, a, b)
    return report


def note(report: dict[str, Any], folder: Path, role: Role, view: str, ours: Tensor, theirs: Tensor) -> None:
    """Adds the largest difference of ``view`` to the report; AdapterError where it is over the report's tolerance."""
    key = f"largest_{view}_difference"
    report[key] = max(report.get(key, 0.0), float((ours - theirs).norm(dim=-1).max()))
    if not report[key] <= report["tolerance"]:
        raise AdapterError(
            f"{folder}: reloaded, a {role}'s {view} vectors differ by {report[key]:.2e} (at most "
            f"{report['tolerance']:.0e} is accepted); what was saved is not what was trained"
        )


def seal(folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    """verified.json: the report, and the SHA-256 of every file that can change a vector: nothing else is published."""
    report["weights"] = digests(folder)
    report["files"] = seals(folder, report["weights"])
    (folder / VERIFIED).write_text(json.dumps(report, indent=2) + "\n", encoding="utf8")
    return report


def check_plain(encoder: SmartEncoder, folder: Path) -> None:
    """Raises AdapterError where plain SentenceTransformer(folder) would pool in another way: without modules.json it
    makes up a mean pooling and says nothing.  A frozen backbone's folder can't be read by it at all."""
    if encoder.adapter is None or encoder.adapter.kind == "frozen":
        return
    path = folder / "modules.json"
    modules = json.loads(path.read_text(encoding="utf8")) if path.is_file() else []
    found = [module["type"].rpartition(".")[2] for module in modules]
    wanted = [type(module).__name__ for module in encoder.st]
    pooled = [m["path"] for m in modules if m["type"].endswith(".Pooling")]
    config = folder / pooled[0] / "config.json" if pooled else None
    mode = json.loads(config.read_text(encoding="utf8")).get("pooling_mode") if config and config.is_file() else None
    if found != wanted or (encoder.pooling is not None and mode != encoder.pooling):
        raise AdapterError(
            f"{path}: expected the modules {wanted} with {encoder.pooling} pooling, found {found} with {mode}; plain "
            "sentence-transformers would give other pooled vectors; save the folder again"
        )
