"""Whether a checkpoint can be gone on from by these processes and this encoder, and its weights into memory.

    one process, DDP   weights and optimizer are the same on all ranks: any number of processes can go on
    FSDP               the optimizer is stored whole, by parameters' names: any number, under FSDP
    DeepSpeed          every rank has its share of the optimizer: as many processes, and the same stage

Knows: checkpoint folders, the encoder's folder, engines' shards.  Does not know: losses, data, recipes, the trainer.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from smart_train.model.adapters import NAME, WEIGHTS, AdapterError
from smart_train.model.encoder import SmartEncoder
from smart_train.model.files import HEAD, SETTINGS
from smart_train.model.folder import base_identity, check_base, check_processing, load
from smart_train.training.checkpoint_files import (
    CheckpointError,
    facts_of,
    folder_of,
    is_whole,
    lacking,
    steps,
)
from smart_train.training.fsdp import resharded
from smart_train.training.peers import Group
from smart_train.training.whole import collected

logger = logging.getLogger(__name__)

KEY = "training.resume_from_checkpoint"
SAME = ("kind", "r", "alpha", "targets", "layers", "vision")  # of the adapter block; dropout may change
SAME_LATE = ("layer", "norm", "head", "dim", "drop")


# Which ---------------------------------------------------------------------------------------------------------------


def find(wanted: str | bool, root: Path, group: Group) -> Path:
    """The checkpoint to go on from: the newest one of ``root`` that every rank finds whole, or the one named.

    Raises CheckpointError, on every rank, where there is none, or what is named is not whole on a rank's disk.
    """
    if wanted is True or str(wanted).lower() == "true":
        own = {step for step in steps(root) if is_whole(folder_of(root, step))}
        common = set.intersection(*group.exchange(own))
        if not common:
            half = f" (not whole: {', '.join(str(step) for step in steps(root))})" if steps(root) else ""
            raise CheckpointError(
                f"{KEY}: there is no whole checkpoint in {root}{half}; name another by its path, or leave the key out "
                "and start anew"
            )
        folder = folder_of(root, max(common))
        for step in (step for step in steps(root) if step > max(common)):
            logger.warning("%s is not whole on every rank; going on from %s", folder_of(root, step), folder)
        return folder
    folder = Path(str(wanted))
    told = group.exchange(_wrong(folder))
    wrong = {rank: text for rank, text in enumerate(told) if text}
    if wrong:
        rank, text = next(iter(wrong.items()))
        raise CheckpointError(f"rank {rank}: {text}" if group.world > 1 else text)
    return folder


def _wrong(folder: Path) -> str:
    try:
        found = lacking(folder)
    except CheckpointError as error:
        return str(error)
    return f"{KEY}: {folder} is not whole: {'; '.join(found[:5])}; take another, or copy it again" if found else ""


# Of whom -------------------------------------------------------------------------------------------------------------


def family(engine: str) -> str:
    """Engines with one name can go on from each other's checkpoints."""
    return engine if engine.startswith(("DeepSpeed", "FSDP")) else "one process or DDP"


def check_launch(folder: Path, engine: str, processes: int) -> list[str]:
    """Raises CheckpointError where these processes can't go on from it; returns what will differ, for the log."""
    facts = facts_of(folder)
    if not facts["resumable"]:
        raise CheckpointError(f"{folder} has the weights alone (training.save_only_model): nothing to go on from")
    before, count = facts["engine"], facts["processes"]
    if family(before) != family(engine):
        raise CheckpointError(
            f"{folder} was written under {before} by {count} processes, and its optimizer has another form under "
            f"{engine}; launch as it was launched, or start anew"
        )
    if count == processes:
        return []
    if engine.startswith("DeepSpeed"):
        raise CheckpointError(
            f"{folder} was written under {before} by {count} processes, each with its share of the optimizer, and "
            f"{processes} were launched; launch {count}"
        )
    return [
        f"{folder} was written by {count} processes, and {processes} go on: random states are not those of the "
        "uninterrupted run, and the batches only where objective.batch gives their size; the result will be near to "
        "the uninterrupted run's, and not equal"
    ]


def check_adapter(encoder: SmartEncoder, stored: dict[str, Any], folder: Path) -> None:
    """Raises AdapterError where the folder's adapter or head is another than this encoder's."""
    ours = {"adapter": asdict(encoder.adapter) if encoder.adapter is not None else {}, "late": asdict(encoder.late)}
    ours = json.loads(json.dumps(ours))
    found = []
    for block, names in (("adapter", SAME), ("late", SAME_LATE)):
        was, now = stored[block] or {}, ours[block]
        found += [f"{block}.{n} was {was.get(n)}, is {now.get(n)}" for n in names if was.get(n) != now.get(n)]
    if found:
        raise AdapterError(
            f"{folder} is of another adapter: {'; '.join(found)}; go on with the recipe it was made with, or start "
            "anew; nothing was loaded"
        )


# Weights -------------------------------------------------------------------------------------------------------------


def load_weights(encoder: SmartEncoder, folder: Path) -> None:
    """The trained tensors of a saved folder into the encoder in memory, under any engine; every rank must call it.

    Base, adapter and every key are checked first (AdapterError), so that nothing is loaded by halves.
    """
    tensors, fresh = stored_tensors(encoder, folder)
    resharded(encoder)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name in tensors:
                put(parameter, tensors[name])
        for name, buffer in encoder.named_buffers():
            if fresh is not None and name in fresh:
                buffer.copy_(fresh[name])


def stored_tensors(encoder: SmartEncoder, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """A folder's tensors by the encoder's parameter names; with a full adapter its buffers, too.  AdapterError."""
    stored: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf8"))
    check_adapter(encoder, stored, folder)
    check_processing(encoder, stored, folder)
    kind = encoder.adapter.kind if encoder.adapter is not None else None
    if kind != "full":
        check_base(stored, base_identity(encoder), folder)
    found: dict[str, Tensor] = {}
    if (folder / HEAD).is_file():
        found |= {f"head.{name}": tensor for name, tensor in load_file(folder / HEAD).items()}
    buffers = None
    if kind == "lora":
        found |= _lora(folder)
    elif kind == "full":
        trust = encoder.settings.trust_remote_code
        fresh = load(str(folder), device="cpu", trust_remote_code=trust, checkpoint=True)
        found |= {name: p.detach() for name, p in fresh.named_parameters() if not name.startswith("head.")}
        buffers = dict(fresh.named_buffers())
    _check_names(encoder, found, folder, full=kind == "full")
    return found, buffers


def _lora(folder: Path) -> dict[str, Tensor]:
    """peft's names leave out the prefix of its model class and the adapter's own name."""
    found = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        module, part, last = name.removeprefix("base_model.model.").rsplit(".", 2)
        found[f"st.0.model.{module}.{part}.{NAME}.{last}"] = tensor
    return found


def _check_names(encoder: SmartEncoder, found: dict[str, Tensor], folder: Path, full: bool) -> None:
    parameters = dict(encoder.named_parameters())
    wanted = {name: shape(p) for name, p in parameters.items() if full or p.requires_grad}
    have = {name: tuple(tensor.shape) for name, tensor in found.items()}
    missing, extra = sorted(wanted.keys() - have.keys()), sorted(have.keys() - wanted.keys())
    sizes = [f"{n} is {have[n]}, here {wanted[n]}" for n in sorted(wanted.keys() & have.keys()) if wanted[n] != have[n]]
    if missing or extra or sizes:
        raise AdapterError(
            f"{folder}: {len(missing)} of {len(wanted)} trained tensors are missing ({missing[:2]}), {len(extra)} are "
            f"not this model's ({extra[:2]}), {len(sizes)} have another size ({sizes[:2]}); nothing was loaded"
        )


def shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Of the whole tensor, whatever share of it lies here."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def put(parameter: nn.Parameter, tensor: Tensor) -> None:
    """A whole tensor into a parameter of which this rank may hold a share; every rank must call it."""
    if isinstance(parameter, DTensor):
        there = tensor.to(parameter.device, parameter.dtype)
        parameter.copy_(distribute_tensor(there, parameter.device_mesh, parameter.placements))
    elif hasattr(parameter, "ds_id"):
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(tensor)
    else:
        parameter.copy_(tensor)


# DeepSpeed -----------------------------------------------------------------------------------------------------------


class Caught:
    """Stands in for a DeepSpeed engine's writer: an error is kept and not raised.

    Every rank meets the others several times while its engine saves.  One that raised would never come there, and
    they would wait for it until the launch's time-out.
    """

    def __init__(self, writer: Any) -> None:
        self.writer = writer
        self.error: Exception | None = None

    def save(self, state_dict: Any, path: str) -> None:
        try:
            self.writer.save(state_dict, path)
        except Exception as error:
            self.error = self.error or error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.writer, name)


def save_deepspeed(engine: Any, folder: Path, step: int) -> None:
    """Each rank's share of optimizer and trained weights; nothing of what is frozen, which is most of it."""
    caught = Caught(engine.checkpoint_engine)
    engine.checkpoint_engine = caught
    engine._copy_recovery_script = lambda _: None  # a program in every checkpoint; adapter and head are whole beside it
    try:
        engine.save_checkpoint(str(folder), tag=tag(step), save_latest=False, exclude_frozen_parameters=True)
    finally:
        engine.checkpoint_engine = caught.writer
        del engine._copy_recovery_script
    if caught.error is not None:
        raise caught.error


def load_deepspeed(engine: Any, encoder: SmartEncoder, folder: Path, step: int) -> None:
    """Weights, master weights and optimizer; then every trained tensor is compared with the adapter's files.

    Raises CheckpointError where DeepSpeed finds nothing, or has loaded other weights than were saved.
    """
    whole = all(parameter.requires_grad for parameter in encoder.parameters())
    tensors = {} if whole else stored_tensors(encoder, folder)[0]  # where nothing is frozen, DeepSpeed is strict
    place, _ = engine.load_checkpoint(str(folder), tag=tag(step), load_module_strict=whole)
    if place is None:
        raise CheckpointError(f"{folder}: DeepSpeed finds no checkpoint {tag(step)} there")
    for name, parameter in encoder.named_parameters():
        if name in tensors:
            with collected(parameter) as found:
                if not torch.equal(found.detach().float().cpu(), tensors[name].float()):
                    raise CheckpointError(f"{folder}: DeepSpeed has loaded another {name} than the adapter's file has")


def tag(step: int) -> str:
    return f"global_step{step}"
