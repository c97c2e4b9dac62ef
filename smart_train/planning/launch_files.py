"""Read accelerate's launch files: which engine they start, and on how many ranks."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from smart_train.core.atomic_io import replacing
from smart_train.core.bounded_yaml import load_yaml
from smart_train.core.errors import LaunchError
from smart_train.core.output_check import output_problem
from smart_train.core.shipped_files import shipped_files
from smart_train.planning.estimates import BUCKET, LIVE, Engine

ZERO = "zero_optimization"


@dataclass(frozen=True)
class Launch:
    """One launch file.

    kind: NO, MULTI_GPU, DEEPSPEED, FSDP ... as accelerate names it; processes: as written, None = all GPUs;
    machines: as written; zero: DeepSpeed's settings, {} without; fsdp: accelerate's, {} without
    """

    name: str
    kind: str
    processes: int | None = None
    machines: int = 1
    zero: dict[str, Any] = field(default_factory=dict)
    fsdp: dict[str, Any] = field(default_factory=dict)

    def ranks(self, gpus: int) -> int:
        """Return the number of ranks. gpus: of each machine"""
        if self.kind == "NO":
            return 1
        return self.processes or gpus * self.machines

    def ranks_per_machine(self, gpus: int) -> int:
        """Return the ranks of one machine, which share its RAM. gpus: of each machine"""
        return max(1, self.ranks(gpus) // self.machines)

    def engine(self, gpus: int, half: bool, hidden: int = 0) -> Engine:
        """Return the engine. half: the run trains in bfloat16 or float16; hidden: width that fills "auto" sizes"""
        world = self.ranks(gpus)
        if self.kind == "DEEPSPEED":
            return _deepspeed(self.zero, world, half, hidden)
        if self.kind == "FSDP":
            wrapped = str(self.fsdp.get("fsdp_auto_wrap_policy", "NO_WRAP")) != "NO_WRAP"
            offload = bool(self.fsdp.get("fsdp_offload_params", False))
            return Engine("fsdp", world, half=half, wrapped=wrapped, offload_weights=offload)
        return Engine("ddp", world, half=half)


def _deepspeed(zero: dict[str, Any], world: int, half: bool, hidden: int) -> Engine:
    stage = int(zero.get("stage", 0))
    width = hidden * hidden if zero.get("reduce_bucket_size") == "auto" else BUCKET
    return Engine(
        "zero",
        world,
        stage,
        half,
        bucket=_number(zero.get("reduce_bucket_size"), width),
        overlap=bool(zero.get("overlap_comm", False)),
        live=_number(zero.get("stage3_max_live_parameters"), LIVE),
        offload_optimiser=_offloaded(zero, "offload_optimizer"),
        offload_weights=_offloaded(zero, "offload_param"),
    )


def _number(value: Any, default: int) -> int:
    try:
        return int(float(value))
    except (TypeError, ValueError):  # not said, or "auto"
        return default


def _offloaded(zero: dict[str, Any], name: str) -> bool:
    given = zero.get(name)
    return isinstance(given, dict) and str(given.get("device", "none")) != "none"


def shipped(pattern: str = "*.yaml") -> list[Path]:
    """Return the launch files of this package: of the checkout, else where pip puts data.

    pattern: of their names; "*" also finds DeepSpeed's JSON files and the scripts
    """
    return shipped_files("launch", pattern)


def first_line(path: Path) -> str:
    """Return what a launch file says that it is for: its first comment."""
    return path.read_text(encoding="utf8").splitlines()[0].lstrip("# ")


def copy_launch_files(folder: Path) -> tuple[list[str], list[str]]:
    """Copy all launch files into a folder; return the names of those written, and of those that were there and stay.

    A launch file names its DeepSpeed settings by a path from the working directory. In the copy it is the path of the
    copied settings: FOLDER/zero3.json for a relative FOLDER, so that it is right where the folder was named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written, kept = [], []
    for source in shipped("*"):
        target = folder / source.name
        if target.exists():
            kept.append(source.name)
            continue
        text = source.read_text(encoding="utf8")
        if source.suffix == ".yaml":
            text = re.sub(
                r"(?<=deepspeed_config_file: )launch/(\S+)", lambda found: json.dumps(f"{folder}/{found[1]}"), text
            )
        with replacing(target, f".{os.getpid()}") as part:
            part.write_text(text, encoding="utf8")
            part.chmod(source.stat().st_mode)
        written.append(source.name)
    return written, kept


def cached_launch_file(source: Path) -> Path:
    """Return a copy of a launch file that can be used from any folder, with the path of its DeepSpeed settings whole.

    The copies lie in the user's cache (XDG_CACHE_HOME, else ~/.cache), in a folder named after their content, so that a
    newer version of the package has its own.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute()
    content = b"".join(path.read_bytes() for path in shipped("*"))
    folder = cache / "smart-train" / f"launch-{sha256(content).hexdigest()[:12]}"
    if (problem := output_problem(folder)) is not None:
        raise LaunchError(f"{problem}; set XDG_CACHE_HOME to a folder that can be written")
    copy_launch_files(folder)
    return folder / source.name


def default_file() -> tuple[str, dict[str, Any]]:
    """Return the file that ``accelerate launch`` reads without --config_file, and its settings, or ("", {})."""
    from accelerate.commands.config.config_args import default_config_file

    path = Path(default_config_file).expanduser()
    if not path.is_file():
        return "", {}
    try:
        return str(path), _mapping(path, load_yaml, yaml.YAMLError)  # JSON is YAML
    except LaunchError:
        return str(path), {}


def read_launch(path: Path) -> Launch:
    """Read a launch file, with the DeepSpeed JSON that it names (relative to here, or beside the file).

    Raises LaunchError if a file is missing or not YAML or JSON, or names no distributed_type.
    """
    found = _mapping(path, load_yaml, yaml.YAMLError)
    kind = found.get("distributed_type", "")
    kind = "NO" if kind is False else str(kind).upper()  # YAML takes a NO without quotes for false
    if not kind:
        raise LaunchError(f"{path}: it has no distributed_type; make one with: accelerate config --config_file {path}")
    given = found.get("num_processes")
    processes = int(str(given)) if str(given).isdigit() else None  # "gpu" and "auto" are as many as there are
    zero = _zero(path, _block(path, found, "deepspeed_config")) if kind == "DEEPSPEED" else {}
    fsdp = _block(path, found, "fsdp_config") if kind == "FSDP" else {}
    return Launch(path.stem, kind, processes, max(1, _number(found.get("num_machines"), 1)), zero, fsdp)


def read_deepspeed(path: Path) -> Launch:
    """Read a DeepSpeed JSON by itself, as ``training.deepspeed`` names one. Raises LaunchError."""
    return Launch(path.stem, "DEEPSPEED", zero=_block(path, _mapping(path, json.loads, ValueError), ZERO))


def _block(path: Path, found: dict[str, Any], name: str) -> dict[str, Any]:
    block = found.get(name) or {}
    if not isinstance(block, dict):
        raise LaunchError(f"{path}: {name} is {block!r}, and has to be a block of keys; take one of launch/ as a model")
    return block


def _zero(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    named = settings.get("deepspeed_config_file")
    if named:
        places = [Path(named), path.parent.parent / named, path.parent / Path(named).name]
        there = next((place for place in places if place.is_file()), None)
        if there is None:
            raise LaunchError(f"{path}: there is no {named}, which deepspeed_config_file names; correct it")
        return read_deepspeed(there).zero
    # accelerate's own keys, for a file without JSON
    found: dict[str, Any] = {"stage": settings.get("zero_stage", 2)}
    for key, target in (("offload_optimizer_device", "offload_optimizer"), ("offload_param_device", "offload_param")):
        if settings.get(key):
            found[target] = {"device": settings[key]}
    return found


def _mapping(path: Path, parse: Any, error: type[Exception]) -> dict[str, Any]:
    try:
        found = parse(path.read_text(encoding="utf8"))
    except OSError as failed:
        raise LaunchError(f"{path}: it cannot be read ({failed.strerror}); correct the path") from None
    except UnicodeDecodeError as failed:
        raise LaunchError(f"{path}: it is not UTF-8 text ({failed.reason}); save it as UTF-8") from None
    except RecursionError:  # of JSON
        raise LaunchError(f"{path}: too many levels deep; correct it") from None
    except error as failed:
        raise LaunchError(f"{path}: {' '.join(str(failed).split())}; correct that line") from None
    if not isinstance(found, dict):
        raise LaunchError(f"{path}: it holds no block of keys; take one of launch/ as a model")
    return found
