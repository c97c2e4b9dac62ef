"""Run a script in a Python of its own, which cannot import this package, with limits of time and memory.

For what must not see this package's own patches (plain sentence-transformers reading a folder of ours), and for what
may never end or fill the memory (a tokenizer or a chat template of a download).
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# Variables by which a process takes part in a launch of several.
LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "GROUP_", "ROLE_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_")
# -I: neither PYTHONPATH nor the current folder.  The libraries are found where this process finds them.
FIRST = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
sys.modules["smart_train"] = None
import pickle, resource, runpy
memory = int(sys.argv[2])
if memory:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
answer = runpy.run_path(sys.argv[3])["answer"]
with open(sys.argv[4], "rb") as stream:
    request = pickle.load(stream)
given = answer(request)
with open(sys.argv[5], "wb") as stream:
    pickle.dump(given, stream)
"""


class ChildFailed(Exception):
    """The script did not answer. late: it ran past its time; reason: the last line it wrote, or how it ended."""

    def __init__(self, reason: str, late: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.late = reason, late


def ask(script: Path, request: Any, seconds: float, memory: int = 0) -> Any:
    """Return what the function ``answer`` of ``script`` returns for ``request``, called in a process of its own.

    script: a file that imports libraries, and nothing of this package; request and answer are pickled
    seconds: after which it is killed, with the processes that it started; memory: most bytes of address space, 0 = any
    Raises ChildFailed where it ends otherwise.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCH)}
    with TemporaryDirectory(prefix="smart-train-") as folder:
        asked, answered = Path(folder, "request"), Path(folder, "answer")
        asked.write_bytes(pickle.dumps(request))
        places = json.dumps([str(Path(place).resolve()) for place in sys.path if place])
        words = [places, str(memory), str(script), str(asked), str(answered)]
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", FIRST, *words],
            cwd=folder,
            env={**environment, "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            _, told = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise ChildFailed(f"it had not ended after {seconds:g} s", late=True) from None
        finally:
            _end(process)
        if process.returncode != 0 or not answered.is_file():
            lines = [line.strip() for line in told.splitlines() if line.strip()]
            raise ChildFailed(lines[-1][:500] if lines else f"it ended with status {process.returncode}")
        return pickle.loads(answered.read_bytes())


def _end(process: subprocess.Popen[str]) -> None:
    """Kill the process and those it started; it leads a group of its own."""
    if process.poll() is None:
        os.killpg(process.pid, 9)
        process.communicate()
