"""Run a script in a Python of its own, which cannot import this package, with limits of time and memory.

For what must not see this package's own patches (plain sentence-transformers reading a folder of ours), and for what
may never end or fill the memory (a tokenizer or a chat template of a download).
"""

from __future__ import annotations

import json
import os
import pickle
import signal
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
    """The script did not answer. reason: the last line it wrote, or how it ended; late: it ran past its time; last: the
    last line it wrote to standard error."""

    def __init__(self, reason: str, late: bool = False, last: str = "") -> None:
        super().__init__(reason)
        self.reason, self.late, self.last = reason, late, last


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
        late, told = False, ""
        try:
            _, told = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            if process.poll() is None:  # with those that it started: it leads a group of its own
                os.killpg(process.pid, signal.SIGKILL)
                _, told = process.communicate()
        lines = [line.strip()[:500] for line in told.splitlines() if line.strip()]
        last = lines[-1] if lines else ""
        if late:
            raise ChildFailed(f"it had not ended after {seconds:g} s", late, last)
        if process.returncode != 0 or not answered.is_file():
            raise ChildFailed(last or f"it ended with status {process.returncode}", last=last)
        return pickle.loads(answered.read_bytes())
