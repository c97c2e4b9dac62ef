"""Save an encoder as a folder and load it again: settings, LoRA, head, and every check before a base is loaded.

The folder (docs/architecture.md describes it whole):

    smart_train.json            settings: the base and its identity, everything that changes a vector or a score
    adapter_model.safetensors   LoRA, as peft writes it (or model.safetensors: full weights)
    late_head.safetensors       the late head and the layer weights
    modules.json ...            sentence-transformers' own files, so that it loads the folder by itself
    verified.json               written by models/verification.py when the folder was reloaded and compared

``SmartEncoder.save_pretrained`` and ``SmartEncoder.from_pretrained`` are the way in.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Protocol, get_type_hints

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor

from smart_train.config.recipe import plain
from smart_train.config.schema import AdapterBlock, HybridBlock, LateBlock, ModelBlock
from smart_train.config.typed_values import Problem, fit, is_block
from smart_train.core import hub
from smart_train.core.atomic_io import replacing
from smart_train.core.errors import AdapterError, ExtensionError, Setting, border, checks, written
from smart_train.core.hub import LOCAL, PACKAGE
from smart_train.models.heads import HEADS, LateHead, file_name, parameter_name, tensor_shapes
from smart_train.models.lora import CONFIG, WEIGHTS, load_lora, read_config, read_lora, save_lora
from smart_train.models.pooling import pooling_name
from smart_train.models.preprocessing import Role
from smart_train.models.quantization import write_quantization_config
from smart_train.models.safe_loading import (
    HEAD,
    SETTINGS,
    VERIFIED,
    check_folder,
    check_type,
    fingerprint,
    names_of,
    nonfinite,
    read_tensors,
    shapes,
    without_code,
)
from smart_train.models.token_filters import TOKEN_FILTERS

logger = logging.getLogger(__name__)

FORMAT = 1
VERSIONS = ("smart-train", "torch", "transformers", "peft", "sentence-transformers")
REQUIRED = ("base", "commit", "fingerprint", "architecture", "hidden_size", "model", "late", "adapter", "processing")
LATER = ("pooling",)  # keys of "processing" that folders of version 0.1 do not have
FAR = 64  # times the largest size of the base and the head's file: no head makes token vectors that wide
TRUST = Setting("trust_extensions", "NAME", python="pass trust_extensions=[NAME]")

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class Encoder(Protocol):
    """Protocol of what this module reads of a SmartEncoder."""

    settings: ModelBlock
    late: LateBlock
    adapter: AdapterBlock | None
    place: str
    commit: str | None
    st: SentenceTransformer
    head: LateHead
    pooling: str | None

    @property
    def transformer(self) -> Any: ...
    @property
    def backbone(self) -> Any: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def hidden_size(self) -> int: ...
    def prompt(self, role: Role) -> str | None: ...


# Settings ------------------------------------------------------------------------------------------------------------


def base_identity(encoder: Encoder) -> dict[str, Any]:
    """Return what tells one base from another.

    returns: {"base", "revision", "commit", "fingerprint", "architecture", "hidden_size"}.  The fingerprint of a local
        folder is a SHA-256 over headers and 64 KiB samples of its weight files; a Hub model is known by its commit
    """
    settings, folder = encoder.settings, Path(encoder.place)
    return {
        "base": settings.base,
        "revision": settings.revision,
        "commit": encoder.commit,
        "fingerprint": fingerprint(folder) if folder.is_dir() else None,
        "architecture": type(encoder.backbone).__name__,
        "hidden_size": encoder.hidden_size,
    }


def settings_of(encoder: Encoder) -> dict[str, Any]:
    """Return everything that changes a vector or a score, as JSON: the content of smart_train.json."""
    model = asdict(encoder.settings)
    model["query_prompt"], model["document_prompt"] = encoder.prompt("query") or "", encoder.prompt("document") or ""
    return {
        "format": FORMAT,
        **base_identity(encoder),
        "model": model,
        "late": plain(encoder.late),
        "adapter": asdict(encoder.adapter) if encoder.adapter is not None else None,
        "processing": processing_of(encoder),
        "versions": {name: _version(name) for name in VERSIONS},
    }


def processing_of(encoder: Encoder) -> dict[str, Any]:
    """Return what changes a vector beside weights and settings: longest text, chat template (by hash), pixel budget in
    force, padding side and pooling."""
    processor, tokenizer = encoder.transformer.processor, encoder.tokenizer
    template = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)  # as it is chosen
    size = getattr(getattr(processor, "image_processor", None), "size", None)
    return {
        "max_tokens": encoder.st.max_seq_length,
        "chat_template": None if template is None else hashlib.sha256(str(template).encode()).hexdigest(),
        "pixels": {k: v for k, v in dict(size).items() if v is not None} if size is not None else None,
        "padding_side": tokenizer.padding_side,
        "pooling": encoder.pooling,
    }


def modules_of(encoder: Encoder) -> dict[str, Any]:
    """Return the settings of the modules behind the backbone (pooling, dense layers, normalisation), as JSON.

    A pooled vector follows from them, and neither a fingerprint nor ``settings_of`` has them.
    """
    behind: list[Any] = list(encoder.st)[1:]
    return {
        f"{place} {type(module).__name__}": json.loads(json.dumps(module.get_config_dict(), default=str))
        for place, module in enumerate(behind, 1)
    }


def write_settings(encoder: Encoder, folder: Path, **more: Any) -> None:
    """Write smart_train.json, through a temporary file.

    more: further keys, which change no vector.  "export" of a file that is there stays.
    """
    path = folder / SETTINGS
    before = json.loads(path.read_text(encoding="utf8")) if path.is_file() else {}
    more = {**({"export": before["export"]} if "export" in before else {}), **more}
    with replacing(path) as part:
        part.write_text(json.dumps({**settings_of(encoder), **more}, indent=2) + "\n", encoding="utf8")


def write_late_settings(folder: Path, late: dict[str, Any]) -> None:
    """Rewrite the ``late`` block of smart_train.json alone.

    Where only the hybrid's weights and constants change, verified.json is kept and its checksum updated: they change a
    score and no vector, and are fitted after the vectors were verified.  Otherwise verified.json is removed.
    """
    path, verified = folder / SETTINGS, folder / VERIFIED
    stored = json.loads(path.read_text(encoding="utf8"))
    report = json.loads(verified.read_text(encoding="utf8")) if verified.is_file() else {}
    unchanged = report.get("files", {}).get(SETTINGS) == hashlib.sha256(path.read_bytes()).hexdigest()
    same_vectors = {**stored["late"], "hybrid": None} == {**late, "hybrid": None}
    content = (json.dumps({**stored, "late": late}, indent=2) + "\n").encode()
    if not (unchanged and same_vectors):
        verified.unlink(missing_ok=True)
    with replacing(path) as part:
        part.write_bytes(content)
    if unchanged and same_vectors:
        report["files"][SETTINGS] = hashlib.sha256(content).hexdigest()
        with replacing(verified) as part:
            part.write_text(json.dumps(report, indent=2) + "\n", encoding="utf8")


def read_settings(folder: Path) -> dict[str, Any]:
    """Read smart_train.json; "model", "late" and "adapter" (or None there) become dataclasses.

    Raises AdapterError: another format, a key that is missing or that this version does not know, a wrong value.
    """
    path = folder / SETTINGS
    try:
        stored = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise AdapterError(f"{path} is not JSON ({error}); download or copy it again; nothing was loaded") from None
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        found = stored.get("format") if isinstance(stored, dict) else type(stored).__name__
        raise AdapterError(f"{path}: format {found}, this version reads {FORMAT}; upgrade; nothing was loaded")
    missing = [key for key in REQUIRED if key not in stored]
    if missing:
        raise AdapterError(f"{path}: {', '.join(missing)} missing; save the adapter again; nothing was loaded")
    if not isinstance(stored["processing"], dict):
        raise AdapterError(f"{path}: processing is not a block of keys; save the adapter again; nothing was loaded")
    late = _read_block(LateBlock, stored["late"], "late", path)
    late.hybrid = _read_block(HybridBlock, stored["late"].get("hybrid"), "late.hybrid", path)
    model = _read_block(ModelBlock, stored["model"], "model", path)
    adapter = None if stored["adapter"] is None else _read_block(AdapterBlock, stored["adapter"], "adapter", path)
    return {**stored, "model": model, "late": late, "adapter": adapter}


def _read_block(kind: type, stored: Any, name: str, path: Path) -> Any:
    if not isinstance(stored, dict):
        raise AdapterError(f"{path}: {name} is not a block of keys ({type(stored).__name__}); nothing was loaded")
    unknown = sorted(stored.keys() - {one.name for one in fields(kind)})
    if unknown:
        what = f"{name} has {', '.join(unknown)}, which this version does not know"
        raise AdapterError(f"{path}: {what}; upgrade; nothing was loaded")
    problems: list[Problem] = []
    for key, hint in get_type_hints(kind).items():
        if key in stored and not is_block(hint):
            fit(stored[key], hint, f"{name}.{key}", problems)
    if problems:  # a value that this version lacks must not become one that it has
        listed = "; ".join(f"{one.key} {written(one.what)}" for one in problems)
        raise AdapterError(f"{path}: {listed}; upgrade, or correct it; nothing was loaded")
    return kind(**stored)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


# Saving --------------------------------------------------------------------------------------------------------------


def save(encoder: Encoder, folder: Path, state: dict[str, Tensor] | None = None) -> Path:
    """Write the folder: weights first, smart_train.json last, so that a half-written folder is not taken for one.

    state: gathered full tensors by parameter name, where the encoder in memory is sharded
    """
    kind = encoder.adapter.kind if encoder.adapter is not None else None
    head = encoder.head.state_dict()
    if state is not None:  # gathered parameters; buffers are whole on every rank
        sharded = dict(encoder.head.named_parameters())
        head = {name: t for name, t in head.items() if name not in sharded} | _part(state, "head.")
    tensors = {file_name(name): t.detach().float().cpu().contiguous() for name, t in head.items()}
    empty = [name for name, tensor in tensors.items() if tensor.numel() == 0]
    if empty:
        raise AdapterError(f"{folder / HEAD}: {empty} are empty (sharded?); nothing was written there")
    rest = encoder.st.state_dict() if state is None else state
    trained = ((name, t) for name, t in rest.items() if kind == "full" or (kind == "lora" and "lora_" in name))
    wrong = nonfinite([*tensors.items(), *trained])
    if wrong:
        raise AdapterError(f"{folder}: {wrong}; save from a checkpoint before that; nothing was written there")
    folder.mkdir(parents=True, exist_ok=True)
    for name in (SETTINGS, VERIFIED):
        (folder / name).unlink(missing_ok=True)
    if kind in ("lora", "full"):
        _save_sentence_transformer(encoder, folder, state, kind)
    if tensors:
        save_file(tensors, folder / HEAD)
    write_settings(encoder, folder)
    return folder


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}


def _save_sentence_transformer(encoder: Encoder, folder: Path, state: dict[str, Tensor] | None, kind: str) -> None:
    """Write sentence-transformers' own files, with LoRA in place of the base's weights.

    The recipe's prompts and limits go into them, so that plain sentence-transformers reads texts as training did.
    """
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
        write_quantization_config(folder, transformer.model)


# Loading -------------------------------------------------------------------------------------------------------------


@dataclass
class Saved:
    """A saved folder, checked as far as it can be without its base."""

    folder: Path
    settings: dict[str, Any]  # of smart_train.json
    model: ModelBlock
    late: LateBlock
    adapter: AdapterBlock | None

    @property
    def kind(self) -> str | None:
        return self.adapter.kind if self.adapter is not None else None

    def base(self, moved: str | None) -> str:
        """Return where the base is.  moved: where the caller says it is now"""
        return str(self.folder) if self.kind == "full" else moved or self.settings["base"]

    def model_block(self, base: str, dtype: str | None, quantisation: str | None, **machine: Any) -> ModelBlock:
        """Return the model block to load ``base`` with.

        dtype, quantisation: None = as stored; machine: attention and trust_remote_code, which are never the stored ones
        """
        block = replace(self.model, **machine)
        block.dtype = dtype or block.dtype  # type: ignore[assignment]
        block.quantisation = quantisation or block.quantisation  # type: ignore[assignment]
        if base == self.settings["base"]:  # the commit it was trained on, however far the Hub has moved on
            block.revision = self.settings["commit"] or block.revision
        return block


@checks()
def open_saved(
    source: str,
    revision: str | None = None,
    *,
    layer: int | None = None,
    trust_remote_code: bool = False,
    trust_extensions: Sequence[str] = (),
    checkpoint: bool = False,
    moved: str | None = None,
) -> Saved | None:
    """Read and check a saved folder (or Hub repository); None where it is a plain base without smart_train.json.

    The arguments are those of ``SmartEncoder.from_pretrained``; moved: its ``base``
    checkpoint: the folder is of the run that reads it, with optimizer states in whatever form an engine wrote them
    Raises AdapterError: see ``from_pretrained``.
    """
    place, commit = hub.locate(source, revision)
    folder = Path(place) if commit is None else hub.fetch(place, commit, SETTINGS)
    if folder is None or not (folder / SETTINGS).is_file():
        _check_plain_base(source, folder, moved)
        return None
    with border(folder, "its files are not those of an adapter; nothing was loaded", AdapterError):
        if not checkpoint:
            check_folder(folder, trust_remote_code)
        check_type(folder)
        settings = read_settings(folder)
    saved = Saved(folder, settings, settings["model"], settings["late"], settings["adapter"])
    check_extensions(saved.late, trust_extensions, folder / SETTINGS)
    trained = saved.late.layer
    if layer is not None and layer != trained and (folder / HEAD).is_file():
        raise AdapterError(f"{folder}: its head was trained on layer {trained} and can't read layer {layer}")
    if saved.model.trust_remote_code and not trust_remote_code:
        raise AdapterError(
            f"{folder}: its base {saved.settings['base']} runs code of its repository; read that code, then ",
            Setting("model.trust_remote_code", True, python="pass trust_remote_code=True"),
            "; nothing was loaded",
        )
    with border(folder, "its files are not those of an adapter; nothing was loaded", AdapterError):
        _check_weights(saved)
    if layer is not None:
        saved.late.layer = layer
    return saved


def restore(encoder: Encoder, saved: Saved, trainable: bool = False) -> None:
    """Put LoRA and head of a saved folder into an encoder of its base, after comparing the base with the stored one.

    trainable: whether LoRA can be trained on.  Raises AdapterError.
    """
    if saved.kind == "full":
        _check_full_weights(encoder, saved.folder)
    else:
        check_base(saved.settings, base_identity(encoder), saved.folder)
    check_processing(encoder, saved.settings, saved.folder)
    encoder.settings.base, encoder.settings.revision = saved.settings["base"], saved.model.revision
    if saved.kind == "lora":
        encoder.st.requires_grad_(False)
        load_lora(encoder.backbone, saved.folder, trainable)
    encoder.adapter = saved.adapter
    if saved.model.pooling is not None:
        check_pooling_modules(encoder, saved.folder)
    load_head(encoder, saved.folder)


def load_head(encoder: Encoder, folder: Path) -> None:
    """Load the late head's weights; raise AdapterError where a name or a shape differs."""
    expected = encoder.head.state_dict()
    path = folder / HEAD
    if not expected and not path.is_file():
        return
    if not path.is_file():
        raise AdapterError(f"{path} is missing, but the settings name a head ({sorted(expected)}); nothing was loaded")
    stored = read_tensors(path)
    want = {file_name(name): tuple(t.shape) for name, t in expected.items()}
    have = {name: tuple(t.shape) for name, t in stored.items()}
    if want != have:
        raise AdapterError(f"{path}: expected {want}, found {have}; the head belongs to other settings")
    encoder.head.load_state_dict({parameter_name(name): tensor for name, tensor in stored.items()})


def check_extensions(late: LateBlock, trusted: Sequence[str], path: Path) -> None:
    """Raise AdapterError where a folder's settings name a head or token filter of another package that the caller did
    not name as trusted; nothing of that package is imported then."""
    trusted = [trusted] if isinstance(trusted, str) else trusted
    chosen = [("late.head", HEADS, late.head), *(("late.keep", TOKEN_FILTERS, one) for one in late.keep)]
    for key, registry, one in chosen:
        if one.type not in registry.builtin and one.type not in trusted:
            raise AdapterError(
                f"{path}: {key} is {one.type!r}, which is no {registry.kind} of this package; if you trust the code it "
                "names, ",
                TRUST,
                "; otherwise upgrade; nothing was loaded",
            )
        try:
            registry.check(one.type, one.options)
        except ExtensionError as error:
            raise AdapterError(f"{path}: {key}: {error}; nothing was loaded") from error


def check_base(stored: dict[str, Any], found: dict[str, Any], folder: Path) -> None:
    """Raise AdapterError where the base at hand is not the one the adapter was trained on.

    stored: of smart_train.json; found: ``base_identity`` of the base at hand
    A folder is known by its fingerprint, a Hub model by its commit; where the one would have to be compared with the
    other, a warning says that the weights were not compared.
    """
    if not any(stored.get(key) and found.get(key) for key in ("commit", "fingerprint")):
        logger.warning(
            "%s was trained on %s; %s has its architecture and width, but a folder can't be compared with a Hub model "
            "further: make sure that the weights are the same",
            *(folder, stored["base"], found["base"]),
        )
    for key in ("architecture", "hidden_size", "commit", "fingerprint"):
        if stored.get(key) is not None and found.get(key) is not None and stored[key] != found[key]:
            raise AdapterError(
                f"{folder}: trained on {stored['base']} with {key} {stored[key]}, but {found['base']} has {key} "
                f"{found[key]}; load it with that base, or train again; nothing was loaded"
            )


def check_processing(encoder: Encoder, stored: dict[str, Any], folder: Path) -> None:
    """Raise AdapterError where the base at hand formats its inputs, or pools, in another way than in training."""
    found, then = processing_of(encoder), stored["processing"]
    compared = [key for key in found if key in then or key not in LATER]
    changed = {key: (then.get(key), found[key]) for key in compared if then.get(key) != found[key]}
    if changed:
        listed = ", ".join(f"{key} was {was}, is {now}" for key, (was, now) in changed.items())
        raise AdapterError(
            f"{folder}: {stored['base']} formats its inputs otherwise than when this was trained ({listed}), which "
            "changes vectors; restore its tokenizer, processor and module files, or train again; nothing was loaded"
        )


def check_pooling_modules(encoder: Encoder, folder: Path) -> None:
    """Raise AdapterError where plain SentenceTransformer(folder) would pool in another way.

    Without modules.json it makes up a mean pooling and says nothing.  It cannot read the folder of a frozen backbone.
    """
    if encoder.adapter is None or encoder.adapter.kind == "frozen":
        return
    path = folder / "modules.json"
    modules = json.loads(path.read_text(encoding="utf8")) if path.is_file() else []
    found = [module["type"].rpartition(".")[2] for module in modules]
    wanted = [type(module).__name__ for module in encoder.st]
    pooled = [m["path"] for m in modules if m["type"].endswith(".Pooling")]
    config = folder / pooled[0] / "config.json" if pooled else None
    stored = json.loads(config.read_text(encoding="utf8")) if config and config.is_file() else {}
    mode = pooling_name(stored["pooling_mode"]) if "pooling_mode" in stored else None
    if found != wanted or (encoder.pooling is not None and mode != encoder.pooling):
        raise AdapterError(
            f"{path}: expected the modules {wanted} with {encoder.pooling} pooling, found {found} with {mode}; plain "
            "sentence-transformers would give other pooled vectors; save the folder again"
        )


def _check_plain_base(source: str, folder: Path | None, base: str | None) -> None:
    """A folder without smart_train.json must be a plain base, and no half of an adapter."""
    local = Path(source).expanduser() if folder is None else folder
    if base is not None or (local / HEAD).is_file():
        raise AdapterError(f"{source}: there is no {SETTINGS}, so it is no adapter, or half of one")
    if local.is_dir():
        check_type(local)


def _check_weights(saved: Saved) -> None:
    """Check the weight files before the base is loaded: a base takes minutes, and a refusal none."""
    folder, kind = saved.folder, saved.kind
    if kind == "lora":
        assert saved.adapter is not None
        _check_scale(folder, read_config(folder), saved.adapter)
        _check_rank(folder, saved.adapter)
        _check_update(folder, read_lora(folder), saved.adapter.alpha)
        _check_named_base(folder, saved.settings)
    elif (folder / CONFIG).is_file():
        what = f"{folder}: {CONFIG} lies there, and {SETTINGS} knows of no LoRA ({kind or 'no adapter'})"
        raise AdapterError(f"{what}; other loaders would take the base that it names; delete one; nothing was loaded")
    if kind == "full" and not any(folder.glob("model*.safetensors")):
        raise AdapterError(f"{folder}: no model*.safetensors there, so its weights are missing; nothing was loaded")
    _check_head_sizes(saved)
    if (folder / HEAD).is_file():
        read_tensors(folder / HEAD)
    for path in folder.glob("*.safetensors"):
        names_of(path)


def _check_scale(folder: Path, config: LoraConfig, adapter: AdapterBlock) -> None:
    """The update is alpha / r x B A: another alpha would change every vector, and no tensor shows it."""
    found, stored = (config.r, config.lora_alpha), (adapter.r, adapter.alpha)
    if found != stored:
        what = f"{folder / CONFIG} has r, alpha = {found}, {SETTINGS} {stored}"
        raise AdapterError(f"{what}; they must be equal; correct the file that was changed; nothing was loaded")


def _check_rank(folder: Path, adapter: AdapterBlock) -> None:
    """LoRA is made of the rank that the settings give before the file is copied into it."""
    for name, shape in shapes(folder / WEIGHTS).items():
        part = name.rpartition("lora_")[2][:1]
        rank = shape[0 if part == "A" else 1] if part in ("A", "B") and len(shape) == 2 else adapter.r
        if rank != adapter.r:
            what = f"{folder / SETTINGS}: adapter.r is {adapter.r:,}, but {name} in {WEIGHTS} has rank {rank:,}"
            raise AdapterError(f"{what}; correct the file that was changed; nothing was loaded")


def _check_head_sizes(saved: Saved) -> None:
    """Compare late.dim, late.layer and hidden_size with the head's file: the head is made of the sizes in the settings
    before its file is read.  A head of another package is made by its own code, and compared afterwards; it is not
    asked for widths that are far beyond all that is there."""
    late, hidden, path = saved.late, saved.settings["hidden_size"], saved.folder / SETTINGS
    if not isinstance(hidden, int) or isinstance(hidden, bool) or hidden < 1:
        raise AdapterError(f"{path}: hidden_size is {hidden!r}, expected a number above 0; nothing was loaded")
    width = late.dim or hidden
    stored = shapes(saved.folder / HEAD) if (saved.folder / HEAD).is_file() else {}
    problems = []
    if late.head.type == "none" and width > hidden:
        problems.append(f"late.dim is {width:,}, and head none has {hidden:,} dimensions to keep")
    elif late.head.type in HEADS.builtin:
        for name, shape in tensor_shapes(late.head, hidden, width).items():
            if stored.get(name, ()) != shape:
                what = f"late.head, late.dim and hidden_size make {name} {list(shape)}"
                problems.append(f"{what}, {HEAD} has {list(stored[name]) if name in stored else 'none'}")
    most = FAR * max(hidden, 1024, *(size for shape in stored.values() for size in shape))
    if late.head.type not in HEADS.builtin and width > most:
        problems.append(f"late.dim is {width:,}, and neither {HEAD} nor hidden_size has a size near that")
    layers = late.layer if isinstance(late.layer, list) else [late.layer]
    if len(layers) > 1 and stored.get("mix", (len(layers),)) != (len(layers),):
        problems.append(f"late.layer has {len(layers)} layers, {HEAD} has weights of {stored['mix'][0]}")
    if any(one > width for one in late.matryoshka):
        problems.append(f"late.matryoshka is {late.matryoshka}, and token vectors have {width:,} dimensions")
    if problems:
        raise AdapterError(f"{path}: {'; '.join(problems)}; correct the file that was changed; nothing was loaded")


def _check_update(folder: Path, tensors: dict[str, Tensor], alpha: int) -> None:
    """Raise AdapterError where alpha / r x B A may be infinite: at most alpha x the largest of A x the largest of B."""
    largest = [
        max((float(t.abs().max()) for n, t in tensors.items() if f"lora_{part}" in n), default=0.0) for part in "AB"
    ]
    if alpha * largest[0] * largest[1] > torch.finfo(torch.float32).max:
        what = f"alpha {alpha} and the weights of {WEIGHTS} make an update that is infinite in float32"
        raise AdapterError(f"{folder / CONFIG}: {what}; correct the file that was changed; nothing was loaded")


def _check_named_base(folder: Path, stored: dict[str, Any]) -> None:
    """adapter_config.json is what plain peft and sentence-transformers follow: it must name the same base."""
    peft = json.loads((folder / CONFIG).read_text(encoding="utf8"))
    named, base = peft.get("base_model_name_or_path") or "", str(stored["base"])
    local = stored["commit"] is None
    # A folder's path differs from machine to machine, its last name hardly; a published one is local:NAME.
    last = [text.removeprefix(LOCAL).removeprefix(PACKAGE).rstrip("/").rpartition("/")[2] for text in (named, base)]
    inside = named.rstrip("/").split("/")[-2:-1]  # older bases keep the transformer in a folder of their own
    same = last[1] in (last[0], *inside) if local else named in (base, f"sentence-transformers/{base}")
    if not same or (not local and peft.get("revision") not in (None, stored["commit"])):
        what = f"{folder / CONFIG} is for the base {named!r} at {peft.get('revision')}, {SETTINGS} for {base!r}"
        what += f" at {stored['commit']}"
        raise AdapterError(f"{what}; they must be equal; correct the file that was changed; nothing was loaded")
    if Path(named).is_absolute() and not Path(named).is_dir():
        what = (
            "%s names %s, which is not on this machine: plain sentence-transformers and peft cannot load this folder "
        )
        what += "(smart-train finds the base as %s; smart-train export --as merged makes a folder that needs none)"
        logger.warning(what, folder / CONFIG, named, base)


def _check_full_weights(encoder: Encoder, folder: Path) -> None:
    """Raise AdapterError where the file of a whole model lacks a tensor or has one too many: transformers draws what is
    missing at random and only logs it."""
    named = set().union(*(names_of(path) for path in folder.glob("model*.safetensors")))
    state = encoder.backbone.state_dict(keep_vars=True)
    # Weights that are tied are written once, under one of their names.
    there = {id(tensor) for name, tensor in state.items() if name in named}
    missing = sorted(name for name, tensor in state.items() if name not in named and id(tensor) not in there)
    extra = sorted(named - state.keys())
    if missing or extra:  # or the file has the names of an older transformers, which knows how to read them
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
