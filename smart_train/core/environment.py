"""Read this process's rank, the number of processes, and its CPU cores from the environment, without torch."""

from __future__ import annotations

import os


def rank() -> int:
    """Return this process's rank in the launch; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """Return the number of processes of the launch; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def lost_processes() -> bool:
    """Return whether accelerate was asked for several processes and started one, without a warning.

    Its launcher for a CPU (--cpu, MULTI_CPU, or no GPU in the machine) starts one process whatever --num_processes or
    --num_machines says.  It then sets MASTER_ADDR, as for several, but no world size, which every launcher that starts
    several sets (torchrun and deepspeed; MPI by names of its own).
    """
    sizes = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    return launched and not any(name in os.environ for name in sizes)


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
