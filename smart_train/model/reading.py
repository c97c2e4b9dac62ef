"""An encoder from a folder or a Hub repository: everything checked first, and refused rather than repaired.

Knows: saved folders, SmartEncoder.  Does not know: how folders are written, training.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig

from smart_train import hub
from smart_train.bases import LOCAL, PACKAGE
from smart_train.blocks import AdapterBlock, LateBlock, ModelBlock
from smart_train.model.adapters import CONFIG, load_lora, read_config, read_lora
from smart_train.model.encoder import SmartEncoder
from smart_train.model.files import HEAD, SETTINGS, AdapterError
from smart_train.model.intake import check_folder, check_type
from smart_train.model.settings import base_identity, processing_of, read_settings
from smart_train.model.tensors import names_of, read_tensors

logger = logging.getLogger(__name__)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def load(
    source: str,
    revision: str | None = None,
    device: str | torch.device | None = None,
    base: str | None = None,
    layer: int | None = None,
    trainable: bool = False,
    dtype: Dtype | None = None,
    attention: str | None = None,
    trust_remote_code: bool = False,
    checkpoint: bool = False,
    quantisation: Literal["none", "4bit"] | None = None,
) -> SmartEncoder:
    """An encoder from a saved folder or Hub repository; one without smart_train.json is a plain base, training-free.

    base: where the base lies now, if it has moved; its identity is checked all the same.  layer: reads another layer
    than the stored one, where no head was trained on that.  dtype: as model.dtype.  attention, trust_remote_code: as in
    the model block, but never the stored ones: the one is the machine's choice, the other the caller's alone.
    checkpoint: the folder is of the run that reads it, with states of optimizers in whatever form an engine gives them.
    quantisation: as model.quantisation; None = as it was trained, which is the only one with the same vectors.
    Raises AdapterError, and loads nothing, where the base is another one (architecture, width, revision or weights),
    where a key is missing, left over or of another size, where every LoRA B is zero, where the folder holds code, a
    pickle or what points elsewhere (see ``check_folder``), or where ``base`` is given and there is no adapter to put on
    it.
    """
    place, commit = hub.located(source, revision)
    folder = Path(place) if commit is None else hub.fetch(place, commit, SETTINGS)
    machine: dict[str, Any] = {"attention": attention, "trust_remote_code": trust_remote_code}
    if folder is None or not (folder / SETTINGS).is_file():
        _check_plain(source, folder, base)
        late = LateBlock() if layer is None else LateBlock(layer=layer)
        model = ModelBlock(revision=revision, dtype=dtype or "auto", quantisation=quantisation or "none", **machine)
        return SmartEncoder(source, model=model, late=late, device=device)
    if not checkpoint:
        check_folder(folder, trust_remote_code)
    check_type(folder)
    stored = read_settings(folder)
    model, late, adapter = stored["model"], stored["late"], stored["adapter"]
    kind = adapter.kind if adapter is not None else None
    _check_asked(folder, stored, layer, trust_remote_code)
    _check_weights(folder, kind, stored)
    late.layer = late.layer if layer is None else layer
    asked = replace(model, dtype=dtype or model.dtype, quantisation=quantisation or model.quantisation, **machine)
    base = str(folder) if kind == "full" else base or stored["base"]
    if base == stored["base"]:
        asked.revision = stored["commit"] or model.revision  # what it was trained on, however far the Hub has moved on
    encoder = SmartEncoder(base, model=asked, late=late, device=device)
    if kind == "full":
        check_whole(encoder, folder)
    else:
        check_base(stored, base_identity(encoder), folder)
    check_processing(encoder, stored, folder)
    encoder.settings.base, encoder.settings.revision = stored["base"], model.revision
    if kind == "lora":
        load_lora(encoder.backbone, folder, trainable)
    encoder.adapter = adapter
    load_head(encoder, folder)
    return encoder


def _check_asked(folder: Path, stored: dict[str, Any], layer: int | None, trust_remote_code: bool) -> None:
    """What the caller asks for must be what the folder can be read with."""
    trained = stored["late"].layer
    if layer is not None and layer != trained and (folder / HEAD).is_file():
        raise AdapterError(f"{folder}: its head was trained on layer {trained} and can't read layer {layer}")
    if stored["model"].trust_remote_code and not trust_remote_code:
        raise AdapterError(
            f"{folder}: its base {stored['base']} runs code that lies in its repository; read it, then "
            "from_pretrained(..., trust_remote_code=True); nothing was loaded"
        )


def _check_plain(source: str, folder: Path | None, base: str | None) -> None:
    """What has no smart_train.json must be a plain base, and no half of an adapter."""
    local = Path(source).expanduser() if folder is None else folder
    if base is not None or (local / HEAD).is_file():
        raise AdapterError(f"{source}: there is no {SETTINGS}, so it is no adapter, or half of one")
    if local.is_dir():
        check_type(local)


def _check_weights(folder: Path, kind: str | None, stored: dict[str, Any]) -> None:
    """What a broken file can tell before the base is loaded: a base takes minutes, and a refusal none."""
    if kind == "lora":
        _check_scale(folder, read_config(folder), stored["adapter"])
        read_lora(folder)
        _check_named_base(folder, stored)
    elif (folder / CONFIG).is_file():
        what = f"{folder}: {CONFIG} lies there, and {SETTINGS} knows of no LoRA ({kind or 'no adapter'})"
        raise AdapterError(f"{what}; other loaders would take the base that it names; delete one; nothing was loaded")
    if kind == "full" and not any(folder.glob("model*.safetensors")):
        raise AdapterError(f"{folder}: no model*.safetensors there, so its weights are missing; nothing was loaded")
    if (folder / HEAD).is_file():
        read_tensors(folder / HEAD)
    for path in folder.glob("*.safetensors"):
        names_of(path)


def _check_scale(folder: Path, config: LoraConfig, adapter: AdapterBlock) -> None:
    """The update is alpha / r x B A: another alpha would change every vector, and no tensor tells it."""
    found, told = (config.r, config.lora_alpha), (adapter.r, adapter.alpha)
    if found != told:
        what = f"{folder / CONFIG} has r, alpha = {found}, {SETTINGS} {told}"
        raise AdapterError(f"{what}; they must be one; correct the file that was changed; nothing was loaded")


def _check_named_base(folder: Path, stored: dict[str, Any]) -> None:
    """adapter_config.json is what plain peft and sentence-transformers follow: it must name the same base."""
    peft = json.loads((folder / CONFIG).read_text(encoding="utf8"))
    named, base = peft.get("base_model_name_or_path") or "", str(stored["base"])
    local = stored["commit"] is None
    # A folder's path differs from machine to machine, its last name hardly; a published one is local:NAME.
    last = [text.removeprefix(LOCAL).removeprefix(PACKAGE).rstrip("/").rpartition("/")[2] for text in (named, base)]
    same = last[0] == last[1] if local else named in (base, f"sentence-transformers/{base}")
    if not same or (not local and peft.get("revision") not in (None, stored["commit"])):
        what = f"{folder / CONFIG} is for the base {named!r} at {peft.get('revision')}, {SETTINGS} for {base!r}"
        what += f" at {stored['commit']}"
        raise AdapterError(f"{what}; they must be one; correct the file that was changed; nothing was loaded")


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


def check_processing(encoder: SmartEncoder, stored: dict[str, Any], folder: Path) -> None:
    """Raises AdapterError where the base at hand formats its inputs in another way than in training."""
    found, then = processing_of(encoder), stored["processing"]
    changed = {key: (then.get(key), found[key]) for key in found if then.get(key) != found[key]}
    if changed:
        told = ", ".join(f"{key} was {was}, is {now}" for key, (was, now) in changed.items())
        raise AdapterError(
            f"{folder}: {stored['base']} formats its inputs otherwise than when this was trained ({told}), which "
            "changes vectors; restore its tokenizer and processor files, or train again; nothing was loaded"
        )


def check_whole(encoder: SmartEncoder, folder: Path) -> None:
    """Raises AdapterError where the file of a whole model lacks a tensor or has one too many: transformers draws what
    is missing at random and says so in its log."""
    named = set().union(*(names_of(path) for path in folder.glob("model*.safetensors")))
    state = encoder.backbone.state_dict(keep_vars=True)
    # Weights that are tied are written once, under one of their names.
    there = {id(tensor) for name, tensor in state.items() if name in named}
    missing = sorted(name for name, tensor in state.items() if name not in named and id(tensor) not in there)
    extra = sorted(named - state.keys())
    if missing or extra:  # or the file has the names of an older transformers: it knows how they are read
        _, info = type(encoder.backbone).from_pretrained(
            str(folder), output_loading_info=True, trust_remote_code=encoder.settings.trust_remote_code
        )
        missing, extra = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing or extra:
        raise AdapterError(
            f"{folder}: {len(missing)} of {len(state)} of the model's tensors are missing ({missing[:2]}) and "
            f"{len(extra)} are not this model's ({extra[:2]}); the file is of another model or its keys were renamed; "
            "nothing was loaded"
        )


def load_head(encoder: SmartEncoder, folder: Path) -> None:
    """The late head's weights, every key and size checked; raises AdapterError."""
    expected = encoder.head.state_dict()
    path = folder / HEAD
    if not expected and not path.is_file():
        return
    if not path.is_file():
        raise AdapterError(f"{path} is missing, but the settings name a head ({sorted(expected)}); nothing was loaded")
    stored = read_tensors(path)
    want = {name: tuple(t.shape) for name, t in expected.items()}
    have = {name: tuple(t.shape) for name, t in stored.items()}
    if want != have:
        raise AdapterError(f"{path}: expected {want}, found {have}; the head belongs to other settings")
    encoder.head.load_state_dict(stored)
