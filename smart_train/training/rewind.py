"""The JSONL log of a run that is gone on with: what a killed run wrote after its last checkpoint is made again, and
each step is in the file once.

Knows: lines of JSON with a step.  Does not know: who writes them.
"""

from __future__ import annotations

import json
from pathlib import Path

from smart_train.saving import replacing


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
