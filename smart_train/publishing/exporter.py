"""Export an adapter for programs without this package: whole weights, or a MultiVectorEncoder of sentence-transformers.

"merged" adds LoRA to the base's weights. "multi-vector" expresses the token view as modules of MultiVectorEncoder:

Transformer           the base, LoRA in its weights, without the blocks above the layer that is read
Dense, Normalize ...  the head: a matrix; LayerNorm as centring, normalising and scaling, exactly
MultiVectorMask       tokens that are left out, by their ids
Normalize             vectors of length 1; scores are the mean over query tokens, as here
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from tokenizers import AddedToken
from torch import Tensor, nn

from smart_train.config.schema import AdapterBlock
from smart_train.core import folder_lock
from smart_train.core.embeddings import Embeddings
from smart_train.core.errors import AdapterError, PublishError, Setting
from smart_train.models.encoder import SmartEncoder
from smart_train.models.heads import FirstDimensions, GatedResidualHead, LayerNormLinearHead, LinearHead
from smart_train.models.hidden_states import find_final_norm, keep_blocks
from smart_train.models.lora import merge_lora
from smart_train.models.preprocessing import Role
from smart_train.models.processors import images_without_torchvision
from smart_train.models.safe_loading import without_code
from smart_train.models.saving import check_pooling_modules, save, write_settings
from smart_train.models.verification import (
    Inputs,
    add_difference,
    compare,
    read_plainly,
    reference_inputs,
    write_verified,
)

logger = logging.getLogger(__name__)

TOKENS = "token_embeddings"
POOLED = "<|pooled|>"


def check_expressible(encoder: SmartEncoder) -> None:
    """Raise AdapterError for settings that MultiVectorEncoder has no module for, with what can be done instead."""
    own, late = encoder.settings, encoder.late
    if len(encoder.layers) > 1:
        what = f"late.layer {late.layer} is a mix of {len(encoder.layers)} layers, and MultiVectorEncoder reads one"
        raise AdapterError(f"{what}; train with a single late.layer, or export it as merged")
    if isinstance(encoder.head.projection, GatedResidualHead):
        what = "late.head gated_residual multiplies two projections, and MultiVectorEncoder has no module that does"
        raise AdapterError(f"{what}; export it as merged, or train with late.head: linear")
    if not isinstance(encoder.head.projection, FirstDimensions | LinearHead | LayerNormLinearHead):
        what = f"late.head {late.head.type} is code of another package, and MultiVectorEncoder has no module for it"
        raise AdapterError(f"{what}; export it as merged")
    if encoder.keep.by_position:
        what = (
            f"late.keep {encoder.keep.by_position[0][0]} looks at more than ids, and MultiVectorEncoder leaves tokens"
        )
        raise AdapterError(f"{what} out by their ids; give the filter dropped_ids, or export it as merged")
    layer = encoder.layers[0]
    if layer == 0:
        what = "late.layer 0 are the embeddings, and MultiVectorEncoder reads what a model's last block gives"
        raise AdapterError(f"{what}; read layer 1 or above")
    if layer != -1 and late.norm == "none" and find_final_norm(encoder.backbone, encoder._probe) is not None:
        what = f"late.norm none reads layer {layer} without the model's final norm, which MultiVectorEncoder can't skip"
        raise AdapterError(f"{what}; use late.norm final, or late.layer -1")
    deep = len(getattr(getattr(encoder.backbone.config, "vision_config", None), "deepstack_visual_indexes", None) or [])
    if 0 < layer <= deep:
        what = f"late.layer {layer} is read before image features are added to it (deepstack, up to layer {deep})"
        raise AdapterError(f"{what}, and MultiVectorEncoder reads what comes after; read layer {deep + 1} or above")
    limits = {n: getattr(own, n) for n in ("query_tokens", "document_tokens") if getattr(own, n) is not None}
    if limits and "message" in encoder.st.modalities:
        limited = ", ".join(f"model.{name} {limit}" for name, limit in limits.items())
        raise AdapterError(
            f"{limited}: here the text is cut before it enters the chat template, MultiVectorEncoder would cut the "
            "whole chat; to export without these limits (longer texts are read whole there), ",
            Setting("whole_texts", True, python="pass whole_texts=True"),
        )


def pooled_id(encoder: SmartEncoder, contents: list[Any], role: Role) -> int | None:
    """Return the id of the pooled token if it is left out by its place and not by its id; None otherwise.

    Raises AdapterError where that is a part of the content: MultiVectorMask knows ids alone.
    """
    if encoder.pooling not in ("lasttoken", "cls"):
        return None
    found: set[int] = set()
    for content in contents:
        features = encoder.preprocess([content], role)
        row = features["input_ids"][0][features["attention_mask"][0].bool()]
        found.add(int(row[0] if encoder.pooling == "cls" else row[-1]))
    found -= set(encoder.keep.left_out.tolist())
    if not found:
        return None
    if len(found) > 1 or encoder.pooling == "cls" or "message" not in encoder.st.modalities:
        tokens = ", ".join(repr(encoder.tokenizer.decode([one])) for one in sorted(found)[:3])
        raise AdapterError(
            f"the pooled token ({tokens}) belongs to the text, and is left out here for its place; MultiVectorEncoder "
            "leaves out by ids alone; export it as merged"
        )
    return found.pop()


@torch.no_grad()
def multi_vector(encoder: SmartEncoder, pooled: int | None) -> MultiVectorEncoder:
    """Build a MultiVectorEncoder from the encoder's own parts; the encoder cannot be used afterwards.

    LoRA must be in the weights already.  pooled: see ``pooled_id``.
    """
    transformer, own = encoder.transformer, encoder.settings
    prompts = {"query": encoder.prompt("query") or "", "document": encoder.prompt("document") or ""}
    if "message" not in encoder.st.modalities:
        transformer.query_length, transformer.document_length = (
            own.query_tokens or transformer.query_length,
            own.document_tokens or transformer.document_length,
        )
    left_out = encoder.keep.left_out.tolist()
    if encoder.layers[0] != -1:
        keep_blocks(encoder.backbone, encoder.layers[0])
    if pooled is not None:
        left_out.append(_name_pooled(encoder, pooled))
    mask = MultiVectorMask(_words(encoder.tokenizer, left_out), skiplist_tasks=["query", "document"])
    modules = [transformer, *_head(encoder), mask, Normalize(TOKENS)]
    device = str(encoder.device)
    return MultiVectorEncoder(modules=modules, prompts=prompts, device=device, similarity_fn_name="meanmaxsim")


def _head(encoder: SmartEncoder) -> list[nn.Module]:
    """Return modules that compute what the head computes, but for the last normalising.

    LayerNorm(x) = g (x - mean) / sqrt(var + eps) + b.  With c = (x - mean, sqrt(D eps)), of which the last number is a
    constant, c / |c| = (x - mean, ...) / sqrt(D (var + eps)): Normalize does the division, and the matrix behind it
    takes in sqrt(D) g and b.  It costs one product of D x D more a token.
    """
    head, width, kept = encoder.head.projection, encoder.hidden_size, encoder.token_width
    if isinstance(head, FirstDimensions):
        return [] if kept == width else [_dense(torch.eye(width)[:kept])]
    assert isinstance(head, LinearHead | LayerNormLinearHead)  # check_expressible
    weight = head.linear.weight.detach().float().cpu()
    if isinstance(head, LinearHead):
        return [_dense(weight)]
    gain, shift = (p.detach().float().cpu() for p in (head.norm.weight, head.norm.bias))
    centring = torch.cat([torch.eye(width) - 1 / width, torch.zeros(1, width)])
    constant = torch.zeros(width + 1)
    constant[-1] = (width * head.norm.eps) ** 0.5
    scaled = torch.cat([weight * gain * width**0.5, torch.zeros(len(weight), 1)], dim=1)
    return [_dense(centring, constant), Normalize(TOKENS), _dense(scaled, weight @ shift)]


def _dense(weight: Tensor, bias: Tensor | None = None) -> Dense:
    rows, columns = weight.shape
    return Dense(
        columns,
        rows,
        bias=bias is not None,
        activation_function=None,
        init_weight=weight.clone(),  # a view would be written with all that it is a view of
        init_bias=bias,
        module_input_name=TOKENS,
    )


def _words(tokenizer: Any, ids: list[int]) -> list[str]:
    """Return the ids as MultiVectorMask stores them: words of the vocabulary."""
    words = [str(word) for word in tokenizer.convert_ids_to_tokens(ids)]
    back = tokenizer.convert_tokens_to_ids(words)
    lost = [word for word, number, found in zip(words, ids, back, strict=True) if number != found]
    if lost:
        what = f"the tokens {lost[:3]} have ids that their words do not lead back to"
        raise AdapterError(f"{what}, and MultiVectorEncoder leaves out by words; export it as merged")
    return words


def _name_pooled(encoder: SmartEncoder, pooled: int) -> int:
    """Give the pooled token at the end of a chat a second id, with the same embedding, by which it is left out.

    A chat that ends in "assistant\\n" pools a line break, of which there are others in the text that count.
    """
    tokenizer, backbone = encoder.tokenizer, encoder.backbone
    tail = tokenizer.decode([pooled])
    holders = [h for h in (encoder.transformer.processor, tokenizer) if getattr(h, "chat_template", None)]
    templates = [holder.chat_template for holder in holders]
    if not tail or tokenizer.convert_tokens_to_ids(POOLED) not in (None, tokenizer.unk_token_id):
        raise AdapterError(f"the pooled token {tail!r} can't be given a second name; export it as merged")
    if not all(isinstance(template, str) for template in templates):
        raise AdapterError("the model has several chat templates, and it is not said which one; export it as merged")
    tokenizer.add_tokens([AddedToken(POOLED, special=True, normalized=False)])
    number = int(tokenizer.convert_tokens_to_ids(POOLED))
    if number >= backbone.get_input_embeddings().weight.shape[0]:
        backbone.resize_token_embeddings(number + 1, mean_resizing=False)
    table = backbone.get_input_embeddings().weight
    table[number] = table[pooled]
    for holder, template in zip(holders, templates, strict=True):
        holder.chat_template = _ending_in(template, tail)
    return number


def _ending_in(template: str, tail: str) -> str:
    """Return a chat template (Jinja) that writes what ``template`` does, with its last ``tail`` as the second name."""
    ends = f"chat.endswith({tail!r})"
    renamed = f"{{{{- chat[:-{len(tail)}] ~ {POOLED!r} if {ends} else chat -}}}}"
    return "{% set chat %}\n" + template.removesuffix("\n") + "{% endset %}" + renamed


# Exports --------------------------------------------------------------------------------------------------------------

KINDS = ("merged", "multi-vector")
# Largest accepted differences of unit vectors.
SUMMED = 1e-4  # in float32: W x + B A x is summed in another order than (W + B A) x, in every layer
ROUNDED = 5e-2  # in half precision: merged weights are rounded once more


def export(
    source: str | Path,
    kind: str,
    out: str | Path,
    *,
    base: str | None = None,
    dtype: Any = None,
    device: str | None = None,
    whole_texts: bool = False,
    sides: Inputs | None = None,
    trust_remote_code: bool = False,
    trust_extensions: Sequence[str] = (),
) -> Path:
    """Write the export to ``out``, load it again, compare its vectors with the adapter's, and return the folder.

    The folder has smart_train.json (key "export" says what it is) and verified.json.

    source: an adapter's folder or Hub id; kind: "merged" or "multi-vector"; out: a folder that is not there yet
    base: the base, where it is not where the adapter was trained
    dtype: of the weights that are written; None = the base's own.  In bfloat16 a merged weight is rounded: the export
        then equals the adapter to 5e-2 instead of 1e-4, and float32 (twice the size) keeps all of it
    whole_texts: multi-vector, chat models: texts over model.query_tokens or document_tokens may be read whole there
    sides: contents to compare with; None = reference texts and drawn pages
    trust_extensions: as ``SmartEncoder.from_pretrained``
    Raises PublishError, and leaves nothing, if a setting cannot be expressed or the vectors differ.
    """
    if kind not in KINDS:
        raise PublishError(f"there is no export {kind!r}; exports are {' and '.join(KINDS)}")
    out = Path(out)
    with new_folder(out) as part:
        options: dict[str, Any] = {
            "base": base,
            "dtype": dtype,
            "device": device,
            "trust_remote_code": trust_remote_code,
        }
        encoder = SmartEncoder.from_pretrained(source, trust_extensions=trust_extensions, **options)
        if encoder.adapter is None and kind == "merged":
            raise PublishError(f"{source} is no adapter: it has whole weights already, so there is nothing to merge")
        if whole_texts and kind == "multi-vector" and "message" in encoder.st.modalities:
            encoder.settings.query_tokens = encoder.settings.document_tokens = None  # as they are read there
        sides = sides or reference_inputs(encoder)
        ours = [encoder.encode(contents, role) for role, contents in sides]
        if kind == "merged":
            report = _merged(encoder, part, out, sides, ours, device)
        else:
            report = _multi_vector(encoder, part, out, sides, ours)
    largest = {view: report.get(f"largest_{view}_difference") for view in ("pooled", "token")}
    differences = ", ".join(f"{view} vectors within {most:.0e}" for view, most in largest.items() if most is not None)
    logger.info(
        "exported %s as %s: %s equals the adapter on %d rows (%s)", source, kind, out, report["rows"], differences
    )
    return out


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``out`` if the block succeeds, and is deleted otherwise.

    Raises PublishError if ``out`` exists, and for an AdapterError inside.
    """
    if out.name in ("", ".."):
        raise PublishError(f"{out} is no name for a new folder; name another")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise PublishError(f"{out} already exists and was not changed; name a new folder")
    try:
        with folder_lock.new_folder(out) as part:
            yield part
    except AdapterError as error:
        raise publish_error(error) from error


def publish_error(error: AdapterError) -> PublishError:
    """Return the error of an export or a merge for one of an adapter: its message and exit status."""
    failed = PublishError(error.message)
    failed.status = error.status
    return failed


def _merge_lora(encoder: SmartEncoder) -> float:
    """Add LoRA to the weights, and return the share of the update that rounding lost."""
    rounding = merge_lora(encoder.backbone)
    encoder.settings.quantisation = "none"  # 4 bits have become the weights that they stand for
    if rounding.lost > 1e-3:
        logger.warning(
            "the weights are kept in %s, and rounding lost %.1f %% of the adapter's update; dtype float32 keeps all of "
            "it, at twice the size",
            *(rounding.dtype, 100 * rounding.lost),
        )
    return rounding.lost


def _facts(kind: str, adapter: AdapterBlock | None, lost: float) -> dict[str, Any]:
    """Return the block "export" of smart_train.json."""
    block = asdict(adapter) if adapter is not None else None
    return {"kind": kind, "adapter": block, "update_lost_to_rounding": lost}


def _merged(
    encoder: SmartEncoder, folder: Path, out: Path, sides: Inputs, ours: list[Embeddings], device: str | None
) -> dict[str, Any]:
    """Write the merged model to ``folder`` and return its verification. out: its final name, for messages."""
    adapter, own, names = encoder.adapter, encoder.settings, encoder.late.extensions
    lost = _merge_lora(encoder)
    encoder.adapter = AdapterBlock(kind="full")
    save(encoder, folder)
    write_settings(encoder, folder, export=_facts("merged", adapter, lost))
    check_pooling_modules(encoder, folder)
    del encoder
    gc.collect()
    fresh = SmartEncoder.from_pretrained(
        folder,
        dtype=own.dtype,
        device=device,
        trust_remote_code=own.trust_remote_code,
        trust_extensions=names,
    )
    report = compare(out, sides, ours, fresh, SUMMED, ROUNDED)
    return write_verified(folder, report | read_plainly(fresh, folder, sides))


def _multi_vector(
    encoder: SmartEncoder, folder: Path, out: Path, sides: Inputs, ours: list[Embeddings]
) -> dict[str, Any]:
    """Write the MultiVectorEncoder to ``folder`` and return its verification. out: its final name, for messages."""
    from sentence_transformers import MultiVectorEncoder

    check_expressible(encoder)
    pooled = {pooled_id(encoder, contents, role) for role, contents in sides}
    if len(pooled) > 1:
        raise AdapterError("queries and documents pool different tokens by their place; export it as merged")
    adapter, device, trust = encoder.adapter, str(encoder.device), encoder.settings.trust_remote_code
    lost = _merge_lora(encoder)
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
    return write_verified(folder, compare_tokens(out, sides, ours, fresh))


def compare_tokens(folder: Path, sides: Inputs, ours: list[Embeddings], fresh: Any) -> dict[str, Any]:
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
            add_difference(report, folder, role, "token", own, theirs)
    return report
