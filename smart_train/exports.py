"""An adapter as something that others load without this package: whole weights, or a multi-vector encoder.

    merged        the base's weights with the adapter's added, the head beside them: plain SentenceTransformer(folder)
                  gives the pooled vectors, SmartEncoder.from_pretrained(folder) both views; no base is needed any more
    multi-vector  sentence_transformers.MultiVectorEncoder(folder) gives the token vectors

Knows: adapters' folders, SmartEncoder.  Does not know: the Hub, model cards, data sets.
Every export is loaded again by the class that others use and compared with the adapter before it is there.
"""

from __future__ import annotations

import gc
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from smart_train.blocks import AdapterBlock
from smart_train.embeddings import Embeddings
from smart_train.model.encoder import SmartEncoder
from smart_train.model.files import AdapterError
from smart_train.model.folder import (
    Sides,
    check_plain,
    compare,
    load,
    note,
    save,
    seal,
    write_settings,
)
from smart_train.model.intake import without_code
from smart_train.model.merging import merge_lora
from smart_train.model.processors import images_without_torchvision
from smart_train.samples import sides_of

logger = logging.getLogger(__name__)

KINDS = ("merged", "multi-vector")
SUMMED = 1e-4  # accepted in float32: W x + B A x is summed in another order than (W + B A) x, in every layer anew
ROUNDED = 5e-2  # accepted in half precision: weights are rounded anew, beside what every product is rounded


class ExportError(ValueError):
    """What can't be exported, or did not equal the adapter, and what can be done; nothing was left behind."""


def export(
    source: str | Path,
    kind: str,
    out: str | Path,
    *,
    base: str | None = None,
    dtype: Any = None,
    device: str | None = None,
    whole_texts: bool = False,
    sides: Sides | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Writes ``out``, a whole folder with smart_train.json (key "export" says what it is) and verified.json.

    source: an adapter's folder or Hub id; kind: "merged" or "multi-vector"; out: a folder that is not there yet
    base: the base, where it is not where the adapter was trained
    dtype: of the weights that are written; None = the base's own.  In bfloat16 a merged weight is rounded: the export
        then equals the adapter to 5e-2 instead of 1e-4, and float32 (twice the size) keeps all of it
    whole_texts: multi-vector, chat models: texts over model.query_tokens or document_tokens may be read whole there
    sides: contents to compare with; None = texts and drawn pages of our own
    Raises ExportError, and leaves nothing, where a setting can't be expressed or where the vectors differ.
    """
    if kind not in KINDS:
        raise ExportError(f"there is no export {kind!r}; exports are {' and '.join(KINDS)}")
    out = Path(out)
    try:
        with whole_folder(out) as part:
            options = {"base": base, "dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
            encoder = load(str(source), **options)
            if encoder.adapter is None and kind == "merged":
                raise ExportError(f"{source} is no adapter: it has whole weights already, and nothing is to be merged")
            if whole_texts and kind == "multi-vector" and "message" in encoder.st.modalities:
                encoder.settings.query_tokens = encoder.settings.document_tokens = None  # as they are read there
            sides = sides or sides_of(encoder)
            ours = [encoder.encode(contents, role) for role, contents in sides]
            if kind == "merged":
                report = _merged(encoder, part, sides, ours, device)
            else:
                report = _multi_vector(encoder, part, sides, ours)
    except AdapterError as error:
        raise ExportError(str(error).replace(str(part_of(out)), str(out))) from error
    largest = {view: report.get(f"largest_{view}_difference") for view in ("pooled", "token")}
    told = ", ".join(f"{view} vectors within {most:.0e}" for view, most in largest.items() if most is not None)
    logger.info("exported %s as %s: %s equals the adapter on %d rows (%s)", source, kind, out, report["rows"], told)
    return out


def part_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.part")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to write to that becomes ``out`` when all went well, and is gone otherwise.  Raises ExportError."""
    if out.name in ("", ".."):
        raise ExportError(f"{out} is no name for a new folder; name a folder that is not there yet")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ExportError(f"{out} is there already and was left as it is; name a folder that is not there yet")
    part = part_of(out)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if out.is_dir():
            out.rmdir()
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _note_rounding(encoder: SmartEncoder) -> float:
    """Adds LoRA to the weights; tells what rounding took."""
    rounding = merge_lora(encoder.backbone)
    encoder.settings.quantisation = "none"  # 4 bits have become the weights that they stand for
    if rounding.lost > 1e-3:
        logger.warning(
            "the weights are kept in %s, and rounding them took %.1f %% of the adapter's update; --dtype float32 keeps "
            "it whole in twice the size",
            *(rounding.dtype, 100 * rounding.lost),
        )
    return rounding.lost


def _facts(kind: str, adapter: AdapterBlock | None, lost: float) -> dict[str, Any]:
    """What smart_train.json says under "export"."""
    told = asdict(adapter) if adapter is not None else None
    return {"kind": kind, "adapter": told, "update_lost_to_rounding": lost}


def _merged(
    encoder: SmartEncoder, folder: Path, sides: Sides, ours: list[Embeddings], device: str | None
) -> dict[str, Any]:
    adapter, own = encoder.adapter, encoder.settings
    lost = _note_rounding(encoder)
    encoder.adapter = AdapterBlock(kind="full")
    save(encoder, folder)
    write_settings(encoder, folder, export=_facts("merged", adapter, lost))
    check_plain(encoder, folder)
    del encoder
    gc.collect()
    fresh = load(str(folder), dtype=own.dtype, device=device, trust_remote_code=own.trust_remote_code)
    return seal(folder, compare(folder, sides, ours, fresh, SUMMED, ROUNDED))


def _multi_vector(encoder: SmartEncoder, folder: Path, sides: Sides, ours: list[Embeddings]) -> dict[str, Any]:
    from sentence_transformers import MultiVectorEncoder

    from smart_train.multi_vector import check_expressible, multi_vector, pooled_id

    check_expressible(encoder)
    pooled = {pooled_id(encoder, contents, role) for role, contents in sides}
    if len(pooled) > 1:
        raise AdapterError("queries and documents pool different tokens by their place; export it as merged")
    adapter, device, trust = encoder.adapter, str(encoder.device), encoder.settings.trust_remote_code
    lost = _note_rounding(encoder)
    encoder.adapter = AdapterBlock(kind="full")
    write_settings(encoder, folder, export=_facts("multi-vector", adapter, lost))  # of what it was: it is taken apart
    made = multi_vector(encoder, pooled.pop())
    made.save(str(folder), create_model_card=False)
    if not trust:
        without_code(folder)
    del encoder, made
    gc.collect()
    with images_without_torchvision():
        fresh = MultiVectorEncoder(str(folder), device=device, trust_remote_code=trust)
    return seal(folder, compare_tokens(folder, sides, ours, fresh))


def compare_tokens(folder: Path, sides: Sides, ours: list[Embeddings], fresh: Any) -> dict[str, Any]:
    """``ours``, one for each of ``sides``, against a MultiVectorEncoder's vectors of the same contents.

    A row of which no token counts has its pooled vector as the only one here, and none there: these are counted, under
    "rows_without_tokens".  Raises AdapterError.
    """
    half = fresh.dtype in (torch.float16, torch.bfloat16)
    rows = sum(len(contents) for _, contents in sides)
    report: dict[str, Any] = {"rows": rows, "tolerance": ROUNDED if half else SUMMED, "rows_without_tokens": 0}
    for (role, contents), mine in zip(sides, ours, strict=True):
        encode = fresh.encode_query if role == "query" else fresh.encode_document
        for content, own in zip(contents, mine.tokens.rows(), strict=True):
            theirs = encode([content], show_progress_bar=False)[0].float().cpu()
            if not len(theirs) and len(own) == 1:
                report["rows_without_tokens"] += 1
                continue
            if own.shape != theirs.shape:
                raise AdapterError(
                    f"{folder}: MultiVectorEncoder gives {tuple(theirs.shape)} for a {role} ({str(content)[:40]!r}), "
                    f"expected {tuple(own.shape)}; it is not exported"
                )
            note(report, folder, role, "token", own, theirs)
    return report
