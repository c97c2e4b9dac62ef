"""Verify a saved encoder: reload its folder, here and with plain sentence-transformers in a process of its own, compare
the vectors, and note the checksum of every file that makes them.

verified.json holds what ``verify`` found and the SHA-256 of every file that can change a vector.  Nothing is published
that is not verified, or that changed since.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor
from transformers.utils import cached_file

from smart_train.core import child_process
from smart_train.core.bounded_json import load_json
from smart_train.core.child_process import ChildFailed
from smart_train.core.embeddings import Embeddings
from smart_train.core.errors import AdapterError
from smart_train.models.base_config import BaseFiles
from smart_train.models.encoder import SmartEncoder
from smart_train.models.lora import CONFIG
from smart_train.models.preprocessing import Role, open_content
from smart_train.models.processors import ImagesOnly
from smart_train.models.safe_loading import VERIFIED, digests
from smart_train.models.saving import check_pooling_modules

logger = logging.getLogger(__name__)

Inputs = list[tuple[Role, list[Any]]]
"""Contents to compare two encoders with, by role."""

# Largest length of the difference of two vectors of length 1, so that a limit means the same for any width.
EXACT = 1e-5  # in float32
HALF = 2e-2  # where the base has the 8 to 11 bits of a half precision
CAST = 5e-2  # of a float32 base that an engine computes in half precision, beside the reloaded one in float32


def verify(
    encoder: SmartEncoder,
    folder: Path,
    queries: list[Any],
    documents: list[Any],
    main: bool = True,
    base: str | None = None,
    half: bool = False,
) -> dict[str, Any]:
    """Reload ``folder`` in a fresh object, compare both views with the encoder in memory, and write verified.json.

    queries, documents: some real contents
    main: False on ranks that only take part in the forward of an encoder whose weights are sharded; they get {}
    base: where the base is now, if it has moved
    half: the encoder in memory computes in half precision, whatever its base (an engine has cast it)
    returns: what ``compare`` and ``write_verified`` return
    The fresh object may import what the encoder in memory already runs: its own head and token filters.
    Raises AdapterError where a vector differs by more than 1e-5 (2e-2 for a half-precision base, 5e-2 with ``half``),
    where a row has another number of tokens, where every LoRA B is still zero, and what ``read_plainly`` raises.
    """
    inputs: Inputs = [("query", queries), ("document", documents)]
    ours = [encoder.encode(contents, role) for role, contents in inputs]
    if not main:
        return {}
    check_pooling_modules(encoder, folder)
    check_plain_settings(folder)
    begun = time.monotonic()
    fresh = reload(encoder, folder, base)
    report = compare(folder, inputs, ours, fresh, exact=CAST if half else EXACT)
    report |= read_plainly(fresh, folder, inputs, seconds=time.monotonic() - begun)
    logger.info("reloaded %s: the same vectors (%s)", folder, report)
    return write_verified(folder, report)


def check_plain_settings(folder: Path) -> None:
    """Raise AdapterError where plain SentenceTransformer(folder) would compare vectors otherwise, or cut them."""
    path = folder / "config_sentence_transformers.json"
    stored = load_json(path.read_text(encoding="utf8")) if path.is_file() else {}
    found = (stored.get("similarity_fn_name") or "cosine", stored.get("truncate_dim"))
    if found != ("cosine", None):
        what = f"{path}: expected the similarity cosine of whole vectors, found {found[0]} with truncate_dim {found[1]}"
        raise AdapterError(f"{what}; plain sentence-transformers would rank otherwise; save the folder again")


def reload(encoder: SmartEncoder, folder: Path, base: str | None = None) -> SmartEncoder:
    """Load ``folder`` as ``encoder`` was loaded: device, dtype, attention, and code of others that it runs already."""
    own = encoder.settings
    return SmartEncoder.from_pretrained(
        folder,
        device=encoder.device,
        base=base,
        dtype=own.dtype,
        attention=own.attention,
        trust_remote_code=own.trust_remote_code,
        trust_extensions=encoder.late.extensions,
    )


def compare(
    folder: Path, inputs: Inputs, ours: list[Embeddings], fresh: SmartEncoder, exact: float = EXACT, half: float = HALF
) -> dict[str, Any]:
    """Compare ``ours``, one for each of ``inputs``, with what a freshly loaded encoder makes of the same contents.

    exact, half: differences that are accepted of a base in float32, and in half precision
    returns: {"rows", "tolerance", "largest_pooled_difference", "largest_token_difference"}
    Raises AdapterError where they differ by more.
    """
    halved = fresh.backbone.dtype in (torch.float16, torch.bfloat16)
    rows = sum(len(contents) for _, contents in inputs)
    report: dict[str, Any] = {"rows": rows, "tolerance": half if halved else exact}
    for (role, contents), mine in zip(inputs, ours, strict=True):
        theirs = fresh.encode(contents, role)
        if mine.tokens.lengths.tolist() != theirs.tokens.lengths.tolist():
            raise AdapterError(f"{folder}: reloaded, a {role} has another number of tokens; the folder is not usable")
        for view, a, b in (("pooled", mine.pooled, theirs.pooled), ("token", mine.tokens.values, theirs.tokens.values)):
            add_difference(report, folder, role, view, a, b)
    return report


def add_difference(
    report: dict[str, Any],
    folder: Path,
    role: Role,
    view: str,
    ours: Tensor,
    theirs: Tensor,
    by: str = "reloaded",
) -> None:
    """Add the largest difference of ``view`` to the report; raise AdapterError where it exceeds the tolerance."""
    key = f"largest_{view}_difference"
    report[key] = max(report.get(key, 0.0), float((ours - theirs).norm(dim=-1).max()))
    if not report[key] <= report["tolerance"]:
        raise AdapterError(
            f"{folder}: {by}, a {role}'s {view} vectors differ by {report[key]:.2e} (at most "
            f"{report['tolerance']:.0e} is accepted); what was saved is not what was trained"
        )


# What others get -----------------------------------------------------------------------------------------------------

SWITCH = "SMART_TRAIN_READ_PLAINLY"  # off = a second process does not fit beside this one, or costs too much time
PATIENCE, FACTOR = 600.0, 20.0  # seconds, and times as long as loading and encoding took here
READER = Path(__file__).with_name("plain_reader.py")


def read_plainly(encoder: SmartEncoder, folder: Path, inputs: Inputs, seconds: float = 0.0) -> dict[str, Any]:
    """Have plain sentence-transformers read ``folder`` in a fresh process, and compare its vectors and nearest
    documents with those of ``encoder``, which was loaded from there.

    The process cannot import this package; it uses the folder's own prompts and similarity.  It costs its imports, 5 to
    10 seconds, and holds one more copy of the model while it reads.
    seconds: how long loading and encoding took here; the process gets 600 s, or 20 times as long
    returns: {"plain": {"largest_pooled_difference", "rows"}}; {"plain": reason} where nothing was compared, as the log
        says, too; {} where sentence-transformers cannot read the folder at all: that of a frozen or untrained base
    Raises AdapterError: a vector or a nearest document differs, it cannot be loaded, or it takes too long.
    """
    if encoder.adapter is None or encoder.adapter.kind == "frozen":
        return {}
    reason = _unreadable(encoder)
    if reason is not None:
        logger.warning("%s was not read by plain sentence-transformers: %s", folder, reason)
        return {"plain": reason}
    given = [(role, [open_content(c) for c in contents if not _is_cut(encoder, c, role)]) for role, contents in inputs]
    given = [(role, contents) for role, contents in given if contents]
    if len(given) < len(inputs):
        return {"plain": "every text was cut, which sentence-transformers does not do before a chat template"}
    ours = {role: encoder.encode(contents, role).pooled for role, contents in given}
    own, limit = encoder.settings, max(PATIENCE, FACTOR * seconds)
    options: dict[str, Any] = {"dtype": encoder.backbone.dtype} if own.quantisation == "none" else {}
    if own.attention is not None:
        options["attn_implementation"] = own.attention
    if encoder.device.type == "cuda":
        torch.cuda.empty_cache()
    with TemporaryDirectory(prefix="smart-train-") as view:
        request = {
            "folder": str(_with_base(encoder, folder, Path(view))),
            "working_directory": os.getcwd(),
            "device": str(encoder.device),
            "trust_remote_code": own.trust_remote_code,
            "model_kwargs": options,
            "contents": dict(given),
        }
        try:
            found = child_process.ask(READER, request, limit)
        except ChildFailed as error:
            what = f"{folder}: plain sentence-transformers cannot read it in a process without this package"
            fix = f"others could not use it; report this, or skip this check with {SWITCH}=off"
            raise AdapterError(f"{what} ({error.reason}); {fix}") from None
    halved = encoder.backbone.dtype in (torch.float16, torch.bfloat16) or own.quantisation != "none"
    report: dict[str, Any] = {"tolerance": HALF if halved else EXACT}
    for role, _ in given:
        theirs = F.normalize(torch.from_numpy(found[role]), dim=-1)
        if theirs.shape != ours[role].shape:
            what = f"{folder}: plain sentence-transformers gives vectors of shape {tuple(theirs.shape)}"
            raise AdapterError(f"{what}, expected {tuple(ours[role].shape)}; what others load is not what was trained")
        add_difference(report, folder, role, "pooled", ours[role], theirs, by="read by plain sentence-transformers")
    _check_nearest(folder, ours["query"] @ ours["document"].T, torch.from_numpy(found["scores"]), report["tolerance"])
    rows = sum(len(contents) for _, contents in given)
    return {"plain": {"rows": rows, "largest_pooled_difference": report["largest_pooled_difference"]}}


def _unreadable(encoder: SmartEncoder) -> str | None:
    if os.environ.get(SWITCH) == "off":
        return f"{SWITCH} is off"
    if isinstance(encoder.transformer.processor, ImagesOnly):
        return "torchvision is not installed, and without it sentence-transformers loads no Qwen-VL processor"
    return None


def _is_cut(encoder: SmartEncoder, content: Any, role: Role) -> bool:
    """A chat's text is cut before its template here, for which sentence-transformers' folders have no key."""
    if "message" not in encoder.st.modalities:
        return False
    return bool(encoder.preprocess([content], role)["cut"])


def _with_base(encoder: SmartEncoder, folder: Path, view: Path) -> Path:
    """Return the folder; or a view of it that names its base as it lies on this machine: at its commit, or moved."""
    folder = folder.resolve()
    path = folder / CONFIG
    if not path.is_file():
        return folder
    stored = load_json(path.read_text(encoding="utf8"))
    place = Path(encoder.place)
    if encoder.commit is not None:
        place = Path(str(cached_file(encoder.place, "config.json", revision=encoder.commit))).parent
    else:
        place /= BaseFiles(encoder.place, None).transformer()
    if Path(stored["base_model_name_or_path"]).is_dir():
        return folder
    for entry in folder.iterdir():
        if entry.name != CONFIG:
            (view / entry.name).symlink_to(entry)
    changed = {**stored, "base_model_name_or_path": str(place.resolve()), "revision": None}
    (view / CONFIG).write_text(json.dumps(changed), encoding="utf8")
    return view


def _check_nearest(folder: Path, ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Raise AdapterError where its own similarity has another nearest document; equal ones, within the tolerance, may
    change places."""
    nearest = theirs.argmax(1, keepdim=True)
    behind = ours.amax(1) - ours.gather(1, nearest).squeeze(1)
    wrong = int((behind > 2 * tolerance).sum())
    if wrong:
        raise AdapterError(
            f"{folder}: for {wrong} of {len(ours)} queries plain sentence-transformers, by its similarity, has another "
            "nearest document; others would not rank as was trained; save the folder again"
        )


# Checksums -----------------------------------------------------------------------------------------------------------

SUFFIXES = (".safetensors", ".json", ".jinja", ".model")  # the last is SentencePiece's
NAMES = ("vocab.txt", "merges.txt")
METRICS = "metrics.json"  # lies beside the encoder where a published one was downloaded: it changes nothing
TEMPLATES = "additional_chat_templates"  # where transformers keeps those beside the usual one


def write_verified(folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Write verified.json: the report, and the SHA-256 of every file that can change a vector; return it."""
    report["weights"] = digests(folder)
    report["files"] = checksums(folder, report["weights"])
    (folder / VERIFIED).write_text(json.dumps(report, indent=2) + "\n", encoding="utf8")
    return report


def encoder_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return (files that make the encoder, other files and links), by their kind and the folders of its modules.

    Raises AdapterError where modules.json is not a list of modules.
    """
    modules = folder / "modules.json"
    try:
        listed = load_json(modules.read_text(encoding="utf8")) if modules.is_file() else []
        names = [str(module["path"]) for module in listed if module["path"]]
    except (ValueError, TypeError, KeyError) as error:
        raise AdapterError(f"{modules} is not a list of modules ({error}); it was half written, or edited") from None
    places = [folder, *(folder / name for name in (*names, TEMPLATES))]
    wanted: list[Path] = []
    others: list[Path] = []
    for path in sorted(p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()):
        fits = path.parent in places and (path.suffix in SUFFIXES or path.name in NAMES) and path != folder / METRICS
        (wanted if fits else others).append(path)
    return wanted, others


def checksums(folder: Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return path in ``folder`` -> SHA-256 of every file that makes the encoder (about a second per gigabyte).

    known: checksums that were taken just now
    """
    found = dict(known or {})
    names = [path.relative_to(folder).as_posix() for path in encoder_files(folder)[0] if path.name != VERIFIED]
    for name in names:
        if name not in found:
            with (folder / name).open("rb") as stream:
                found[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return {name: found[name] for name in names}


def changed_files(folder: Path) -> dict[str, str]:
    """Return path in ``folder`` -> "changed", "missing" or "new" since verified.json was written.

    Raises AdapterError where verified.json is of a version that hashed the weights alone, or is not JSON.
    """
    path = folder / VERIFIED
    try:
        then = load_json(path.read_text(encoding="utf8")).get("files")
    except (ValueError, AttributeError) as error:
        raise AdapterError(f"{path} is not JSON that was written here ({error})") from None
    if not isinstance(then, dict):
        raise AdapterError(f"{path} is of an older version, which looked at weights alone")
    now = checksums(folder)
    found = {name: "changed" if name in now else "missing" for name in then if then[name] != now.get(name)}
    return found | {name: "new" for name in now if name not in then}


# Inputs to compare with, where no data set is at hand ----------------------------------------------------------------

QUERIES = [
    "what is on the chart",
    "An invoice with its total amount due!",
    "Wie hoch war der Umsatz im Jahr 2024?",
    "engine",
]
DOCUMENTS = [
    "A yearly revenue chart by region; the company's winter report names a harbour, a bridge and a copper engine.",
    "Table 3. Total amount due: 1,234.50 (net), 20 % VAT.",
    "page",
    "L'été, les jours sont plus longs - et les nuits plus courtes.",
]
LONG = 1024  # tokens: a text over the limit shows whether both cut it alike; over a longer limit that takes too long


def reference_inputs(encoder: SmartEncoder) -> Inputs:
    """Return queries and documents of every kind that the encoder takes: texts, and drawn pages for who can see."""
    documents: list[Any] = list(DOCUMENTS)
    limit = encoder.st.max_seq_length
    if limit is not None and limit <= LONG and "message" not in encoder.st.modalities:
        documents.append(" ".join(DOCUMENTS * (limit // 40 + 1)))
    if "image" in encoder.st.modalities:
        documents += [_page(320, 224, 3), {"text": "a chart of revenue", "image": _page(256, 352, 7)}]
    return [("query", list(QUERIES)), ("document", documents)]


def _page(width: int, height: int, bars: int) -> Image.Image:
    """White, with bars of different heights and colours and a frame."""
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    draw.rectangle((4, 4, width - 5, height - 5), outline="black")
    for bar in range(bars):
        left = 12 + bar * (width - 24) // bars
        top = height - 12 - (bar * 37 % (height - 40)) - 12
        draw.rectangle((left, top, left + (width - 48) // bars, height - 12), fill=(40 * bar % 256, 90, 200 - 20 * bar))
    return page
