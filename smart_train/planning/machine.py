"""Inspect this machine: GPUs, memory, versions, and known problems of machines like it."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from smart_train.core.environment import cores
from smart_train.core.extras import installed
from smart_train.planning.launch_files import default_file

SHARED = 1 << 30  # bytes of /dev/shm below which data workers that hand over images are known to die of a bus error
COMPILERS = ("g++", "c++", "clang++")
TRACKERS = ("wandb", "tensorboard", "trackio")


@dataclass(frozen=True)
class Gpu:
    """One GPU. memory, free: bytes; capability: (major, minor), None where the vendor has none"""

    name: str
    memory: int
    free: int
    bf16: bool
    capability: tuple[int, int] | None = None


@dataclass
class Machine:
    """Hardware and versions of this machine.

    ram, free_ram, disk, shared: bytes, None = not known here; shared: /dev/shm; disk: free, where output goes.

    cuda: of torch's build, None = a build without; backends: of torch.distributed; kernels: what is importable beside
    torch: fused MaxSim, flash-attn; launcher: accelerate's default file and its settings, ("", {}) = there is none
    """

    gpus: list[Gpu]
    cores: int
    ram: int | None
    free_ram: int | None
    disk: int | None
    shared: int | None
    versions: dict[str, str]
    cuda: str | None
    backends: list[str]
    kernels: dict[str, bool]
    compiler: str | None
    threads: str | None
    trackers: dict[str, str]
    launcher: tuple[str, dict[str, Any]]
    driver: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def memory(self) -> int | None:
        """Bytes of the smallest GPU; None without one."""
        return min((gpu.memory for gpu in self.gpus), default=None)


def inspect_machine(output: Path) -> Machine:
    """Inspect this machine. output: a path whose disk is measured; it need not exist."""
    import torch
    import torch.distributed as dist

    from smart_train.config.recipe import versions

    total, free = _ram()
    names = ("HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES", "HF_HOME", "WANDB_MODE")
    backends = ("nccl", "gloo", "mpi") if dist.is_available() else ()
    return Machine(
        gpus=_gpus(),
        cores=cores(),
        ram=total,
        free_ram=free,
        disk=_disk(output),
        shared=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        versions={"python": platform.python_version(), **versions()},
        cuda=torch.version.cuda,
        backends=[name for name in backends if getattr(dist, f"is_{name}_available")()],
        kernels={
            "late-interaction-kernels": _imports("late_interaction_kernels"),
            "flash-attn": _imports("flash_attn"),
        },
        compiler=next((found for name in COMPILERS if (found := shutil.which(name))), None),
        threads=os.environ.get("OMP_NUM_THREADS"),
        trackers={name: _tracker(name) for name in TRACKERS},
        launcher=default_file(),
        driver=Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None,
        environment={name: os.environ[name] for name in names if name in os.environ},
    )


def known_problems(machine: Machine) -> Iterator[str]:
    """Yield known problems of this machine, one sentence each, with what to do."""
    if machine.driver and not machine.cuda:
        yield "there is an NVIDIA driver, but torch is a build for CPUs; install torch's CUDA build"
    if machine.cuda and not machine.gpus:
        yield f"torch is built for CUDA {machine.cuda}, but sees no GPU: {_why_no_gpu(machine)}"
    if len(machine.gpus) > 1:
        yield "plain python sees several GPUs at once and is refused; start runs with accelerate launch"
    if _vision_broken():
        what = (
            "torchvision is installed and cannot be imported (its build is not torch's), so AutoProcessor cannot either"
        )
        yield f"{what}; uninstall it, pages need none, or install the build that belongs to this torch"
    yield from _launcher_problems(machine)
    if machine.environment.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        yield "HF_HUB_OFFLINE is set: models and data come from the local cache alone"
    if machine.shared is not None and machine.shared < SHARED:
        what = f"/dev/shm has {machine.shared >> 20} MiB; data workers hand pages over through it and may be killed"
        yield f"{what}; give the container more (docker run --shm-size=8g), or training.dataloader_num_workers: 0"
    if not machine.compiler:
        yield "no C++ compiler: DeepSpeed cannot build its own AdamW or CPU offload; launch/ uses torch's AdamW"
    if machine.gpus and "nccl" not in machine.backends:
        yield "torch has no NCCL: several GPUs would talk over gloo, slowly"
    if any(gpu.bf16 for gpu in machine.gpus) and not machine.kernels["late-interaction-kernels"]:
        yield "MaxSim runs as torch tiles; fused kernels: pip install 'smart-train[kernels]'"


def _why_no_gpu(machine: Machine) -> str:
    if "CUDA_VISIBLE_DEVICES" in machine.environment:
        return f"CUDA_VISIBLE_DEVICES is {machine.environment['CUDA_VISIBLE_DEVICES']!r}"
    return "the driver is too old for it" if machine.driver else "no driver was found"


def _launcher_problems(machine: Machine) -> Iterator[str]:
    path, settings = machine.launcher
    if not path:
        return
    kind = str(settings.get("distributed_type", "")).upper()
    yield f"accelerate launch without --config_file reads {path} ({kind or 'no distributed_type'})"
    if kind == "MULTI_CPU":
        yield f"{path} says MULTI_CPU: accelerate then starts one process; take --config_file launch/cpu.yaml"
    if settings.get("mixed_precision") not in (None, "no"):
        what = f"{path} sets mixed_precision {settings['mixed_precision']}, which wins where a recipe names none"
        yield f"{what}; write training.bf16 in the recipe"


# Inspection ----------------------------------------------------------------------------------------------------------


def _gpus() -> list[Gpu]:
    import torch

    if not torch.cuda.is_available():
        return []
    found = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        bf16 = torch.version.hip is not None or properties.major >= 8
        found.append(Gpu(properties.name, total, free, bf16, (properties.major, properties.minor)))
    return found


def _ram() -> tuple[int | None, int | None]:
    """Return (total, free) bytes, with a container's limit."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf8").splitlines()
    except OSError:
        return None, None
    found = {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines)}
    total, free = found.get("MemTotal"), found.get("MemAvailable")
    with suppress(OSError, ValueError):  # "max" = no limit
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf8"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="utf8"))
        total, free = min(total or limit, limit), min(free or limit, limit - used)
    return total, free


def _disk(output: Path) -> int | None:
    there = next((p for p in (output, *output.absolute().parents) if p.exists()), None)
    return shutil.disk_usage(there).free if there is not None else None


def _imports(name: str) -> bool:
    """Return whether a package can be imported; kernels fail in their own ways without a driver."""
    if not installed(name):
        return False
    try:
        importlib.import_module(name)
    except Exception:
        return False
    return True


def _vision_broken() -> bool:
    return installed("torchvision") and not _imports("torchvision")


def _tracker(name: str) -> str:
    from smart_train.checks.training import wandb_key

    if not installed(name):
        return "not installed"
    if name == "wandb":
        return "key" if wandb_key() else "no key"
    return "installed"
