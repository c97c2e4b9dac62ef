"""One training step of a 2B-sized Qwen3-VL on one GPU: time and memory, gradient caching on and off, beside
sentence-transformers' own trainers on the same model.

    tests/benchmarks/gpu.sh gpu.json                                          # looks at the machine first
    python tests/benchmarks/gpu_step.py --tiny --device cpu --json tiny.json  # everything but CUDA, in minutes

Random weights (gpu_model.py), bfloat16 base and autocast, the same LoRA (r = 32, all linear layers of the language
model's blocks) and activation checkpointing for everybody; pages of 791 tokens (768 of the image) and queries of 45,
the same for all.  Every contender runs in a process of its own; one that fails is reported with its error, and the
others go on.

seconds      of a step, the median over all but the first two: from the end of one to the end of the next, the GPU
             waited for.  Pages are opened and cut into patches in data workers where a trainer has them (--workers).
allocated    bytes: most that torch held during training (on a CPU: growth of peak resident memory).
reserved     bytes: most that torch took from the GPU.  weights: bytes held before training.
width        of a token vector; None where there is none.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import gpu_contenders

PACKAGES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "peft",
    "accelerate",
    "triton",
    "late-interaction-kernels",
)


# -- the benchmark ----------------------------------------------------------------------------------------------------


def machine(device: str) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "gpu": None,
    }
    if device != "cpu":  # by the driver's tool: torch would take memory of the GPU for this process, too
        ask = ["name", "memory.total", "driver_version", "compute_cap", "power.limit"]
        command = ["nvidia-smi", f"--query-gpu={','.join(ask)}", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        found["gpu"] = [dict(zip(ask, line.split(", "), strict=True)) for line in said]
        found["visible"] = os.environ.get("CUDA_VISIBLE_DEVICES")
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def apart(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One contender in a process of its own; what it says where it fails."""
    command = [sys.executable, __file__, "--run", name, "--folder", str(folder), *_again(options)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return {"failed": lines[-1] if lines else f"exit status {done.returncode}", "output": lines[-30:]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _again(options: argparse.Namespace) -> list[str]:
    values = [(f"--{name}", str(getattr(options, name))) for name in ("device", "pairs", "chunk", "steps", "workers")]
    return [part for pair in values for part in pair] + (["--tiny"] if options.tiny else [])


def table(found: dict[str, dict[str, Any]]) -> str:
    lines = [f"{'':36s}{'pairs':>6s}{'seconds':>10s}{'pairs/s':>9s}{'MiB':>9s}"]
    for name, row in found.items():
        if "failed" in row:
            lines.append(f"{name:36s}failed: {row['failed'][:80]}")
            continue
        numbers = f"{row['seconds']:10.3f}{row['pairs_per_second']:9.2f}{row['allocated'] / 2**20:9.0f}"
        lines.append(f"{name:36s}{row['pairs']:6d}{numbers}")
    return "\n".join(lines)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Builds the model and the pages, runs everyone, writes the JSON after each: nothing measured is lost."""
    import gpu_model

    names = [name for name in gpu_contenders.CONTENDERS if not options.only or name in options.only]
    report: dict[str, Any] = {"machine": machine(options.device), "settings": settings(options), "results": {}}
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        folder = Path(scratch)
        gpu_model.build(folder, options.tiny)
        gpu_model.pages(folder / "pages", 4 * options.pairs * options.steps, options.tiny)
        for name in names:
            report["results"][name] = apart(name, folder, options)
            print(name, report["results"][name], file=sys.stderr, flush=True)
            if options.json:
                options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf8")
    return report


def settings(options: argparse.Namespace) -> dict[str, Any]:
    import gpu_model

    chosen = {name: getattr(options, name) for name in ("device", "tiny", "pairs", "chunk", "steps", "workers")}
    sizes = {} if options.tiny else {"text": gpu_model.TEXT_2B, "vision": gpu_model.VISION_2B, "from": gpu_model.SOURCE}
    return chosen | {"model": sizes or "tests/helpers/tiny.py: qwen3vl"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu (with --tiny)")
    parser.add_argument("--tiny", action="store_true", help="a model of 0.3 M parameters and small pages")
    parser.add_argument("--pairs", type=int, help="of a plain step (32; tiny: 4)")
    parser.add_argument("--chunk", type=int, help="rows of a forward when caching (8; tiny: 2)")
    parser.add_argument("--steps", type=int, help="of a run, of which two are not counted (12; tiny: 4)")
    parser.add_argument("--workers", type=int, default=None, help="data workers (8; tiny: 0)")
    parser.add_argument("--only", nargs="+", help="contenders; all by default")
    parser.add_argument("--scratch", help="folder for the model and the pages, 12 GB (default: the system's)")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    usual = {"pairs": (32, 4), "chunk": (8, 2), "steps": (12, 4), "workers": (8, 0)}
    for name, (large, small) in usual.items():
        if getattr(options, name) is None:
            setattr(options, name, small if options.tiny else large)
    if options.steps <= gpu_contenders.FIRST:
        parser.error(f"--steps: the first {gpu_contenders.FIRST} are not counted, so give more")
    if unknown := set(options.only or []) - set(gpu_contenders.CONTENDERS):
        parser.error(f"--only: no contender is called {', '.join(sorted(unknown))}")
    if options.run:
        files = sorted((options.folder / "pages").iterdir(), key=lambda file: int(file.stem))
        print(json.dumps(gpu_contenders.one(options.run, options.folder / "model", files, options)))
        return
    report = measure(options)
    print(table(report["results"]))
    if failed := [name for name, row in report["results"].items() if "failed" in row]:
        sys.exit(f"failed: {', '.join(failed)}; see their output in the JSON")


if __name__ == "__main__":
    main()
