"""Read a saved folder without running its code: no pickles, no links, no classes from elsewhere, whole tensors.

``check_folder`` looks at every file of an adapter before any is loaded, ``check_base_folder`` at those of a base;
``read_tensors`` reads weights; ``fingerprint`` and ``digests`` tell one set of weights from another.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from smart_train.core import child_process
from smart_train.core.child_process import ChildFailed
from smart_train.core.errors import AdapterError, BaseNotFound, Setting

SETTINGS, HEAD, VERIFIED = "smart_train.json", "late_head.safetensors", "verified.json"
FLOATING = (torch.float32, torch.bfloat16, torch.float16)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz")
CODE = (".py", ".pyc", ".pyd", ".so", ".dll", ".dylib")
# Beside the weights in a checkpoint of a run; no loader of models opens these.
STATES = re.compile(
    r"(optimizer|scheduler|scaler|training_args|(rng|run)_state(_\d+)?)\.(pt|pth|bin)|global_step\d+/.+"
)
WORDS = ("tokenizer.json", "vocab.json", "added_tokens.json")  # of a vocabulary: no settings, and large
PEFT = "adapter_config.json"
# transformers takes an implementation whose name has a slash from the Hub, as code ("kernels").
KERNELS = ("attn_implementation", "attn_implementation_internal", "experts_implementation", "kernel_config")
REFUSED_KEYS = ("auto_map", "custom_pipelines", "tokenizer_name_or_path")
TORCH_WEIGHTS = re.compile(r"pytorch_model.*\.bin")
MODULES = "sentence_transformers."
ACTIVATIONS = "torch.nn.modules."
MODEL_TYPE = "SentenceTransformer"
CLOSED = "nothing was read from it"
LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "depth")
PIXELS = 1 << 28  # of one image, 800 MB: 25 times as many as a page has at 600 dpi
WIDTHS = (
    *("hidden_size", "intermediate_size", "vocab_size", "embed_dim", "d_model", "d_ff", "n_embd", "dim"),
    *("in_features", "out_features", "type_vocab_size", "embedding_size", "projection_dim"),
)


# The folder ----------------------------------------------------------------------------------------------------------


def check_folder(folder: Path, trust_remote_code: bool = False) -> None:
    """Raise AdapterError where loading ``folder`` could run code, unpickle, or read files outside of it.

    Refused: links (but those of the Hub's cache, from snapshots/ into blobs/), pickles and Python files, modules.json
    that names a class outside of sentence-transformers or a folder outside of this one, shards elsewhere, and, unless
    the caller trusts the repository's code, ``auto_map``, kernels of the Hub and Python files.
    """
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            _check_link(path, folder)
        if path.is_dir() and not path.is_symlink():
            continue
        if not path.is_file():
            raise AdapterError(f"{folder}: {name} is neither a file nor a folder; delete it; {CLOSED}")
        suffix = path.suffix.lower()
        if suffix in PICKLES and not STATES.fullmatch(name):
            what = f"{folder}: {name} is a pickle by its name, which can run code as it is read"
            raise AdapterError(f"{what}; save weights as safetensors, or delete it; {CLOSED}")
        if suffix in CODE and not trust_remote_code:
            raise AdapterError(f"{folder}: {name} is code, and an adapter needs none; delete it; {CLOSED}")
        if path.name == PEFT and path.parent != folder:
            what = f"{folder}: {name} would put another base and another adapter in a module's place"
            raise AdapterError(f"{what}; delete it; {CLOSED}")
        if suffix == ".json" and path.name not in WORDS:
            _check_json(name, _json(path), path, trust_remote_code)
    _check_modules(folder, trust_remote_code)
    for home in sorted({path.parent for path in _walk(folder) if path.name == "config.json"}):
        check_sizes(home)
    check_pixels(folder)
    try_texts(str(folder), sorted(path for path in _walk(folder) if path.is_file()))


def check_base_folder(folder: Path, trust_remote_code: bool = False) -> None:
    """Raise BaseNotFound where loading the base in ``folder`` could run code, unpickle, or read files outside of it.

    The checks of ``check_folder`` with two differences, because whole models are often stored with files that nothing
    reads.  Code and ``auto_map`` are left to transformers, which takes neither without ``trust_remote_code``; a pickle
    is refused only where a loader would take it: in the folder of a module without safetensors beside it.
    A folder of peft alone, without a model's config.json, is left to ``check_no_adapter``.  Weight files must be whole,
    as far as their headers say.
    """
    try:
        for path in _walk(folder):
            name = path.relative_to(folder).as_posix()
            if path.is_symlink():
                _check_link(path, folder)
            if path.is_dir():
                continue
            if not path.is_file():
                raise AdapterError(f"{folder}: {name} is neither a file nor a folder; delete it; {CLOSED}")
            if path.name == PEFT and (path.parent != folder or (folder / "config.json").is_file()):
                what = f"{folder}: {name} makes it an adapter over another base"
                raise AdapterError(f"{what}; name that base, or make a whole model of both (smart-train export)")
        _check_modules(folder, trust_remote_code)
        modules = _json(folder / "modules.json") if (folder / "modules.json").is_file() else []
        for home in sorted({folder, *(folder / str(module["path"]) for module in modules)}):
            _check_module(home, folder, trust_remote_code)
            places = [home, home / "additional_chat_templates"]
            try_texts(str(folder), sorted(path for one in places for path in one.glob("*") if path.is_file()))
    except AdapterError as error:
        what, _, fix = str(error).partition("; ")
        raise BaseNotFound(what, (f"{fix}; or name another base in ", Setting("model.base"))) from None


def _check_module(home: Path, folder: Path, trust_remote_code: bool) -> None:
    """The files of one module of a base: those that loaders look for."""
    files = sorted(path for path in home.iterdir() if path.is_file()) if home.is_dir() else []
    weights = [path for path in files if path.suffix.lower() == ".safetensors"]
    for path in files:
        suffix, name = path.suffix.lower(), path.relative_to(folder).as_posix()
        unread = STATES.fullmatch(path.name) or (weights and TORCH_WEIGHTS.fullmatch(path.name))
        if suffix in PICKLES and not unread:
            what = f"{folder}: {name} is a pickle by its name, which can run code as it is read"
            raise AdapterError(f"{what}; save the base with safetensors; {CLOSED}")
        if suffix == ".json" and path.name not in WORDS:
            _check_json(name, _json(path), path, trust_remote_code, ("tokenizer_name_or_path",))
    for path in weights:
        names_of(path)
    check_sizes(home)
    check_pixels(home)


def check_sizes(home: Path) -> None:
    """Raise AdapterError where config.json gives sizes that the weights beside it do not have.

    A module is made as large as its config says before its weights are compared: 10^9 would take all memory.  Widths up
    to 1024 are left to that comparison, which says more.
    """
    path = home / "config.json"
    found = [shapes(one) for one in home.glob("*.safetensors") if one.name.startswith(("model", "pytorch_model"))]
    if not path.is_file() or not found:
        return
    tensors = {name: shape for one in found for name, shape in one.items()}
    largest = max((size for shape in tensors.values() for size in shape), default=0)
    content = _json(path)
    of_model = isinstance(content, dict) and "model_type" in content  # not of a module that reads a model's layers
    for key, value in _pairs(content if isinstance(content, dict) else {}):
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        limit = (len(tensors) if of_model else None) if key in LAYERS else largest if key in WIDTHS else None
        if key == "max_position_embeddings" and any("position_embeddings" in name for name in tensors):
            limit = largest
        if limit is not None and value > max(limit, 1 if key in LAYERS else 1024):
            kind = "tensors" if key in LAYERS else "as their largest dimension"
            what = f"{path}: {key} is {value:,}, but the weights beside it have {limit:,} {kind}"
            raise AdapterError(f"{what}; download or copy both again; {CLOSED}")


def check_pixels(home: Path) -> None:
    """Raise AdapterError where an image processor would make images of more than PIXELS pixels.

    Bounds of the Qwen-VL family (which has a merge_size) are pixels, and its longest_edge only ever makes images
    smaller; those of others are the sides of what an image is brought to.
    """
    for name in ("processor_config.json", "preprocessor_config.json"):
        content = _json(home / name) if (home / name).is_file() else {}
        content = content if isinstance(content, dict) else {}
        images = content.get("image_processor") or content
        images = images if isinstance(images, dict) else {}
        pixels = "merge_size" in images
        made = {"min_pixels": images.get("min_pixels")}
        for key in ("size", "crop_size", "pad_size"):
            value = images.get(key)
            made |= {f"{key}.{side}": n for side, n in value.items()} if isinstance(value, dict) else {key: value}
        for key, number in made.items():
            if not isinstance(number, int | float) or (pixels and key.endswith("longest_edge")):
                continue
            counted = pixels and (key == "min_pixels" or key.endswith("edge"))
            if not (number if counted else number * number) <= PIXELS:
                what = f"{home / name}: {key} is {number:,}, which makes images of more than {PIXELS:,} pixels"
                raise AdapterError(f"{what}; download or copy the file again; {CLOSED}")


def without_code(folder: Path) -> None:
    """Remove ``auto_map`` from a folder that was just saved.

    It names code of the base's repository that was not used: transformers has the class itself, or trust_remote_code
    was not given.
    """
    for path in folder.glob("*.json"):
        content = _json(path) if path.name not in WORDS else None
        if isinstance(content, dict) and "auto_map" in content:
            del content["auto_map"]
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf8")


def check_type(folder: Path) -> None:
    """Raise AdapterError for a folder of another class than SentenceTransformer, such as a multi-vector export.

    sentence-transformers would read it all the same, with a pooling of its own choice.
    """
    path = folder / "config_sentence_transformers.json"
    stored = _json(path) if path.is_file() else {}
    found = stored.get("model_type", MODEL_TYPE) if isinstance(stored, dict) else None
    if found != MODEL_TYPE:
        raise AdapterError(
            f"{folder} is a {found} and gives no pooled vector as it was trained; read it with "
            f"sentence_transformers.{found}, or name the adapter it was made from; nothing was loaded"
        )


def _walk(folder: Path) -> Iterator[Path]:
    """Yield everything below ``folder``; links are not followed."""
    for root, folders, files in os.walk(folder, followlinks=False):
        for name in sorted([*folders, *files]):
            yield Path(root) / name


def _check_link(path: Path, folder: Path) -> None:
    """The Hub's cache keeps a repository as snapshots/COMMIT/NAME -> ../../blobs/HASH; no other link is expected."""
    place = folder.resolve()
    if place.parent.name == "snapshots" and path.resolve().parent == place.parent.parent / "blobs":
        return
    what = f"{folder}: {path.relative_to(folder).as_posix()} is a link to {os.readlink(path)}"
    raise AdapterError(f"{what}; copy what it points to (cp -rL) if that is meant to be there; {CLOSED}")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except (ValueError, OSError, RecursionError) as error:
        raise AdapterError(f"{path} is not JSON ({error}); download or copy it again; nothing was loaded") from None


def _check_json(
    name: str, content: Any, path: Path, trust_remote_code: bool, refused: tuple[str, ...] = REFUSED_KEYS
) -> None:
    if name.endswith(".index.json"):
        shards = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(shards, dict):
            raise AdapterError(f"{path}: expected a weight_map, a tensor's name -> its file; {CLOSED}")
        for shard in shards.values():
            _check_inside(shard, path, "the shard")
    if trust_remote_code:
        return
    for key, value in _pairs(content if isinstance(content, dict | list) else []):
        if (key in refused and value) or (
            (key == "trust_remote_code" and value and name != "smart_train.json")
            or (key.lstrip("_") in KERNELS and "/" in json.dumps(value))
        ):
            what = f"{path}: {key} is {value!r}, which asks for code or files that lie elsewhere"
            fix = "delete the key, or load with trust_remote_code=True if you have read that code"
            raise AdapterError(f"{what}; {fix}; {CLOSED}")


def _pairs(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key of every block in a JSON file, with its value."""
    if isinstance(content, dict):
        yield from content.items()
    for value in content.values() if isinstance(content, dict) else content:
        if isinstance(value, dict | list):
            yield from _pairs(value)


def _check_modules(folder: Path, trust_remote_code: bool = False) -> None:
    path = folder / "modules.json"
    if not path.is_file():
        return
    modules = _json(path)
    wanted = {"type", "path"}
    if not isinstance(modules, list) or any(not isinstance(m, dict) or not wanted <= m.keys() for m in modules):
        raise AdapterError(f"{path}: expected a list of modules, each with its type and path; {CLOSED}")
    for module in modules:
        if not str(module["type"]).startswith(MODULES) and not trust_remote_code:
            what = f"{path}: a module is of the class {module['type']}, which is code from elsewhere"
            raise AdapterError(f"{what}; expected one of {MODULES}*; {CLOSED}")
        _check_inside(module["path"], path, "the module's folder")
        config = folder / module["path"] / "config.json"
        if module["path"] and config.is_file():
            content = _json(config)
            if not isinstance(content, dict):
                raise AdapterError(f"{config}: expected a block of keys; download or copy it again; {CLOSED}")
            activation = str(content.get("activation_function") or ACTIVATIONS)
            if not activation.startswith(ACTIVATIONS):
                raise AdapterError(f"{config}: activation_function {activation} is none of torch.nn; {CLOSED}")


def _check_inside(name: Any, path: Path, what: str) -> None:
    windows, posix = PureWindowsPath(str(name)), PurePosixPath(str(name))
    if not isinstance(name, str) or windows.anchor or posix.is_absolute() or ".." in windows.parts or "\0" in name:
        raise AdapterError(f"{path}: {what} {name!r} lies outside of this folder; {CLOSED}")


# Texts ---------------------------------------------------------------------------------------------------------------

TRIAL = Path(__file__).with_name("text_trial.py")
TRIAL_SECONDS, TRIAL_MEMORY = 60.0, 8 << 30
TEMPLATES = ("chat_template.json", "tokenizer_config.json", "processor_config.json")  # with a key chat_template


def try_texts(place: str, files: Iterable[Path]) -> None:
    """Raise AdapterError where a tokenizer or a chat template among ``files`` does not finish a few texts, or makes far
    more of them: its rules can loop, which no look at the file shows.  New contents cost a process of 0.1 to 0.3 s.

    place: for messages
    """
    tokenizers: dict[str, str] = {}
    templates: dict[str, str] = {}
    for path in files:
        if path.name == "tokenizer.json":
            tokenizers[_new(path.name, tokenizers)] = path.read_text(encoding="utf8", errors="replace")
        elif path.suffix == ".jinja":
            templates[_new(path.name, templates)] = path.read_text(encoding="utf8", errors="replace")
        elif path.name in TEMPLATES:
            content = _json(path)
            stored = content.get("chat_template") if isinstance(content, dict) else None
            several = stored if isinstance(stored, list) else [{"template": stored}]
            for number, one in enumerate(several):
                if isinstance(one, dict) and isinstance(one.get("template"), str):
                    templates[_new(f"chat_template {number + 1} of {path.name}", templates)] = one["template"]
    if not tokenizers and not templates:
        return
    wrong = _tried(tuple(tokenizers.items()), tuple(templates.items()))
    if wrong is not None:
        raise AdapterError(f"{place}: {wrong}; correct the file, or take it from whom you trust; nothing was loaded")


def _new(name: str, there: dict[str, str]) -> str:
    """Return a name that is not there yet; no folder is part of it, so that equal contents are tried once."""
    return name if name not in there else _new(f"another {name}", there)


@lru_cache(maxsize=64)
def _tried(tokenizers: tuple[tuple[str, str], ...], templates: tuple[tuple[str, str], ...]) -> str | None:
    """Return what is wrong with them, once for the same contents."""
    request = {"tokenizers": dict(tokenizers), "templates": dict(templates)}
    try:
        wrong: str | None = child_process.ask(TRIAL, request, TRIAL_SECONDS, TRIAL_MEMORY)
    except ChildFailed as error:
        what = error.last if error.late else "the tokenizer or the chat template"
        limits = f"{TRIAL_SECONDS:g} s and {TRIAL_MEMORY >> 30} GiB"
        return f"{what or 'a text'} could not be tried on short texts within {limits} ({error.reason})"
    return wrong


# Weights -------------------------------------------------------------------------------------------------------------


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of trained weights: name -> tensor.

    Raises AdapterError where the file is cut short or not safetensors (a pickle under that name, say), and where a
    tensor is not float32, bfloat16 or float16, or holds NaN or infinity; the message names the tensor.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise AdapterError(_broken(path, error)) from None
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATING:
            raise AdapterError(
                f"{path}: {name} is {str(tensor.dtype).removeprefix('torch.')}, expected float32, bfloat16 or float16; "
                "nothing was loaded"
            )
        wrong = int((~torch.isfinite(tensor)).sum())
        if wrong:
            what = f"{wrong} of {tensor.numel()} numbers of {name} are NaN or infinite"
            raise AdapterError(f"{path}: {what}; it was saved from a run that had failed; nothing was loaded")
    return tensors


def nonfinite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return which tensor holds NaN or infinity, and how many; None where all numbers are finite.

    Half precision ends at 65504 (float16), so that a weight may be finite in its file and infinite where it is used.
    """
    for name, tensor in tensors:
        wrong = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() and not tensor.is_meta else 0
        if wrong:
            kind = str(tensor.dtype).removeprefix("torch.")
            return f"{wrong} of {tensor.numel()} numbers of {name} are NaN or infinite in {kind}"
    return None


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a file, from its header alone.  Raises AdapterError as ``names_of``."""
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
    except (SafetensorError, OSError) as error:
        raise AdapterError(_broken(path, error)) from None


def names_of(path: Path) -> set[str]:
    """Return the names of a file's tensors, from its header alone.  Raises AdapterError where the file is not whole."""
    try:
        with safe_open(path, "pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise AdapterError(_broken(path, error)) from None


def _broken(path: Path, error: Exception) -> str:
    return f"{path} is not a whole safetensors file ({error}); download or copy it again; nothing was loaded"


def fingerprint(folder: Path) -> str:
    """Return a SHA-256 over names, sizes and 64 KiB pieces (first, last and 14 between) of a folder's weight files."""
    digest = hashlib.sha256()
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".bin") and p.is_file())
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}:{size}".encode())
        with path.open("rb") as stream:
            for part in range(16):
                stream.seek(max(0, (size - 65536) * part // 15))
                digest.update(stream.read(65536))
    return digest.hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """Return path in ``folder`` -> SHA-256 of every weight file, read whole (about a second per gigabyte)."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb") as stream:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found
