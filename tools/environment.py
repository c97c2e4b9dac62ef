"""Make or update .venv from pyproject.toml and constraints.txt: the first half of `make quickstart` and `make test`.

Standard library only, because it runs before anything is installed. It does nothing if both files are those of the last
install.

Which build of torch: normally pip decides. On a Linux machine without a GPU pip may choose the CUDA build, which works
but adds several GB of libraries. There uv, which knows torch's builds by name, installs the CPU build first.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "installed.json"  # written by a finished install: what it was made of
UNFINISHED = VENV / "unfinished"  # exists while an install runs, and after an interrupted one
SOURCES = ("pyproject.toml", "constraints.txt")
OLDEST = (3, 11)


def main() -> None:
    if sys.version_info < OLDEST:
        sys.exit(
            f"smart-train needs Python {OLDEST[0]}.{OLDEST[1]} or newer; this is {sys.version.split()[0]} "
            f"({sys.executable}). Name another one: make PYTHON=/path/to/python3 ..."
        )
    lock = os.open(ROOT, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # of two `make` at once the second waits, then finds everything done
    wanted = fingerprint()
    found = read_stamp()
    if found == wanted:
        return
    if not usable(found, wanted):
        create()
    UNFINISHED.touch()
    STAMP.unlink(missing_ok=True)
    install()
    STAMP.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
    UNFINISHED.unlink()


def fingerprint() -> dict[str, str]:
    """Return what an install depends on: both files' content, the folder (scripts contain its path) and the Python."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((ROOT / name).read_bytes())
    return {"sources": digest.hexdigest(), "place": f"{VENV} {os.path.realpath(sys.executable)}"}


def read_stamp() -> dict[str, str] | None:
    """Return the stamp of a finished install whose Python still runs, or None."""
    if UNFINISHED.exists() or not STAMP.exists() or not runs("-c", ""):
        return None
    stamp: dict[str, str] = json.loads(STAMP.read_text(encoding="utf-8"))
    return stamp


def usable(found: dict[str, str] | None, wanted: dict[str, str]) -> bool:
    """Return whether pip can update the existing .venv: one of ours, or one made by hand.

    An unfinished one cannot be updated: pip may take half a package for a whole one.
    """
    if found is not None:
        return found["place"] == wanted["place"]
    new_enough = f"import sys; sys.exit(sys.version_info < {OLDEST})"
    return not UNFINISHED.exists() and runs("-c", new_enough) and runs("-m", "pip", "--version")


def runs(*arguments: str) -> bool:
    return os.path.exists(python()) and subprocess.run([python(), *arguments], capture_output=True).returncode == 0


def create() -> None:
    """Make an empty .venv, replacing whatever is there."""
    say(f"making {VENV.name} with Python {sys.version.split()[0]}")
    if VENV.is_symlink() or VENV.is_file():
        sys.exit(f"{VENV} is a link or a file; remove it, so that a folder can be made")
    if subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)]).returncode:
        sys.exit("python -m venv failed (above); on Debian and Ubuntu it is a package of its own: python3-venv")


def install() -> None:
    flags = shlex.split(os.environ.get("PIP_FLAGS", ""))
    gpu = sees_gpu()
    if not gpu and takes_cuda_build(flags):
        install_fitting_torch(flags)
    size = "about 8 GB on disk" if gpu else "about 2 GB on disk"
    say(f"installing smart-train and what it needs: {size}, one to ten minutes, quiet unless something is wrong")
    pip("install", *flags, "-c", "constraints.txt", "-e", ".[dev]")
    subprocess.run([python(), "-c", REPORT], check=True)


def takes_cuda_build(flags: list[str]) -> bool:
    """Return whether pip would choose a GPU build of torch; only Linux has one by default."""
    if sys.platform != "linux":
        return False
    question = ["install", "--dry-run", "--no-deps", "--ignore-installed", "--report", "-"]
    answer = pip(*question, *flags, "-c", "constraints.txt", "torch", capture=True)
    return "+cpu" not in json.loads(answer)["install"][0]["metadata"]["version"]


def sees_gpu() -> bool:
    if glob.glob("/dev/nvidia[0-9]*"):
        return True
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool, "-L"], capture_output=True).returncode == 0


def install_fitting_torch(flags: list[str]) -> None:
    say("no NVIDIA GPU is visible: uv installs the CPU build of torch")
    pip("install", *flags, "uv")
    command = [str(VENV / "bin" / "uv"), "pip", "install", "--quiet", "--python", python(), "--torch-backend=auto"]
    if subprocess.run([*command, "-c", "constraints.txt", "torch"], cwd=ROOT).returncode:
        say(
            "uv found none (above), so pip installs the CUDA build: it works without a GPU, but is several GB larger. "
            "To choose another: make PIP_FLAGS='--index-url ...' with an index that has a CPU build"
        )


REPORT = """
import torch
print(f"[environment] torch {torch.__version__},", torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")
"""


def pip(*arguments: str, capture: bool = False) -> str:
    """Run pip, which prints only errors; return its output if ``capture``."""
    command = [python(), "-m", "pip", arguments[0], "-qq", *arguments[1:]]
    done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE if capture else None)
    if done.returncode:
        sys.exit(
            f"[environment] pip failed (above): pip {shlex.join(arguments)}. "
            "After you have fixed the cause, run the same make command again."
        )
    return done.stdout or ""


def python() -> str:
    return str(VENV / "bin" / "python")


def threads() -> int:
    """Return the cores that this process may use, by affinity and container quota; more than eight gain nothing."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        allowed, period = quota.read_text(encoding="ascii").split()
        if allowed != "max":
            cores = min(cores, max(1, int(allowed) // int(period)))
    return min(cores, 8)


def say(text: str) -> None:
    print(f"[environment] {text}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["threads"]:
        print(threads())
    else:
        main()
