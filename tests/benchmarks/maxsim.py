"""Compare MaxSim on a CPU with other libraries: CPU seconds, peak memory and error, in training and in scoring.

    python -m venv /tmp/peers
    /tmp/peers/bin/pip install -r tests/benchmarks/peers.txt
    /tmp/peers/bin/pip install --no-deps -r tests/benchmarks/peers_alone.txt
    python tests/benchmarks/maxsim.py --peers /tmp/peers/bin/python --json maxsim.json

A training case is forward and backward through scores and cross entropy. The exhaustive case scores 100 queries
against 2,000 documents of 32 to 320 tokens without gradients; two contenders also rank the best 100 by hybrid scores.
Every contender runs in its own process and waits while another one works; the order changes with every repeat. Numbers
are medians. Peak memory is the highest resident memory of a repeat above what was resident before it, gradients
included; "beyond gradients" leaves out the gradients of the contender's own inputs (padded ones for other libraries).
The error is the largest difference from float64. A contender that cannot run is reported with the reason. The roofline
is the time of the same products alone, in one tile of 1,024 by 1,024 tokens.

bank is the formula as one product with all documents' tokens; it represents code whose licence does not allow a run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

HERE = Path(__file__).parent
RANKINGS = ("smart-train, hybrid ranking", "smart-train, hybrid ranking by every score")  # of "exhaustive" alone
OWN = ("smart-train", *RANKINGS, "einsum", "bank")  # these need torch alone and run in this environment
PEERS = (
    "sentence-transformers",
    "sentence-transformers, 4M-element chunks",
    "colpali-engine",
    "pylate",
    "late-interaction-kernels, reference",
    "maxsim-cpu",
)
SHAPES = {  # B, N, Q, T, d; T from - to
    "s16": (16, 16, 32, (256, 256), 128),
    "s64": (64, 64, 32, (256, 256), 128),
    "hn": (32, 64, 32, (768, 768), 128),
    "ragged": (32, 64, 32, (64, 768), 128),
    "d2048": (32, 32, 24, (768, 768), 2048),
    "exhaustive": (100, 2000, 32, (32, 320), 128),
}


def case(shape: str, dtype: torch.dtype) -> dict[str, Any]:
    """The inputs and their scores in float64, as the contenders load them."""
    rows, documents, length, (shortest, longest), width = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(shortest, longest + 1, (documents,), generator=generator)
    q, x = (
        F.normalize(torch.randn(n, width, generator=generator), dim=-1).to(dtype)
        for n in (rows * length, int(lengths.sum()))
    )
    scores = [(q.double() @ one.double().t()).amax(1).view(rows, length).mean(1) for one in x.split(lengths.tolist())]
    return {
        "queries": q,
        "query_lengths": torch.full((rows,), length),
        "documents": x,
        "document_lengths": lengths,
        "training": shape != "exhaustive",
        "reference": torch.stack(scores, 1),
    }


def roofline(inputs: dict[str, Any]) -> float:
    """CPU seconds of the forward's products alone, from the fastest of 9 products of 1,024 by 1,024 tokens."""
    q, x = (inputs[side].repeat(-(-1024 // len(inputs[side])), 1)[:1024] for side in ("queries", "documents"))
    out = torch.empty(len(q), len(x), dtype=q.dtype)
    times = []
    for _ in range(9):
        begin = time.process_time()
        torch.mm(q, x.t(), out=out)
        times.append(time.process_time() - begin)
    return min(times) / out.numel() * len(inputs["queries"]) * len(inputs["documents"])


class Contender:
    """A process that waits for lines and answers each with the measurements of one repeat."""

    def __init__(self, name: str, python: str, path: Path, threads: int) -> None:
        self.name, self.repeats = name, []
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        environment |= {"RAYON_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lives as long as the process
        self.process = subprocess.Popen(
            [python, str(HERE / "maxsim_contenders.py"), name, str(path), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )
        self.about = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        self.log.seek(0)
        last = self.log.read().strip().splitlines() or [f"ended with {self.process.wait()}"]
        return {"absent": last[-1]}

    def repeat(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self._answer()
        if "absent" in answer:
            self.about = answer
        else:
            self.repeats.append(answer)

    def close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()
        self.log.close()


def compare(shape: str, dtype: torch.dtype, args: argparse.Namespace) -> dict[str, Any]:
    """One shape in one dtype: {"roofline_seconds", "contenders": {name: measurements or {"absent": why}}}."""
    inputs = case(shape, dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.pt"
        torch.save(inputs, path)
        python = dict.fromkeys(OWN, sys.executable) | dict.fromkeys(PEERS, args.peers)
        absent = {name: {"absent": "--peers names no interpreter"} for name in PEERS if not args.peers}
        absent |= {name: {"absent": "left out by --contenders"} for name in python if name not in args.contenders}
        there = [Contender(name, python[name], path, args.threads) for name in python if name not in absent]
    bound = roofline(inputs)
    for turn in range(args.repeats):
        for contender in there[turn % len(there) :] + there[: turn % len(there)]:
            if "absent" not in contender.about:
                contender.repeat()
    measured: dict[str, Any] = {one.name: medians(one) for one in there}
    for one in there:
        one.close()
    own = measured["smart-train"]
    for one in measured.values():
        if "absent" not in one:
            one["ratio_to_ours"] = one["seconds"] / own["seconds"]
            one["peak_ratio_to_ours"] = one["peak_bytes"] / max(1, own["peak_bytes"])
    return {"shape": shape, "dtype": str(dtype)[6:], "roofline_seconds": bound, "contenders": measured | absent}


def medians(contender: Contender) -> dict[str, Any]:
    if "absent" in contender.about:
        return {"absent": contender.about["absent"]}
    middle = {key: statistics.median(one[key] for one in contender.repeats) for key in contender.repeats[0]}
    beyond = middle["peak_bytes"] - contender.about["gradient_bytes"]
    return middle | {"beyond_bytes": beyond, "version": contender.about["version"]}


def table(result: dict[str, Any]) -> str:
    """One shape as text; the last line compares ours with the fastest and the smallest other library."""
    lines = [f"{result['shape']} {result['dtype']}: products alone {result['roofline_seconds'] * 1e3:.1f} ms"]
    peers = {}
    for name, one in result["contenders"].items():
        if "absent" in one:
            lines.append(f"  {name:42} absent: {one['absent']}")
            continue
        lines.append(
            f"  {name:42} {one['seconds'] * 1e3:9.1f} ms  x{one['ratio_to_ours']:<6.2f} "
            f"peak {one['peak_bytes'] / 1e6:7.1f} MB, beyond gradients {one['beyond_bytes'] / 1e6:7.1f} MB, "
            f"error {one['error']:.1e}"
        )
        if not name.startswith("smart-train"):
            peers[name] = one
    if not peers:
        return "\n".join(lines)
    own = result["contenders"]["smart-train"]
    fastest = min(peers, key=lambda name: peers[name]["seconds"])
    smallest = min(peers, key=lambda name: peers[name]["beyond_bytes"])
    lines.append(
        f"  ours: {own['seconds'] / peers[fastest]['seconds']:.2f} of the fastest ({fastest}), "
        f"{own['beyond_bytes'] / max(1, peers[smallest]['beyond_bytes']):.2f} of the smallest ({smallest}), "
        f"{own['seconds'] / result['roofline_seconds']:.2f} of the products alone"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="Python that has the other libraries; without it they are absent")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--contenders", nargs="+", choices=[*OWN, *PEERS], default=[*OWN, *PEERS])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the results, written after every shape")
    args = parser.parse_args()
    args.contenders.append("smart-train")  # what everything is compared with
    torch.set_num_threads(args.threads)
    results = []
    for dtype in args.dtypes:
        for shape in args.shapes:
            if shape == "exhaustive" and dtype != "float32":
                continue
            results.append(compare(shape, getattr(torch, dtype), args))
            print(table(results[-1]), flush=True)
            if args.json:
                about = {"torch": torch.__version__, "threads": args.threads, "repeats": args.repeats}
                args.json.write_text(json.dumps(about | {"results": results}, indent=1))


if __name__ == "__main__":
    main()
