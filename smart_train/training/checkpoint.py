"""Checkpoint folders on the disk: made beside their place and renamed, told whole from half, deleted and put aside.

checkpoint-N        a whole one: its checkpoint.json names every file and its size
checkpoint-N.part   being written, or being deleted; whoever finds one at the start of a run deletes it
checkpoint-N.old    whole, while a new one of the same step takes its place
later-N             whole, of a step after the one that a run was resumed from
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from smart_train.config.recipe import plain
from smart_train.config.schema import LateBlock
from smart_train.core.atomic_io import replacing
from smart_train.core.errors import CheckpointError
from smart_train.distributed.process_group import ProcessGroup
from smart_train.models.encoder import SmartEncoder
from smart_train.models.heads import parameter_name
from smart_train.models.lora import NAME, WEIGHTS, AdapterError
from smart_train.models.safe_loading import HEAD, SETTINGS
from smart_train.models.saving import base_identity, check_base, check_processing
from smart_train.training.engine import collected, resharded

FACTS = "checkpoint.json"
PART, OLD = ".part", ".old"
FORMAT = 1
FULL = {errno.ENOSPC, errno.EDQUOT}


def folder_of(root: Path, step: int) -> Path:
    return root / f"checkpoint-{step}"


def steps(root: Path) -> list[int]:
    """Steps of the folders that are named as checkpoints, whole or not, in order."""
    names = (re.fullmatch(r"checkpoint-(\d+)", folder.name) for folder in root.glob("checkpoint-*") if folder.is_dir())
    return sorted(int(name[1]) for name in names if name)


# Writing -------------------------------------------------------------------------------------------------------------


def seal(part: Path, facts: dict[str, Any]) -> None:
    """Makes a written folder whole: every file is on the disk itself before checkpoint.json lists them.

    The rename that follows could otherwise outlive the data in a power failure: the file system is free to write names
    first.  Costs one flush of what was just written (seconds for gigabytes on a network disk).
    """
    files = {str(file.relative_to(part)): file.stat().st_size for file in sorted(part.rglob("*")) if file.is_file()}
    for name in files:
        _flush(part / name)
    text = json.dumps({"format": FORMAT, **facts, "files": files}, indent=2) + "\n"
    (part / FACTS).write_text(text, encoding="utf8")
    _flush(part / FACTS)
    for folder in (*(folder for folder in part.rglob("*") if folder.is_dir()), part):
        _flush(folder)


def publish(part: Path, folder: Path) -> None:
    """Renames a sealed folder to its place; an older checkpoint of that step is there until then."""
    old = folder.with_name(folder.name + OLD)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    _flush(folder.parent)
    delete(old)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def delete(folder: Path) -> None:
    """Renamed first: what is half deleted is no checkpoint any more."""
    if not folder.exists():
        return
    part = folder if folder.name.endswith(PART) else folder.with_name(folder.name + PART)
    if part != folder:
        shutil.rmtree(part, ignore_errors=True)
        with suppress(FileNotFoundError):  # another machine that shares the disk was first
            folder.rename(part)
    shutil.rmtree(part, ignore_errors=True)


def rotate(root: Path, limit: int | None, keep: Iterable[Path]) -> list[Path]:
    """Deletes the oldest checkpoints above ``limit``, never those to keep; returns what was deleted."""
    found, kept = [folder_of(root, step) for step in steps(root)], {path.resolve() for path in keep}
    over = len(found) - limit if limit else 0
    gone = [folder for folder in found if folder.resolve() not in kept][: max(0, over)]
    for folder in gone:
        delete(folder)
    return gone


# What an earlier run has left ----------------------------------------------------------------------------------------


def tidy(root: Path) -> list[str]:
    """Deletes what a run was writing when it ended, and gives back its name to a checkpoint that was being replaced.
    Returns a line for the log on each."""
    told = []
    for part in sorted(root.glob(f"checkpoint-*{PART}")):
        shutil.rmtree(part, ignore_errors=True)
        told.append(f"{part} was not finished when an earlier run ended: deleted")
    for old in sorted(root.glob(f"checkpoint-*{OLD}")):
        folder = old.with_name(old.name.removesuffix(OLD))
        if folder.exists():
            delete(old)
            continue
        with suppress(FileNotFoundError):  # another machine that shares the disk was first
            old.rename(folder)
            told.append(f"{folder} was being replaced when an earlier run ended: it is there again")
    return told


def put_aside(root: Path, step: int) -> list[str]:
    """Renames the checkpoints of later steps, of the line that a resumed run leaves, so that they are neither taken
    for the newest nor deleted.  Returns a line for the log, if there were any."""
    later = [found for found in steps(root) if found > step]
    for found in later:
        number, folder = 0, root / f"later-{found}"
        while folder.exists():
            number += 1
            folder = root / f"later-{found}.{number}"
        folder_of(root, found).rename(folder)
    if not later:
        return []
    names = ", ".join(str(found) for found in later)
    return [
        f"{root}: the checkpoints of later steps than {step} ({names}) are kept under other names, later-{later[0]} ..."
    ]


# Reading -------------------------------------------------------------------------------------------------------------


def facts_of(folder: Path) -> dict[str, Any]:
    """What checkpoint.json says.  Raises CheckpointError where there is none, or one of another format."""
    try:
        found: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf8"))
    except (OSError, ValueError):
        what = "is no folder" if not folder.is_dir() else f"has no {FACTS}, so it is no checkpoint, or half of one"
        raise CheckpointError(f"training.resume_from_checkpoint: {folder} {what}{_others(folder)}") from None
    if found.get("format") != FORMAT:
        raise CheckpointError(f"{folder / FACTS}: format {found.get('format')}, this version reads {FORMAT}")
    return found


def _others(folder: Path) -> str:
    near = [root for root in (folder, folder / "checkpoints", folder.parent) if root.is_dir() and steps(root)]
    there = [folder_of(near[0], step).name for step in steps(near[0])] if near else []
    return f"; {near[0]} has {', '.join(there[-3:])}" if there else ""


def lacking(folder: Path) -> list[str]:
    """Files that checkpoint.json names and that are missing, or have another size."""
    found = []
    for name, size in facts_of(folder)["files"].items():
        file = folder / name
        if not file.is_file():
            found.append(f"{name} is missing")
        elif file.stat().st_size != size:
            found.append(f"{name} has {file.stat().st_size} bytes of {size}")
    return found


def is_whole(folder: Path) -> bool:
    try:
        return not lacking(folder)
    except CheckpointError:
        return False


def last_whole(root: Path) -> Path | None:
    return next((folder for step in reversed(steps(root)) if is_whole(folder := folder_of(root, step))), None)


# What a failed write says --------------------------------------------------------------------------------------------


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def failure(error: BaseException, part: Path) -> str:
    """The error of a write, and whether the disk was full (torch and safetensors tell that in words of their own)."""
    free = shutil.disk_usage(next(place for place in (part, *part.absolute().parents) if place.exists())).free
    numbers = {one.errno for one in (error, error.__cause__, error.__context__) if isinstance(one, OSError)}
    full = bool(numbers & FULL) or free < 2**20 or any(f"os error {number}" in str(error) for number in FULL)
    written = f"{_mb(size_of(part))} were written, {_mb(free)} are free"
    told = " ".join(f"{type(error).__name__}: {error}".split())
    return f"the disk is full ({written}; {told})" if full else f"{told} ({written})"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


# Whether a checkpoint can be gone on from by these processes and this encoder, and its weights into memory.

logger = logging.getLogger(__name__)

KEY = "training.resume_from_checkpoint"
SAME = ("kind", "r", "alpha", "targets", "layers", "vision")  # of the adapter block; dropout may change
SAME_LATE = ("layer", "norm", "head", "dim", "keep", "drop")


# Which ---------------------------------------------------------------------------------------------------------------


def find(wanted: str | bool, root: Path, group: ProcessGroup) -> Path:
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
        raise CheckpointError(f"rank {rank}: {text}" if group.world_size > 1 else text)
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
    ours = {"adapter": asdict(encoder.adapter) if encoder.adapter is not None else {}, "late": plain(encoder.late)}
    ours = json.loads(json.dumps(ours))
    usual = {"adapter": {}, "late": plain(LateBlock())}
    found = []
    for block, names in (("adapter", SAME), ("late", SAME_LATE)):
        was, now = (usual[block] | stored[block] if stored[block] else {}), ours[block]  # a key that came later: unset
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
    tensors, buffers = stored_tensors(encoder, folder)
    resharded(encoder)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name in tensors:
                put(parameter, tensors[name])
        for name, buffer in encoder.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])


def stored_tensors(encoder: SmartEncoder, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A folder's tensors by the encoder's parameter names; with a full adapter its buffers, too.  AdapterError."""
    stored: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf8"))
    check_adapter(encoder, stored, folder)
    check_processing(encoder, stored, folder)
    kind = encoder.adapter.kind if encoder.adapter is not None else None
    if kind != "full":
        check_base(stored, base_identity(encoder), folder)
    found: dict[str, Tensor] = {}
    if (folder / HEAD).is_file():
        found |= {f"head.{parameter_name(name)}": tensor for name, tensor in load_file(folder / HEAD).items()}
    kept = {f"head.{name}" for name, _ in encoder.head.named_buffers()}
    buffers = {name: found.pop(name) for name in kept & found.keys()}
    if kind == "lora":
        found |= _lora(folder)
    elif kind == "full":
        trust = encoder.settings.trust_remote_code
        names = encoder.late.extensions
        fresh = SmartEncoder.from_pretrained(
            folder, device="cpu", trust_remote_code=trust, trust_extensions=names, checkpoint=True
        )
        found |= {name: p.detach() for name, p in fresh.named_parameters() if not name.startswith("head.")}
        buffers |= dict(fresh.named_buffers())
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
    wanted = {n: shape(p) for n, p in parameters.items() if full or p.requires_grad or n.startswith("head.")}
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


# The JSONL log of a run that is gone on with: what a killed run wrote after its last checkpoint is made again, and


def rewind(log: Path, size: int, step: int) -> list[str]:
    """Cuts ``log`` to what it held when the checkpoint of ``step`` was written.

    size: its bytes then; a line of that step that came later (the end of a run) is left out, too.  Another log in its
    place, or one that has lost its end, keeps its lines up to that step.  Returns a line to tell, if something went.
    """
    if not log.is_file():
        return []
    content = log.read_bytes()
    lines = content[:size].splitlines(keepends=True)
    kept = [line for line in lines if (of := _step(line)) is not None and of <= step]
    gone = len(content.splitlines()) - len(kept)
    if not gone:
        return []
    with replacing(log) as part:
        part.write_bytes(b"".join(kept))
    return [f"{log}: {gone} lines after the checkpoint of step {step} are taken out, as those steps are made again"]


def _step(line: bytes) -> int | None:
    """None for half a line, as a killed process may leave."""
    if not line.endswith(b"\n"):
        return None
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None
