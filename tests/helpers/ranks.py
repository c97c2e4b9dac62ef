"""A function on several gloo ranks of this machine: real processes, so that what crosses between them is real."""

from __future__ import annotations

import importlib.util
import inspect
import io
import os
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

START = 300.0  # seconds for the imports of every rank, which a busy machine draws out
TIMEOUT = 60.0  # seconds for the function: one that waits for ever on another rank fails
GRACE = 2.0  # seconds for the other ranks' reports after the first one failed


class RankError(AssertionError):
    """A rank failed, died or did not come back; the message has every rank's traceback there is."""


def run_ranks(world: int, function: Callable[..., Any], *args: Any, timeout: float = TIMEOUT) -> list[Any]:
    """``function(*args)`` on each of ``world`` ranks at once, in a gloo process group; its results, by rank.

    function: of a module's top level; dist.get_rank() tells it who it is.  Its file is imported anew in every rank.
    args, results: what ``torch.save`` takes.  RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are set as
    torchrun sets them.  Raises RankError with the rank's traceback, and where ranks hang for ``timeout`` seconds.
    """
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        target = (inspect.getfile(function), function.__module__, function.__qualname__)
        payload = (target, _packed(args))  # the file comes first: arguments may be of its classes
        environment = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        pipes = [context.Pipe(duplex=True) for _ in range(world)]
        processes = [
            context.Process(target=_rank, args=(theirs, payload, rank, folder, timeout, environment), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        try:
            for process in processes:
                process.start()
            for _, theirs in pipes:
                theirs.close()
            ours = [mine for mine, _ in pipes]
            _reports(ours, START, "starting")
            for pipe in ours:
                pipe.send_bytes(b"go")
            results = _reports(ours, timeout, "running")
            for process in processes:
                process.join(GRACE + timeout)
        finally:
            for process in processes:
                if process.pid and process.is_alive():
                    process.kill()
    return results


def _reports(pipes: list[Connection], seconds: float, doing: str) -> list[Any]:
    """One report of every rank, or RankError."""
    found: dict[int, Any] = {}
    failed: dict[int, str] = {}
    end = time.monotonic() + seconds
    while len(found) + len(failed) < len(pipes) and time.monotonic() < end:
        waiting = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in found and rank not in failed}
        for pipe in wait(list(waiting), max(0.0, end - time.monotonic())):
            assert isinstance(pipe, Connection)
            try:
                fine, value = torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=False)
            except EOFError:
                fine, value = False, "the process died"
            (found if fine else failed)[waiting[pipe]] = value
            if not fine:
                end = min(end, time.monotonic() + GRACE)
    late = [rank for rank in range(len(pipes)) if rank not in found and rank not in failed]
    if failed or late:
        lines = [f"rank {rank} of {len(pipes)}:\n{text}" for rank, text in sorted(failed.items())]
        raise RankError("\n".join([*lines, *(f"rank {rank} of {len(pipes)} was still {doing}" for rank in late)]))
    return [found[rank] for rank in range(len(pipes))]


def _rank(
    pipe: Connection,
    payload: tuple[tuple[str, str, str], bytes],
    rank: int,
    folder: str,
    timeout: float,
    environment: dict[str, str],
) -> None:
    try:
        os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
        world = int(environment["WORLD_SIZE"])
        torch.set_num_threads(1)
        target, packed = payload
        function = _function(*target)
        args = torch.load(io.BytesIO(packed), weights_only=False)
        pipe.send_bytes(_packed((True, None)))
        pipe.recv_bytes()
        meeting = f"file://{folder}/rendezvous"
        dist.init_process_group(
            "gloo", init_method=meeting, rank=rank, world_size=world, timeout=timedelta(seconds=timeout)
        )
        assert dist.get_world_size() == world and dist.get_rank() == rank
        report = _packed((True, function(*args)))
        dist.barrier()  # without it, one end in six aborts a rank that is not through yet
        dist.destroy_process_group()
        pipe.send_bytes(report)
    except BaseException:
        pipe.send_bytes(_packed((False, traceback.format_exc())))


def _function(file: str, module: str, name: str) -> Callable[..., Any]:
    """The function of that file: test modules are not importable by name under pytest's importlib mode."""
    if module not in sys.modules:
        spec = importlib.util.spec_from_file_location(module, Path(file))
        assert spec and spec.loader
        sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])
    found: Any = sys.modules[module]
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _packed(value: Any) -> bytes:
    """By value: torch's own queues share memory, which is gone when the sender is."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
