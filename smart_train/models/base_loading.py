"""Load a base as a sentence-transformers model: whole on every process, whichever engine will shard it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedModel
from transformers.integrations import deepspeed as known

from smart_train.config.schema import ModelBlock
from smart_train.core import hub
from smart_train.core.errors import AdapterError, BaseNotFound, Setting, SmartTrainError, UsageError
from smart_train.data.collection import first_few
from smart_train.models.base_config import BaseFiles, check_modules, readable
from smart_train.models.processors import images_without_torchvision
from smart_train.models.quantization import four_bits, same_kernel
from smart_train.models.safe_loading import PEFT, TEMPLATES, check_base_folder, try_texts

RAM = "FSDP_CPU_RAM_EFFICIENT_LOADING"


def load_base(
    settings: ModelBlock, place: str, commit: str | None, device: str | torch.device | None
) -> SentenceTransformer:
    """Load the base.

    settings: the recipe's block; place, commit: a folder and None, or a Hub id and its commit
    Raises BaseNotFound where it cannot be loaded from there, where its folder is refused (``check_base_folder``), where
    its weights are no safetensors, and where they lack tensors, which transformers would draw at random; UsageError for
    a device that is none.
    """
    check_device(device)
    with readable(settings.base):
        _check_files(settings, place, commit)
    options: dict[str, Any] = {"use_safetensors": True}
    if settings.dtype != "auto":
        options["dtype"] = getattr(torch, settings.dtype)
    if settings.quantisation == "4bit":
        options["quantization_config"] = four_bits(settings.base, _computed_in(settings, place, commit))
    if settings.attention is not None:
        options["attn_implementation"] = settings.attention
    with (
        hub.hub_errors(settings.base, settings.revision),
        images_without_torchvision(),
        unsharded(),
        _whole(settings.base),
    ):
        try:
            base = SentenceTransformer(
                place,
                revision=commit,
                device=str(device) if device is not None else None,
                model_kwargs=options,
                trust_remote_code=settings.trust_remote_code,
            )
        except (SmartTrainError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # each library raises its own on a damaged file
            if hub.error_kind(error) is not None:
                raise
            if isinstance(error, RuntimeError) and re.search("CUDA|HIP|NCCL|memory|device", str(error)):
                raise  # the machine's fault, not the base's
            what = f"{settings.base}: sentence-transformers cannot load it: {' '.join(str(error).split())[:500]}"
            fix = ("download or copy it again, or name another base in ", Setting("model.base"))
            raise BaseNotFound(what, fix) from error
    same_kernel(base)
    return base


def check_device(device: str | torch.device | None) -> None:
    """Raise UsageError where nothing can be put on the device; None = the best there is."""
    if device is None:
        return
    try:
        torch.empty(1, device=device)
    except Exception as error:  # torch raises RuntimeError, AssertionError ... by backend
        what = str(error).splitlines()[0][:120]
        raise UsageError(
            f"the device {str(device)[:40]!r} cannot be used ({what}); name cpu, cuda, cuda:1 ..."
        ) from None


def _check_files(settings: ModelBlock, place: str, commit: str | None) -> None:
    if commit is None:
        check_base_folder(Path(place), settings.trust_remote_code)
        check_modules(BaseFiles(place, commit), settings.base)
        return
    files = BaseFiles(place, commit)
    with hub.hub_errors(settings.base, settings.revision):
        hijacked = files.json(PEFT) is not None and files.json("config.json") is not None
    if hijacked:
        what = f"{settings.base} has an {PEFT}, so it is an adapter over another base"
        raise BaseNotFound(what, ("name that base in ", Setting("model.base")))
    with hub.hub_errors(settings.base, settings.revision):
        check_modules(files, settings.base)
        inner = files.transformer()
        names = [f"{inner}/{name}" if inner else name for name in ("tokenizer.json", "chat_template.jinja", *TEMPLATES)]
        texts = [files.path(name) for name in names]
    try:
        try_texts(settings.base, [path for path in texts if path is not None])
    except AdapterError as error:
        what, _, fix = str(error).partition("; ")
        raise BaseNotFound(what, fix) from None


@contextmanager
def _whole(base: str) -> Iterator[None]:
    """Raise BaseNotFound if a model that is loaded inside this block lacks tensors in its files.

    transformers draws those at random and logs it, so that every run has another base.  Only poolers may be missing:
    masked language models are saved without, and no token state depends on them.
    """
    models: Any = PreTrainedModel
    original = models.__dict__["from_pretrained"]
    load = original.__func__

    def complete(cls: Any, *args: Any, **options: Any) -> Any:
        if options.pop("output_loading_info", False):
            return load(cls, *args, output_loading_info=True, **options)
        model, info = load(cls, *args, output_loading_info=True, **options)
        missing = sorted(name for name in info["missing_keys"] if "pooler" not in name.split("."))
        if missing:
            extra = sorted(info["unexpected_keys"])
            what = (
                f"{base}: {len(missing)} of {len(model.state_dict())} of the model's tensors are missing "
                f"({first_few(missing, 3)}), and {len(extra)} are not this model's ({first_few(extra, 3)}), so its "
                "vectors would be random in part"
            )
            raise BaseNotFound(what, "download or copy it again, or name another base")
        return model

    models.from_pretrained = classmethod(complete)
    try:
        yield
    finally:
        models.from_pretrained = original


def _computed_in(settings: ModelBlock, place: str, commit: str | None) -> torch.dtype:
    """Return the dtype that a base in 4 bits computes in: as model.dtype says, else as the base is stored."""
    if settings.dtype != "auto":
        return cast(torch.dtype, getattr(torch, settings.dtype))
    stored = BaseFiles(place, commit).config(settings.base, settings.trust_remote_code).dtype
    return stored if isinstance(stored, torch.dtype) else torch.float32


@contextmanager
def unsharded() -> Iterator[None]:
    """Load bases inside this block without sharding.

    transformers shards weights as it loads them when ZeRO-3 is configured, and loads them on rank 0 alone under FSDP's
    RAM-efficient loading.  But finding the final norm takes a forward, LoRA is drawn by a seed, and the untouched base
    is ranked: all of this needs a whole model, which the engine shards afterwards.  It costs the base's size in host
    memory for every process of a machine, while they start.
    """
    config = known._hf_deepspeed_config_weak_ref() if known._hf_deepspeed_config_weak_ref is not None else None
    given = os.environ.get(RAM)
    known.unset_hf_deepspeed_config()
    os.environ[RAM] = "false"
    try:
        yield
    finally:
        os.environ.pop(RAM)
        if given is not None:
            os.environ[RAM] = given
        if config is not None:
            known.set_hf_deepspeed_config(config)
