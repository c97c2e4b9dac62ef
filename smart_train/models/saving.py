"""An encoder from a folder or a Hub repository: everything checked first, and refused rather than repaired."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from smart_train.config.schema import AdapterBlock, LateBlock, ModelBlock
from smart_train.core import hub
from smart_train.core.embeddings import Embeddings
from smart_train.core.errors import AdapterError, ExtensionError, Setting
from smart_train.core.hub import LOCAL, PACKAGE
from smart_train.models.checksums import seals
from smart_train.models.encoder import SmartEncoder
from smart_train.models.heads import HEADS, file_name, parameter_name
from smart_train.models.lora import CONFIG, load_lora, read_config, read_lora, save_lora
from smart_train.models.preprocessing import Role
from smart_train.models.quantization import tell_plain
from smart_train.models.safe_loading import (
    HEAD,
    SETTINGS,
    VERIFIED,
    check_folder,
    check_type,
    digests,
    names_of,
    read_tensors,
    without_code,
)
from smart_train.models.settings import base_identity, processing_of, read_settings, settings_of, write_settings
from smart_train.models.token_filters import TOKEN_FILTERS

logger = logging.getLogger(__name__)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
TRUST = Setting("trust_extensions", "NAME", python="pass trust_extensions=[NAME]")


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
    trust_extensions: Sequence[str] = (),
) -> SmartEncoder:
    """An encoder from a saved folder or Hub repository; one without smart_train.json is a plain base, training-free.

    base: where the base lies now, if it has moved; its identity is checked all the same.  layer: reads another layer
    than the stored one, where no head was trained on that.  dtype: as model.dtype.  attention, trust_remote_code: as in
    the model block, but never the stored ones: the one is the machine's choice, the other the caller's alone.
    checkpoint: the folder is of the run that reads it, with states of optimizers in whatever form an engine gives them.
    quantisation: as model.quantisation; None = as it was trained, which is the only one with the same vectors.
    trust_extensions: heads and token filters of other packages that the folder may name, as it names them
    ("my_package.module:MyHead").
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
    check_extensions(late, trust_extensions, folder / SETTINGS)
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
            f"{folder}: its base {stored['base']} runs code that lies in its repository; read it, then ",
            Setting("model.trust_remote_code", True, python="pass trust_remote_code=True"),
            "; nothing was loaded",
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


# The folder an encoder is saved as, loaded from, and verified by.

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
    head = encoder.head.state_dict()
    if state is not None:  # gathered parameters; buffers are whole on every rank
        sharded = dict(encoder.head.named_parameters())
        head = {name: t for name, t in head.items() if name not in sharded} | _part(state, "head.")
    if head:
        tensors = {file_name(name): t.detach().float().cpu().contiguous() for name, t in head.items()}
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
        trust_extensions=encoder.late.extensions,
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
