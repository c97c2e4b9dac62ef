"""The folder an encoder is saved as, loaded from, and verified by.

    smart_train.json           what changes a vector: base and its revision, layer, norm, head, prompts, lengths, pixels
    late_head.safetensors      the head's and the mix's weights, where there are any
    adapter_config.json, adapter_model.safetensors    LoRA, as peft writes it
    modules.json, config_sentence_transformers.json, 1_Pooling/ ...    so that plain SentenceTransformer(folder) gives
                               the same pooled vectors without this package
Safetensors and JSON only.  A frozen backbone's folder holds the first two alone: its pooled vectors are the base's.

Knows: SmartEncoder and files.  Does not know: training, data sets.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from smart_train import hub
from smart_train.blocks import AdapterBlock, HybridBlock, LateBlock, ModelBlock
from smart_train.model.adapters import AdapterError, load_lora, save_lora
from smart_train.model.encoder import SmartEncoder
from smart_train.model.files import HEAD, SETTINGS, VERIFIED, digests, fingerprint
from smart_train.model.inputs import Role
from smart_train.saving import replacing

logger = logging.getLogger(__name__)

FORMAT = 1
VERSIONS = ("smart-train", "torch", "transformers", "peft", "sentence-transformers")


def base_identity(encoder: SmartEncoder) -> dict[str, Any]:
    """{"base", "revision", "commit", "fingerprint", "architecture", "hidden_size"}: what tells one base from another.

    The fingerprint is a SHA-256 over the base's weight files' headers and 64 KiB samples of each (a local folder);
    a Hub model is told by its commit.
    """
    settings = encoder.settings
    folder = Path(encoder.place)
    return {
        "base": settings.base,
        "revision": settings.revision,
        "commit": encoder.commit,
        "fingerprint": fingerprint(folder) if folder.is_dir() else None,
        "architecture": type(encoder.backbone).__name__,
        "hidden_size": encoder.hidden_size,
    }


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


def write_settings(encoder: SmartEncoder, folder: Path) -> None:
    """smart_train.json, through a temporary file: never half of it."""
    with replacing(folder / SETTINGS) as part:
        part.write_text(json.dumps(settings_of(encoder), indent=2) + "\n", encoding="utf8")


def settings_of(encoder: SmartEncoder) -> dict[str, Any]:
    """Everything that changes a vector or a score, as JSON."""
    model = asdict(encoder.settings)
    model["query_prompt"], model["document_prompt"] = encoder.prompt("query") or "", encoder.prompt("document") or ""
    return {
        "format": FORMAT,
        **base_identity(encoder),
        "model": model,
        "late": asdict(encoder.late),
        "adapter": asdict(encoder.adapter) if encoder.adapter is not None else None,
        "processing": processing_of(encoder),
        "versions": {name: _version(name) for name in VERSIONS},
    }


def processing_of(encoder: SmartEncoder) -> dict[str, Any]:
    """What the base brings along that changes a vector, and that its weights do not tell: the longest text, the chat
    template (by hash), the pixel budget in force and the side of the padding."""
    processor, tokenizer = encoder.transformer.processor, encoder.tokenizer
    template = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)  # as it is chosen
    images = getattr(processor, "image_processor", None)
    size = getattr(images, "size", None)
    return {
        "max_tokens": encoder.st.max_seq_length,
        "chat_template": _digest(template),
        "pixels": {k: v for k, v in dict(size).items() if v is not None} if size is not None else None,
        "padding_side": tokenizer.padding_side,
    }


def check_processing(encoder: SmartEncoder, stored: dict[str, Any], folder: Path) -> None:
    """Raises AdapterError where the base at hand formats its inputs in another way than in training."""
    found = processing_of(encoder)
    changed = {key: (stored["processing"][key], found[key]) for key in found if stored["processing"][key] != found[key]}
    if changed:
        told = ", ".join(f"{key} was {was}, is {now}" for key, (was, now) in changed.items())
        raise AdapterError(
            f"{folder}: {stored['base']} formats its inputs otherwise than when this was trained ({told}), which "
            "changes vectors; restore its tokenizer and processor files, or train again; nothing was loaded"
        )


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}


def _digest(text: Any) -> str | None:
    return None if text is None else hashlib.sha256(str(text).encode()).hexdigest()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except ImportError:
        return None


def _save_foundation(encoder: SmartEncoder, folder: Path, state: dict[str, Tensor] | None, kind: str) -> None:
    """The sentence-transformers folder: its modules and settings, with LoRA in place of the base's weights."""
    transformer, st = encoder.transformer, encoder.st
    prompts = dict(st.prompts)
    if encoder.settings.query_prompt is not None:
        prompts["query"] = encoder.settings.query_prompt
    if encoder.settings.document_prompt is not None:
        prompts["document"] = encoder.settings.document_prompt
    kept, st.prompts = st.prompts, prompts
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
        st.prompts = kept


def load(
    source: str,
    revision: str | None = None,
    device: str | torch.device | None = None,
    base: str | None = None,
    layer: int | None = None,
    trainable: bool = False,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None,
    attention: str | None = None,
    trust_remote_code: bool = False,
) -> SmartEncoder:
    """An encoder from a saved folder or Hub repository; one without smart_train.json is a plain base, training-free.

    base: where the base lies now, if it has moved; its identity is checked all the same.  layer: reads another layer
    than the stored one, where no head was trained on that.  dtype: as model.dtype.  attention, trust_remote_code: as in
    the model block, but never the stored ones: the one is the machine's choice, the other the caller's alone.
    Raises AdapterError, and loads nothing, where the base is another one (architecture, width, revision or weights),
    where a key is missing, left over or of another size, where every LoRA B is zero, or where ``base`` is given and
    there is no adapter to put on it.
    """
    place, commit = hub.located(source, revision)
    folder = Path(place) if commit is None else hub.fetch(place, commit, SETTINGS)
    if folder is None or not (folder / SETTINGS).is_file():
        if base is not None or (commit is None and (Path(place) / HEAD).is_file()):
            raise AdapterError(f"{source}: there is no {SETTINGS}, so it is no adapter, or half of one")
        late = LateBlock() if layer is None else LateBlock(layer=layer)
        model = ModelBlock(
            revision=revision, dtype=dtype or "auto", attention=attention, trust_remote_code=trust_remote_code
        )
        return SmartEncoder(source, model=model, late=late, device=device)
    stored = json.loads((folder / SETTINGS).read_text(encoding="utf8"))
    if stored.get("format") != FORMAT:
        raise AdapterError(f"{folder / SETTINGS}: format {stored.get('format')}, this version reads {FORMAT}; upgrade")
    late = stored["late"]
    late = LateBlock(**{**late, "hybrid": HybridBlock(**late["hybrid"])})
    if layer is not None and layer != late.layer:
        if (folder / HEAD).is_file():
            raise AdapterError(f"{folder}: its head was trained on layer {late.layer} and can't read layer {layer}")
        late.layer = layer
    adapter = AdapterBlock(**stored["adapter"]) if stored["adapter"] is not None else None
    model = ModelBlock(**stored["model"])
    if model.trust_remote_code and not trust_remote_code:
        raise AdapterError(
            f"{folder}: its base {stored['base']} runs code that lies in its repository; read it, then "
            "from_pretrained(..., trust_remote_code=True); nothing was loaded"
        )
    model.dtype, model.attention, model.trust_remote_code = dtype or model.dtype, attention, trust_remote_code
    full = adapter is not None and adapter.kind == "full"
    base = str(folder) if full else base or stored["base"]
    if base == stored["base"]:
        model.revision = stored["commit"] or model.revision  # what it was trained on, however far the Hub has moved on
    encoder = SmartEncoder(base, model=model, late=late, device=device)
    if not full:
        check_base(stored, base_identity(encoder), folder)
    check_processing(encoder, stored, folder)
    encoder.settings.base, encoder.settings.revision = stored["base"], stored["model"]["revision"]
    if adapter is not None and adapter.kind == "lora":
        load_lora(encoder.backbone, folder, trainable)
    encoder.adapter = adapter
    load_head(encoder, folder)
    return encoder


def check_base(stored: dict[str, Any], found: dict[str, Any], folder: Path) -> None:
    """Raises AdapterError where the base at hand is not the one the adapter was trained on.

    A folder is known by its fingerprint, a Hub model by its commit; where the one would have to be compared with the
    other, a warning says that the weights were not.
    """
    if not any(stored.get(key) and found.get(key) for key in ("commit", "fingerprint")):
        logger.warning(
            "%s was trained on %s; %s has its architecture and width, but a folder can't be compared with a Hub model "
            "further: see to it that the weights are the same",
            *(folder, stored["base"], found["base"]),
        )
    for key in ("architecture", "hidden_size", "commit", "fingerprint"):
        if stored.get(key) is not None and found.get(key) is not None and stored[key] != found[key]:
            raise AdapterError(
                f"{folder}: trained on {stored['base']} with {key} {stored[key]}, but {found['base']} has {key} "
                f"{found[key]}; load it with that base, or train again; nothing was loaded"
            )


def load_head(encoder: SmartEncoder, folder: Path) -> None:
    """The late head's weights, every key and size checked; raises AdapterError."""
    expected = encoder.head.state_dict()
    path = folder / HEAD
    if not expected and not path.is_file():
        return
    if not path.is_file():
        raise AdapterError(f"{path} is missing, but the settings name a head ({sorted(expected)}); nothing was loaded")
    stored = load_file(path)
    want = {name: tuple(t.shape) for name, t in expected.items()}
    have = {name: tuple(t.shape) for name, t in stored.items()}
    if want != have:
        raise AdapterError(f"{path}: expected {want}, found {have}; the head belongs to other settings")
    encoder.head.load_state_dict(stored)


def verify(
    encoder: SmartEncoder, folder: Path, queries: list[Any], documents: list[Any], main: bool = True
) -> dict[str, Any]:
    """Reloads ``folder`` in a fresh object and compares both views with the encoder in memory.

    queries, documents: some real contents.  main: False on ranks that only take part in the forward of an encoder whose
    weights are shared out; they get {}.
    Returns {"rows", "largest_pooled_difference", "largest_token_difference",
    "weights": the SHA-256 of every weight file, so that nothing else is published} and writes it to verified.json.
    A difference is the length of it between two vectors of length 1, so that it says the same for any width.
    Raises AdapterError on one over 1e-5 (2e-2 for a half-precision base), on another number of tokens, and where every
    LoRA B is still zero.
    """
    sides: list[tuple[Role, list[Any]]] = [("query", queries), ("document", documents)]
    ours = [encoder.encode(contents, role) for role, contents in sides]
    if not main:
        return {}
    own = encoder.settings
    fresh = load(
        str(folder),
        device=encoder.device,
        dtype=own.dtype,
        attention=own.attention,
        trust_remote_code=own.trust_remote_code,
    )
    half = encoder.backbone.dtype in (torch.float16, torch.bfloat16)
    report: dict[str, Any] = {"rows": len(queries) + len(documents), "tolerance": 2e-2 if half else 1e-5}
    for (role, contents), mine in zip(sides, ours, strict=True):
        theirs = fresh.encode(contents, role)
        if mine.tokens.lengths.tolist() != theirs.tokens.lengths.tolist():
            raise AdapterError(f"{folder}: reloaded, a {role} has another number of tokens; the folder is not usable")
        for view, a, b in (("pooled", mine.pooled, theirs.pooled), ("token", mine.tokens.values, theirs.tokens.values)):
            key = f"largest_{view}_difference"
            report[key] = max(report.get(key, 0.0), float((a - b).norm(dim=-1).max()))
            if not report[key] <= report["tolerance"]:
                raise AdapterError(
                    f"{folder}: reloaded, a {role}'s {view} vectors differ by {report[key]:.2e} (at most "
                    f"{report['tolerance']:.0e} is accepted); the saved adapter is not what was trained"
                )
    logger.info("reloaded %s: the same vectors (%s)", folder, report)
    report["weights"] = digests(folder)
    (folder / VERIFIED).write_text(json.dumps(report, indent=2) + "\n", encoding="utf8")
    return report
