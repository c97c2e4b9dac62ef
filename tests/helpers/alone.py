"""Runs a script in a Python of its own that has the installed libraries and not this package."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

FIRST = """
import sys
sys.path += {places!r}
try:
    import smart_train
except ImportError:
    pass
else:
    raise SystemExit(f"this package can be imported: {{smart_train.__file__}}")
"""


def run_alone(script: str, folder: Path, *words: str) -> str:
    """The script's output.  -I: neither PYTHONPATH nor the current folder; -S: no .pth file, by which an editable
    install is found; the libraries' own folders are named instead."""
    paths = sysconfig.get_paths()
    places = list(dict.fromkeys((paths["purelib"], paths["platlib"])))
    file = folder / "alone.py"
    file.write_text(FIRST.format(places=places) + script)
    command = [sys.executable, "-I", "-S", str(file), *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
